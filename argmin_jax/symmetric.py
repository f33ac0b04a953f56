"""Factors of a symmetric matrix of diagonal blocks, most of which is positive definite."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.lax.linalg import triangular_solve
from jaxtyping import Array, Bool, Float, Int, Scalar

from .structure import Blocks


class SymmetricFactors(eqx.Module):
    """The inverse of a block diagonal symmetric matrix: of each block by Cholesky where
    `definite`, else by eigenvalues.

    Solves have no branch, so that a batch may mix both kinds.
    """

    basis: Float[Array, "count size size"]  # the lower Cholesky factor or the eigenvectors
    inverse_values: Float[Array, "count size"]  # of the eigenvalues; 0 for those that are zero
    definite: Bool[Array, " count"]
    indefinite: Bool[Array, ""]
    curvature: Scalar  # the smallest eigenvalue where some were computed; NaN where all definite
    rank_deficiency: Int[Array, ""]
    blocks: Blocks = eqx.field(static=True)

    def solve(self, b: Float[Array, " n"]) -> Float[Array, " n"]:
        return self.blocks.join(self._second_half(self._first_half(self.blocks.split(b))))

    # The inverse K^-1 = L^-T L^-1, or V |values|^-1/2 sign |values|^-1/2 V^T, in two halves.

    def _first_half(self, b: Float[Array, "count size"]) -> Float[Array, "count size"]:
        roots = jnp.sqrt(jnp.abs(self.inverse_values))
        if self.blocks.size == 1:
            return roots * b
        coordinates = roots * jnp.einsum("ki,kij->kj", b, self.basis)
        return jnp.where(self.definite[:, None], self._triangular(b), coordinates)

    def _second_half(self, w: Float[Array, "count size"]) -> Float[Array, "count size"]:
        roots = jnp.sqrt(jnp.abs(self.inverse_values)) * jnp.sign(self.inverse_values)
        if self.blocks.size == 1:
            return roots * w
        combined = jnp.einsum("kij,kj->ki", self.basis, roots * w)
        by_cholesky = self._triangular(w, transpose_a=True)
        return jnp.where(self.definite[:, None], by_cholesky, combined)

    def _triangular(self, b: Float[Array, "count size"], **how: bool) -> Array:
        # In Lax's own words: `jax.scipy.linalg.cho_solve` copies the factor twice as often.
        x = triangular_solve(self.basis, b[:, :, None], left_side=True, lower=True, **how)
        return x[:, :, 0]

    def samples(self, count: int) -> Float[Array, "count n"]:
        """Vectors v = L^-T w, the entries of w being independent and standard normal."""
        return jax.vmap(lambda w: self.blocks.join(self._second_half(w)))(self._normal(count))

    def deviation(self, images: Float[Array, "count n"]) -> Scalar:
        """How far L^-1 A L^-T is from the identity, from the ``images`` A v of `samples`: the
        largest length of (L^-1 A L^-T - 1) w.

        Each eigenvalue of A that is not positive leaves of w the part along its direction, or
        more: the absolute value of a standard normal number, of each sample.
        """
        w = self._normal(len(images))
        halves = jax.vmap(lambda image: self._first_half(self.blocks.split(image)))(images)
        return jnp.max(jnp.linalg.norm(jnp.reshape(halves - w, (len(images), -1)), axis=1))

    def _normal(self, count: int) -> Float[Array, "count blocks size"]:
        shape = (count, self.blocks.count, self.blocks.size)
        return jnp.asarray(np.random.default_rng(0).normal(size=shape), self.basis.dtype)


def factorise(matrices: Float[Array, "count size size"], blocks: Blocks) -> SymmetricFactors:
    """Factors of symmetric blocks, by Cholesky where they are safely positive definite.

    What counts as zero is measured on the whole matrix, not on each block.
    """
    rounding = blocks.size * float(jnp.finfo(matrices.dtype).eps)
    diagonals = jnp.diagonal(matrices, axis1=1, axis2=2)
    if blocks.size == 1:
        basis, values = jnp.ones_like(matrices), diagonals
        definite = jnp.zeros(blocks.count, bool)
    else:
        basis, values, definite = _decompose(matrices, diagonals, rounding)
    largest = jnp.max(jnp.abs(jnp.where(definite[:, None], diagonals, values)))
    null = ~definite[:, None] & (jnp.abs(values) <= rounding * largest)
    return SymmetricFactors(
        basis=basis,
        inverse_values=jnp.where(null, 0, 1 / jnp.where(null, 1, values)),
        definite=definite,
        indefinite=jnp.any(~definite[:, None] & (values < -rounding * largest)),
        # (The smallest of all is in a block that is not safely definite, if there is one.)
        curvature=jnp.where(
            jnp.all(definite),
            jnp.nan,
            jnp.min(jnp.where(null, 0, jnp.where(definite[:, None], jnp.inf, values))),
        ),
        rank_deficiency=jnp.sum(null).astype(jnp.int32),
        blocks=blocks,
    )


def _decompose(matrices: Array, diagonals: Array, rounding: float) -> tuple[Array, Array, Array]:
    """Basis, eigenvalues (1 where they are not needed) and which blocks are definite."""
    # The transpose is the matrix itself, in the column order that LAPACK reads without a copy.
    cholesky = jax.lax.linalg.cholesky(jnp.swapaxes(matrices, 1, 2), symmetrize_input=False)
    # A pivot at rounding level beside its diagonal entry means that the sign of the smallest
    # eigenvalue is not known. (The quotient does not depend on the units of the unknowns.)
    pivots = jnp.diagonal(cholesky, axis1=1, axis2=2) ** 2
    definite = jnp.all(pivots > 10 * rounding * diagonals, axis=1)
    finite = jnp.all(jnp.isfinite(diagonals))

    def eigen(carry):
        count, _, _ = carry
        # Adding the count, 0, keeps XLA from moving the decomposition, which is the same in
        # every pass, out of the loop and so running it always.
        values, vectors = jnp.linalg.eigh(matrices + count)
        basis = jnp.where(definite[:, None, None], cholesky, vectors)
        return count + 1, basis, jnp.where(definite[:, None], 1, values)

    # A loop of at most one step rather than a cond: under vmap a cond runs both branches on
    # every lane, while a loop that no lane needs does not run.
    count = jnp.zeros((), matrices.dtype)
    _, basis, values = jax.lax.while_loop(
        lambda carry: ~jnp.all(definite) & finite & (carry[0] < 1),
        eigen,
        (count, cholesky, jnp.ones_like(diagonals)),
    )
    return basis, values, definite
