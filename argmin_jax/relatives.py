"""The relatives of `argmin`, by the same theorem: roots, fixed points, least squares."""

from collections.abc import Callable
from typing import Any

import lineax as lx
from jaxtyping import PyTree

from .layer import Solution, solved
from .linear_solve import Auto
from .problem import build_equations, build_least_squares
from .solvers import adapt_least_squares, adapt_root_finder


def least_squares(
    residual: Callable[..., PyTree],
    y0: PyTree,
    *params: PyTree,
    solver: Any = None,
    linear_solver: lx.AbstractLinearSolver = Auto(),
    tol: float | None = None,
    max_steps: int = 1000,
    on_failure: str = "raise",
    forward_mode: bool = False,
) -> PyTree:
    """A local minimiser of half the sum of the squares of ``residual(y, *params)``.

    The derivatives are those of `argmin`: from the *full* Hessian, with the part of the second
    derivatives of the residual that Gauss and Newton leave out. It does not vanish where the
    residual does not, and a gradient without it is wrong.

    Args:
        residual: ``(y, *params) -> pytree`` of floating arrays.
        solver: an Optimistix least-squares solver, by default `LevenbergMarquardt`; or anything
            that `argmin` accepts.
        y0, *params, linear_solver, tol, max_steps, on_failure, forward_mode: as for `argmin`.

    Returns:
        y*, of y0's structure, shapes and dtypes. `solve_least_squares` returns a `Solution`.

    Raises:
        TypeError, ValueError, ArgminError: as `argmin`.
    """
    problem, function = build_least_squares(residual, y0, params)
    minimiser = adapt_least_squares(solver, max_steps, function)
    options = linear_solver, tol, max_steps, on_failure, forward_mode
    return solved(problem, minimiser, *options, certified=False).y


def solve_least_squares(
    residual: Callable[..., PyTree],
    y0: PyTree,
    *params: PyTree,
    solver: Any = None,
    linear_solver: lx.AbstractLinearSolver = Auto(),
    tol: float | None = None,
    max_steps: int = 1000,
    on_failure: str = "raise",
    forward_mode: bool = False,
) -> Solution:
    """The same as `least_squares`, and all that is known about the solution."""
    problem, function = build_least_squares(residual, y0, params)
    minimiser = adapt_least_squares(solver, max_steps, function)
    options = linear_solver, tol, max_steps, on_failure, forward_mode
    return solved(problem, minimiser, *options, certified=True)


def root(
    residual: Callable[..., PyTree],
    z0: PyTree,
    *params: PyTree,
    solver: Any = None,
    linear_solver: lx.AbstractLinearSolver = Auto(),
    tol: float | None = None,
    max_steps: int = 1000,
    on_failure: str = "raise",
    forward_mode: bool = False,
) -> PyTree:
    """A zero of ``residual(z, *params)`` in z, with exact gradients in the params.

    Args:
        residual: ``(z, *params) -> pytree`` of floating arrays, of as many numbers as z holds.
            Arrays that it closes over, traced or not, receive gradients like params.
        z0: a pytree of float32 or float64 arrays: where the solve starts. Its gradient is zero.
        solver: an Optimistix root finder, least-squares solver or minimiser, by default
            `optimistix.Dogleg`; or a callable ``(residual, z0, *params) -> z``.
        linear_solver: `Auto`, `SVD`, or any Lineax solver of square systems.
        *params, tol, max_steps, on_failure, forward_mode: as for `argmin`.

    Returns:
        z*, of z0's structure, shapes and dtypes. `solve_root` returns a `Solution`.

    Raises:
        TypeError, ValueError, ArgminError: as `argmin`; ValueError also where the residual has
            not as many numbers as z.

    Source: Blondel et al., Efficient and Modular Implicit Differentiation (2022), section 2.1.
    """
    equations = build_equations(residual, z0, params, is_map=False)
    minimiser = adapt_root_finder(solver, max_steps, is_map=False)
    options = linear_solver, tol, max_steps, on_failure, forward_mode
    return solved(equations, minimiser, *options, certified=False).y


def solve_root(
    residual: Callable[..., PyTree],
    z0: PyTree,
    *params: PyTree,
    solver: Any = None,
    linear_solver: lx.AbstractLinearSolver = Auto(),
    tol: float | None = None,
    max_steps: int = 1000,
    on_failure: str = "raise",
    forward_mode: bool = False,
) -> Solution:
    """The same as `root`, and all that is known about the solution."""
    equations = build_equations(residual, z0, params, is_map=False)
    minimiser = adapt_root_finder(solver, max_steps, is_map=False)
    options = linear_solver, tol, max_steps, on_failure, forward_mode
    return solved(equations, minimiser, *options, certified=True)


def fixed_point(
    map: Callable[..., PyTree],
    z0: PyTree,
    *params: PyTree,
    solver: Any = None,
    linear_solver: lx.AbstractLinearSolver = Auto(),
    tol: float | None = None,
    max_steps: int = 1000,
    on_failure: str = "raise",
    forward_mode: bool = False,
) -> PyTree:
    """A fixed point z = ``map(z, *params)``, with exact gradients in the params.

    Args:
        map: ``(z, *params) -> pytree`` of z's structure and shapes. Arrays that it closes over,
            traced or not, receive gradients like params.
        z0: a pytree of float32 or float64 arrays: where the solve starts. Its gradient is zero.
        solver: an Optimistix fixed-point solver, by default `FixedPointIteration`; a root finder,
            which is applied to ``map(z) - z``; or a callable ``(map, z0, *params) -> z``.
        linear_solver, *params, tol, max_steps, on_failure, forward_mode: as for `root`.

    Returns:
        z*, of z0's structure, shapes and dtypes. `solve_fixed_point` returns a `Solution`.

    Raises:
        TypeError, ValueError, ArgminError: as `root`.
    """
    equations = build_equations(map, z0, params, is_map=True)
    minimiser = adapt_root_finder(solver, max_steps, is_map=True)
    options = linear_solver, tol, max_steps, on_failure, forward_mode
    return solved(equations, minimiser, *options, certified=False).y


def solve_fixed_point(
    map: Callable[..., PyTree],
    z0: PyTree,
    *params: PyTree,
    solver: Any = None,
    linear_solver: lx.AbstractLinearSolver = Auto(),
    tol: float | None = None,
    max_steps: int = 1000,
    on_failure: str = "raise",
    forward_mode: bool = False,
) -> Solution:
    """The same as `fixed_point`, and all that is known about the solution."""
    equations = build_equations(map, z0, params, is_map=True)
    minimiser = adapt_root_finder(solver, max_steps, is_map=True)
    options = linear_solver, tol, max_steps, on_failure, forward_mode
    return solved(equations, minimiser, *options, certified=True)
