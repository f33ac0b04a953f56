"""The filter line search: a trial point has to improve the violation or the objective.

The numbers in parentheses are equations of Wächter & Biegler 2006, see barrier.py; the constants
are those of their program Ipopt, where it differs from the paper.
"""

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Scalar

GAMMA_THETA, GAMMA_PHI = 1e-5, 1e-8  # sufficient decrease, (18)
DELTA, S_THETA, S_PHI = 1.0, 1.1, 2.3  # switching condition, (19)
ETA = 1e-8  # Armijo's condition, (20)
LARGEST, SMALL = 1e4, 1e-4  # theta_max and theta_min, relative to the first violation, (21)
GAMMA_ALPHA = 0.05  # smallest step size, (23)
SIZE = 24  # pairs kept; the oldest gives way


class Merit(eqx.Module):
    """What the filter weighs: the violation theta and the barrier's objective phi."""

    theta: Scalar
    phi: Scalar


class Filter(eqx.Module):
    """The pairs that no later point may be worse than in both."""

    theta: Float[Array, " k"]
    phi: Float[Array, " k"]

    @staticmethod
    def empty(dtype) -> "Filter":
        nothing = jnp.full(SIZE, jnp.inf, dtype)
        return Filter(nothing, nothing)

    def accepts(self, merit: Merit) -> Bool[Array, ""]:
        return jnp.all((merit.theta < self.theta) | (merit.phi < self.phi))

    def added(self, merit: Merit) -> "Filter":
        theta = (1 - GAMMA_THETA) * merit.theta
        phi = merit.phi - GAMMA_PHI * merit.theta
        return Filter(
            jnp.concatenate([theta[None], self.theta[:-1]]),
            jnp.concatenate([phi[None], self.phi[:-1]]),
        )


def armijo(before: Merit, after: Merit, alpha: Scalar, slope: Scalar) -> Bool[Array, ""]:
    """(20), but for rounding errors of phi."""
    return after.phi - before.phi <= ETA * alpha * slope + _rounding(before)


def switching(before: Merit, alpha: Scalar, slope: Scalar, first_theta: Scalar) -> Bool[Array, ""]:
    """(19), at small violations: phi is promised so much that Armijo's condition counts."""
    promise = alpha * jnp.abs(slope) ** S_PHI > DELTA * before.theta**S_THETA
    return (slope < 0) & promise & (before.theta <= SMALL * jnp.maximum(1, first_theta))


def sufficient(before: Merit, after: Merit, first_theta: Scalar) -> Bool[Array, ""]:
    """(18), and no violation beyond all bounds."""
    less_violated = after.theta <= (1 - GAMMA_THETA) * before.theta
    better = after.phi - before.phi <= _rounding(before) - GAMMA_PHI * before.theta
    return (less_violated | better) & (after.theta <= LARGEST * jnp.maximum(1, first_theta))


def smallest_step(before: Merit, slope: Scalar, first_theta: Scalar) -> Scalar:
    """(23): below it, restoration is called for."""
    drop = jnp.where(slope < 0, -slope, 1)
    by_phi = jnp.where(slope < 0, GAMMA_PHI * before.theta / drop, jnp.inf)
    small = (slope < 0) & (before.theta <= SMALL * jnp.maximum(1, first_theta))
    by_switch = jnp.where(small, DELTA * before.theta**S_THETA / drop**S_PHI, jnp.inf)
    least = jnp.minimum(jnp.minimum(GAMMA_THETA, by_phi), by_switch)
    return GAMMA_ALPHA * jnp.maximum(least, 1e-12)


def _rounding(before: Merit) -> Scalar:
    return 10 * float(jnp.finfo(before.phi.dtype).eps) * jnp.abs(before.phi)
