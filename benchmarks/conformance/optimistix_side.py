"""Optimistix, with its defaults. Its tolerances have none: they are those of argmin_jax."""

from collections.abc import Callable
from typing import Any

import jax
import optimistix as optx

from .problem import Answer, Ask, CannotExpress, Form, Problem

TOLERANCES = {"float64": 1e-8, "float32": 1e-4}


def solve(problem: Problem, objective: Callable, y0: Any, params: tuple[Any, ...]) -> Answer:
    if problem.constrained:
        raise CannotExpress("minimise has no constraints")
    has_aux = problem.ask is Ask.AUX
    tol = TOLERANCES[jax.tree.leaves(y0)[0].dtype.name]
    run, solver = {
        Form.MINIMISE: (optx.minimise, optx.BFGS),
        Form.LEAST_SQUARES: (optx.least_squares, optx.LevenbergMarquardt),
        Form.FIXED_POINT: (optx.fixed_point, optx.FixedPointIteration),
    }[problem.form]
    options = {} if problem.max_steps is None else {"max_steps": problem.max_steps}
    found = run(
        lambda y, params: objective(y, *params),
        solver(rtol=tol, atol=tol),
        y0,
        args=params,
        has_aux=has_aux,
        **options,
    )
    value = found.state.f_info.f if problem.ask is Ask.VALUE else None
    return Answer(found.value, value, found.aux)
