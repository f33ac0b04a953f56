"""A primal-dual interior-point method with a filter line search, for nonconvex problems.

The numbers in parentheses are equations of Wächter & Biegler 2006, see barrier.py.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Scalar

from .barrier import Point, errors, size
from .central_path import run_to_path
from .filter import Filter, Merit, armijo, smallest_step, sufficient, switching
from .kkt_system import Factors, System, factorise, solve
from .nlp import NonlinearProgram, PrimalDual
from .predictor import Ended, Predictor
from .restoration import ENOUGH, Restoration
from .scaled import Here, Scale, ScaledProgram, Values

KAPPA_EPS, KAPPA_MU, THETA_MU = 10.0, 0.2, 1.5  # decrease of the barrier parameter, (7)
TAU_MIN = 0.99  # fraction to the boundary, (8)
KAPPA_SOC, MAX_SOC = 0.99, 4  # second-order corrections, section 2.4
LARGEST_MULTIPLIER = 1e3  # of those estimated by least squares, section 3.6


class InteriorPoint(eqx.Module):
    """Wächter & Biegler's method, on device: jit, vmap, dense linear algebra.

    Args:
        initial_barrier: the barrier parameter at the start, for a scaled objective.
        smoothing: None, or the barrier parameter at the end, in the units of the objective: the
            answer is then the point of the central path where every slack times its multiplier is
            ``smoothing``, a smooth function of the params (see docs/constraints.md).

    Raises:
        TypeError, ValueError: a barrier parameter that is not a positive, finite number.
    """

    initial_barrier: float = 0.1
    smoothing: float | None = None

    def __check_init__(self):
        if isinstance(self.smoothing, bool) or not isinstance(self.smoothing, float | int | None):
            raise TypeError(
                "InteriorPoint(smoothing=...) must be None or a Python number; "
                f"found {self.smoothing!r}."
            )
        if self.smoothing is not None and not 0 < self.smoothing < float("inf"):
            raise ValueError(
                f"InteriorPoint(smoothing=...) must be positive and finite; found {self.smoothing}."
            )
        if not self.initial_barrier > 0:
            raise ValueError(
                "InteriorPoint(initial_barrier=...) must be positive; "
                f"found {self.initial_barrier}."
            )

    def run(
        self,
        program: NonlinearProgram,
        y: Float[Array, " n"],
        tolerance: Scalar,
        max_steps: Int[Array, ""],
    ) -> PrimalDual:
        """Solves ``program`` from ``y`` until the scaled error (5) is at most ``tolerance``."""

        def run(program, y):
            return self._run(program, y, tolerance, max_steps)

        if self.smoothing is None:
            return run(program, y)
        tolerance = jnp.minimum(tolerance, self.smoothing / 10)
        return run_to_path(run, program, y, self.smoothing)

    def _run(self, program, y, tolerance, max_steps) -> PrimalDual:
        method = _Method(program, y, jnp.asarray(tolerance, y.dtype), self)

        def goes_on(state: _State):
            return ~state.finished & (state.steps < max_steps)

        state = method.start(y)
        if method.scaled.curvature is not None:
            predictor = Predictor(method.scaled, method.scaled.curvature, y, method.tolerance)
            state = method.after(predictor.run(max_steps), state)
        return method.answer(jax.lax.while_loop(goes_on, method.step, state))


class _Search(eqx.Module):
    """The line search along a direction."""

    direction: Point
    alpha: Scalar  # as the tests see it, which in second-order corrections is the first one
    slope: Scalar  # of phi
    tiny: Bool[Array, ""]  # the direction is as short as rounding errors
    corrections: Int[Array, ""]
    corrected: Float[Array, " p+m"]  # the violation that the next correction removes
    last_theta: Scalar


class _Kept(eqx.Module):
    """What a second-order correction needs of the last direction."""

    system: System
    factors: Factors
    rx: Float[Array, " n+m"]


class _State(eqx.Module):
    """The best point so far, and the trial point, where the functions are evaluated next."""

    point: Point
    values: Values
    trial: Point
    forced: Bool[Array, ""]  # the trial point is not to be judged
    # 0: at the given start, for the scale; 1: inside, for the slacks; then 2.
    stage: Int[Array, ""]
    estimate: Bool[Array, ""]  # the multipliers of the rows are to be estimated
    mu: Scalar
    filter: Filter
    first_theta: Scalar
    search: _Search
    kept: _Kept | None
    last_shift: Scalar
    scale: Scale
    restoration: Restoration
    pull: Float[Array, " n"]  # the gradient of the Lagrangian without bounds
    steps: Int[Array, ""]
    finished: Bool[Array, ""]
    infeasible: Bool[Array, ""]


class _Method:
    """One run: what stays the same in it, and its step."""

    def __init__(
        self,
        program: NonlinearProgram,
        y: Float[Array, " n"],
        tolerance: Scalar,
        options: InteriorPoint,
    ):
        self.dtype = y.dtype
        self.eps = float(jnp.finfo(y.dtype).eps)
        self.tolerance = tolerance
        self.options = options
        self.scaled = ScaledProgram(program, y, jnp.minimum(tolerance, self.eps**0.5))
        self.bounds = self.scaled.bounds
        self.n, self.p, self.m = self.scaled.n, self.scaled.p, self.scaled.m
        self.floor = tolerance / (KAPPA_EPS + 1)  # of mu

    def start(self, y: Float[Array, " n"]) -> _State:
        zero, no = jnp.zeros((), self.dtype), jnp.array(False)
        rows = jnp.zeros(self.p + self.m, self.dtype)
        one = jnp.ones((), self.dtype)
        point = Point(
            x=jnp.concatenate([self.scaled.placed(y), jnp.ones_like(rows[self.p :])]),
            rows=rows,
            lower=self.bounds.has_lower.astype(self.dtype),
            upper=self.bounds.has_upper.astype(self.dtype),
        )
        program = self.scaled.program
        return _State(
            point=point,
            values=Values(zero, rows),
            trial=point,
            forced=~no,
            stage=jnp.array(0, jnp.int32),
            estimate=no,
            mu=jnp.full((), self.options.initial_barrier, self.dtype),
            filter=Filter.empty(self.dtype),
            first_theta=zero,
            search=_Search(point, one, zero, no, jnp.array(0, jnp.int32), rows, zero),
            kept=None if self.scaled.linear else self._nothing_kept(),
            last_shift=zero,
            scale=Scale(one, jnp.ones_like(rows)),
            restoration=Restoration(no, one, y, zero, one),
            pull=jnp.zeros_like(y),
            steps=jnp.array(0, jnp.int32),
            finished=no,
            infeasible=jnp.any(program.lower > program.upper),
        )

    def after(self, ended: Ended, start: _State) -> _State:
        """The state to go on from: nothing is left to do where the predictor solved the program."""
        found = eqx.tree_at(
            lambda state: (state.point, state.pull, state.scale.objective, state.finished),
            start,
            (ended.point, ended.pull, ended.objective_scale, jnp.array(True)),
        )
        state = _where(ended.solved, found, start)
        return eqx.tree_at(lambda state: state.steps, state, ended.steps)

    def _nothing_kept(self) -> _Kept:
        """Zeros of the right shapes."""
        n, p, m = self.n, self.p, self.m

        def shapes():
            system = System(
                hessian=jnp.zeros((n, n), self.dtype),
                factor=jnp.zeros((), self.dtype),
                barrier=jnp.zeros(n + m, self.dtype),
                jacobian=jnp.zeros((p + m, n), self.dtype),
                relaxed=jnp.zeros(p + m, self.dtype),
                fixed=jnp.zeros(n, bool),
            )
            factors = factorise(system, jnp.zeros((), self.dtype), jnp.array(True))
            return _Kept(system, factors, system.barrier)

        return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(shapes))

    # A step: judge the trial point, choose the direction, find the next trial point

    def step(self, state: _State) -> _State:
        restoration, search = state.restoration, state.search
        scaling, normal = state.stage == 0, (state.stage > 1) & ~state.estimate
        choosing = state.stage == 1
        here = self.scaled.evaluate(
            state.trial,
            state.scale,
            restoration,
            scaling=scaling,
            slackening=choosing,
        )
        before = self.merit(state.point.x, state.values, state.mu, restoration)
        after = self.merit(here.point.x, here.values, state.mu, restoration)
        passed, by_armijo = self.judge(state, before, after)
        accepted = scaling | (here.finite & (state.forced | passed))
        point, values = _where(accepted, (here.point, here.values), (state.point, state.values))
        first_theta = jnp.where(choosing, after.theta, state.first_theta)
        filter_ = _where(
            accepted & ~state.forced & ~by_armijo & ~restoration.active,
            state.filter.added(before),
            state.filter,
        )

        # How good is it?
        stationarity = here.gradient + here.times_rows(here.point.rows)
        pull = jnp.where(accepted, stationarity[: self.n], state.pull)
        stationarity = stationarity - here.point.lower + here.point.upper
        stationarity = self.scaled.movable(stationarity)
        error = errors(
            self.bounds,
            here.point,
            stationarity,
            jnp.where(restoration.active, 0, here.values.c),
        )
        total = error.at(0.0, self.bounds)
        judged = accepted & ~scaling & ~restoration.active
        converged = judged & (total <= self.tolerance)
        infeasible = accepted & restoration.active
        infeasible &= restoration.is_stationary(
            self.bounds, here.point, here.values.c, stationarity, self.tolerance
        )
        recovered = accepted & ~state.forced & restoration.active & self.recovers(state, here)

        # The barrier parameter
        mu = state.mu
        for _ in range(4):
            solved = accepted & normal & (error.at(mu, self.bounds) <= KAPPA_EPS * mu)
            solved = solved | (accepted & normal & search.tiny & (mu == state.mu))
            mu = jnp.where(solved, self.next_mu(mu), mu)
        stuck = accepted & search.tiny & (state.mu <= self.floor)
        filter_ = _where((mu != state.mu) & ~restoration.active, Filter.empty(self.dtype), filter_)

        # A refusal: a second-order correction, or a shorter step
        shorter = search.alpha / 2
        corrects = jnp.array(False)
        if state.kept is not None:
            corrects = (
                ~accepted & here.finite & ~restoration.active & self.corrects(search, before, after)
            )
        floor = jnp.where(
            restoration.active, self.eps, smallest_step(before, search.slope, first_theta)
        )
        failed = stuck | (~accepted & ~corrects & (shorter < floor))

        # The direction
        system = self.system(here, mu, restoration, state)
        factors = factorise(system, state.last_shift, accepted & ~scaling)
        failed = failed | (accepted & ~scaling & ~factors.sound)
        slope = self.slope(here, mu, restoration)
        along = self.scaled.movable(
            slope + here.times_rows(jnp.where(restoration.active, here.point.rows, 0))
        )
        rx = slope + here.times_rows(here.point.rows)
        rc = jnp.where(restoration.active, 0, here.values.c)
        rx, rc = _where(state.estimate, self.estimating(here), (rx, rc))
        left_over = search.alpha * search.corrected + here.values.c
        kept = None
        if state.kept is not None:
            kept = _where(accepted, _Kept(system, factors, rx), state.kept)
            system, factors, rx = kept.system, kept.factors, kept.rx
            rc = jnp.where(corrects, left_over, rc)
        dx, drows = solve(system, factors, rx, rc)
        target = mu * jnp.ones_like(rx)
        direction = self.bounds.direction(point, dx, drows, target, target)

        # The next trial point
        fresh = accepted | corrects
        used = _where(fresh, direction, search.direction)
        primal, dual = self.bounds.longest(point, used, jnp.maximum(TAU_MIN, 1 - mu))
        alpha = jnp.where(fresh, primal, shorter)
        trial = Point(
            x=point.x + alpha * used.x,
            rows=point.rows + alpha * used.rows,
            lower=point.lower + dual * used.lower,
            upper=point.upper + dual * used.upper,
        )
        trial = self.bounds.safeguarded(trial, mu)
        corrections = jnp.where(corrects, search.corrections + 1, MAX_SOC)
        tiny = jnp.all(jnp.abs(dx) <= 10 * self.eps * (1 + jnp.abs(point.x)))
        next_search = _Search(
            direction=_where(accepted, direction, search.direction),
            alpha=jnp.where(accepted, primal, jnp.where(corrects, search.alpha, shorter)),
            slope=jnp.where(accepted, along @ dx, search.slope),
            tiny=jnp.where(accepted, tiny & normal, search.tiny),
            corrections=jnp.where(accepted, 0, corrections),
            corrected=jnp.where(corrects, left_over, here.values.c),
            last_theta=after.theta,
        )

        # Where the trial point is set, and not found by a search
        largest = size(values.c)
        feasible = largest <= self.tolerance
        restores = failed & ~restoration.active & ~feasible
        given_up = failed & ~restores
        entered = Restoration(
            active=jnp.array(True),
            unit=jnp.maximum(largest, self.eps),
            reference=point.x[: self.n],
            theta=jnp.sum(jnp.abs(values.c)),
            mu=mu,
        )
        left = eqx.tree_at(lambda r: r.active, restoration, jnp.array(False))
        onward = _where(restores, entered, _where(recovered, left, restoration))
        filter_ = _where(restores, filter_.added(self.problem_merit(point, values, mu)), filter_)
        mu = jnp.where(restores, jnp.maximum(mu, largest), jnp.where(recovered, restoration.mu, mu))
        lower, upper = self.bounds.centred(point.x, mu)
        anew = Point(point.x, jnp.where(recovered, 0, point.rows), lower, upper)
        anew = _where(state.estimate, self.estimated(point, drows), anew)
        anew = _where(scaling, self.scaled.inside(state.point), anew)
        forced = restores | recovered | state.estimate | scaling
        trial, point = _where(forced, (anew, anew), (trial, point))
        dead = state.forced & ~here.finite & ~scaling
        escaped = size(point.x) > 1 / self.eps**1.25
        return _State(
            point=point,
            values=values,
            trial=trial,
            forced=forced,
            stage=jnp.minimum(state.stage + 1, 2),
            estimate=recovered | (scaling & (self.p + self.m > 0)),
            mu=mu,
            filter=filter_,
            first_theta=first_theta,
            search=next_search,
            kept=kept,
            last_shift=jnp.where(accepted & ~scaling, factors.last_shift, state.last_shift),
            scale=here.scale,
            restoration=onward,
            pull=pull,
            steps=state.steps + 1,
            finished=converged | infeasible | given_up | dead | escaped,
            infeasible=state.infeasible | infeasible,
        )

    # The merit of a point

    def problem_merit(self, point: Point, values: Values, mu: Scalar) -> Merit:
        phi = values.value + mu * self.bounds.barrier(point.x)
        return Merit(jnp.sum(jnp.abs(values.c)), phi)

    def merit(self, x: Array, values: Values, mu: Scalar, restoration: Restoration) -> Merit:
        value = jnp.where(restoration.active, restoration.objective(x, values.c, mu), values.value)
        return Merit(jnp.sum(jnp.abs(values.c)), value + mu * self.bounds.barrier(x))

    def judge(self, state: _State, before: Merit, after: Merit):
        """Whether the line search accepts, and whether by Armijo's condition."""
        search, first = state.search, state.first_theta
        descends = armijo(before, after, search.alpha, search.slope)
        switched = switching(before, search.alpha, search.slope, first)
        fine = jnp.where(switched, descends, sufficient(before, after, first))
        fine = fine & state.filter.accepts(after)
        fine = jnp.where(state.restoration.active, descends, fine)
        return fine | search.tiny, switched & descends

    def corrects(self, search: _Search, before: Merit, after: Merit) -> Bool[Array, ""]:
        """Whether a second-order correction is worth trying, steps A-5.5 and A-5.9."""
        first = search.corrections == 0
        helps = jnp.where(
            first, after.theta >= before.theta, after.theta <= KAPPA_SOC * search.last_theta
        )
        return helps & (search.corrections < MAX_SOC) & (before.theta > 0)

    def next_mu(self, mu: Scalar) -> Scalar:
        return jnp.maximum(self.floor, jnp.minimum(KAPPA_MU * mu, mu**THETA_MU))

    # The system of a step

    def slope(self, here: Here, mu: Scalar, restoration: Restoration) -> Float[Array, " n+m"]:
        """The gradient of phi, but for the violation in restoration."""
        back = restoration.slope(here.point.x, mu)
        slope = here.gradient + self.bounds.slope(here.point.x, mu)
        return jnp.concatenate([slope[: self.n] + back, slope[self.n :]])

    def system(self, here: Here, mu: Scalar, restoration: Restoration, state: _State) -> System:
        estimate = state.estimate
        near = restoration.curvature(mu)
        curvature = self.bounds.curvature(here.point)
        curvature = jnp.concatenate([curvature[: self.n] + near, curvature[self.n :]])
        return System(
            hessian=here.hessian,
            factor=jnp.where(estimate, 0, here.factor),
            barrier=jnp.where(estimate, 1, curvature),
            jacobian=here.jacobian,
            relaxed=jnp.where(restoration.active, restoration.unit, 0)
            * jnp.ones_like(here.point.rows),
            fixed=self.scaled.fixed,
        )

    def estimating(self, here: Here) -> tuple[Array, Array]:
        """The right-hand sides for the first multipliers: least squares, section 3.6."""
        slope = here.gradient - here.point.lower + here.point.upper
        return slope, jnp.zeros_like(here.values.c)

    def estimated(self, point: Point, drows: Array) -> Point:
        rows = jnp.where(size(drows) <= LARGEST_MULTIPLIER, drows, 0)
        return Point(point.x, rows, point.lower, point.upper)

    # Restoration

    def recovers(self, state: _State, here: Here) -> Bool[Array, ""]:
        merit = self.problem_merit(here.point, here.values, state.restoration.mu)
        return (merit.theta <= ENOUGH * state.restoration.theta) & state.filter.accepts(merit)

    def answer(self, state: _State) -> PrimalDual:
        n, p = self.n, self.p
        point, objective, program = state.point, state.scale.objective, self.scaled.program
        rows = state.scale.rows / objective
        pull = jnp.where(self.scaled.fixed, state.pull, 0)
        return PrimalDual(
            y=jnp.clip(point.x[:n], program.lower, program.upper),
            eq=point.rows[:p] * rows[:p],
            ineq=point.lower[n:] * rows[p:],
            lower=(point.lower[:n] + jnp.maximum(pull, 0)) / objective,
            upper=(point.upper[:n] + jnp.maximum(-pull, 0)) / objective,
            steps=state.steps,
            infeasible=state.infeasible,
        )


def _where(condition: Bool[Array, ""], yes: Any, no: Any) -> Any:
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), yes, no)
