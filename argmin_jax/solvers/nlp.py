"""What a solver of constrained problems is asked, in flat vectors, and what it answers."""

from collections.abc import Callable

import equinox as eqx
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
