"""Linear solves: least squares with clipping, and the choice of a solver, in Lineax's protocol.

This room knows nothing of optimisation. A solver is ``init`` (factorise) / ``compute`` (solve)
/ ``transpose``, so that one factorisation serves the polish, the report and the backward pass.
"""

from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
from jax.lax.linalg import triangular_solve
from jaxtyping import Array, Bool, Float, Int, Scalar

from .factors import GeneralFactors, KKTFactors, KKTMatrices, factorise_general, factorise_kkt
from .matrix_free import smallest_ritz_value, solve_matrix_free, verdict
from .structure import Blocks, hessian_blocks

Structure = Blocks | KKTMatrices | None
"""What is known of a matrix beforehand: its diagonal blocks, or the parts of the KKT matrix."""


class Spectrum(eqx.Module):
    """What a factorisation tells of a symmetric matrix.

    `rank_deficiency` counts the directions treated as null (-1: not known); `indefinite` says
    that some eigenvalue is negative beyond rounding; `curvature` is the smallest eigenvalue where
    that was needed to tell, else NaN. (Of a KKT matrix: of the Hessian on feasible directions.)
    """

    rank_deficiency: Int[Array, ""]
    indefinite: Bool[Array, ""]
    curvature: Scalar


def solve_ls(
    A: Float[Array, "m n"], b: Float[Array, " m"], rtol: float = 1e-6, atol: float = 1e-6
) -> Float[Array, " n"]:
    """The least-squares solution of ``A x = b`` of smallest norm.

    Singular values up to ``max(rtol * s_1, atol)`` count as zero, s_1 being the largest.

    Args:
        A: a matrix of shape (m, n), of any rank.
        b: a vector of shape (m,), or a matrix of shape (m, k) of right-hand sides.
        rtol: relative clip, in [0, 1).
        atol: absolute clip, in the units of A.

    Returns:
        x of shape (n,), or (n, k).

    Raises:
        ValueError: shapes that do not fit, or a negative clip.

    Differentiable in A and b where no singular value is repeated or crosses the clip (the
    derivative is that of `jax.numpy.linalg.svd`); not in ``rtol`` and ``atol``.
    """
    A, b = jnp.asarray(A), jnp.asarray(b)
    if A.ndim != 2 or b.ndim not in (1, 2) or b.shape[0] != A.shape[0]:
        raise ValueError(
            "solve_ls needs A of shape (m, n) and b of shape (m,) or (m, k); "
            f"found A {A.shape}, b {b.shape}."
        )
    _check_clips(rtol, atol)
    return _pseudo_inverse_product(jnp.linalg.svd(A, full_matrices=False), b, rtol, atol)


class SVD(lx.AbstractLinearSolver):
    """Least squares of minimum norm by a singular value decomposition, with the reference's clip.

    Singular values up to ``max(rtol * s_1, atol)`` are dropped: at the default 1e-6 that loses
    directions which a condition number of 1e8 still needs, so each shows in
    ``Report.rank_deficiency``.

    Args:
        rtol: relative clip.
        atol: absolute clip, in the units of the Hessian.

    Raises:
        ValueError: a negative clip.
    """

    rtol: float = 1e-6
    atol: float = 1e-6

    def __check_init__(self):
        _check_clips(self.rtol, self.atol)

    def init(self, operator: lx.AbstractLinearOperator, options: dict[str, Any]) -> "SVDState":
        del options
        return SVDState(*jnp.linalg.svd(operator.as_matrix(), full_matrices=False))

    def compute(self, state: "SVDState", vector: Array, options: dict[str, Any]):
        del options
        x = _pseudo_inverse_product((state.u, state.s, state.vt), vector, self.rtol, self.atol)
        return x, lx.RESULTS.successful, {}

    def transpose(self, state: "SVDState", options: dict[str, Any]):
        return SVDState(state.vt.T, state.s, state.u.T), options

    def conj(self, state: "SVDState", options: dict[str, Any]):
        return state, options

    def assume_full_rank(self) -> bool:
        return False

    def spectrum(self, state: "SVDState") -> Spectrum:
        """Rank and sign of a symmetric matrix from its decomposition."""
        clip = jnp.maximum(self.rtol * state.s[0], self.atol)
        matrix = (state.u * state.s[None, :]) @ state.vt
        return Spectrum(
            jnp.sum(state.s <= clip).astype(jnp.int32),
            _is_indefinite(matrix),
            jnp.linalg.eigvalsh(matrix)[0],
        )


class SVDState(eqx.Module):
    """A = U diag(s) V^T, thin."""

    u: Float[Array, "m k"]
    s: Float[Array, " k"]
    vt: Float[Array, "k n"]


class Auto(lx.AbstractLinearSolver):
    """The default solver: dense where that is cheap, else matrix-free.

    Up to `dense_limit` unknowns the matrix is formed and factorised. A positive semidefinite one
    by Cholesky where it is positive definite to working precision; otherwise by its eigenvalues,
    of which those up to ``n * eps * |lambda|_max`` count as zero (least squares of minimum norm).
    Any other by LU, or by its singular values. A solution that does not satisfy the operator at
    hand to rounding is refined, so that the factorisation of a nearby matrix is good enough.

    What is known of the matrix (the option ``structure`` of `init`) is used: one of diagonal
    `structure.Blocks` is formed and factorised block by block, as long as its blocks hold no more
    than ``dense_limit**2`` numbers; the KKT matrix of a constrained problem comes in parts.

    Beyond, conjugate gradients on products with a positive semidefinite operator, or GMRES, whose
    solution is refined once: a solve that did not converge, in its residual or in that correction,
    is reported as a failure.

    Args:
        dense_limit: the largest number of unknowns at which the matrix is formed.
    """

    dense_limit: int = 1000

    def init(self, operator: lx.AbstractLinearOperator, options: dict[str, Any]) -> "AutoState":
        operator = lx.linearise(operator)
        dtype = operator.out_structure().dtype
        known = options.get("structure")
        if isinstance(known, KKTMatrices):
            return AutoState(operator, factorise_kkt(known))
        blocks = known or Blocks((operator.in_size(),))
        if blocks.count * blocks.size**2 > self.dense_limit**2:
            return AutoState(operator, None)
        if lx.is_positive_semidefinite(operator):
            matrices = hessian_blocks(operator.mv, blocks, dtype)
            return AutoState(operator, factorise(matrices, blocks))
        return AutoState(operator, factorise_general(operator.as_matrix()))

    def compute(self, state: "AutoState", vector: Array, options: dict[str, Any]):
        del options
        if state.factors is None:
            return solve_matrix_free(state.operator, vector)
        x, accurate = _refined(state.operator, state.factors, vector)
        return x, verdict(accurate), {}

    def transpose(self, state: "AutoState", options: dict[str, Any]):
        if lx.is_symmetric(state.operator):
            return state, options
        factors = state.factors
        transposed = factors.T if isinstance(factors, GeneralFactors) else factors
        return AutoState(state.operator.T, transposed), options

    def conj(self, state: "AutoState", options: dict[str, Any]):
        return state, options

    def assume_full_rank(self) -> bool:
        return False

    def spectrum(self, state: "AutoState") -> Spectrum:
        """Rank and sign from the factorisation; on the matrix-free path, the sign by Lanczos."""
        factors = state.factors
        if factors is not None:
            return Spectrum(factors.rank_deficiency, factors.indefinite, factors.curvature)
        unknown = unknown_spectrum(state.operator.out_structure().dtype)
        if not lx.is_positive_semidefinite(state.operator):
            return unknown
        smallest, rounding = smallest_ritz_value(state.operator)
        return Spectrum(unknown.rank_deficiency, smallest < -rounding, smallest)


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
        b = self.blocks.split(b)
        if self.blocks.size == 1:
            return self.blocks.join(self.inverse_values * b)
        # In Lax's own words: `jax.scipy.linalg.cho_solve` copies the factor twice as often.
        lower = partial(triangular_solve, self.basis, left_side=True, lower=True)
        by_cholesky = lower(lower(b[:, :, None]), transpose_a=True)[:, :, 0]
        coordinates = jnp.einsum("ki,kij->kj", b, self.basis)
        by_eigenvalues = jnp.einsum("kij,kj->ki", self.basis, self.inverse_values * coordinates)
        return self.blocks.join(jnp.where(self.definite[:, None], by_cholesky, by_eigenvalues))


class AutoState(eqx.Module):
    """The operator that a solution has to satisfy, and factors of it or of one close to it."""

    operator: lx.AbstractLinearOperator
    factors: "Factors | None"


Factors = SymmetricFactors | GeneralFactors | KKTFactors


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


def spectrum_at(
    linear_solver: lx.AbstractLinearSolver,
    operator: lx.AbstractLinearOperator,
    state: Any,
    structure: Structure,
) -> Spectrum:
    """Rank and sign of ``operator``: from the solver's factors, or from a look of our own."""
    if isinstance(linear_solver, Auto):
        return linear_solver.spectrum(state)
    if isinstance(linear_solver, SVD) and lx.is_positive_semidefinite(operator):
        return linear_solver.spectrum(state)
    own = Auto().spectrum(Auto().init(operator, {"structure": structure}))
    if isinstance(linear_solver, SVD):
        # The sign that matters is that on the feasible directions, or there is none.
        rank_deficiency = linear_solver.spectrum(state).rank_deficiency
        return Spectrum(rank_deficiency, own.indefinite, own.curvature)
    return own


def start_state(
    linear_solver: lx.AbstractLinearSolver,
    operator: lx.AbstractLinearOperator,
    structure: Structure,
) -> Any:
    """A solver's state for ``operator``, of which ``structure`` is known."""
    return linear_solver.init(
        operator, {"structure": structure} if isinstance(linear_solver, Auto) else {}
    )


def unknown_spectrum(dtype: Any) -> Spectrum:
    """Nothing was looked at."""
    return Spectrum(jnp.array(-1, jnp.int32), jnp.array(False), jnp.array(jnp.nan, dtype))


def apply_factors(linear_solver: lx.AbstractLinearSolver, state: Any, b: Array) -> Array:
    """The plain product of b with the inverse that a solver's state holds, unrefined."""
    if isinstance(state, AutoState) and state.factors is not None:
        return state.factors.solve(b)
    return linear_solver.compute(state, b, {})[0]


def apply_kept_factors(linear_solver: lx.AbstractLinearSolver, factors: Any, b: Array) -> Array:
    """The same from what `kept_factors` returned."""
    if isinstance(linear_solver, Auto):
        return factors.solve(b)
    return linear_solver.compute(factors, b, {})[0]


def kept_factors(linear_solver: lx.AbstractLinearSolver, state: Any) -> Any:
    """The part of a state that consists of arrays alone and is worth keeping; None if none is."""
    if isinstance(linear_solver, Auto):
        return state.factors
    return state if isinstance(linear_solver, SVD) else None


def state_from_factors(
    linear_solver: lx.AbstractLinearSolver, operator: lx.AbstractLinearOperator, factors: Any
) -> Any:
    """A solver's state for ``operator`` from factors of a nearby one; None if there are none."""
    if isinstance(linear_solver, Auto) and factors is not None:
        return AutoState(operator, factors)
    return factors


def _refined(
    operator: lx.AbstractLinearOperator, factors: Factors, b: Float[Array, " n"]
) -> tuple[Float[Array, " n"], Bool[Array, ""]]:
    """Iterative refinement with factors of a nearby matrix, as long as it contracts.

    Returns the solution and whether the last correction is small beside it. (In the least-squares
    case the correction, unlike the residual, has no part in the null space.)
    """
    eps = jnp.finfo(b.dtype).eps

    def correction(x):
        return factors.solve(b - operator.mv(x))

    def keeps_contracting(carry):
        x, d, size, k = carry
        length = jnp.linalg.norm(d)
        return (k < 20) & (length < 0.5 * size) & (length > 4 * eps * jnp.linalg.norm(x))

    def refine(carry):
        x, d, _, k = carry
        x = x + d
        return x, correction(x), jnp.linalg.norm(d), k + 1

    x = factors.solve(b)
    start = (x, correction(x), jnp.linalg.norm(x), 0)
    x, d, *_ = jax.lax.while_loop(keeps_contracting, refine, start)
    return x, jnp.linalg.norm(d) <= eps**0.25 * jnp.linalg.norm(x)


def _pseudo_inverse_product(svd, b: Array, rtol: float, atol: float) -> Array:
    u, s, vt = svd
    kept = s > jnp.maximum(rtol * s[0], atol)
    inverse = jnp.where(kept, 1 / jnp.where(kept, s, 1), 0)
    coordinates = u.T @ b
    return vt.T @ (jnp.reshape(inverse, (-1,) + (1,) * (b.ndim - 1)) * coordinates)


def _is_indefinite(matrix: Float[Array, "n n"]) -> Bool[Array, ""]:
    """Whether an eigenvalue is negative beyond rounding: a shift by rounding must mend Cholesky."""
    size = jnp.linalg.norm(matrix)
    info = jnp.finfo(matrix.dtype)
    shift = jnp.maximum(10 * matrix.shape[0] * info.eps * size, info.tiny)
    shifted = matrix + shift * jnp.eye(matrix.shape[0], dtype=matrix.dtype)
    return jnp.isfinite(size) & ~jnp.all(jnp.isfinite(jnp.linalg.cholesky(shifted)))


def _check_clips(rtol: float, atol: float) -> None:
    for name, clip in (("rtol", rtol), ("atol", atol)):
        if not clip >= 0:
            raise ValueError(f"{name} must not be negative; found {clip!r}.")
