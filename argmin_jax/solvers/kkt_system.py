"""The linear algebra of the interior-point method: one n x n Cholesky and a small one a step.

With x = (y, s), the slacks s of g(y) + s = 0 behind the unknowns, the system of a step is

    [ W + Sy + delta          Ah'   Ag' ] [dy ]     [ry]
    [                Ss             I   ] [ds ]     [rs]
    [ Ah                     -Dh        ] [dlh] = - [rh]
    [ Ag             I             -Dg  ] [dlg]     [rg]

where S is the curvature of the barrier and D >= 0 relaxes the rows. ds and dlg are eliminated by
hand: with E = 1 / (1/Ss + Dg),

    M = W + Sy + delta + Ag' E Ag,    M dy + Ah' dlh = -ry - Ag' E (rg - rs/Ss).

The matrix has the right inertia, (n + m, p + m, 0), if and only if M is positive definite on the
null space of Ah (for Dh = 0). JAX has no LDL', but a multiple R of the third row added to the
first, which changes no solution, makes M + Ah' R Ah positive definite there if R is large enough:
then a Cholesky factorisation exists, and where it fails the inertia is taken to be wrong.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.lax.linalg import cholesky
from jaxtyping import Array, Bool, Float, Scalar

from ..triangular import inverse_of_lower

# The constants of algorithm IC, Wächter & Biegler 2006, but for the smallest shift: 1e-20 there.
FIRST_SHIFT, SMALLEST_SHIFT, LARGEST_SHIFT = 1e-4, 1e-12, 1e30
GROW_FIRST, GROW, SHRINK = 100.0, 8.0, 1 / 3


class System(eqx.Module):
    """The matrix, but for delta. Fixed unknowns stay where they are: their equations are dy = 0."""

    hessian: Float[Array, "n n"]  # W, but for
    factor: Scalar  # its factor
    barrier: Float[Array, " n+m"]  # the diagonals Sy and Ss
    jacobian: Float[Array, "p+m n"]  # Ah above Ag
    relaxed: Float[Array, " p+m"]  # the diagonal of D
    fixed: Bool[Array, " n"]

    @property
    def sizes(self) -> tuple[int, int, int]:
        """n, p and m."""
        n = self.hessian.shape[0]
        m = self.barrier.size - n
        return n, self.relaxed.size - m, m


class Factors(eqx.Module):
    """M + delta + Ah' R Ah = L L', Y = L^-1 Ah', and T T' = Y'Y + D / (1 - R D).

    The factors are kept inverted: a batched product is many times faster than a solve.
    """

    inverse: Float[Array, "n n"]  # L^-1
    half: Float[Array, "n p"]  # Y
    schur: Float[Array, "p p"]  # T^-1
    weights: Float[Array, " p"]  # R
    relaxed: Float[Array, " p+m"]  # D, with what keeps dependent rows apart
    shift: Scalar  # delta
    last_shift: Scalar  # the last delta that was not zero, for the next matrix
    sound: Bool[Array, ""]  # a delta was found


def factorise(system: System, last_shift: Scalar, wanted: Bool[Array, ""]) -> Factors:
    """Algorithm IC of Wächter & Biegler: delta is raised until the inertia is right.

    Where not ``wanted`` the factors are useless, and cheap.
    """
    condensed = _condense(system)

    def attempt(carry):
        _, shift, _, _ = carry
        lower, sound = condensed.cholesky(shift)
        first = jnp.maximum(SMALLEST_SHIFT, SHRINK * last_shift)
        first = jnp.where(last_shift > 0, first, FIRST_SHIFT)
        grown = shift * jnp.where(last_shift > 0, GROW, GROW_FIRST)
        return lower, jnp.where(shift > 0, grown, first), shift, sound

    def goes_on(carry):
        _, shift, _, sound = carry
        return ~sound & (shift < LARGEST_SHIFT)

    zero = jnp.zeros((), system.hessian.dtype)
    start = jnp.eye(system.sizes[0], dtype=zero.dtype), zero, zero, ~wanted
    lower, _, shift, sound = jax.lax.while_loop(goes_on, attempt, start)
    last_shift = jnp.where(shift > 0, shift, last_shift)
    return _factors(system, condensed, lower, shift, last_shift, sound & wanted)


def factorise_definite(system: System) -> Factors:
    """Factors without a delta, not ``sound`` where that is needed."""
    condensed = _condense(system)
    zero = jnp.zeros((), system.hessian.dtype)
    lower, sound = condensed.cholesky(zero)
    return _factors(system, condensed, lower, zero, zero, sound)


class _Condensed(eqx.Module):
    """M + Ah' R Ah, and R."""

    matrix: Float[Array, "n n"]  # but for
    diagonal: Float[Array, " n"]  # its diagonal
    weights: Float[Array, " p"]

    def cholesky(self, shift: Scalar) -> tuple[Float[Array, "n n"], Bool[Array, ""]]:
        """The lower factor, and whether it is sound: pivots that rounding may have left of
        nothing count as wrong."""
        diagonal = self.diagonal + shift
        # The transpose is the matrix itself, in the order that LAPACK reads without a copy.
        lower = cholesky(_with_diagonal(self.matrix.T, diagonal), symmetrize_input=False)
        rounding = diagonal.size * float(jnp.finfo(diagonal.dtype).eps)
        return lower, jnp.all(jnp.diagonal(lower) ** 2 > rounding * diagonal)  # NaN is not


def _condense(system: System) -> _Condensed:
    n, p, _ = system.sizes
    eps = float(jnp.finfo(system.hessian.dtype).eps)
    size = jnp.maximum(system.factor * jnp.max(jnp.abs(system.hessian), initial=0), FIRST_SHIFT)
    lengths = jnp.sum(system.jacobian[:p] ** 2, axis=1)
    weights = eps**-0.2 * size / jnp.where(lengths > 0, lengths, 1)
    weights = jnp.minimum(weights, 0.5 / jnp.maximum(system.relaxed[:p], eps))
    each = 1 / (1 / system.barrier[n:] + system.relaxed[p:])
    heavy = jnp.sqrt(jnp.concatenate([weights, each]))[:, None] * system.jacobian
    matrix = system.factor * system.hessian + heavy.T @ heavy
    matrix = jnp.where(system.fixed[:, None] | system.fixed[None], 0, matrix)
    diagonal = jnp.diagonal(matrix) + jnp.where(system.fixed, 1, system.barrier[:n])
    return _Condensed(matrix, diagonal, weights)


def _factors(
    system: System,
    condensed: _Condensed,
    lower: Float[Array, "n n"],
    shift: Scalar,
    last_shift: Scalar,
    sound: Bool[Array, ""],
) -> Factors:
    _, p, _ = system.sizes
    eps, weights = float(jnp.finfo(lower.dtype).eps), condensed.weights
    inverse = inverse_of_lower(lower)
    half = inverse @ jnp.where(system.fixed[None], 0, system.jacobian[:p]).T
    schur = half.T @ half
    # Rows that depend on others would make it singular. A relaxation that concerns the step of
    # the multipliers alone (a proximal term) lets the rows hold in the limit all the same.
    own = jnp.diagonal(schur)
    apart = eps**0.65 * jnp.where(own > 0, own, 1)
    relaxed = system.relaxed[:p] / (1 - weights * system.relaxed[:p]) + apart
    schur = cholesky(_with_diagonal(schur, own + relaxed), symmetrize_input=False)
    return Factors(
        inverse=inverse,
        half=half,
        schur=inverse_of_lower(schur),
        weights=weights,
        relaxed=jnp.concatenate([relaxed / (1 + weights * relaxed), system.relaxed[p:]]),
        shift=shift,
        last_shift=last_shift,
        sound=sound,
    )


def solve(
    system: System, factors: Factors, rx: Float[Array, " n+m"], rc: Float[Array, " p+m"]
) -> tuple[Float[Array, " n+m"], Float[Array, " p+m"]]:
    """(dx, dl), with iterative refinement on the system itself while it helps."""
    n, p, _ = system.sizes
    rx = jnp.concatenate([jnp.where(system.fixed, 0, rx[:n]), rx[n:]])

    def residual(dx, dl):
        dy, ds = dx[:n], dx[n:]
        ry = system.factor * (system.hessian @ dy) + (system.barrier[:n] + factors.shift) * dy
        ry = jnp.where(system.fixed, 0, ry + system.jacobian.T @ dl)
        rows = system.jacobian @ dy - factors.relaxed * dl
        rows = jnp.concatenate([rows[:p], rows[p:] + ds])
        return rx + jnp.concatenate([ry, system.barrier[n:] * ds + dl[p:]]), rc + rows

    def size(rx, rc):
        return jnp.max(jnp.abs(jnp.concatenate([rx, rc])), initial=0)

    def goes_on(carry):
        *_, now, before, count = carry
        return (count < 1) | ((now > target) & (now < 0.5 * before) & (count < 4))

    def improve(carry):
        dx, dl, rx, rc, before, _, count = carry
        more_x, more_l = solve_once(system, factors, rx, rc)
        dx, dl = dx + more_x, dl + more_l
        rx, rc = residual(dx, dl)
        return dx, dl, rx, rc, size(rx, rc), before, count + 1

    target = float(jnp.finfo(rx.dtype).eps) ** 0.5 * size(rx, rc)
    far = jnp.full((), jnp.inf, rx.dtype)
    start = jnp.zeros_like(rx), jnp.zeros_like(rc), rx, rc, far, far, 0
    dx, dl, *_ = jax.lax.while_loop(goes_on, improve, start)
    return dx, dl


def solve_once(
    system: System, factors: Factors, rx: Float[Array, " n+m"], rc: Float[Array, " p+m"]
) -> tuple[Float[Array, " n+m"], Float[Array, " p+m"]]:
    """`solve` without refinement."""
    n, p, _ = system.sizes
    slack, rs, rg = system.barrier[n:], rx[n:], rc[p:]
    each = 1 / (1 / slack + factors.relaxed[p:])  # E
    reduced = rg - rs / slack
    pushed = jnp.concatenate([factors.weights * rc[:p], each * reduced])
    right = jnp.where(system.fixed, 0, -rx[:n] - system.jacobian.T @ pushed)
    forward = factors.inverse @ right
    # What the first row sees of dlh after R times the third was added to it: (1 - R D) dlh
    seen = factors.schur.T @ (factors.schur @ (factors.half.T @ forward + rc[:p]))
    dy = factors.inverse.T @ (forward - factors.half @ seen)
    dlh = seen / (1 - factors.weights * factors.relaxed[:p])
    dlg = each * ((system.jacobian @ dy)[p:] + reduced)
    return jnp.concatenate([dy, -(rs + dlg) / slack]), jnp.concatenate([dlh, dlg])


def _with_diagonal(matrix: Float[Array, "k k"], diagonal: Float[Array, " k"]) -> Array:
    return jnp.where(jnp.eye(diagonal.size, dtype=bool), diagonal[:, None], matrix)
