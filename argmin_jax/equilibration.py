"""Units for the unknowns in which a symmetric matrix has rows of about the same length.

They are for iterative methods, whose steps depend on the units of the unknowns: whoever measures
one feature in metres and another in millimetres does not see it in the number of steps. And for
deciding which eigenvalues are rounding, which must not depend on them either.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from .triangular import times

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


def sizes(matrix: Float[Array, "n n"]) -> Float[Array, " n"]:
    """The diagonal; more where rounding left an entry in the row that is larger than it could be in
    a semidefinite matrix; one in a row of zeros."""
    entries, diagonal = jnp.abs(matrix), jnp.abs(jnp.diagonal(matrix))
    shares = entries / jnp.where(diagonal > 0, diagonal, jnp.inf)[None, :]
    least = jnp.where(diagonal[None, :] > 0, entries * jnp.minimum(1, shares), entries)
    found = jnp.maximum(diagonal, jnp.max(least, axis=1))
    return jnp.where(found > 0, found, 1)


def basis_in_old_units(
    vectors: Float[Array, "n n"], units: Float[Array, " n"], null: Bool[Array, " n"]
) -> Float[Array, "n n"]:
    """V' D P for the eigenvectors V of D A D, D = diag(units), those of eigenvalues that count as
    zero, ``null``, first: P projects out the null space of A, which D V of these spans.

    The inverse of A of smallest norm is P D V diag(1 / values) V' D P, over the other eigenvalues
    (a generalised inverse between projectors on the range: Ben-Israel & Greville, Generalized
    Inverses, 2003, chapter 2).
    """
    vectors = units[:, None] * vectors
    lengths = jnp.linalg.norm(vectors, axis=0, keepdims=True)
    spanning, _ = jnp.linalg.qr(jnp.where(null[None, :], vectors / lengths, 0))
    spanning = jnp.where(null[None, :], spanning, 0)
    return vectors.T - times(times(vectors.T, spanning), spanning.T)
