"""argmin_jax against all that a user would pick instead, on the same work, accuracy beside speed.

A contender runs in a process of its own, so that one that hangs or crashes stops no other; the
parent gives the turns. Run ``python -m benchmarks.peers --help``.
"""
