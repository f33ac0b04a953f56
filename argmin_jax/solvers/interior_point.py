"""A primal-dual interior-point method with a filter line search, for nonconvex problems."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Scalar

from .kkt_system import Factors, System, factorise, solve
from .nlp import Linearisation, NonlinearProgram, PrimalDual, linearisation

# The constants of Wächter & Biegler 2006, under their names there.
KAPPA_1, KAPPA_2 = 1e-2, 1e-2  # the start's distance from the bounds, (35)
KAPPA_EPS, KAPPA_MU, THETA_MU = 10.0, 0.2, 1.5  # barrier parameter, (7)
TAU_MIN = 0.99  # fraction to the boundary, (8)
KAPPA_SIGMA = 1e10  # safeguard of the bound multipliers, (16)
GAMMA_THETA, GAMMA_PHI, DELTA = 1e-5, 1e-5, 1.0  # filter, (18) and (19)
S_THETA, S_PHI, ETA = 1.1, 2.3, 1e-4  # switching and Armijo's condition, (19) and (20)
GAMMA_ALPHA = 0.05  # smallest step size, (23)
KAPPA_SOC, MAX_SOC = 0.99, 4  # second-order correction
S_MAX = 100.0  # scaling of the error, (6)
KAPPA_D = 1e-5  # damping of one-sided bounds, section 3.7
FILTER_SIZE = 24
LARGEST_GRADIENT = 100.0  # after scaling, section 3.8
ENOUGH = 0.9  # restoration ends when the violation fell below this multiple


class InteriorPoint(eqx.Module):
    initial_barrier: float = 0.1

    def run(
        self,
        program: NonlinearProgram,
        y: Float[Array, " n"],
        tolerance: Scalar,
        max_steps: Int[Array, ""],
    ) -> PrimalDual:
        tolerance = jnp.asarray(tolerance, y.dtype)
        method = _Method(program, y, tolerance, self)

        def goes_on(state):
            return ~state.finished & (state.steps < max_steps)

        end = jax.lax.while_loop(goes_on, method.step, method.start())
        return method.answer(end)


class _Point(eqx.Module):
    """x = (y, s), the multipliers of the rows (equalities, then inequalities) and of the bounds."""

    x: Float[Array, " n+m"]
    rows: Float[Array, " p+m"]
    lower: Float[Array, " n+m"]
    upper: Float[Array, " n+m"]


class _Scale(eqx.Module):
    objective: Scalar
    rows: Float[Array, " p+m"]


class _Restoration(eqx.Module):
    """While active, ||c||^2 / (2 size) is minimised instead of f, near a reference point."""

    active: Bool[Array, ""]
    size: Scalar
    reference: Float[Array, " n"]
    violation: Scalar  # theta at its start
    barrier: Scalar  # that of the problem itself, meanwhile


class _Search(eqx.Module):
    """The line search along a direction."""

    direction: _Point
    alpha: Scalar  # of the trial point, as the tests see it
    first_alpha: Scalar
    slope: Scalar  # of phi along the direction
    corrections: Int[Array, ""]  # second-order ones so far
    corrected: Float[Array, " p+m"]  # the right-hand side of the next one
    last_theta: Scalar


class _State(eqx.Module):
    point: _Point
    at: Linearisation  # scaled, at the point
    trial: _Point
    forced: Bool[Array, ""]  # the trial is the point itself, to be evaluated anew
    barrier: Scalar
    filter: Float[Array, "k 2"]
    theta_0: Scalar
    search: _Search
    factors: Factors
    system: System
    scale: _Scale
    restoration: _Restoration
    stage: Int[Array, ""]  # 0: at the given start, for the scale; 1: inside, for the slacks
    estimate: Bool[Array, ""]  # the multipliers of the rows are to be found by least squares
    steps: Int[Array, ""]
    error: Scalar
    finished: Bool[Array, ""]
    infeasible: Bool[Array, ""]


class _Method:
    """The functions of one run, over what stays the same in it."""

    def __init__(self, program, y, tolerance, options):
        self.n = y.size
        self.p, self.m = (
            jax.eval_shape(fn, y).size for fn in (program.equalities, program.inequalities)
        )
        self.dtype = y.dtype
        self.eps = float(jnp.finfo(y.dtype).eps)
        self.tolerance = tolerance
        self.options = options
        self.evaluate = linearisation(program, y)
        self.y = y
        lower, upper = program.lower, program.upper
        self.fixed = lower >= upper
        self.program = program
        free = ~self.fixed
        # Bounds are relaxed a little, section 3.5: then there is an interior.
        slack = jnp.zeros(self.m, self.dtype)
        lower = jnp.concatenate([lower, slack])
        upper = jnp.concatenate([upper, jnp.full_like(slack, jnp.inf)])
        everywhere = jnp.concatenate([free, jnp.full(self.m, True)])
        self.has_lower = jnp.isfinite(lower) & everywhere
        self.has_upper = jnp.isfinite(upper) & everywhere
        lower = jnp.where(self.has_lower, lower, 0)
        upper = jnp.where(self.has_upper, upper, 0)
        relax = jnp.minimum(tolerance, 1e-8 if self.dtype == jnp.float64 else 1e-5)
        self.lower = lower - relax * jnp.maximum(1, jnp.abs(lower))
        self.upper = upper + relax * jnp.maximum(1, jnp.abs(upper))
        both = self.has_lower & self.has_upper
        self.damping = KAPPA_D * (
            (self.has_lower & ~both).astype(self.dtype)
            - (self.has_upper & ~both).astype(self.dtype)
        )
        self.bounds = jnp.sum(self.has_lower) + jnp.sum(self.has_upper)

    def start(self) -> _State:
        n, m, p = self.n, self.m, self.p
        dtype = self.dtype
        zero, no = jnp.zeros((), dtype), jnp.array(False)
        y = self.y
        x = jnp.concatenate([y, jnp.ones(m, dtype)])
        point = _Point(
            x=x,
            rows=jnp.zeros(p + m, dtype),
            lower=self.has_lower.astype(dtype),
            upper=self.has_upper.astype(dtype),
        )
        rows = jnp.zeros(p + m, dtype)
        at = Linearisation(
            value=zero,
            rows=rows,
            gradient=jnp.zeros(n, dtype),
            jacobian=jnp.zeros((p + m, n), dtype),
            hessian=jnp.zeros((n, n), dtype),
        )
        return _State(
            point=point,
            at=at,
            trial=point,
            forced=jnp.array(True),
            barrier=jnp.full((), self.options.initial_barrier, dtype),
            filter=jnp.full((FILTER_SIZE, 2), jnp.inf, dtype),
            theta_0=zero,
            search=_Search(point, zero, zero, zero, jnp.array(0), rows, zero),
            factors=Factors(
                lower=jnp.zeros((n, n), dtype),
                half=jnp.zeros((n, p), dtype),
                schur=jnp.zeros((p, p), dtype),
                weights=jnp.zeros(p, dtype),
                relaxed=jnp.zeros(p + m, dtype),
                shift=zero,
                last_shift=zero,
                sound=no,
            ),
            system=System(
                hessian=jnp.zeros((n, n), dtype),
                jacobian=jnp.zeros((p + m, n), dtype),
                slack=jnp.zeros(m, dtype),
                relaxed=rows,
            ),
            scale=_Scale(jnp.ones((), dtype), jnp.ones(p + m, dtype)),
            restoration=_Restoration(no, jnp.ones((), dtype), y, zero, zero),
            stage=jnp.array(0, jnp.int32),
            estimate=jnp.array(False),
            steps=jnp.array(0, jnp.int32),
            error=jnp.full((), jnp.inf, dtype),
            finished=no,
            infeasible=jnp.any(self.program.lower > self.program.upper),
        )

    def inside(self, y):
        n = self.n
        lower, upper = self.lower[:n], self.upper[:n]
        has_lower, has_upper = self.has_lower[:n], self.has_upper[:n]
        both = has_lower & has_upper
        room = jnp.where(both, KAPPA_2 * (upper - lower), jnp.inf)
        least = lower + jnp.minimum(KAPPA_1 * jnp.maximum(1, jnp.abs(lower)), room)
        most = upper - jnp.minimum(KAPPA_1 * jnp.maximum(1, jnp.abs(upper)), room)
        y = jnp.where(has_lower, jnp.maximum(y, least), y)
        return jnp.where(has_upper, jnp.minimum(y, most), y)

    # What the problem is at a point

    def distances(self, x):
        """To the bounds; one where there is none."""
        tiny = self.eps * jnp.maximum(1, jnp.abs(self.lower))
        below = jnp.where(self.has_lower, x - self.lower, 1)
        above = jnp.where(self.has_upper, self.upper - x, 1)
        return jnp.maximum(below, tiny * 0.1), jnp.maximum(above, tiny * 0.1)

    def constraints(self, x, at):
        slacks = jnp.concatenate([jnp.zeros(self.p, self.dtype), x[self.n :]])
        return at.rows + slacks

    def logs(self, x):
        below, above = self.distances(x)
        return (
            jnp.sum(jnp.log(below))
            + jnp.sum(jnp.log(above))
            - jnp.sum(self.damping * jnp.where(self.damping > 0, x - self.lower, x - self.upper))
        )

    def theta(self, x, at):
        return jnp.sum(jnp.abs(self.constraints(x, at)))

    def phi(self, x, at, barrier, restoration: _Restoration):
        c = self.constraints(x, at)
        away = self.away(x, restoration)
        restored = c @ c / (2 * restoration.size) + jnp.sqrt(barrier) / 2 * (away @ away)
        value = jnp.where(restoration.active, restored, at.value)
        return value - barrier * self.logs(x)

    def away(self, x, restoration):
        reference = restoration.reference
        return (x[: self.n] - reference) / jnp.maximum(1, jnp.abs(reference))

    def slopes(self, x, at, barrier, restoration: _Restoration):
        """The gradient of the objective, or of the term that replaces it, with respect to x."""
        near = self.away(x, restoration) / jnp.maximum(1, jnp.abs(restoration.reference))
        gradient = jnp.where(restoration.active, jnp.sqrt(barrier) * near, at.gradient)
        return jnp.concatenate([gradient, jnp.zeros(self.m, self.dtype)])

    def times_rows(self, at, rows):
        """A' rows, for the Jacobian A of g(y) + s and h(y)."""
        return jnp.concatenate([at.jacobian.T @ rows, rows[self.p :]])

    def barrier_slopes(self, x, barrier):
        below, above = self.distances(x)
        inverse = self.has_lower / below - self.has_upper / above
        return -barrier * (inverse - self.damping)

    def errors(self, point: _Point, at, restoration):
        """Dual and primal residual, and products of complementarity; scaled as in (5)."""
        stationary = (
            self.slopes(point.x, at, jnp.zeros((), self.dtype), restoration)
            + self.times_rows(at, point.rows)
            - point.lower
            + point.upper
        )
        c = self.constraints(point.x, at)
        c = jnp.where(restoration.active, c - restoration.size * point.rows, c)
        bounds = jnp.sum(point.lower) + jnp.sum(point.upper)
        multipliers = bounds + jnp.sum(jnp.abs(point.rows))
        count = self.p + self.m + self.bounds
        s_d = jnp.maximum(S_MAX, multipliers / jnp.maximum(count, 1)) / S_MAX
        s_c = jnp.maximum(S_MAX, bounds / jnp.maximum(self.bounds, 1)) / S_MAX
        below, above = self.distances(point.x)
        return (
            jnp.maximum(_size(stationary) / s_d, _size(c)),
            point.lower * below / s_c,
            point.upper * above / s_c,
            s_c,
        )

    def error(self, errors, barrier):
        linear, below, above, s_c = errors
        target = barrier / s_c
        return jnp.maximum(
            linear,
            jnp.maximum(
                _size(jnp.where(self.has_lower, below - target, 0)),
                _size(jnp.where(self.has_upper, above - target, 0)),
            ),
        )

    # One trial point

    def linearise(self, state: _State):
        """Values and derivatives at the trial point, scaled, with the fixed unknowns taken out."""
        y = state.trial.x[: self.n]
        restoration = state.restoration

        def weights(value, rows, gradient, jacobian):
            """Of objective and rows in the Lagrangian; by then the first scale is known."""
            objective = _scale(jnp.max(jnp.abs(gradient), initial=0))
            each = _scale(jnp.max(jnp.abs(jacobian), axis=1, initial=0))
            scale = _where(state.stage == 0, _Scale(objective, each), state.scale)
            slacks = jnp.concatenate([jnp.zeros(self.p, self.dtype), state.trial.x[self.n :]])
            restoring = (scale.rows * rows + slacks) / restoration.size
            multipliers = jnp.where(restoration.active, restoring, state.trial.rows)
            factor = jnp.where(restoration.active, 0, scale.objective)
            return scale, (factor, scale.rows * multipliers)

        raw, scale = self.evaluate(y, weights, self.fixed)
        at = Linearisation(
            value=raw.value * scale.objective,
            rows=raw.rows * scale.rows,
            gradient=raw.gradient * scale.objective,
            jacobian=raw.jacobian * scale.rows[:, None],
            hessian=raw.hessian,
        )
        return at, scale

    def step(self, state: _State) -> _State:
        at, scale = self.linearise(state)
        trial = self.first_slacks(state, at)
        restoration = state.restoration
        trial = eqx.tree_at(
            lambda t: t.rows,
            trial,
            jnp.where(
                restoration.active, self.constraints(trial.x, at) / restoration.size, trial.rows
            ),
        )
        finite = (
            jnp.isfinite(at.value)
            & jnp.all(jnp.isfinite(at.rows))
            & jnp.all(jnp.isfinite(at.gradient))
            & jnp.all(jnp.isfinite(at.jacobian))
            & jnp.all(jnp.isfinite(at.hessian))
        )
        passed, armijo = self.judge(state, trial, at)
        scaling = state.stage == 0
        accepted = scaling | (finite & (state.forced | passed))
        dead = state.forced & ~finite & ~scaling

        theta = self.theta(trial.x, at)
        theta_0 = jnp.where(state.stage == 1, theta, state.theta_0)
        augment = accepted & ~state.forced & ~armijo & ~restoration.active
        filter_ = _where(augment, self.augmented(state), state.filter)
        point = _where(accepted, trial, state.point)
        here = _where(accepted, at, state.at)

        # Restoration ends where the filter accepts the point and the violation fell
        errors = self.errors(point, here, restoration)
        barrier = state.barrier
        leaves = (
            accepted
            & ~state.forced
            & restoration.active
            & (theta <= ENOUGH * restoration.violation)
            & self.outside(filter_, theta, self.phi_main(trial.x, at, restoration.barrier))
        )
        e_0 = self.error(errors, 0.0)
        converged = accepted & ~scaling & ~restoration.active & (e_0 <= self.tolerance)
        infeasible = accepted & restoration.active & self.stationary_violation(point, here)

        # The barrier parameter
        floor = self.tolerance / (KAPPA_EPS + 1)
        lowered = barrier
        for _ in range(4):
            solved = (
                accepted
                & (state.stage > 1)
                & ~state.estimate
                & (self.error(errors, lowered) <= KAPPA_EPS * lowered)
            )
            next_ = jnp.maximum(floor, jnp.minimum(KAPPA_MU * lowered, lowered**THETA_MU))
            lowered = jnp.where(solved, next_, lowered)
        changed = lowered != barrier
        filter_ = jnp.where(changed & ~restoration.active, jnp.inf, filter_)
        barrier = lowered
        stuck_at_floor = jnp.array(False)

        # The search goes on after a refusal
        search = state.search
        alpha_min = self.smallest(state)
        soc = (
            ~accepted
            & ~restoration.active
            & finite
            & (search.corrections < MAX_SOC)
            & (search.alpha == search.first_alpha)
            & jnp.where(
                search.corrections == 0,
                theta >= self.theta(state.point.x, state.at),
                theta <= KAPPA_SOC * search.last_theta,
            )
            & (self.theta(state.point.x, state.at) > 0)
        )
        shorter = search.alpha / 2  # of the original direction, after corrections too
        fails = ~accepted & ~soc & (shorter < alpha_min)

        # The direction
        sigma = self.sigma(point)
        prox = jnp.sqrt(barrier) / jnp.maximum(1, jnp.abs(restoration.reference)) ** 2
        prox = jnp.where(restoration.active, prox, 0)
        system = System(
            hessian=here.hessian + jnp.diag(sigma[: self.n] + prox),
            jacobian=here.jacobian,
            slack=sigma[self.n :],
            relaxed=jnp.where(restoration.active, restoration.size, 0) * jnp.ones_like(here.rows),
        )
        estimate = accepted & state.estimate & ~restoration.active
        # Section 3.6: the least-squares multipliers solve a system of the same kind.
        identity = System(
            jnp.eye(self.n, dtype=self.dtype),
            here.jacobian,
            jnp.ones_like(system.slack),
            jnp.zeros_like(system.relaxed),
        )
        system = _where(estimate, identity, system)
        system = _where(accepted, system, state.system)
        factors = factorise(system, state.factors.last_shift, accepted & ~scaling)
        unsound = accepted & ~scaling & ~factors.sound
        factors = _where(accepted, factors, state.factors)
        c = self.constraints(point.x, here)
        c = jnp.where(restoration.active, c - restoration.size * point.rows, c)
        corrected = jnp.where(
            search.corrections > 0, search.corrected, c
        ) * search.first_alpha + self.constraints(trial.x, at)
        rc = jnp.where(soc, corrected, c)
        slopes = self.slopes(point.x, here, barrier, restoration)
        to_barrier = self.barrier_slopes(point.x, barrier)
        rx = slopes + to_barrier + self.times_rows(here, point.rows)
        rx = jnp.where(estimate, slopes - point.lower + point.upper, rx)
        rc = jnp.where(estimate, 0, rc)
        rx = jnp.where(jnp.concatenate([self.fixed, jnp.zeros(self.m, bool)]), 0, rx)
        dx, drows = solve(system, factors, rx, rc)
        direction = self.with_bounds(point, dx, drows, barrier)
        slope_of = slopes + to_barrier
        slope_of = slope_of + jnp.where(restoration.active, self.times_rows(here, point.rows), 0.0)
        fresh = accepted | soc
        used = _where(fresh, direction, search.direction)
        tau = jnp.maximum(TAU_MIN, 1 - barrier)
        longest = self.to_boundary(point, used, tau)
        alpha = jnp.where(fresh, longest[0], shorter)
        # The multipliers of the bounds take their own step, whatever that of x is.
        onward = _Point(
            x=point.x + alpha * used.x,
            rows=point.rows + alpha * used.rows,
            lower=point.lower + longest[1] * used.lower,
            upper=point.upper + longest[1] * used.upper,
        )
        onward = self.safeguarded(onward, barrier)
        next_search = _Search(
            direction=_where(accepted, direction, search.direction),
            alpha=jnp.where(accepted, longest[0], jnp.where(soc, search.alpha, shorter)),
            first_alpha=jnp.where(accepted, longest[0], search.first_alpha),
            slope=jnp.where(accepted, slope_of @ dx, search.slope),
            corrections=jnp.where(accepted, 0, search.corrections + soc),
            corrected=jnp.where(soc, corrected, c),
            last_theta=theta,
        )
        next_search = eqx.tree_at(
            lambda s: s.corrections,
            next_search,
            jnp.where(~accepted & ~soc, MAX_SOC, next_search.corrections),
        )
        tiny = jnp.all(jnp.abs(dx) <= 10 * self.eps * (1 + jnp.abs(point.x)))

        # Into restoration and out of it
        feasible = self.theta_max_norm(point.x, here) <= self.tolerance
        enters = (fails | unsound) & ~restoration.active & ~feasible
        gives_up = (fails | unsound) & (restoration.active | feasible)
        violation = _size(self.constraints(point.x, here))
        restoration_in = _Restoration(
            active=jnp.array(True),
            size=jnp.maximum(violation, self.eps),
            reference=point.x[: self.n],
            violation=self.theta(point.x, here),
            barrier=barrier,
        )
        restoration_out = eqx.tree_at(lambda r: r.active, restoration, jnp.array(False))
        next_restoration = _where(
            enters, restoration_in, _where(leaves, restoration_out, restoration)
        )
        filter_ = _where(
            enters,
            self.added(filter_, self.theta(point.x, here), self.phi_main(point.x, here, barrier)),
            filter_,
        )
        next_barrier = jnp.where(
            enters, jnp.maximum(barrier, violation), jnp.where(leaves, restoration.barrier, barrier)
        )
        below, above = self.distances(point.x)
        anew = _Point(
            x=point.x,
            rows=jnp.where(leaves, 0, point.rows),
            lower=jnp.where(self.has_lower, next_barrier / below, 0),
            upper=jnp.where(self.has_upper, next_barrier / above, 0),
        )
        guess = _Point(point.x, jnp.where(_size(drows) <= 1e3, drows, 0), point.lower, point.upper)
        anew = _where(estimate, guess, anew)
        inside = jnp.where(self.fixed, self.program.lower, self.inside(self.y))
        x = jnp.concatenate([inside, point.x[self.n :]])
        moved = eqx.tree_at(lambda p: p.x, state.point, x)
        anew = _where(scaling, moved, anew)
        forced = enters | leaves | estimate | scaling
        onward = _where(forced, anew, onward)
        return _State(
            point=_where(forced, anew, point),
            at=here,
            trial=onward,
            forced=forced,
            barrier=next_barrier,
            filter=filter_,
            theta_0=theta_0,
            search=next_search,
            factors=factors,
            system=system,
            scale=scale,
            restoration=next_restoration,
            stage=jnp.minimum(state.stage + 1, 2),
            estimate=leaves | (scaling & (self.p + self.m > 0)),
            steps=state.steps + 1,
            error=e_0,
            finished=converged | infeasible | dead | gives_up,
            infeasible=state.infeasible | infeasible,
        )

    def first_slacks(self, state, at):
        values = jnp.maximum(-at.rows[self.p :], KAPPA_1)
        slacks = jnp.where(state.stage == 1, values, state.trial.x[self.n :])
        x = jnp.concatenate([state.trial.x[: self.n], slacks])
        return eqx.tree_at(lambda t: t.x, state.trial, x)

    def phi_main(self, x, at, barrier):
        return at.value - barrier * self.logs(x)

    def judge(self, state, trial, at):
        """Whether the filter line search accepts the trial, and whether by Armijo's condition."""
        restoration = state.restoration
        search = state.search
        theta_0 = jnp.maximum(1, state.theta_0)
        before = self.phi(state.point.x, state.at, state.barrier, restoration)
        after = self.phi(trial.x, at, state.barrier, restoration)
        theta, theta_here = self.theta(trial.x, at), self.theta(state.point.x, state.at)
        rounding = 10 * self.eps * jnp.abs(before)
        slope, alpha = search.slope, search.alpha
        armijo = after - before - rounding <= ETA * alpha * slope
        switching = (slope < 0) & (alpha * jnp.abs(slope) ** S_PHI > DELTA * theta_here**S_THETA)
        by_armijo = switching & (theta_here <= 1e-4 * theta_0)
        better = (theta <= (1 - GAMMA_THETA) * theta_here) | (
            after - before - rounding <= -GAMMA_PHI * theta_here
        )
        in_filter = ~self.outside(state.filter, theta, after)
        ok = jnp.where(by_armijo, armijo, better) & ~in_filter & (theta <= 1e4 * theta_0)
        return jnp.where(restoration.active, armijo, ok), by_armijo & armijo

    def outside(self, filter_, theta, phi):
        return jnp.all((theta < filter_[:, 0]) | (phi < filter_[:, 1]) | jnp.isinf(filter_[:, 0]))

    def augmented(self, state):
        theta = self.theta(state.point.x, state.at)
        phi = self.phi_main(state.point.x, state.at, state.barrier)
        return self.added(state.filter, theta, phi)

    def added(self, filter_, theta, phi):
        entry = jnp.stack([(1 - GAMMA_THETA) * theta, phi - GAMMA_PHI * theta])
        return jnp.concatenate([entry[None], filter_[:-1]])

    def smallest(self, state):
        theta = self.theta(state.point.x, state.at)
        theta_0 = jnp.maximum(1, state.theta_0)
        slope = state.search.slope
        drop = jnp.where(slope < 0, -slope, 1)
        by_phi = jnp.where(slope < 0, GAMMA_PHI * theta / drop, jnp.inf)
        by_switch = jnp.where(
            (slope < 0) & (theta <= 1e-4 * theta_0),
            DELTA * theta**S_THETA / drop**S_PHI,
            jnp.inf,
        )
        least = GAMMA_ALPHA * jnp.minimum(GAMMA_THETA, jnp.minimum(by_phi, by_switch))
        return jnp.where(state.restoration.active, 1e-12, jnp.maximum(least, 1e-14))

    def stationary_violation(self, point, at):
        c = self.constraints(point.x, at)
        size = _size(c)
        scale = jnp.maximum(size, self.eps)
        slopes = self.times_rows(at, c / scale)
        factor = 1 / 1.0
        below, above = self.distances(point.x)
        # multipliers of the restoration belong to ||c||^2 / (2 size)
        ratio = jnp.where(jnp.max(jnp.abs(point.rows), initial=0) > 0, 1, 1)
        lower = point.lower / jnp.maximum(_size(point.rows), self.eps)
        upper = point.upper / jnp.maximum(_size(point.rows), self.eps)
        residual = jnp.maximum(
            _size(slopes - lower + upper),
            jnp.maximum(_size(lower * below), _size(upper * above)),
        )
        return (size > 10 * self.tolerance) & (residual <= 1e-6)

    def theta_max_norm(self, x, at):
        return _size(self.constraints(x, at))

    def sigma(self, point):
        below, above = self.distances(point.x)
        sigma = point.lower / below + point.upper / above
        return jnp.where(jnp.concatenate([self.fixed, jnp.zeros(self.m, bool)]), 1, sigma)

    def with_bounds(self, point, dx, drows, barrier):
        below, above = self.distances(point.x)
        lower = jnp.where(self.has_lower, (barrier - point.lower * dx) / below - point.lower, 0)
        upper = jnp.where(self.has_upper, (barrier + point.upper * dx) / above - point.upper, 0)
        return _Point(dx, drows, lower, upper)

    def to_boundary(self, point, direction, tau):
        """The longest step sizes of x and of the bounds' multipliers, (15)."""
        below, above = self.distances(point.x)
        dx = direction.x
        primal = jnp.maximum(
            jnp.max(jnp.where(self.has_lower, -dx / below, 0), initial=0),
            jnp.max(jnp.where(self.has_upper, dx / above, 0), initial=0),
        )
        dual = jnp.maximum(
            _ratio(point.lower, direction.lower), _ratio(point.upper, direction.upper)
        )
        return tau / jnp.maximum(primal, tau), tau / jnp.maximum(dual, tau)

    def safeguarded(self, point, barrier):
        below, above = self.distances(point.x)
        lower = jnp.clip(point.lower, barrier / below / KAPPA_SIGMA, barrier / below * KAPPA_SIGMA)
        upper = jnp.clip(point.upper, barrier / above / KAPPA_SIGMA, barrier / above * KAPPA_SIGMA)
        return _Point(
            x=point.x,
            rows=point.rows,
            lower=jnp.where(self.has_lower, lower, 0),
            upper=jnp.where(self.has_upper, upper, 0),
        )

    def answer(self, state: _State) -> PrimalDual:
        n, p = self.n, self.p
        point, scale = state.point, state.scale
        rows = scale.rows / scale.objective
        return PrimalDual(
            y=jnp.clip(point.x[:n], self.program.lower, self.program.upper),
            eq=point.rows[:p] * rows[:p],
            ineq=point.lower[n:] * rows[p:],
            lower=point.lower[:n] / scale.objective,
            upper=point.upper[:n] / scale.objective,
            steps=state.steps,
            infeasible=state.infeasible,
        )


def _scale(largest):
    large = (largest > LARGEST_GRADIENT) & jnp.isfinite(largest)
    return jnp.where(large, LARGEST_GRADIENT / largest, 1)


def _ratio(value, change):
    return jnp.max(jnp.where(value > 0, -change / jnp.where(value > 0, value, 1), 0), initial=0)


def _size(x: Array) -> Scalar:
    return jnp.max(jnp.abs(x), initial=0)


def _where(condition: Bool[Array, ""], yes: Any, no: Any) -> Any:
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), yes, no)
