"""Units in which the numbers of a quadratic program are about one.

An interior-point method has lengths of its own: how far inside it starts, what it takes for solved.
They are one, and a program whose unknowns are nanometres, or whose objective is a daily variance,
is easy for it only in other units. Of a quadratic program its data tell them.
"""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Scalar

from ..structure import Constant
from .barrier import size
from .nlp import NonlinearProgram, PrimalDual

FARTHEST = 1e3  # from zero a start may be, of unknowns that are about one: it only costs digits


class Units(eqx.Module):
    """Powers of two, so that nothing is rounded."""

    unknowns: Scalar
    rows: Float[Array, " p+m"]
    objective: Scalar


def run_in_units(
    run: Callable[[NonlinearProgram, Float[Array, " n"]], PrimalDual],
    program: NonlinearProgram,
    y: Float[Array, " n"],
) -> PrimalDual:
    """Solves ``program`` by ``run`` from ``y``, in units of its own if it is quadratic."""
    program = program.with_constant(y)
    assert program.constant is not None
    jacobian, hessian = program.constant.jacobian, program.constant.hessian
    if jacobian is None or hessian is None:
        return run(program, y)
    units = _own_units(program, jacobian, hessian, y)
    length, rows, objective = units.unknowns, units.rows, units.objective
    p = jax.eval_shape(program.equalities, y).size
    end = run(
        NonlinearProgram(
            objective=lambda x: program.objective(length * x) / objective,
            equalities=lambda x: program.equalities(length * x) / rows[:p],
            inequalities=lambda x: program.inequalities(length * x) / rows[p:],
            lower=program.lower / length,
            upper=program.upper / length,
            constant=Constant(
                jacobian * length / rows[:, None], hessian * length / objective * length
            ),
            bounded=program.bounded,
        ),
        jnp.clip(y / length, -FARTHEST, FARTHEST),
    )
    return PrimalDual(
        y=length * end.y,
        eq=objective / rows[:p] * end.eq,
        ineq=objective / rows[p:] * end.ineq,
        lower=objective / length * end.lower,
        upper=objective / length * end.upper,
        steps=end.steps,
        infeasible=end.infeasible,
    )


def _own_units(
    program: NonlinearProgram,
    jacobian: Float[Array, "p+m n"],
    hessian: Float[Array, "n n"],
    y: Float[Array, " n"],
) -> Units:
    """The unknowns' is below one where all lengths in the data are, so that none is large in it;
    and above one where the objective's own minimum or the equalities are further away from zero,
    for bounds and inequalities may be far off because they do not matter. The rows' makes their
    largest coefficients one. The objective's is at most one: the solver itself knows a larger one.
    Unknowns that are held are as large as they are, and say nothing of the others.
    """
    held = program.lower >= program.upper
    y = jnp.where(held, program.lower, y)
    free = jnp.where(held, 0, y)
    gradient = jax.grad(lambda y: program.objective(y).astype(y.dtype))(y)
    p = jax.eval_shape(program.equalities, y).size
    curvature = size(hessian)
    of_rows = jnp.max(jnp.where(held[None, :], 0, jnp.abs(jacobian)), axis=1, initial=0)
    # How far away they are from zero.
    minimum = _quotient(size(gradient - hessian @ free), curvature)
    rows = _quotient(jnp.abs(program.rows(y) - jacobian @ free), of_rows)
    bounds = jnp.where(held[None, :], 0, jnp.abs(jnp.stack([program.lower, program.upper])))
    finite = size(jnp.where(jnp.isfinite(bounds), bounds, 0))

    most = jnp.max(jnp.stack([minimum, size(rows), finite]))
    most = jnp.where(most > 0, most, size(free))
    least = jnp.minimum(jnp.maximum(minimum, size(rows[:p])), size(bounds))
    length = _power_of_two(jnp.where(most < 1, most, jnp.maximum(least, 1)))
    force = length * jnp.maximum(size(gradient), length * curvature)
    return Units(length, _power_of_two(of_rows * length), _power_of_two(jnp.minimum(force, 1)))


def _quotient(x: Array, y: Array) -> Array:
    """x / y, and zero where y is."""
    return jnp.where(y > 0, x / jnp.where(y > 0, y, 1), 0)


def _power_of_two(x: Array) -> Array:
    """The largest that is not above x; one where x is zero or not finite."""
    usable = jnp.isfinite(x) & (x > 0)
    _, exponent = jnp.frexp(jnp.where(usable, x, 1))
    return jnp.where(usable, jnp.ldexp(jnp.ones_like(x), exponent - 1), 1)
