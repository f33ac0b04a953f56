"""The first and second derivatives of a nonlinear program, traced as seldom as possible."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.interpreters.partial_eval import dce_jaxpr
from jaxtyping import Array, Float, Scalar

from .nlp import NonlinearProgram


class FirstOrder(eqx.Module):
    """Values and slopes at a point; the rows are the equalities, then the inequalities."""

    value: Scalar
    rows: Float[Array, " p+m"]
    gradient: Float[Array, " n"]
    jacobian: Float[Array, "p+m n"]


class Derivatives:
    """The derivatives of ``program``; what does not depend on the point is evaluated once.

    Attributes:
        jacobian: of the rows, if their trace tells that they are linear; else None.
        curvature: of the objective, if besides it is quadratic; else None.
    """

    def __init__(self, program: NonlinearProgram, y: Float[Array, " n"]):
        self.program = program
        rows = jax.jacfwd(self.rows) if self._wide(y) else jax.jacrev(self.rows)
        linear = _is_constant(rows, y)
        self.jacobian = rows(y) if linear else None
        hessian = jax.hessian(self.objective)
        self.curvature = hessian(y) if linear and _is_constant(hessian, y) else None

    def objective(self, y: Float[Array, " n"]) -> Scalar:
        return self.program.objective(y).astype(y.dtype)

    def rows(self, y: Float[Array, " n"]) -> Float[Array, " p+m"]:
        both = self.program.equalities(y), self.program.inequalities(y)
        return jnp.concatenate(both).astype(y.dtype)

    def first_order(self, y: Float[Array, " n"]) -> FirstOrder:
        if self.jacobian is not None:
            value, gradient = jax.value_and_grad(self.objective)(y)
            return FirstOrder(value, self.rows(y), gradient, self.jacobian)

        def with_values(y):
            found = self._stacked(y)
            return found, found

        derivative = jax.jacfwd if self._wide(y) else jax.jacrev
        slopes, values = derivative(with_values, has_aux=True)(y)
        return FirstOrder(values[0], values[1:], slopes[0], slopes[1:])

    def hessian(
        self, y: Float[Array, " n"], factor: Scalar, rows: Float[Array, " p+m"]
    ) -> tuple[Float[Array, "n n"], Scalar]:
        """Of factor * objective + rows' constraints: a matrix, and a factor that belongs to it."""
        if self.curvature is not None:
            return self.curvature, factor
        if self.jacobian is not None:
            return jax.hessian(self.objective)(y), factor
        weights = jnp.concatenate([factor[None], rows])

        def gradient(y):
            return jax.vjp(self._stacked, y)[1](weights)[0]

        return jax.jacfwd(gradient)(y), jnp.ones_like(factor)

    def _stacked(self, y):
        return jnp.concatenate([self.objective(y)[None], self.rows(y)])

    def _wide(self, y) -> bool:
        """Whether forward mode needs fewer passes for the Jacobian."""
        return jax.eval_shape(self.rows, y).size >= y.size


def _is_constant(fn: Callable[[Array], Any], y: Array) -> bool:
    """Whether the result of ``fn`` does not depend on y, as its trace tells."""
    closed = jax.make_jaxpr(fn)(y)
    _, used = dce_jaxpr(closed.jaxpr, [True] * len(closed.jaxpr.outvars))
    return not any(used)
