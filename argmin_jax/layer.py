"""The layer: `argmin` and `solve`. The only room with custom derivative rules, at its end."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
from jaxtyping import Array, Float, PyTree, Scalar

from .forward import solve_forward
from .implicit import root_jvp, root_vjp
from .linear_solve import Auto, state_from_factors
from .optimality import jacobian, residual
from .problem import Arguments, Objective, Problem, build_problem, check_choice, default_tolerance
from .report import ON_FAILURE, Policed, Report, Status, failure_offset
from .solvers import LBFGS, Minimiser, adapt


class Solution(eqx.Module):
    """A minimiser and what is known about it.

    Attributes:
        y: the minimiser, of y0's structure, shapes and dtypes; differentiable in the params.
        value: the objective there, a scalar; its gradient is that of the optimal value, by the
            envelope theorem, with no linear solve.
        report: a `Report`; not differentiable.
        aux: what the objective returns beside its value at y, under ``has_aux=True``, else None;
            differentiable in the params, through y and directly.
    """

    y: PyTree
    value: Scalar
    report: Report
    aux: PyTree = None


def argmin(
    objective: Callable[..., Scalar],
    y0: PyTree,
    *params: PyTree,
    solver: Any = LBFGS(),
    linear_solver: lx.AbstractLinearSolver = Auto(),
    tol: float | None = None,
    max_steps: int = 1000,
    on_failure: str = "raise",
    has_aux: bool = False,
    forward_mode: bool = False,
) -> PyTree:
    """A local minimiser of ``objective(y, *params)`` in y, with exact gradients in the params.

    Solves forward from ``y0``, then polishes by Newton steps; differentiates backward by the
    implicit function theorem with one linear solve against the Hessian at the solution, never
    through the iterations.

    Args:
        objective: ``(y, *params) -> scalar`` of shape (), twice differentiable by JAX at the
            solution. Arrays that it closes over, traced or not, receive gradients like params.
        y0: a pytree of float32 or float64 arrays: where the solve starts. Its gradient is zero.
        *params: pytrees of arrays of any dtype; those not of floating dtype get no gradient.
        solver: `LBFGS`, `NewtonCG`, an Optimistix minimiser, `Scipy`, `Jaxopt`, or a callable
            ``(objective, y0, *params) -> y``.
        linear_solver: `Auto`, `SVD`, or any Lineax solver that takes a positive semidefinite
            operator.
        tol: the scaled optimality residual (`Report.stationarity`, without unit) at which a
            point counts as solved; by default 1e-8 in float64, 1e-4 in float32.
        max_steps: bound on the solver's steps.
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
    ``solve(...).report.rank_deficiency`` tells.

    Source: Gould et al., On Differentiating Parameterized Argmin and Argmax Problems (2016).
    """
    problem = build_problem(objective, y0, params, has_aux)
    setting = _checked_setting(
        problem, solver, linear_solver, tol, max_steps, on_failure, forward_mode
    )
    return problem.objective.unravel(_minimiser(setting, _find(setting, problem), problem.args))


def solve(
    objective: Callable[..., Scalar],
    y0: PyTree,
    *params: PyTree,
    solver: Any = LBFGS(),
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
    problem = build_problem(objective, y0, params, has_aux)
    setting = _checked_setting(
        problem, solver, linear_solver, tol, max_steps, on_failure, forward_mode
    )
    found = _find(setting, problem)
    y = _minimiser(setting, found, problem.args)
    optimal_value = _forward_optimal_value if forward_mode else _optimal_value
    value = optimal_value(setting, found, *_split(problem.args))
    aux = problem.objective.aux(y, problem.args) if has_aux else None
    return Solution(problem.objective.unravel(y), value, found.report, aux)


class _Setting(eqx.Module):
    """All of a call that is not an array. Hashable, so that a jitted solve is traced once."""

    objective: Objective
    minimiser: Minimiser = eqx.field(static=True)
    linear_solver: lx.AbstractLinearSolver
    tol: float = eqx.field(static=True)
    max_steps: int = eqx.field(static=True)
    on_failure: str = eqx.field(static=True)
    forward_mode: bool = eqx.field(static=True)


def _checked_setting(
    problem: Problem, solver, linear_solver, tol, max_steps, on_failure, forward_mode
) -> _Setting:
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
    minimiser = adapt(solver, max_steps)
    return _Setting(
        problem.objective, minimiser, linear_solver, float(tol), max_steps, on_failure, forward_mode
    )


class _Found(eqx.Module):
    """What the forward pass leaves: constants to all derivatives."""

    y: Float[Array, " n"]
    report: Report
    factors: Any  # of the Hessian at y, for the linear solver; or None


def _find(setting: _Setting, problem: Problem) -> _Found:
    """Solves forward, outside of all differentiation, and applies the failure policy."""
    found = _solve_jitted(setting, *jax.lax.stop_gradient((problem.start, problem.args)))
    report = found.report
    offset = failure_offset(
        setting.on_failure, setting.tol, report.status, report.steps, report.stationarity
    )
    return _Found(found.y + offset.astype(found.y.dtype), report, found.factors)


@eqx.filter_jit
def _solve_jitted(setting: _Setting, start: Float[Array, " n"], args: Arguments) -> _Found:
    problem = Problem(setting.objective, start, args)
    return _Found(
        *solve_forward(
            problem, setting.minimiser, setting.linear_solver, setting.tol, setting.max_steps
        )
    )


def _minimiser(setting: _Setting, found: _Found, args: Arguments) -> Float[Array, " n"]:
    """The point that was found, as a function of the arguments that has a derivative."""
    if setting.forward_mode:
        return _forward_argmin(setting, found, *_split(args))
    try:
        return _implicit_argmin(setting, found, *_split(args))
    except TypeError as error:
        if "custom_vjp" not in str(error):
            raise
        raise TypeError(
            "argmin is differentiated in forward mode (jvp, jacfwd, linearize, hessian), which "
            "needs forward_mode=True; found forward_mode=False, which allows reverse mode only."
        ) from error


def _split(args: Arguments) -> tuple[Arguments, Arguments]:
    """The floating arguments, which get cotangents, and the others, which do not."""
    return eqx.partition(args, eqx.is_inexact_array)


def _linearised(
    setting: _Setting, found: _Found, y: Float[Array, " n"], floating, other
) -> tuple[Callable, lx.AbstractLinearOperator, Any]:
    """What `root_vjp` and `root_jvp` ask for: F, K at y, and the linear solver's state."""

    def gradient(y, floating):
        return residual(setting.objective, y, eqx.combine(floating, other))

    args = eqx.combine(floating, other)
    operator = jacobian(setting.objective, y, args)
    fixed = lx.linearise(jacobian(setting.objective, *jax.lax.stop_gradient((y, args))))
    return gradient, operator, state_from_factors(setting.linear_solver, fixed, found.factors)


# The rules. Each calls the differentiable function itself for y, so that it can be differentiated
# again: y is then a function of ``floating``, which `found.y` is not.


def _argmin_primal(setting, found, floating, other):
    return found.y


def _argmin_fwd(setting, found, floating, other):
    y = _implicit_argmin(setting, found, floating, other)
    return y, (y, found, floating, other)


def _argmin_bwd(setting, saved, y_bar):
    y, found, floating, other = saved
    found = jax.lax.stop_gradient(found)
    floating_bar, solved = _pull_back_jitted(setting, found, y, floating, other, y_bar)
    # The forward failure once more: a gradient that does not depend on y (of a linear objective,
    # say) would otherwise be computed without the forward pass, and so without its check.
    status = jnp.where(solved, Status.CONVERGED, Status.LINEAR_SOLVE_FAILED).astype(jnp.int32)
    if setting.on_failure in ("raise", "nan"):
        status = jnp.maximum(status, found.report.status)
    offset = failure_offset(
        setting.on_failure, setting.tol, status, found.report.steps, found.report.stationarity
    )
    return None, jax.tree.map(lambda bar: bar + offset.astype(bar.dtype), floating_bar), None


@eqx.filter_jit
def _pull_back_jitted(setting: _Setting, found: _Found, y, floating, other, y_bar):
    gradient, operator, state = _linearised(setting, found, y, floating, other)
    # K is symmetric, so that it is its own transpose.
    floating_bar, result = root_vjp(
        gradient, y, floating, y_bar, operator, setting.linear_solver, state
    )
    return floating_bar, result == lx.RESULTS.successful


def _argmin_jvp(setting, primals, tangents):
    found, floating, other = primals
    _, floating_dot, _ = tangents
    y = _forward_argmin(setting, found, floating, other)
    found = jax.lax.stop_gradient(found)
    return y, _push_forward_jitted(setting, found, y, floating, other, floating_dot)


@eqx.filter_jit
def _push_forward_jitted(setting: _Setting, found: _Found, y, floating, other, floating_dot):
    gradient, operator, state = _linearised(setting, found, y, floating, other)
    solver = Policed(setting.linear_solver, setting.on_failure, setting.tol, found.report)
    y_dot, _ = root_jvp(gradient, y, floating, floating_dot, operator, solver, state)
    return y_dot


# The optimal value: dv/dtheta = df/dtheta at y*, since the path through y* carries the factor
# df/dy = 0 (envelope theorem). No linear solve; second derivatives of the value pass through y.


def _value_primal(setting, found, floating, other):
    return setting.objective(found.y, eqx.combine(floating, other))


def _value_fwd(setting, found, floating, other):
    return _optimal_value(setting, found, floating, other), (found, floating, other)


def _value_bwd(setting, saved, value_bar):
    found, floating, other = saved
    y = _implicit_argmin(setting, found, floating, other)
    _, pull_back = jax.vjp(
        lambda floating: setting.objective(y, eqx.combine(floating, other)), floating
    )
    return None, *pull_back(value_bar), None


def _value_jvp(setting, primals, tangents):
    found, floating, other = primals
    _, floating_dot, _ = tangents
    y = _forward_argmin(setting, found, floating, other)
    _, value_dot = jax.jvp(
        lambda floating: setting.objective(y, eqx.combine(floating, other)),
        (floating,),
        (floating_dot,),
    )
    return _forward_optimal_value(setting, *primals), value_dot


_implicit_argmin = jax.custom_vjp(_argmin_primal, nondiff_argnums=(0,))
_implicit_argmin.defvjp(_argmin_fwd, _argmin_bwd)

_optimal_value = jax.custom_vjp(_value_primal, nondiff_argnums=(0,))
_optimal_value.defvjp(_value_fwd, _value_bwd)

_forward_argmin = jax.custom_jvp(_argmin_primal, nondiff_argnums=(0,))
_forward_argmin.defjvp(_argmin_jvp)

_forward_optimal_value = jax.custom_jvp(_value_primal, nondiff_argnums=(0,))
_forward_optimal_value.defjvp(_value_jvp)
