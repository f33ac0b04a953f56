"""From a solver's point to a constrained minimum: the active constraints, polish and judgement."""

import dataclasses
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Scalar

from .factors import KKTMatrices
from .matrix_free import largest
from .optimality import Active, CentralPath, KarushKuhnTucker, Multipliers, probe, quotient
from .polish import Newton, Polished, is_short
from .program import Arguments
from .structure import Blocks, Constant, hessian_blocks, jacobian_function

ROUNDS = 8  # of corrections to the set of active constraints
ATTEMPTS = 5  # sets of active constraints that the corrections start from
NOISE = 10  # so many times the rounding of a slack, or of a multiplier, are none


class Violations(eqx.Module):
    """How far a point is from satisfying the KKT conditions, each a relative number."""

    stationarity: Scalar
    infeasibility: Scalar
    complementarity: Scalar

    @property
    def worst(self) -> Scalar:
        return jnp.maximum(self.stationarity, jnp.maximum(self.infeasibility, self.complementarity))


class Settled(eqx.Module):
    """A polished point, the constraints that are active there, and how well it solves."""

    polished: Polished
    active: Active | None
    weakly_active: Int[Array, ""]
    violations: Violations


class _Margins(eqx.Module):
    """Of each inequality: its slack and its multiplier, as relative numbers."""

    slack: Float[Array, " c"]
    multiplier: Float[Array, " c"]


def weak_level(dtype: Any) -> float:
    """Relative slacks and multipliers up to this count as zero, both at once as weakly active."""
    return float(jnp.finfo(dtype).eps) ** 0.4


def settle(newton: Newton, found: Multipliers, tol: float, constant: Constant) -> Settled:
    """Polishes ``found`` by Newton's method on the constraints that are active, and corrects these:
    one whose multiplier turns out negative is let go, one that is violated is taken in.

    A constraint that is *weakly* active, with slack and multiplier both zero, is let go too, so
    that derivatives are those of the problem without it, unless the Hessian is indefinite then, or
    singular though there is a multiplier that is only small beside the largest.

    Where that does not lead to a solution, though there is one nearby, a constraint may be in the
    way that only seems to be active, as a plane is that all but touches a ball where y is: the
    loosest are left out one after the other.
    """
    conditions, args = newton.conditions, newton.args
    assert isinstance(conditions, KarushKuhnTucker)
    start = conditions.join(found)
    level = weak_level(start.dtype)
    noise = NOISE * float(jnp.finfo(start.dtype).eps)
    equal = _always_active(conditions, args)
    always = _pack(conditions, equal)
    of_equal = _pack(conditions, Active(equal.ineq, equal.lower, equal.lower))
    unit = length_unit(conditions, found, args, constant)
    before, there = measure(conditions, found, args, equal, constant, unit, newton.start)
    nearby = before.worst <= tol**0.5
    # Where the multiplier is larger than the slack: the two sides of an interior point's path.
    likely = (there.multiplier > there.slack) | always
    none = jnp.zeros_like(likely)

    def advance(state: _State) -> _State:
        active = _unpack(conditions, state.active, args)
        polished = newton.polish(start, active, ~state.given_up, like=state.polished)
        polished = _without_inactive(conditions, polished, active)
        at, spectrum = conditions.split(polished.z), polished.spectrum
        # The solver's point may be far off beside a y that is small; rounding is no size of y.
        here = jnp.clip(length_unit(conditions, at, args, constant), noise**0.5 * unit, unit)
        violations, margins = measure(conditions, at, args, active, constant, here, newton.start)
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
        sure = solved & is_short(polished.step[: at.y.size], at.y)
        accepted = sure | (solved & first & ~more) | state.given_up
        anew = begun_anew(corrected, candidates, more, first)
        ended = ~corrected.goes_on & ~accepted
        return jax.tree.map(partial(jnp.where, ended), anew, corrected)

    def begun_anew(state: _State, candidates, more, first) -> _State:
        """With one constraint less; or, where none of these attempts leads to a solution, as at
        first; or, where that does not either, without steps: the solver's own point is judged."""
        looseness = jnp.where(candidates, there.slack, -jnp.inf)
        loosest = candidates & (looseness == jnp.max(looseness, initial=-jnp.inf))
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
        active=likely,
        kept=always,
        dropped=none,
        pressing=none,
        left_out=none,
        polished=newton.blank(start, _unpack(conditions, likely, args)),
        violations=Violations(zero, zero, zero),
        weakly_active=jnp.array(0, jnp.int32),
        count=jnp.array(0),
        attempts=jnp.array(1),
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
    fixed = _always_active(conditions, args)
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
    unit = length_unit(conditions.limit, seen, args, constant)
    violations, margins = measure(conditions.limit, seen, args, fixed, constant, unit, newton.start)
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
    return _largest(jnp.where(inside, distance, ((given != 0) | (wanted != 0)).astype(slack.dtype)))


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
    attempts: Int[Array, ""]
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
    length = _reach_of_constraints(conditions, at.y, args, jacobian, active)
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


def jacobian_of_constraints(
    conditions: KarushKuhnTucker, y: Float[Array, " n"], args: Arguments, constant: Constant
) -> Float[Array, "r n"]:
    if constant.jacobian is not None:
        return constant.jacobian
    return jacobian_function(lambda y: conditions.constraints(y, args), y)(y)


def length_unit(
    conditions: KarushKuhnTucker, at: Multipliers, args: Arguments, constant: Constant
) -> Scalar:
    """The length beside which those of y are judged: one, or less where y is all smaller and so are
    the displacements by which forces like those of the constraints change; or, of an objective
    without curvature, whose gradient no displacement changes, the constraints' distances from zero.
    """
    jacobian = jacobian_of_constraints(conditions, at.y, args, constant)
    pull, _, response = _forces(conditions, at, args, jacobian)
    reach = jnp.where(
        largest(response) > 0,
        quotient(largest(pull), largest(response)),
        _reach_of_constraints(conditions, at.y, args, jacobian),
    )
    size = jnp.maximum(largest(at.y), reach)
    return jnp.where((size > 0) & (size < 1), size, 1)


def _reach_of_constraints(
    conditions: KarushKuhnTucker,
    y: Float[Array, " n"],
    args: Arguments,
    jacobian: Float[Array, "r n"],
    active: Active | None = None,
) -> Scalar:
    """How far from zero the furthest of them is, linearised at ``y``; or of the ``active`` ones.
    Variables that are held at equal bounds say nothing of the others."""
    p, _ = conditions.rows
    equal = _always_active(conditions, args).lower
    offsets = jnp.abs(conditions.constraints(y, args) - jacobian @ jnp.where(equal, 0, y))
    sizes = jnp.max(jnp.where(equal[None, :], 0, jnp.abs(jacobian)), axis=1, initial=0)
    distances = jnp.where(sizes > 0, offsets / jnp.where(sizes > 0, sizes, 1), 0)
    if active is not None:
        distances = jnp.where(jnp.concatenate([jnp.ones(p, bool), active.ineq]), distances, 0)
    parts = [distances]
    if args.bounds is not None:
        sides = (None, None) if active is None else (active.lower, active.upper)
        for bound, side in zip(args.bounds, sides, strict=True):
            counts = jnp.isfinite(bound) & ~equal
            counts = counts if side is None else counts & side
            parts.append(jnp.where(counts, jnp.abs(bound), 0))
    return _largest(jnp.concatenate(parts))


def measure(
    conditions: KarushKuhnTucker,
    at: Multipliers,
    args: Arguments,
    active: Active,
    constant: Constant,
    unit: Scalar,
    start: Float[Array, " n"],
) -> tuple[Violations, _Margins]:
    """How far ``at`` is from the KKT conditions, with every constraint in its own scale.

    A constraint is measured against its change under a displacement of y of relative size one; a
    gradient against the largest of the terms that have to cancel, here or at the ``start``, and its
    change, in the same unknown, under such a displacement; a multiplier times the gradient of its
    constraint against terms and change in each unknown by itself, for one of small unit has large
    forces. A constraint that counts as active has to hold as an equality: derivatives take it so.

    Slacks and displacements are relative to the larger of y and the length ``unit``.
    """
    p, _ = conditions.rows
    jacobian = jacobian_of_constraints(conditions, at.y, args, constant)
    pull, gradient, response = _forces(conditions, at, args, jacobian)
    # An objective that is constant, which asks for any feasible point, pushes with no force: what
    # the multipliers then hold is rounding, and nothing beside everything.
    none = jnp.all((gradient == 0) & (response == 0))
    forces = jnp.maximum(largest(pull), largest(gradient))
    # Not beside the largest response of all: where one curvature is 1e42, any gradient is nothing.
    changes = jnp.abs(response)
    least = jnp.min(jnp.where(changes > 0, changes, jnp.inf), initial=jnp.inf)
    at_start = jnp.minimum(largest(jax.grad(conditions.objective)(start, args)), largest(response))
    common = jnp.maximum(at_start, weak_level(at.y.dtype) * least)
    common = jnp.maximum(forces, jnp.where(jnp.isfinite(common), common, 0))
    scale = jnp.where(none, jnp.inf, jnp.maximum(common, changes))
    each = jnp.maximum(jnp.maximum(jnp.abs(pull), jnp.abs(gradient)), unit * jnp.abs(response))
    # Beside the largest of them no digits may be left of smaller ones.
    each = jnp.maximum(each, weak_level(at.y.dtype) * largest(each))
    margins = _margins(conditions, at, args, jacobian, jnp.where(none, jnp.inf, each), unit)
    always = _pack(conditions, _always_active(conditions, args))
    equalities = conditions.constraints(at.y, args)[:p]
    broken = quotient(jnp.abs(equalities), _row_scales(conditions, jacobian[:p], at.y, args, unit))
    negative = jnp.where(always, 0, -margins.multiplier)
    apart = jnp.where(
        _pack(conditions, active), margins.slack, jnp.minimum(margins.slack, margins.multiplier)
    )
    violations = Violations(
        stationarity=jnp.max(quotient(jnp.abs(gradient + pull), scale), initial=0),
        infeasibility=_largest(jnp.concatenate([broken, -margins.slack])),
        complementarity=_largest(jnp.concatenate([negative, jnp.where(always, 0, apart)])),
    )
    return violations, margins


def _forces(
    conditions: KarushKuhnTucker,
    at: Multipliers,
    args: Arguments,
    jacobian: Float[Array, "r n"],
) -> tuple[Float[Array, " n"], Float[Array, " n"], Float[Array, " n"]]:
    """The pull of the constraints, the objective's gradient, and the change of that under a
    displacement of y of relative size one."""
    pull = jnp.concatenate([at.eq, at.ineq]) @ jacobian + at.bounds
    gradient, response = jax.jvp(
        lambda y: jax.grad(conditions.objective)(y, args), (at.y,), (probe(at.y),)
    )
    return pull, gradient, response


def _largest(x: Array) -> Scalar:
    """The largest entry, at least zero; NaN where there is one."""
    return jnp.max(jnp.concatenate([jnp.zeros(1, x.dtype), x]))


def _row_scales(
    conditions: KarushKuhnTucker,
    jacobian: Float[Array, "r n"],
    y: Float[Array, " n"],
    args: Arguments,
    unit: Scalar,
) -> Float[Array, " r"]:
    """The changes of constraints under a displacement of y of relative size one; a variable that is
    held at equal bounds is not displaced, and has its own size only."""
    held = _always_active(conditions, args).lower
    return jnp.abs(jacobian) @ jnp.maximum(jnp.abs(y), jnp.where(held, 0, unit))


def _margins(
    conditions: KarushKuhnTucker,
    at: Multipliers,
    args: Arguments,
    jacobian: Float[Array, "r n"],
    scale: Float[Array, " n"],
    unit: Scalar,
) -> _Margins:
    """Slacks and multipliers of the inequalities, then of lower and upper bounds."""
    p, _ = conditions.rows
    rows = jacobian[p:]
    values = conditions.constraints(at.y, args)[p:]
    # A constraint that no variable moves is measured as it is.
    row_scales = _row_scales(conditions, rows, at.y, args, unit)
    slacks = [-values / jnp.where(row_scales > 0, row_scales, 1)]
    share = 1 / jnp.where(scale > 0, scale, 1)
    multipliers = [at.ineq * jnp.max(jnp.abs(rows) * share[None, :], axis=1, initial=0)]
    if args.bounds is not None:
        lower, upper = args.bounds
        size = jnp.maximum(jnp.abs(at.y), unit)
        slacks += [(at.y - lower) / size, (upper - at.y) / size]
        multipliers += [at.lower * share, at.upper * share]
    return _Margins(jnp.concatenate(slacks), jnp.concatenate(multipliers))


def _always_active(conditions: KarushKuhnTucker, args: Arguments) -> Active:
    """Variables whose bounds are equal are held, whatever the sign of the multiplier."""
    _, m = conditions.rows
    equal = jnp.zeros(conditions.size, bool)
    if args.bounds is not None:
        equal = args.bounds[0] == args.bounds[1]
    return Active(jnp.zeros(m, bool), equal, jnp.zeros_like(equal))


def _pack(conditions: KarushKuhnTucker, active: Active) -> Bool[Array, " c"]:
    """In the order of `_margins`."""
    bounds = [active.lower, active.upper] if conditions.bounded else []
    return jnp.concatenate([active.ineq, *bounds])


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
    one = jnp.ones((), y.dtype)
    margins = _margins(conditions, nothing, args, jacobian, jnp.ones_like(y), one)
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
