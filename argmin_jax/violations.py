"""How far a point is from the KKT conditions, each constraint in its own scale."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Scalar

from .matrix_free import largest
from .optimality import Active, KarushKuhnTucker, Multipliers, probe, quotient
from .program import Arguments
from .structure import Constant, jacobian_function


class Violations(eqx.Module):
    """How far a point is from satisfying the KKT conditions, each a relative number."""

    stationarity: Scalar
    infeasibility: Scalar
    complementarity: Scalar

    @property
    def worst(self) -> Scalar:
        return jnp.maximum(self.stationarity, jnp.maximum(self.infeasibility, self.complementarity))


class Margins(eqx.Module):
    """Of each inequality: its slack and its multiplier, as relative numbers; and the multiplier
    beside all pulls that cancel in the unknowns it pushes, which is at most as large."""

    slack: Float[Array, " c"]
    multiplier: Float[Array, " c"]
    share: Float[Array, " c"]


def weak_level(dtype: Any) -> float:
    """Relative slacks and multipliers up to this count as zero, both at once as weakly active."""
    return float(jnp.finfo(dtype).eps) ** 0.4


def measure(
    conditions: KarushKuhnTucker,
    at: Multipliers,
    args: Arguments,
    active: Active,
    constant: Constant,
    unit: Scalar,
    push: Scalar,
) -> tuple[Violations, Margins]:
    """How far ``at`` is from the KKT conditions, with every constraint in its own scale.

    A constraint is measured against its change under a displacement of y of relative size one; a
    gradient against the largest of the terms that have to cancel, or the ``push``, that of the
    objective where the solver started, and its change, in the same unknown, under such a
    displacement; a multiplier times the gradient of its constraint against terms and change in each
    unknown by itself, for one of small unit has large forces. A constraint that counts as active
    has to hold as an equality: derivatives take it so.

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
    common = jnp.maximum(jnp.minimum(push, largest(response)), weak_level(at.y.dtype) * least)
    common = jnp.maximum(forces, jnp.where(jnp.isfinite(common), common, 0))
    scale = jnp.where(none, jnp.inf, jnp.maximum(common, changes))
    each = jnp.maximum(jnp.maximum(jnp.abs(pull), jnp.abs(gradient)), unit * jnp.abs(response))
    # Beside the largest of them no digits may be left of smaller ones.
    each = jnp.maximum(each, weak_level(at.y.dtype) * largest(each))
    each = jnp.where(none, jnp.inf, each)
    pulls = jnp.abs(jnp.concatenate([at.eq, at.ineq])) @ jnp.abs(jacobian) + jnp.abs(at.bounds)
    margins = margins_of(conditions, at, args, jacobian, each, jnp.maximum(each, pulls), unit)
    always = pack(conditions, always_active(conditions, args))
    equalities = conditions.constraints(at.y, args)[:p]
    broken = quotient(jnp.abs(equalities), _row_scales(conditions, jacobian[:p], at.y, args, unit))
    negative = jnp.where(always, 0, -margins.multiplier)
    apart = jnp.where(
        pack(conditions, active), margins.slack, jnp.minimum(margins.slack, margins.multiplier)
    )
    violations = Violations(
        stationarity=jnp.max(quotient(jnp.abs(gradient + pull), scale), initial=0),
        infeasibility=jnp.max(jnp.concatenate([broken, -margins.slack]), initial=0),
        complementarity=jnp.max(
            jnp.concatenate([negative, jnp.where(always, 0, apart)]), initial=0
        ),
    )
    return violations, margins


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
        reach_of_constraints(conditions, at.y, args, jacobian),
    )
    size = jnp.maximum(largest(at.y), reach)
    return jnp.where((size > 0) & (size < 1), size, 1)


def reach_of_constraints(
    conditions: KarushKuhnTucker,
    y: Float[Array, " n"],
    args: Arguments,
    jacobian: Float[Array, "r n"],
    active: Active | None = None,
) -> Scalar:
    """How far from zero the furthest of them is, linearised at ``y``; or of the ``active`` ones.
    Variables that are held at equal bounds say nothing of the others."""
    p, _ = conditions.rows
    equal = always_active(conditions, args).lower
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
    return jnp.max(jnp.concatenate(parts), initial=0)


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


def _row_scales(
    conditions: KarushKuhnTucker,
    jacobian: Float[Array, "r n"],
    y: Float[Array, " n"],
    args: Arguments,
    unit: Scalar,
) -> Float[Array, " r"]:
    """The changes of constraints under a displacement of y of relative size one; a variable that is
    held at equal bounds is not displaced, and has its own size only."""
    held = always_active(conditions, args).lower
    return jnp.abs(jacobian) @ jnp.maximum(jnp.abs(y), jnp.where(held, 0, unit))


def margins_of(
    conditions: KarushKuhnTucker,
    at: Multipliers,
    args: Arguments,
    jacobian: Float[Array, "r n"],
    scale: Float[Array, " n"],
    pulls: Float[Array, " n"],
    unit: Scalar,
) -> Margins:
    """Of the inequalities, then of lower and upper bounds; multipliers beside the forces ``scale``,
    shares beside ``pulls``."""
    p, _ = conditions.rows
    rows = jacobian[p:]
    values = conditions.constraints(at.y, args)[p:]
    # A constraint that no variable moves is measured as it is.
    row_scales = _row_scales(conditions, rows, at.y, args, unit)
    slacks = [-values / jnp.where(row_scales > 0, row_scales, 1)]
    if args.bounds is not None:
        lower, upper = args.bounds
        size = jnp.maximum(jnp.abs(at.y), unit)
        slacks += [(at.y - lower) / size, (upper - at.y) / size]

    def beside(forces: Float[Array, " n"]) -> Float[Array, " c"]:
        share = 1 / jnp.where(forces > 0, forces, 1)
        parts = [at.ineq * jnp.max(jnp.abs(rows) * share[None, :], axis=1, initial=0)]
        if args.bounds is not None:
            parts += [at.lower * share, at.upper * share]
        return jnp.concatenate(parts)

    return Margins(jnp.concatenate(slacks), beside(scale), beside(pulls))


def always_active(conditions: KarushKuhnTucker, args: Arguments) -> Active:
    """Variables whose bounds are equal are held, whatever the sign of the multiplier."""
    _, m = conditions.rows
    equal = jnp.zeros(conditions.size, bool)
    if args.bounds is not None:
        equal = args.bounds[0] == args.bounds[1]
    return Active(jnp.zeros(m, bool), equal, jnp.zeros_like(equal))


def pack(conditions: KarushKuhnTucker, active: Active) -> Bool[Array, " c"]:
    """In the order of `margins_of`."""
    bounds = [active.lower, active.upper] if conditions.bounded else []
    return jnp.concatenate([active.ineq, *bounds])


def jacobian_of_constraints(
    conditions: KarushKuhnTucker, y: Float[Array, " n"], args: Arguments, constant: Constant
) -> Float[Array, "r n"]:
    if constant.jacobian is not None:
        return constant.jacobian
    return jacobian_function(lambda y: conditions.constraints(y, args), y)(y)
