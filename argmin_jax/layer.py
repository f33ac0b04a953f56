"""The layer: `argmin` and `solve`, and what their relatives share with them."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import lineax as lx
from jaxtyping import PyTree, Scalar

from .forward import Method, conditions_of
from .linear_solve import Auto
from .optimality import CentralPath, KarushKuhnTucker, Multipliers
from .problem import Equations, Problem, build_problem, check_choice, default_tolerance
from .report import ON_FAILURE, Report
from .rules import Setting, find_solution, lost_marked, optimal_value, solution_point
from .solvers import Minimiser, adapt


class LagrangeMultipliers(eqx.Module):
    """The multipliers of L = f + eq'h + ineq'g + lower'(l - y) + upper'(y - u) at the solution.

    Each is differentiable in the params, and None where there is no such constraint. Where the
    active constraints depend on each other the multipliers are not unique
    (`Report.rank_deficiency` counts); their derivatives are then those of smallest norm.

    Attributes:
        eq: of the structure that ``eq`` returns.
        ineq: of the structure that ``ineq`` returns; not negative.
        lower: of y0's structure; not negative.
        upper: of y0's structure; not negative. Of a variable whose bounds are equal, one of the
            two holds the multiplier.
    """

    eq: PyTree = None
    ineq: PyTree = None
    lower: PyTree = None
    upper: PyTree = None


class Solution(eqx.Module):
    """A solution and what is known about it.

    Attributes:
        y: the minimiser, of y0's structure, shapes and dtypes; differentiable in the params.
        value: the objective there, a scalar; its gradient is that of the optimal value, by the
            envelope theorem, with no linear solve (under `InteriorPoint`'s ``smoothing`` that of
            the objective at y, with one). None for roots and fixed points.
        report: a `Report`; not differentiable.
        aux: what the objective returns beside its value at y, under ``has_aux=True``, else None;
            differentiable in the params, through y and directly.
        multipliers: `LagrangeMultipliers` where there are constraints, else None.
    """

    y: PyTree
    value: Scalar | None
    report: Report
    aux: PyTree = None
    multipliers: LagrangeMultipliers | None = None


def argmin(
    objective: Callable[..., Scalar],
    y0: PyTree,
    *params: PyTree,
    eq: Callable[..., PyTree] | None = None,
    ineq: Callable[..., PyTree] | None = None,
    bounds: tuple[PyTree, PyTree] | None = None,
    solver: Any = None,
    linear_solver: lx.AbstractLinearSolver = Auto(),
    tol: float | None = None,
    max_steps: int = 1000,
    on_failure: str = "raise",
    has_aux: bool = False,
    forward_mode: bool = False,
) -> PyTree:
    """A local minimiser of ``objective(y, *params)`` in y, with exact gradients in the params.

    Solves forward from ``y0``, then polishes by Newton steps; differentiates backward by the
    implicit function theorem with one linear solve against the Hessian at the solution (with
    constraints, against the matrix of the KKT conditions), never through the iterations.

    Args:
        objective: ``(y, *params) -> scalar`` of shape (), twice differentiable by JAX at the
            solution. Arrays that it closes over, traced or not, receive gradients like params.
        y0: a pytree of float32 or float64 arrays: where the solve starts (moved inside the
            bounds). Its gradient is zero.
        *params: pytrees of arrays of any dtype; those not of floating dtype get no gradient.
        eq: ``(y, *params) -> pytree`` of floating arrays that are zero at the solution.
        ineq: ``(y, *params) -> pytree`` of floating arrays that are at most zero there.
        bounds: ``(lower, upper)``, each a number, a pytree like y0 (of numbers or arrays that
            broadcast), infinite or None; differentiable.
        solver: by default `LBFGS`, with constraints `InteriorPoint`. Or `NewtonCG`, an Optimistix
            minimiser, `Scipy`, `Jaxopt`; with constraints `Ipopt`; or a callable
            ``(objective, y0, *params) -> y``. One with tolerances of its own may stop early, at
            1e-3 say: Newton steps do the rest. Where they cannot, an Optimistix minimiser goes on
            from there with tighter ones; behind any other the point counts as not solved. After
            twelve steps, if they need more, `LBFGS` and `NewtonCG` change the units of the
            unknowns to those in which the Hessian's rows are about equally long. Of a quadratic
            objective, which its trace shows, `LBFGS`, `NewtonCG` and Optimistix's are not asked at
            all where a Newton step solves it (`Report.steps` is then 0).
        linear_solver: `Auto`, `SVD`, or any Lineax solver that takes a positive semidefinite
            operator (with constraints, a symmetric one).
        tol: the scaled optimality residual (`Report.residual`, without unit) at which a
            point counts as solved, if besides the Newton step that is left is at most sqrt(tol)
            times the length of max(1, abs(y)) (10 tol times, where steps hardly shrink); by
            default 1e-8 in float64, 1e-4 in float32.
        max_steps: bound on the solver's steps; of an Optimistix minimiser, on those of each run.
        on_failure: what to do where the point is not a solution: "raise"; "warn"; "nan" (that
            lane's value and gradient); "ignore".
        has_aux: the objective returns ``(value, aux)``, aux a pytree of arrays: see
            `Solution.aux`.
        forward_mode: also allow forward-mode differentiation, in any nesting: `jax.jvp`,
            `jacfwd`, `linearize`, `hessian`. Reverse mode then comes by transposing the forward
            rule, which costs more compile time; docs/transformations.md says what needs it.

    Returns:
        y*, of y0's structure, shapes and dtypes.

    Raises:
        TypeError, ValueError: arguments that cannot be meant, named, before anything is run.
        ArgminError: under ``on_failure="raise"``, a solve (or, when differentiated, a linear
            solve) that failed; the message gives the status, the residual and what to try.

    Not differentiable: options; y0 (zero by definition). Reverse mode of any order; forward mode
    raises a TypeError of JAX's about a custom_vjp function unless ``forward_mode=True``. Where the
    Hessian is singular the gradient is the one of smallest norm, and
    ``solve(...).report.rank_deficiency`` tells. Where a constraint is weakly active (it holds with
    multiplier zero) y* has a kink: the gradient is the one-sided derivative without it, and
    ``report.weakly_active`` counts.

    Sources: Gould et al., On Differentiating Parameterized Argmin and Argmax Problems (2016);
    with constraints, Fiacco, Introduction to Sensitivity and Stability Analysis in Nonlinear
    Programming (1983), theorem 3.2.2.
    """
    problem = build_problem(objective, y0, params, has_aux, eq, ineq, bounds)
    minimiser = adapt(solver, max_steps, problem.constrained)
    options = linear_solver, tol, max_steps, on_failure, forward_mode
    return solved(problem, minimiser, *options, certified=False).y


def solve(
    objective: Callable[..., Scalar],
    y0: PyTree,
    *params: PyTree,
    eq: Callable[..., PyTree] | None = None,
    ineq: Callable[..., PyTree] | None = None,
    bounds: tuple[PyTree, PyTree] | None = None,
    solver: Any = None,
    linear_solver: lx.AbstractLinearSolver = Auto(),
    tol: float | None = None,
    max_steps: int = 1000,
    on_failure: str = "raise",
    has_aux: bool = False,
    forward_mode: bool = False,
) -> Solution:
    """The same as `argmin`, and all that is known about the solution: a `Solution`.

    Arguments, errors and derivatives are those of `argmin`.
    """
    problem = build_problem(objective, y0, params, has_aux, eq, ineq, bounds)
    minimiser = adapt(solver, max_steps, problem.constrained)
    options = linear_solver, tol, max_steps, on_failure, forward_mode
    return solved(problem, minimiser, *options, certified=True)


def solve_without_estimates(
    objective: Callable[..., Scalar],
    y0: PyTree,
    *params: PyTree,
    eq: Callable[..., PyTree] | None = None,
    ineq: Callable[..., PyTree] | None = None,
    bounds: tuple[PyTree, PyTree] | None = None,
    solver: Any = None,
    linear_solver: lx.AbstractLinearSolver = Auto(),
    tol: float | None = None,
    max_steps: int = 1000,
    on_failure: str = "raise",
    has_aux: bool = False,
    forward_mode: bool = False,
) -> Solution:
    """`solve` without the estimates of `certificate`, which are NaN in its report."""
    problem = build_problem(objective, y0, params, has_aux, eq, ineq, bounds)
    minimiser = adapt(solver, max_steps, problem.constrained)
    options = linear_solver, tol, max_steps, on_failure, forward_mode
    return solved(problem, minimiser, *options, certified=False)


def solved(
    problem: Problem | Equations,
    minimiser: Minimiser,
    linear_solver: Any,
    tol: Any,
    max_steps: Any,
    on_failure: Any,
    forward_mode: Any,
    certified: bool,
) -> Solution:
    """The solution of a problem as a differentiable function of its arguments."""
    setting = _checked_setting(
        problem, minimiser, linear_solver, tol, max_steps, on_failure, forward_mode, certified
    )
    found = find_solution(setting, problem)
    args, conditions = problem.args, setting.conditions
    z = solution_point(setting, found, args)
    if isinstance(problem, Equations):
        return Solution(problem.function.unravel(z), None, found.report)
    y, multipliers = z, None
    if isinstance(conditions, KarushKuhnTucker):
        at = conditions.multipliers(z, args)
        y, multipliers = at.y, _restored(problem, conditions, at)
    objective = problem.objective
    if isinstance(conditions, CentralPath):
        # It is no minimum of the objective: there is no envelope theorem to save the linear solve.
        value = objective(y, args)
    else:
        value = optimal_value(setting, found, args)
    aux = objective.aux(y, args) if objective.has_aux else None
    value, aux = lost_marked(found, (value, aux))
    return Solution(objective.unravel(y), value, found.report, aux, multipliers)


def _restored(
    problem: Problem, conditions: KarushKuhnTucker, at: Multipliers
) -> LagrangeMultipliers:
    """The multipliers in the structures that the user chose."""
    found = {}
    if problem.eq is not None:
        found["eq"] = problem.eq.restore(at.eq)
    if problem.ineq is not None:
        found["ineq"] = problem.ineq.restore(at.ineq)
    if conditions.bounded:
        found["lower"] = problem.objective.unravel(at.lower)
        found["upper"] = problem.objective.unravel(at.upper)
    return LagrangeMultipliers(**found)


def _checked_setting(
    problem, minimiser, linear_solver, tol, max_steps, on_failure, forward_mode, certified
) -> Setting:
    if not isinstance(forward_mode, bool):
        raise TypeError(f"forward_mode must be True or False; found {forward_mode!r}.")
    check_choice("on_failure", on_failure, ON_FAILURE)
    if tol is None:
        tol = default_tolerance(problem.start.dtype)
    if not isinstance(tol, (int, float)) or not 0 < tol < 1:
        raise ValueError(
            f"tol must be a Python number between 0 and 1, a relative residual; found {tol!r}."
        )
    if isinstance(max_steps, bool) or not isinstance(max_steps, int) or max_steps < 1:
        raise ValueError(f"max_steps must be an int of at least 1; found {max_steps!r}.")
    if not isinstance(linear_solver, lx.AbstractLinearSolver):
        raise TypeError(
            "linear_solver must be an instance of a Lineax solver, argmin_jax.Auto() or "
            f"argmin_jax.SVD(); found {linear_solver!r}."
        )
    method = Method(minimiser, linear_solver, float(tol), max_steps, certified)
    return Setting(conditions_of(problem, minimiser), method, on_failure, forward_mode)
