"""Truncated Newton: by itself, as an Optimistix minimiser and as a solver of the layer."""

import re

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optimistix as optx
import pytest

from argmin_jax import NewtonCG, Status, argmin, solve
from models.forecaster import postdiction_loss

from .problems import (
    assert_close,
    implicit_jacobian,
    logistic,
    quadratic,
    random_spd,
    regression,
    rosenbrock,
)

PRECISIONS = {"float64": (jnp.float64, 1e-8), "float32": (jnp.float32, 1e-3)}
BANANA_START = jnp.array([-1.2, 1.0])


@eqx.filter_jit
def _descend(solver, fn, y, tolerance, max_steps):
    return solver.run(fn, y, tolerance, max_steps)


def descend(fn, y, tolerance=1e-9, max_steps=200, **options):
    """Runs NewtonCG by itself, compiled once for each function and shape."""
    limits = jnp.array(tolerance, y.dtype), jnp.array(max_steps, jnp.int32)
    return _descend(NewtonCG(**options), fn, y, *limits)


def one_of(cases, name):
    """The function of a case, in a form that compiles once for all ``cases``."""
    functions = [fn for fn, *_ in cases.values()]
    index = list(cases).index(name)
    return eqx.Partial(_pick, tuple(functions), jnp.array(index))


def _pick(functions, index, y):
    return jax.lax.switch(index, functions, y)


def banana(y):
    return rosenbrock(y, 1.0)


# Options


@pytest.mark.parametrize(
    "option, value, rule",
    [
        ("rtol", -1e-3, "not be negative"),
        ("atol", float("nan"), "not be negative"),
        ("initial_radius", 0.0, "be positive"),
        ("cg_steps", 0, "be at least 1"),
    ],
)
def test_option_out_of_range_is_refused(option, value, rule):
    with pytest.raises(ValueError, match=rf"NewtonCG\({option}=\.\.\.\) must {rule}; found"):
        NewtonCG(**{option: value})


# Through the layer: solutions and gradients against dense algebra


def softmax(w, x, labels, log_lambda):
    """Mean cross entropy with a squared penalty; one column of w for each class."""
    scores = x @ w
    picked = jnp.take_along_axis(scores, labels[:, None], axis=1)[:, 0]
    loss = jnp.mean(jax.nn.logsumexp(scores, axis=1) - picked)
    return loss + jnp.exp(log_lambda) * jnp.sum(w**2) / 2


def pseudo_huber(w, x, t):
    """Mean of sqrt(1 + error^2) - 1: quadratic for small errors, linear for large ones."""
    return jnp.mean(jnp.sqrt(1 + (x @ w - t) ** 2) - 1)


def problems():
    """Name -> objective, start, the parameter to differentiate in, the other parameters."""
    rng = np.random.default_rng(7)
    history, future = rng.normal(size=(8, 20, 16)), rng.normal(size=(8, 10, 16))
    x, noise = regression(1, 500, 50)
    labels = x @ jnp.linspace(-1, 1, 50) + noise > 0
    x_classes, _ = regression(2, 150, 12)
    classes = jnp.asarray(rng.integers(0, 5, 150))
    x_scaled, errors = regression(3, 300, 40)
    x_scaled = x_scaled * jnp.linspace(1, 30, 40)[None]
    alternating = jnp.tile(BANANA_START, 10)
    return {
        "ridge": (
            lambda w, log_lambda, *data: postdiction_loss(w, *data, log_lambda),
            jnp.asarray(rng.normal(size=(10, 20))),
            jnp.array(0.5),
            (jnp.asarray(history), jnp.asarray(future)),
        ),
        "logistic": (
            lambda w, log_lambda, *data: logistic(w, *data, log_lambda),
            jnp.zeros(50),
            jnp.array(-3.0),
            (x, labels),
        ),
        "softmax": (
            lambda w, log_lambda, *data: softmax(w, *data, log_lambda),
            jnp.zeros((12, 5)),
            jnp.array(-3.0),
            (x_classes, classes),
        ),
        "pseudo-Huber": (
            lambda w, t, x: pseudo_huber(w, x, t),
            jnp.zeros(40),
            jnp.sum(x_scaled, axis=1) + 3 * errors,
            (x_scaled,),
        ),
        "Rosenbrock": (rosenbrock, alternating, jnp.array(1.0), ()),
    }


PROBLEMS = problems()


def cast(tree, dtype):
    def one(leaf):
        return leaf.astype(dtype) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf

    return jax.tree.map(one, tree)


@pytest.mark.parametrize("name", PROBLEMS)
def test_solution_and_gradient_agree_with_dense_algebra(name):
    objective, start, param, others = PROBLEMS[name]

    def found(dtype, tol):
        start_, param_, others_ = cast((start, param, others), dtype)

        def total(param):
            y = argmin(objective, start_, param, *others_, solver=NewtonCG(), tol=tol).reshape(-1)
            return jnp.sum(jnp.sin(y)), y

        gradient, y = jax.jit(jax.grad(total, has_aux=True))(param_)
        assert y.dtype == gradient.dtype == dtype
        return y, gradient

    def flat(y, param):
        return objective(y.reshape(start.shape), param, *others)

    y, gradient = found(jnp.float64, 1e-8)
    # The error is this times the inverse of the smallest eigenvalue, 0.01 at the worst.

    @jax.jit
    def by_dense_algebra(y, param):
        slope = implicit_jacobian(flat, y, param)
        return jax.grad(flat)(y, param), jnp.tensordot(jnp.cos(y), slope, axes=1)

    residual, expected = by_dense_algebra(y, param)
    assert jnp.max(jnp.abs(residual)) < 1e-11
    assert_close(gradient, expected, 1e-8)
    # In float32 the layer's default tol would be too much: the error is up to the condition
    # number, 3600 for Rosenbrock's function, times the residual that tol bounds.
    y_single, gradient_single = found(jnp.float32, 1e-6)
    assert_close(y_single, y, 1e-3)
    assert_close(gradient_single, expected, 1e-3)


# By itself: the valleys and humps of the textbooks


def beale(y):
    return sum((a - y[0] * (1 - y[1] ** k)) ** 2 for k, a in enumerate((1.5, 2.25, 2.625), 1))


def himmelblau(y):
    return (y[0] ** 2 + y[1] - 11) ** 2 + (y[0] + y[1] ** 2 - 7) ** 2


TEXTBOOK = {
    "Rosenbrock": (banana, [-1.2, 1.0], [1.0, 1.0]),
    "Beale": (beale, [1.0, 1.0], [3.0, 0.5]),
    "Himmelblau": (himmelblau, [0.0, 0.0], [3.0, 2.0]),
}


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", TEXTBOOK)
def test_minima_of_the_textbooks_are_found_in_few_steps(name, precision):
    _, start, minimum = TEXTBOOK[name]
    dtype, _ = PRECISIONS[precision]
    eps = float(jnp.finfo(dtype).eps)
    y, steps = descend(one_of(TEXTBOOK, name), jnp.array(start, dtype), 100 * eps)
    assert y.dtype == dtype
    # At such a gradient the error is below it times the inverse of the smallest eigenvalue,
    # which is 0.4 at the worst.
    assert_close(y, jnp.array(minimum, dtype), 1e3 * eps)
    assert int(steps) <= 40


def two_wells(y):
    """A saddle at 0, minima at (0, 1) and (0, -1); the ridge is the first axis."""
    return y[0] ** 2 / 2 - y[1] ** 2 / 2 + y[1] ** 4 / 4


def asymmetric_wells(y, t):
    return two_wells(y) + t * y[0]


SADDLE_STARTS = {"on the ridge": [1.0, 0.0], "near the saddle": [1e-3, 1e-3], "far": [2.0, 1e-6]}


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("start", SADDLE_STARTS.values(), ids=SADDLE_STARTS.keys())
def test_saddle_is_left_for_a_minimum(start, precision):
    dtype, tolerance = PRECISIONS[precision]
    y, _ = descend(two_wells, jnp.array(start, dtype), tolerance=0.1 * tolerance)
    assert_close(jnp.abs(y), jnp.array([0.0, 1.0], dtype), tolerance)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_layer_leaves_a_ridge_and_reports_a_start_exactly_on_the_saddle(precision):
    dtype, tolerance = PRECISIONS[precision]
    t = jnp.zeros((), dtype)
    options = {"solver": NewtonCG(), "on_failure": "ignore"}
    ridge = solve(asymmetric_wells, jnp.array([1.0, 0.0], dtype), t, **options)
    assert Status(int(ridge.report.status)) is Status.CONVERGED
    assert_close(jnp.abs(ridge.y), jnp.array([0.0, 1.0], dtype), tolerance)
    saddle = solve(asymmetric_wells, jnp.zeros(2, dtype), t, **options)
    assert Status(int(saddle.report.status)) is Status.NOT_A_MINIMUM


# Limits, precision, robustness


def test_steps_are_bounded_and_counted():
    points = {k: descend(banana, BANANA_START, 0.0, k) for k in (0, 1, 8)}
    assert {k: int(steps) for k, (_, steps) in points.items()} == {0: 0, 1: 1, 8: 8}
    assert_close(points[0][0], BANANA_START, 0.0)
    values = [float(banana(y)) for y, _ in points.values()]
    assert values[0] >= values[1] > values[2]


def test_tolerance_bounds_the_largest_entry_of_the_gradient():
    tight = int(descend(banana, BANANA_START, 1e-9)[1])
    for tolerance in (1e-1, 1e-9):
        y, steps = descend(banana, BANANA_START, tolerance)
        assert jnp.max(jnp.abs(jax.grad(banana)(y))) <= tolerance
        assert (int(steps) < tight) == (tolerance > 1e-9)
    assert int(descend(banana, jnp.ones(2), 1e-9)[1]) == 0


def test_few_inner_steps_cost_more_outer_ones():
    matrix, b = random_spd(0, 20, 1e3), jnp.ones(20)
    steps = {}
    for cg_steps in (3, 200):
        y, taken = descend(lambda y: quadratic(y, matrix, b), 0 * b, 1e-9, 1000, cg_steps=cg_steps)
        assert_close(y, jnp.linalg.solve(matrix, b), 1e-8)
        steps[cg_steps] = int(taken)
    assert steps[200] <= 6 < steps[3]


def test_gradient_comes_down_to_its_rounding_errors_though_the_value_hides_them():
    # The value's rounding errors, of about eps |y|^2 |A| = 1e-10, hide the last six digits of y.
    matrix, b = random_spd(0, 50, 1e6), jnp.ones(50)
    y, steps = descend(lambda y: quadratic(y, matrix, b), 0 * b, 1e-9)
    assert jnp.max(jnp.abs(matrix @ y - b)) < 1e-9
    assert int(steps) < 20


def test_unreachable_tolerance_ends_at_rounding_before_the_bound_on_steps():
    for dtype in (jnp.float32, jnp.float64):
        y, steps = descend(lambda y: jnp.sum(jnp.cosh(y - 3)) + 7, jnp.zeros(4, dtype), 0.0)
        assert_close(y, jnp.full(4, 3, dtype), 10 * float(jnp.finfo(dtype).eps))
        assert int(steps) < 30


def test_step_and_gradient_of_any_scale_neither_over_nor_underflow():
    # Squares of these leave float32's range.
    for scale in (1e-25, 1e25):
        weight = jnp.array(scale, jnp.float32)
        start = jnp.array([2.0, -1.0], jnp.float32)
        y, _ = descend(lambda y, s=weight: s * jnp.sum(jnp.cosh(y - 1)), start, 1e-5 * scale)
        assert_close(y, jnp.ones(2, jnp.float32), 1e-4)


HARD = {
    "logarithm": (lambda y: jnp.sum(y - jnp.log(y)), [10.0, 1e-3]),
    "square root": (lambda y: jnp.sum(jnp.sqrt(y) * (y - 3)), [0.01, 5.0]),
    "unbounded below": (lambda y: jnp.sum(-jnp.exp(y)), [1.0, 2.0]),
    "overflow": (lambda y: jnp.sum(jnp.cosh(10 * y)), [6.0, -5.0]),
    "kink": (lambda y: jnp.sum(jnp.abs(y)), [1.0, -0.3]),
    "noise": (lambda y: jnp.sum(y**2) + 0.3 * jnp.sum(jnp.sin(1e4 * y)), [1.0, 2.0]),
    "constant": (lambda y: 0 * jnp.sum(y) + 3, [1.0, 2.0]),
    "linear": (lambda y: jnp.sum(y), [1.0, 2.0]),
    "no Hessian": (lambda y: jnp.sum(jnp.abs(y) ** 1.5), [1.0, 0.0]),
}


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", HARD)
def test_point_is_never_worse_than_the_start_nor_non_finite(name, precision):
    fn, start = HARD[name]
    start = jnp.array(start, PRECISIONS[precision][0])
    y, steps = descend(one_of(HARD, name), start)
    assert jnp.isfinite(y).all()
    assert jnp.isfinite(fn(y))
    assert fn(y) <= fn(start)
    assert 0 <= int(steps) <= 200


def test_start_where_nothing_is_finite_is_kept():
    start = jnp.array([-1.0, -2.0])
    y, steps = descend(lambda y: jnp.sum(jnp.log(y)), start)
    assert_close(y, start, 0.0)
    assert int(steps) == 0


def test_lanes_do_not_disturb_each_other():
    starts = jnp.array([[-1.2, 1.0], [1.0, 1.0], [0.5, -2.0], [jnp.nan, 0.0]])
    limits = jnp.array(1e-9), jnp.array(200, jnp.int32)
    together = jax.jit(jax.vmap(lambda y: NewtonCG().run(banana, y, *limits)))(starts)
    for lane, start in enumerate(starts):
        y, steps = descend(banana, start)
        np.testing.assert_allclose(together[0][lane], y, rtol=0, atol=1e-8)
        assert abs(int(together[1][lane]) - int(steps)) <= 1
    assert int(together[1][1]) == int(together[1][3]) == 0


def test_compiled_program_holds_the_objective_once():
    def fn(y):
        return jnp.sum(jnp.arctan(y) ** 2)

    def program(y, tolerance, max_steps):
        return NewtonCG().run(fn, y, tolerance, max_steps)

    text = str(jax.make_jaxpr(program)(jnp.ones(3), 1e-9, 10))
    assert len(re.findall(r"= atan ", text)) == 1


# As an Optimistix minimiser


def test_optimistix_runs_it_on_pytrees_with_aux_and_gradients():
    for dtype, tolerance in reversed(PRECISIONS.values()):

        def fn(y, a):
            point = jnp.concatenate([y["left"], y["right"][0]])
            return rosenbrock(point, a), 2 * y["left"]

        solver = NewtonCG(rtol=1e-12)  # in float32: until rounding hides all progress

        def found(a, dtype=dtype, solver=solver):
            start = {"left": jnp.array([-1.2], dtype), "right": jnp.array([[1.0]], dtype)}
            return optx.minimise(fn, solver, start, a, has_aux=True)

        a = jnp.ones((), dtype)
        solution = found(a)
        expected = {"left": jnp.ones(1, dtype), "right": jnp.ones((1, 1), dtype)}
        assert_close(solution.value, expected, 10 * tolerance)
        assert_close(solution.aux, 2 * solution.value["left"], 0.0)
    # In float64, y* = (a, a^2) by Optimistix's own implicit differentiation.
    slope = jax.jacrev(lambda a: found(a).value)(a)
    assert_close(slope["right"], jnp.full((1, 1), 2.0), 1e-8)


def test_optimistix_is_told_how_it_ended():
    def result(fn, start, **options):
        solution = optx.minimise(fn, NewtonCG(), start, throw=False, **options)
        return solution.result, solution.value

    ended, y = result(lambda y, _: jnp.sum(jnp.log(y)), -jnp.ones(2))
    assert ended == optx.RESULTS.nonfinite
    assert_close(y, -jnp.ones(2), 0.0)
    ended, _ = result(lambda y, _: banana(y), BANANA_START, max_steps=3)
    assert ended == optx.RESULTS.nonlinear_max_steps_reached
    ended, _ = result(lambda y, _: jnp.sum(jnp.abs(y)), jnp.array([1.0, -0.3]), max_steps=2000)
    assert ended == optx.RESULTS.nonlinear_divergence
