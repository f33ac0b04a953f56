"""Mehrotra's predictor-corrector method for convex quadratic programs.

Mehrotra, On the implementation of a primal-dual interior point method, 1992. Every step is taken,
as far as slacks and multipliers stay positive, without a line search; where that does not lead to
a solution soon, the filter method of `interior_point` has to.
"""

from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.lax.linalg import cholesky
from jaxtyping import Array, Bool, Float, Int, Scalar

from ..factors import if_needed
from .barrier import Errors, Point, errors
from .kkt_system import System, factorise_definite, solve, solve_once
from .pivoting import Pivoted, has_few_rows, pivot
from .scaled import ScaledProgram, Slopes

PROGRESS = 0.9  # of the merit in a step; without it
STALLED = 4  # steps are enough
TAU = 0.995  # fraction to the boundary
BEYOND = 0.03  # of the tolerance is what float32 aims at


class Ended(eqx.Module):
    """Where the method ended, and whether that is a solution."""

    point: Point
    pull: Float[Array, " n"]  # the gradient of the Lagrangian without bounds
    objective_scale: Scalar
    steps: Int[Array, ""]
    solved: Bool[Array, ""]


class _State(eqx.Module):
    point: Point
    slopes: Slopes
    error: Scalar
    # The smallest merit so far: that of the error's parts, with the average product of
    # complementarity for the largest, which may grow for some steps.
    best: Scalar
    stalled: Int[Array, ""]
    sound: Bool[Array, ""]  # convex, and finite
    steps: Int[Array, ""]


class Predictor:
    """The method for one program: what stays the same in it, and its step."""

    def __init__(
        self,
        scaled: ScaledProgram,
        curvature: Float[Array, "n n"],
        y: Float[Array, " n"],
        tolerance: Scalar,
    ):
        self.scaled, self.bounds = scaled, scaled.bounds
        self.tolerance = tolerance
        self.y = scaled.placed(y)
        self.curvature = curvature
        self.scale, self.slopes = scaled.first_slopes(self.y)

    def run(self, max_steps: Int[Array, ""]) -> Ended:
        """From where pivoting ended, if that is a solution, or else from a start of its own.

        In float32 a slack and a multiplier whose product is as small as the tolerance are not yet
        told apart: there steps are taken beyond it for as long as they help.
        """
        beyond = jnp.finfo(self.y.dtype).bits < 64
        aim = self.tolerance * (BEYOND if beyond else 1)

        def goes_on(state: _State):
            given_up = (state.stalled >= STALLED) | (state.steps >= max_steps)
            return state.sound & (state.error > aim) & ~given_up

        def step(state: _State) -> _State:
            new = self.step(state)
            if not beyond:
                return new
            kept = eqx.tree_at(
                lambda s: (s.stalled, s.steps), state, (jnp.array(STALLED, jnp.int32), new.steps)
            )
            helps = new.sound & (new.error < state.error)
            solved = state.error <= self.tolerance
            return jax.tree.map(partial(jnp.where, solved & ~helps), kept, new)

        if not has_few_rows(self.scaled):
            start = self.start(jnp.zeros((), self.y.dtype))
        else:
            hessian = self.scale * self.curvature
            tried = pivot(self.scaled, hessian, self.y, self.slopes, max_steps)
            first = self.pivoted(tried)
            start = if_needed(
                ~(first.error <= self.tolerance),  # or NaN
                lambda zero: self.start(zero, tried.count),
                first,
                self.y.dtype,
            )
        end = jax.lax.while_loop(goes_on, step, start)
        return Ended(
            point=end.point,
            pull=self.pull(end.point, end.slopes)[: self.scaled.n],
            objective_scale=self.scale,
            steps=end.steps,
            solved=end.sound & (end.error <= self.tolerance),
        )

    def pivoted(self, tried: Pivoted) -> _State:
        """Its end, where the products of complementarity are zero."""
        slopes = self.scaled.slopes(tried.point.x, self.scale)
        found = self.errors(tried.point, slopes)
        return self.state(tried.point, slopes, found.linear, found.linear, tried.count)

    def start(self, zero: Scalar, steps: Int[Array, ""] | int = 0) -> _State:
        """The start that the solution of the first system makes; ``zero`` is that of `if_needed`.

        That is the solution of the program with |s|^2 / 2 added and the signs of s and its
        multipliers, which are -s, ignored: both are then lifted to be positive (Vandenberghe, The
        CVXOPT linear and quadratic cone program solvers, 2010, section 5.3).
        """
        n, bounds = self.scaled.n, self.bounds
        y, slack = self.y, jnp.zeros(self.scaled.m, self.y.dtype)
        bounded = (bounds.has_lower | bounds.has_upper).astype(y.dtype)
        system = self.system(bounded + zero)
        factors = factorise_definite(system)
        gradient = jnp.concatenate([self.slopes.gradient, slack])
        dx, rows = solve(system, factors, gradient, self.slopes.c)
        point = Point(
            x=jnp.concatenate([y + dx[:n], _lifted(dx[n:])]),
            rows=rows,
            lower=jnp.concatenate([bounded[:n] * bounds.has_lower[:n], _lifted(-dx[n:])]),
            upper=bounds.has_upper.astype(y.dtype),
        )
        point = self.scaled.inside(point)
        slopes = self.scaled.slopes(point.x, self.scale)
        error, merit = self.error_and_merit(point, slopes)
        state = self.state(point, slopes, error, merit, steps)
        # After the factorisation above, not beside it (see triangular.py).
        convex = is_convex(self.curvature + 0 * factors.inverse[0, 0])
        return eqx.tree_at(lambda s: s.sound, state, state.sound & convex & factors.sound)

    def state(
        self,
        point: Point,
        slopes: Slopes,
        error: Scalar,
        merit: Scalar,
        steps: Int[Array, ""] | int,
    ) -> _State:
        return _State(
            point=point,
            slopes=slopes,
            error=error,
            best=merit,
            stalled=jnp.array(0, jnp.int32),
            sound=jnp.isfinite(error),
            steps=jnp.array(steps, jnp.int32),
        )

    def step(self, state: _State) -> _State:
        bounds, point, slopes = self.bounds, state.point, state.slopes
        system = self.system(bounds.curvature(point))
        factors = factorise_definite(system)
        pull = self.pull(point, slopes)

        # The affine step tells how much centring is needed, and what the products of
        # complementarity are left with to second order.
        zero = jnp.zeros_like(point.x)
        dx, drows = solve_once(system, factors, pull, slopes.c)
        affine = bounds.direction(point, dx, drows, zero, zero)
        reached = point.moved(affine, jnp.minimum(*bounds.longest(point, affine, 1.0)))
        average = bounds.average(point)
        ratio = bounds.average(reached) / jnp.where(average > 0, average, 1)
        mu = jnp.maximum(ratio**3 * average, 1e-4 * self.tolerance)
        lower, upper = mu - dx * affine.lower, mu + dx * affine.upper

        right = pull + bounds.push(point.x, lower, upper)
        dx, drows = solve_once(system, factors, right, slopes.c)
        direction = bounds.direction(point, dx, drows, lower, upper)
        point = point.moved(direction, jnp.minimum(*bounds.longest(point, direction, TAU)))

        slopes = self.scaled.slopes(point.x, self.scale)
        error, merit = self.error_and_merit(point, slopes)
        better = merit < PROGRESS * state.best
        return _State(
            point=point,
            slopes=slopes,
            error=error,
            best=jnp.where(better, merit, state.best),
            stalled=jnp.where(better, 0, state.stalled + 1),
            sound=factors.sound & jnp.isfinite(error),
            steps=state.steps + 1,
        )

    def system(self, barrier: Float[Array, " n+m"]) -> System:
        return System(
            hessian=self.curvature,
            factor=self.scale,
            barrier=barrier,
            jacobian=self.scaled.jacobian,
            relaxed=jnp.zeros(self.scaled.p + self.scaled.m, self.y.dtype),
            fixed=self.scaled.fixed,
        )

    def pull(self, point: Point, slopes: Slopes) -> Float[Array, " n+m"]:
        """The gradient of the Lagrangian without bounds."""
        of_y = slopes.gradient + self.scaled.jacobian.T @ point.rows
        return jnp.concatenate([of_y, point.rows[self.scaled.p :]])

    def errors(self, point: Point, slopes: Slopes) -> Errors:
        stationarity = self.pull(point, slopes) - point.lower + point.upper
        return errors(self.bounds, point, self.scaled.movable(stationarity), slopes.c)

    def error_and_merit(self, point: Point, slopes: Slopes) -> tuple[Scalar, Scalar]:
        found = self.errors(point, slopes)
        merit = jnp.maximum(found.linear, self.bounds.average(point) / found.scale)
        return found.at(0.0, self.bounds), merit


def is_convex(curvature: Float[Array, "n n"]) -> Bool[Array, ""]:
    """Whether a matrix is positive semidefinite, to half of the digits."""
    eps = float(jnp.finfo(curvature.dtype).eps)
    n = curvature.shape[0]
    least = eps**0.5 * jnp.max(jnp.abs(curvature), initial=eps)
    shifted = curvature + least * jnp.eye(n, dtype=curvature.dtype)
    return jnp.all(jnp.isfinite(jnp.diagonal(cholesky(shifted, symmetrize_input=False))))


def _lifted(x: Array) -> Array:
    """x, or where some of it is not positive, x + constant >= 1."""
    least = jnp.min(x, initial=jnp.inf)
    return x + jnp.where(least > 0, 0, 1 - least)
