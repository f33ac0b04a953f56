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
    squares: Float[Array, "3"]  # x'x, x'd and d'd by their recurrences


def conjugate_gradients(
    product: Product,
    b: Float[Array, " n"],
    target: Scalar,
    max_steps: int,
    radius: Scalar | float = jnp.inf,
) -> Iterate:
    """The iterations from zero until the squared length of the residual is at most ``target``, or a
    direction leads out (Nocedal & Wright, Numerical Optimization, 2006, algorithm 7.2).

    Where the next point lies is known from recurrences (Conn, Gould & Toint, Trust-Region Methods,
    2000, equations 7.5.5 to 7.5.7) before it is made. So nothing has to be taken back: beside the
    product an iteration reads or writes whole vectors in five loops, two of them inner products.

    The comparisons are written so that NaN counts as having been led out.
    """

    def goes_on(at: Iterate) -> Bool[Array, ""]:
        return at.inside & (at.count < max_steps) & (at.square > target)

    def advance(at: Iterate) -> Iterate:
        image = product(at.direction)
        curvature = at.direction @ image  # finite only if all of the image is
        # The pivots of the tridiagonal matrix that Lanczos' method would make of A: between its
        # extreme eigenvalues as long as they are positive.
        pivot = curvature / at.square
        smallest, largest = at.pivots
        pivots = jnp.stack([jnp.minimum(smallest, pivot), jnp.maximum(largest, pivot)])
        length = at.square / curvature
        xx, xd, dd = at.squares
        xx = xx + length * (2 * xd + length * dd)
        sound = (curvature > 0) & jnp.isfinite(curvature) & jnp.isfinite(length)
        inside = sound & (xx < radius**2)

        def taken(new: Array, old: Array) -> Array:
            return jnp.where(inside, new, old)

        residual = taken(at.residual - length * image, at.residual)
        square = residual @ residual
        ratio = square / at.square
        squares = jnp.stack([xx, ratio * (xd + length * dd), square + ratio**2 * dd])
        return Iterate(
            x=taken(at.x + length * at.direction, at.x),
            residual=residual,
            direction=taken(residual + ratio * at.direction, at.direction),
            square=square,
            curvature=curvature,
            pivots=pivots,
            count=at.count + inside,
            inside=inside,
            squares=taken(squares, at.squares),
        )

    zero = jnp.zeros((), b.dtype)
    square = b @ b
    start = Iterate(
        x=jnp.zeros_like(b),
        residual=b,
        direction=b,
        square=square,
        curvature=zero,
        pivots=jnp.array([jnp.inf, 0], b.dtype),
        count=jnp.array(0),
        inside=jnp.array(True),
        squares=jnp.stack([zero, zero, square]),
    )
    return jax.lax.while_loop(goes_on, advance, start)
