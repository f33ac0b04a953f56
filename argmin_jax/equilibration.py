"""Units for the unknowns in which a symmetric matrix has rows of about the same length.

They are for iterative methods, whose steps depend on the units of the unknowns: whoever measures
one feature in metres and another in millimetres does not see it in the number of steps.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

ROUNDS = 2
MULTIPLIERS = (5**0.5, 2**0.5, 3**0.5, 7**0.5)  # of the sequences behind the probes' signs


def equilibrated_units(
    product: Callable[[Float[Array, " n"]], Float[Array, " n"]], start: Float[Array, " n"]
) -> Float[Array, " n"]:
    """Units d > 0 such that the rows of diag(d) K diag(d) are about equally long.

    From eight products with K, four for each of two rounds: the square of an entry of K z, z being
    of independent random signs, is on average the square of the length of K's row, and dividing
    both sides by the roots of the lengths brings them together (Ruiz, A Scaling Algorithm to
    Equilibrate Both Rows and Columns Norms in Matrices, 2001; from products alone: Bradley &
    Murray, Matrix-free Approximate Equilibration, 2011).

    Args:
        product: v -> K v for vectors of shape (n,).
        start: units to begin with, of shape (n,).

    Returns:
        d of shape (n,), finite, one in the geometric mean. A row much shorter than the longest one
        counts as of at least sqrt(eps) times its length; where K is zero or not finite the units
        stay as they are.
    """
    eps = float(jnp.finfo(start.dtype).eps)
    multipliers = jnp.array(MULTIPLIERS, start.dtype)
    places = jnp.arange(start.size, dtype=start.dtype)

    def improve(round, units):
        def add_square(k, squares):
            multiples = multipliers[k] * places + round / (2 * ROUNDS)
            signs = jnp.where(multiples - jnp.floor(multiples) < 0.5, 1, -1).astype(start.dtype)
            return squares + (units * product(units * signs)) ** 2

        squares = jax.lax.fori_loop(0, len(MULTIPLIERS), add_square, jnp.zeros_like(start))
        lengths = jnp.sqrt(squares)
        longest = jnp.max(lengths)
        usable = (longest > 0) & jnp.isfinite(longest)
        lengths = jnp.where(usable, jnp.maximum(lengths, eps**0.5 * longest), 1)
        return units / jnp.sqrt(lengths)

    units = jax.lax.fori_loop(0, ROUNDS, improve, start)
    return units * jnp.exp(-jnp.mean(jnp.log(units)))
