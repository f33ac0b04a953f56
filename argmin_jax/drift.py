"""Points that a fall to infinity left: how far y went, and whether anything pushes it on."""

import jax
import jax.numpy as jnp
import lineax as lx
from jaxtyping import Array, Bool, Float

from .factors import if_needed
from .linear_solve import apply_kept_factors
from .matrix_free import largest, solve_matrix_free
from .optimality import Active, stationarity
from .polish import Newton, Polished
from .symmetric import SymmetricFactors

SMALL = 0.01  # a share of the residual that is no sign of a push
NEAR = 10  # so many times the size of the start are no drift
FAR = 1e4  # an unsolved point this much larger than the start counts as a sign of divergence


def is_far(y: Float[Array, " n"], start: Float[Array, " n"]) -> Bool[Array, ""]:
    """Whether y is much larger than the start was, beside 1."""
    return largest(y) > FAR * (1 + largest(start))


def is_pushed_on(point: Polished) -> Bool[Array, ""]:
    """Whether a part of the residual lies along directions that are too flat, beside the steepest,
    for K's factors to tell: it counts for nothing in the largest entry of the residual, though
    along such directions the objective may fall for ever."""
    left = jnp.abs(point.residual + point.reaction)
    left_over = jnp.any(left > SMALL * jnp.abs(point.response))
    return (point.spectrum.rank_deficiency != 0) & left_over


def is_adrift(
    newton: Newton,
    point: Polished,
    tol: float,
    active: Active | None = None,
    limit: float = FAR,
) -> Bool[Array, ""]:
    """Whether y went far along directions that K takes as null, and is pushed on: then there is no
    minimum that way, only a residual that is ever smaller beside y; beside the start it is not. A
    solver of minima goes farther than ``limit`` by a push alone, be it too small to be seen."""
    size = newton.start.size
    unit = 1 + largest(newton.start)
    stiffness = largest(point.response[:size]) / jnp.maximum(1, largest(point.z[:size]))
    pushed = largest((point.residual + point.reaction)[:size]) > tol * stiffness * unit

    def far(vector: Array, known: Bool[Array, ""] | bool = True) -> Bool[Array, ""]:
        drift = largest(vector[:size]) / unit
        return (drift > limit) & known | (drift > NEAR) & pushed

    way, singular = newton.way(point.z), point.spectrum.rank_deficiency != 0
    if point.factors is not None:
        along = apply_kept_factors(newton.linear_solver, point.factors, point.image)
        return singular & far(way - along)

    def by_products(zero) -> Bool[Array, ""]:
        operator = lx.linearise(newton.conditions.jacobian(point.z + zero, newton.args, active))
        along, known = solve_matrix_free(operator, point.image)
        return far(way - along, known)

    return if_needed(singular & far(way), by_products, jnp.array(False), way.dtype)


def is_bottomless(newton: Newton, point: Polished, tol: float) -> Bool[Array, ""]:
    """Whether a quadratic objective has no minimum, by what its factors tell at the polished point:
    it curves down, and the point is no saddle; or along directions without curvature a gradient is
    left that is more than what rounding leaves of its terms, in the units of the unknowns in which
    the Hessian's diagonal is one."""
    factors, spectrum = point.factors, point.spectrum
    assert isinstance(factors, SymmetricFactors)
    curved = factors.diagonal > 0
    units = jax.lax.rsqrt(jnp.where(curved, factors.diagonal, 1))

    def split(vector: Array) -> Array:
        return jnp.abs(factors.blocks.split(vector))

    at_start = newton.conditions.residual(newton.start, newton.args)
    terms = jnp.where(curved, units * (split(point.response) + split(at_start)), 0)
    left = units * split(point.residual + point.reaction)
    rounding = 1e3 * jnp.finfo(left.dtype).eps * jnp.max(terms, axis=1, keepdims=True)
    pushed = jnp.any(left > jnp.where(curved, rounding, 0))
    saddle = stationarity(point.residual, point.response) <= tol
    return (spectrum.indefinite & ~saddle) | ((spectrum.rank_deficiency != 0) & pushed)
