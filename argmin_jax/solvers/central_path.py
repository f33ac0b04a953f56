"""Points of the central path, as the solutions of programs whose bounds are never active."""

from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Float

from .barrier import Bounds
from .nlp import NonlinearProgram, PrimalDual, nowhere


def run_to_path(
    run: Callable[[NonlinearProgram, Float[Array, " k"]], PrimalDual],
    program: NonlinearProgram,
    y: Float[Array, " n"],
    mu: float,
) -> PrimalDual:
    """Where the ``program`` has the barrier parameter ``mu``: the minimum of

        f(y) - mu sum(log s) - mu sum(log(y - lower)) - mu sum(log(upper - y))

    subject to h(y) = 0 and g(y) + s = 0, over (y, s); found by ``run`` from y, moved inside. There
    it is an ordinary solution, so that a solver needs no stopping rule of its own for it.
    """
    n, zero = y.size, jnp.zeros((), y.dtype)
    bounds = Bounds(program.lower, program.upper, 0, zero)
    y = bounds.inside(jnp.where(program.lower >= program.upper, program.lower, y))
    slacks = -program.inequalities(y)
    slacks = jnp.where(slacks > 1, slacks, 1)  # NaN, too, is not

    def objective(x):
        y, s = x[:n], x[n:]
        below = jnp.where(bounds.has_lower, y - bounds.lower, 1)
        above = jnp.where(bounds.has_upper, bounds.upper - y, 1)
        return program.objective(y) - mu * sum(jnp.sum(jnp.log(d)) for d in (below, above, s))

    def equalities(x):
        y, s = x[:n], x[n:]
        return jnp.concatenate([program.equalities(y), program.inequalities(y) + s])

    with_slacks = NonlinearProgram(
        objective=objective,
        equalities=equalities,
        inequalities=nowhere,
        lower=jnp.concatenate([program.lower, jnp.zeros_like(slacks)]),
        upper=jnp.concatenate([program.upper, jnp.full_like(slacks, jnp.inf)]),
    )
    end = run(with_slacks, jnp.concatenate([y, slacks]))
    p = end.eq.size - slacks.size
    lower, upper = bounds.centred(end.y[:n], jnp.asarray(mu, y.dtype))
    return PrimalDual(
        y=end.y[:n],
        eq=end.eq[:p],
        ineq=end.eq[p:],
        lower=end.lower[:n] + lower,
        upper=end.upper[:n] + upper,
        steps=end.steps,
        infeasible=end.infeasible,
    )
