"""Truncated Newton: conjugate gradients inside a trust region, on Hessian-vector products."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optimistix as optx
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool, Float, Int, PyTree, Scalar

from ..conjugate_gradients import Product, conjugate_gradients
from ..optimality import probe

Function = Callable[[Float[Array, " n"]], tuple[Scalar, PyTree]]  # y -> (value, aux)

# The constants of Nocedal & Wright, algorithm 4.1, with the usual bounds on the ratio.
ACCEPTED = 1e-4
POOR, GOOD = 0.25, 0.75
SHRINK, GROW = 0.25, 2.0
FORCING = 0.1


class NewtonCG(optx.AbstractMinimiser):
    """Newton's method for many unknowns: O(n) memory, the Hessian only in products.

    Each step minimises the quadratic model by conjugate gradients, stopped early far from the
    solution, at negative curvature or at the boundary of a trust region (Steihaug, The Conjugate
    Gradient Method and Trust Regions in Large Scale Optimization, 1983; Nocedal & Wright,
    Numerical Optimization, 2006, algorithms 4.1 and 7.2). A step that the objective refuses is
    shortened by interpolation, without a new model (Nocedal & Yuan, Combining Trust Region and
    Line Search Techniques, 1998).

    As a plain Optimistix minimiser it ends where ``norm(g) <= atol + rtol * norm(H v)``, v being
    `argmin_jax.optimality.probe`: g is measured against what a relative displacement of one does
    to it. It ends successfully, too, where rounding hides all further progress.

    Args:
        rtol: relative tolerance on the gradient.
        atol: absolute tolerance on the gradient.
        norm: of the gradient.
        initial_radius: of the trust region, relative to the length of max(1, abs(y)).
        cg_steps: bound on the Hessian-vector products of one step.

    Raises:
        ValueError: a tolerance below zero, a radius that is not positive, no steps.
    """

    rtol: float = 1e-8
    atol: float = 0.0
    norm: Callable[[PyTree], Scalar] = optx.max_norm
    initial_radius: float = 1.0
    cg_steps: int = 200

    def __check_init__(self):
        for name in ("rtol", "atol"):
            if not getattr(self, name) >= 0:
                raise ValueError(
                    f"NewtonCG({name}=...) must not be negative; found {getattr(self, name)}."
                )
        if not self.initial_radius > 0:
            raise ValueError(
                f"NewtonCG(initial_radius=...) must be positive; found {self.initial_radius}."
            )
        if self.cg_steps < 1:
            raise ValueError(f"NewtonCG(cg_steps=...) must be at least 1; found {self.cg_steps}.")

    def run(
        self,
        fn: Callable[[Float[Array, " n"]], Scalar],
        y: Float[Array, " n"],
        tolerance: Scalar,
        max_steps: Int[Array, ""],
    ) -> tuple[Float[Array, " n"], Int[Array, ""]]:
        """Descends from ``y`` until the largest entry of the gradient is at most ``tolerance``.

        Returns the best point, at which value and gradient were finite, and the steps taken. It
        ends early where no step makes progress.
        """

        def step(state: _State) -> _State:
            # Under `vmap` a lane that has ended has nothing to solve for while others go on.
            bound = jnp.where(goes_on(state), tolerance, jnp.inf)
            return _step(lambda y: (fn(y), None), lambda y, product: bound, state, self)

        def goes_on(state: _State):
            return ~state.finished & (state.steps < max_steps)

        end = jax.lax.while_loop(goes_on, step, _start(y, None, self))
        return end.y, jnp.maximum(end.steps, 0)

    # Optimistix's protocol, by the same functions

    def init(self, fn, y, args, options, f_struct, aux_struct, tags) -> "_State":
        del fn, args, options, f_struct, tags
        aux = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), aux_struct)
        return _start(ravel_pytree(y)[0], aux, self)

    def step(self, fn, y, args, options, state, tags) -> tuple[PyTree, "_State", PyTree]:
        del options, tags
        _, unravel = ravel_pytree(y)

        def tolerance(y, product):
            return self.atol + self.rtol * self.norm(product(probe(y)))

        state = _step(lambda y: fn(unravel(y), args), tolerance, state, self)
        return unravel(state.y), state, state.aux

    def terminate(self, fn, y, args, options, state, tags) -> tuple[Bool[Array, ""], optx.RESULTS]:
        del fn, y, args, options, tags
        stuck = state.finished & ~state.converged & ~state.at_rounding
        reason = optx.RESULTS.where(
            jnp.isfinite(state.value),
            optx.RESULTS.nonlinear_divergence,
            optx.RESULTS.nonfinite,
        )
        return state.finished, optx.RESULTS.where(stuck, reason, optx.RESULTS.successful)

    def postprocess(self, fn, y, aux, args, options, state, tags, result):
        del fn, args, options, state, tags, result
        return y, aux, {}


class _State(eqx.Module):
    """The best point so far and the step that is to be tried next.

    The objective is evaluated at one place, the trial point y + step, together with its gradient
    and Hessian, so that a compiled program holds it once.
    """

    y: Float[Array, " n"]
    value: Scalar
    gradient: Float[Array, " n"]
    aux: PyTree
    trial: "_Trial"
    radius: Scalar
    steps: Int[Array, ""]  # trial points after the start
    converged: Bool[Array, ""]
    at_rounding: Bool[Array, ""]  # no trial point can be told to be better than y
    moves: Bool[Array, ""]  # the trial point is a number, and another than y

    @property
    def best(self):
        return self.y, self.value, self.gradient, self.aux

    @property
    def finished(self) -> Bool[Array, ""]:
        return self.converged | self.at_rounding | ~self.moves


class _Trial(eqx.Module):
    """A step p and what the model, divided by the gradient's largest entry, says of it."""

    step: Float[Array, " n"]
    slope: Scalar  # g'p, negative
    reduction: Scalar  # -(g'p + p'Hp / 2), positive
    full: Bool[Array, ""]  # whether p solves H p = -g as well as was asked


def _start(y: Float[Array, " n"], aux: PyTree, options: NewtonCG) -> _State:
    """A state whose first trial point is y itself."""
    zero = jnp.zeros((), y.dtype)
    no = jnp.array(False)
    return _State(
        y=y,
        value=jnp.full((), jnp.inf, y.dtype),
        gradient=jnp.zeros_like(y),
        aux=aux,
        trial=_Trial(jnp.zeros_like(y), zero, zero, no),
        radius=_bounded(options.initial_radius * _length(probe(y))),
        steps=jnp.array(-1, jnp.int32),
        converged=no,
        at_rounding=no,
        moves=jnp.array(True),
    )


def _step(fn: Function, tolerance: Callable, state: _State, options: NewtonCG) -> _State:
    """Judges the trial point, moves there if it is better, and finds the next one.

    Where the objective refused it there is nothing to solve for: the loop of conjugate gradients
    takes no step then, which under `vmap` costs less than a branch.
    """
    y = state.y + state.trial.step
    value, gradient, aux, product = _linearised(fn, y)
    first = state.steps < 0
    scale = _or_one(_size(state.gradient))
    predicted = state.trial.reduction
    actual, hidden = _reduction(state, value, gradient, scale)
    # There a full Newton step that no longer shortens the gradient has met its rounding errors.
    shorter = _length(gradient / scale) < _length(state.gradient / scale)
    stalled = hidden & state.trial.full & ~shorter
    better = first | ((actual >= ACCEPTED * predicted) & ~stalled)
    accepted = better & jnp.isfinite(value) & jnp.all(jnp.isfinite(gradient))

    bound = tolerance(y, product)
    wanted = accepted & (_size(gradient) > bound)
    radius = jnp.where(first, state.radius, _next_radius(state, actual / _or_one(predicted)))
    forcing = jnp.where(first, FORCING, _forcing(_size(gradient) / scale))
    forcing = jnp.where(wanted, forcing, jnp.inf)
    onward = _truncated_newton(gradient, product, radius, forcing, bound, options.cg_steps)
    onward = _off_the_ridge(y, gradient, onward, first)
    shortened = _shortened(state.trial, actual)

    best, trial = _where(
        accepted, ((y, value, gradient, aux), onward), (state.best, shortened)
    )  # fmt: skip
    trial_y = best[0] + trial.step
    moves = jnp.any(trial_y != best[0]) & jnp.all(jnp.isfinite(trial_y))
    return _State(
        *best,
        trial=trial,
        radius=jnp.where(accepted, radius, _length(shortened.step)),
        steps=state.steps + 1,
        converged=accepted & ~wanted,
        at_rounding=~first & hidden & ~accepted,
        moves=moves,
    )


def _linearised(fn: Function, y: Float[Array, " n"]) -> tuple[Scalar, Array, PyTree, Product]:
    """Value, gradient, aux and the product with the Hessian, from one linearisation."""

    def value_and_aux(y):
        value, aux = fn(y)
        return value.astype(y.dtype), aux

    def gradient_and_rest(y):
        rest, gradient = jax.value_and_grad(value_and_aux, has_aux=True)(y)
        return gradient, rest

    gradient, product, (value, aux) = jax.linearize(gradient_and_rest, y, has_aux=True)
    return value, gradient, aux, product


def _reduction(
    state: _State, value: Scalar, gradient: Float[Array, " n"], scale: Scalar
) -> tuple[Scalar, Bool[Array, ""]]:
    """The reduction that the trial step achieved, and whether rounding hides it in the value.

    A difference of values that agree to half of their digits is known less well from them than
    from the gradients at both ends, by the trapezoidal rule (Hager & Zhang, A New Conjugate
    Gradient Method with Guaranteed Descent and an Efficient Line Search, 2005, section 4.1).
    """
    eps, level = jnp.finfo(value.dtype).eps, jnp.abs(state.value) / scale
    by_values = (state.value - value) / scale
    by_gradients = -(state.gradient / scale + gradient / scale) @ state.trial.step / 2
    predicted = state.trial.reduction
    close = jnp.maximum(predicted, jnp.abs(by_values)) <= eps**0.5 * level
    return jnp.where(close, by_gradients, by_values), close & (predicted <= 10 * eps * level)


def _next_radius(state: _State, ratio: Scalar) -> Scalar:
    """The radius after an accepted step, from actual over predicted reduction."""
    length = _length(state.trial.step)
    grown = jnp.where(length >= 0.99 * state.radius, GROW * state.radius, state.radius)
    kept = jnp.where(ratio > GOOD, grown, state.radius)
    return _bounded(jnp.where(ratio < POOR, SHRINK * length, kept))


def _forcing(decrease: Scalar) -> Scalar:
    """The relative residual down to which the next linear system is solved.

    Choice 2 of Eisenstat & Walker, Choosing the Forcing Terms in an Inexact Newton Method
    (1996), under a cap at which their safeguard is never active.
    """
    return jnp.minimum(FORCING, 0.9 * decrease ** ((1 + 5**0.5) / 2))


def _shortened(trial: _Trial, actual: Scalar) -> _Trial:
    """The step scaled to the minimum of the parabola through slope and the value found there."""
    excess = -actual - trial.slope  # of the value over its tangent
    factor = jnp.where(excess > 0, -trial.slope / (2 * _or_one(excess)), 0.5)
    factor = jnp.where(jnp.isfinite(actual), jnp.clip(factor, 0.1, 0.5), 0.1)
    return _Trial(
        step=factor * trial.step,
        slope=factor * trial.slope,
        # With p'Hp from slope and reduction; both terms are positive.
        reduction=-factor * (1 - factor) * trial.slope + factor**2 * trial.reduction,
        full=jnp.array(False),
    )


def _off_the_ridge(
    y: Float[Array, " n"], gradient: Float[Array, " n"], trial: _Trial, first: Bool[Array, ""]
) -> _Trial:
    """The first step with a small displacement added, downhill, in no particular direction.

    From a point on the ridge that leads to a saddle, every power of the Hessian times the
    gradient lies along the ridge: without it Newton's method would end at the saddle.
    """
    direction = probe(y)
    direction = direction * jnp.where(gradient @ direction > 0, -1, 1)
    length = jnp.finfo(y.dtype).eps ** 0.4 * _length(trial.step)
    added = jnp.where(first, length / _length(direction), 0) * direction
    slope = trial.slope + (gradient / _or_one(_size(gradient))) @ added
    return _Trial(trial.step + added, slope, trial.reduction, trial.full)


def _truncated_newton(
    gradient: Float[Array, " n"],
    product: Product,
    radius: Scalar,
    forcing: Scalar,
    bound: Scalar,
    max_steps: int,
) -> _Trial:
    """Steihaug's step to a relative residual of ``forcing``; the zero step where that is inf.

    Gradient and Hessian are divided by the gradient's largest entry, which leaves the step as it
    is and keeps squares from over- and underflowing. The comparisons are written so that NaN
    counts as having left the region.
    """
    scale = _or_one(_size(gradient))
    g = gradient / scale
    # Nothing is gained beyond half of what the gradient has to come down to (Kelley, Iterative
    # Methods for Linear and Nonlinear Equations, 1995, equation 6.20).
    target = jnp.maximum(forcing * _length(g), bound / (2 * scale)) ** 2

    b = -g
    end = conjugate_gradients(lambda v: product(v) / scale, b, target, max_steps, radius)

    # Where the last direction led out, along it to the boundary: the positive root of
    # |p + t d| = radius, in the form without cancellation (p'd >= 0).
    along, ahead = end.x @ end.direction, end.direction @ end.direction
    room = jnp.maximum(radius**2 - end.x @ end.x, 0)
    t = room / _or_one(along + jnp.sqrt(along**2 + ahead * room))
    t = jnp.where(end.inside, 0, t)
    curvature = jnp.where(jnp.isfinite(end.curvature), end.curvature, 0)
    step = end.x + t * end.direction
    reduction = end.x @ (b + end.residual) / 2 + t * end.square - t**2 * curvature / 2
    return _Trial(step, g @ step, reduction, end.square <= target)


def _size(x: Array) -> Scalar:
    return jnp.max(jnp.abs(x))


def _length(x: Array) -> Scalar:
    return jnp.sqrt(x @ x)


def _or_one(x: Scalar) -> Scalar:
    """x as a divisor: 1 where it is zero or NaN."""
    return jnp.where(jnp.abs(x) > 0, x, 1)


def _bounded(radius: Scalar) -> Scalar:
    """A radius whose square, and some more, is finite."""
    return jnp.minimum(radius, float(jnp.finfo(radius.dtype).max) ** 0.4)


def _where(condition: Bool[Array, ""], yes: Any, no: Any) -> Any:
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), yes, no)
