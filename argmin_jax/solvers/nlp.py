"""What a solver of constrained problems is asked, in flat vectors, and what it answers."""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Scalar

Vector = Callable[[Float[Array, " n"]], Array]


class NonlinearProgram(eqx.Module):
    """min f(y)  subject to  h(y) = 0,  g(y) <= 0,  lower <= y <= upper.

    Attributes:
        objective: f, to a scalar.
        equalities: h, to a vector of any length, zero included.
        inequalities: g, likewise.
        lower: may hold -inf; equal to ``upper`` where an unknown is fixed.
        upper: may hold inf.
    """

    objective: Callable[[Float[Array, " n"]], Scalar]
    equalities: Vector
    inequalities: Vector
    lower: Float[Array, " n"]
    upper: Float[Array, " n"]


class PrimalDual(eqx.Module):
    """A point, its multipliers and how it was reached.

    The multipliers are those of L = f + eq'h + ineq'g + lower'(l - y) + upper'(y - u).
    """

    y: Float[Array, " n"]
    eq: Float[Array, " p"]
    ineq: Float[Array, " m"]  # not negative, and so are lower and upper
    lower: Float[Array, " n"]
    upper: Float[Array, " n"]
    steps: Int[Array, ""]
    infeasible: Bool[Array, ""]  # ended where the violation is stationary, but not zero


def nowhere(y: Float[Array, " n"]) -> Float[Array, " 0"]:
    """The constraint function of a program without constraints of that kind."""
    return jnp.zeros((0,), y.dtype)


class Linearisation(eqx.Module):
    """Values and derivatives of a program at a point; the rows are h and then g."""

    value: Scalar
    rows: Float[Array, " p+m"]
    gradient: Float[Array, " n"]
    jacobian: Float[Array, "p+m n"]
    hessian: Float[Array, "n n"]  # of a weighted sum of objective and rows


def linearisation(program: NonlinearProgram, y: Float[Array, " n"]) -> Callable:
    """linearise(y, weights, fixed) -> (Linearisation, scale)"""

    def stacked(y):
        value = program.objective(y).astype(y.dtype)
        return jnp.concatenate([value[None], program.equalities(y), program.inequalities(y)])

    def with_values(y):
        found = stacked(y)
        return found, found

    count = jax.eval_shape(stacked, y).size
    derivative = jax.jacrev if count < y.size else jax.jacfwd

    def linearise(y, weights, fixed):
        slopes, values = derivative(with_values, has_aux=True)(y)
        slopes = jnp.where(fixed[None], 0, slopes)
        scale, (factor, multipliers) = weights(values[0], values[1:], slopes[0], slopes[1:])
        all_weights = jnp.concatenate([factor[None], multipliers])

        def gradient(y):
            return jax.vjp(stacked, y)[1](all_weights)[0]

        hessian = jax.jacfwd(gradient)(y)
        hessian = jnp.where(fixed[None] | fixed[:, None], 0, hessian)
        return Linearisation(values[0], values[1:], slopes[0], slopes[1:], hessian), scale

    return linearise
