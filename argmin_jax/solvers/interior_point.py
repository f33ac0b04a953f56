"""A primal-dual interior-point method with a filter line search, for nonconvex problems.

The numbers in parentheses are equations of Wächter & Biegler 2006, see barrier.py.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Scalar

from .barrier import Errors, Point, errors, size
from .central_path import run_to_path
from .filter import Filter, Merit, armijo, smallest_step, sufficient, switching
from .interior_state import Found, Kept, Progress, Search, Seen, State
from .kkt_system import System, factorise, solve
from .nlp import NonlinearProgram, PrimalDual
from .predictor import Ended, Predictor
from .restoration import ENOUGH, Restoration
from .scaled import Here, Scale, ScaledProgram, Values
from .units import run_in_units

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
            return run_in_units(run, program, y)
        tolerance = jnp.minimum(tolerance, self.smoothing / 10)
        return run_to_path(run, program, y, self.smoothing)

    def _run(self, program, y, tolerance, max_steps) -> PrimalDual:
        method = _Method(program, y, jnp.asarray(tolerance, y.dtype), self)

        def goes_on(state: State):
            return ~state.finished & (state.steps < max_steps)

        state = method.start(y)
        if method.scaled.curvature is not None:
            predictor = Predictor(method.scaled, method.scaled.curvature, y, method.tolerance)
            state = method.after(predictor.run(max_steps), state)
        return method.answer(jax.lax.while_loop(goes_on, method.step, state))


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

    def start(self, y: Float[Array, " n"]) -> State:
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
        return State(
            point=point,
            values=Values(zero, rows),
            trial=point,
            forced=~no,
            stage=jnp.array(0, jnp.int32),
            estimate=no,
            mu=jnp.full((), self.options.initial_barrier, self.dtype),
            filter=Filter.empty(self.dtype),
            first_theta=zero,
            search=Search(point, one, zero, no, jnp.array(0, jnp.int32), rows, zero),
            kept=None if self.scaled.linear else self._nothing_kept(),
            last_shift=zero,
            scale=Scale(one, jnp.ones_like(rows)),
            restoration=Restoration(no, one, y, zero, one),
            pull=jnp.zeros_like(y),
            steps=jnp.array(0, jnp.int32),
            finished=no,
            infeasible=jnp.any(program.lower > program.upper),
        )

    def after(self, ended: Ended, start: State) -> State:
        """The state to go on from: nothing is left to do where the predictor solved the program."""
        found = eqx.tree_at(
            lambda state: (state.point, state.pull, state.scale.objective, state.finished),
            start,
            (ended.point, ended.pull, ended.objective_scale, jnp.array(True)),
        )
        state = _where(ended.solved, found, start)
        return eqx.tree_at(lambda state: state.steps, state, ended.steps)

    def _nothing_kept(self) -> Kept:
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
            return Kept(system, factors, system.barrier)

        return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(shapes))

    # A step: judge the trial point, choose the direction, find the next trial point

    def step(self, state: State) -> State:
        seen = self.look(state)
        here, accepted = seen.here, seen.accepted
        point, values = _where(accepted, (here.point, here.values), (state.point, state.values))
        first_theta = jnp.where(state.choosing, seen.after.theta, state.first_theta)
        progress = self.progress(state, seen)
        mu = self.lowered(state, seen, progress.error)
        corrects = self.corrects(state, seen)
        found = self.find_direction(state, seen, point, mu, corrects)
        trial, search = self.next_trial(state, seen, point, found, mu, corrects)

        # Where the trial point is set, and not found by a search
        failed = self.fails(state, seen, found, corrects, first_theta)
        largest = size(values.c)
        restores = failed & ~state.restoration.active & (largest > self.tolerance)
        filter_ = self.next_filter(state, seen, mu)
        filter_ = _where(restores, filter_.added(self.problem_merit(point, values, mu)), filter_)
        restoration = self.next_restoration(
            state.restoration, point, values, mu, restores, progress.recovered
        )
        mu = jnp.where(
            restores,
            jnp.maximum(mu, largest),
            jnp.where(progress.recovered, state.restoration.mu, mu),
        )
        forced = restores | progress.recovered | state.estimate | state.scaling
        anew = self.placed(state, point, found.drows, mu, progress.recovered)
        trial, point = _where(forced, (anew, anew), (trial, point))

        ended = progress.converged | progress.infeasible | (failed & ~restores)
        dead = state.forced & ~here.finite & ~state.scaling
        escaped = size(point.x) > 1 / self.eps**1.25
        return State(
            point=point,
            values=values,
            trial=trial,
            forced=forced,
            stage=jnp.minimum(state.stage + 1, 2),
            estimate=progress.recovered | (state.scaling & (self.p + self.m > 0)),
            mu=mu,
            filter=filter_,
            first_theta=first_theta,
            search=search,
            kept=found.kept,
            last_shift=jnp.where(accepted & ~state.scaling, found.last_shift, state.last_shift),
            scale=here.scale,
            restoration=restoration,
            pull=progress.pull,
            steps=state.steps + 1,
            finished=ended | dead | escaped,
            infeasible=state.infeasible | progress.infeasible,
        )

    def look(self, state: State) -> Seen:
        """Evaluates the trial point, and has the line search judge it."""
        restoration = state.restoration
        here = self.scaled.evaluate(
            state.trial,
            state.scale,
            restoration,
            scaling=state.scaling,
            slackening=state.choosing,
        )
        before = self.merit(state.point.x, state.values, state.mu, restoration)
        after = self.merit(here.point.x, here.values, state.mu, restoration)
        passed, by_armijo = self.judge(state, before, after)
        accepted = state.scaling | (here.finite & (state.forced | passed))
        return Seen(here, before, after, accepted, by_armijo)

    def progress(self, state: State, seen: Seen) -> Progress:
        """How good the trial point is."""
        here, accepted, restoration = seen.here, seen.accepted, state.restoration
        stationarity = here.gradient + here.times_rows(here.point.rows)
        pull = jnp.where(accepted, stationarity[: self.n], state.pull)
        stationarity = stationarity - here.point.lower + here.point.upper
        stationarity = self.scaled.movable(stationarity)
        violation = jnp.where(restoration.active, 0, here.values.c)
        error = errors(self.bounds, here.point, stationarity, violation)
        judged = accepted & ~state.scaling & ~restoration.active
        infeasible = restoration.is_stationary(
            self.bounds, here.point, here.values.c, stationarity, self.tolerance
        )
        recovered = accepted & ~state.forced & restoration.active & self.recovers(state, here)
        return Progress(
            pull=pull,
            error=error,
            converged=judged & (error.at(0.0, self.bounds) <= self.tolerance),
            infeasible=infeasible & accepted & restoration.active,
            recovered=recovered,
        )

    def lowered(self, state: State, seen: Seen, error: Errors) -> Scalar:
        """The next barrier parameter, after (7): lower where its problem is solved."""
        mu, counts = state.mu, seen.accepted & state.normal
        for _ in range(4):
            solved = error.at(mu, self.bounds) <= KAPPA_EPS * mu
            solved = counts & (solved | (state.search.tiny & (mu == state.mu)))
            mu = jnp.where(solved, self.next_mu(mu), mu)
        return mu

    def next_filter(self, state: State, seen: Seen, mu: Scalar) -> Filter:
        in_restoration = state.restoration.active
        adds = seen.accepted & ~state.forced & ~seen.by_armijo & ~in_restoration
        filter_ = _where(adds, state.filter.added(seen.before), state.filter)
        return _where((mu != state.mu) & ~in_restoration, Filter.empty(self.dtype), filter_)

    def corrects(self, state: State, seen: Seen) -> Bool[Array, ""]:
        """Whether a refusal is answered by a second-order correction, steps A-5.5 and A-5.9."""
        if state.kept is None:
            return jnp.array(False)
        search, theta = state.search, seen.after.theta
        helps = jnp.where(
            search.corrections == 0,
            theta >= seen.before.theta,
            theta <= KAPPA_SOC * search.last_theta,
        )
        wanted = helps & (search.corrections < MAX_SOC) & (seen.before.theta > 0)
        return ~seen.accepted & seen.here.finite & ~state.restoration.active & wanted

    def fails(
        self,
        state: State,
        seen: Seen,
        found: Found,
        corrects: Bool[Array, ""],
        first_theta: Scalar,
    ) -> Bool[Array, ""]:
        """Whether there is no way on from here: no shorter step, or no direction."""
        search = state.search
        stuck = seen.accepted & search.tiny & (state.mu <= self.floor)
        least = smallest_step(seen.before, search.slope, first_theta)
        least = jnp.where(state.restoration.active, self.eps, least)
        too_short = ~seen.accepted & ~corrects & (search.alpha / 2 < least)
        return stuck | too_short | (seen.accepted & ~state.scaling & ~found.sound)

    def find_direction(
        self, state: State, seen: Seen, point: Point, mu: Scalar, corrects: Bool[Array, ""]
    ) -> Found:
        here, accepted, restoration = seen.here, seen.accepted, state.restoration
        system = self.system(here, mu, restoration, state)
        factors = factorise(system, state.last_shift, accepted & ~state.scaling)
        sound, last_shift = factors.sound, factors.last_shift
        slope = self.slope(here, mu, restoration)
        along = slope + here.times_rows(jnp.where(restoration.active, here.point.rows, 0))
        rx = slope + here.times_rows(here.point.rows)
        rc = jnp.where(restoration.active, 0, here.values.c)
        rx, rc = _where(state.estimate, self.estimating(here), (rx, rc))
        left_over = state.search.alpha * state.search.corrected + here.values.c
        kept = None
        if state.kept is not None:
            kept = _where(accepted, Kept(system, factors, rx), state.kept)
            system, factors, rx = kept.system, kept.factors, kept.rx
            rc = jnp.where(corrects, left_over, rc)
        dx, drows = solve(system, factors, rx, rc)
        target = mu * jnp.ones_like(rx)
        return Found(
            direction=self.bounds.direction(point, dx, drows, target, target),
            slope=self.scaled.movable(along) @ dx,
            drows=drows,
            tiny=jnp.all(jnp.abs(dx) <= 10 * self.eps * (1 + jnp.abs(point.x))),
            corrected=jnp.where(corrects, left_over, here.values.c),
            kept=kept,
            last_shift=last_shift,
            sound=sound,
        )

    def next_trial(
        self,
        state: State,
        seen: Seen,
        point: Point,
        found: Found,
        mu: Scalar,
        corrects: Bool[Array, ""],
    ) -> tuple[Point, Search]:
        """Along a new direction as far as the bounds allow, along the old one half as far."""
        search, accepted = state.search, seen.accepted
        fresh, shorter = accepted | corrects, search.alpha / 2
        used = _where(fresh, found.direction, search.direction)
        primal, dual = self.bounds.longest(point, used, jnp.maximum(TAU_MIN, 1 - mu))
        alpha = jnp.where(fresh, primal, shorter)
        trial = Point(
            x=point.x + alpha * used.x,
            rows=point.rows + alpha * used.rows,
            lower=point.lower + dual * used.lower,
            upper=point.upper + dual * used.upper,
        )
        corrections = jnp.where(corrects, search.corrections + 1, MAX_SOC)
        return self.bounds.safeguarded(trial, mu), Search(
            direction=_where(accepted, found.direction, search.direction),
            alpha=jnp.where(accepted, primal, jnp.where(corrects, search.alpha, shorter)),
            slope=jnp.where(accepted, found.slope, search.slope),
            tiny=jnp.where(accepted, found.tiny & state.normal, search.tiny),
            corrections=jnp.where(accepted, 0, corrections),
            corrected=found.corrected,
            last_theta=seen.after.theta,
        )

    def next_restoration(
        self,
        restoration: Restoration,
        point: Point,
        values: Values,
        mu: Scalar,
        enters: Bool[Array, ""],
        leaves: Bool[Array, ""],
    ) -> Restoration:
        entered = Restoration(
            active=jnp.array(True),
            unit=jnp.maximum(size(values.c), self.eps),
            reference=point.x[: self.n],
            theta=jnp.sum(jnp.abs(values.c)),
            mu=mu,
        )
        left = eqx.tree_at(lambda r: r.active, restoration, jnp.array(False))
        return _where(enters, entered, _where(leaves, left, restoration))

    def placed(
        self, state: State, point: Point, drows: Array, mu: Scalar, recovered: Bool[Array, ""]
    ) -> Point:
        """The point at the start, with its first multipliers, or where restoration is entered or
        left."""
        lower, upper = self.bounds.centred(point.x, mu)
        anew = Point(point.x, jnp.where(recovered, 0, point.rows), lower, upper)
        anew = _where(state.estimate, self.estimated(point, drows), anew)
        return _where(state.scaling, self.scaled.inside(state.point), anew)

    # The merit of a point

    def problem_merit(self, point: Point, values: Values, mu: Scalar) -> Merit:
        phi = values.value + mu * self.bounds.barrier(point.x)
        return Merit(jnp.sum(jnp.abs(values.c)), phi)

    def merit(self, x: Array, values: Values, mu: Scalar, restoration: Restoration) -> Merit:
        value = jnp.where(restoration.active, restoration.objective(x, values.c, mu), values.value)
        return Merit(jnp.sum(jnp.abs(values.c)), value + mu * self.bounds.barrier(x))

    def judge(self, state: State, before: Merit, after: Merit):
        """Whether the line search accepts, and whether by Armijo's condition."""
        search, first = state.search, state.first_theta
        descends = armijo(before, after, search.alpha, search.slope)
        switched = switching(before, search.alpha, search.slope, first)
        fine = jnp.where(switched, descends, sufficient(before, after, first))
        fine = fine & state.filter.accepts(after)
        fine = jnp.where(state.restoration.active, descends, fine)
        return fine | search.tiny, switched & descends

    def next_mu(self, mu: Scalar) -> Scalar:
        return jnp.maximum(self.floor, jnp.minimum(KAPPA_MU * mu, mu**THETA_MU))

    # The system of a step

    def slope(self, here: Here, mu: Scalar, restoration: Restoration) -> Float[Array, " n+m"]:
        """The gradient of phi, but for the violation in restoration."""
        back = restoration.slope(here.point.x, mu)
        slope = here.gradient + self.bounds.slope(here.point.x, mu)
        return jnp.concatenate([slope[: self.n] + back, slope[self.n :]])

    def system(self, here: Here, mu: Scalar, restoration: Restoration, state: State) -> System:
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

    def recovers(self, state: State, here: Here) -> Bool[Array, ""]:
        merit = self.problem_merit(here.point, here.values, state.restoration.mu)
        return (merit.theta <= ENOUGH * state.restoration.theta) & state.filter.accepts(merit)

    def answer(self, state: State) -> PrimalDual:
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
