"""What a solver of constrained problems is asked, in flat vectors, and what it answers."""

import dataclasses
from collections.abc import Callable

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Scalar

from ..structure import Constant, constant_derivatives

Vector = Callable[[Float[Array, " n"]], Array]


class NonlinearProgram(eqx.Module):
    """min f(y)  subject to  h(y) = 0,  g(y) <= 0,  lower <= y <= upper.

    Attributes:
        objective: f, to a scalar.
        equalities: h, to a vector of any length, zero included.
        inequalities: g, likewise.
        lower: may hold -inf; equal to ``upper`` where an unknown is fixed.
        upper: may hold inf.
        constant: the derivatives that do not depend on y; None as long as nobody looked.
        bounded: False promises that all bounds are infinite.
    """

    objective: Callable[[Float[Array, " n"]], Scalar]
    equalities: Vector
    inequalities: Vector
    lower: Float[Array, " n"]
    upper: Float[Array, " n"]
    constant: Constant | None = None
    bounded: bool = eqx.field(static=True, default=True)

    def rows(self, y: Float[Array, " n"]) -> Float[Array, " p+m"]:
        return jnp.concatenate([self.equalities(y), self.inequalities(y)]).astype(y.dtype)

    def with_constant(self, y: Float[Array, " n"]) -> "NonlinearProgram":
        """The program, once it was looked for what is constant in it."""
        if self.constant is not None:
            return self
        found = constant_derivatives(lambda y: self.objective(y).astype(y.dtype), self.rows, y)
        return dataclasses.replace(self, constant=found)


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
