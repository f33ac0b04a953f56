"""The comparison with peers measures what it says, knows what is right, and shows what is wrong."""

import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import pages, scaling
from benchmarks.peers import constrained, contenders, kkt, problems, reference, tables
from benchmarks.peers.measure import choose_tolerance, measure_family, time_in_turns
from benchmarks.peers.process import Lost, Process
from benchmarks.peers.programs import compiled


@pytest.fixture(scope="module")
def ridge():
    case = problems.family_a()["model's ridge"]()
    program = compiled(contenders.closed_form(case, None), case)
    return program, reference.Reference(case)


def test_the_reference_agrees_with_the_closed_form_and_sees_a_wrong_gradient(ridge):
    program, judge = ridge
    y, gradients = program.forward_backward()
    # Both are right to rounding times a condition number below 100.
    assert judge.error(y, gradients) < 1e-12
    wrong = [g if k else g * (1 + 1e-5) for k, g in enumerate(gradients)]
    assert judge.error(y, wrong) == pytest.approx(1e-5, rel=1e-3)
    assert judge.error(np.full_like(y, np.nan), gradients) == np.inf


def test_the_banded_reference_agrees_with_the_dense_one():
    case = problems.make_case(partial(problems.quartic, n=8))
    y = np.zeros(case.unknowns)
    here = reference.Reference(problems.Case(**vars(case) | {"bandwidth": 1}))
    there = reference.Reference(problems.Case(**vars(case) | {"bandwidth": None}))
    assert here.error_of_point(y) == pytest.approx(there.error_of_point(y), rel=1e-9)
    assert here.error_of_point(y) > 1e-2


def test_a_wrong_lane_of_a_batch_is_seen():
    case = problems.make_case(problems.model_ridge, lanes=3)
    program = compiled(contenders.closed_form(case, None), case)
    y, gradients = program.forward_backward()
    judge = reference.Reference(case)
    assert judge.error(y, gradients) < 1e-12
    wrong = np.array(gradients[0])
    wrong[2] *= 2
    assert judge.error(y, [wrong, *gradients[1:]]) == pytest.approx(1)


def test_the_constrained_reference_agrees_with_a_problem_solved_by_hand():
    """min |y - c|² / 2 where y_0 <= h and sum(y) = b; the inequality is active in lane 0 only."""
    case = problems.Case(
        name="by hand",
        kind="NLP",
        lanes=2,
        objective=lambda y, c, h, b: ((y - c) ** 2).sum() / 2,
        start=np.zeros((2, 2)),
        params=(np.array([[3.0, 1.0], [0.0, 1.0]]), np.ones(2), np.full(2, 2.0)),
        weights=np.array([[1.0, 2.0], [1.0, 2.0]]),
        eq=lambda y, c, h, b: y.sum() - b,
        ineq=lambda y, c, h, b: y[0:1] - h,
    )
    judge = kkt.Reference(case)
    # Lane 0: y = (h, b - h). Lane 1: y = c + (b - sum(c)) / 2.
    y = np.array([[1.0, 1.0], [0.5, 1.5]])
    c_bar = np.array([[0.0, 0.0], [-0.5, 0.5]])
    h_bar, b_bar = np.array([-1.0, 0.0]), np.array([2.0, 1.5])
    assert judge.error(y, [c_bar, h_bar, b_bar]) < 1e-14
    # It finds its own way from a point with the wrong active set.
    assert judge.error(y - 1e-2, [c_bar, h_bar, b_bar]) < 1e-14
    assert judge.error(y, [c_bar, 1.01 * h_bar, b_bar]) == pytest.approx(1e-2)


def test_case_data_are_the_same_in_every_process():
    for family in (problems.family_a(), constrained.family_e()):
        make = next(iter(family.values()))
        for a, b in zip(make().params, make().params, strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.fixture(scope="module")
def measured():
    """The smallest case, through processes as in earnest."""
    jax.config.update("jax_enable_x64", True)
    (rows,) = measure_family(
        "a",
        ["model's ridge"],
        ["closed form"],
        (sys.executable, None),
        rounds=1,
        case_budget_s=0.5,
        limit_s=120,
    )
    return rows


def test_every_contender_gets_a_row_with_time_error_and_what_it_cost(measured):
    (row,) = measured
    assert row["contender"] == "closed form"
    assert row["lost"] is None
    assert row["error"] < 1e-6
    for what in ("forward_ms", "forward_backward_ms", "compile_s", "memory_mb"):
        assert row[what] > 0


class _Solver:
    """Answers like a process whose point errs by a tenth of its tolerance."""

    def ask(self, limit_s, do, case, tolerance, save):
        assert do == "point"
        np.savez(save, y=tolerance / 10)

    def error_of_point(self, y):
        return float(y)


def test_a_peer_gets_the_loosest_tolerance_that_allows_a_right_gradient(tmp_path):
    solver = _Solver()
    found = choose_tolerance(solver, solver, "x", 1.0, str(tmp_path / "found.npz"))
    assert found == pytest.approx(1e-6)


def test_a_contender_that_ends_is_lost_with_its_last_words():
    process = Process(sys.executable, "a", "nobody")
    process.command = [sys.executable, "-c", "raise SystemExit('no such contender')"]
    with pytest.raises(Lost, match="no such contender"):
        process.ask(60, "turn", what="forward", budget_s=0.0)


def test_a_contender_that_stands_still_is_stopped():
    process = Process(sys.executable, "a", "nobody")
    process.command = [sys.executable, "-c", "import sys; sys.stdin.read()"]
    with pytest.raises(Lost, match="no answer"):
        process.ask(0.1, "turn", what="forward", budget_s=0.0)
    assert process.process is None


class _Runner:
    """Answers like a process whose runs take a millisecond, ``answers`` times."""

    def __init__(self, answers):
        self.answers = answers

    def ask(self, limit_s, do, what, budget_s):
        assert do == "turn"
        self.answers -= 1
        if self.answers < 0:
            raise Lost("no answer")
        return [0.001]


def test_a_contender_that_is_lost_in_its_turns_leaves_the_others_theirs():
    found = time_in_turns({"steady": _Runner(99), "gone": _Runner(3)}, 4, 60.0, 1.0)
    assert found["gone"] == {"lost": "no answer"}
    assert found["steady"] == {"forward_ms": 1.0, "forward_backward_ms": 1.0, "rounds": 4}
    assert time_in_turns({"gone": _Runner(0)}, 4, 60.0, 1.0) == {"gone": {"lost": "no answer"}}


def _row(contender, ms, error, lost=None):
    return {
        "case": "x", "contender": contender, "forward_ms": ms, "forward_backward_ms": ms,
        "error": error, "compile_s": 1.0, "memory_mb": None, "lost": lost,
    }  # fmt: skip


def test_only_a_peer_that_is_right_is_a_mark_to_beat():
    rows = [
        _row("argmin_jax", 2.0, 1e-12),
        _row("argmin_jax, NewtonCG", 1.0, 1e-9),
        _row("closed form", 0.1, 0.0),
        _row("fast", 0.5, 1e-3),
        _row("right", 4.0, 1e-7),
        _row("gone", None, None, lost="no answer within 1 s"),
    ]
    cells = {line[1]: line for line in tables.family_cells(rows)}
    assert cells["argmin_jax"][2] == "0.50"
    assert cells["fast"][2] == "**wrong**"
    assert cells["gone"][2] == "**lost**"
    standing = tables.standing("x", rows)
    assert standing[2:] == ["0.50 (worst 0.50)", "0.25 (worst 0.25)", "1e-09", "2 of 3"]


def test_the_exponent_is_the_slope_of_the_large_sizes():
    rows = [
        {"axis": "unknowns", "setting": "default", "size": n, "median_ms": 1 + (n / 1e4) ** 1.5}
        for n in (10, 10**7, 10**8)
    ]
    assert scaling.exponent(rows, "unknowns", "default", "median_ms") == pytest.approx(
        1.5, abs=0.01
    )
    assert scaling.exponent(rows[:2], "unknowns", "default", "median_ms") is None


def test_a_setting_that_fails_is_a_lost_row_and_the_others_are_measured(monkeypatch):
    def diverging(objective, y0, *params):
        return y0 * jnp.nan

    settings = {"default": ({}, 10), "diverging": ({"solver": diverging}, 10)}
    monkeypatch.setattr(scaling, "SETTINGS", settings)
    right, lost = scaling.measure("unknowns", (10,), 1)
    assert right["median_ms"] > 0 and right["lost"] is None
    assert lost["median_ms"] is None and "NOT_FINITE" in lost["lost"]
    versions = {"jax": "1"}
    text = scaling.section({"rows": [right, lost], "machine": "here", "versions": versions})
    assert "diverging at 10 unknowns was lost: " in text


def test_the_pages_are_what_the_committed_results_give():
    found = pages.parts()
    for page in pages.PAGES:
        text = page.read_text("utf-8")
        assert pages.fill(text, found) == text
