"""Dense factorisations: of general square matrices, and of those of the KKT conditions.

Each solves without a branch, so that a batch may mix regular and singular lanes: the expensive
decomposition that a singular matrix needs runs in a loop of at most one step, which a batch skips
when no lane needs it (under `vmap` a `cond` would run both branches on every lane).
"""

import dataclasses
from collections.abc import Callable
from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.lax.linalg import cholesky
from jax.scipy.linalg import lu_solve
from jaxtyping import Array, Bool, Float, Int, PyTree

from .equilibration import basis_in_old_units, sizes
from .triangular import inverse_of_lower, times


class GeneralFactors(eqx.Module):
    """A square matrix K by LU; by its pseudo-inverse where it is singular to working precision.

    The factors are those of R K C, R and C being diagonal matrices that give rows and columns
    the largest entry one: what counts as singular must not depend on units.
    """

    matrix: Float[Array, "n n"]  # the LU factors, or the pseudo-inverse of K
    permutation: Int[Array, " n"]
    row: Float[Array, " n"]  # the diagonal of R
    column: Float[Array, " n"]
    regular: Bool[Array, ""]
    rank_deficiency: Int[Array, ""]
    transposed: bool = eqx.field(static=True, default=False)

    @property
    def indefinite(self) -> Bool[Array, ""]:
        """Of a matrix that is not symmetric there is nothing to tell."""
        return jnp.array(False)

    @property
    def curvature(self) -> Float[Array, ""]:
        return jnp.array(jnp.nan, self.matrix.dtype)

    @property
    def for_solves(self) -> "GeneralFactors":
        return self

    @property
    def T(self) -> "GeneralFactors":
        return dataclasses.replace(self, transposed=not self.transposed)

    def solve(self, b: Float[Array, " n"]) -> Float[Array, " n"]:
        before, after = self.row, self.column
        if self.transposed:
            before, after = after, before
        factors = self.matrix, self.permutation
        by_lu = after * lu_solve(factors, before * b, trans=int(self.transposed))
        inverse = self.matrix.T if self.transposed else self.matrix
        return jnp.where(self.regular, by_lu, inverse @ b)


def factorise_general(matrix: Float[Array, "n n"]) -> GeneralFactors:
    """Factors of a square matrix. Singular values up to ``n * eps * s_1`` count as zero."""
    rounding = matrix.shape[0] * float(jnp.finfo(matrix.dtype).eps)
    row = _inverse_of_positive(jnp.max(jnp.abs(matrix), axis=1))
    column = _inverse_of_positive(jnp.max(jnp.abs(row[:, None] * matrix), axis=0))
    lu, permutation = jax.scipy.linalg.lu_factor(row[:, None] * matrix * column[None, :])
    pivots = jnp.abs(jnp.diagonal(lu))
    regular = jnp.min(pivots) > 10 * rounding * jnp.max(pivots)
    finite = jnp.all(jnp.isfinite(matrix))

    def pseudo_inverse(zero):
        u, s, vt = jnp.linalg.svd(matrix + zero)
        null = s <= rounding * s[0]
        inverse = jnp.where(null, 0, 1 / jnp.where(null, 1, s))
        return (vt.T * inverse[None, :]) @ u.T, jnp.sum(null).astype(jnp.int32)

    found = if_needed(
        ~regular & finite, pseudo_inverse, (lu, jnp.array(0, jnp.int32)), matrix.dtype
    )
    return GeneralFactors(found[0], permutation, row, column, regular, found[1])


def _inverse_of_positive(x: Array) -> Array:
    """1 / x, and 1 where x is zero."""
    return 1 / jnp.where(x > 0, x, 1)


class KKTMatrices(eqx.Module):
    """The parts of the matrix of the KKT conditions, n unknowns and r rows of constraints."""

    hessian: Float[Array, "n n"]  # of the Lagrangian
    stiffness: Float[Array, ""]  # a force over a length, of the size of a Hessian
    jacobian: Float[Array, "r n"]  # of equalities and inequalities
    active: Bool[Array, " r"]
    fixed: Bool[Array, " n"]  # variables held at a bound
    bounded: bool = eqx.field(static=True)


class KKTFactors(eqx.Module):
    """The inverse of the matrix K of the KKT conditions with given active constraints.

    The variables that are held are eliminated, which leaves [[H, A^T], [A, 0]] in the others, A
    being the active rows. Adding multiples of the constraints to the first equation leaves the
    solution as it is and H + rho A^T A positive definite, for a rho that is large enough, exactly
    where H is on the null space of A (Nocedal & Wright, Numerical Optimization, 2006, theorem
    17.5): then both that and its Schur complement have Cholesky factors. Where that fails, or the
    active rows depend on each other, eigenvalues, of which those at rounding level count as zero.
    """

    free: Float[Array, " n"]
    active: Float[Array, " r"]
    fixed_rows: Float[Array, "r n"] | None  # the active rows at the variables that are held
    hessian: Float[Array, "n n"] | None  # the whole
    rows: Float[Array, "r n"]  # the active rows of the free variables, of unit length
    lengths: Float[Array, " r"]
    size: Float[Array, ""]  # of the Hessian
    inverse: "KKTInverse"
    indefinite: Bool[Array, ""]  # on the null space of the active rows
    bounded: bool = eqx.field(static=True)

    def solve(self, b: Float[Array, " k"]) -> Float[Array, " k"]:
        n, r = self.free.size, self.active.size
        top, middle, bottom = b[:n], b[n : n + r], b[n + r :]
        if not self.bounded:
            y, scaled = self.inverse.solve(top, self.active * middle / self.lengths, self.size)
            return jnp.concatenate([y, self._multipliers(scaled, middle)])
        assert self.hessian is not None and self.fixed_rows is not None
        held = (1 - self.free) * bottom
        # The equations that are left, with rows of unit length.
        of_free = self.free * (top - self.hessian @ held)
        of_rows = self.active * (middle - self.fixed_rows @ held) / self.lengths
        y, scaled = self.inverse.solve(of_free, of_rows, self.size)
        y = self.free * y + held
        multipliers = self._multipliers(scaled, middle)
        pull = self.hessian @ y + (self.active * multipliers) @ (
            self.lengths[:, None] * self.rows + self.fixed_rows
        )
        of_bounds = jnp.where(self.free > 0, -bottom, top - pull)
        return jnp.concatenate([y, multipliers, of_bounds])

    @property
    def for_solves(self) -> "KKTFactors":
        """Without what `solve` does not need."""
        factors = eqx.tree_at(lambda f: f.inverse.curvature, self, None)
        if self.bounded:
            return factors
        return eqx.tree_at(lambda f: (f.hessian, f.fixed_rows), factors, (None, None))

    @property
    def curvature(self) -> Float[Array, ""]:
        assert self.inverse.curvature is not None
        return self.inverse.curvature

    @property
    def rank_deficiency(self) -> Int[Array, ""]:
        return self.inverse.rank_deficiency

    def inverse_without(
        self, uncertainty: Float[Array, ""], zero: Float[Array, ""]
    ) -> "KKTInverse":
        """The inverse where the Hessian is known up to this only, so that K may well be singular:
        eigenvalues that may be zero count as zero, and at least the smallest. ``zero`` is that of
        `if_needed`."""
        assert self.hessian is not None
        projected = self.free[:, None] * self.hessian * self.free[None, :] + zero
        whole = _bordered(projected, self.free, self.rows + zero, self.active, self.size)
        values, vectors = jnp.linalg.eigh(whole)
        null = jnp.abs(values) <= jnp.maximum(uncertainty, jnp.min(jnp.abs(values)))
        return _pseudo_inverse(
            self.free.size, values, vectors.T, null, jnp.zeros_like(self.curvature)
        )

    def _multipliers(self, scaled: Float[Array, " r"], b: Float[Array, " r"]) -> Float[Array, " r"]:
        """From those of rows of unit length; an inactive one is its right-hand side, negated."""
        return jnp.where(self.active > 0, scaled / self.lengths, -b)


class KKTInverse(eqx.Module):
    """L^-1, where L L^T = H + rho A^T A, L^-1 A^T, and T^-1, where T T^T is the Schur complement;
    where not ``regular``, the blocks of the pseudo-inverse of the bordered matrix."""

    primal: Float[Array, "n n"]
    across: Float[Array, "n r"]
    dual: Float[Array, "r r"]
    regular: Bool[Array, ""]
    curvature: Float[Array, ""] | None  # on the null space of the rows, if computed; else NaN
    rank_deficiency: Int[Array, ""]

    def solve(
        self, a: Float[Array, " n"], b: Float[Array, " r"], rho: Float[Array, ""]
    ) -> tuple[Float[Array, " n"], Float[Array, " r"]]:
        """y and the multipliers for the right-hand sides ``a`` and ``b`` of the two rows of the
        matrix. The bordered matrix has its constraints times ``rho``, too."""
        # Both kinds by the same products. Of the regular kind, the multipliers of the problem with
        # rho A^T A added to its Hessian are those of the problem itself less rho b.
        regular, scaled = self.regular, rho * b
        forward = times(self.primal, a)
        onto_rows = times(jnp.where(regular, forward, a), self.across)
        seen = times(self.dual, jnp.where(regular, onto_rows - b, scaled))
        multipliers = times(self.dual.T, seen)
        y = forward + times(self.across, jnp.where(regular, -multipliers, scaled))
        return (
            jnp.where(regular, times(self.primal.T, y), y),
            jnp.where(regular, multipliers + scaled, rho * (onto_rows + seen)),
        )


def factorise_kkt(parts: KKTMatrices) -> KKTFactors:
    """Factors of K, its rank and whether the Hessian is indefinite on the feasible directions."""
    dtype = parts.hessian.dtype
    n, eps = parts.jacobian.shape[1], float(jnp.finfo(dtype).eps)
    free = 1 - parts.fixed.astype(dtype)
    active = parts.active.astype(dtype)
    projected = free[:, None] * parts.hessian * free[None, :]
    largest = jnp.max(jnp.abs(projected))
    size = jnp.where(largest > 0, largest, parts.stiffness)
    rows = active[:, None] * parts.jacobian
    lengths = jnp.linalg.norm(rows * free[None, :], axis=1)
    # A row without any free variable constrains nothing that is left.
    constraining = lengths > 10 * n * eps * jnp.linalg.norm(rows, axis=1)
    lengths = jnp.where(constraining, lengths, 1)
    unit = jnp.where(constraining[:, None], rows * free[None, :] / lengths[:, None], 0)

    held = size * jnp.diag(1 - free)
    augmented = projected + held + size * times(unit.T, unit)
    # The transpose is the matrix itself, in the order that LAPACK reads without a copy.
    lower = cholesky(augmented.T, symmetrize_input=False)
    primal = inverse_of_lower(lower)
    across = times(primal, unit.T)
    complement = times(across.T, across) + jnp.diag(1 - active) / size
    lower_dual = cholesky(complement.T, symmetrize_input=False)
    regular = _safe(lower, augmented, eps) & _safe(lower_dual, complement, eps)
    # Of more rows than unknowns that are left some depend on others, whatever rounding says.
    regular &= jnp.sum(active * constraining) <= jnp.sum(free)
    finite = jnp.all(jnp.isfinite(projected)) & jnp.all(jnp.isfinite(rows))

    def by_eigenvalues(zero):
        hessian, rows = projected + zero, unit + zero
        whole = _bordered(hessian, free, rows, active, size)
        found = _better_inverse(whole, n, size)
        # After the calls above, not beside them (see triangular.py).
        then = zero * found.primal[0, 0]
        curvature = _curvature(hessian + then, held, rows + then, size)
        return dataclasses.replace(found, curvature=curvature)

    found = KKTInverse(
        primal=primal,
        across=across,
        dual=inverse_of_lower(lower_dual),
        regular=regular,
        curvature=jnp.array(jnp.nan, dtype),
        rank_deficiency=jnp.array(0, jnp.int32),
    )
    inverse = if_needed(~regular & finite, by_eigenvalues, found, dtype)
    # One unknown that no constraint holds shows it by itself, however small its unit is.
    loose = (free > 0) & jnp.all(unit == 0, axis=0)
    own, of_row = jnp.diagonal(projected), jnp.max(jnp.abs(projected), axis=1, initial=0)
    down = jnp.any(loose & (own < -10 * n * eps * of_row))
    return KKTFactors(
        free=free,
        active=active,
        fixed_rows=rows * (1 - free)[None, :],
        hessian=parts.hessian,
        rows=unit,
        lengths=lengths,
        size=size,
        inverse=inverse,
        indefinite=(inverse.curvature < -10 * n * eps * size) | down,
        bounded=parts.bounded,
    )


def _bordered(
    projected: Float[Array, "n n"],
    free: Float[Array, " n"],
    rows: Float[Array, "r n"],
    active: Float[Array, " r"],
    size: Array,
) -> Float[Array, "nr nr"]:
    """[[H, A^T], [A, 0]], the rows of the Hessian's size; what is held or inactive, diagonal."""
    coupling = size * rows
    return jnp.block(
        [
            [projected + size * jnp.diag(1 - free), coupling.T],
            [coupling, -size * jnp.diag(1 - active)],
        ]
    )


def _better_inverse(whole: Float[Array, "k k"], n: int, size: Array) -> "KKTInverse":
    """The pseudo-inverse of a bordered matrix from its eigenvalues, those that are rounding being
    told in the units of the matrix, or in others where fewer are then, or where the inverse G of
    the former is none: K G K is not K.

    Unknowns in unequal units are alike where the diagonal of the Hessian is one; but there rows of
    constraints seem dependent that share an unknown of hardly any curvature.
    """
    k, eps = whole.shape[0], float(jnp.finfo(whole.dtype).eps)

    def decompose(units):
        values, vectors = jnp.linalg.eigh(units[:, None] * whole * units[None, :])
        order = jnp.argsort(jnp.abs(values))
        values, vectors = values[order], vectors[:, order]
        null = jnp.abs(values) <= k * eps * jnp.abs(values[-1])
        return values, basis_in_old_units(vectors, units, null), null

    ones = jnp.ones_like(whole[0])
    both = jax.vmap(decompose)(jnp.stack([ones, _units_of_bordered(whole, n, size)]))
    own, other = ([part[i] for part in both] for i in range(2))
    # Of each row, the share that is left of K v.
    v = jnp.cos(jnp.arange(k, dtype=whole.dtype))
    image, scale = times(v, whole), times(jnp.abs(v), jnp.abs(whole))
    left = jnp.abs(times(times(image, _inverse_from(*own)), whole) - image)
    wrong = jnp.any(left > 10 * k * eps * scale)
    nulls_of_own, nulls_of_other = jnp.sum(own[2]), jnp.sum(other[2])
    better = (nulls_of_other < nulls_of_own) | ((nulls_of_other == nulls_of_own) & wrong)
    values, basis, null = jax.tree.map(partial(jnp.where, better), other, own)
    return _pseudo_inverse(n, values, basis, null, jnp.full((), jnp.nan, whole.dtype))


def _units_of_bordered(whole: Float[Array, "k k"], n: int, size: Array) -> Float[Array, " k"]:
    """Units in which the diagonal of the Hessian, the first n rows, is one and the others' rows
    are of unit length; and as much as they can be, rows of unknowns without curvature."""
    hessian, eps = whole[:n, :n] / size, float(jnp.finfo(whole.dtype).eps)
    flat = jnp.diagonal(hessian) <= 0
    noise = (flat[:, None] | flat[None, :]) & (jnp.abs(hessian) <= 10 * n * eps)
    hessian = jnp.where(noise, 0, hessian)
    whole = whole.at[:n, :n].set(size * hessian)
    of_y = jax.lax.rsqrt(sizes(hessian) * size)
    lengths = jnp.linalg.norm(whole[n:, :n] * of_y[None, :], axis=1)
    of_rows = 1 / jnp.where(lengths > 0, lengths, jnp.sqrt(size))

    def improve(_, units):
        longest = jnp.max(units[:, None] * jnp.abs(whole) * units[None, :], axis=1)
        return units * jax.lax.rsqrt(jnp.where(longest > 0, longest, 1))

    return jax.lax.fori_loop(0, 3, improve, jnp.concatenate([of_y, of_rows]))


def _pseudo_inverse(
    n: int,
    values: Float[Array, " k"],
    basis: Float[Array, "k k"],
    null: Bool[Array, " k"],
    curvature: Float[Array, ""],
) -> KKTInverse:
    """Of a bordered matrix from eigenvalues, some of which count as zero, and rows that belong to
    them: eigenvectors, or those of `basis_in_old_units`."""
    inverse = _inverse_from(values, basis, null)
    return KKTInverse(
        primal=inverse[:n, :n],
        across=inverse[:n, n:],
        dual=inverse[n:, n:],
        regular=jnp.array(False),
        curvature=curvature,
        rank_deficiency=jnp.sum(null).astype(jnp.int32),
    )


def _inverse_from(
    values: Float[Array, " k"], basis: Float[Array, "k k"], null: Bool[Array, " k"]
) -> Float[Array, "k k"]:
    shares = jnp.where(null, 0, 1 / jnp.where(null, 1, values))
    return times(basis.T * shares[None, :], basis)


def _curvature(
    hessian: Float[Array, "n n"], held: Float[Array, "n n"], rows: Float[Array, "r n"], size: Array
) -> Array:
    """The smallest eigenvalue of the Hessian on the null space of the rows, of variables not held;
    inf where that holds nothing but zero."""
    n = hessian.shape[0]
    normal = held / size
    if rows.shape[0] > 0:
        _, s, vt = jnp.linalg.svd(rows, full_matrices=False)
        kept = s > max(rows.shape) * float(jnp.finfo(rows.dtype).eps) * s[0]
        normal = normal + (vt.T * kept[None, :]) @ vt
    tangent = jnp.eye(n, dtype=hessian.dtype) - normal
    # The normal directions are moved above all eigenvalues.
    above = 2 * n * size
    smallest = jnp.linalg.eigvalsh(tangent @ hessian @ tangent + above * normal)[0]
    return jnp.where(smallest > n * size, jnp.inf, smallest)


def _safe(lower: Float[Array, "n n"], matrix: Float[Array, "n n"], eps: float) -> Bool[Array, ""]:
    """Whether every pivot is beyond the rounding of its diagonal entry. (NaN is not.)"""
    pivots, diagonal = jnp.diagonal(lower) ** 2, jnp.diagonal(matrix)
    return jnp.all(pivots > 10 * lower.shape[0] * eps * diagonal)


def if_needed(
    needed: Bool[Array, ""], compute: Callable[[Array], PyTree], otherwise: PyTree, dtype
) -> PyTree:
    """``compute(0)`` where ``needed``, in a loop of at most one step.

    The zero has to be added to what the computation starts from: it keeps XLA from moving it, the
    same in every pass, out of the loop and so running it always.
    """

    def step(carry):
        count, _ = carry
        return count + 1, compute(count)

    start = jnp.zeros((), dtype), otherwise
    return jax.lax.while_loop(lambda carry: needed & (carry[0] < 1), step, start)[1]
