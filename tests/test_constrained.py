"""Constraints: solutions, multipliers and values, and the derivatives of all three."""

from functools import partial

import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import pytest

from argmin_jax import (
    LBFGS,
    SVD,
    ArgminError,
    InteriorPoint,
    Status,
    argmin,
    solve,
)

from .problems import assert_close, central_difference, random_spd

P = jnp.array([0.3, 0.1, -0.2, 0.5])
START = jnp.zeros(4)


def distance(y, p):
    return jnp.sum((y - p) ** 2) / 2


def sums_to_one(y, *_):
    return jnp.sum(y) - 1


def on_the_simplex(p, **options):
    return solve(distance, START, p, eq=sums_to_one, bounds=(0.0, None), **options)


def test_projection_on_the_plane_of_sum_one_has_the_jacobian_of_the_closed_form():
    def project(p):
        return argmin(distance, START, p, eq=sums_to_one)

    assert_close(project(P), P - (jnp.sum(P) - 1) / 4, 1e-12)
    assert_close(jax.jacrev(project)(P), jnp.eye(4) - 0.25, 1e-12)


def test_projection_on_the_simplex_has_the_closed_form_of_its_support():
    """y = max(p - nu, 0); on the support the Jacobian is I - 11'/k, elsewhere zero."""
    found = on_the_simplex(P)
    support = np.array([True, True, False, True])
    nu = (np.sum(P[support]) - 1) / 3
    assert_close(found.y, jnp.where(support, P - nu, 0), 1e-12)
    assert_close(found.multipliers.eq, jnp.array(nu), 1e-12)
    assert_close(found.multipliers.lower, jnp.where(support, 0, nu - P), 1e-12)
    assert_close(found.multipliers.upper, jnp.zeros(4), 0.0)
    assert found.multipliers.ineq is None
    mask = jnp.asarray(support, float)
    expected = jnp.diag(mask) - mask[:, None] * mask[None, :] / 3
    assert_close(jax.jacrev(lambda p: on_the_simplex(p).y)(P), expected, 1e-12)
    # nu is the mean of p over the support, less 1/3.
    assert_close(jax.grad(lambda p: on_the_simplex(p).multipliers.eq)(P), mask / 3, 1e-12)


def test_value_has_the_gradient_of_the_envelope_theorem():
    found = on_the_simplex(P)
    assert_close(jax.grad(lambda p: on_the_simplex(p).value)(P), P - found.y, 1e-12)


def quadratic_program(q, c, g, h, a, b, **options):
    """min y'Qy/2 + c'y subject to Gy <= h, Ay = b: the six parameters of OptNet."""

    def objective(y, q, c, *_):
        return y @ q @ y / 2 + c @ y

    return solve(
        objective, jnp.zeros(c.size), q, c, g, h, a, b,
        eq=lambda y, q, c, g, h, a, b: a @ y - b,
        ineq=lambda y, q, c, g, h, a, b: g @ y - h,
        **options,
    )  # fmt: skip


def random_program(seed, n=6, m=5, p=2):
    rng = np.random.default_rng(seed)
    inside = rng.normal(size=n)
    g, a = rng.normal(size=(m, n)), rng.normal(size=(p, n))
    slack = rng.uniform(0, 1, size=m)
    parts = random_spd(seed, n), 3 * rng.normal(size=n), g, g @ inside + slack, a, a @ inside
    return tuple(jnp.asarray(part) for part in parts)


def kkt_gradients(parts, y, multipliers, weights):
    """Gradients of weights'y by dense algebra on the active rows (Amos & Kolter, OptNet, 2017)."""
    q, _, g, _, a, _ = parts
    active = np.asarray(multipliers.ineq) > 1e-9
    n, rows = y.size, np.concatenate([a, g[active]])
    r = len(rows)
    k = np.block([[np.asarray(q), rows.T], [rows, np.zeros((r, r))]])
    u = np.linalg.solve(k, np.concatenate([weights, np.zeros(r)]))
    dy, of_eq, of_active = u[:n], u[n : n + len(a)], u[n + len(a) :]
    of_g, of_h = np.zeros(g.shape), np.zeros(len(g))
    lam = np.asarray(multipliers.ineq)[active]
    of_g[active] = -(np.outer(of_active, y) + np.outer(lam, dy))
    of_h[active] = of_active
    of_a = -(np.outer(of_eq, y) + np.outer(multipliers.eq, dy))
    return -(np.outer(dy, y) + np.outer(y, dy)) / 2, -dy, of_g, of_h, of_a, of_eq


def test_quadratic_program_has_the_gradients_of_kkt_algebra_in_all_six_parameters():
    parts = random_program(0)
    weights = np.random.default_rng(1).normal(size=6)

    def loss(*parts):
        found = quadratic_program(*parts)
        return weights @ found.y, found

    gradients, found = jax.grad(loss, argnums=tuple(range(6)), has_aux=True)(*parts)
    assert 0 < int(np.sum(np.asarray(found.multipliers.ineq) > 1e-9)) < 5
    expected = kkt_gradients(parts, np.asarray(found.y), found.multipliers, weights)
    for name, one, other in zip("QcGhAb", gradients, expected, strict=True):
        size = np.max(np.abs(other))
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-10 * size, err_msg=name)


def test_batch_of_programs_equals_single_solves():
    batch = [random_program(seed) for seed in range(8)]
    stacked = tuple(jnp.stack(parts) for parts in zip(*batch, strict=True))

    @jax.jit
    def slope(*parts):
        return jax.grad(lambda c: jnp.sum(quadratic_program(parts[0], c, *parts[2:]).y))(parts[1])

    together = jax.vmap(slope)(*stacked)
    alone = jnp.stack([slope(*parts) for parts in batch])
    # Batched and single factorisations round differently.
    assert_close(together, alone, 1e-9)


def in_the_disc(p, radius):
    """Not convex: the objective curves down along y0."""

    def objective(y, p, radius):
        return -(y[0] ** 2) / 2 + y[1] ** 2 - p @ y

    return solve(
        objective, jnp.array([0.5, 0.1]), p, radius,
        ineq=lambda y, p, radius: y @ y - radius**2, bounds=(None, 2.0),
    )  # fmt: skip


def test_nonconvex_program_on_a_disc_agrees_with_central_differences():
    p, radius = jnp.array([0.3, 0.4]), jnp.array(1.5)
    found = in_the_disc(p, radius)
    assert int(found.report.status) == Status.CONVERGED
    assert found.report.curvature > 0
    assert_close(jnp.linalg.norm(found.y), radius, 1e-12)
    for output in (lambda f: f.y[0], lambda f: f.multipliers.ineq, lambda f: f.value):
        slopes = jax.grad(lambda p, r, o=output: o(in_the_disc(p, r)), argnums=(0, 1))(p, radius)
        direction = jnp.array([0.6, -0.8])
        along_p = central_difference(lambda p, o=output: o(in_the_disc(p, radius)), p, direction)
        along_r = central_difference(
            lambda r, o=output: o(in_the_disc(p, r)), radius, jnp.array(1.0)
        )
        assert_close(slopes[0] @ direction, along_p, 1e-8)
        assert_close(slopes[1], along_r, 1e-8)


def test_all_second_order_nestings_agree_for_a_constrained_problem():
    def loss(p):
        found = argmin(
            lambda y, p: jnp.sum(jnp.cosh(y - p)), jnp.zeros(2), p,
            eq=lambda y, p: y[0] * y[1] - 0.5, bounds=(0.1, None), forward_mode=True,
            solver=lambda f, y0, p: jnp.array([1.0, 0.5]),  # near enough; quick to compile
        )  # fmt: skip
        return jnp.sum(found**2)

    p = jnp.array([0.9, 0.4])
    direction = jnp.array([1.0, -0.5])
    expected = central_difference(jax.jit(jax.grad(loss)), p, direction)
    for outer, inner in ((jax.jacfwd, jax.jacrev), (jax.jacrev, jax.jacfwd)):
        assert_close(jax.jit(outer(inner(loss)))(p) @ direction, expected, 1e-8)


def test_bounds_are_differentiable_and_may_hold_infinities():
    lower = jnp.array([-jnp.inf, 0.2, -jnp.inf, -jnp.inf])
    upper = jnp.array([0.2, jnp.inf, jnp.inf, 1.0])

    def held(lower, upper, p):
        return argmin(distance, START, p, bounds=(lower, upper))

    assert_close(held(lower, upper, P), jnp.array([0.2, 0.2, -0.2, 0.5]), 1e-12)
    of_lower, of_upper, of_p = jax.jacrev(held, argnums=(0, 1, 2))(lower, upper, P)
    assert_close(of_lower, jnp.diag(jnp.array([0.0, 1, 0, 0])), 1e-12)
    assert_close(of_upper, jnp.diag(jnp.array([1.0, 0, 0, 0])), 1e-12)
    assert_close(of_p, jnp.diag(jnp.array([0.0, 0, 1, 1])), 1e-12)


def test_fixed_variables_follow_their_bound():
    fixed = jnp.array([0.7, -jnp.inf, -jnp.inf, -jnp.inf])

    def loss(value):
        lower = fixed.at[0].set(value)
        upper = jnp.full(4, jnp.inf).at[0].set(value)
        return argmin(distance, START, P, eq=sums_to_one, bounds=(lower, upper))

    value = jnp.array(0.7)
    free = P[1:] - (jnp.sum(P[1:]) - 0.3) / 3
    assert_close(loss(value), jnp.concatenate([value[None], free]), 1e-12)
    assert_close(jax.jacrev(loss)(value), jnp.array([1.0, -1 / 3, -1 / 3, -1 / 3]), 1e-12)


def test_weakly_active_bound_is_counted_and_has_the_derivative_without_it():
    """min (y - p)^2 with y <= p: the bound holds, and pushes with no force."""

    @jax.jit
    @partial(jax.grad, has_aux=True)
    def slope_and_report(p):
        found = solve(lambda y, p: (y - p) ** 2, jnp.zeros(()), p, bounds=(None, 1.0))
        return found.y, found.report

    slope, report = slope_and_report(1.0)
    assert int(report.weakly_active) == 1
    assert int(report.status) == Status.CONVERGED
    assert_close(slope, jnp.array(1.0), 1e-10)
    slope, report = slope_and_report(1.5)
    assert int(report.weakly_active) == 0
    assert_close(slope, jnp.array(0.0), 1e-10)


def test_of_equal_bounds_the_one_that_y_is_pushed_against_moves_it():
    """y* = clip((5, -5), lower, upper): lower may only go down from there, upper only up."""

    def clipped(lower, upper):
        found = solve(
            lambda y: jnp.sum((y - jnp.array([5.0, -5.0])) ** 2),
            jnp.zeros(2),
            bounds=(lower, upper),
        )
        return found.y, found.report

    (of_lower, of_upper), report = jax.jacrev(clipped, argnums=(0, 1), has_aux=True)(
        jnp.ones(2), jnp.ones(2)
    )
    assert_close(of_lower, jnp.diag(jnp.array([0.0, 1.0])), 1e-12)
    assert_close(of_upper, jnp.diag(jnp.array([1.0, 0.0])), 1e-12)
    assert int(report.weakly_active) == 0


def test_variable_that_is_held_makes_no_equality_look_satisfied():
    """y0 = 0 and y1 <= 1, so that y1 = 5 - 1e9 y0 is not to be had."""
    found = solve(
        lambda y: jnp.sum((y - 3) ** 2),
        jnp.array([0.0, 0.5]),
        eq=lambda y: y[1] + 1e9 * y[0] - 5,
        bounds=(jnp.zeros(2), jnp.array([0.0, 1.0])),
        on_failure="ignore",
    )
    assert int(found.report.status) == Status.INFEASIBLE


def test_maximum_in_one_unknown_shows_beside_a_far_steeper_one():
    """In float32 the whole spectrum would hide it."""
    found = solve(
        lambda y: 1000 * (y[0] - 1) ** 2 - 1e-3 * y[1] ** 2,
        jnp.array([0.5, 0.0], jnp.float32),
        bounds=(-1.0, 1.0),
        on_failure="ignore",
    )
    assert int(found.report.status) != Status.CONVERGED


def test_point_that_a_small_cost_would_still_move_is_no_solution():
    """The solver stops at y1 = 1.000001, as the cost of 1 is nothing beside that of 1e8."""
    found = solve(
        lambda y: 1e8 * y[0] + y[1],
        jnp.array([0.5, 3.0]),
        bounds=(jnp.array([0.0, 1.0]), None),
        on_failure="ignore",
    )
    right = jnp.max(jnp.abs(found.y - jnp.array([0.0, 1.0]))) < 1e-10
    assert right or int(found.report.status) != Status.CONVERGED


IN_THE_WAY = {
    "box": {"ineq": lambda y, p: y @ y - 1, "bounds": (None, 1.0)},
    "box, on a sphere": {"eq": lambda y, p: y @ y - 1, "bounds": (-1.0, 1.0)},
    "disc": {"ineq": lambda y, p: jnp.stack([y @ y - 1, (y[0] + 1) ** 2 + y[1] ** 2 - 4])},
}


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("constraints", IN_THE_WAY.values(), ids=IN_THE_WAY.keys())
def test_constraint_that_all_but_touches_another_is_not_in_its_way(constraints, dtype):
    """Projection on the unit disc, by a redundant constraint that is tangent to it at (1, 0): as
    far as an interior point can tell it is active at the other points, too."""

    @jax.jit
    def project(p):
        def point(p):
            found = solve(
                lambda y, p: jnp.sum((y - p) ** 2), jnp.array([0.6, 0.2], dtype), p, **constraints
            )
            return found.y, found.y

        return jax.jacrev(point, has_aux=True)(p)

    accuracy = 10 * float(jnp.finfo(dtype).eps)
    for height in (3e-2, 1e-2, 1e-3, 1e-4, 1e-5) if dtype is jnp.float64 else (0.1, 1e-2):
        p = jnp.array([2.0, height], dtype)
        jacobian, y = project(p)
        length = jnp.linalg.norm(p)
        normal = p / length
        tangential = (jnp.eye(2) - jnp.outer(normal, normal)) / length
        # Where the tangents nearly agree, y is where rounding lets it be: within eps / height.
        assert_close(y, normal, accuracy / height)
        assert_close(jacobian, tangential, accuracy / height)


@pytest.mark.parametrize("cost, dtype", [(1e5, jnp.float32), (1e6, jnp.float64)])
def test_bound_that_a_small_cost_pushes_against_is_held(cost, dtype):
    """The multipliers of a linear program are its costs, of which one is small beside the other."""

    def program(low):
        lower = jnp.stack([jnp.zeros((), dtype), low])
        found = solve(
            lambda y: cost * y[0] + y[1], jnp.array([0.5, 3.0], dtype), bounds=(lower, None)
        )
        return found.y, found

    slope, found = jax.jacrev(program, has_aux=True)(jnp.ones((), dtype))
    assert_close(found.y, jnp.array([0.0, 1.0]), 1e-6)
    assert_close(found.multipliers.lower, jnp.array([cost, 1.0]), 1e-6)
    assert_close(slope, jnp.array([0.0, 1.0]), 1e-6)
    assert int(found.report.rank_deficiency) == 0


@pytest.mark.parametrize(
    "unit, dtype", [(1e-5, jnp.float32), (1e-9, jnp.float64), (1e-9, jnp.float32)]
)
def test_bounds_hold_in_whatever_unit_the_unknown_has(unit, dtype):
    unit = jnp.array(unit, dtype)

    def capped(cap):
        return argmin(lambda y: (y / unit - 2) ** 2, unit / 2, bounds=(0 * unit, cap))

    assert float(capped(unit)) == pytest.approx(float(unit), rel=1e-6)
    assert float(jax.grad(capped)(unit)) == pytest.approx(1, rel=1e-6)


def test_no_bound_is_left_by_less_than_the_tolerance():
    """Projection on y >= 0 of points that are nearly in it."""
    p = jnp.array([-9e-5, -2e-4, -3e-6, 3e-5], jnp.float32)  # by more than rounding

    def project(p):
        return argmin(distance, jnp.ones(4, jnp.float32), p, bounds=(0.0, None))

    assert_close(project(p), jnp.maximum(p, 0), 1e-6)
    assert bool(jnp.all(project(p) >= 0))
    assert bool(jnp.all(jax.jacrev(project)(p) == jnp.diag((p > 0).astype(p.dtype))))


def test_constraint_that_is_given_twice_is_reported_and_the_gradient_right():

    @jax.jit
    @partial(jax.jacrev, has_aux=True)
    def slope_and_report(p):
        found = solve(distance, START, p, eq=lambda y, p: jnp.stack([sums_to_one(y)] * 2))
        return found.y, found.report

    slope, report = slope_and_report(P)
    assert int(report.rank_deficiency) == 1
    assert_close(slope, jnp.eye(4) - 0.25, 1e-10)


def test_vertex_of_a_linear_program_moves_with_its_constraints():
    """max y0 + y1 with y0 + 2 y1 <= a, 2 y0 + y1 <= b: the vertex ((2b - a)/3, (2a - b)/3)."""

    @jax.jit
    @partial(jax.jacrev, argnums=(0, 1), has_aux=True)
    def slopes_and_solution(a, b):
        found = solve(
            lambda y: -jnp.sum(y), jnp.zeros(2), bounds=(0.0, None),
            ineq=lambda y: {"one": y[0] + 2 * y[1] - a, "other": 2 * y[0] + y[1] - b},
        )  # fmt: skip
        return found.y, found

    (of_a, of_b), found = slopes_and_solution(3.0, 3.3)
    assert_close(found.y, jnp.array([1.2, 0.9]), 1e-10)
    assert set(found.multipliers.ineq) == {"one", "other"}
    assert np.isinf(found.report.curvature)
    assert_close(of_a, jnp.array([-1 / 3, 2 / 3]), 1e-10)
    assert_close(of_b, jnp.array([2 / 3, -1 / 3]), 1e-10)


def test_maximum_on_the_constraint_is_no_minimum():
    """Where a solver stops on the far side of the circle, the Lagrangian curves down."""
    found = solve(
        lambda y: y[0], jnp.array([1.0, 0.0]), eq=lambda y: y @ y - 1,
        solver=lambda f, y0: jnp.array([1.0, 0.0]), on_failure="ignore",
    )  # fmt: skip
    assert int(found.report.status) == Status.NOT_A_MINIMUM
    assert found.report.curvature < 0


def test_point_of_a_callable_gets_its_multipliers_and_is_polished():
    exact = on_the_simplex(P)
    rough = on_the_simplex(P, solver=lambda f, y0, p: exact.y + 1e-4)
    assert_close(rough.y, exact.y, 1e-12)
    assert_close(rough.multipliers.lower, exact.multipliers.lower, 1e-10)


@pytest.mark.parametrize("linear_solver", [SVD(), lx.LU()], ids=["SVD", "LU"])
def test_other_linear_solvers_give_the_same_gradient(linear_solver):
    def loss(p, **options):
        return jnp.sum(jnp.sin(on_the_simplex(p, **options).y))

    found = jax.grad(loss)(P, linear_solver=linear_solver)
    assert_close(found, jax.grad(loss)(P), 1e-10)


def test_float32_reaches_its_own_tolerance():
    found = solve(
        distance, START.astype(jnp.float32), P.astype(jnp.float32),
        eq=sums_to_one, bounds=(0.0, None),
    )  # fmt: skip
    assert found.y.dtype == jnp.float32
    assert_close(found.y, on_the_simplex(P).y.astype(jnp.float32), 1e-5)


def test_interior_point_serves_problems_without_constraints_too():
    y = argmin(lambda y, t: jnp.sum(y**4 / 4 - t * y), jnp.ones(3), P[:2].sum() + 1.0,
               solver=InteriorPoint())  # fmt: skip
    assert_close(y, jnp.full(3, 1.4 ** (1 / 3)), 1e-12)


FAILING = {
    "contradictory constraints": (
        lambda **o: solve(
            distance, START, P, ineq=lambda y, p: jnp.stack([y[0] + 1, 1 - y[0]]), **o
        ),
        Status.INFEASIBLE,
    ),
    "contradictory traced bounds": (
        lambda **o: jax.jit(
            lambda lower: solve(distance, START, P, bounds=(lower, 0.0), **o).report
        )(jnp.array(1.0)),
        Status.INFEASIBLE,
    ),
    "unbounded": (
        lambda **o: solve(lambda y, p: -jnp.sum(y), START, P, bounds=(0.0, None), **o),
        Status.UNBOUNDED,
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", FAILING.values(), ids=FAILING.keys())
def test_problem_without_a_solution_is_named(case):
    call, status = case
    found = call(on_failure="ignore")
    report = getattr(found, "report", found)
    assert Status(int(report.status)) is status


def test_infeasible_lane_fails_alone():

    @jax.jit
    @partial(jax.vmap, in_axes=(None, 0))
    def jacobian(p, upper):
        def project(p):
            bounds = (0.0, upper)
            return argmin(distance, START, p, eq=sums_to_one, bounds=bounds, on_failure="nan")

        return jax.jacrev(project)(p)

    jacobians = jacobian(P, jnp.array([0.1, 0.9]))  # four times 0.1 is less than one
    assert np.all(np.isnan(jacobians[0]))
    mask = jnp.array([1.0, 1.0, 0.0, 1.0])  # the support of the projection on the simplex
    assert_close(jacobians[1], jnp.diag(mask) - mask[:, None] * mask[None, :] / 3, 1e-12)
    with pytest.raises(ArgminError, match="INFEASIBLE"):
        argmin(distance, START, P, eq=sums_to_one, bounds=(0.0, 0.1))


BAD = {
    "bounds that contradict": ({"bounds": (1.0, 0.0)}, ValueError, r"bounds contradict .* entry 0"),
    "NaN bound": ({"bounds": (jnp.nan, None)}, ValueError, r"bounds contradict each other"),
    "one bound": ({"bounds": 1.0}, TypeError, r"bounds must be a pair .* found float"),
    "bound of another shape": (
        {"bounds": (jnp.zeros(3), None)},
        ValueError,
        r"lower bound, of shape \(3,\), does not fit y0, of shape \(4,\)",
    ),
    "bound of another structure": (
        {"bounds": (None, {"a": 1.0})},
        ValueError,
        r"the upper bound must be a number, None or a pytree like y0",
    ),
    "truth value": (
        {"ineq": lambda y, p: y > 0},
        ValueError,
        r"ineq must return .* found bool .* not a truth value",
    ),
    "too many equalities": (
        {"eq": lambda y, p: jnp.zeros(5)},
        ValueError,
        r"eq returns 5 equalities for 4 unknowns",
    ),
    "no function": ({"eq": 1.0}, TypeError, r"eq must be a function"),
    "solver without constraints": (
        {"eq": sums_to_one, "solver": LBFGS()},
        ValueError,
        r"solver=LBFGS\(...\) knows nothing of constraints",
    ),
}


@pytest.mark.parametrize("case", BAD.values(), ids=BAD.keys())
def test_bad_constraint_is_refused_by_its_name(case):
    options, error, message = case
    with pytest.raises(error, match=message):
        argmin(distance, START, P, **options)


def test_in_a_flat_valley_a_small_residual_is_no_solution():
    """On the edge of the disc |y|² <= 1.5, float32 holds Rosenbrock's valley for stationary."""

    def rosenbrock(y, centre):
        return (centre - y[0]) ** 2 + 100 * (y[1] - y[0] ** 2) ** 2

    def solution(centre, dtype):
        return solve(
            rosenbrock,
            jnp.array([-1.2, 1], dtype),
            centre.astype(dtype),
            ineq=lambda y, _: y @ y - 1.5,
            on_failure="ignore",
        )

    def slopes(dtype):
        return jax.jacrev(lambda centre: solution(centre, dtype).y)(jnp.array(1.0))

    right = np.allclose(slopes(jnp.float32), slopes(jnp.float64), rtol=1e-2)
    assert right or solution(jnp.array(1.0), jnp.float32).report.status != Status.CONVERGED


def capped(p, total, cap):
    """The projection of p on {sum y = total, 0 <= y <= cap}, by bisection."""
    low, high = np.min(p) - cap, np.max(p)
    for _ in range(200):
        shift = (low + high) / 2
        low, high = (shift, high) if np.clip(p - shift, 0, cap).sum() > total else (low, shift)
    return np.clip(p - shift, 0, cap)


@pytest.mark.parametrize(
    "dtype, size, unit",
    [(jnp.float32, 100, 1.0), (jnp.float32, 4, 1e-3), (jnp.float64, 4, 1e-7)],
    ids=["portfolio", "small in float32", "small in float64"],
)
def test_small_unknowns_have_the_constraints_active_that_are(dtype, size, unit):
    """Lengths are judged in the size of y: beside one, each slack here would count as none."""
    total, cap = unit, 2 * unit / size
    projection = jax.jit(
        lambda p: argmin(
            lambda y, p: jnp.sum(((y - p) / unit) ** 2) / 2,
            jnp.full(size, total / size, dtype),
            p,
            eq=lambda y, p: jnp.sum(y) / unit - 1,
            bounds=(0.0, cap),
        )
    )
    slopes = jax.jit(jax.jacrev(projection))
    rng = np.random.default_rng(0)
    for _ in range(5):
        p = jnp.asarray(1.5 * unit / size * rng.normal(size=size), dtype)
        expected = capped(np.asarray(p, float), total, cap)
        free = (expected > 0) & (expected < cap)
        rounding = 100 * float(jnp.finfo(dtype).eps)
        assert_close(projection(p), jnp.asarray(expected, dtype), rounding)
        jacobian = np.diag(free * 1.0) - np.outer(free, free) / max(1, free.sum())
        np.testing.assert_allclose(slopes(p), jacobian, atol=rounding)


@pytest.mark.parametrize("unit", [1.0, 1e-6, 1e-9])
def test_what_cannot_be_satisfied_is_no_solution_in_any_unit(unit):
    found = solve(
        lambda y: jnp.sum((y / unit - 0.5) ** 2),
        jnp.zeros(3),
        eq=lambda y: jnp.sum(y) - 10 * unit,
        bounds=(0.0, unit),
        on_failure="ignore",
    )
    assert int(found.report.status) != Status.CONVERGED


@pytest.mark.parametrize("curved", [True, False], ids=["strictly convex", "linear"])
def test_a_quadratic_program_is_the_same_in_any_units(curved):
    """One for all unknowns or one for each, others for rows and objective. Against the same in
    ones, where y and its slopes are about one; no error was above 1e-12."""
    rng = np.random.default_rng(3)
    ones = np.ones(6), np.ones(3), 1.0

    @jax.jit
    def run(units, P, q, A, b, G, h, lower, upper):
        unit, of_rows, of_objective = units

        def minimiser(q):
            return solve(
                lambda y, q: of_objective * ((y / unit) @ P @ (y / unit) / 2 + q @ (y / unit)),
                jnp.zeros(6),
                q,
                eq=lambda y, q: A @ (y / unit) - b,
                ineq=lambda y, q: of_rows * (G @ (y / unit) - h),
                bounds=(unit * lower, unit * upper),
                on_failure="ignore",
            )

        found = minimiser(q)
        slopes = jax.jacrev(lambda q: minimiser(q).y)(q)
        return found.y / unit, slopes / unit[:, None], found.report

    for _ in range(16):
        root, q = rng.normal(size=(6, 6)), 3 * rng.normal(size=6)
        A, G, x = rng.normal(size=(1, 6)), rng.normal(size=(3, 6)), rng.normal(size=6)
        slack, below, above = (np.abs(rng.normal(size=k)) for k in (3, 6, 6))
        lower = x - below
        upper = np.where(curved & (rng.random(6) < 0.3), np.inf, x + above)
        P = curved * root @ root.T
        data = P, q, A, A @ x, G, G @ x + slack, lower, upper
        y, slopes, report = run(ones, *data)
        assert int(report.status) == Status.CONVERGED
        for units in (
            (np.full(6, 1e-9), np.ones(3), 1.0),
            (np.full(6, 1e6), np.ones(3), 1e-6),
            (10 ** rng.uniform(-3, 3, 6), 10 ** rng.uniform(-3, 3, 3), 1.0),
        ):
            other, other_slopes, report = run(units, *data)
            assert int(report.status) == Status.CONVERGED
            np.testing.assert_allclose(other, y, rtol=0, atol=1e-9)
            np.testing.assert_allclose(other_slopes, slopes, rtol=0, atol=1e-9)


def test_stiff_unknowns_do_not_hide_what_is_left_of_the_gradient_in_others():
    """Transport with entropy 0.01: where the plan is 1e-44 the Hessian is 1e42, beside which any
    gradient is nothing, and K seems singular. Against dy/dC from the Hessian's inverse, which is
    nowhere large: diag(y / e)."""
    rng, e = np.random.default_rng(3), 0.01
    A = np.concatenate([np.kron(np.eye(4), np.ones((1, 4))), np.kron(np.ones((1, 4)), np.eye(4))])

    @jax.jit
    def run(C, a, b):
        def plan(C):
            found = solve(
                lambda y, C: jnp.sum(C * y) + e * jnp.sum(y * (jnp.log(y) - 1)),
                jnp.full((4, 4), 1 / 16),
                C,
                eq=lambda y, C: (jnp.sum(y, axis=1) - a, jnp.sum(y, axis=0) - b),
                bounds=(0, None),
                on_failure="ignore",
            )
            return found.y, found.report

        return jax.jacrev(plan, has_aux=True)(C), plan(C)[0]

    for _ in range(8):
        C = rng.random((4, 4))
        a, b = (share / np.sum(share) for share in rng.gamma(1.0, size=(2, 4)) + 0.05)
        (slopes, report), y = run(C, a, b)
        inverse = np.diag(np.ravel(y) / e)
        rows = inverse @ A.T @ np.linalg.pinv(A @ inverse @ A.T, rcond=1e-13) @ A @ inverse
        if int(report.status) == Status.CONVERGED:
            assert_close(slopes.reshape(16, 16), rows - inverse, 1e-5)


@pytest.mark.parametrize("start", [0.0, 1e9])
def test_neither_a_held_variable_nor_a_distant_start_makes_others_small(start):
    """min -y1 over y0 = 1e6, y1 + y2 = y0 - 1e6 + 1, y1 <= y2, y >= 0: y1 = y2 = 1/2."""
    found = solve(
        lambda y: -y[1],
        jnp.full(3, start),
        eq=lambda y: y[1] + y[2] - y[0] + 1e6 - 1,
        ineq=lambda y: y[1] - y[2],
        bounds=(jnp.array([1e6, 0, 0]), jnp.array([1e6, jnp.inf, jnp.inf])),
        on_failure="ignore",
    )
    assert int(found.report.status) == Status.CONVERGED
    np.testing.assert_allclose(found.y[1:], 0.5, rtol=0, atol=1e-9)


@pytest.mark.parametrize("dtype, size", [(jnp.float32, 1e4), (jnp.float64, 1e8)], ids=str)
def test_one_large_feature_beside_dummies_costs_no_other_its_weight_under_a_constraint(dtype, size):
    """Two weights that add up to b, three dummies, an intercept and incomes: the predictions, and
    their slopes in the targets, are those of the design without the intercept and with the
    constraint put in."""
    rng = np.random.default_rng(0)
    first, second, large = rng.normal(size=40), rng.normal(size=40), 1 + rng.random(40)
    dummies = np.eye(3)[np.arange(40) % 3]
    full = np.column_stack([np.ones(40), dummies, first, second, size * large])
    targets = np.cos(np.arange(40.0))
    rest = np.column_stack([dummies, first - second, large])
    hat = rest @ np.linalg.pinv(rest)
    x = jnp.asarray(full, dtype)

    def predictions(t, b):
        return x @ argmin(
            lambda y, t, b: jnp.mean((x @ y - t) ** 2),
            jnp.zeros(7, dtype),
            t,
            b,
            eq=lambda y, t, b: y[4] + y[5] - b,
        )

    given = jnp.asarray(targets, dtype), jnp.asarray(0.5, dtype)
    # The condition number of the normal equations in units of the features is about 100.
    tolerance = 1e-4 if dtype == jnp.float32 else 1e-12
    expected = second / 2 + hat @ (targets - second / 2)
    assert_close(predictions(*given), jnp.asarray(expected, dtype), tolerance)
    assert_close(jax.jacrev(predictions)(*given), jnp.asarray(hat, dtype), tolerance)


def test_unknowns_that_the_objective_does_not_know_hide_no_active_constraint():
    """The value of a matrix game, max v with A'x >= v on the simplex: a linear program in which
    the pulls on x cancel. Solved by support: p = A_S^-1 1 / (1' A_S^-1 1) where that is square."""
    n = 6
    matrices = jnp.asarray(np.random.default_rng(0).normal(size=(20, n, n)))

    def game(a):
        return solve(
            lambda y, a: -y["v"],
            {"x": jnp.full(n, 1 / n), "v": jnp.zeros(())},
            a,
            eq=lambda y, a: jnp.sum(y["x"]) - 1,
            ineq=lambda y, a: y["v"] - a.T @ y["x"],
            bounds=({"x": 0.0, "v": None}, None),
            on_failure="ignore",
        )

    found = jax.jit(jax.vmap(game))(matrices)
    slopes = jax.jit(jax.vmap(jax.grad(lambda a: game(a).y["v"])))(matrices)
    assert np.all(found.report.status == Status.CONVERGED)
    for a, x, v, slope in zip(matrices, found.y["x"], found.y["v"], slopes, strict=True):
        rows = np.flatnonzero(x > 1e-6)
        columns = np.flatnonzero(a.T @ x - v < 1e-6)
        support = np.asarray(a)[np.ix_(rows, columns)]
        ones = np.ones(len(rows))
        by_columns, by_rows = np.linalg.solve(support.T, ones), np.linalg.solve(support, ones)
        # Conditioned up to 1e3, these systems leave as many digits less.
        np.testing.assert_allclose(x[rows], by_columns / by_columns.sum(), rtol=1e-11)
        np.testing.assert_allclose(v, 1 / by_columns.sum(), rtol=1e-11, atol=1e-12)
        # dv = p' dA q, q being the other player's mixture.
        expected = np.zeros((n, n))
        expected[np.ix_(rows, columns)] = np.outer(by_columns, by_rows) * float(v) ** 2
        np.testing.assert_allclose(slope, expected, atol=1e-10)


def test_float32_tells_slacks_from_multipliers_where_costs_are_absolute():
    """A portfolio with costs on |w - before|, as epigraphs: of each pair of constraints one is
    active, or both. Where a product of slack and multiplier is the tolerance of float32, 1e-5, it
    is not seen which."""
    n = 6

    def choose(aversion, mean, factor, before, cost, start):
        return solve(
            lambda y, aversion, mean, factor, before, cost: (
                aversion * (jnp.sum((factor.T @ y["w"]) ** 2) + 0.02 * jnp.sum(y["w"] ** 2)) / 2
                - mean @ y["w"]
                + cost * jnp.sum(y["t"])
            ),
            {"w": start / n, "t": start},
            aversion,
            mean,
            factor,
            before,
            cost,
            eq=lambda y, *_: jnp.sum(y["w"]) - 1,
            ineq=lambda y, aversion, mean, factor, before, cost: (
                y["w"] - before - y["t"],
                before - y["w"] - y["t"],
            ),
            bounds=({"w": 0.0, "t": None}, None),
            on_failure="ignore",
        )

    rng = np.random.default_rng(0)
    given = (
        rng.uniform(0.5, 3, size=60),
        0.3 * rng.normal(size=(60, n)),
        0.3 * rng.normal(size=(60, n, n)),
        rng.dirichlet(np.ones(n), size=60),
        rng.uniform(0.02, 0.2, size=60),
        np.ones((60, n)),
    )
    rounded = [jnp.asarray(x, jnp.float32) for x in given]
    found = jax.jit(jax.vmap(choose))(*rounded)
    expected = jax.jit(jax.vmap(choose))(*[x.astype(jnp.float64) for x in rounded])
    assert np.all(found.report.status == Status.CONVERGED)
    assert np.all(expected.report.status == Status.CONVERGED)
    # Curvatures are 0.02 and more, beside forces of one.
    np.testing.assert_allclose(found.y["w"], expected.y["w"], atol=2e-5)
