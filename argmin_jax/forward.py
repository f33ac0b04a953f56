"""The way to a solution: run a solver, polish its point by Newton steps, judge the result."""

import dataclasses
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
from jaxtyping import Array, Bool, Float, Int

from .certificate import Certificate, certify, without_flat_directions
from .constrained import (
    Settled,
    estimated_multipliers,
    matrices,
    settle,
    settle_on_path,
)
from .drift import is_adrift, is_bottomless, is_far, is_pushed_on
from .equilibration import equilibrated_units
from .factors import if_needed
from .linear_solve import Auto, Factors, can_do_without
from .matrix_free import largest
from .optimality import (
    Active,
    Barrier,
    CentralPath,
    Conditions,
    Fixed,
    KarushKuhnTucker,
    Multipliers,
    Stationary,
    Zero,
    probe,
    stationarity,
)
from .polish import Newton, Polished
from .problem import Equations, Problem
from .quadratic import is_quadratic
from .report import Report, Status
from .solvers import ConstrainedMinimiser, Minimiser, NonlinearProgram, ScalableMinimiser
from .structure import Constant, constant_hessian, find_blocks, same_blocks
from .violations import Violations

# A restartable solver is first asked for little: the polish, whose factorisation the backward
# pass needs anyway, squares the error of a point that is nearly right. Only where that did not
# suffice is it asked for more, in this many rounds.
ROUNDS = 4
LOOSEST = 3e-3
# Where the next step, by the same K, is not this much shorter, the error is not squared: at y^4 it
# is 0.30, at exp(-y), which never ends, 0.37. Short of squares another round is worth its while.
SLOW = 1 / 3
WORTHWHILE = 0.1
STUCK = 0.9  # a step that leaves this share of the residual does not lessen it
BEFORE_UNITS = 12  # steps of a solver before the units of the unknowns are looked at


class Method(eqx.Module):
    """How a problem is solved: all of a call that does not depend on the kind of problem."""

    minimiser: Minimiser = eqx.field(static=True)
    linear_solver: lx.AbstractLinearSolver
    tol: float = eqx.field(static=True)
    max_steps: int = eqx.field(static=True)
    certified: bool = eqx.field(static=True)
    """Whether the report is to hold the estimates of `certificate`; if not, they are NaN."""


class Found(eqx.Module):
    """What the forward pass leaves: constants to all derivatives."""

    z: Float[Array, " k"]
    active: Active | None
    report: Report
    factors: Any  # of K at z, for the linear solver; or None


def conditions_of(problem: Problem | Equations, minimiser: Minimiser) -> Conditions:
    """What a solution of ``problem`` by ``minimiser`` satisfies."""
    if isinstance(problem, Equations):
        return Fixed(problem.function) if problem.is_map else Zero(problem.function)
    if not problem.constrained:
        return Stationary(problem.objective)
    objective, eq, ineq, size = problem.objective, problem.eq, problem.ineq, problem.start.size
    bounded = problem.args.bounds is not None
    if isinstance(minimiser, ConstrainedMinimiser) and minimiser.smoothing is not None:
        barrier = Barrier(objective, ineq, minimiser.smoothing)
        return CentralPath(barrier, eq, ineq, bounded, size)
    return KarushKuhnTucker(objective, eq, ineq, bounded, size)


def find(problem: Problem | Equations, conditions: Conditions, method: Method) -> Found:
    """A solution, the report on it, and the factors kept for the backward pass."""
    if isinstance(problem, Equations):
        return _find_root(problem, conditions, method)
    if isinstance(conditions, KarushKuhnTucker):
        return _find_constrained(problem, conditions, method)
    return _find_minimum(problem, conditions, method)


class _Attempt(eqx.Module):
    """A point that a solver left and the polish worked on, after ``round`` rounds."""

    polished: Polished
    steps: Int[Array, ""]
    round: Int[Array, ""]


def _find_minimum(problem: Problem, conditions: Conditions, method: Method) -> Found:
    as_written = problem.objective.with_structure(problem.start, problem.args)
    product = constant_hessian(*as_written, *problem.args.params)
    blocks = same_blocks(find_blocks(*as_written, *problem.args.params), product)
    sparing = not method.certified and can_do_without(method.linear_solver, blocks)
    tol, start = method.tol, problem.start
    newton = Newton(
        conditions,
        problem.args,
        method.linear_solver,
        start,
        blocks=blocks,
        sparing=sparing,
        constant=product is not None,
    )
    factorised = isinstance(method.linear_solver, Auto) and not newton.inexact(start)
    quadratic = product is not None and is_quadratic(*as_written, *problem.args.params)
    if method.minimiser.restartable and factorised and quadratic:
        # Its factors tell all: a solver would find the same point, or fall for ever.
        final = _Attempt(newton.polish(start), jnp.array(0, jnp.int32), jnp.array(0, jnp.int32))
        point = final.polished
        adrift, kinked = is_bottomless(newton, point, tol), jnp.array(False)
    else:
        final = _attempts(problem, newton, method)
        point = final.polished
        adrift = jnp.array(False) if sparing else is_adrift(newton, point, tol)
        if sparing:  # a K that is singular, or may be, is looked at by its factors

            def by_factors(zero) -> tuple[Polished, Bool[Array, ""]]:
                forming = dataclasses.replace(newton, sparing=False, skippable=True)
                formed = forming.polish(point.z + zero)
                return dataclasses.replace(formed, factors=None), is_adrift(forming, formed, tol)

            settled = _is_solved(point, tol) & (point.spectrum.rank_deficiency == 0)
            point, adrift = if_needed(~settled, by_factors, (point, adrift), start.dtype)
        kinked = _is_kinked(newton, point)
    value = problem.objective(point.z, problem.args)
    violations = _violations(point)
    finite = jnp.isfinite(value) & _is_finite(point)
    solved = finite & _is_stationary(point, tol) & ~kinked
    status = _first(
        (Status.UNBOUNDED, is_far(point.z, start) & ~(solved & ~is_pushed_on(point)) | adrift),
        (Status.NOT_FINITE, ~finite),
        (Status.NOT_A_MINIMUM, solved & point.spectrum.indefinite),
        (Status.CONVERGED, solved),
        (Status.MAX_STEPS, final.steps >= method.max_steps),
    )
    settled = Settled(point, None, jnp.array(0, jnp.int32), violations)
    return _found(status, final.steps, newton, settled, method, start.size)


def _attempts(problem: Problem, newton: Newton, method: Method) -> _Attempt:
    """The solver and the polish in turns: once, or until the point is a solution."""
    start, tol, minimiser = problem.start, method.tol, method.minimiser
    max_steps, none = method.max_steps, jnp.array(0, jnp.int32)

    def run_as_it_is(y, share, steps):
        response = newton.conditions.jacobian(y, problem.args).mv(probe(y))
        tolerance = LOOSEST * share * jnp.max(jnp.abs(response))
        y, more = minimiser.run(problem, y, tolerance, share, max_steps - steps)
        return y, jnp.where(more < 0, more, steps + more)

    run = (
        partial(_run_in_units, problem, newton, minimiser, max_steps)
        if isinstance(minimiser, ScalableMinimiser)
        else run_as_it_is
    )
    if not minimiser.restartable:
        y, steps = run(start, jnp.zeros((), start.dtype), none)
        return _Attempt(newton.polish(y), steps, none)

    least = jnp.array(0.1 * tol / LOOSEST, start.dtype)

    def again(last: _Attempt) -> _Attempt:
        # From the loosest to a tenth of tol in equal ratios.
        share = least ** (last.round.astype(start.dtype) / (ROUNDS - 1))
        y, steps = last.polished.z, jnp.where(unsolved(last), last.steps, max_steps)
        if newton.constant:  # the polish alone solves it, as a rule

            def ran(zero):
                return run(y + zero, share, steps)

            y, steps = if_needed(last.round > 0, ran, (y, steps), start.dtype)
        else:
            y, steps = run(y, share, steps)
        return _Attempt(newton.polish(y, like=last.polished), steps, last.round + 1)

    def unsolved(last: _Attempt):
        point = last.polished
        better = _is_solved(point, tol) & _is_near(point, tol, start.size, slow=WORTHWHILE)
        return (last.round == 0) | (~better & (last.round < ROUNDS) & (last.steps < max_steps))

    return jax.lax.while_loop(unsolved, again, _Attempt(newton.blank(start), none, none))


class _Leg(eqx.Module):
    """Where a solver stands that changes the units of the unknowns once, after a few steps."""

    y: Float[Array, " n"]
    steps: Int[Array, ""]
    first: Bool[Array, ""]
    goes_on: Bool[Array, ""]


def _run_in_units(
    problem: Problem, newton: Newton, minimiser: ScalableMinimiser, max_steps: int, y, share, steps
) -> tuple[Float[Array, " n"], Int[Array, ""]]:
    """The first steps in the units as they are: few problems need more. Then, and in later rounds,
    in units in which the Hessian is equilibrated where those have led."""

    def advance(leg: _Leg) -> _Leg:
        first = leg.first
        product = lx.linearise(newton.conditions.jacobian(leg.y, problem.args)).mv
        ones = jnp.ones_like(leg.y)

        def equilibrated(zero):
            return equilibrated_units(product, ones + zero)

        units = if_needed(~first, equilibrated, ones, leg.y.dtype)
        response = units * product(probe(leg.y))
        tolerance = LOOSEST * share * jnp.max(jnp.abs(response))
        # Under `vmap` lanes that have ended go through all of this with those that have not.
        left = jnp.where(leg.goes_on, max_steps - leg.steps, 0)
        budget = jnp.where(first, jnp.minimum(BEFORE_UNITS, left), left)
        y, more = minimiser.run_in_units(problem, leg.y, units, tolerance, budget)
        goes_on = first & (more >= BEFORE_UNITS) & (left > budget)
        return _Leg(y, leg.steps + more, jnp.array(False), goes_on)

    start = _Leg(y, steps, first=share == 1, goes_on=steps < max_steps)
    end = jax.lax.while_loop(lambda leg: leg.goes_on, advance, start)
    return end.y, end.steps


def _is_solved(point: Polished, tol: float) -> Bool[Array, ""]:
    return _is_stationary(point, tol) & ~point.spectrum.indefinite


def _is_stationary(point: Polished, tol: float) -> Bool[Array, ""]:
    left = _violations(point).worst
    near = (left <= tol) & _is_near(point, tol, point.z.size)
    # Where y is too small for its unit to show, a small residual says nothing, but Newton's step
    # leads far beyond the solution. (Of what rounding leaves no step makes less.)
    eps = jnp.finfo(left.dtype).eps
    kept, raised = point.fall > STUCK, point.fall > 4
    return near & ~(kept & (left > 1e4 * eps)) & ~(raised & (left > 30 * eps))


def _is_kinked(newton: Newton, point: Polished) -> Bool[Array, ""]:
    """Whether the gradient jumps here, by a share of what it was at the start: over a displacement
    hardly beyond rounding it changes, and not as K says. Or nearly here, where K has no bound, as
    near the kink of a norm: then the gradient that is left is small only beside K, and no step
    makes it smaller, or none is left that would."""
    conditions, args, z = newton.conditions, newton.args, point.z
    before = largest(conditions.residual(newton.start, args))
    moved = largest(newton.way(z)) > 0.01 * jnp.maximum(1, largest(z))
    info = jnp.finfo(z.dtype)
    small = 4 * info.eps
    change = conditions.residual(z + small * probe(z), args) - point.residual
    apart = largest(change - small * point.response) > 0.5 * largest(change)
    stuck = (point.fall > STUCK) | _is_left_over(point, z.size)
    # From a start that was wrong along the flattest directions alone, rounding along the steepest
    # may leave as much: in float64 only where a gradient is refused for it anyway.
    rounding = 30 * info.eps * largest(point.response) if info.bits < 64 else 0
    much = jnp.maximum(0.01 * before, rounding)
    return moved & (apart & (largest(change) > much) | stuck & (largest(point.residual) > much))


def _is_near(point: Polished, tol: float, size: int, slow: float = SLOW) -> Bool[Array, ""]:
    """Whether the Newton step that is left is short in the first ``size`` unknowns: in a flat
    valley the residual is small far from the minimiser, too, and no such step could be taken.

    The square root of tol will do as long as the next error is a square. It is not where the
    next step, with the same K, is not much shorter, as at y^4 or, at any distance from where other
    forces end that, at exp(-y); unless what is left is rounding, in all unknowns.
    """
    left, z = point.step[:size], point.z[:size]
    residual, response = jnp.abs(point.residual[:size]), jnp.abs(point.response[:size])
    rounding = 1e4 * jnp.finfo(left.dtype).eps
    creeps = (point.shrinkage > slow) & jnp.any(residual > rounding * response)
    short = jnp.where(creeps, 10 * tol, tol**0.5)
    return jnp.linalg.norm(left) <= short * jnp.linalg.norm(jnp.maximum(1, jnp.abs(z)))


def _find_constrained(problem: Problem, conditions: KarushKuhnTucker, method: Method) -> Found:
    args, start, minimiser = problem.args, problem.start, method.minimiser
    max_steps = jnp.array(method.max_steps, jnp.int32)
    program = _nonlinear_program(problem, conditions)
    # Bounds that contradict each other: the solver gets some that do not.
    crossed = jnp.any(program.lower > program.upper)
    upper = jnp.maximum(program.lower, program.upper)
    program = eqx.tree_at(lambda p: p.upper, program, upper).with_constant(start)
    constant = program.constant
    assert constant is not None
    if isinstance(conditions, CentralPath):
        constant = Constant(constant.jacobian, None)  # the barrier is not quadratic
    newton = Newton(
        conditions,
        args,
        method.linear_solver,
        start,
        matrices=lambda z, active: matrices(conditions, z, args, active, constant),
    )
    if isinstance(minimiser, ConstrainedMinimiser):
        end = minimiser.run_program(program, start, jnp.array(method.tol, start.dtype), max_steps)
        found = Multipliers(end.y, end.eq, end.ineq, end.upper - end.lower)
        steps, infeasible = end.steps, end.infeasible | crossed
    else:
        none = jnp.zeros((), start.dtype)
        y, steps = minimiser.run(problem, start, none, none, max_steps)
        found, infeasible = estimated_multipliers(conditions, y, args, constant), crossed
    if isinstance(conditions, CentralPath):
        settled = settle_on_path(newton, found, constant)
    else:
        settled = settle(newton, found, method.tol, constant)
    violations = settled.violations
    finite = jnp.all(jnp.isfinite(settled.polished.z)) & jnp.isfinite(violations.worst)
    point = settled.polished
    solved = finite & (violations.worst <= method.tol) & _is_near(point, method.tol, start.size)
    # What is left of the gradient is nothing beside the largest of the terms that it is made of,
    # but it is not rounding, and nothing holds y against it.
    pushed = _is_left_over(point, start.size)
    solved &= ~(pushed & (violations.stationarity > 100 * jnp.finfo(start.dtype).eps))
    minimum = solved & ~point.spectrum.indefinite
    # (An interior point goes to the middle of a face of solutions without one.)
    adrift = is_adrift(newton, point, method.tol, settled.active, limit=jnp.inf)
    point = without_flat_directions(newton, point, settled.active, start.size, minimum)
    settled = eqx.tree_at(lambda s: s.polished, settled, point)
    feasible = violations.infeasibility <= method.tol
    y, multipliers = point.z[: start.size], point.z[start.size :]
    status = _first(
        (Status.INFEASIBLE, infeasible & ~feasible),
        (Status.UNBOUNDED, is_far(y, start) & ~solved | adrift),
        (Status.NOT_FINITE, ~finite),
        (Status.NOT_A_MINIMUM, solved & point.spectrum.indefinite),
        (Status.CONVERGED, solved),
        (Status.DEGENERATE, feasible & is_far(multipliers, jnp.zeros(1, y.dtype))),
        (Status.MAX_STEPS, steps >= method.max_steps),
    )
    return _found(status, steps, newton, settled, method, start.size)


def _is_left_over(point: Polished, size: int) -> Bool[Array, ""]:
    """Whether most of the residual in y lies along directions that K takes as null."""
    left = largest((point.residual + point.reaction)[:size])
    return (point.spectrum.rank_deficiency != 0) & (left > 0.5 * largest(point.residual[:size]))


def _nonlinear_program(problem: Problem, conditions: KarushKuhnTucker) -> NonlinearProgram:
    """The problem as solvers are asked it."""
    args, (p, _) = problem.args, conditions.rows
    infinite = jnp.full_like(problem.start, jnp.inf)
    lower, upper = (-infinite, infinite) if args.bounds is None else args.bounds
    return NonlinearProgram(
        objective=lambda y: problem.objective(y, args),
        equalities=lambda y: conditions.constraints(y, args)[:p],
        inequalities=lambda y: conditions.constraints(y, args)[p:],
        lower=lower,
        upper=upper,
        bounded=args.bounds is not None,
    )


def _find_root(problem: Equations, conditions: Conditions, method: Method) -> Found:
    start = problem.start
    tolerance, max_steps = (
        jnp.array(method.tol, start.dtype),
        jnp.array(method.max_steps, jnp.int32),
    )
    z, steps = method.minimiser.run(problem, start, tolerance, jnp.ones_like(tolerance), max_steps)
    newton = Newton(conditions, problem.args, method.linear_solver, start)
    point = newton.polish(z)
    violations = _violations(point)
    finite = _is_finite(point)
    solved = finite & _is_stationary(point, method.tol)
    adrift = is_adrift(newton, point, method.tol)
    status = _first(
        (Status.UNBOUNDED, is_far(point.z, start) & ~solved | adrift),
        (Status.NOT_FINITE, ~finite),
        (Status.CONVERGED, solved),
        (Status.MAX_STEPS, steps >= method.max_steps),
    )
    settled = Settled(point, None, jnp.array(0, jnp.int32), violations)
    return _found(status, steps, newton, settled, method, start.size)


def _violations(point: Polished) -> Violations:
    """Of a point without constraints."""
    remaining = stationarity(point.residual, point.response)
    zero = jnp.zeros_like(remaining)
    return Violations(remaining, zero, zero)


def _found(
    status: Int[Array, ""],
    steps: Int[Array, ""],
    newton: Newton,
    settled: Settled,
    method: Method,
    size: int,
) -> Found:
    """The report on a point, from the optimality conditions, never from what a solver says."""
    point, violations = settled.polished, settled.violations
    unknown = jnp.full_like(violations.stationarity, jnp.nan)
    certificate = Certificate(unknown, unknown, unknown)
    if method.certified:
        certificate = certify(newton, point, settled.active, size)
    report = Report(
        status=status,
        steps=steps,
        stationarity=violations.stationarity,
        infeasibility=violations.infeasibility,
        complementarity=violations.complementarity,
        solution_error=certificate.solution_error,
        gradient_error=certificate.gradient_error,
        curvature=certificate.curvature,
        rank_deficiency=point.spectrum.rank_deficiency,
        weakly_active=settled.weakly_active,
    )
    factors = point.factors
    if isinstance(factors, Factors):
        factors = factors.for_solves
    return Found(point.z, settled.active, report, factors)


def _first(*cases: tuple[Status, Bool[Array, ""]]) -> Int[Array, ""]:
    """The first status whose condition holds; `STALLED` where none does."""
    kinds = [jnp.array(int(kind), jnp.int32) for kind, _ in cases]
    stalled = jnp.array(int(Status.STALLED), jnp.int32)
    return jnp.select([condition for _, condition in cases], kinds, stalled)


def _is_finite(point: Polished) -> Bool[Array, ""]:
    return jnp.all(jnp.isfinite(point.residual)) & jnp.all(jnp.isfinite(point.response))
