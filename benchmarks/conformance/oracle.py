"""True solutions that have no closed form: Newton's method on the optimality conditions in float64,
with dense algebra, from a point beside the solution and with the active constraints known."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

NEWTON_STEPS = 30


def stationary_points(
    objective: Callable[..., Any],
    *near: Any,
    active: Callable[..., Any] | None = None,
) -> tuple[Callable[..., Any], ...]:
    """For each point ``near`` a solution, that solution as a function of the params.

    Args:
        objective: ``(xp, y, *params) -> scalar``.
        *near: points from which Newton's method converges to the solutions.
        active: ``(xp, y, *params)``, a vector: the constraints that hold with equality there.
    """
    return tuple(_stationary_point(objective, point, active) for point in near)


def _stationary_point(objective, near, active) -> Callable[..., Any]:
    def solution(*params):
        start, unravel = ravel_pytree(jax.tree.map(jnp.asarray, near))
        n = start.size

        def value(y, params):
            return objective(jnp, unravel(y), *params)

        def constraints(y, params):
            found = jnp.zeros(0) if active is None else active(jnp, unravel(y), *params)
            return jnp.atleast_1d(found)

        def residual(z, params):
            y, multipliers = z[:n], z[n:]
            _, pull_back = jax.vjp(lambda y: constraints(y, params), y)
            return jnp.concatenate(
                [jax.grad(value)(y, params) + pull_back(multipliers)[0], constraints(y, params)]
            )

        def newton_step(z, params):
            return z - jnp.linalg.solve(jax.jacfwd(residual)(z, params), residual(z, params))

        fixed = jax.lax.stop_gradient(params)
        gradient, slopes = jax.grad(value)(start, fixed), jax.jacobian(constraints)(start, fixed)
        multipliers = jnp.linalg.lstsq(slopes.T, -gradient)[0] if slopes.size else jnp.zeros(0)
        z = jax.lax.fori_loop(
            0,
            NEWTON_STEPS,
            lambda _, z: newton_step(z, fixed),
            jnp.concatenate([start, multipliers]),
        )
        # A Newton step from the solution, held constant, has the derivative of the implicit
        # function theorem; two have the second derivative as well.
        for _ in range(2):
            z = newton_step(z, params)
        return unravel(z[:n])

    return solution


def least_squares_points(
    residual: Callable[..., Any], *near: Any
) -> tuple[Callable[..., Any], ...]:
    """The same for the minimisers of a sum of squares."""

    def objective(xp, y, *params):
        return (residual(xp, y, *params) ** 2).sum() / 2

    return stationary_points(objective, *near)


def lasso_solution(x: Any, t: Any, penalty: Any, support: Sequence[int], signs: Any) -> Any:
    """The minimiser of |X w - t|^2 / 2 + penalty |w|_1 whose support and signs are known."""
    chosen = x[:, jnp.array(support)]
    weights = jnp.linalg.solve(chosen.T @ chosen, chosen.T @ t - penalty * jnp.asarray(signs))
    return jnp.zeros(x.shape[1]).at[jnp.array(support)].set(weights)
