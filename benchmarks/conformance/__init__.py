"""A public test of differentiable optimisation: problems whose derivatives are known, asked of
every library as its users would. Run ``python -m benchmarks.conformance --help``."""
