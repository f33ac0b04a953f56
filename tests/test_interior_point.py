"""The interior-point method, on problems with closed forms and against Ipopt."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from argmin_jax.solvers.interior_point import InteriorPoint
from argmin_jax.solvers.nlp import NonlinearProgram, PrimalDual, nowhere

INF = jnp.inf
FREE = jnp.full(3, -INF), jnp.full(3, INF)
NO_ROW, NO_ROWS = (jnp.zeros((1, 3)), jnp.zeros(1)), (jnp.zeros((2, 3)), jnp.ones(2))
TARGET = jnp.array([0.9, 0.5, -0.7])


def run(program: NonlinearProgram, start, tolerance=1e-8, max_steps=200) -> PrimalDual:
    return InteriorPoint().run(
        program, start, jnp.asarray(tolerance, start.dtype), jnp.array(max_steps)
    )


@jax.jit
def quadratic_program(q, c, g, h, a, b, lower, upper, start):
    """y'Qy/2 + c'y  subject to  G y <= h,  A y = b and bounds: one compilation for many tests."""
    program = NonlinearProgram(
        lambda y: y @ q @ y / 2 + c @ y, lambda y: a @ y - b, lambda y: g @ y - h, lower, upper
    )
    return run(program, start)


def nearest(target, rows=NO_ROWS, row=NO_ROW, bounds=FREE, q=None, start=None):
    """The point of a polyhedron that is nearest to ``target``."""
    start = jnp.zeros(3) if start is None else start
    everything = jnp.eye(3) if q is None else q, -target, *rows, *row, *bounds, start
    return quadratic_program(*(jnp.asarray(each, jnp.float64) for each in everything))


def close(found, expected, tolerance=1e-7):
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance)


def assert_optimal(program: NonlinearProgram, at: PrimalDual, tolerance=1e-6):
    """The KKT conditions, with the multipliers that the solver returned."""

    def lagrangian(y):
        rows = at.eq @ program.equalities(y) + at.ineq @ program.inequalities(y)
        return program.objective(y) + rows

    g = program.inequalities(at.y)
    close(jax.grad(lagrangian)(at.y) - at.lower + at.upper, 0, tolerance)
    close(program.equalities(at.y), 0, tolerance)
    assert jnp.max(g, initial=-1) <= tolerance
    close(at.ineq * g, 0, tolerance)
    for multipliers in (at.ineq, at.lower, at.upper):
        assert jnp.all(multipliers >= 0)


# Quadratic programs


def test_projects_onto_the_simplex():
    at = nearest(TARGET, row=(jnp.ones((1, 3)), jnp.ones(1)), bounds=(jnp.zeros(3), FREE[1]))
    close(at.y, [0.7, 0.3, 0.0])  # max(target - nu, 0), where nu = 0.2 makes the sum one
    close(at.eq, [0.2])
    close(at.lower, [0.0, 0.0, 0.9])


def test_clips_to_a_box_and_reports_the_multipliers():
    at = nearest(TARGET, bounds=(jnp.full(3, -0.6), jnp.full(3, 0.6)))
    close(at.y, [0.6, 0.5, -0.6])
    close(at.upper, [0.3, 0, 0])
    close(at.lower, [0, 0, 0.1])


def test_a_start_outside_the_bounds_is_moved_inside():
    bounds = jnp.full(3, -0.6), jnp.full(3, 0.6)
    at = nearest(TARGET, bounds=bounds, start=jnp.array([40.0, -40.0, 7.0]))
    close(at.y, [0.6, 0.5, -0.6])


def test_a_fixed_unknown_stays_and_has_a_multiplier():
    lower, upper = FREE
    at = nearest(TARGET, bounds=(lower.at[1].set(0.2), upper.at[1].set(0.2)))
    close(at.y, [0.9, 0.2, -0.7])
    close(at.upper - at.lower, [0, 0.3, 0])


def test_negative_curvature_leads_to_a_vertex():
    q = jnp.diag(jnp.array([-2.0, 1.0, 1.0]))
    bounds = jnp.full(3, -1.0), jnp.full(3, 1.0)
    at = nearest(jnp.array([0.1, 0.5, 0.5]), q=q, bounds=bounds, start=jnp.full(3, 0.3))
    close(at.y, [1.0, 0.5, 0.5])


def test_repeated_and_dependent_rows_do_no_harm():
    row = jnp.ones((1, 3)), jnp.ones(1)
    twice = jnp.ones((2, 3)), jnp.ones(2)
    at = nearest(TARGET + 1, rows=twice, row=row)
    close(at.y, TARGET - jnp.sum(TARGET) / 3 + 1 / 3, 1e-6)


def test_constraints_without_an_interior_are_met():
    """y0 <= 0.5 and y0 >= 0.5, as two inequalities."""
    rows = jnp.array([[1.0, 0, 0], [-1.0, 0, 0]]), jnp.array([0.5, -0.5])
    at = nearest(TARGET, rows=rows)
    close(at.y, [0.5, 0.5, -0.7], 1e-6)
    assert not at.infeasible


@pytest.mark.parametrize("kind", ["rows", "row", "bounds"])
def test_contradictions_are_infeasible(kind):
    contradiction = {
        "rows": (jnp.array([[1.0, 0, 0], [-1.0, 0, 0]]), jnp.array([-1.0, -1.0])),
        "row": (jnp.zeros((1, 3)), jnp.ones(1)),
        "bounds": (jnp.ones(3), jnp.zeros(3)),
    }
    assert nearest(TARGET, **{kind: contradiction[kind]}).infeasible


def test_an_unbounded_objective_is_not_called_infeasible():
    at = quadratic_program(jnp.zeros((3, 3)), jnp.ones(3), *NO_ROWS, *NO_ROW, *FREE, jnp.zeros(3))
    assert not at.infeasible
    assert jnp.sum(at.y) < -1e3


def test_lanes_equal_single_solves():
    targets = jax.random.normal(jax.random.key(0), (5, 3))
    rows = jax.random.normal(jax.random.key(1), (2, 3)), jnp.array([0.1, 0.2])

    def solve(target):
        return nearest(target, rows=rows, bounds=(jnp.full(3, -0.5), jnp.full(3, 0.5)))

    lanes = jax.vmap(solve)(targets)
    for i, target in enumerate(targets):
        single = solve(target)
        close(lanes.y[i], single.y, 1e-9)
        close(lanes.ineq[i], single.ineq, 1e-8)
        assert lanes.steps[i] == single.steps


# Nonlinear programs


def test_256_lanes_of_a_problem_that_is_not_convex_equal_single_solves():
    targets = jax.random.normal(jax.random.key(2), (256, 3))

    @jax.jit
    def solve(target):
        """The nearest point of the unit sphere that is below a plane."""
        program = NonlinearProgram(
            lambda y: jnp.sum((y - target) ** 2) / 2,
            lambda y: (jnp.sum(y**2) - 1)[None],
            lambda y: (y[0] + y[1] - 0.5)[None],
            *FREE,
        )
        return run(program, jnp.array([0.1, -0.2, 0.3]))

    lanes = jax.vmap(solve)(targets)
    alone = [solve(target) for target in targets]
    # Where two minima are as near, rounding may choose: these targets have none.
    close(lanes.y, jnp.stack([at.y for at in alone]), 1e-7)
    close(jnp.sum(lanes.y**2, axis=1), 1)
    assert jnp.max(lanes.y[:, 0] + lanes.y[:, 1]) <= 0.5 + 1e-7


def test_full_steps_near_the_solution_are_not_refused():
    """The example of Maratos: every full Newton step increases objective and violation."""
    program = NonlinearProgram(
        lambda y: 2 * (y @ y - 1) - y[0],
        lambda y: (y @ y - 1)[None],
        nowhere,
        jnp.full(2, -INF),
        jnp.full(2, INF),
    )
    angle = 0.1
    at = jax.jit(lambda start: run(program, start))(jnp.array([jnp.cos(angle), jnp.sin(angle)]))
    close(at.y, [1.0, 0.0])
    assert_optimal(program, at)
    assert at.steps <= 10  # without second-order corrections, 20 and more


def test_steps_back_from_where_the_functions_are_not_defined():
    """log(y) is NaN for y < 0, and is so at the first full step."""
    program = NonlinearProgram(
        lambda y: -jnp.sum(jnp.log(y)) + 40 * jnp.sum(y),
        nowhere,
        lambda y: (jnp.sum(jnp.sqrt(y)) - 0.1)[None],
        jnp.full(2, -INF),
        jnp.full(2, INF),
    )
    at = jax.jit(lambda start: run(program, start))(jnp.array([1.0, 0.5]))
    close(at.y, [0.0025, 0.0025])
    assert_optimal(program, at)


def test_a_nonlinear_constraint_that_cannot_hold_is_infeasible():
    """y0^2 + y1^2 + 1 <= 0: the violation is smallest, and stationary, at zero."""
    program = NonlinearProgram(
        lambda y: y[0] + y[1],
        nowhere,
        lambda y: (y @ y + 1)[None],
        jnp.full(2, -INF),
        jnp.full(2, INF),
    )
    at = jax.jit(lambda start: run(program, start))(jnp.array([2.0, -1.0]))
    assert at.infeasible
    close(at.y, 0, 1e-3)


def test_single_precision_is_solved_to_its_own_tolerance():
    """The point of the unit disk where x + 2 y is smallest, under bounds that are not active."""
    program = NonlinearProgram(
        lambda y: y[0] + 2 * y[1],
        nowhere,
        lambda y: (y @ y - 1)[None],
        jnp.full(2, -3, jnp.float32),
        jnp.full(2, 3, jnp.float32),
    )
    at = jax.jit(lambda start: run(program, start, 1e-4))(jnp.ones(2, jnp.float32))
    assert all(leaf.dtype != jnp.float64 for leaf in jax.tree.leaves(at))
    close(at.y, -np.array([1, 2]) / 5**0.5, 1e-3)
    close(at.ineq, 5**0.5 / 2, 1e-3)


def test_no_constraint_at_all_is_newtons_method():
    program = NonlinearProgram(
        lambda y: 100 * (y[1] - y[0] ** 2) ** 2 + (1 - y[0]) ** 2,
        nowhere,
        nowhere,
        jnp.full(2, -INF),
        jnp.full(2, INF),
    )
    at = jax.jit(lambda start: run(program, start))(jnp.array([-1.2, 1.0]))
    close(at.y, 1.0)


@pytest.mark.parametrize("options", [{"initial_barrier": 0.0}, {"initial_barrier": -1.0}])
def test_options_are_checked(options):
    with pytest.raises(ValueError, match="initial_barrier"):
        InteriorPoint(**options)
