"""Block principal pivoting, against the optimality conditions of the programs that it solves."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from argmin_jax.solvers.barrier import Point
from argmin_jax.solvers.interior_point import InteriorPoint
from argmin_jax.solvers.nlp import NonlinearProgram, nowhere
from argmin_jax.solvers.pivoting import GUESSES, pivot
from argmin_jax.solvers.scaled import ScaledProgram

N, EQUALITIES, INEQUALITIES = 8, 1, 1
LANES = 100
INFINITE = np.full(N, np.inf)


def programs(fixed=0, seed=0):
    """Strictly convex, feasible, their rows and bounds passing near the unconstrained minimum."""
    rng = np.random.default_rng(seed)
    root = rng.normal(size=(LANES, N, N))
    inside = rng.normal(size=(LANES, N))
    rows = rng.normal(size=(LANES, EQUALITIES + INEQUALITIES, N))
    values = np.einsum("lrn,ln->lr", rows, inside)
    values[:, EQUALITIES:] += rng.uniform(0, 0.5, size=(LANES, INEQUALITIES))
    below, above = rng.uniform(0.2, 3, size=(2, LANES, N))
    below[:, :fixed] = above[:, :fixed] = 0
    hessian = root @ root.transpose(0, 2, 1) / N + 0.1 * np.eye(N)
    return hessian, rng.normal(size=(LANES, N)), rows, values, inside - below, inside + above


def program(q, c, rows, values, lower, upper) -> NonlinearProgram:
    def residual(y):
        return rows @ y - values

    return NonlinearProgram(
        objective=lambda y: y @ q @ y / 2 + c @ y,
        equalities=lambda y: residual(y)[:EQUALITIES],
        inequalities=lambda y: residual(y)[EQUALITIES:],
        lower=lower,
        upper=upper,
    )


@jax.jit
@jax.vmap
def pivoted(*parts):
    y = jnp.ones(N)
    scaled = ScaledProgram(program(*parts), y, jnp.array(1e-8))
    y = scaled.placed(y)
    scale, slopes = scaled.first_slopes(y)
    end = pivot(scaled, scale * scaled.curvature, y, slopes, jnp.array(1000))
    # The multipliers of the rows as they were given.
    point = eqx.tree_at(lambda p: p.rows, end.point, scaled.row_scale * end.point.rows)
    return point, end.count, scale


def assert_optimal(parts, point: Point, scale):
    q, c, rows, values, lower, upper = parts
    y, slacks = point.x[:N], point.x[N:]
    bounds = point.upper[:N] - point.lower[:N]
    movable = lower < upper
    pull = scale * (q @ y + c) + rows.T @ point.rows + bounds
    # Matrices with condition numbers up to 1e3, entries up to 10.
    np.testing.assert_allclose(np.where(movable, pull, 0), 0, atol=1e-9)
    residual = rows @ y - values
    np.testing.assert_allclose(residual[:EQUALITIES], 0, atol=1e-9)
    assert np.all(residual[EQUALITIES:] <= 1e-9) and np.all(slacks >= 0)
    assert np.all(y >= lower - 1e-9) and np.all(y <= upper + 1e-9)
    assert np.all(point.rows[EQUALITIES:] >= -1e-12)
    np.testing.assert_array_equal(point.rows[EQUALITIES:] * slacks, 0)
    np.testing.assert_allclose(point.lower[:N] * np.where(point.lower[:N] > 0, y - lower, 0), 0)
    np.testing.assert_allclose(point.upper[:N] * np.where(point.upper[:N] > 0, upper - y, 0), 0)


@pytest.mark.parametrize("kind", ["bounds on both sides", "one bound", "none", "fixed unknowns"])
def test_a_few_guesses_lead_to_the_solution(kind):
    *others, lower, upper = programs(fixed=2 if kind == "fixed unknowns" else 0)
    infinite = np.broadcast_to(INFINITE, lower.shape)
    if kind == "one bound":
        upper = infinite
    elif kind == "none":
        lower, upper = -infinite, infinite
    parts = *others, lower, upper
    points, counts, scales = pivoted(*parts)
    assert counts.max() < GUESSES
    assert counts.mean() < 6
    for lane in range(LANES):
        one = jax.tree.map(lambda x, lane=lane: np.asarray(x[lane]), (parts, points, scales))
        assert_optimal(*one)


@jax.jit
def solve(q, c, rows, values):
    return InteriorPoint().run(
        NonlinearProgram(
            lambda y: y @ q @ y / 2 + c @ y,
            nowhere,
            lambda y: rows @ y - values,
            -INFINITE,
            INFINITE,
            bounded=False,
        ),
        jnp.zeros(N),
        jnp.array(1e-8),
        jnp.array(200),
    )


def test_interior_point_steps_follow_only_where_pivoting_fails():
    """A linear objective has no inverse Hessian; a separable one takes a single guess, as the rows
    that the unconstrained minimum violates are the active ones."""
    rows, values = np.eye(N), np.ones(N)
    q, c = np.eye(N), np.where(np.arange(N) % 2 == 0, -2.0, 0.5)
    easy = solve(q, c, rows, values)
    assert easy.steps == 1
    np.testing.assert_allclose(easy.y, np.minimum(-c, 1), atol=1e-12)
    np.testing.assert_allclose(easy.ineq, np.maximum(-c - 1, 0), atol=1e-12)
    hard = solve(0 * q, -np.ones(N), rows, values)
    assert hard.steps > 1
    np.testing.assert_allclose(hard.y, 1, atol=1e-6)
