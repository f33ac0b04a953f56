"""A primal-dual interior-point method with a filter line search, for nonconvex problems.

The numbers in parentheses are equations of Wächter & Biegler 2006, see barrier.py.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Scalar

from .barrier import Bounds, Point, errors, size
from .derivatives import Derivatives
from .filter import Filter, Merit, armijo, smallest_step, sufficient, switching
from .kkt_system import Factors, System, factorise, solve, solve_once
from .nlp import NonlinearProgram, PrimalDual

KAPPA_EPS, KAPPA_MU, THETA_MU = 10.0, 0.2, 1.5  # decrease of the barrier parameter, (7)
TAU_MIN = 0.99  # fraction to the boundary, (8)
KAPPA_SOC, MAX_SOC = 0.99, 4  # second-order corrections, section 2.4
LARGEST_GRADIENT = 100.0  # at the start, after scaling, section 3.8
LARGEST_MULTIPLIER = 1e3  # of those estimated by least squares, section 3.6
LEAST_SLACK = 1e-2  # at the start, section 3.6
ENOUGH = 0.9  # restoration ends where the violation fell below this part, section 3.3
STALLED = 4  # steps without progress after which the predictor-corrector gives way


class InteriorPoint(eqx.Module):
    """Wächter & Biegler's method, on device: jit, vmap, dense linear algebra.

    Args:
        initial_barrier: the barrier parameter at the start, for a scaled objective.

    Raises:
        ValueError: a barrier parameter that is not positive.
    """

    initial_barrier: float = 0.1

    def __check_init__(self):
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
        method = _Method(program, y, jnp.asarray(tolerance, y.dtype), self)

        def goes_on(state: _State):
            return ~state.finished & (state.steps < max_steps)

        return method.answer(jax.lax.while_loop(goes_on, method.step, method.start(y)))


class _Scale(eqx.Module):
    objective: Scalar
    rows: Float[Array, " p+m"]


class _Values(eqx.Module):
    """Objective and violation c = (h, g + s), both scaled."""

    value: Scalar
    c: Float[Array, " p+m"]


class _Restoration(eqx.Module):
    """While active, |c|^2 / (2 unit) takes the place of the objective and its rows.

    A small term holds y near the reference, as in section 3.3; there, however, the violation is
    measured in the 1-norm.
    """

    active: Bool[Array, ""]
    unit: Scalar  # the largest violation at its start
    reference: Float[Array, " n"]
    theta: Scalar  # the violation at its start
    mu: Scalar  # the barrier parameter of the problem itself, meanwhile


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


class _Free(eqx.Module):
    """Mehrotra's predictor-corrector on a quadratic program, as long as it makes progress."""

    active: Bool[Array, ""]
    best: Scalar  # the smallest error so far
    stalled: Int[Array, ""]


class _State(eqx.Module):
    """The best point so far, and the trial point, where the functions are evaluated next."""

    point: Point
    values: _Values
    trial: Point
    forced: Bool[Array, ""]  # the trial point is not to be judged
    # 0: at the given start, for the scale; 1: inside, for the slacks; then 2. A quadratic program
    # begins at 1, as nothing but its bounds depends on the start.
    stage: Int[Array, ""]
    estimate: Bool[Array, ""]  # the multipliers of the rows are to be estimated
    mu: Scalar
    filter: Filter
    first_theta: Scalar
    search: _Search
    kept: _Kept | None
    last_shift: Scalar
    scale: _Scale
    restoration: _Restoration
    free: _Free | None
    pull: Float[Array, " n"]  # the gradient of the Lagrangian without bounds
    steps: Int[Array, ""]
    finished: Bool[Array, ""]
    infeasible: Bool[Array, ""]


class _Here(eqx.Module):
    """The problem, scaled, at a trial point."""

    point: Point
    values: _Values
    gradient: Float[Array, " n+m"]
    jacobian: Float[Array, "p+m n"]
    hessian: Float[Array, "n n"]  # of the Lagrangian, but for
    factor: Scalar  # its factor
    scale: _Scale
    finite: Bool[Array, ""]

    def times_rows(self, rows: Float[Array, " p+m"]) -> Float[Array, " n+m"]:
        """The transposed Jacobian of c, times ``rows``."""
        slacks = self.gradient.size - self.jacobian.shape[1]
        return jnp.concatenate([self.jacobian.T @ rows, rows[rows.size - slacks :]])


class _Method:
    """One run: what stays the same in it, and its step."""

    def __init__(
        self,
        program: NonlinearProgram,
        y: Float[Array, " n"],
        tolerance: Scalar,
        options: InteriorPoint,
    ):
        self.n = y.size
        self.p = jax.eval_shape(program.equalities, y).size
        self.m = jax.eval_shape(program.inequalities, y).size
        self.dtype = y.dtype
        self.eps = float(jnp.finfo(y.dtype).eps)
        self.program = program
        self.tolerance = tolerance
        self.options = options
        self.derivatives = Derivatives(program, y)
        if self.derivatives.linear:
            self.row_scale = _scale(self.derivatives.jacobian)
            self.jacobian = self.row_scale[:, None] * self.derivatives.jacobian
        self.fixed = program.lower >= program.upper
        relaxation = jnp.minimum(tolerance, self.eps**0.5)
        self.bounds = Bounds(program.lower, program.upper, self.m, relaxation)
        self.floor = tolerance / (KAPPA_EPS + 1)  # of mu

    def start(self, y: Float[Array, " n"]) -> _State:
        zero, no = jnp.zeros((), self.dtype), jnp.array(False)
        rows = jnp.zeros(self.p + self.m, self.dtype)
        one = jnp.ones((), self.dtype)
        point = Point(
            x=jnp.concatenate(
                [jnp.where(self.fixed, self.program.lower, y), jnp.ones_like(rows[self.p :])]
            ),
            rows=rows,
            lower=self.bounds.has_lower.astype(self.dtype),
            upper=self.bounds.has_upper.astype(self.dtype),
        )
        quadratic = self.derivatives.quadratic
        return _State(
            point=point,
            values=_Values(zero, rows),
            trial=point,
            forced=~no,
            stage=jnp.array(1 if quadratic else 0, jnp.int32),
            estimate=jnp.array(quadratic),
            mu=jnp.full((), self.options.initial_barrier, self.dtype),
            filter=Filter.empty(self.dtype),
            first_theta=zero,
            search=_Search(point, one, zero, no, jnp.array(0, jnp.int32), rows, zero),
            kept=None if self.derivatives.linear else self._nothing_kept(),
            last_shift=zero,
            scale=_Scale(one, jnp.ones_like(rows)),
            restoration=_Restoration(no, one, y, zero, one),
            free=_Free(~no, jnp.inf * one, jnp.array(0, jnp.int32)) if quadratic else None,
            pull=jnp.zeros_like(y),
            steps=jnp.array(0, jnp.int32),
            finished=no,
            infeasible=jnp.any(self.program.lower > self.program.upper),
        )

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
        here = self.evaluate(state)
        restoration, search = state.restoration, state.search
        before = self.merit(state.point.x, state.values, state.mu, restoration)
        after = self.merit(here.point.x, here.values, state.mu, restoration)
        passed, by_armijo = self.judge(state, before, after)
        scaling, normal = state.stage == 0, (state.stage > 1) & ~state.estimate
        accepted = scaling | (here.finite & (state.forced | passed))
        point, values = _where(accepted, (here.point, here.values), (state.point, state.values))
        first_theta = jnp.where(state.stage == 1, after.theta, state.first_theta)
        filter_ = _where(
            accepted & ~state.forced & ~by_armijo & ~restoration.active & ~self.is_free(state),
            state.filter.added(before),
            state.filter,
        )

        # How good is it?
        stationarity = here.gradient + here.times_rows(here.point.rows)
        pull = jnp.where(accepted, stationarity[: self.n], state.pull)
        stationarity = stationarity - here.point.lower + here.point.upper
        stationarity = self.movable(stationarity)
        error = errors(
            self.bounds,
            here.point,
            stationarity,
            jnp.where(restoration.active, 0, here.values.c),
        )
        total = error.at(0.0, self.bounds)
        judged = accepted & ~scaling & ~restoration.active
        converged = judged & (total <= self.tolerance)
        infeasible = accepted & restoration.active & self.is_stationary(here, stationarity)
        recovered = accepted & ~state.forced & restoration.active & self.recovers(state, here)

        # The barrier parameter
        free = state.free
        if free is not None:
            free = self.stays_free(free, state, here, accepted & normal, total)
        mu = state.mu
        for _ in range(4):
            solved = accepted & normal & (error.at(mu, self.bounds) <= KAPPA_EPS * mu)
            solved = solved | (accepted & normal & search.tiny & (mu == state.mu))
            mu = jnp.where(solved, self.next_mu(mu), mu)
        stuck = accepted & search.tiny & (state.mu <= self.floor) & ~self.is_free(state)
        if free is not None:
            average = self.average(here.point)
            left = state.free.active & ~free.active
            mu = jnp.where(left, jnp.maximum(average, self.floor), mu)
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
        system = self.system(here, mu, restoration, state.estimate)
        factors = factorise(system, state.last_shift, accepted & ~scaling)
        failed = failed | (accepted & ~scaling & ~factors.sound)
        slope = self.slope(here, mu, restoration)
        along = self.movable(
            slope + here.times_rows(jnp.where(restoration.active, here.point.rows, 0))
        )
        rx = slope + here.times_rows(here.point.rows)
        rc = jnp.where(restoration.active, 0, here.values.c)
        rx, rc = _where(state.estimate, self.estimating(here), (rx, rc))
        corrected = search.alpha * search.corrected + here.values.c
        kept = None
        if state.kept is not None:
            kept = _where(accepted, _Kept(system, factors, rx), state.kept)
            system, factors, rx = kept.system, kept.factors, kept.rx
            rc = jnp.where(corrects, corrected, rc)
        lower = upper = mu * jnp.ones_like(rx)
        if free is not None:
            rx, lower, upper, mu = self.predicted(here, system, factors, rx, rc, mu, free, normal)
        dx, drows = solve(system, factors, rx, rc)
        direction = self.bounds.direction(point, dx, drows, lower, upper)

        # The next trial point
        fresh = accepted | corrects
        used = _where(fresh, direction, search.direction)
        primal, dual = self.bounds.longest(point, used, jnp.maximum(TAU_MIN, 1 - mu))
        if free is not None:
            both = jnp.minimum(primal, dual)
            primal, dual = (jnp.where(free.active, both, each) for each in (primal, dual))
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
            corrected=jnp.where(corrects, corrected, here.values.c),
            last_theta=after.theta,
        )

        # Where the trial point is set, and not found by a search
        largest = size(values.c)
        feasible = largest <= self.tolerance
        restores = failed & ~restoration.active & ~feasible
        given_up = failed & ~restores
        entered = _Restoration(
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
        anew = _where(state.estimate, self.estimated(point, dx, drows, free), anew)
        anew = _where(scaling, self.inside(state.point), anew)
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
            free=free,
            pull=pull,
            steps=state.steps + 1,
            finished=converged | infeasible | given_up | dead | escaped,
            infeasible=state.infeasible | infeasible,
        )

    def evaluate(self, state: _State) -> _Here:
        """The problem at the trial point, whose slacks are chosen at stage 1."""
        trial, restoration = state.trial, state.restoration
        y = trial.x[: self.n]
        raw = self.derivatives.first_order(y)
        if self.derivatives.linear:
            of_rows, jacobian = self.row_scale, self.jacobian
        else:
            of_rows = jnp.where(state.stage == 0, _scale(raw.jacobian), state.scale.rows)
            jacobian = of_rows[:, None] * raw.jacobian
        given = state.stage == (1 if self.derivatives.quadratic else 0)
        of_objective = jnp.where(given, _scale(raw.gradient), state.scale.objective)
        scale = _Scale(of_objective, of_rows)
        rows = scale.rows * raw.rows
        slacks = jnp.maximum(-rows[self.p :], LEAST_SLACK)
        slacks = jnp.where(state.stage == 1, slacks, trial.x[self.n :])
        c = jnp.concatenate([rows[: self.p], rows[self.p :] + slacks])
        multipliers = jnp.where(restoration.active, c / restoration.unit, trial.rows)
        factor = jnp.where(restoration.active, 0, scale.objective)
        hessian, its_factor = self.derivatives.hessian(y, factor, scale.rows * multipliers)
        gradient = jnp.concatenate([factor * raw.gradient, jnp.zeros_like(slacks)])
        values = _Values(scale.objective * raw.value, c)
        point = Point(jnp.concatenate([y, slacks]), multipliers, trial.lower, trial.upper)
        varying = [values, gradient]
        varying += [] if self.derivatives.linear else [jacobian]
        varying += [] if self.derivatives.quadratic else [hessian]
        finite = [jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(varying)]
        return _Here(
            point,
            values,
            gradient,
            jacobian,
            hessian,
            its_factor,
            scale,
            jnp.all(jnp.stack(finite)),
        )

    def is_free(self, state: _State) -> Bool[Array, ""]:
        return jnp.array(False) if state.free is None else state.free.active

    def movable(self, x: Float[Array, " n+m"]) -> Float[Array, " n+m"]:
        """x without its components along fixed unknowns."""
        return jnp.concatenate([jnp.where(self.fixed, 0, x[: self.n]), x[self.n :]])

    def inside(self, point: Point) -> Point:
        x = self.bounds.inside(point.x)
        fixed = jnp.where(self.fixed, self.program.lower, x[: self.n])
        x = jnp.concatenate([fixed, x[self.n :]])
        return Point(x, point.rows, point.lower, point.upper)

    # The merit of a point

    def problem_merit(self, point: Point, values: _Values, mu: Scalar) -> Merit:
        phi = values.value + mu * self.bounds.barrier(point.x)
        return Merit(jnp.sum(jnp.abs(values.c)), phi)

    def merit(self, x: Array, values: _Values, mu: Scalar, restoration: _Restoration) -> Merit:
        away = self.away(x, restoration)
        instead = values.c @ values.c / (2 * restoration.unit) + jnp.sqrt(mu) / 2 * (away @ away)
        value = jnp.where(restoration.active, instead, values.value)
        return Merit(jnp.sum(jnp.abs(values.c)), value + mu * self.bounds.barrier(x))

    def away(self, x: Array, restoration: _Restoration) -> Float[Array, " n"]:
        reference = restoration.reference
        return self.near(restoration) * (x[: self.n] - reference)

    def near(self, restoration: _Restoration) -> Float[Array, " n"]:
        return 1 / jnp.maximum(1, jnp.abs(restoration.reference))

    def judge(self, state: _State, before: Merit, after: Merit):
        """Whether the line search accepts, and whether by Armijo's condition."""
        search, first = state.search, state.first_theta
        descends = armijo(before, after, search.alpha, search.slope)
        switched = switching(before, search.alpha, search.slope, first)
        fine = jnp.where(switched, descends, sufficient(before, after, first))
        fine = fine & state.filter.accepts(after)
        fine = jnp.where(state.restoration.active, descends, fine)
        return fine | search.tiny | self.is_free(state), switched & descends

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

    def slope(self, here: _Here, mu: Scalar, restoration: _Restoration) -> Float[Array, " n+m"]:
        """The gradient of phi, but for the violation in restoration."""
        back = jnp.sqrt(mu) * self.near(restoration) * self.away(here.point.x, restoration)
        back = jnp.where(restoration.active, back, 0)
        slope = here.gradient + self.bounds.slope(here.point.x, mu)
        return jnp.concatenate([slope[: self.n] + back, slope[self.n :]])

    def system(
        self, here: _Here, mu: Scalar, restoration: _Restoration, estimate: Bool[Array, ""]
    ) -> System:
        near = jnp.where(restoration.active, jnp.sqrt(mu) * self.near(restoration) ** 2, 0)
        curvature = self.bounds.curvature(here.point)
        curvature = jnp.concatenate([curvature[: self.n] + near, curvature[self.n :]])
        ones = jnp.ones_like(curvature)
        factor = here.factor
        if self.derivatives.quadratic:
            bounded = self.bounds.has_lower | self.bounds.has_upper
            ones = jnp.where(bounded, 1, 0).astype(self.dtype)
        else:
            factor = jnp.where(estimate, 0, factor)
        return System(
            hessian=here.hessian,
            factor=factor,
            barrier=jnp.where(estimate, ones, curvature),
            jacobian=here.jacobian,
            relaxed=jnp.where(restoration.active, restoration.unit, 0)
            * jnp.ones_like(here.point.rows),
            fixed=self.fixed,
        )

    def estimating(self, here: _Here) -> tuple[Array, Array]:
        """The right-hand sides for the first multipliers: least squares, section 3.6.

        On a quadratic program, rather its solution with |s|^2 / 2 added and the signs of s and
        its multipliers ignored (Vandenberghe, The CVXOPT linear and quadratic cone program
        solvers, 2010, section 5.3).
        """
        if self.derivatives.quadratic:
            slacks = jnp.concatenate([jnp.zeros(self.p, self.dtype), here.point.x[self.n :]])
            return here.gradient, here.values.c - slacks
        return here.gradient - here.point.lower + here.point.upper, jnp.zeros_like(here.values.c)

    def estimated(self, point: Point, dx: Array, drows: Array, free: _Free | None) -> Point:
        rows = jnp.where(size(drows) <= LARGEST_MULTIPLIER, drows, 0)
        found = Point(point.x, rows, point.lower, point.upper)
        if free is None:
            return found
        n = self.n
        slacks, multipliers = _lifted(dx[n:]), _lifted(-dx[n:])
        begun = self.inside(
            Point(
                x=jnp.concatenate([point.x[:n] + dx[:n], slacks]),
                rows=drows,
                lower=jnp.concatenate([point.lower[:n], multipliers]),
                upper=point.upper,
            )
        )
        return _where(free.active, begun, found)

    # Restoration

    def is_stationary(self, here: _Here, stationarity: Array) -> Bool[Array, ""]:
        """Whether |c| is positive and has no direction of descent within the bounds."""
        largest = size(here.values.c)
        # As multipliers, c / unit belongs to |c|^2 / (2 unit): relative to it
        unit = jnp.maximum(size(here.point.rows), self.eps)
        lower, upper = self.bounds.products(here.point)
        residual = jnp.maximum(size(stationarity), jnp.maximum(size(lower), size(upper))) / unit
        return (largest > 10 * self.tolerance) & (residual <= self.tolerance**0.75)

    def recovers(self, state: _State, here: _Here) -> Bool[Array, ""]:
        merit = self.problem_merit(here.point, here.values, state.restoration.mu)
        return (merit.theta <= ENOUGH * state.restoration.theta) & state.filter.accepts(merit)

    # Quadratic programs

    def average(self, point: Point) -> Scalar:
        """Of the products of complementarity."""
        lower, upper = self.bounds.products(point)
        return (jnp.sum(lower) + jnp.sum(upper)) / jnp.maximum(self.bounds.count, 1)

    def stays_free(
        self, free: _Free, state: _State, here: _Here, counts: Bool[Array, ""], total: Scalar
    ) -> _Free:
        better = total < 0.9 * free.best
        stalled = jnp.where(counts, jnp.where(better, 0, free.stalled + 1), free.stalled)
        convex = state.last_shift == 0
        return _Free(
            active=free.active & convex & (stalled < STALLED) & here.finite,
            best=jnp.where(counts & better, total, free.best),
            stalled=stalled,
        )

    def predicted(self, here, system, factors, rx, rc, mu, free: _Free, normal):
        """Mehrotra's targets for the products, and the right-hand side for them.

        Mehrotra, On the implementation of a primal-dual interior point method, 1992.
        """
        active = free.active & normal
        point = here.point
        zero = jnp.zeros_like(rx)
        ahead = here.gradient + here.times_rows(point.rows)
        dx, drows = solve_once(system, factors, ahead, rc)
        direction = self.bounds.direction(point, dx, drows, zero, zero)
        alpha = jnp.minimum(*self.bounds.longest(point, direction, 1.0))
        reached = Point(
            x=point.x + alpha * dx,
            rows=point.rows,
            lower=point.lower + alpha * direction.lower,
            upper=point.upper + alpha * direction.upper,
        )
        average = self.average(point)
        ratio = self.average(reached) / jnp.where(average > 0, average, 1)
        target = jnp.maximum(ratio**3 * average, 1e-3 * self.floor)
        lower = target - dx * direction.lower
        upper = target + dx * direction.upper
        corrected = ahead + self.bounds.push(point.x, lower, upper)
        plain = mu * jnp.ones_like(rx)
        return _where(active, (corrected, lower, upper, target), (rx, plain, plain, mu))

    def answer(self, state: _State) -> PrimalDual:
        n, p = self.n, self.p
        point, objective = state.point, state.scale.objective
        rows = state.scale.rows / objective
        pull = jnp.where(self.fixed, state.pull, 0)
        return PrimalDual(
            y=jnp.clip(point.x[:n], self.program.lower, self.program.upper),
            eq=point.rows[:p] * rows[:p],
            ineq=point.lower[n:] * rows[p:],
            lower=(point.lower[:n] + jnp.maximum(pull, 0)) / objective,
            upper=(point.upper[:n] + jnp.maximum(-pull, 0)) / objective,
            steps=state.steps,
            infeasible=state.infeasible,
        )


def _scale(slopes: Array) -> Array:
    """The factor that brings the largest entry along the last axis down to LARGEST_GRADIENT."""
    largest = jnp.max(jnp.abs(slopes), axis=-1, initial=0)
    large = (largest > LARGEST_GRADIENT) & jnp.isfinite(largest)
    return jnp.where(large, LARGEST_GRADIENT / largest, 1)


def _lifted(x: Array) -> Array:
    """x, or where some of it is not positive, x + constant >= 1."""
    least = jnp.min(x, initial=jnp.inf)
    return x + jnp.where(least > 0, 0, 1 - least)


def _where(condition: Bool[Array, ""], yes: Any, no: Any) -> Any:
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), yes, no)
