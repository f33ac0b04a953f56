"""The implicit function theorem as derivative rules: the only room with `jax.custom_vjp`, and with
primitives of our own, at its end."""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jaxtyping import Array, Bool, Float, PyTree, Scalar

from .forward import Found, Method, find
from .implicit import root_jvp, root_vjp
from .lanes import by_chunks
from .linear_solve import state_from_factors
from .optimality import Conditions
from .problem import Equations, Problem
from .program import Arguments
from .report import Masked, Policed, Report, Status, failure_offset


class Setting(eqx.Module):
    """All of a call that is not an array. Hashable, so that a jitted solve is traced once."""

    conditions: Conditions
    method: Method
    on_failure: str = eqx.field(static=True)
    forward_mode: bool = eqx.field(static=True)


def _policy(setting: Setting, report: Report, status: Array) -> Scalar:
    """What is added to a result under the failure policy."""
    return failure_offset(
        setting.on_failure, setting.method.tol, status, report.steps, report.residual
    )


def _policy_once_more(setting: Setting, found: Found, solved: Array | bool = True) -> Scalar:
    """What is added to a derivative whose linear solve was ``solved``, and for a forward failure.
    A derivative that does not depend on z (of a linear objective, say) would otherwise be computed
    without the forward pass, and so without its check."""
    status = jnp.where(solved, Status.CONVERGED, Status.LINEAR_SOLVE_FAILED).astype(jnp.int32)
    if setting.on_failure in ("raise", "nan"):
        status = jnp.maximum(status, found.report.status)
    return _policy(setting, found.report, status)


def _factor(setting: Setting, found: Found, solved: Array | bool = True) -> Scalar:
    """The same as a factor, for rules that have to stay linear: NaN where the lane is lost, for
    derivatives of a rule have to be NaN there too."""
    lost = jnp.where(_is_lost(found), jnp.nan, 1)
    return (1 + _policy_once_more(setting, found, solved)) * lost


def _times(factor: Scalar, tree: PyTree) -> PyTree:
    return jax.tree.map(lambda leaf: leaf * factor.astype(leaf.dtype), tree)


def _is_lost(found: Found) -> Bool[Array, ""]:
    return ~jnp.all(jnp.isfinite(found.z))


def find_solution(setting: Setting, problem: Problem | Equations) -> Found:
    """Solves forward, outside of all differentiation, and applies the failure policy."""
    solve = partial(_find_jitted, setting.conditions, setting.method)
    # Here NaN is no fault: trial points may have no value, and of a report not all is known.
    with jax.debug_nans(False), jax.debug_infs(False):
        found = by_chunks(solve, jax.lax.stop_gradient(problem))
    offset = _policy(setting, found.report, found.report.status)
    return eqx.tree_at(lambda f: f.z, found, found.z + offset.astype(found.z.dtype))


# What follows is jitted by the parts of a setting that it depends on, so that another policy, say,
# compiles nothing anew.


@eqx.filter_jit
def _find_jitted(conditions: Conditions, method: Method, problem: Problem | Equations) -> Found:
    return find(problem, conditions, method)


def solution_point(setting: Setting, found: Found, args: Arguments) -> Float[Array, " k"]:
    """The point that was found, as a function of the arguments that has a derivative."""
    if setting.forward_mode:
        return _apply(_forward_root, setting, found, *split(args))
    try:
        return _apply(_implicit_root, setting, found, *split(args))
    except TypeError as error:
        if "to a custom_vjp function" not in str(error):
            raise
        raise TypeError(
            "argmin is differentiated in forward mode (jvp, jacfwd, linearize, hessian), which "
            "needs forward_mode=True; found forward_mode=False, which allows reverse mode only."
        ) from error


def split(args: Arguments) -> tuple[Arguments, Arguments]:
    """The floating arguments, which get cotangents, and the others, which do not."""
    return eqx.partition(args, eqx.is_inexact_array)


def _linearised(
    conditions: Conditions,
    solver: lx.AbstractLinearSolver,
    found: Found,
    z: Float[Array, " k"],
    floating,
    other,
) -> tuple[Callable, lx.AbstractLinearOperator, Any]:
    """What `root_vjp` and `root_jvp` ask for: F, K at z, and the linear solver's state."""
    active = found.active

    def residual(z, floating):
        return conditions.residual(z, eqx.combine(floating, other), active)

    args = eqx.combine(floating, other)
    operator = conditions.jacobian(z, args, active)
    fixed = lx.linearise(conditions.jacobian(*jax.lax.stop_gradient((z, args, active))))
    singular = found.report.rank_deficiency > 0
    state = state_from_factors(solver, fixed, found.factors, singular)
    return residual, operator, state


def optimal_value(setting: Setting, found: Found, args: Arguments) -> Scalar:
    """The objective at the solution, as a function of the arguments that has a derivative."""
    rule = _forward_optimal_value if setting.forward_mode else _optimal_value
    return _apply(rule, setting, found, *split(args))


def lost_marked(found: Found, tree: PyTree) -> PyTree:
    """``tree`` with NaN for all floating entries where the lane is lost, which not every function
    of a y that is NaN is: a clipped loss has a value there."""
    factor = jnp.where(_is_lost(found), jnp.nan, 1)

    def mark(leaf):
        return leaf * factor.astype(leaf.dtype) if eqx.is_inexact_array(leaf) else leaf

    return jax.tree.map(mark, tree)


def _apply(rule: Callable, setting: Setting, found: Found, floating, other) -> Array:
    """Calls one of the rules below. Their first argument must not hold arrays, as the options of
    solvers may be; the forward solver they do not need."""
    method = dataclasses.replace(setting.method, minimiser=None)
    arrays, setting = eqx.partition(dataclasses.replace(setting, method=method), eqx.is_array)
    return rule(setting, (arrays, found), floating, other)


# The rules. ``known`` holds the arrays of the setting, and what was found. Each calls the
# differentiable function itself for z, so that it can be differentiated again: z is then a function
# of ``floating``, which `found.z` is not.


def _root_primal(setting, known, floating, other):
    _, found = known
    return found.z


def _whole(setting: Setting, known: tuple[Setting, Found]) -> tuple[Any, Found]:
    arrays, found = known
    return eqx.combine(arrays, setting), found


def _root_fwd(setting, known, floating, other):
    z = _implicit_root(setting, known, floating, other)
    return z, (z, known, floating, other)


def _root_bwd(setting, saved, z_bar):
    z, known, floating, other = saved
    setting, found = _whole(setting, jax.lax.stop_gradient(known))
    conditions, solver = setting.conditions, setting.method.linear_solver
    floating_bar, solved = _pull_back_jitted(conditions, solver, found, z, floating, other, z_bar)
    return None, _times(_factor(setting, found, solved), floating_bar), None


@eqx.filter_jit
def _pull_back_jitted(
    conditions: Conditions,
    solver: lx.AbstractLinearSolver,
    found: Found,
    z,
    floating,
    other,
    z_bar,
):
    residual, operator, state = _linearised(conditions, solver, found, z, floating, other)
    if not conditions.symmetric:
        operator = operator.T
        state = None if state is None else solver.transpose(state, {})[0]
    solver = Masked(solver, _is_lost(found))
    floating_bar, result = root_vjp(residual, z, floating, z_bar, operator, solver, state)
    return floating_bar, result == lx.RESULTS.successful


def _root_jvp(setting, primals, tangents):
    known, floating, other = primals
    _, floating_dot, _ = tangents
    z = _forward_root(setting, known, floating, other)
    setting, found = _whole(setting, jax.lax.stop_gradient(known))
    # Of both sides, for in reverse mode one is the cotangent's.
    factor = _factor(setting, found)
    floating_dot = _times(factor, floating_dot)
    z_dot = _push_forward_jitted(setting, found, z, floating, other, floating_dot)
    return z, _times(factor, z_dot)


@eqx.filter_jit
def _push_forward_jitted(setting: Setting, found: Found, z, floating, other, floating_dot):
    method = setting.method
    residual, operator, state = _linearised(
        setting.conditions, method.linear_solver, found, z, floating, other
    )
    report = found.report
    solver = Policed(
        method.linear_solver, setting.on_failure, method.tol, report.steps, report.residual
    )
    solver = Masked(solver, _is_lost(found))
    z_dot, _ = root_jvp(residual, z, floating, floating_dot, operator, solver, state)
    return z_dot


# The optimal value: dv/dtheta = dL/dtheta at z*, since the path through z* carries the factor
# dL/dz = 0 (envelope theorem). No linear solve; second derivatives of the value pass through z.


def _value_primal(setting, known, floating, other):
    setting, found = _whole(setting, known)
    conditions, args = setting.conditions, eqx.combine(floating, other)
    return conditions.objective(conditions.primal(found.z), args)


def _value_fwd(setting, known, floating, other):
    return _optimal_value(setting, known, floating, other), (known, floating, other)


def _value_bwd(setting, saved, value_bar):
    known, floating, other = saved
    z = _implicit_root(setting, known, floating, other)
    setting, found = _whole(setting, jax.lax.stop_gradient(known))
    _, pull_back = jax.vjp(
        lambda floating: setting.conditions.value(z, eqx.combine(floating, other)), floating
    )
    (floating_bar,) = pull_back(value_bar)
    return None, _times(_factor(setting, found), floating_bar), None


def _value_jvp(setting, primals, tangents):
    known, floating, other = primals
    _, floating_dot, _ = tangents
    z = _forward_root(setting, known, floating, other)
    whole, found = _whole(setting, jax.lax.stop_gradient(known))
    floating_dot = _times(_factor(whole, found), floating_dot)
    _, value_dot = jax.jvp(
        lambda floating: whole.conditions.value(z, eqx.combine(floating, other)),
        (floating,),
        (floating_dot,),
    )
    return _forward_optimal_value(setting, *primals), value_dot


def _with_forward_rule(name: str, primal: Callable, jvp: Callable) -> Callable:
    """``primal(setting, known, floating, other)``, differentiated by ``jvp(setting, primals,
    tangents)``: what `jax.custom_jvp` is for.

    But in reverse mode `jax.lax.scan` drops such rules from what it computes of primal results, and
    with them all further derivatives, in silence. A primitive keeps its rule. Its operands are the
    leaves of the arguments; ``axes``, from the innermost, says which are mapped under `vmap`.
    """
    primitive = Primitive(name)

    def call(setting, *arguments):
        leaves, structure = jax.tree.flatten(arguments)
        return primitive.bind(*leaves, setting=setting, structure=structure, axes=())

    def evaluate(*leaves, setting, structure, axes):
        def one(*leaves):
            return primal(setting, *structure.unflatten(leaves))

        for in_axes in axes:
            one = jax.vmap(one, in_axes)
        return one(*leaves)

    def shape(*leaves, **params):
        (out,) = jax.make_jaxpr(partial(evaluate, **params))(*leaves).out_avals
        return out

    def push_forward(leaves, tangents, *, setting, structure, axes):
        places = jax.tree.leaves(structure.unflatten(range(len(leaves)))[1])

        def one(leaves, dots):
            primals = structure.unflatten(leaves)
            floating_dot = jax.tree.unflatten(jax.tree.structure(primals[1]), dots)
            return jvp(setting, primals, (None, floating_dot, None))

        for in_axes in axes:
            one = jax.vmap(one, (in_axes, tuple(in_axes[i] for i in places)))
        return one(leaves, tuple(ad.instantiate_zeros(tangents[i]) for i in places))

    def batch(leaves, in_axes, *, axes, **params):
        return primitive.bind(*leaves, axes=(*axes, tuple(in_axes)), **params), 0

    primitive.def_impl(evaluate)
    primitive.def_abstract_eval(shape)
    mlir.register_lowering(primitive, mlir.lower_fun(evaluate, multiple_results=False))
    ad.primitive_jvps[primitive] = push_forward
    batching.primitive_batchers[primitive] = batch
    return call


_implicit_root = jax.custom_vjp(_root_primal, nondiff_argnums=(0,))
_implicit_root.defvjp(_root_fwd, _root_bwd)

_optimal_value = jax.custom_vjp(_value_primal, nondiff_argnums=(0,))
_optimal_value.defvjp(_value_fwd, _value_bwd)

_forward_root = _with_forward_rule("argmin_root", _root_primal, _root_jvp)
_forward_optimal_value = _with_forward_rule("argmin_value", _value_primal, _value_jvp)
