"""The derivatives that are asked for, from a function that solves: of the JAX libraries and of the
truth alike."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .problem import Answer, Ask, Problem

# (problem, objective, y0, params) -> Answer
Solve = Callable[[Problem, Callable[..., Any], Any, tuple[Any, ...]], Answer]


def cotangent(shape: tuple[int, ...]) -> np.ndarray:
    """The fixed weights c of a solution, or of one lane's."""
    return np.cos(1.0 + np.arange(int(np.prod(shape)))).reshape(shape)


def tangent(shape: tuple[int, ...]) -> np.ndarray:
    """The fixed direction d in which params move."""
    return np.sin(2.0 + np.arange(int(np.prod(shape)))).reshape(shape)


def derivative(problem: Problem, solve: Solve, params: tuple[Any, ...], y0: Any) -> list[Any]:
    """What ``problem.ask`` asks for: an array for each param (FORWARD: for each leaf of y*)."""
    objective = partial(problem.objective, jnp)

    def answer(*params):
        return solve(problem, objective, y0, params)

    def solution(*params):
        return answer(*params).y

    def closing_over(*params):
        return solve(problem, lambda y: objective(y, *params), y0, ()).y

    def lanes(*params):
        return jax.vmap(solution, problem.in_axes)(*params)

    argnums = tuple(range(len(params)))
    if problem.ask is Ask.FORWARD:
        return jax.tree.leaves(jax.jvp(solution, params, _like(tangent, params))[1])
    quantity = {
        Ask.VALUE: lambda *params: answer(*params).value,
        Ask.AUX: lambda *params: _weighted(cotangent, answer(*params).aux),
        Ask.CLOSURE: lambda *params: _weighted(cotangent, closing_over(*params)),
        Ask.BATCH: lambda *params: _weighted(cotangent, lanes(*params)),
    }.get(problem.ask, lambda *params: _weighted(cotangent, solution(*params)))
    gradient = jax.grad(quantity, argnums)
    if problem.ask is Ask.SECOND:
        return list(jax.grad(lambda *p: _weighted(tangent, gradient(*p)), argnums)(*params))
    return list(gradient(*params))


def _like(weights: Callable, tree: Any) -> Any:
    return jax.tree.map(lambda x: jnp.asarray(weights(jnp.shape(x)), x.dtype), tree)


def _weighted(weights: Callable, tree: Any) -> Any:
    """The inner product of a pytree with fixed weights."""
    products = jax.tree.map(lambda x, w: jnp.sum(x * w), tree, _like(weights, tree))
    return sum(jax.tree.leaves(products))


def truths(problem: Problem, dtype: str) -> list[list[np.ndarray]]:
    """The true derivative for params rounded to ``dtype``, computed in float64, for each minimum;
    NaN in what belongs to a bad lane of a batch."""
    params = tuple(jnp.asarray(p.astype(dtype).astype("float64")) for p in problem.params)
    if problem.ask is Ask.CLOSURE:  # to the truth, a param is a param
        problem = replace(problem, ask=Ask.GRADIENT)
    found = []
    for solution in problem.solutions:
        solve = partial(_true_answer, solution)
        asked = jax.jit(lambda params, solve=solve: derivative(problem, solve, params, problem.y0))
        arrays = [np.array(x) for x in asked(params)]
        for array, axis in zip(arrays, problem.in_axes, strict=False):
            if axis is not None:
                array[list(problem.bad_lanes)] = np.nan
        found.append(arrays)
    return found


def _true_answer(solution, problem, objective, y0, params) -> Answer:
    y = solution(*params)
    found = objective(y, *params)
    value, aux = found if problem.ask is Ask.AUX else (found, None)
    return Answer(y, value, aux)
