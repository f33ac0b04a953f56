"""`argmin` and `solve`: values and gradients against closed forms, algebra and differences."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from argmin_jax import SVD, ArgminError, Auto, Status, argmin, solve

from .problems import (
    assert_close,
    central_difference,
    cube_root,
    implicit_jacobian,
    logistic,
    quadratic,
    random_spd,
    regression,
    ridge,
    ridge_solution,
    rosenbrock,
)

T = jnp.array([1.0, 2.0, 3.0])


def test_quartic_has_the_closed_form_minimiser_and_jacobian():
    def minimiser(t):
        return argmin(cube_root, jnp.ones(3), t)

    assert_close(minimiser(T), jnp.cbrt(T), 1e-12)
    assert_close(jax.jacrev(minimiser)(T), jnp.diag(T ** (-2 / 3) / 3), 1e-12)


def test_model_ridge_gradients_are_those_of_dense_algebra_to_1e_9():
    # The forecaster's inner problem: 200 unknowns, 128 rows.
    x, t = regression(0, 128, 20, 10)
    weights = regression(1, 20, 10)[0]

    def loss(minimise):
        return lambda x, t, log_lambda: jnp.sum(weights * minimise(x, t, log_lambda))

    ours = loss(lambda *params: argmin(ridge, jnp.zeros((20, 10)), *params))
    exact = loss(ridge_solution)
    found = jax.grad(ours, argnums=(0, 1, 2))(x, t, jnp.array(0.3))
    assert_close(found, jax.grad(exact, argnums=(0, 1, 2))(x, t, jnp.array(0.3)), 1e-9)


def test_logistic_regression_agrees_with_dense_algebra_and_central_differences():
    x, noise = regression(2, 60, 5)
    labels = noise > 0

    def minimiser(x):
        return argmin(logistic, jnp.zeros(5), x, labels, -2.0)

    def loss(x):
        return jnp.sum(jnp.sin(minimiser(x)))

    y = minimiser(x)
    assert jnp.max(jnp.abs(jax.grad(logistic)(y, x, labels, -2.0))) < 1e-12
    assert_close(jax.jacrev(minimiser)(x), implicit_jacobian(logistic, y, x, labels, -2.0), 1e-10)
    direction = regression(3, 60, 5)[0]
    slope = jnp.vdot(jax.grad(loss)(x), direction)
    # Rounding 1e-16/1e-5 and truncation 1e-10 leave the difference right to about 1e-9.
    assert_close(slope, central_difference(loss, x, direction), 1e-7)


def test_rosenbrock_is_solved_from_the_classical_start():
    y = argmin(rosenbrock, jnp.array([-1.2, 1.0]), 1.0)
    assert_close(y, jnp.ones(2), 1e-10)
    jacobian = jax.jacrev(lambda a: argmin(rosenbrock, jnp.array([-1.2, 1.0]), a))(1.0)
    assert_close(jacobian, jnp.array([1.0, 2.0]), 1e-9)


@settings(max_examples=25, deadline=None)
@given(
    n=st.sampled_from([1, 2, 7, 12]), seed=st.integers(0, 2**32 - 1), log_condition=st.floats(0, 6)
)
def test_random_convex_quadratics_have_the_gradients_of_a_linear_solve(n, seed, log_condition):
    matrix = random_spd(seed, n, 10.0**log_condition)
    b, cotangent = jnp.asarray(np.random.default_rng(seed).normal(size=(2, n)))

    def loss(b):
        return cotangent @ argmin(quadratic, jnp.zeros(n), matrix, b)

    # A backward stable solve is right to eps times the condition number, at most 1e-10 here.
    assert_close(jax.grad(loss)(b), jnp.linalg.solve(matrix, cotangent), 1e-9)


@pytest.mark.parametrize("scale", [1e-12, 1e-6, 1e6, 1e12])
def test_multiplying_the_objective_by_a_constant_changes_nothing(scale):
    def scaled(y, t):
        return scale * cube_root(y, t)

    jacobian = jax.jacrev(lambda t: argmin(scaled, jnp.full(3, 5.0), t))(T)
    assert_close(jacobian, jnp.diag(T ** (-2 / 3) / 3), 1e-10)


def test_start_receives_zero_gradient():
    gradient = jax.grad(lambda y0: jnp.sum(argmin(cube_root, y0, T)))(jnp.ones(3))
    assert_close(gradient, jnp.zeros(3), 0.0)


def test_start_that_is_already_the_solution_takes_no_step():
    assert int(solve(cube_root, jnp.cbrt(T), T).report.steps) == 0


def test_warm_start_uses_fewer_steps():
    x, t = regression(4, 80, 30)
    cold = solve(logistic, jnp.zeros(30), x, t > 0, -6.0)
    warm = solve(logistic, cold.y, 1.001 * x, t > 0, -6.0)
    assert int(warm.report.steps) < int(cold.report.steps)


def test_pytrees_keep_structure_shape_and_dtype():
    start = {"a": jnp.zeros((2, 2)), "b": [jnp.zeros(3, jnp.float32)], "none": None}

    def objective(y, params):
        a, b = y["a"] - params["p"], y["b"][0] - params["q"][0]
        return jnp.sum(a**2) + jnp.sum(b.astype(jnp.float64) ** 2)

    params = {"p": jnp.arange(4.0).reshape(2, 2), "q": (jnp.arange(3, dtype=jnp.float32),)}
    y = argmin(objective, start, params)
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), y) == jax.tree.map(
        lambda leaf: (leaf.shape, leaf.dtype), start
    )
    assert_close(y["a"], params["p"], 1e-12)
    gradient = jax.grad(
        lambda p: (
            jnp.sum(argmin(objective, start, p)["a"]) + jnp.sum(argmin(objective, start, p)["b"][0])
        )
    )(params)
    assert_close(gradient, jax.tree.map(jnp.ones_like, params), 1e-6)


def test_integer_boolean_and_key_params_are_accepted():
    def objective(y, t, n, mask, key):
        noise = jax.random.normal(key, (3,))
        return jnp.sum(jnp.where(mask, 1.0, 2.0) * (y - n.astype(y.dtype) * t - noise) ** 2)

    n, mask, key = jnp.arange(3), jnp.array([True, False, True]), jax.random.key(0)

    def loss(t, n, mask, key):
        return jnp.sum(argmin(objective, jnp.zeros(3), t, n, mask, key))

    expected = jnp.sum(n * T + jax.random.normal(key, (3,)))
    for transform in (lambda f: f, jax.jit):
        value, gradient = transform(jax.value_and_grad(loss))(T, n, mask, key)
        assert_close(value, expected, 1e-12)
        assert_close(gradient, jnp.array([0.0, 1.0, 2.0]), 1e-12)
    batched = jax.vmap(jax.grad(loss), in_axes=(None, 0, None, 0))(
        T, jnp.stack([n, n + 1]), mask, jax.random.split(key)
    )
    assert_close(batched, jnp.array([[0.0, 1.0, 2.0], [1.0, 2.0, 3.0]]), 1e-12)


def test_integer_param_that_is_differentiated_gets_a_float0_cotangent():
    def loss(n):
        return argmin(lambda y, n: (y - n.astype(y.dtype)) ** 2, jnp.array(0.0), n)

    gradient = jax.grad(loss, allow_int=True)(jnp.array(3))
    assert gradient.dtype == jax.dtypes.float0


def test_float32_stays_float32_and_reaches_its_own_tolerance():
    t = T.astype(jnp.float32)
    solution = solve(cube_root, jnp.ones(3, jnp.float32), t)
    gradient = jax.grad(lambda t: jnp.sum(argmin(cube_root, jnp.ones(3, jnp.float32), t)))(t)
    assert solution.y.dtype == gradient.dtype == jnp.float32
    assert int(solution.report.status) == Status.CONVERGED
    assert_close(gradient, t ** (-2 / 3) / 3, 1e-5)


CLOSURES = {
    "grad": lambda f: jax.vmap(jax.grad(f)),
    "jit of grad": lambda f: jax.vmap(jax.jit(jax.grad(f))),
    "grad of jit": lambda f: jax.vmap(jax.grad(jax.jit(f))),
    "vmap of grad": lambda f: jax.vmap(jax.grad(f)),
    "scan of grad": lambda f: lambda s: jax.lax.scan(lambda c, s: (c, jax.grad(f)(s)), 0, s)[1],
    "map of grad of checkpoint": lambda f: lambda s: jax.lax.map(jax.grad(jax.checkpoint(f)), s),
}


@pytest.mark.parametrize("transform", CLOSURES.values(), ids=CLOSURES.keys())
def test_closed_over_tracers_receive_gradients(transform):
    def loss(t):
        scaled = 2 * t

        def objective(y):
            return y**4 / 4 - scaled * y  # closes over a traced array

        return argmin(objective, jnp.array(1.0))

    # y* = (2 t)^(1/3)
    assert_close(transform(loss)(T), 2 * (2 * T) ** (-2 / 3) / 3, 1e-10)


def test_gradient_through_a_scan_that_calls_argmin_in_each_step():
    def total(t):
        def body(y, _):
            y = argmin(lambda y, c: (y - jnp.sin(c) * t) ** 2, jnp.array(0.0), y)
            return y, y

        return jnp.sum(jax.lax.scan(body, jnp.array(1.0), None, length=4)[1])

    def explicit(t):
        y, out = jnp.array(1.0), 0.0
        for _ in range(4):
            y = jnp.sin(y) * t
            out += y
        return out

    assert_close(jax.jit(jax.grad(total))(0.7), jax.grad(explicit)(0.7), 1e-12)


def test_batched_lanes_of_different_difficulty_equal_their_single_solves():
    def minimiser(start, a):
        return argmin(rosenbrock, start, a)

    starts = jnp.array([[-1.2, 1.0], [1.0, 1.0], [0.0, 3.0], [5.0, -5.0]])
    a = jnp.array([1.0, 1.0, 0.5, 1.5])
    batched = jax.vmap(jax.jacrev(minimiser, argnums=1))(starts, a)
    single = jnp.stack(
        [jax.jacrev(minimiser, argnums=1)(s, a) for s, a in zip(starts, a, strict=True)]
    )
    assert_close(batched, single, 1e-9)


def test_vmap_over_params_alone_and_over_two_levels():
    grid = jnp.arange(1.0, 7.0).reshape(2, 3)

    def slope(t):
        return jax.grad(lambda t: argmin(cube_root, jnp.array(1.0), t))(t)

    assert_close(jax.jit(jax.vmap(jax.vmap(slope)))(grid), grid ** (-2 / 3) / 3, 1e-12)


def test_singular_hessian_gives_the_minimum_norm_gradient():
    # Only y1 + y2 is determined: K^+ of [[2, 2], [2, 2]] is [[1, 1], [1, 1]] / 8.
    def objective(y, t):
        return (y[0] + y[1] - t) ** 2

    for linear_solver in (Auto(), SVD()):
        solution = solve(objective, jnp.zeros(2), 3.0, linear_solver=linear_solver)
        jacobian = jax.jacrev(
            lambda t, s=linear_solver: argmin(objective, jnp.zeros(2), t, linear_solver=s)
        )(3.0)
        assert_close(jacobian, jnp.array([0.5, 0.5]), 1e-12)
        assert int(solution.report.rank_deficiency) == 1
        assert int(solution.report.status) == Status.CONVERGED


def test_second_derivatives_in_reverse_over_reverse_have_the_closed_form():
    def root(t):
        return argmin(cube_root, jnp.array(1.0), t)

    for t in (0.5, 2.0):
        assert_close(jax.grad(jax.grad(root))(t), -2 / 9 * jnp.array(t) ** (-5 / 3), 1e-10)
        assert_close(jax.jit(jax.grad(jax.grad(root)))(t), -2 / 9 * jnp.array(t) ** (-5 / 3), 1e-10)


def test_optimal_value_has_its_envelope_gradient_and_a_right_second_derivative():
    # v(t) = -3/4 t^(4/3), v' = -t^(1/3), v'' = -t^(-2/3)/3.
    def value(t):
        return solve(cube_root, jnp.array(1.0), t).value

    t = 2.0
    assert_close(value(t), -0.75 * jnp.array(t) ** (4 / 3), 1e-12)
    assert_close(jax.grad(value)(t), -jnp.cbrt(t), 1e-12)
    assert_close(jax.grad(jax.grad(value))(t), -(jnp.array(t) ** (-2 / 3)) / 3, 1e-10)


def test_gradient_of_the_optimal_value_needs_no_linear_solve():
    def text(output):
        return str(jax.make_jaxpr(jax.grad(output))(2.0))

    def solution(t):
        return solve(cube_root, jnp.array(1.0), t)

    assert "linear_solve" in text(lambda t: solution(t).y)
    assert "linear_solve" not in text(lambda t: solution(t).value)


def test_the_custom_rule_runs_instead_of_differentiating_the_iterations():
    # A solver that cannot be differentiated in reverse: it is a while_loop. And a solver whose
    # own derivative is zero: the implicit one is not.
    def frozen(objective, y0, t):
        del objective, y0
        return jax.lax.stop_gradient(jnp.cbrt(t))

    gradient = jax.grad(lambda t: jnp.sum(argmin(cube_root, jnp.ones(3), t, solver=frozen)))(T)
    assert_close(gradient, T ** (-2 / 3) / 3, 1e-12)
    jaxpr = str(jax.make_jaxpr(lambda t: argmin(cube_root, jnp.ones(3), t))(T))
    assert "custom_vjp_call" in jaxpr


def test_stable_objective_is_traced_once_by_repeated_eager_calls():
    traces = 0

    def objective(y, t):
        nonlocal traces
        traces += 1
        return jnp.sum(y**4 / 4 - t * y)

    jax.grad(lambda t: jnp.sum(argmin(objective, jnp.ones(3), t)))(T)
    traces, first = 0, traces
    for k in range(1, 4):
        found = jax.grad(lambda t: jnp.sum(argmin(objective, jnp.ones(3), t)))(T + k)
        assert_close(found, (T + k) ** (-2 / 3) / 3, 1e-10)
    assert first > 0
    assert traces == 0


def test_rebinding_a_closed_over_number_is_seen_by_the_next_call():
    offset = 1.0

    def objective(y):
        return (y - offset) ** 2

    assert_close(argmin(objective, jnp.array(0.0)), jnp.array(1.0), 1e-12)
    offset = 2.0
    assert_close(argmin(objective, jnp.array(0.0)), jnp.array(2.0), 1e-12)


# Each of two unknowns, a parameter, and the status. They are branches of one objective, so that all
# share its compiled programs.
FAILURES = {
    "too few steps": (
        rosenbrock,
        jnp.array([-1.2, 1.0]),
        1.0,
        Status.MAX_STEPS,
    ),
    "unbounded below": (
        lambda y, a: jnp.sum((y - 1) ** 2) + a * jnp.sum(y**2),
        jnp.ones(2),
        -3.0,
        Status.UNBOUNDED,
    ),
    "linear objective": (lambda y, c: c * jnp.sum(y), jnp.ones(2), 1.0, Status.UNBOUNDED),
    "saddle": (
        lambda y, c: y[0] ** 2 - c * y[1] ** 2,
        jnp.zeros(2),
        1.0,
        Status.NOT_A_MINIMUM,
    ),
    "not finite at the start": (
        lambda y, c: jnp.sum(jnp.log(y) ** 2) * c,
        -jnp.ones(2),
        1.0,
        Status.NOT_FINITE,
    ),
    "NaN data": (cube_root, jnp.ones(2), jnp.nan, Status.NOT_FINITE),
}


def one_of_the_failures(y, kind, p):
    return jax.lax.switch(kind, [objective for objective, *_ in FAILURES.values()], y, p)


def failing(start, kind, p):
    return argmin(one_of_the_failures, start, kind, p, max_steps=12)


def failing_loss(p, start, kind):
    return jnp.sum(failing(start, kind, p))


failing_slope, failing_jitted = jax.grad(failing_loss), jax.jit(failing)
failing_slope_jitted = jax.jit(failing_slope)
failing_lanes = jax.jit(jax.vmap(failing))


@pytest.mark.parametrize("name", FAILURES)
def test_failure_raises_with_status_residual_and_remedy(name):
    _, start, p, status = FAILURES[name]
    kind, p = jnp.array(list(FAILURES).index(name)), jnp.array(p)
    found = solve(one_of_the_failures, start, kind, p, max_steps=12, on_failure="ignore")
    assert Status(int(found.report.status)) is status
    with pytest.raises(ArgminError, match=status.name):
        failing(start, kind, p)
    with pytest.raises(ArgminError, match=status.name):
        failing_slope(p, start, kind)
    for jitted, args in (
        (failing_jitted, (start, kind, p)),
        (failing_slope_jitted, (p, start, kind)),
    ):
        with pytest.raises(Exception, match=status.name) as caught:
            jax.block_until_ready(jitted(*args))
        assert "scaled residual" in str(caught.value).splitlines()[-1]
        assert "on_failure" in str(caught.value).splitlines()[-1]
    batch = jax.tree.map(lambda x: jnp.stack([x] * 2), (start, kind, p))
    with pytest.raises(Exception, match="2 of 2 lanes failed") as caught:
        jax.block_until_ready(failing_lanes(*batch))
    assert status.name in str(caught.value).splitlines()[-1]


@pytest.mark.parametrize("name", FAILURES)
def test_failing_objective_by_itself_has_the_same_status(name):
    """As a branch it hides what its own trace shows: a constant Hessian, or one of blocks."""
    objective, start, p, status = FAILURES[name]
    found = solve(objective, start, jnp.array(p), max_steps=12, on_failure="ignore")
    assert Status(int(found.report.status)) is status


def test_on_failure_nan_poisons_value_and_gradient_of_the_failed_lane_alone():
    def run(a):
        return argmin(lambda y, a: (y - 1) ** 2 + a * y**2, jnp.array(0.0), a, on_failure="nan")

    lambdas = jnp.array([1.0, -3.0, 0.0])
    values, slopes = jax.jit(jax.vmap(jax.value_and_grad(run)))(lambdas)
    assert np.isnan(values[1]) and np.isnan(slopes[1])
    assert_close(values[::2], 1 / (1 + lambdas[::2]), 1e-12)  # y* = 1 / (1 + l)
    assert_close(slopes[::2], -1 / (1 + lambdas[::2]) ** 2, 1e-12)


def pushed_without_end(y, a):
    return -jnp.sum(y) * a


def pushed_without_end_beside_a_term(y, a):
    return 3 * a - jnp.sum(y**2)


# Derivatives that need no solution: of a linear objective, and of a term beside it in the value.
BESIDE_THE_SOLUTION = {
    "minimiser": lambda a, **options: argmin(pushed_without_end, jnp.ones(2), a, **options)[0],
    "value": lambda a, **options: (
        solve(pushed_without_end_beside_a_term, jnp.ones(2), a, **options).value
    ),
}


@pytest.mark.parametrize("forward_mode", [False, True], ids=["reverse", "forward"])
@pytest.mark.parametrize("result", BESIDE_THE_SOLUTION.values(), ids=BESIDE_THE_SOLUTION.keys())
def test_failure_is_not_silent_in_a_derivative_that_needs_no_solution(result, forward_mode):
    def slope(derivative, policy):
        return jax.jit(
            derivative(lambda a: result(a, forward_mode=forward_mode, on_failure=policy))
        )

    for derivative in (jax.jacrev, jax.jacfwd) if forward_mode else (jax.jacrev,):
        assert jnp.isnan(slope(derivative, "nan")(1.0))
        with pytest.raises(Exception, match="UNBOUNDED"):
            jax.block_until_ready(slope(derivative, "raise")(1.0))
        assert jnp.isfinite(slope(derivative, "ignore")(1.0))


def test_on_failure_warn_names_the_status_eagerly_and_under_jit():
    def run(a):
        return argmin(rosenbrock, jnp.array([-1.2, 1.0]), a, max_steps=2, on_failure="warn")

    for transform in (run, jax.jit(run)):
        with pytest.warns(RuntimeWarning, match="MAX_STEPS"):
            jax.block_until_ready(transform(1.0))
            jax.effects_barrier()


def test_line_search_steps_back_from_the_edge_of_the_domain():
    # y - t log y is not defined below 0, where a long first step would land; y* = t.
    y = argmin(lambda y, t: jnp.sum(y - t * jnp.log(y)), jnp.full(3, 10.0), T)
    assert_close(y, T, 1e-9)


# Outputs besides y.


def test_auxiliary_output_has_its_gradient_through_y_and_directly():
    def objective(y, t):
        return cube_root(y, t), {"product": y * t, "count": jnp.arange(2)}

    def product(t):
        solution = solve(objective, jnp.ones(3), t, has_aux=True)
        assert solution.aux["count"].dtype == jnp.arange(2).dtype
        return jnp.sum(solution.aux["product"])

    # aux = t^(1/3) t: through y* alone t^(1/3) / 3, directly t^(1/3).
    value, gradient = jax.value_and_grad(product)(T)
    assert_close(value, jnp.sum(T ** (4 / 3)), 1e-12)
    assert_close(gradient, 4 / 3 * T ** (1 / 3), 1e-12)


def test_argmin_with_auxiliary_output_is_that_without():
    def objective(y, t):
        return cube_root(y, t), y

    assert_close(argmin(objective, jnp.ones(3), T, has_aux=True), T ** (1 / 3), 1e-12)


def test_the_gradient_of_the_value_is_the_envelope_theorem_and_takes_no_linear_solve():
    """Other libraries return zero here. dv/dt = -y*."""

    def value(t):
        return solve(cube_root, jnp.ones(3), t).value

    assert_close(jax.grad(value)(T), -(T ** (1 / 3)), 1e-12)
    assert "linear_solve" not in str(jax.make_jaxpr(jax.grad(value))(T))

    def through_y(t):
        return jnp.sum(solve(cube_root, jnp.ones(3), t).y)

    assert "linear_solve" in str(jax.make_jaxpr(jax.grad(through_y))(T))


def test_in_a_flat_valley_a_small_residual_is_no_solution():
    """At (0.92, 0.85) the residual of Rosenbrock's function in float32 is within its tolerance."""

    def rosenbrock(y, centre):
        return (centre - y[0]) ** 2 + 100 * (y[1] - y[0] ** 2) ** 2

    start = jnp.array([-1.2, 1], jnp.float32)
    slope = jax.jacrev(lambda centre: argmin(rosenbrock, start, centre))(jnp.float32(1))
    np.testing.assert_allclose(slope, [1, 2], rtol=1e-3)
    near = solve(
        rosenbrock,
        jnp.array([0.9217953, 0.8493468], jnp.float32),
        jnp.float32(1),
        solver=lambda objective, y0, centre: y0,
        on_failure="ignore",
    ).report
    assert near.stationarity <= 1e-4
    assert near.status != Status.CONVERGED


def test_where_the_hessian_nearly_vanishes_the_gradient_is_right_to_rounding():
    """Newton's method is slow there: the factors are those of a point half as far again."""

    def quartic(y, t):
        return (y[0] - t[0]) ** 2 + (y[1] - t[1]) ** 4

    slopes = jax.jacrev(lambda t: argmin(quartic, jnp.zeros(2), t))(jnp.array([0.5, -1]))
    np.testing.assert_allclose(slopes, np.eye(2), atol=1e-12)
