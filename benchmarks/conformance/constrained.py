"""Problems with constraints; the active ones are known."""

import jax
import jax.numpy as jnp
import numpy as np

from .faults import quadratic, with_condition
from .oracle import stationary_points
from .problem import Problem

RNG = np.random.default_rng(13)
N = 6
MATRIX = with_condition(10.0)
LINEAR = RNG.normal(size=N)
POINT = np.array([0.9, -0.4, 0.6])


def distance(xp, y, t, *others):
    """Half the squared distance from t: the solution is the projection of t."""
    return ((y - t) ** 2).sum() / 2


def sums_to(xp, y, t, total):
    return y.sum() - total


def sums_to_twice(xp, y, t, total):
    """The same equation a second time, multiplied by 2."""
    return xp.stack([y.sum() - total, 2 * y.sum() - 2 * total])


def contradiction(xp, y, t):
    return xp.stack([y.sum() - 1, y.sum() - 2])


def sums_to_projection(t, total):
    return t - (t.sum() - total) / t.size


def on_the_sphere(xp, y, a, b, radius):
    return (y**2).sum() - radius**2


def sphere_objective(xp, y, a, b, radius):
    return quadratic(xp, y, a, b)


def entropy(xp, y, t):
    return (y * xp.log(y) - t * y).sum()


def on_the_simplex(xp, y, t):
    return y.sum() - 1


def simplex_projection(t):
    """Where the first two of three entries remain positive."""
    kept = t[jnp.array([0, 2])]
    return jnp.zeros(3).at[jnp.array([0, 2])].set(kept - (kept.sum() - 1) / 2)


def in_the_ball(xp, y, t, radius):
    return (y**2).sum() - radius**2


def ball_projection(t, radius):
    return t * radius / jnp.linalg.norm(t)


def qp_objective(xp, y, q, c, a, b, g, h):
    return y @ q @ y / 2 + c @ y


def qp_eq(xp, y, q, c, a, b, g, h):
    return a @ y - b


def qp_ineq(xp, y, q, c, a, b, g, h):
    return g @ y - h


def qp_active(xp, y, q, c, a, b, g, h):
    return xp.concatenate([a @ y - b, (g @ y - h)[QP_ACTIVE]])


def _qp() -> tuple[tuple[np.ndarray, ...], np.ndarray]:
    """The params of a QP of six unknowns, built around its solution: two equations, four
    inequalities, of which the first two are active with multipliers well away from 0."""
    q, a, g = with_condition(10.0), RNG.normal(size=(2, N)), RNG.normal(size=(4, N))
    y = RNG.normal(size=N)
    slack, multipliers = np.array([0.0, 0.0, 0.8, 1.3]), np.array([0.7, 1.1, 0.0, 0.0])
    c = -(q @ y + a.T @ RNG.normal(size=2) + g.T @ multipliers)
    return (q, c, a, a @ y, g, g @ y + slack), y


QP_ACTIVE = np.array([0, 1])
QP, QP_SOLUTION = _qp()


def box_objective(xp, y, a, b, lower, upper):
    return quadratic(xp, y, a, b)


def box_bounds(a, b, lower, upper):
    return lower, upper


def box_solution(a, b, lower, upper):
    """The first two entries at their lower, the last at its upper bound."""
    a = (a + a.T) / 2
    free = slice(2, N - 1)
    y = jnp.concatenate([lower[:2], jnp.zeros(N - 3), upper[-1:]])
    inner = jnp.linalg.solve(a[free, free], b[free] - a[free] @ y)
    return y.at[free].set(inner)


def _box() -> tuple[np.ndarray, ...]:
    """The params of a QP in a box, built around its solution: see `box_solution`."""
    y = RNG.normal(size=N)
    push = np.array([1.2, 0.8, 0, 0, 0, -0.9])  # multipliers: of lower bounds > 0, of upper < 0
    gap = np.array([0, 0, 1.0, 1.0, 1.0, 1.0])
    a = with_condition(10.0)
    return a, a @ y - push, y - gap, y + np.array([1.0, 1.0, 1.0, 1.0, 1.0, 0.0])


def lp_objective(xp, y, c, g, h):
    return c @ y


def lp_ineq(xp, y, c, g, h):
    return g @ y - h


LP = (
    np.array([-1.0, -1.5]),
    np.array([[1.0, 2.0], [3.0, 1.0], [-1.0, 0.0], [0.0, -1.0]]),
    np.array([4.0, 6.0, 0.0, 0.0]),
)

CONSTRAINED = (
    Problem(
        "projection onto sum = 1",
        "Jacobian I - 11'/n",
        distance, np.zeros(3), (POINT, np.array(1.0)), (sums_to_projection,), eq=sums_to,
    ),
    Problem(
        "the same equation twice",
        "the solution and its derivative are those of one equation; the multipliers are not unique",
        distance, np.zeros(3), (POINT, np.array(1.0)), (sums_to_projection,), eq=sums_to_twice,
    ),
    Problem(
        "contradictory equations",
        "no feasible point",
        distance, np.zeros(3), (POINT,), eq=contradiction,
    ),
    Problem(
        "quadratic on a sphere",
        "one nonlinear equation; a regular minimum with a curved multiplier",
        sphere_objective, np.full(N, N**-0.5), (MATRIX, 20 * LINEAR, np.array(1.0)),
        stationary_points(
            sphere_objective,
            LINEAR / np.linalg.norm(LINEAR),
            active=on_the_sphere,
        ),
        eq=on_the_sphere, condition=10.0,
    ),
    Problem(
        "entropy on the simplex",
        "y* = softmax(t)",
        entropy, np.full(3, 1 / 3), (POINT,), (jax.nn.softmax,),
        eq=on_the_simplex, bounds=lambda t: (0.0, None),
    ),
    Problem(
        "projection onto the simplex",
        "one bound is active, strictly",
        distance, np.full(3, 1 / 3), (POINT,), (simplex_projection,),
        eq=on_the_simplex, bounds=lambda t: (0.0, None),
    ),
    Problem(
        "projection onto a ball",
        "one nonlinear inequality, active: y* = t r / |t|",
        distance, np.zeros(3), (2 * POINT, np.array(1.0)), (ball_projection,), ineq=in_the_ball,
    ),
    Problem(
        "inactive constraint",
        "the projection of a point of the ball is the point",
        distance, np.zeros(3), (POINT / 2, np.array(1.0)), (lambda t, radius: t + 0 * radius,),
        ineq=in_the_ball,
    ),
    Problem(
        "quadratic program",
        "OptNet's layer: all six params differentiated; strict complementarity",
        qp_objective, np.zeros(N), QP,
        stationary_points(qp_objective, QP_SOLUTION, active=qp_active),
        eq=qp_eq, ineq=qp_ineq, condition=100.0,
    ),
    Problem(
        "quadratic in a box",
        "three bounds strictly active; the bounds are params",
        box_objective, np.zeros(N), _box(), (box_solution,), bounds=box_bounds, condition=10.0,
    ),
    Problem(
        "linear program",
        "a vertex: y* solves the two active inequalities, whatever the costs",
        lp_objective, np.array([0.5, 0.5]), LP,
        (lambda c, g, h: jnp.linalg.solve(g[:2], h[:2]) + 0 * c,), ineq=lp_ineq, condition=10.0,
    ),
    Problem(
        "weakly active bound",
        "the one-sided derivatives are 0 and 1: either will do, a mean of them is wrong",
        distance, np.ones(2), (np.array([0.0, 1.0]),),
        (lambda t: t + 0, lambda t: t * jnp.array([0.0, 1.0])), bounds=lambda t: (0.0, None),
    ),
)  # fmt: skip
