"""Mehrotra's predictor-corrector, for quadratic programs while they turn out to be convex.

Mehrotra, On the implementation of a primal-dual interior point method, 1992.
"""

import equinox as eqx
import jax.numpy as jnp
from jax.lax.linalg import cholesky
from jaxtyping import Array, Bool, Float, Int, Scalar

from .barrier import Bounds, Point
from .kkt_system import Factors, System, solve_once
from .scaled import Here, ScaledProgram

PROGRESS = 0.9  # of the error in a step; without it
STALLED = 4  # steps are enough, and the filter line search takes over


class Predictor(eqx.Module):
    """While active, every step is taken, as long as both kinds of variables stay positive."""

    active: Bool[Array, ""]
    best: Scalar  # the smallest error so far
    stalled: Int[Array, ""]

    def judged(self, error: Scalar, counts: Bool[Array, ""], sound: Bool[Array, ""]) -> "Predictor":
        """After a step to a point of that error; not ``sound``: not convex, or not finite."""
        better = error < PROGRESS * self.best
        stalled = jnp.where(counts, jnp.where(better, 0, self.stalled + 1), self.stalled)
        return Predictor(
            active=self.active & sound & (stalled < STALLED),
            best=jnp.where(counts & better, error, self.best),
            stalled=stalled,
        )


class Targets(eqx.Module):
    """What a step is to make of stationarity and of the products of complementarity."""

    rx: Float[Array, " n+m"]
    lower: Float[Array, " n+m"]
    upper: Float[Array, " n+m"]
    mu: Scalar


def corrected(
    bounds: Bounds,
    here: Here,
    system: System,
    factors: Factors,
    rc: Float[Array, " p+m"],
    floor: Scalar,
) -> Targets:
    """The targets that undo what the affine step leaves in the products to second order."""
    point = here.point
    zero = jnp.zeros_like(point.x)
    ahead = here.gradient + here.times_rows(point.rows)
    dx, drows = solve_once(system, factors, ahead, rc)
    affine = bounds.direction(point, dx, drows, zero, zero)
    alpha = jnp.minimum(*bounds.longest(point, affine, 1.0))
    reached = Point(
        x=point.x + alpha * dx,
        rows=point.rows,
        lower=point.lower + alpha * affine.lower,
        upper=point.upper + alpha * affine.upper,
    )
    average = bounds.average(point)
    ratio = bounds.average(reached) / jnp.where(average > 0, average, 1)
    mu = jnp.maximum(ratio**3 * average, floor)
    lower, upper = mu - dx * affine.lower, mu + dx * affine.upper
    return Targets(ahead + bounds.push(point.x, lower, upper), lower, upper, mu)


def beginning(scaled: ScaledProgram, point: Point, dx: Array, drows: Array) -> Point:
    """The start that the solution (dx, drows) of the first system makes.

    That is the solution of the program with |s|^2 / 2 added and the signs of s and its
    multipliers, which are -s, ignored: both are then lifted to be positive (Vandenberghe, The
    CVXOPT linear and quadratic cone program solvers, 2010, section 5.3).
    """
    n = scaled.n
    begun = Point(
        x=jnp.concatenate([point.x[:n] + dx[:n], _lifted(dx[n:])]),
        rows=drows,
        lower=jnp.concatenate([point.lower[:n], _lifted(-dx[n:])]),
        upper=point.upper,
    )
    return scaled.inside(begun)


def is_convex(curvature: Float[Array, "n n"]) -> Bool[Array, ""]:
    """Whether a matrix is positive semidefinite, to half of the digits."""
    eps = float(jnp.finfo(curvature.dtype).eps)
    n = curvature.shape[0]
    least = eps**0.5 * jnp.max(jnp.abs(curvature), initial=eps)
    shifted = curvature + least * jnp.eye(n, dtype=curvature.dtype)
    return jnp.all(jnp.isfinite(jnp.diagonal(cholesky(shifted, symmetrize_input=False))))


def _lifted(x: Array) -> Array:
    """x, or where some of it is not positive, x + constant >= 1."""
    least = jnp.min(x, initial=jnp.inf)
    return x + jnp.where(least > 0, 0, 1 - least)
