"""Linear systems, and the sign of a matrix, from products with an operator: memory of O(n)."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
from jaxtyping import Array, Bool, Float, Int, Scalar

from .conjugate_gradients import conjugate_gradients

ROUNDS = 20  # of refinement
SIGN_STEPS = 200  # products that the sign of an operator may cost
SEEN = 1e-3  # the length from which on a part of the random vector is not missed


def largest_error(dtype: Any) -> float:
    """The relative error of a solution up to which a gradient from it is not wrong. Where
    refinement ends, the last correction is a sample of what rounding leaves."""
    return 1e-6 if jnp.finfo(dtype).bits == 64 else 1e-2


def largest(x: Array) -> Scalar:
    """The largest entry: a length whose square does not vanish where x is small."""
    return jnp.max(jnp.abs(x), initial=0)


def solve_matrix_free(
    operator: lx.AbstractLinearOperator, b: Float[Array, " n"]
) -> tuple[Float[Array, " n"], Bool[Array, ""]]:
    """Conjugate gradients, or GMRES, to half of the digits and refined: the lengths of the
    corrections tell how far off the solution is. Returns it, and whether it converged.

    The residual alone would not: at a condition number of 1e12 it can be at rounding level though
    the solution is wrong in its first digit.
    """
    eps = float(jnp.finfo(b.dtype).eps)

    limit = min(10 * b.size, 10_000)

    def refine(at: _Refined) -> _Refined:
        residual = b - operator.mv(at.x)
        correction = solve_roughly(operator, residual, eps**0.5, limit)
        length = largest(correction)
        ratio = jnp.where(at.round == 0, 0.25, length / at.length)
        x = jnp.where(ratio < 0.5, at.x + correction, at.x)
        return _Refined(x, length, ratio, largest(residual), at.round + 1)

    def goes_on(at: _Refined) -> Bool[Array, ""]:
        # The next correction is that much shorter again.
        worthwhile = at.length * at.ratio > 4 * eps * largest(at.x)
        return (at.round == 0) | ((at.round < ROUNDS) & (at.ratio < 0.5) & worthwhile)

    zero = jnp.zeros((), b.dtype)
    end = jax.lax.while_loop(
        goes_on, refine, _Refined(jnp.zeros_like(b), zero, zero, zero, jnp.array(0))
    )
    close = end.length * end.ratio <= largest_error(b.dtype) * largest(end.x)
    solved = end.residual <= 10 * eps**0.5 * largest(b)
    return end.x, close & solved


class _Refined(eqx.Module):
    x: Float[Array, " n"]
    length: Scalar  # of the last correction: its largest entry
    ratio: Scalar  # of the last two
    residual: Scalar  # its length before the last correction
    round: Int[Array, ""]


def solve_roughly(
    operator: lx.AbstractLinearOperator, b: Float[Array, " n"], tolerance: float, limit: int
) -> Float[Array, " n"]:
    """A solution whose residual is at most ``tolerance`` of b, if ``limit`` steps lead there. Of a
    semidefinite operator, zero where negative curvature is met."""
    size = jnp.max(jnp.abs(b))
    scale = jnp.where(size > 0, size, 1)
    scaled = b / scale
    if lx.is_positive_semidefinite(operator):
        target = tolerance**2 * (scaled @ scaled)
        end = conjugate_gradients(operator.mv, scaled, target, limit)
        return jnp.where(end.curvature < 0, 0, scale * end.x)
    solver: Any = lx.GMRES(rtol=0.0, atol=tolerance, max_steps=limit, restart=min(b.size, 50))
    return scale * solver.compute(solver.init(operator, {}), scaled, {})[0]


class Sign(eqx.Module):
    """What is known of a symmetric operator's eigenvalues: whether all are positive or one is
    negative, beyond rounding, and an upper bound of the smallest, a Rayleigh quotient."""

    definite: Bool[Array, ""]
    indefinite: Bool[Array, ""]
    bound: Scalar


def sign(operator: lx.AbstractLinearOperator) -> Sign:
    """By conjugate gradients with a right-hand side b of standard normal numbers.

    As long as all curvature is positive, the residual is p(A) b with a polynomial p that is 1 at
    zero and whose zeros are positive: along an eigenvector of an eigenvalue that is not positive it
    is never shorter than b is. So where the iterations converge, b has no part longer than SEEN
    along such a vector; it has a shorter one with about the probability SEEN. Where they do not, in
    so many steps, no negative curvature was met: neither is known.
    """
    struct = operator.in_structure()
    b = jax.random.normal(jax.random.key(0), struct.shape, struct.dtype)
    target = jnp.array(SEEN**2, b.dtype)
    end = conjugate_gradients(operator.mv, b, target, SIGN_STEPS)
    smallest, largest = end.pivots
    last = end.curvature / (end.direction @ end.direction)
    square = end.x @ end.x  # x is a step of inverse iteration from b
    quotient = end.x @ (b - end.residual) / jnp.where(square > 0, square, jnp.nan)
    rounding = 10 * jnp.finfo(b.dtype).eps * end.count * largest
    return Sign(
        definite=end.inside & (end.square <= target) & (smallest > rounding),
        indefinite=~end.inside & (last < -rounding),
        bound=jnp.where(end.inside, jnp.fmin(quotient, smallest), last),
    )
