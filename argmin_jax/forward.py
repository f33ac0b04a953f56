"""The way to a solution: run a solver, polish its point by Newton steps, judge the result."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
from jaxtyping import Array, Bool, Float, Int, Scalar

from .linear_solve import (
    Spectrum,
    apply_factors,
    kept_factors,
    spectrum_at,
    start_state,
    unknown_spectrum,
)
from .optimality import jacobian, probe, residual, stationarity
from .problem import Problem
from .report import Report, Status
from .solvers import Minimiser
from .structure import Blocks, find_blocks

# A restartable solver is first asked for little: the polish, whose factorisation the backward
# pass needs anyway, squares the error of a point that is nearly right. Only where that did not
# suffice is it asked for more, in this many rounds.
ROUNDS = 4
LOOSEST = 1e-1
FACTORISATIONS = 4
FAR = 1e4  # an unsolved point this much larger than the start counts as a sign of divergence
CHORD_STEPS = 8
FAST = 0.1  # a factorisation is used as long as each step is this much shorter than the last


class Polished(eqx.Module):
    """A point after Newton's method, with all that its factorisation tells."""

    y: Float[Array, " n"]
    gradient: Float[Array, " n"]
    step: Float[Array, " n"]  # the next Newton step: an estimate of y* - y
    response: Float[Array, " n"]  # K v: the scale of the gradient
    spectrum: Spectrum
    factors: Any  # arrays that the backward pass uses again, or None


class Attempt(eqx.Module):
    """A point that a solver left and the polish worked on, after ``round`` rounds."""

    polished: Polished
    steps: Int[Array, ""]
    round: Int[Array, ""]


def solve_forward(
    problem: Problem,
    minimiser: Minimiser,
    linear_solver: lx.AbstractLinearSolver,
    tol: float,
    max_steps: int,
) -> tuple[Float[Array, " n"], Report, Any]:
    """A minimiser of ``problem``, the report on it, and the factors kept for the backward pass."""
    blocks = find_blocks(
        *problem.objective.with_structure(problem.start, problem.args), *problem.args.params
    )

    def attempt(y, tolerance, steps, round_):
        scale = jnp.max(jnp.abs(jacobian(problem.objective, y, problem.args).mv(probe(y))))
        y, more = minimiser.run(problem, y, tolerance * scale, max_steps - steps)
        polished = polish(problem, y, linear_solver, blocks)
        return Attempt(polished, jnp.where(more < 0, more, steps + more), round_ + 1)

    y = problem.start
    zero = jnp.array(0, jnp.int32)
    if minimiser.restartable:
        loosest = jnp.array(LOOSEST, y.dtype)
        blank = Attempt(blank_polished(problem, y, linear_solver, blocks), zero, zero)

        def again(last: Attempt) -> Attempt:
            # From the loosest to a tenth of tol in equal ratios.
            share = last.round.astype(y.dtype) / (ROUNDS - 1)
            tolerance = loosest * (0.1 * tol / loosest) ** share
            return attempt(last.polished.y, tolerance, last.steps, last.round)

        def unsolved(last: Attempt):
            return (last.round == 0) | (
                ~is_solved(last.polished, tol) & (last.round < ROUNDS) & (last.steps < max_steps)
            )

        final = jax.lax.while_loop(unsolved, again, blank)
    else:
        final = attempt(y, jnp.zeros((), y.dtype), zero, zero)
    point = final.polished
    return point.y, judge(problem, final, tol, max_steps), point.factors


def is_solved(point: Polished, tol: float) -> Bool[Array, ""]:
    return (stationarity(point.gradient, point.response) <= tol) & ~point.spectrum.indefinite


def judge(problem: Problem, final: Attempt, tol: float, max_steps: int) -> Report:
    """The report on a point: from the optimality conditions, never from what a solver says."""
    point = final.polished
    value = problem.objective(point.y, problem.args)
    finite = (
        jnp.isfinite(value)
        & jnp.all(jnp.isfinite(point.gradient))
        & jnp.all(jnp.isfinite(point.response))
    )
    far = jnp.max(jnp.abs(point.y)) > FAR * (1 + jnp.max(jnp.abs(problem.start)))
    remaining = stationarity(point.gradient, point.response)
    stationary = remaining <= tol
    status = jnp.select(
        [
            far & ~(finite & stationary),
            ~finite,
            stationary & point.spectrum.indefinite,
            stationary,
            final.steps >= max_steps,
        ],
        [
            jnp.array(int(kind), jnp.int32)
            for kind in (
                Status.UNBOUNDED,
                Status.NOT_FINITE,
                Status.NOT_A_MINIMUM,
                Status.CONVERGED,
                Status.MAX_STEPS,
            )
        ],
        jnp.array(int(Status.STALLED), jnp.int32),
    )
    return Report(
        status=status,
        steps=final.steps,
        stationarity=remaining,
        solution_error=jnp.linalg.norm(point.step),
        rank_deficiency=point.spectrum.rank_deficiency,
    )


def polish(
    problem: Problem,
    y: Float[Array, " n"],
    linear_solver: lx.AbstractLinearSolver,
    blocks: Blocks,
) -> Polished:
    """Newton's method from ``y`` with few factorisations, each used for several steps.

    A step is kept only if the next one is less than half as long (the natural monotonicity test
    of Deuflhard, Newton Methods for Nonlinear Problems, 2011, section 2.1, which does not depend
    on the scaling of the objective), so the point is never thrown away. Where the Hessian has a
    negative eigenvalue no step is taken: Newton's method would be drawn to a saddle point.
    """
    objective, args = problem.objective, problem.args

    def newton(carry: _PolishState) -> _PolishState:
        y = carry.point.y
        operator = lx.linearise(jacobian(objective, y, args))
        state = start_state(linear_solver, operator, blocks)
        spectrum = spectrum_at(linear_solver, operator, state, blocks)

        def gradient_and_step(y):
            gradient = residual(objective, y, args)
            return gradient, -apply_factors(linear_solver, state, gradient)

        chord = _chord_steps(y, gradient_and_step, allowed=~spectrum.indefinite)
        point = Polished(
            y=chord.y,
            gradient=chord.gradient,
            step=chord.step,
            response=operator.mv(probe(y)),
            spectrum=spectrum,
            factors=kept_factors(linear_solver, state),
        )
        return _PolishState(point, carry.count + 1, (chord.count > 0) & ~chord.finished)

    start = _PolishState(
        blank_polished(problem, y, linear_solver, blocks), jnp.array(0), jnp.array(True)
    )
    end = jax.lax.while_loop(
        lambda state: state.goes_on & (state.count < FACTORISATIONS), newton, start
    )
    return end.point


def blank_polished(
    problem: Problem,
    y: Float[Array, " n"],
    linear_solver: lx.AbstractLinearSolver,
    blocks: Blocks,
) -> Polished:
    """The point that the loops begin with: of the right structure, and empty but for y."""

    def factors():
        operator = lx.linearise(jacobian(problem.objective, y, problem.args))
        return kept_factors(linear_solver, start_state(linear_solver, operator, blocks))

    empty = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(factors))
    zeros = jnp.zeros_like(y)
    return Polished(y, zeros, zeros, zeros, unknown_spectrum(), empty)


def _norm(x: Array) -> Scalar:
    return jnp.linalg.norm(x)


class _PolishState(eqx.Module):
    point: Polished
    count: Int[Array, ""]
    goes_on: Bool[Array, ""]


class _Chord(eqx.Module):
    y: Float[Array, " n"]
    gradient: Float[Array, " n"]
    step: Float[Array, " n"]
    count: Int[Array, ""]
    ratio: Scalar  # the last two steps' lengths
    finished: Bool[Array, ""]  # as near as rounding allows


def _chord_steps(y: Float[Array, " n"], evaluate: Callable, allowed: Bool[Array, ""]) -> _Chord:
    """Newton steps with one factorisation, while they shrink fast; ``evaluate(y)`` returns the
    gradient and the Newton step at y."""
    floor = 8 * jnp.finfo(y.dtype).eps

    def advance(here: _Chord) -> _Chord:
        y = here.y + here.step
        gradient, step = evaluate(y)
        ratio = _norm(step) / _norm(here.step)
        accepted = ratio < 0.5  # False where it is NaN
        # Short steps that shrank fast and then no longer do have reached the level of rounding;
        # longer ones, the limits of this factorisation.
        size = jnp.maximum(1, _norm(y))
        tiny = _norm(step) <= floor * size
        short = _norm(here.step) <= jnp.finfo(y.dtype).eps ** (2 / 3) * size
        finished = jnp.where(accepted, tiny, short & (here.ratio < FAST))
        there = _Chord(y, gradient, step, here.count + 1, ratio, finished)
        kept = _Chord(here.y, here.gradient, here.step, here.count, jnp.ones_like(ratio), finished)
        return jax.tree.map(lambda a, b: jnp.where(accepted, a, b), there, kept)

    def goes_on(here: _Chord):
        return allowed & ~here.finished & (here.ratio < FAST) & (here.count < CHORD_STEPS)

    gradient, step = evaluate(y)
    tiny = _norm(step) <= floor * jnp.maximum(1, _norm(y))
    start = _Chord(y, gradient, step, jnp.array(0), jnp.zeros((), y.dtype), tiny)
    return jax.lax.while_loop(goes_on, advance, start)
