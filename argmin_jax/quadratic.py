"""Whether an objective is a quadratic function, found by propagation through its gradient's jaxpr:
a proof, as what is not understood counts as not linear.

A Hessian that is the same at every point is no such proof: that of |y| + y^2 / 2 is, by its trace.
One Newton step finds the minimum of a quadratic, or that there is none, and no solver is needed.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.extend.core as jex
import jax.numpy as jnp
from jax.interpreters.partial_eval import dce_jaxpr
from jaxtyping import PyTree

from .separability import inner_program


def is_quadratic(objective: Callable, y: PyTree, *args: PyTree) -> bool:
    """Whether the gradient of ``objective(y, *args)`` in y is affine in y."""
    program = jax.make_jaxpr(jax.grad(objective))(y, *args).jaxpr
    pruned, _ = dce_jaxpr(program, [True] * len(program.outvars), instantiate=True)
    leaves = len(jax.tree.leaves(y))
    varying = [place < leaves for place in range(len(pruned.invars))]
    return _propagate(pruned, varying) is not None


# Linear in all of their arrays at once.
_LINEAR = set(
    "add sub add_any neg copy broadcast_in_dim reshape transpose squeeze expand_dims slice rev "
    "concatenate split pad reduce_sum cumsum".split()
)
# Linear in the arrays at these places, if the others are fixed.
_LINEAR_IN = {
    "div": (0,),
    "gather": (0,),
    "dynamic_slice": (0,),
    "dynamic_update_slice": (0, 1),
    "scatter": (0, 2),
    "scatter-add": (0, 2),
    "triangular_solve": (1,),
}
_BILINEAR = ("mul", "dot_general", "conv_general_dilated")
# (What has derivative rules of its own may be anything.)
_CALLS = ("jit", "pjit", "closed_call", "checkpoint", "remat2")


def _propagate(program: Any, varying: Sequence[bool]) -> list[bool] | None:
    """Which outputs vary with the inputs that do; None if one of them may not be affine in these.
    (``program`` may be a closed jaxpr.)"""
    program = getattr(program, "jaxpr", program)
    known = dict(zip(program.invars, varying, strict=True))

    def varies(atom: Any) -> bool:
        return not isinstance(atom, jex.Literal) and known.get(atom, False)

    for eqn in program.eqns:
        inputs = [varies(atom) for atom in eqn.invars]
        found = _outputs(eqn, inputs) if any(inputs) else [False] * len(eqn.outvars)
        if found is None:
            return None
        known.update(zip(eqn.outvars, found, strict=True))
    return [varies(atom) for atom in program.outvars]


def _outputs(eqn: Any, varying: list[bool]) -> list[bool] | None:
    name, places = eqn.primitive.name, [k for k, each in enumerate(varying) if each]
    if name in _CALLS:
        return _propagate(inner_program(eqn), varying)
    if name == "cond":
        return _branches(eqn, varying)
    if name == "scan":
        return _scanned(eqn, varying)
    linear = (
        name in _LINEAR
        or (name in _BILINEAR and len(places) == 1)
        or (name in _LINEAR_IN and set(places) <= set(_LINEAR_IN[name]))
        or (name == "select_n" and 0 not in places)
        or (name == "convert_element_type" and jnp.issubdtype(eqn.params["new_dtype"], jnp.inexact))
    )
    return [True] * len(eqn.outvars) if linear else None


def _branches(eqn: Any, varying: list[bool]) -> list[bool] | None:
    """Of one that does not depend on y: what varies in any branch."""
    index, *operands = varying
    found = [_propagate(branch, operands) for branch in eqn.params["branches"]]
    if index or None in found:
        return None
    return [any(branch[k] for branch in found if branch) for k in range(len(eqn.outvars))]


def _scanned(eqn: Any, varying: list[bool]) -> list[bool] | None:
    """What a step of the loop leaves varying, the next one begins with."""
    constants, carried = eqn.params["num_consts"], eqn.params["num_carry"]
    inputs = list(varying)
    while True:
        found = _propagate(eqn.params["jaxpr"], inputs)
        if found is None:
            return None
        carry = inputs[constants : constants + carried]
        grown = [a or b for a, b in zip(carry, found[:carried], strict=True)]
        if grown == carry:
            return [*grown, *found[carried:]]
        inputs[constants : constants + carried] = grown
