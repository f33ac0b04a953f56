"""How far a solution and a gradient can be trusted: estimates of their errors, and the curvature.

All of it comes from the factorisation that the backward pass uses, in a few products and solves.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
from jaxtyping import Array, Bool, Float, PyTree, Scalar

from .factors import KKTFactors, if_needed
from .linear_solve import apply_factors, apply_kept_factors, state_from_factors
from .optimality import Active, probe
from .polish import Newton, Polished

POWER_STEPS = 3


class Certificate(eqx.Module):
    """What `Report` says under the same names."""

    solution_error: Scalar
    gradient_error: Scalar
    curvature: Scalar


def certify(newton: Newton, point: Polished, active: Active | None, size: int) -> Certificate:
    """Estimates at a polished point; the first ``size`` entries of z are those of y."""
    operator = lx.linearise(newton.conditions.jacobian(point.z, newton.args, active))
    noise = _rounding(newton, operator, point, active)
    y, step = point.z[:size], point.step
    if newton.inexact(point.z):
        step = -apply_factors(newton.linear_solver, _state(newton, operator, point), point.residual)
    lengths = [jnp.linalg.norm(d[:size]) for d in (step, noise)]
    of_gradient, lost = gradient_error(newton, operator, point, step + noise, active, size)
    # Along a direction that was dropped though the params push there, y is not known at all.
    of_rounding = jnp.where(lost, 1, jnp.finfo(y.dtype).eps) * jnp.linalg.norm(y)
    return Certificate(
        solution_error=sum(lengths, of_rounding),
        gradient_error=of_gradient,
        curvature=curvature(newton, point, size),
    )


def without_flat_directions(
    newton: Newton, point: Polished, active: Active | None, size: int, minimum: Bool[Array, ""]
) -> Polished:
    """A point near a minimum that is flat, like that of y^4, with its factors as if it were there.

    There K is singular; here, where Newton's method has slowed down, only nearly so, and its
    inverse means nothing: over the next step s towards the solution the curvature of y^q falls to
    the share (1 - 1/(q - 1))^(q - 2) < 1/2, so that K^-1 (K(z + s) - K(z)) s is more than s / 2. At
    a regular solution, however ill-conditioned, it vanishes with s.
    """
    conditions, args = newton.conditions, newton.args
    z, step = point.z, point.step
    length = jnp.linalg.norm(step[:size])
    short = jnp.finfo(z.dtype).eps ** (2 / 3) * jnp.maximum(1, jnp.linalg.norm(z[:size]))

    def look(zero):
        def product(z):
            return conditions.jacobian(z, args, active).mv(step)

        here, there = jax.vmap(product)(jnp.stack([z, z + step]) + zero)
        change = there - here
        state = _state(newton, conditions.jacobian(z, args, active), point)
        lost = apply_factors(newton.linear_solver, state, change)[:size]
        flat = jnp.linalg.norm(lost) > 0.1 * length
        spectrum, inverse = point.spectrum, None
        if isinstance(point.factors, KKTFactors):
            # Four times: the curvature is at most twice its change, over this step.
            uncertainty = 4 * jnp.linalg.norm(change[:size]) / length
            inverse = point.factors.inverse_without(uncertainty, zero)
            rank_deficiency = inverse.rank_deficiency
        else:
            rank_deficiency = jnp.maximum(spectrum.rank_deficiency, 1)
        spectrum = dataclasses.replace(
            spectrum, rank_deficiency=rank_deficiency, curvature=jnp.zeros_like(spectrum.curvature)
        )
        return jax.tree.map(lambda new, old: jnp.where(flat, new, old), (spectrum, inverse), known)

    inverse = point.factors.inverse if isinstance(point.factors, KKTFactors) else None
    known = point.spectrum, inverse
    spectrum, inverse = if_needed(minimum & (length > short), look, known, z.dtype)
    factors = point.factors
    if inverse is not None:
        factors = dataclasses.replace(factors, inverse=inverse)
    return dataclasses.replace(point, spectrum=spectrum, factors=factors)


def _rounding(
    newton: Newton, operator: lx.AbstractLinearOperator, point: Polished, active: Active | None
) -> Float[Array, " k"]:
    """What rounding in the residual may do to z. Newton's method ends at a zero of the residual
    *as computed*: there the next step is short, though z may be as far from z* as this.

    A neighbour a few units in the last place away rounds differently; the change of the residual
    that is not explained by K is a sample of its noise.
    """
    z = point.z
    shift = (z + 8 * jnp.finfo(z.dtype).eps * probe(z)) - z
    there = newton.conditions.residual(z + shift, newton.args, active)
    noise = there - point.residual - operator.mv(shift)
    state = _state(newton, operator, point)
    return apply_factors(newton.linear_solver, state, jnp.where(jnp.isfinite(noise), noise, 0))


def _state(newton: Newton, operator: lx.AbstractLinearOperator, point: Polished) -> Any:
    state = state_from_factors(newton.linear_solver, operator, point.factors)
    return newton.linear_solver.init(operator, {}) if state is None else state


def gradient_error(
    newton: Newton,
    operator: lx.AbstractLinearOperator,
    point: Polished,
    error: Float[Array, " k"],
    active: Active | None,
    size: int,
) -> tuple[Scalar, Bool[Array, ""]]:
    """The relative change of one gradient, that of v'y with a fixed v, between z and z + d, where
    the ``error`` d is an estimate of z* - z; and whether that gradient lost a part.

    Where directions of K were dropped as null, v - K u is what of v lies in them. Of a solution
    that may move along them freely, they have no part in dF/dtheta; if they have, K is nearly
    singular rather than singular, the gradient along them is large, and nothing of it is known.

    The solution u of K u = v at z + d is that at z less K^-1 (K(z + d) u - v): so the change holds
    the rounding errors of the linear solve too.
    """
    conditions, args = newton.conditions, newton.args
    floating, other = eqx.partition(args, eqx.is_inexact_array)
    z = point.z
    nearby = z + jnp.where(jnp.all(jnp.isfinite(error)), error, 0)
    direction = jnp.zeros_like(z).at[:size].set(probe(jnp.zeros_like(z[:size])))

    def transposed(z) -> Callable[[Array], Array]:
        operator = conditions.jacobian(z, args, active)
        return (operator if conditions.symmetric else operator.T).mv

    def pull_back(z, u) -> PyTree:
        def residual(floating):
            return conditions.residual(z, eqx.combine(floating, other), active)

        return jax.vjp(residual, floating)[1](u)[0]

    state = _state(newton, operator, point)
    here_operator = operator if conditions.symmetric else operator.T
    if not conditions.symmetric:
        state, _ = newton.linear_solver.transpose(state, {})

    def inverse(b):
        return apply_factors(newton.linear_solver, state, b)

    u = newton.linear_solver.compute(state, direction, {})[0]
    change = inverse(transposed(nearby)(u) - direction)
    here, there = pull_back(z, u), pull_back(nearby, u - change)
    difference = _length(jax.tree.map(jnp.subtract, here, there))
    # Nothing to differentiate, or a gradient of zero: then u itself is what is known.
    length = _length(here)
    relative = difference / jnp.where(length > 0, length, 1)
    of_solve = jnp.linalg.norm(change) / jnp.linalg.norm(u)
    eps = jnp.finfo(z.dtype).eps
    found = jnp.where(length > 0, relative, of_solve).astype(z.dtype) + eps

    def takes_part(zero):
        outside = _length(pull_back(z, direction + zero - here_operator.mv(u)))
        return outside > eps**0.5 * _length(pull_back(z, direction))

    lost = if_needed(
        point.spectrum.rank_deficiency > 0, takes_part, jnp.array(False), direction.dtype
    )
    return found + lost, lost


def curvature(newton: Newton, point: Polished, size: int) -> Scalar:
    """The smallest eigenvalue of the Hessian on the feasible directions, by inverse iteration with
    the factors, unless the factorisation found it already; inf where no direction is feasible."""
    known = point.spectrum.curvature
    if not newton.conditions.symmetric or point.factors is None:
        return known

    def inverse(v: Float[Array, " n"]) -> Float[Array, " n"]:
        padded = jnp.zeros_like(point.z).at[:size].set(v)
        return apply_kept_factors(newton.linear_solver, point.factors, padded)[:size]

    def step(_, carry):
        v, _ = carry
        image = inverse(v)
        length = jnp.linalg.norm(image)
        return image / jnp.where(length > 0, length, 1), v @ image

    v = probe(jnp.zeros_like(point.z[:size]))
    start = v / jnp.linalg.norm(v), jnp.zeros((), v.dtype)
    _, largest = jax.lax.fori_loop(0, POWER_STEPS, step, start)
    by_iteration = jnp.where(largest > 0, 1 / jnp.where(largest > 0, largest, 1), jnp.inf)
    if isinstance(point.factors, KKTFactors):  # more than any eigenvalue: the inverse is rounding
        beyond = by_iteration > size * point.factors.size
        by_iteration = jnp.where(beyond, jnp.inf, by_iteration)
    return jnp.where(jnp.isnan(known), by_iteration, known)


def _length(tree: PyTree) -> Scalar:
    leaves = jax.tree.leaves(tree)
    return jnp.sqrt(sum((jnp.sum(leaf**2) for leaf in leaves), jnp.zeros(())))
