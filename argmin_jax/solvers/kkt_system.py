"""The linear algebra of the interior-point method: one n x n Cholesky and a small one a step.

With x = (y, s), the slacks s of g(y) + s = 0 behind the unknowns, the system of a step is

    [ W + Sy + delta          Ah'   Ag' ] [dy ]     [ry]
    [                Ss             I   ] [ds ]     [rs]
    [ Ah                     -Dh        ] [dlh] = - [rh]
    [ Ag             I             -Dg  ] [dlg]     [rg]

where S holds the barrier's curvature and D >= 0 relaxes the rows. ds and dlg are eliminated by
hand: with E = 1 / (1/Ss + Dg),

    M = W + Sy + delta + Ag' E Ag,    M dy + Ah' dlh = -ry - Ag' E (rg - rs/Ss).

The matrix has the right inertia, (n + m, p + m, 0), if and only if M is positive definite on the
null space of Ah (for D = 0). JAX has no LDL', but the multiple R of the second row added to the
first, which changes no solution, makes M + Ah' R Ah positive definite there if R is large enough:
then a Cholesky factorisation exists, and where it fails the inertia is taken to be wrong.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Scalar

FIRST_SHIFT = 1e-4  # the constants of algorithm IC, Wächter & Biegler 2006
SMALLEST_SHIFT, LARGEST_SHIFT = 1e-12, 1e30
GROW_FIRST, GROW, SHRINK = 100.0, 8.0, 1 / 3


class System(eqx.Module):
    """The matrix, but for delta."""

    hessian: Float[Array, "n n"]  # W + Sy
    jacobian: Float[Array, "p+m n"]  # Ah above Ag
    slack: Float[Array, " m"]  # Ss
    relaxed: Float[Array, " p+m"]  # the diagonal of D


class Factors(eqx.Module):
    """M + delta + Ah' R Ah = L L',  Y = L^-1 Ah',  and the Schur complement Y'Y + D/(1 - R D)."""

    lower: Float[Array, "n n"]  # L
    half: Float[Array, "n p"]  # Y
    schur: Float[Array, "p p"]  # its Cholesky factor
    weights: Float[Array, " p"]  # R
    relaxed: Float[Array, " p+m"]  # D, with what keeps dependent rows apart
    shift: Scalar  # delta
    last_shift: Scalar  # the last delta that was not zero, for the next matrix
    sound: Bool[Array, ""]  # a delta was found


def factorise(system: System, last_shift: Scalar, wanted: Bool[Array, ""]) -> Factors:
    """Algorithm IC of Wächter & Biegler: delta raised until the inertia is right.

    The relative pivots tell a matrix that is singular to working precision.
    Where not ``wanted`` the factors are zero, at no cost.
    """
    n = system.hessian.shape[0]
    m = system.slack.size
    p = system.relaxed.size - m
    eps = jnp.finfo(system.hessian.dtype).eps
    equalities, inequalities = system.jacobian[:p], system.jacobian[p:]

    scaled = jnp.sqrt(1 / (1 / system.slack + system.relaxed[p:]))[:, None] * inequalities
    matrix = system.hessian + scaled.T @ scaled
    size = jnp.max(jnp.abs(system.hessian), initial=FIRST_SHIFT)
    lengths = jnp.sum(equalities**2, axis=1)
    weights = eps**-0.2 * size / jnp.where(lengths > 0, lengths, 1)
    weights = jnp.minimum(weights, 0.5 / jnp.maximum(system.relaxed[:p], eps))
    heavy = jnp.sqrt(weights)[:, None] * equalities
    matrix = matrix + heavy.T @ heavy
    diagonal = jnp.diagonal(matrix)

    def attempt(carry):
        _, shift, _, _ = carry
        lower = jax.lax.linalg.cholesky(matrix + shift * jnp.eye(n), symmetrize_input=False)
        pivots = jnp.diagonal(lower) ** 2
        sound = jnp.all(pivots > n * eps * (diagonal + shift))  # NaN is not
        grown = shift * jnp.where(last_shift > 0, GROW, GROW_FIRST)
        again = jnp.maximum(SMALLEST_SHIFT, SHRINK * last_shift)
        first = jnp.where(last_shift > 0, again, FIRST_SHIFT)
        return lower, jnp.where(shift > 0, grown, first), shift, sound

    def goes_on(carry):
        _, shift, _, sound = carry
        return ~sound & (shift < LARGEST_SHIFT)

    zero = jnp.zeros((), matrix.dtype)
    start = jnp.zeros_like(matrix), jnp.where(wanted, zero, jnp.inf), zero, ~wanted
    lower, _, shift, sound = jax.lax.while_loop(goes_on, attempt, start)

    half = jax.lax.linalg.triangular_solve(lower, equalities.T, left_side=True, lower=True)
    schur = half.T @ half
    # Rows that depend on others would make it singular. A relaxation in the step of the
    # multipliers alone (a proximal term) lets the rows hold in the limit all the same.
    own = jnp.diagonal(schur)
    apart = eps**0.65 * jnp.where(own > 0, own, 1)
    relaxed = system.relaxed[:p] / (1 - weights * system.relaxed[:p]) + apart
    schur = jax.lax.linalg.cholesky(schur + jnp.diag(relaxed), symmetrize_input=False)
    return Factors(
        lower=lower,
        half=half,
        schur=schur,
        weights=weights,
        relaxed=jnp.concatenate([relaxed / (1 + weights * relaxed), system.relaxed[p:]]),
        shift=shift,
        last_shift=jnp.where(shift > 0, shift, last_shift),
        sound=sound & wanted,
    )


def solve(
    system: System, factors: Factors, rx: Float[Array, " n+m"], rc: Float[Array, " p+m"]
) -> tuple[Float[Array, " n+m"], Float[Array, " p+m"]]:
    """(dx, dl), by iterative refinement on the system itself while that helps."""
    n = system.hessian.shape[0]
    eps = jnp.finfo(rx.dtype).eps

    def residual(dx, dl):
        dy, ds = dx[:n], dx[n:]
        ry = rx[:n] + system.hessian @ dy + factors.shift * dy + system.jacobian.T @ dl
        rs = rx[n:] + system.slack * ds + dl[dl.size - ds.size :]
        slacks = jnp.concatenate([jnp.zeros(dl.size - ds.size, ds.dtype), ds])
        return jnp.concatenate([ry, rs]), rc + system.jacobian @ dy + slacks - factors.relaxed * dl

    def size(rx, rc):
        return jnp.max(jnp.abs(jnp.concatenate([rx, rc])))

    def improve(carry):
        dx, dl, rx, rc, before, _, count = carry
        more_x, more_l = _solve(system, factors, rx, rc)
        dx, dl = dx + more_x, dl + more_l
        rx, rc = residual(dx, dl)
        return dx, dl, rx, rc, size(rx, rc), before, count + 1

    target = eps**0.65 * size(rx, rc)

    def goes_on(carry):
        *_, now, before, count = carry
        return (count < 1) | ((now > target) & (now < 0.5 * before) & (count < 4))

    start = jnp.zeros_like(rx), jnp.zeros_like(rc), rx, rc, jnp.inf, jnp.inf, 0
    dx, dl, *_ = jax.lax.while_loop(goes_on, improve, start)
    return dx, dl


def _solve(system: System, factors: Factors, rx, rc):
    m = system.slack.size
    n, p = rx.size - m, rc.size - m
    rs, rg = rx[n:], rc[p:]
    weight = 1 / (1 / system.slack + factors.relaxed[p:])  # E
    reduced = rg - rs / system.slack
    right = -rx[:n] - system.jacobian[p:].T @ (weight * reduced)
    right = right - system.jacobian[:p].T @ (factors.weights * rc[:p])
    forward = _triangular(factors.lower, right, transpose=False)
    # (1 - R D) dlh, which the first row sees after R times the second was added to it
    inner = _triangular(factors.schur, factors.half.T @ forward + rc[:p], transpose=False)
    seen = _triangular(factors.schur, inner, transpose=True)
    dy = _triangular(factors.lower, forward - factors.half @ seen, transpose=True)
    dlh = seen / (1 - factors.weights * factors.relaxed[:p])
    dlg = weight * (system.jacobian[p:] @ dy + reduced)
    ds = -(rs + dlg) / system.slack
    return jnp.concatenate([dy, ds]), jnp.concatenate([dlh, dlg])


def _triangular(lower: Float[Array, "k k"], right: Float[Array, " k"], transpose: bool):
    return jax.lax.linalg.triangular_solve(
        lower, right[:, None], left_side=True, lower=True, transpose_a=transpose
    )[:, 0]
