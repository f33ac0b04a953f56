"""Newton's method at the end of a solve: it squares the error of a point that is nearly right.

The backward pass needs the factorisation anyway, and the length of the step that is not taken any
more estimates the distance to the solution.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
from jaxtyping import Array, Bool, Float, Int, Scalar

from .factors import KKTMatrices
from .linear_solve import (
    ROUGH,
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
from .structure import Blocks

FACTORISATIONS = 4
STEPS = 16
ACCEPTED = 0.5  # a step is kept if the next one, or the residual, is this much shorter
FAST = 0.1  # a factorisation is used as long as it is this much


class Polished(eqx.Module):
    """A point after Newton's method, with all that its factorisation tells."""

    z: Float[Array, " k"]
    residual: Float[Array, " k"]
    step: Float[Array, " k"]  # the next Newton step: an estimate of z* - z
    fall: Scalar  # what the last step that was tried left of the residual; 0 where none was
    shrinkage: Scalar  # the same of the step
    response: Float[Array, " k"]  # K v, v = probe(z): the scale of the residual
    reaction: Float[Array, " k"]  # K step: minus the residual, but along directions taken as null
    image: Float[Array, " k"]  # K times the way from the start: zero along such directions
    spectrum: Spectrum
    factors: Any  # arrays that the backward pass uses again, or None


class Newton(eqx.Module):
    """What Newton's method is applied to, and how its linear systems are solved."""

    conditions: Conditions
    args: Arguments
    linear_solver: lx.AbstractLinearSolver
    start: Float[Array, " n"]
    """Where y was first."""
    blocks: Blocks | None = eqx.field(static=True, default=None)
    """The diagonal blocks of K, if they are known."""
    matrices: Callable[[Float[Array, " k"], Active], KKTMatrices] | None = None
    """The parts of the KKT matrix at a point, where there are constraints."""
    sparing: bool = eqx.field(static=True, default=False)
    """Whether to make no factors, though the solver would."""
    constant: bool = eqx.field(static=True, default=False)
    """Whether K is the same at every point."""
    skippable: bool = eqx.field(static=True, default=False)
    """Whether all of it is inside of a loop that may not run."""

    def polish(
        self,
        z: Float[Array, " k"],
        active: Active | None = None,
        allowed: Bool[Array, ""] | bool = True,
        like: Polished | None = None,
    ) -> Polished:
        """Newton's method from ``z`` with few factorisations, each used for several steps.

        A step is kept only if the next one is less than half as long (the natural monotonicity
        test of Deuflhard, Newton Methods for Nonlinear Problems, 2011, section 2.1, which does not
        depend on the scaling of the residual), so the point is never thrown away. Where the
        Hessian has a negative eigenvalue no step is taken: Newton's method would be drawn to a
        saddle point; nor where it is not ``allowed``.

        The end is judged by what K is there: another factorisation is made unless products with a
        few vectors in general position tell that the last one still describes it.

        ``like`` is any result for the same problem, which saves the work of finding its structure.
        """
        allowed = jnp.asarray(allowed)
        if self.inexact(z):
            return self._by_products(z, active, allowed)
        like = self.blank(z, active) if like is None else dataclasses.replace(like, z=z)
        return self._by_factors(like, active, allowed)

    def inexact(self, z: Float[Array, " k"]) -> bool:
        """Whether steps are found by few products with K, without factors."""
        if self.matrices is not None:
            return False
        return self.sparing or not has_factors(self.linear_solver, self.blocks, z.size)

    def _by_factors(self, start: Polished, active, allowed) -> Polished:
        def newton(carry: _State) -> _State:
            z = carry.point.z
            operator, state, spectrum = self._factorise(z, active)

            def residual_and_step(z):
                residual = self.conditions.residual(z, self.args, active)
                return residual, -apply_factors(self.linear_solver, state, residual)

            allowed_here = allowed & ~spectrum.indefinite
            end = _steps(z, residual_and_step, self.start.size, allowed_here, exact=True)
            there = self.conditions.jacobian(end.z, self.args, active)
            generic = probe(end.z)
            vectors = comparison_vectors(state, generic)[: 0 if self.constant else None]
            images = jax.vmap(there.mv)(jnp.stack([generic, end.step, self.way(end.z), *vectors]))
            same = self.constant or is_close(operator, state, vectors, images[3:])
            point = Polished(
                z=end.z,
                residual=end.residual,
                step=end.step,
                fall=end.fall,
                shrinkage=end.shrinkage,
                response=images[0],
                reaction=images[1],
                image=images[2],
                spectrum=spectrum,
                factors=kept_factors(self.linear_solver, state),
            )
            goes_on = (end.count > 0) & ~(end.finished & same)
            return _State(point, carry.count + 1, goes_on)

        first = _State(start, jnp.array(0), jnp.array(True))
        if self.constant:
            return newton(first).point
        end = jax.lax.while_loop(
            lambda state: state.goes_on & (state.count < FACTORISATIONS), newton, first
        )
        return end.point

    def _by_products(self, z, active, allowed) -> Polished:
        """With K at each point, as there are no factors to be used again. A step that meets
        negative curvature is not taken, and its sign is looked at in the end.

        Each step is found to the share ROUGH of itself. So the one after which rounding would hide
        what is left is taken without looking for another."""

        def linearised(z):
            residual, product = jax.linearize(
                lambda z: self.conditions.residual(z, self.args, active), z
            )
            return residual, Linearised(product, jax.eval_shape(lambda: z), self.conditions.tags)

        def residual_and_step(z):
            residual, operator = linearised(z)
            return residual, -rough_solution(operator, residual)

        size = self.start.size
        end = _steps(z, residual_and_step, size, allowed, exact=False)
        last = allowed & _is_tiny(ROUGH * end.step, end.z, size)
        z = jnp.where(last, end.z + end.step, end.z)
        step = jnp.where(last, ROUGH * end.step, end.step)
        residual, operator = linearised(z)
        spectrum = spectrum_at(self.linear_solver, operator, AutoState(operator, None), None)
        vectors = jnp.stack([probe(z), step, self.way(z)])
        response, reaction, image = jax.vmap(operator.mv)(vectors)
        lengths = end.fall, end.shrinkage
        return Polished(z, residual, step, *lengths, response, reaction, image, spectrum, None)

    def way(self, z: Float[Array, " k"]) -> Float[Array, " k"]:
        """How y came from the start; zero in the multipliers."""
        size = self.start.size
        return jnp.zeros_like(z).at[:size].set(z[:size] - self.start)

    def blank(self, z: Float[Array, " k"], active: Active | None = None) -> Polished:
        """The point that the loops begin with: of the right structure, and empty but for z."""
        zeros, unknown = jnp.zeros_like(z), unknown_spectrum(z.dtype)
        none = jnp.zeros((), z.dtype)
        nothing = z, zeros, zeros, none, none, zeros, zeros, zeros, unknown

        if self.sparing:
            return Polished(*nothing, None)

        def factors():
            unit = Linearised(lambda v: v, jax.eval_shape(lambda: z), self.conditions.tags)
            state = start_state(self.linear_solver, unit, self._structure(z, active))
            return kept_factors(self.linear_solver, state)

        shapes = jax.eval_shape(factors)
        empty = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
        return Polished(*nothing, empty)

    def _structure(self, z, active) -> Structure:
        return self.blocks if self.matrices is None else self.matrices(z, active)

    def _factorise(self, z, active) -> tuple[lx.AbstractLinearOperator, Any, Spectrum]:
        operator = lx.linearise(self.conditions.jacobian(z, self.args, active))
        structure = self._structure(z, active)
        inside = z if self.skippable else None
        state = start_state(self.linear_solver, operator, structure, inside)
        return operator, state, spectrum_at(self.linear_solver, operator, state, structure)


class _State(eqx.Module):
    point: Polished
    count: Int[Array, ""]
    goes_on: Bool[Array, ""]


class _Steps(eqx.Module):
    z: Float[Array, " k"]
    residual: Float[Array, " k"]
    step: Float[Array, " k"]
    fall: Scalar
    shrinkage: Scalar
    count: Int[Array, ""]
    ratio: Scalar  # of the last two steps' lengths, or residuals'
    finished: Bool[Array, ""]  # as near as rounding allows


def _steps(
    z: Float[Array, " k"], evaluate: Callable, size: int, allowed: Bool[Array, ""], exact: bool
) -> _Steps:
    """Newton steps while they shrink fast; ``evaluate(z)`` returns the residual and the step at z.

    Where the linear systems are solved ``exact``ly, with one K, the steps are compared; an inexact
    step is as good as it makes the residual small (Dembo, Eisenstat & Steihaug, Inexact Newton
    Methods, 1982, theorem 2.3), and its K is that of its own point.
    """
    fast, left = (FAST, 1) if exact else (ACCEPTED, ROUGH)

    def advance(here: _Steps) -> _Steps:
        z = here.z + here.step
        residual, step = evaluate(z)
        fall = _norm(residual) / _norm(here.residual)
        shrinkage = _norm(step) / _norm(here.step)
        ratio = shrinkage if exact else fall
        accepted = ratio < ACCEPTED  # False where it is NaN
        # Short steps that shrank fast and then no longer do have reached the level of rounding;
        # longer ones, the limits of this factorisation.
        short = is_short(here.step, z) & (here.ratio < fast)
        finished = jnp.where(accepted, _is_tiny(left * step, z, size), short)
        there = _Steps(z, residual, step, fall, shrinkage, here.count + 1, ratio, finished)
        kept = dataclasses.replace(
            here, fall=fall, shrinkage=shrinkage, ratio=jnp.ones_like(ratio), finished=finished
        )
        return jax.tree.map(lambda a, b: jnp.where(accepted, a, b), there, kept)

    def goes_on(here: _Steps):
        return allowed & ~here.finished & (here.ratio < fast) & (here.count < STEPS)

    residual, step = evaluate(z)
    tiny = _is_tiny(left * step, z, size)
    zero = jnp.zeros((), z.dtype)
    start = _Steps(z, residual, step, zero, zero, jnp.array(0), zero, tiny)
    return jax.lax.while_loop(goes_on, advance, start)


def is_short(step: Array, z: Array) -> Bool[Array, ""]:
    """Whether a step is so short that the next would be beyond rounding, if they shrink fast."""
    return _norm(step) <= jnp.finfo(z.dtype).eps ** (2 / 3) * jnp.maximum(1, _norm(z))


def _is_tiny(step: Array, z: Array, size: int) -> Bool[Array, ""]:
    """Whether a step is none but for rounding: of y, the first ``size`` entries, in whatever unit
    they are; of the multipliers, beside everything."""
    rounding = 8 * jnp.finfo(z.dtype).eps
    of_y = _norm(step[:size]) <= rounding * _norm(z[:size])
    if size == z.size:
        return of_y
    return of_y & (_norm(step[size:]) <= rounding * jnp.maximum(1, _norm(z)))


def _norm(x: Array) -> Scalar:
    return jnp.linalg.norm(x)
