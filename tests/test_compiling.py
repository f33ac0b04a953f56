"""What the page on compile time advises is what was measured, and what the suite is run with."""

import json
import os

import jax
import jax.numpy as jnp
import pytest

from argmin_jax import argmin
from benchmarks import compiling, pages


def test_the_committed_results_are_of_every_case():
    results = json.loads((pages.RESULTS / "compiling.json").read_text("utf-8"))
    assert {"machine", "versions"} <= set(results)
    assert [row["case"] for row in results["rows"]] == list(compiling.CASES)


def test_the_suite_is_compiled_with_the_options_that_the_page_advises_and_not_optimised():
    flags = os.environ["XLA_FLAGS"].split()
    for name, value in {**compiling.OPTIONS, "xla_backend_optimization_level": 0}.items():
        assert f"--{name}={str(value).lower() if isinstance(value, bool) else value}" in flags


@pytest.mark.parametrize(
    ("on_failure", "calls_back"),
    [("raise", True), ("warn", True), ("nan", False), ("ignore", False)],
)
def test_a_jitted_solve_calls_back_only_where_it_may_raise_or_warn(on_failure, calls_back):
    """JAX keeps no program in its cache that calls back."""

    @jax.jit
    @jax.grad
    def gradient(a):
        y = argmin(lambda y, a: jnp.sum((y - a) ** 2), jnp.zeros(2), a, on_failure=on_failure)
        return jnp.sum(y**3)

    assert ("callback" in gradient.lower(jnp.ones(2)).as_text()) == calls_back
