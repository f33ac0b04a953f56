"""Factors of a symmetric matrix of diagonal blocks, most of which is positive definite."""

from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Scalar

from .equilibration import basis_in_old_units, sizes
from .structure import Blocks
from .triangular import inverse_of_lower


class SymmetricFactors(eqx.Module):
    """The inverse H' diag(signs) H of a block diagonal symmetric matrix: of each block, H is the
    inverse of the Cholesky factor where that is definite, else made of eigenvectors (see `_eigen`).

    Solves are two products without a branch, so that a batch may mix both kinds. One H serves all
    blocks that are alike.
    """

    half: Float[Array, "distinct size size"]  # H; zero in the rows of eigenvalues that are zero
    signs: Float[Array, "distinct size"]
    indefinite: Bool[Array, ""]
    curvature: Scalar | None  # the smallest eigenvalue if some were computed; NaN where definite
    rank_deficiency: Int[Array, ""]
    diagonal: Float[Array, "distinct size"]  # of the matrix
    blocks: Blocks = eqx.field(static=True)

    @property
    def for_solves(self) -> "SymmetricFactors":
        """Without what `solve` does not need."""
        return eqx.tree_at(lambda f: f.curvature, self, None)

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

    What counts as zero does not depend on the units of the unknowns: it is measured where the
    diagonal is one. But negative eigenvalues count only beside the whole matrix: smaller ones may
    be what rounding left of terms that cancel.
    """
    rounding = blocks.size * float(jnp.finfo(matrices.dtype).eps)
    diagonals = jnp.diagonal(matrices, axis1=1, axis2=2)
    if blocks.size == 1:
        definite = diagonals[:, 0] > 0
        basis = jax.lax.rsqrt(jnp.where(diagonals == 0, 1, jnp.abs(diagonals)))[:, :, None]
        values, scaled = diagonals, jnp.sign(diagonals)
    else:
        basis, values, scaled, definite = _decompose(matrices, diagonals, rounding)
    largest = jnp.max(jnp.abs(jnp.where(definite[:, None], diagonals, values)))
    indefinite = jnp.any(~definite[:, None] & (values < -rounding * largest))
    beyond_rounding = jnp.where(jnp.abs(values) <= rounding * largest, 0, values)
    null = _is_null(scaled, indefinite, rounding)
    roots = jnp.where(null, 0, jax.lax.rsqrt(jnp.where(null, 1, jnp.abs(scaled))))
    return SymmetricFactors(
        half=roots[:, :, None] * basis,
        signs=jnp.sign(scaled),
        indefinite=indefinite,
        # (The smallest of all is in a block that is not safely definite, if there is one.)
        curvature=jnp.where(
            jnp.all(definite),
            jnp.nan,
            jnp.min(jnp.where(definite[:, None], jnp.inf, beyond_rounding)),
        ),
        rank_deficiency=(jnp.sum(null) * (blocks.count // blocks.distinct)).astype(jnp.int32),
        diagonal=diagonals,
        blocks=blocks,
    )


def _is_null(
    values: Float[Array, "distinct size"], indefinite: Bool[Array, "..."], rounding: float
) -> Bool[Array, "distinct size"]:
    """Of the eigenvalues of scaled blocks: which count as zero, as negative ones do where none of
    them is more than rounding."""
    size = jnp.max(jnp.abs(values), axis=1, keepdims=True)
    return jnp.where(indefinite, jnp.abs(values), values) <= rounding * size


def _decompose(
    matrices: Array, diagonals: Array, rounding: float
) -> tuple[Array, Array, Array, Array]:
    """Of each block: the inverse of its Cholesky factor and ones, twice, where it is definite, else
    the transposed eigenvectors of the scaled block, in the units of the unknowns, its eigenvalues
    and, last, those of the scaled block; and which are definite."""
    # The transpose is the matrix itself, in the column order that LAPACK reads without a copy.
    cholesky = jax.lax.linalg.cholesky(jnp.swapaxes(matrices, 1, 2), symmetrize_input=False)
    # A pivot at rounding level beside its diagonal entry means that the sign of the smallest
    # eigenvalue is not known. (The quotient does not depend on the units of the unknowns.)
    pivots = jnp.diagonal(cholesky, axis1=1, axis2=2) ** 2
    definite = jnp.all(pivots > 10 * rounding * diagonals, axis=1)
    finite = jnp.all(jnp.isfinite(diagonals))
    inverse = jax.vmap(inverse_of_lower)(cholesky)

    def eigen(carry):
        count, *_ = carry
        # Adding the count, 0, keeps XLA from moving the decomposition, which is the same in
        # every pass, out of the loop and so running it always.
        basis, values, scaled = jax.vmap(partial(_eigen, rounding=rounding))(matrices + count)
        return (
            count + 1,
            jnp.where(definite[:, None, None], inverse, basis),
            jnp.where(definite[:, None], 1, values),
            jnp.where(definite[:, None], 1, scaled),
        )

    # A loop of at most one step rather than a cond: under vmap a cond runs both branches on
    # every lane, while a loop that no lane needs does not run. It starts from the inverse, and so
    # calls LAPACK after that, not beside it (see triangular.py).
    count, ones = jnp.zeros((), matrices.dtype), jnp.ones_like(diagonals)
    _, basis, values, scaled = jax.lax.while_loop(
        lambda carry: ~jnp.all(definite) & finite & (carry[0] < 1),
        eigen,
        (count, inverse, ones, ones),
    )
    return basis, values, scaled, definite


def _eigen(
    matrix: Float[Array, "n n"], rounding: float
) -> tuple[Float[Array, "n n"], Float[Array, " n"], Float[Array, " n"]]:
    """The eigenvalues of a block, and those of D A D, whose diagonal is one, with the basis of
    `basis_in_old_units`. One with negative eigenvalues is left in its units."""
    values = jnp.linalg.eigvalsh(matrix)
    indefinite = values[0] < -rounding * jnp.max(jnp.abs(values))
    units = jnp.where(indefinite, 1, jax.lax.rsqrt(sizes(matrix)))
    scaled, vectors = jnp.linalg.eigh(units[:, None] * matrix * units[None, :])
    # In ascending order those that count as zero come first, unless there are negative ones.
    null = _is_null(scaled[None], indefinite, rounding)[0] & ~indefinite
    return basis_in_old_units(vectors, units, null), values, scaled
