"""Factors of a symmetric matrix of diagonal blocks, most of which is positive definite."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Scalar

from .structure import Blocks
from .triangular import inverse_of_lower


class SymmetricFactors(eqx.Module):
    """The inverse H' diag(signs) H of a block diagonal symmetric matrix: of each block, H is the
    inverse of the Cholesky factor where that is definite, else |values|^-1/2 V' of its eigenvalues.

    Solves are two products without a branch, so that a batch may mix both kinds. One H serves all
    blocks that are alike.
    """

    half: Float[Array, "distinct size size"]  # H; zero in the rows of eigenvalues that are zero
    signs: Float[Array, "distinct size"]
    indefinite: Bool[Array, ""]
    curvature: Scalar  # the smallest eigenvalue where some were computed; NaN where all definite
    rank_deficiency: Int[Array, ""]
    blocks: Blocks = eqx.field(static=True)

    def solve(self, b: Float[Array, " n"]) -> Float[Array, " n"]:
        return self.blocks.join(self._second_half(self._first_half(self.blocks.split(b))))

    def _first_half(self, b: Float[Array, "count size"]) -> Float[Array, "count size"]:
        if self.blocks.alike:
            return jnp.matmul(b, self.half[0].T, precision="highest")
        return jnp.einsum("kij,kj->ki", self.half, b, precision="highest")

    def _second_half(self, w: Float[Array, "count size"]) -> Float[Array, "count size"]:
        if self.blocks.alike:
            return jnp.matmul(self.signs * w, self.half[0], precision="highest")
        return jnp.einsum("kji,kj->ki", self.half, self.signs * w, precision="highest")

    def samples(self, count: int) -> Float[Array, "count n"]:
        """Vectors v = H' w, the entries of w being independent and standard normal."""
        return jax.vmap(lambda w: self.blocks.join(self._second_half(w)))(self._normal(count))

    def deviation(self, images: Float[Array, "count n"]) -> Scalar:
        """How far H A H' is from the identity, from the ``images`` A v of `samples`: the largest
        length of (H A H' - 1) w.

        Each eigenvalue of A that is not positive leaves of w the part along its direction, or
        more: the absolute value of a standard normal number, of each sample.
        """
        w = self._normal(len(images))
        halves = jax.vmap(lambda image: self._first_half(self.blocks.split(image)))(images)
        return jnp.max(jnp.linalg.norm(jnp.reshape(halves - w, (len(images), -1)), axis=1))

    def _normal(self, count: int) -> Float[Array, "count blocks size"]:
        shape = (count, self.blocks.count, self.blocks.size)
        return jnp.asarray(np.random.default_rng(0).normal(size=shape), self.half.dtype)


def factorise(matrices: Float[Array, "distinct size size"], blocks: Blocks) -> SymmetricFactors:
    """Factors of symmetric blocks, by Cholesky where they are safely positive definite.

    What counts as zero is measured on the whole matrix, not on each block.
    """
    rounding = blocks.size * float(jnp.finfo(matrices.dtype).eps)
    diagonals = jnp.diagonal(matrices, axis1=1, axis2=2)
    if blocks.size == 1:
        basis, values = jnp.ones_like(matrices), diagonals
        definite = jnp.zeros(blocks.distinct, bool)
    else:
        basis, values, definite = _decompose(matrices, diagonals, rounding)
    largest = jnp.max(jnp.abs(jnp.where(definite[:, None], diagonals, values)))
    null = ~definite[:, None] & (jnp.abs(values) <= rounding * largest)
    roots = jnp.where(null, 0, jax.lax.rsqrt(jnp.where(null, 1, jnp.abs(values))))
    return SymmetricFactors(
        half=roots[:, :, None] * basis,
        signs=jnp.sign(values),
        indefinite=jnp.any(~definite[:, None] & (values < -rounding * largest)),
        # (The smallest of all is in a block that is not safely definite, if there is one.)
        curvature=jnp.where(
            jnp.all(definite),
            jnp.nan,
            jnp.min(jnp.where(null, 0, jnp.where(definite[:, None], jnp.inf, values))),
        ),
        rank_deficiency=(jnp.sum(null) * (blocks.count // blocks.distinct)).astype(jnp.int32),
        blocks=blocks,
    )


def _decompose(matrices: Array, diagonals: Array, rounding: float) -> tuple[Array, Array, Array]:
    """Of each block: the inverse of its Cholesky factor and ones where it is definite, else the
    transposed eigenvectors and the eigenvalues; and which are definite."""
    # The transpose is the matrix itself, in the column order that LAPACK reads without a copy.
    cholesky = jax.lax.linalg.cholesky(jnp.swapaxes(matrices, 1, 2), symmetrize_input=False)
    # A pivot at rounding level beside its diagonal entry means that the sign of the smallest
    # eigenvalue is not known. (The quotient does not depend on the units of the unknowns.)
    pivots = jnp.diagonal(cholesky, axis1=1, axis2=2) ** 2
    definite = jnp.all(pivots > 10 * rounding * diagonals, axis=1)
    finite = jnp.all(jnp.isfinite(diagonals))
    inverse = jax.vmap(inverse_of_lower)(cholesky)

    def eigen(carry):
        count, _, _ = carry
        # Adding the count, 0, keeps XLA from moving the decomposition, which is the same in
        # every pass, out of the loop and so running it always.
        values, vectors = jnp.linalg.eigh(matrices + count)
        basis = jnp.where(definite[:, None, None], inverse, jnp.swapaxes(vectors, 1, 2))
        return count + 1, basis, jnp.where(definite[:, None], 1, values)

    # A loop of at most one step rather than a cond: under vmap a cond runs both branches on
    # every lane, while a loop that no lane needs does not run. It starts from the inverse, and so
    # calls LAPACK after that, not beside it (see triangular.py).
    count = jnp.zeros((), matrices.dtype)
    _, basis, values = jax.lax.while_loop(
        lambda carry: ~jnp.all(definite) & finite & (carry[0] < 1),
        eigen,
        (count, inverse, jnp.ones_like(diagonals)),
    )
    return basis, values, definite
