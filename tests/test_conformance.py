"""The conformance suite: its truths are true, its judgement is sound, and we pass a part of it."""

import io
import json
import threading
from dataclasses import replace
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from rich.console import Console

from benchmarks.conformance import guard, page
from benchmarks.conformance.asks import cotangent, derivative, tangent, truths
from benchmarks.conformance.catalogue import CATALOGUE, GROUPS
from benchmarks.conformance.contenders import CONTENDERS, Contender
from benchmarks.conformance.judge import Kind, judge, relative_error
from benchmarks.conformance.problem import Answer, Ask, CannotExpress, Form, Problem
from benchmarks.conformance.worker import attempt

ROOT = Path(__file__).parent.parent
SOLVABLE = [name for name, problem in CATALOGUE.items() if problem.solutions]
# At these the solution has a derivative although the objective, or its Hessian, does not show it.
IRREGULAR = {"kink at the minimum", "quartic minimum", "weakly active bound"}


def one_lane(problem: Problem) -> Problem:
    """A batch's first problem; others as they are."""
    axes = problem.in_axes or (None,) * len(problem.params)
    params = [p if axis is None else p[0] for p, axis in zip(problem.params, axes, strict=True)]
    return replace(problem, params=tuple(params))


def first_order(problem: Problem, solution, params):
    """At the true solution: the gradient of the objective, the equations and the inequalities
    (feasible up to 0), and the Jacobians of both."""
    y, unravel = ravel_pytree(solution(*params))

    def value(y):
        found = problem.objective(jnp, unravel(y), *params)
        if problem.form is Form.LEAST_SQUARES:
            return jnp.sum(found**2) / 2
        return found[0] if problem.ask is Ask.AUX else found

    def equations(y):
        return jnp.zeros(0) if problem.eq is None else problem.eq(jnp, y, *params)

    def inequalities(y):
        lower, upper = (None, None) if problem.bounds is None else problem.bounds(*params)
        found = [] if problem.ineq is None else [problem.ineq(jnp, y, *params)]
        found += [] if lower is None else [lower - y]
        found += [] if upper is None else [y - upper]
        return jnp.concatenate([jnp.zeros(0), *map(jnp.atleast_1d, found)])

    def both(y):
        return jnp.atleast_1d(equations(y)), inequalities(y)

    return jax.grad(value)(y), both(y), jax.jacobian(both)(y)


def is_optimal(gradient, constraints, slopes) -> bool:
    """Feasible, and the gradient balanced by the active constraints, which push the right way."""
    equations, inequalities = map(np.asarray, constraints)
    active = inequalities > -1e-9
    matrix = np.concatenate([slopes[0], slopes[1][active]])
    multipliers, *_ = np.linalg.lstsq(matrix.T, -gradient, rcond=None)
    balance = np.linalg.norm(gradient + matrix.T @ multipliers)
    return (
        np.all(np.abs(equations) < 1e-9)
        and np.all(inequalities < 1e-9)
        and np.all(multipliers[len(equations) :] >= 0)
        and balance < 1e-9 * max(1.0, np.linalg.norm(gradient))
    )


@pytest.mark.parametrize("name", sorted(set(SOLVABLE) - IRREGULAR - {"lasso"}))
def test_true_solutions_satisfy_the_optimality_conditions_at_and_beside_their_params(name):
    # What solves the problem for all params nearby has the derivative of the solution.
    problem = one_lane(CATALOGUE[name])
    for solution in problem.solutions:
        conditions = jax.jit(partial(first_order, problem, solution))
        for shift in (0.0, 1e-3):
            params = [jnp.asarray(p + shift * tangent(p.shape)) for p in problem.params]
            assert is_optimal(*jax.tree.map(np.asarray, conditions(params)))


def test_true_lasso_is_the_fixed_point_of_proximal_gradient_at_and_beside_its_params():
    problem = CATALOGUE["lasso"]
    for shift in (0.0, 1e-3):
        params = [jnp.asarray(p + shift * tangent(p.shape)) for p in problem.params]
        y = problem.solutions[0](*params)
        np.testing.assert_allclose(problem.objective(jnp, y, *params), y, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", ["second order", "quadratic on a sphere"])
def test_truths_are_the_central_differences_of_the_true_solutions(name):
    problem = CATALOGUE[name]
    (found,) = truths(problem, "float64")
    first = replace(problem, ask=Ask.GRADIENT)

    def quantity(params):
        if problem.ask is Ask.SECOND:
            (gradient,) = truths(replace(first, params=params), "float64")
            return sum(np.sum(g * tangent(g.shape)) for g in gradient)
        y = problem.solutions[0](*map(jnp.asarray, params))
        return float(np.sum(y * cotangent(y.shape)))

    step = 1e-5
    moved = [
        quantity(tuple(p + sign * step * tangent(p.shape) for p in problem.params))
        for sign in (1, -1)
    ]
    slope = sum(np.sum(g * tangent(g.shape)) for g in found)
    # The differences are of second order: step^2 times a third derivative of moderate size.
    assert slope == pytest.approx((moved[0] - moved[1]) / (2 * step), rel=1e-6)


def test_names_are_unique_and_what_is_to_be_refused_has_no_truth():
    assert sum(map(len, GROUPS.values())) == len(CATALOGUE)
    assert truths(CATALOGUE["unbounded objective"], "float64") == []


def test_a_precision_that_leaves_no_digit_is_not_asked_for():
    assert CATALOGUE["ill-conditioned quadratic, 1e6"].dtypes == ("float64",)
    assert CATALOGUE["ill-conditioned quadratic, 1e4"].dtypes == ("float64", "float32")


# Judgement -----------------------------------------------------------------------------------

QUADRATIC = CATALOGUE["gradient of the optimal value"]


def outcome_of(factor, ask=Ask.GRADIENT):
    """The outcome of a library whose gradients are ``factor`` times the true ones."""
    problem = replace(QUADRATIC, ask=ask)

    def solve(problem, objective, y0, params):
        y = problem.solutions[0](*params)
        scaled = factor * y + jax.lax.stop_gradient((1 - factor) * y)
        return Answer(scaled, objective(scaled, *params))

    arrays = derivative(problem, solve, tuple(map(jnp.asarray, problem.params)), problem.y0)
    return problem, {"arrays": [np.asarray(a).tolist() for a in arrays], "warned": []}


@pytest.mark.parametrize(
    ("factor", "kind"), [(1.0, Kind.RIGHT), (1 + 1e-5, Kind.WRONG), (0.0, Kind.WRONG)]
)
def test_a_gradient_is_right_within_the_tolerance_and_wrong_beyond(factor, kind):
    problem, outcome = outcome_of(factor)
    verdict = judge(problem, "float64", outcome, truths(problem, "float64"))
    assert verdict.kind is kind
    assert verdict.error == pytest.approx(abs(1 - factor), rel=1e-3, abs=1e-12)


def test_a_wrong_gradient_with_a_warning_or_of_nan_is_refused():
    problem, outcome = outcome_of(1.1)
    true = truths(problem, "float64")
    assert judge(problem, "float64", outcome | {"warned": ["look"]}, true).kind is Kind.REFUSED
    poisoned = {"arrays": [np.full(np.shape(a), np.nan) for a in outcome["arrays"]], "warned": []}
    assert judge(problem, "float64", poisoned, true).kind is Kind.REFUSED


def test_a_finite_gradient_where_none_exists_is_wrong():
    problem = CATALOGUE["unbounded objective"]
    outcome = {"arrays": [[1.0, 2.0], [3.0, 4.0]], "warned": []}
    assert judge(problem, "float64", outcome, []).kind is Kind.WRONG


def test_a_bad_lane_has_to_be_refused_and_the_good_ones_to_be_right():
    problem = CATALOGUE["one bad lane of a batch"]
    (truth,) = truths(problem, "float64")
    assert all(np.all(np.isnan(t[1])) and np.all(np.isfinite(t[[0, 2]])) for t in truth)
    whole = {"arrays": [np.nan_to_num(t, nan=0.5).tolist() for t in truth], "warned": []}
    assert judge(problem, "float64", whole, [truth]).kind is Kind.WRONG
    masked = {"arrays": [t.tolist() for t in truth], "warned": []}
    assert judge(problem, "float64", masked, [truth]).kind is Kind.RIGHT


def test_any_of_several_minima_will_do():
    problem = CATALOGUE["polynomial with several minima"]
    true = truths(problem, "float64")
    for truth in true:
        outcome = {"arrays": [t.tolist() for t in truth], "warned": []}
        assert judge(problem, "float64", outcome, true).kind is Kind.RIGHT


def test_error_is_that_of_the_worst_param():
    found, truth = [np.array([1.0, 1.0]), np.array(2.0)], [np.array([1.0, 1.1]), np.array(1.0)]
    assert relative_error(found, truth) == pytest.approx(1.0)
    # A gradient that ought to be zero is held against the largest.
    assert relative_error([np.array(1e-3), np.array(4.0)], [np.array(0.0), np.array(4.0)]) == 2.5e-4


# The libraries -------------------------------------------------------------------------------

QUICK = [
    "ill-conditioned quadratic, 1e6",
    "gradient of the optimal value",
    "one bad lane of a batch",
    "start at a saddle point",
]


@pytest.mark.parametrize("name", QUICK)
def test_argmin_jax_is_never_wrong_in_silence(name):
    problem = CATALOGUE[name]
    outcome = attempt(CONTENDERS["argmin_jax"], problem, "float64")
    verdict = judge(problem, "float64", outcome, truths(problem, "float64"))
    regular = bool(problem.solutions) and name != "start at a saddle point"
    assert verdict.kind is (Kind.RIGHT if regular else Kind.REFUSED), verdict


def test_an_exception_of_a_library_is_a_finding(monkeypatch):
    contender = Contender("argmin_side", "argmin_jax", "")
    for error, found in (
        (RuntimeError("no\nmore"), {"raised": "RuntimeError: no"}),
        (CannotExpress("no such option"), {"cannot": "no such option"}),
    ):

        def solve(*args, error=error):
            raise error

        monkeypatch.setattr(Contender, "load", lambda self, solve=solve: solve)
        assert attempt(contender, QUADRATIC, "float64") == found


class FakeProcess:
    """A worker that answers what it has, then dies, or hangs until it is killed."""

    def __init__(self, lines, dies):
        self.killed = threading.Event()
        self.stdout = self.answers(lines, dies)

    def answers(self, lines, dies):
        yield from lines
        if not dies:
            self.killed.wait()

    def kill(self):
        self.killed.set()

    def wait(self):
        return -9


@pytest.mark.parametrize("dies", [True, False])
def test_a_process_that_hangs_or_dies_costs_one_problem(monkeypatch, dies):
    started = []

    def popen(command, **options):
        problems = command[5:]
        started.append(problems)
        line = json.dumps({"problem": problems[0], "arrays": []}) + "\n"
        return FakeProcess([line] if len(started) == 1 or len(problems) == 1 else [], dies)

    monkeypatch.setattr(guard.subprocess, "Popen", popen)
    monkeypatch.setattr(guard, "START_S", 0.2)
    found = guard.outcomes("argmin_jax", "float64", ["a", "b", "c"], limit_s=0.2)
    assert started == [["a", "b", "c"], ["c"]]
    assert found["a"] == found["c"] == {"arrays": []}
    assert set(found["b"]) == {"raised" if dies else "hung"}


# The pages -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def results():
    return json.loads((ROOT / "benchmarks/results/conformance.json").read_text("utf-8"))


def test_the_pages_are_what_the_committed_results_give(results):
    assert page.render(results) == (ROOT / "docs/conformance.md").read_text("utf-8")
    assert page.readme_block(results) in (ROOT / "README.md").read_text("utf-8")


def test_committed_results_hold_every_problem_and_no_silent_error_of_ours(results):
    assert set(results["problems"]) == set(CATALOGUE)
    ours = [row for row in results["rows"] if row["contender"] == "argmin_jax"]
    assert len(ours) == sum(len(problem.dtypes) for problem in CATALOGUE.values())
    assert not [row for row in ours if row["kind"] in (Kind.WRONG, Kind.HUNG)]


def test_the_terminal_shows_every_problem(results):
    console = Console(width=200, record=True, file=io.StringIO())
    page.show(results, console)
    text = console.export_text()
    assert all(name in text for name in CATALOGUE)
