"""argmin_jax, with its defaults."""

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

import jax.numpy as jnp

import argmin_jax

from .problem import Answer, Ask, CannotExpress, Form, Problem

NAMES = {
    Form.MINIMISE: "solve",
    Form.LEAST_SQUARES: "least_squares",
    Form.FIXED_POINT: "fixed_point",
}


def solve(problem: Problem, objective: Callable, y0: Any, params: tuple[Any, ...]) -> Answer:
    """The one option besides what the problem says: a batch that is known to have bad lanes asks
    for NaN in these, since by default one bad lane raises for all."""
    entry = public(NAMES[problem.form])
    options = {}
    if problem.max_steps is not None:
        options["max_steps"] = problem.max_steps
    if problem.bad_lanes:
        options["on_failure"] = "nan"
    if problem.ask is Ask.AUX:
        options["has_aux"] = True
    if problem.ask is Ask.FORWARD:
        options["forward_mode"] = True
    options |= constraints(problem, params)
    missing = set(options) - set(inspect.signature(entry).parameters)
    if missing:
        raise CannotExpress(f"{entry.__name__} has no option {', '.join(sorted(missing))}")
    found = entry(objective, y0, *params, **options)
    if isinstance(found, argmin_jax.Solution):
        return Answer(found.y, found.value, found.aux)
    return Answer(found)


def public(name: str) -> Callable:
    """What the installed version exports under a name."""
    if not hasattr(argmin_jax, name):
        raise CannotExpress(f"this version has no {name}")
    return getattr(argmin_jax, name)


def constraints(problem: Problem, params: tuple[Any, ...]) -> dict[str, Any]:
    options: dict[str, Any] = {}
    if problem.eq is not None:
        options["eq"] = partial(problem.eq, jnp)
    if problem.ineq is not None:
        options["ineq"] = partial(problem.ineq, jnp)
    if problem.bounds is not None:
        options["bounds"] = problem.bounds(*params)
    return options
