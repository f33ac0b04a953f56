"""Linear solves: least squares with clipping, and the choice of a solver, in Lineax's protocol.

This room knows nothing of optimisation. A solver is ``init`` (factorise) / ``compute`` (solve)
/ ``transpose``, so that one factorisation serves the polish, the report and the backward pass.
"""

import dataclasses
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
from jaxtyping import Array, Bool, Float, Int, Scalar

from .factors import (
    GeneralFactors,
    KKTFactors,
    KKTMatrices,
    factorise_general,
    factorise_kkt,
    if_needed,
)
from .matrix_free import largest, largest_error, sign, solve_matrix_free, solve_roughly
from .structure import Blocks, hessian_blocks
from .symmetric import SymmetricFactors, factorise

Structure = Blocks | KKTMatrices | None
"""What is known of a matrix beforehand: its diagonal blocks, or the parts of the KKT matrix."""

# A matrix this near to a positive definite one, as `SymmetricFactors.deviation` measures it, is
# taken to be so: one that is not passes for it if so many standard normal numbers are all smaller,
# with a probability of 0.38**SAMPLES = 2e-7.
SAMPLES = 16
NEAR = 0.5

# One that takes more products is not formed for `argmin`, if conjugate gradients do: from there on
# they are faster.
FORMED_AT_ONCE = 128

ROUGH = 1e-2  # the relative residual of a rough solution

REFINEMENTS = 100  # at most: the slowest contraction that is gone along with gives 15 digits


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
    hand to rounding is refined, so that the factorisation of a nearby matrix is good enough; one of
    which rounding leaves fewer than six digits (in float32 two), as it may from condition numbers
    of 1e11 (1e5) on, is reported as a failure.

    What is known of the matrix (the option ``structure`` of `init`) is used: one of diagonal
    `structure.Blocks` is formed and factorised block by block, as long as its blocks hold no more
    than ``dense_limit**2`` numbers (one block where all are alike); the KKT matrix of a constrained
    problem comes in parts.

    Beyond, conjugate gradients on products with a positive semidefinite operator, or GMRES, whose
    solution is refined: a solve that did not converge, in its residual or in its corrections, is
    reported as a failure. On a CPU `argmin` (not `solve`, whose report needs factors) tries
    conjugate gradients where the matrix takes more than 128 products, and forms it where they fail.

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
        if not self.forms(blocks):
            return AutoState(operator, None)
        if lx.is_positive_semidefinite(operator):
            matrices = hessian_blocks(operator.mv, blocks, dtype, options.get("inside"))
            return AutoState(operator, factorise(matrices, blocks))
        return AutoState(operator, factorise_general(operator.as_matrix()))

    def forms(self, blocks: Blocks) -> bool:
        """Whether a matrix of these blocks is small enough to be formed."""
        return blocks.distinct * blocks.size**2 <= self.dense_limit**2

    def compute(self, state: "AutoState", vector: Array, options: dict[str, Any]):
        del options
        if state.factors is None:
            return *self._by_products(state, vector), {}
        x, accurate = _refined(state.operator, state.factors, vector)
        return x, _verdict(accurate), {}

    @staticmethod
    def _by_products(state: "AutoState", vector: Array) -> tuple[Array, lx.RESULTS]:
        operator = state.operator
        solution = solve_matrix_free(operator, jnp.where(state.singular, 0, vector))
        if state.may_be_formed:
            blocks = Blocks((vector.size,))

            def by_factors(zero):
                matrix = hessian_blocks(operator.mv, blocks, vector.dtype, inside=zero)
                return _refined(operator, factorise(matrix, blocks), vector)

            _, converged = solution
            needed = ~converged | state.singular
            solution = if_needed(needed, by_factors, solution, vector.dtype)
        x, accurate = solution
        return x, _verdict(accurate)

    def transpose(self, state: "AutoState", options: dict[str, Any]):
        if lx.is_symmetric(state.operator):
            return state, options
        factors = state.factors
        transposed = factors.T if isinstance(factors, GeneralFactors) else factors
        return dataclasses.replace(state, operator=state.operator.T, factors=transposed), options

    def conj(self, state: "AutoState", options: dict[str, Any]):
        return state, options

    def assume_full_rank(self) -> bool:
        return False

    def spectrum(self, state: "AutoState") -> Spectrum:
        """Rank and sign from the factorisation; on the matrix-free path, the sign by conjugate
        gradients."""
        factors = state.factors
        if factors is not None:
            assert factors.curvature is not None
            return Spectrum(factors.rank_deficiency, factors.indefinite, factors.curvature)
        unknown = unknown_spectrum(state.operator.out_structure().dtype)
        if not lx.is_positive_semidefinite(state.operator):
            return unknown
        found = sign(state.operator)
        rank_deficiency = jnp.where(found.definite, 0, unknown.rank_deficiency)
        return Spectrum(rank_deficiency, found.indefinite, found.bound)


class AutoState(eqx.Module):
    """The operator that a solution has to satisfy, and factors of it or of one close to it.

    Without factors, its matrix `may_be_formed` where conjugate gradients do not converge, or where
    it is known to be singular: they would not find the solution of smallest norm.
    """

    operator: lx.AbstractLinearOperator
    factors: "Factors | None"
    may_be_formed: bool = eqx.field(static=True, default=False)
    singular: Bool[Array, ""] | bool = False


Factors = SymmetricFactors | GeneralFactors | KKTFactors


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
    inside: Array | None = None,
) -> Any:
    """A solver's state for ``operator``, of which ``structure`` is known; ``inside`` is that of
    `structure.hessian_blocks`."""
    known = {"structure": structure, "inside": inside}
    return linear_solver.init(operator, known if isinstance(linear_solver, Auto) else {})


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


def rough_solution(
    operator: lx.AbstractLinearOperator, b: Float[Array, " n"]
) -> Float[Array, " n"]:
    """One with a hundredth of the residual left: enough for a step of an inexact Newton method."""
    return solve_roughly(operator, b, ROUGH, min(b.size, 10_000))


def has_factors(linear_solver: lx.AbstractLinearSolver, blocks: Blocks | None, size: int) -> bool:
    """Whether the solver makes factors of a matrix of that size, rather than products with it."""
    return not isinstance(linear_solver, Auto) or linear_solver.forms(blocks or Blocks((size,)))


def can_do_without(linear_solver: lx.AbstractLinearSolver, blocks: Blocks) -> bool:
    """Whether conjugate gradients are worth a try before such a matrix is formed: on a CPU; a GPU
    would rather have one large product than many small ones."""
    if not isinstance(linear_solver, Auto) or jax.default_backend() != "cpu":
        return False
    size = blocks.count * blocks.size
    return blocks.products > FORMED_AT_ONCE and linear_solver.forms(Blocks((size,)))


def kept_factors(linear_solver: lx.AbstractLinearSolver, state: Any) -> Any:
    """The part of a state that consists of arrays alone and is worth keeping; None if none is."""
    if isinstance(linear_solver, Auto):
        return state.factors
    return state if isinstance(linear_solver, SVD) else None


def state_from_factors(
    linear_solver: lx.AbstractLinearSolver,
    operator: lx.AbstractLinearOperator,
    factors: Any,
    singular: Bool[Array, ""] | bool = False,
) -> Any:
    """A solver's state for ``operator``, which may be ``singular``, from factors of a nearby one;
    None if it needs some and there are none."""
    if isinstance(linear_solver, Auto):
        small = linear_solver.forms(Blocks((operator.in_size(),)))
        may_be_formed = factors is None and small and lx.is_positive_semidefinite(operator)
        return AutoState(operator, factors, may_be_formed, may_be_formed & singular)
    return factors


def comparison_vectors(state: Any, generic: Float[Array, " n"]) -> Float[Array, "count n"]:
    """The vectors whose images under another operator `is_close` needs: some that suit the factors
    in ``state``, or a ``generic`` one."""
    if isinstance(state, AutoState) and isinstance(state.factors, SymmetricFactors):
        return state.factors.samples(SAMPLES)
    return generic[None]


def is_close(
    operator: lx.AbstractLinearOperator,
    state: Any,
    vectors: Float[Array, "count n"],
    images: Float[Array, "count n"],
) -> Bool[Array, ""]:
    """Whether what the ``state`` for ``operator`` says of rank and sign holds of another operator,
    too, whose ``images`` of the `comparison_vectors` are given."""
    if isinstance(state, AutoState) and isinstance(state.factors, SymmetricFactors):
        return state.factors.deviation(images) <= NEAR
    change = jnp.max(jnp.abs(images[0] - operator.mv(vectors[0])))
    return change <= jnp.finfo(images.dtype).eps ** 0.5 * jnp.max(jnp.abs(images))


def _refined(
    operator: lx.AbstractLinearOperator, factors: Factors, b: Float[Array, " n"]
) -> tuple[Float[Array, " n"], Bool[Array, ""]]:
    """Iterative refinement with factors of a nearby matrix, as long as it contracts.

    Returns the solution and whether the last correction is small beside it. (In the least-squares
    case the correction, unlike the residual, has no part in the null space.) With factors of K, the
    iteration contracts in the norm of K, sqrt(d'K d) = sqrt(d'r), whatever the units of x are;
    where that is none, lengths are compared by twos, as a single one may grow.
    """
    eps = jnp.finfo(b.dtype).eps
    # Squares of what is small enough vanish: lengths are largest entries, of a b that has length 1.
    length = largest(b)
    unit = jnp.where(length > 0, length, 1)
    b = b / unit

    def corrected(residual):
        d = factors.solve(residual)
        by_energy = isinstance(factors, SymmetricFactors)
        return d, jnp.sqrt(jnp.abs(d @ residual)) if by_energy else largest(d)

    def keeps_contracting(at: _Refined):
        worthwhile = largest(at.correction) > 4 * eps * largest(at.x)
        return (at.count < REFINEMENTS) & (at.length < 0.5 * at.last_but_one) & worthwhile

    def refine(at: _Refined) -> _Refined:
        x = at.x + at.correction
        return _Refined(x, *corrected(b - operator.mv(x)), at.length, at.last, at.count + 1)

    # XLA may compute b anew wherever it is used outside of a loop, each time with another rounding.
    # Where b is zero but for that, d'b means nothing: the first length is taken to be a long one.
    infinite, long = (jnp.array(length, b.dtype) for length in (jnp.inf, jnp.finfo(b.dtype).max))
    start = _Refined(jnp.zeros_like(b), factors.solve(b), long, infinite, infinite, jnp.array(0))
    end = jax.lax.while_loop(keeps_contracting, refine, start)
    accurate = largest(end.correction) <= largest_error(b.dtype) * largest(end.x)
    return unit * end.x, accurate


class _Refined(eqx.Module):
    x: Float[Array, " n"]
    correction: Float[Array, " n"]
    length: Scalar  # of the correction
    last: Scalar
    last_but_one: Scalar
    count: Int[Array, ""]


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


def _verdict(accurate: Bool[Array, ""]) -> lx.RESULTS:
    """Lineax's word for whether a solution can be used."""
    return lx.RESULTS.where(accurate, lx.RESULTS.successful, lx.RESULTS.max_steps_reached)
