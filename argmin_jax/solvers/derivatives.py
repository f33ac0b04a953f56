"""The first and second derivatives of a nonlinear program, traced as seldom as possible."""

import equinox as eqx
import jax
import jax.numpy as jnp
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
        self.program = program.with_constant(y)
        assert self.program.constant is not None
        self.jacobian = self.program.constant.jacobian
        self.curvature = self.program.constant.hessian

    def objective(self, y: Float[Array, " n"]) -> Scalar:
        return self.program.objective(y).astype(y.dtype)

    def rows(self, y: Float[Array, " n"]) -> Float[Array, " p+m"]:
        return self.program.rows(y)

    def first_order(self, y: Float[Array, " n"]) -> FirstOrder:
        if self.jacobian is not None:
            value, gradient = jax.value_and_grad(self.objective)(y)
            return FirstOrder(value, self.rows(y), gradient, self.jacobian)

        def with_values(y):
            found = self._stacked(y)
            return found, found

        wide = jax.eval_shape(self.rows, y).size >= y.size
        derivative = jax.jacfwd if wide else jax.jacrev
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
