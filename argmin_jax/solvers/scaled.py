"""The problem as the interior-point method sees it: scaled, with slacks, on x = (y, s)."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Scalar

from .barrier import Bounds, Point
from .derivatives import Derivatives
from .nlp import NonlinearProgram
from .restoration import Restoration

LARGEST_GRADIENT = 100.0  # at the start, after scaling, section 3.8
LEAST_SLACK = 1e-2  # at the start, section 3.6


class Scale(eqx.Module):
    objective: Scalar
    rows: Float[Array, " p+m"]


class Values(eqx.Module):
    """Objective and violation c = (h, g + s), both scaled."""

    value: Scalar
    c: Float[Array, " p+m"]


class Slopes(eqx.Module):
    """What a step of a quadratic program needs to know of a point."""

    gradient: Float[Array, " n"]  # of the objective
    c: Float[Array, " p+m"]


class Here(eqx.Module):
    """Everything that is known of the problem at a point."""

    point: Point
    values: Values
    gradient: Float[Array, " n+m"]  # of the objective; zero in restoration
    jacobian: Float[Array, "p+m n"]
    hessian: Float[Array, "n n"]  # of the Lagrangian, but for
    factor: Scalar  # its factor
    scale: Scale
    finite: Bool[Array, ""]

    def times_rows(self, rows: Float[Array, " p+m"]) -> Float[Array, " n+m"]:
        """The transposed Jacobian of c, times ``rows``."""
        slacks = self.gradient.size - self.jacobian.shape[1]
        return jnp.concatenate([self.jacobian.T @ rows, rows[rows.size - slacks :]])


class ScaledProgram:
    """A program with the scales of its rows, where they are linear, and its relaxed bounds."""

    def __init__(self, program: NonlinearProgram, y: Float[Array, " n"], relaxation: Scalar):
        self.n = y.size
        self.p = jax.eval_shape(program.equalities, y).size
        self.m = jax.eval_shape(program.inequalities, y).size
        self.program, self.bounded = program, program.bounded
        self.fixed = program.lower >= program.upper
        self.bounds = Bounds(program.lower, program.upper, self.m, relaxation)
        self.derivatives = Derivatives(program, y)
        linear = self.derivatives.jacobian
        self.linear = linear is not None
        self.curvature = self.derivatives.curvature
        if linear is not None:
            self.row_scale = _scale(linear)
            self.jacobian = self.row_scale[:, None] * linear

    def evaluate(
        self,
        trial: Point,
        scale: Scale,
        restoration: Restoration,
        scaling: Bool[Array, ""],
        slackening: Bool[Array, ""],
    ) -> Here:
        """The problem at ``trial``; scale or slacks are chosen there where the flags say so."""
        y = trial.x[: self.n]
        raw = self.derivatives.first_order(y)
        if self.linear:
            of_rows, jacobian = self.row_scale, self.jacobian
        else:
            of_rows = jnp.where(scaling, _scale(raw.jacobian), scale.rows)
            jacobian = of_rows[:, None] * raw.jacobian
        scale = Scale(jnp.where(scaling, _scale(raw.gradient), scale.objective), of_rows)
        rows = of_rows * raw.rows
        slacks = jnp.maximum(-rows[self.p :], LEAST_SLACK)
        slacks = jnp.where(slackening, slacks, trial.x[self.n :])
        c = jnp.concatenate([rows[: self.p], rows[self.p :] + slacks])
        multipliers = jnp.where(restoration.active, c / restoration.unit, trial.rows)
        objective = jnp.where(restoration.active, 0, scale.objective)
        hessian, factor = self.derivatives.hessian(y, objective, of_rows * multipliers)
        gradient = jnp.concatenate([objective * raw.gradient, jnp.zeros_like(slacks)])
        values = Values(scale.objective * raw.value, c)
        varying = [values.value, c, gradient]
        varying += [] if self.linear else [jacobian]
        varying += [] if self.curvature is not None else [hessian]
        finite = jnp.stack([jnp.all(jnp.isfinite(each)) for each in varying])
        point = Point(jnp.concatenate([y, slacks]), multipliers, trial.lower, trial.upper)
        return Here(point, values, gradient, jacobian, hessian, factor, scale, jnp.all(finite))

    def first_slopes(self, y: Float[Array, " n"]) -> tuple[Scalar, Slopes]:
        """The objective's scale, from the start of a quadratic program, and the slopes there."""
        gradient = jax.grad(self.derivatives.objective)(y)
        scale = _scale(gradient)
        return scale, Slopes(scale * gradient, self.row_scale * self.derivatives.rows(y))

    def slopes(self, x: Float[Array, " n+m"], scale: Scalar) -> Slopes:
        """At x, of a quadratic program."""
        y, slacks = x[: self.n], x[self.n :]
        rows = self.row_scale * self.derivatives.rows(y)
        return Slopes(
            gradient=scale * jax.grad(self.derivatives.objective)(y),
            c=jnp.concatenate([rows[: self.p], rows[self.p :] + slacks]),
        )

    def movable(self, x: Float[Array, " n+m"]) -> Float[Array, " n+m"]:
        """x without its components along fixed unknowns."""
        return jnp.concatenate([jnp.where(self.fixed, 0, x[: self.n]), x[self.n :]])

    def placed(self, y: Float[Array, " n"]) -> Float[Array, " n"]:
        """y with the fixed unknowns at their values."""
        return jnp.where(self.fixed, self.program.lower, y)

    def inside(self, point: Point) -> Point:
        """The point moved inside the bounds."""
        x = self.bounds.inside(point.x)
        x = jnp.concatenate([self.placed(x[: self.n]), x[self.n :]])
        return Point(x, point.rows, point.lower, point.upper)


def _scale(slopes: Array) -> Array:
    """The factor that brings the largest entry along the last axis down to LARGEST_GRADIENT."""
    largest = jnp.max(jnp.abs(slopes), axis=-1, initial=0)
    large = (largest > LARGEST_GRADIENT) & jnp.isfinite(largest)
    return jnp.where(large, LARGEST_GRADIENT / largest, 1)
