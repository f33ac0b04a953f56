"""Derivatives of solutions of problems from CUTEst against dense algebra, by the benchmark.

The truths are those of `benchmarks.sensitivities_oracle`; the second opinion is of central
differences, whose rounding is about 1e-14 / 1e-5 times the condition number.
"""

import jax
import numpy as np
import pytest

from benchmarks.cutest_problems import load, program
from benchmarks.sensitivities import measure, relative_error

REGULAR = {
    "a nonlinear equality": "HS6",
    "a constant objective": "HS8",
    "an active inequality": "HS12",
    "active bounds": "HS4",
    "a vertex of general inequalities": "HS24",
}
DEGENERATE = {
    "weakly active": ("HS17", "weakly_active"),
    "dependent rows": ("HS55", "rank_deficiency"),
    "flat": ("HS26", "rank_deficiency"),
}


def measured(name):
    (problem,) = load(lambda found: found == name).values()
    found = measure(*program(problem))
    jax.clear_caches()
    return found


@pytest.mark.parametrize("name", REGULAR.values(), ids=REGULAR.keys())
def test_jacobian_in_a_shift_of_everything_is_that_of_kkt_algebra_with(name):
    found = measured(name)
    assert found["verdict"] == "right"
    assert found["error"] <= 1e-9  # the condition numbers are at most 1e4
    assert found["difference from central differences"] <= 1e-6
    assert found["report"]["rank_deficiency"] == found["report"]["weakly_active"] == 0


@pytest.mark.parametrize("case", DEGENERATE.values(), ids=DEGENERATE.keys())
def test_solution_without_a_derivative_is_reported_as(case, request):
    name, field = case
    found = measured(name)
    assert request.node.callspec.id in found["degenerate"]
    assert found["verdict"] == "degenerate and reported"
    assert found["report"][field] > 0


def test_error_of_a_param_is_measured_against_its_own_part_of_the_jacobian():
    true = {"large": np.full((2, 2), 1e3), "small": np.full((2, 1), 1e-2)}
    found = {"large": true["large"], "small": 1.1 * true["small"]}
    units = {"large": np.ones(2), "small": np.ones(1)}
    assert relative_error(found, true, units, np.ones(2)) == pytest.approx(0.1)
    assert relative_error(true, true, units, np.ones(2)) == 0
