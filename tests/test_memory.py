"""The benchmark of memory measures right gradients, and what it measured is within its bound."""

import json

import pytest

from benchmarks import memory


def test_what_is_measured_is_a_right_gradient():
    assert memory.measure("NewtonCG", memory.FEW)["max_residual"] < 1e-12


@pytest.mark.parametrize("name", memory.SOLVERS)
def test_the_committed_results_are_of_a_million_unknowns_and_within_the_bound(name):
    results = json.loads(memory.RESULTS.read_text())
    assert {"machine", "versions"} <= set(results)
    (row,) = [row for row in results["rows"] if row["solver"] == name]
    assert row["unknowns"] >= 1_000_000
    assert row["copies_of_y"] <= memory.BOUND
    assert row["max_residual"] < 1e-12
