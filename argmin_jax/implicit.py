"""The implicit function theorem as plain functions: no decorator, no mention of a solver.

Let F(z, theta) = 0 define z*(theta), and K = dF/dz at (z*, theta). Then

    dz* = -K^-1 (dF/dtheta) dtheta,

which `root_jvp` applies. `root_vjp` applies the transpose: with a cotangent z_bar of z*,

    K^T u = z_bar,      theta_bar = -(dF/dtheta)^T u.

Source: Krantz & Parks, The Implicit Function Theorem (2013); in this form Blondel et al.,
Efficient and Modular Implicit Differentiation (2022), section 2.1.
"""

from collections.abc import Callable
from typing import Any

import jax
import lineax as lx
from jaxtyping import Array, Float, PyTree


def root_vjp(
    residual: Callable[[Float[Array, " n"], PyTree], Float[Array, " n"]],
    z: Float[Array, " n"],
    args: PyTree,
    cotangent: Float[Array, " n"],
    operator: lx.AbstractLinearOperator,
    linear_solver: lx.AbstractLinearSolver,
    state: Any = None,
) -> tuple[PyTree, lx.RESULTS]:
    """The cotangent of ``args`` from that of the root z*, by one linear solve.

    Args:
        residual: F, a function of ``(z, args)``.
        z: the root, of shape (n,).
        args: a pytree of floating arrays: theta.
        cotangent: z_bar, of shape (n,).
        operator: K^T at ``(z, args)``.
        linear_solver: any Lineax solver that takes ``operator``.
        state: what ``linear_solver.init(operator, {})`` returned, if that is at hand.

    Returns:
        The cotangent of ``args``, and Lineax's verdict on the linear solve.

    Differentiable in z, args, cotangent and the operator, to any order; dF/dtheta is never
    formed.
    """
    known = {} if state is None else {"state": state}
    solution = lx.linear_solve(operator, cotangent, linear_solver, throw=False, **known)
    _, pull_back = jax.vjp(lambda args: residual(z, args), args)
    (args_bar,) = pull_back(-solution.value)
    return args_bar, solution.result


def root_jvp(
    residual: Callable[[Float[Array, " n"], PyTree], Float[Array, " n"]],
    z: Float[Array, " n"],
    args: PyTree,
    tangent: PyTree,
    operator: lx.AbstractLinearOperator,
    linear_solver: lx.AbstractLinearSolver,
    state: Any = None,
) -> tuple[Float[Array, " n"], lx.RESULTS]:
    """The tangent of the root z* from that of ``args``, by one linear solve.

    Args:
        residual, z, args, linear_solver, state: as for `root_vjp`.
        tangent: of ``args``: a pytree of its structure, shapes and dtypes.
        operator: K at ``(z, args)``.

    Returns:
        The tangent of z*, of shape (n,), and Lineax's verdict on the linear solve.

    Differentiable in z, args, tangent and the operator, to any order, and linear in ``tangent``,
    so that JAX can transpose it: reverse mode comes from the same rule.
    """
    known = {} if state is None else {"state": state}
    _, change = jax.jvp(lambda args: residual(z, args), (args,), (tangent,))
    solution = lx.linear_solve(operator, -change, linear_solver, throw=False, **known)
    return solution.value, solution.result
