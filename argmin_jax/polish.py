"""Newton's method at the end of a solve: it squares the error of a point that is nearly right.

The backward pass needs the factorisation anyway, and the length of the step that is not taken any
more estimates the distance to the solution.
"""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
from jaxtyping import Array, Bool, Float, Int, Scalar

from .linear_solve import (
    AutoState,
    Spectrum,
    Structure,
    apply_factors,
    comparison_vectors,
    has_factors,
    is_close,
    kept_factors,
    rough_solution,
    spectrum_at,
    start_state,
    unknown_spectrum,
)
from .operators import Linearised
from .optimality import Active, Conditions, probe
from .program import Arguments

FACTORISATIONS = 4
CHORD_STEPS = 8
ACCEPTED = 0.5  # a step is kept if the next one is this much shorter
FAST = 0.1  # a factorisation is used as long as it is this much


class Polished(eqx.Module):
    """A point after Newton's method, with all that its factorisation tells."""

    z: Float[Array, " k"]
    residual: Float[Array, " k"]
    step: Float[Array, " k"]  # the next Newton step: an estimate of z* - z
    response: Float[Array, " k"]  # K v, v = probe(z): the scale of the residual
    reaction: Float[Array, " k"]  # K step: minus the residual, but along directions taken as null
    spectrum: Spectrum
    factors: Any  # arrays that the backward pass uses again, or None


class Newton(eqx.Module):
    """What Newton's method is applied to, and how its linear systems are solved."""

    conditions: Conditions
    args: Arguments
    linear_solver: lx.AbstractLinearSolver
    structure: Callable[[Float[Array, " k"], Any], Structure]
    """What is known of K at a point, with given active constraints."""
    sparing: bool = eqx.field(static=True, default=False)
    """Whether to make no factors, though the solver would."""

    def polish(
        self,
        z: Float[Array, " k"],
        active: Active | None = None,
        allowed: Bool[Array, ""] | bool = True,
    ) -> Polished:
        """Newton's method from ``z`` with few factorisations, each used for several steps.

        A step is kept only if the next one is less than half as long (the natural monotonicity
        test of Deuflhard, Newton Methods for Nonlinear Problems, 2011, section 2.1, which does not
        depend on the scaling of the residual), so the point is never thrown away. Where the
        Hessian has a negative eigenvalue no step is taken: Newton's method would be drawn to a
        saddle point; nor where it is not ``allowed``.

        The end is judged by what K is there: another factorisation is made unless products with a
        few vectors in general position tell that the last one still describes it.
        """
        factors = has_factors(self.linear_solver, self.structure(z, active), z.size)
        by = self._by_factors if factors and not self.sparing else self._by_products
        return by(z, active, jnp.asarray(allowed))

    def _by_factors(self, z, active, allowed) -> Polished:
        def newton(carry: _State) -> _State:
            z = carry.point.z
            operator, state, spectrum = self._factorise(z, active)

            def residual_and_step(z):
                residual = self.conditions.residual(z, self.args, active)
                return residual, -apply_factors(self.linear_solver, state, residual)

            chord = _chord_steps(z, residual_and_step, allowed & ~spectrum.indefinite)
            there = self.conditions.jacobian(chord.z, self.args, active)
            generic = probe(chord.z)
            vectors = comparison_vectors(state, generic)
            images = jax.vmap(there.mv)(jnp.stack([generic, chord.step, *vectors]))
            same = is_close(operator, state, vectors, images[2:])
            point = Polished(
                z=chord.z,
                residual=chord.residual,
                step=chord.step,
                response=images[0],
                reaction=images[1],
                spectrum=spectrum,
                factors=kept_factors(self.linear_solver, state),
            )
            goes_on = (chord.count > 0) & ~(chord.finished & same)
            return _State(point, carry.count + 1, goes_on)

        start = _State(self.blank(z, active), jnp.array(0), jnp.array(True))
        end = jax.lax.while_loop(
            lambda state: state.goes_on & (state.count < FACTORISATIONS), newton, start
        )
        return end.point

    def _by_products(self, z, active, allowed) -> Polished:
        """With K at each point, as there are no factors to be used again. A step that meets
        negative curvature is not taken, and its sign is looked at in the end."""

        def residual_and_step(z):
            residual, product = jax.linearize(
                lambda z: self.conditions.residual(z, self.args, active), z
            )
            operator = Linearised(product, jax.eval_shape(lambda: z), self.conditions.tags)
            return residual, -rough_solution(operator, residual)

        chord = _chord_steps(z, residual_and_step, allowed, fast=ACCEPTED)
        operator = lx.linearise(self.conditions.jacobian(chord.z, self.args, active))
        spectrum = spectrum_at(self.linear_solver, operator, AutoState(operator, None), None)
        response, reaction = jax.vmap(operator.mv)(jnp.stack([probe(chord.z), chord.step]))
        return Polished(chord.z, chord.residual, chord.step, response, reaction, spectrum, None)

    def blank(self, z: Float[Array, " k"], active: Active | None = None) -> Polished:
        """The point that the loops begin with: of the right structure, and empty but for z."""
        zeros, unknown = jnp.zeros_like(z), unknown_spectrum(z.dtype)

        if self.sparing:
            return Polished(z, zeros, zeros, zeros, zeros, unknown, None)

        def factors():
            return kept_factors(self.linear_solver, self._factorise(z, active)[1])

        shapes = jax.eval_shape(factors)
        empty = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
        return Polished(z, zeros, zeros, zeros, zeros, unknown, empty)

    def _factorise(self, z, active) -> tuple[lx.AbstractLinearOperator, Any, Spectrum]:
        operator = lx.linearise(self.conditions.jacobian(z, self.args, active))
        structure = self.structure(z, active)
        state = start_state(self.linear_solver, operator, structure)
        return operator, state, spectrum_at(self.linear_solver, operator, state, structure)


class _State(eqx.Module):
    point: Polished
    count: Int[Array, ""]
    goes_on: Bool[Array, ""]


class _Chord(eqx.Module):
    z: Float[Array, " k"]
    residual: Float[Array, " k"]
    step: Float[Array, " k"]
    count: Int[Array, ""]
    ratio: Scalar  # the last two steps' lengths
    finished: Bool[Array, ""]  # as near as rounding allows


def _chord_steps(
    z: Float[Array, " k"], evaluate: Callable, allowed: Bool[Array, ""], fast: float = FAST
) -> _Chord:
    """Newton steps with one factorisation, while they shrink ``fast``; ``evaluate(z)`` returns the
    residual and the Newton step at z."""
    floor = 8 * jnp.finfo(z.dtype).eps

    def advance(here: _Chord) -> _Chord:
        z = here.z + here.step
        residual, step = evaluate(z)
        ratio = _norm(step) / _norm(here.step)
        accepted = ratio < ACCEPTED  # False where it is NaN
        # Short steps that shrank fast and then no longer do have reached the level of rounding;
        # longer ones, the limits of this factorisation.
        size = jnp.maximum(1, _norm(z))
        tiny = _norm(step) <= floor * size
        short = _norm(here.step) <= jnp.finfo(z.dtype).eps ** (2 / 3) * size
        finished = jnp.where(accepted, tiny, short & (here.ratio < fast))
        there = _Chord(z, residual, step, here.count + 1, ratio, finished)
        kept = _Chord(here.z, here.residual, here.step, here.count, jnp.ones_like(ratio), finished)
        return jax.tree.map(lambda a, b: jnp.where(accepted, a, b), there, kept)

    def goes_on(here: _Chord):
        return allowed & ~here.finished & (here.ratio < fast) & (here.count < CHORD_STEPS)

    residual, step = evaluate(z)
    tiny = _norm(step) <= floor * jnp.maximum(1, _norm(z))
    start = _Chord(z, residual, step, jnp.array(0), jnp.zeros((), z.dtype), tiny)
    return jax.lax.while_loop(goes_on, advance, start)


def _norm(x: Array) -> Scalar:
    return jnp.linalg.norm(x)
