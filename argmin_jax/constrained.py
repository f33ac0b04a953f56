"""From a solver's point to a constrained minimum: the active constraints, polish and judgement."""

import dataclasses
from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Scalar

from .factors import KKTMatrices
from .matrix_free import largest
from .optimality import Active, CentralPath, KarushKuhnTucker, Multipliers
from .polish import Newton, Polished, is_short
from .program import Arguments
from .structure import Blocks, Constant, hessian_blocks
from .violations import (
    Violations,
    always_active,
    jacobian_of_constraints,
    length_unit,
    margins_of,
    measure,
    pack,
    reach_of_constraints,
    weak_level,
)

ROUNDS = 8  # of corrections to the set of active constraints
ATTEMPTS = 5  # sets of active constraints that the corrections start from
NOISE = 10  # so many times the rounding of a slack, or of a multiplier, are none


class Settled(eqx.Module):
    """A polished point, the constraints that are active there, and how well it solves."""

    polished: Polished
    active: Active | None
    weakly_active: Int[Array, ""]
    violations: Violations


def settle(newton: Newton, found: Multipliers, tol: float, constant: Constant) -> Settled:
    """Polishes ``found`` by Newton's method on the constraints that are active, and corrects these:
    one whose multiplier turns out negative is let go, one that is violated is taken in.

    A constraint that is *weakly* active, with slack and multiplier both zero, is let go too, so
    that derivatives are those of the problem without it, unless the Hessian is indefinite then, or
    singular though there is a multiplier that is only small beside the largest.

    It begins with those whose multiplier shows beside all pulls. Where that does not lead to a
    solution, though there is one nearby, with those too whose multiplier shows beside what these
    leave of each other, which is little in an unknown that the objective does not know. Or a
    constraint may be in the way that only seems to be active, as a plane is that all but touches a
    ball where y is: the loosest are left out one after the other.
    """
    conditions, args = newton.conditions, newton.args
    assert isinstance(conditions, KarushKuhnTucker)
    start = conditions.join(found)
    level = weak_level(start.dtype)
    noise = NOISE * float(jnp.finfo(start.dtype).eps)
    equal = always_active(conditions, args)
    always = pack(conditions, equal)
    of_equal = pack(conditions, Active(equal.ineq, equal.lower, equal.lower))
    unit = length_unit(conditions, found, args, constant)
    push = largest(jax.grad(conditions.objective)(newton.start, args))
    before, there = measure(conditions, found, args, equal, constant, unit, push)
    nearby = before.worst <= tol**0.5
    # Where the multiplier is larger than the slack: the two sides of an interior point's path.
    likely = (there.multiplier > there.slack) | always
    hidden = likely & ~((there.share > there.slack) | always)
    none = jnp.zeros_like(likely)

    def advance(state: _State) -> _State:
        active = _unpack(conditions, state.active, args)
        polished = newton.polish(start, active, ~state.given_up, like=state.polished)
        polished = _without_inactive(conditions, polished, active)
        at, spectrum = conditions.split(polished.z), polished.spectrum
        # The solver's point may be far off beside a y that is small; rounding is no size of y.
        here = jnp.clip(length_unit(conditions, at, args, constant), noise**0.5 * unit, unit)
        violations, margins = measure(conditions, at, args, active, constant, here, push)
        weak = state.active & (margins.multiplier <= level) & ~state.kept
        violated = ~state.active & (margins.slack < -noise)
        # Without a constraint let go the Hessian may have negative curvature, or leave y free.
        needed = state.dropped & spectrum.indefinite
        needed |= state.pressing & (spectrum.rank_deficiency > 0)
        taken = violated | (needed & ~state.active)
        changed = jnp.any(weak | taken) & ~state.given_up
        last = state.count + 1 >= ROUNDS
        corrected = _State(
            active=jnp.where(changed & ~last, (state.active & ~weak) | taken, state.active),
            kept=state.kept | taken,
            dropped=state.dropped | weak,
            pressing=state.pressing | (weak & (margins.multiplier > noise)),
            left_out=state.left_out,
            polished=polished,
            violations=violations,
            weakly_active=jnp.sum(
                (jnp.abs(margins.slack) <= level) & (margins.multiplier <= level) & ~of_equal
            ).astype(jnp.int32),
            count=state.count + 1,
            attempts=state.attempts,
            given_up=state.given_up,
            goes_on=changed & ~last,
        )
        solved = violations.worst <= tol
        first = (state.attempts == 1) | (state.attempts > ATTEMPTS)
        candidates = likely & ~always & ~state.left_out
        more = nearby & jnp.any(candidates) & (state.attempts < ATTEMPTS)
        more |= state.attempts == 0
        sure = solved & is_short(polished.step[: at.y.size], at.y)
        # What is hidden may hold an unknown that is free without it.
        sure &= (state.attempts > 0) | (spectrum.rank_deficiency == 0)
        accepted = sure | (solved & first & ~more) | state.given_up
        anew = begun_anew(corrected, candidates, more, first)
        ended = ~corrected.goes_on & ~accepted
        return jax.tree.map(partial(jnp.where, ended), anew, corrected)

    def begun_anew(state: _State, candidates, more, first) -> _State:
        """With all that are likely; then with one constraint less; or, where none of these attempts
        leads to a solution, with all again; or, where that does not either, without steps: the
        solver's own point is judged."""
        looseness = jnp.where(candidates, there.slack, -jnp.inf)
        loosest = candidates & (looseness == jnp.max(looseness, initial=-jnp.inf))
        loosest &= state.attempts > 0
        left_out = more & (state.left_out | loosest)
        return dataclasses.replace(
            state,
            active=likely & ~left_out,
            kept=always,
            dropped=none,
            pressing=none,
            left_out=left_out,
            count=jnp.array(0),
            attempts=jnp.where(more, state.attempts + 1, ATTEMPTS + 1),
            given_up=~more & first,
            goes_on=jnp.array(True),
        )

    zero = jnp.zeros((), start.dtype)
    blank = _State(
        active=likely & ~hidden,
        kept=always,
        dropped=none,
        pressing=none,
        left_out=none,
        polished=newton.blank(start, _unpack(conditions, likely & ~hidden, args)),
        violations=Violations(zero, zero, zero),
        weakly_active=jnp.array(0, jnp.int32),
        count=jnp.array(0),
        attempts=jnp.where(jnp.any(hidden), 0, 1),
        given_up=jnp.array(False),
        goes_on=jnp.array(True),
    )
    end = jax.lax.while_loop(lambda state: state.goes_on, advance, blank)
    # Of two equal bounds the one that y is pushed against: it moves y, where they move apart.
    active = _unpack(conditions, end.active, args)
    pushed_up = conditions.split(end.polished.z).bounds > 0
    at_upper = active.upper | (equal.lower & pushed_up)
    active = Active(active.ineq, active.lower & ~at_upper, at_upper)
    return Settled(end.polished, active, end.weakly_active, end.violations)


def settle_on_path(newton: Newton, found: Multipliers, constant: Constant) -> Settled:
    """Polishes ``found`` to the point of the central path, and judges it as a constrained minimum
    but for complementarity, which is slack * multiplier = mu."""
    conditions, args = newton.conditions, newton.args
    assert isinstance(conditions, CentralPath)
    fixed = always_active(conditions, args)
    multipliers = jnp.zeros_like(found.ineq), jnp.where(fixed.fixed, found.bounds, 0)
    start = conditions.join(Multipliers(found.y, found.eq, *multipliers))
    polished = newton.polish(start, fixed)

    # A slack as small as mu has few digits left when it is computed from a rounded y, and mu /
    # slack no more. The Newton step that y has no digits for corrects that.
    def multipliers_at(z):
        return conditions.multipliers(z, args)

    at, change = jax.jvp(multipliers_at, (polished.z,), (polished.step,))
    ahead = jax.tree.map(jnp.add, at, change)
    seen = Multipliers(at.y, ahead.eq, ahead.ineq, ahead.upper - ahead.lower)
    limit = conditions.limit  # not the barrier: its gradient is unbounded near a constraint
    unit = length_unit(limit, seen, args, constant)
    push = largest(jax.grad(limit.objective)(newton.start, args))
    violations, margins = measure(limit, seen, args, fixed, constant, unit, push)
    given, wanted = ([m.ineq, m.of_lower, m.of_upper] for m in (at, ahead))
    violations = Violations(
        violations.stationarity,
        violations.infeasibility,
        _apart(margins.slack, *(jnp.concatenate(m)[: margins.slack.size] for m in (given, wanted))),
    )
    return Settled(polished, fixed, jnp.array(0, jnp.int32), violations)


def _apart(
    slack: Float[Array, " c"], given: Float[Array, " c"], wanted: Float[Array, " c"]
) -> Scalar:
    """How far slacks of multipliers ``given``, mu / slack, are from those of the ``wanted`` ones,
    mu / wanted; 1 where one of them is not inside. (Of infinite slacks both are zero.)"""
    inside = (given > 0) & (wanted > 0)
    distance = jnp.where(inside, slack, 1) * jnp.abs(1 - given / jnp.where(inside, wanted, 1))
    outside = ((given != 0) | (wanted != 0)).astype(slack.dtype)
    return jnp.max(jnp.where(inside, distance, outside), initial=0)


class _State(eqx.Module):
    active: Bool[Array, " c"]
    kept: Bool[Array, " c"]  # not to be let go any more
    dropped: Bool[Array, " c"]
    pressing: Bool[Array, " c"]  # of these, those of a multiplier that is not zero
    left_out: Bool[Array, " c"]  # of those that are likely to be active
    polished: Polished
    violations: Violations
    weakly_active: Int[Array, ""]
    count: Int[Array, ""]
    attempts: Int[Array, ""]  # none yet while what is hidden is left out
    given_up: Bool[Array, ""]
    goes_on: Bool[Array, ""]


def matrices(
    conditions: KarushKuhnTucker,
    z: Float[Array, " k"],
    args: Arguments,
    active: Active,
    constant: Constant,
) -> KKTMatrices:
    """The Hessian of the Lagrangian and the Jacobian of the constraints, dense."""
    at = conditions.split(z)
    hessian = constant.hessian
    if hessian is None:
        hessian = _hessian_of_lagrangian(conditions, at, args, active)
    jacobian = jacobian_of_constraints(conditions, at.y, args, constant)
    force = largest(jax.grad(conditions.objective)(at.y, args))
    length = reach_of_constraints(conditions, at.y, args, jacobian, active)
    return KKTMatrices(
        hessian=hessian,
        stiffness=jnp.where(force > 0, force, 1) / jnp.where(length > 0, length, 1),
        jacobian=jacobian,
        active=jnp.concatenate([jnp.ones(at.eq.size, bool), active.ineq]),
        fixed=active.fixed,
        bounded=conditions.bounded,
    )


def _hessian_of_lagrangian(
    conditions: KarushKuhnTucker, at: Multipliers, args: Arguments, active: Active
) -> Float[Array, "n n"]:
    # Where the objective does not push, what the multipliers hold is rounding, and so would be all
    # of the Hessian of a constant objective's Lagrangian.
    pushes = jnp.any(jax.grad(conditions.objective)(at.y, args) != 0)
    multipliers = jnp.concatenate([at.eq, jnp.where(active.ineq, at.ineq, 0)]) * pushes

    def gradient(y):
        def lagrangian(y):
            total = conditions.objective(y, args)
            return total + multipliers @ conditions.constraints(y, args)

        return jax.grad(lagrangian)(y)

    _, product = jax.linearize(gradient, at.y)
    (hessian,) = hessian_blocks(product, Blocks((at.y.size,)), at.y.dtype)
    return hessian


def _unpack(conditions: KarushKuhnTucker, packed: Bool[Array, " c"], args: Arguments) -> Active:
    (_, m), n = conditions.rows, conditions.size
    if not conditions.bounded:
        none = jnp.zeros(n, bool)
        return Active(packed, none, none)
    lower, upper = packed[m : m + n], packed[m + n :]
    # Of two equal bounds one is held: which of them is the same to y.
    return Active(packed[:m], lower, upper & ~lower)


def _without_inactive(conditions: KarushKuhnTucker, point: Polished, active: Active) -> Polished:
    """The point with the multiplier zero wherever a constraint is not active."""

    def of_active(z: Float[Array, " k"]) -> Float[Array, " k"]:
        at = conditions.split(z)
        return conditions.join(
            Multipliers(
                at.y,
                at.eq,
                jnp.where(active.ineq, at.ineq, 0),
                jnp.where(active.fixed, at.bounds, 0),
            )
        )

    parts = of_active(point.z), of_active(point.residual), of_active(point.step)
    return eqx.tree_at(lambda p: (p.z, p.residual, p.step), point, parts)


def estimated_multipliers(
    conditions: KarushKuhnTucker, y: Float[Array, " n"], args: Arguments, constant: Constant
) -> Multipliers:
    """The multipliers that leave the smallest gradient of the Lagrangian at ``y``, for solvers
    that return a point alone: least squares over the constraints that are nearly active, from
    which those of the wrong sign are left out."""
    n, (p, m) = y.size, conditions.rows
    jacobian = jacobian_of_constraints(conditions, y, args, constant)
    gradient = jax.grad(conditions.objective)(y, args)
    nothing = Multipliers(y, jnp.zeros(p, y.dtype), jnp.zeros(m, y.dtype), jnp.zeros_like(y))
    ones = jnp.ones_like(y)
    margins = margins_of(conditions, nothing, args, jacobian, ones, ones, jnp.ones((), y.dtype))
    near = margins.slack <= float(jnp.finfo(y.dtype).eps) ** 0.25
    rows = [jacobian]
    if conditions.bounded:
        rows += [-jnp.eye(n, dtype=y.dtype), jnp.eye(n, dtype=y.dtype)]
    columns = jnp.concatenate(rows).T
    held = jnp.concatenate([jnp.ones(p, bool), near])

    def fit(_, state):
        held, _ = state
        found = jnp.linalg.lstsq(columns * held[None, :], -gradient)[0]
        signed = jnp.concatenate([jnp.zeros(p, y.dtype), found[p:]])
        return held & (signed >= 0), jnp.where(held & (signed >= 0), found, 0)

    _, found = jax.lax.fori_loop(0, 3, fit, (held, jnp.zeros(columns.shape[1], y.dtype)))
    bounds = jnp.zeros_like(y)
    if conditions.bounded:
        bounds = found[p + m + n :] - found[p + m : p + m + n]
    return Multipliers(y, found[:p], found[p : p + m], bounds)
