"""Linear systems and eigenvalues from products with an operator alone: memory of O(n)."""

from typing import Any

import jax
import jax.numpy as jnp
import lineax as lx
from jaxtyping import Array, Bool, Float, Scalar

LANCZOS_STEPS = 16


def solve_matrix_free(operator: lx.AbstractLinearOperator, b: Float[Array, " n"]):
    """Conjugate gradients, or GMRES, refined once: the length of the correction tells how far off
    the solution was.

    The residual alone would not: at a condition number of 1e12 it can be at rounding level though
    the solution is wrong in its first digit.
    """
    eps = float(jnp.finfo(b.dtype).eps)
    limit = min(10 * b.size, 10_000)
    solver: Any
    if lx.is_positive_semidefinite(operator):
        solver = lx.CG(rtol=0.0, atol=100 * eps, max_steps=limit)
    else:
        solver = lx.GMRES(rtol=0.0, atol=100 * eps, max_steps=limit, restart=min(b.size, 50))

    def scaled(b):
        size = jnp.max(jnp.abs(b))
        scale = jnp.where(size > 0, size, 1)
        x, _, stats = solver.compute(solver.init(operator, {}), b / scale, {})
        return scale * x, stats

    x, stats = scaled(b)
    d, _ = scaled(b - operator.mv(x))
    x = x + d
    residual = jnp.max(jnp.abs(b - operator.mv(x)))
    close = jnp.linalg.norm(d) <= eps**0.25 * jnp.linalg.norm(x)
    return x, verdict(close & (residual <= eps**0.5 * jnp.max(jnp.abs(b)))), stats


def smallest_ritz_value(operator: lx.AbstractLinearOperator) -> tuple[Scalar, Scalar]:
    """An upper bound of a symmetric operator's smallest eigenvalue, which comes close where that
    stands out, and the size that rounding gives to a zero: by Lanczos' method (Golub & Van Loan,
    Matrix Computations, 2013, algorithm 10.1.1) from a fixed random vector."""
    struct = operator.in_structure()
    steps = min(LANCZOS_STEPS, struct.size)
    start = jax.random.normal(jax.random.key(0), struct.shape, struct.dtype)

    def step(carry, _):
        previous, v, beta = carry
        w = operator.mv(v) - beta * previous
        alpha = v @ w
        w = w - alpha * v
        length = jnp.linalg.norm(w)
        # Where the vectors span an invariant subspace, what follows repeats zeros.
        following = jnp.where(length > 0, w / jnp.where(length > 0, length, 1), 0)
        return (v, following, length), (alpha, length)

    first = (jnp.zeros_like(start), start / jnp.linalg.norm(start), jnp.zeros((), start.dtype))
    _, (diagonal, beside) = jax.lax.scan(step, first, length=steps)
    tridiagonal = jnp.diag(diagonal) + jnp.diag(beside[:-1], 1) + jnp.diag(beside[:-1], -1)
    values = jnp.linalg.eigvalsh(tridiagonal)
    rounding = 10 * steps * float(jnp.finfo(start.dtype).eps) * jnp.max(jnp.abs(values))
    return values[0], rounding


def verdict(accurate: Bool[Array, ""]) -> lx.RESULTS:
    """Lineax's word for whether a solution can be used."""
    return lx.RESULTS.where(accurate, lx.RESULTS.successful, lx.RESULTS.max_steps_reached)
