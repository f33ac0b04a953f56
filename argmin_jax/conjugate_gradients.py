"""Conjugate gradients that notice negative curvature, for symmetric matrices that need not be
positive definite.

Lineax's take the matrix to be definite. What the curvature along the directions tells, none of its
results keep: it is what a trust region and a certificate live on.
"""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Scalar

Product = Callable[[Float[Array, " n"]], Float[Array, " n"]]  # v -> A v


class Iterate(eqx.Module):
    """Where the iterations for A x = b stand."""

    x: Float[Array, " n"]
    residual: Float[Array, " n"]  # b - A x
    direction: Float[Array, " n"]
    square: Scalar  # of the residual's length
    curvature: Scalar  # d'A d of the last direction tried
    pivots: Float[Array, "2"]  # the smallest and the largest d'A d / r'r
    count: Int[Array, ""]
    inside: Bool[Array, ""]
    """Whether the last direction was taken: it has positive curvature, and x stays within the
    radius and finite."""


def conjugate_gradients(
    product: Product,
    b: Float[Array, " n"],
    target: Scalar,
    max_steps: int,
    radius: Scalar | float = jnp.inf,
) -> Iterate:
    """The iterations from zero until the squared length of the residual is at most ``target``, or a
    direction leads out (Nocedal & Wright, Numerical Optimization, 2006, algorithm 7.2).

    The comparisons are written so that NaN counts as having been led out.
    """

    def goes_on(at: Iterate) -> Bool[Array, ""]:
        return at.inside & (at.count < max_steps) & (at.square > target)

    def advance(at: Iterate) -> Iterate:
        image = product(at.direction)
        curvature = at.direction @ image
        # The pivots of the tridiagonal matrix that Lanczos' method would make of A: between its
        # extreme eigenvalues as long as they are positive.
        pivot = curvature / at.square
        length = jnp.where(curvature > 0, at.square / jnp.where(curvature > 0, curvature, 1), 0)
        x = at.x + length * at.direction
        residual = at.residual - length * image
        square = residual @ residual
        inside = (curvature > 0) & (x @ x < radius**2) & jnp.isfinite(square)
        direction = residual + (square / at.square) * at.direction
        smallest, largest = at.pivots
        pivots = jnp.stack([jnp.minimum(smallest, pivot), jnp.maximum(largest, pivot)])
        there = Iterate(x, residual, direction, square, curvature, pivots, at.count + 1, inside)
        left = eqx.tree_at(
            lambda a: (a.curvature, a.pivots, a.inside), at, (curvature, pivots, inside)
        )
        return jax.tree.map(lambda new, old: jnp.where(inside, new, old), there, left)

    zero = jnp.zeros((), b.dtype)
    pivots = jnp.array([jnp.inf, 0], b.dtype)
    start = Iterate(jnp.zeros_like(b), b, b, b @ b, zero, pivots, jnp.array(0), jnp.array(True))
    return jax.lax.while_loop(goes_on, advance, start)
