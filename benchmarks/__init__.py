"""Measurements: speed and accuracy against PyTorch and peers. Not part of the installed package."""
