"""The matrix of a linear function, by its images of the unit vectors.

`jax.vmap` would multiply the identity by each matrix that the function applies to its argument, as
costly as what is left to do with the result, the other product in X' D X say. Such an image is read
off the matrix instead.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.extend.core as jex
import jax.numpy as jnp
from jaxtyping import Array, Float


@dataclass(frozen=True)
class _Images:
    """Of all unit vectors, along the first axis; ``unit`` says that they are these themselves, in
    some shape."""

    values: Array
    unit: bool = False


def columns(
    fn: Callable[[Float[Array, " n"]], Float[Array, " m"]], like: Float[Array, " n"]
) -> Float[Array, "n m"]:
    """The columns of the matrix of ``fn``, which is linear, as rows; ``like`` is an argument."""
    closed = jax.make_jaxpr(lambda v: fn(v))(like)  # (a method of a module is compared by value)
    unit = _Images(jnp.eye(like.size, dtype=like.dtype), unit=True)
    (found,) = _evaluate(closed.jaxpr, closed.consts, [unit])
    if not isinstance(found, _Images):  # it does not depend on the argument
        return jnp.broadcast_to(found, (like.size, *found.shape))
    return found.values


def _evaluate(program: Any, consts: Sequence[Array], inputs: Sequence[Any]) -> list[Any]:
    known = dict(zip([*program.constvars, *program.invars], [*consts, *inputs], strict=True))

    def value(atom: Any) -> Any:
        return atom.val if isinstance(atom, jex.Literal) else known[atom]

    for eqn in program.eqns:
        known.update(
            zip(eqn.outvars, _outputs(program, eqn, [value(a) for a in eqn.invars]), strict=True)
        )
    return [value(atom) for atom in program.outvars]


def _outputs(program: Any, eqn: Any, inputs: list[Any]) -> list[Any]:
    name, units = eqn.primitive.name, [isinstance(x, _Images) and x.unit for x in inputs]
    if not any(units):
        return _applied(program, eqn, inputs)
    if name in ("jit", "pjit", "closed_call"):
        inner = eqn.params["call_jaxpr" if name == "closed_call" else "jaxpr"]
        return _evaluate(inner.jaxpr, inner.consts, inputs)
    if name == "reshape" or (name == "split" and len(eqn.outvars) == 1):
        shape = eqn.outvars[0].aval.shape
        return [_Images(inputs[0].values.reshape(-1, *shape), unit=True)]
    if name == "dot_general" and not all(isinstance(x, _Images) for x in inputs):
        (contracting, batch), side = eqn.params["dimension_numbers"], units.index(True)
        matrix, axes = inputs[1 - side], contracting[1 - side]
        # Their numbers along the axes of the vector, in its order.
        order = sorted(range(len(axes)), key=contracting[side].__getitem__)
        if not batch[side] and len(axes) == eqn.invars[side].aval.ndim:
            moved = jnp.moveaxis(matrix, [axes[k] for k in order], range(len(axes)))
            out = eqn.outvars[0].aval
            return [_Images(moved.reshape(-1, *out.shape).astype(out.dtype))]
    return _applied(program, eqn, inputs)


def _applied(program: Any, eqn: Any, inputs: list[Any]) -> list[Any]:
    """The equation as it is, for all images at once."""
    known = {
        atom: x
        for atom, x in zip(eqn.invars, inputs, strict=True)
        if not isinstance(atom, jex.Literal)
    }
    alone = program.replace(
        constvars=[], invars=[*known], outvars=eqn.outvars, eqns=[eqn], effects=eqn.effects,
        debug_info=program.debug_info.with_unknown_names(),
    )  # fmt: skip
    apply = jex.jaxpr_as_fun(jex.ClosedJaxpr(alone, []))
    batched = [isinstance(x, _Images) for x in known.values()]
    if not any(batched):
        return apply(*known.values())
    values = [x.values if isinstance(x, _Images) else x for x in known.values()]
    axes = [0 if each else None for each in batched]
    return [_Images(each) for each in jax.vmap(apply, in_axes=axes)(*values)]
