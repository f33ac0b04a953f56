"""L-BFGS with a line search that satisfies the strong Wolfe conditions, by Optax."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int, Scalar


class LBFGS(eqx.Module):
    """Limited-memory BFGS (Nocedal & Wright, Numerical Optimization, 2006, algorithms 7.4 and 3.5).

    The default solver. The two-loop recursion and the zoom line search are Optax's; the
    measurement behind that choice is kept in docs/choice-of-lbfgs.md.

    Args:
        memory: number of past steps kept.
        line_search_steps: bound on the evaluations of one line search.

    Raises:
        ValueError: an option below one.
    """

    memory: int = 6
    line_search_steps: int = 20

    def __check_init__(self):
        for name in ("memory", "line_search_steps"):
            if getattr(self, name) < 1:
                raise ValueError(
                    f"LBFGS({name}=...) must be at least 1; found {getattr(self, name)}."
                )

    def run(
        self,
        fn: Callable[[Float[Array, " n"]], Scalar],
        y: Float[Array, " n"],
        tolerance: Scalar,
        max_steps: Int[Array, ""],
    ) -> tuple[Float[Array, " n"], Int[Array, ""]]:
        """Descends from ``y`` until the largest entry of the gradient is at most ``tolerance``.

        Returns the last point at which value and gradient were finite, and the steps taken. It
        ends early where a line search finds no better point.
        """

        def method(line_search_steps: int | Array) -> optax.GradientTransformationExtraArgs:
            search = optax.scale_by_zoom_linesearch(
                max_linesearch_steps=line_search_steps, initial_guess_strategy="one"
            )
            return optax.lbfgs(memory_size=self.memory, linesearch=search)

        # Optax keeps its step sizes in JAX's default precision: the state has to follow, while
        # the objective is evaluated in y's own.
        dtype = y.dtype
        working = jnp.result_type(float)

        def value_fn(y):
            return fn(y.astype(dtype)).astype(working)

        def goes_on(gradient: Array, steps: Int[Array, ""]) -> Bool[Array, ""]:
            return (steps < max_steps) & (jnp.max(jnp.abs(gradient)) > tolerance)

        def step(state: _State) -> _State:
            inner: Any
            # A lane that has ended is searched again, in vain, as long as others go on.
            line_search_steps = jnp.where(state.goes_on, self.line_search_steps, 1)
            updates, inner = method(line_search_steps).update(
                state.gradient,
                state.inner,
                state.y,
                value=state.value,
                grad=state.gradient,
                value_fn=value_fn,
            )
            y = jnp.asarray(optax.apply_updates(state.y, updates))
            search = inner[-1]
            usable = jnp.isfinite(search.value) & jnp.all(jnp.isfinite(search.grad))
            moved = usable & jnp.any(y != state.y)
            gradient, steps = jnp.where(moved, search.grad, state.gradient), state.steps + 1
            return _State(
                y=jnp.where(moved, y, state.y),
                value=jnp.where(moved, search.value, state.value),
                gradient=gradient,
                inner=inner,
                steps=steps,
                goes_on=moved & goes_on(gradient, steps),
            )

        y = y.astype(working)
        value, gradient = jax.value_and_grad(value_fn)(y)
        finite = jnp.isfinite(value) & jnp.all(jnp.isfinite(gradient))
        inner, none = method(self.line_search_steps).init(y), jnp.array(0, jnp.int32)
        start = _State(y, value, gradient, inner, none, finite & goes_on(gradient, none))
        end = jax.lax.while_loop(lambda state: state.goes_on, step, start)
        return end.y.astype(dtype), end.steps


class _State(eqx.Module):
    y: Float[Array, " n"]
    value: Scalar
    gradient: Float[Array, " n"]
    inner: optax.OptState
    steps: Int[Array, ""]
    goes_on: Bool[Array, ""]
