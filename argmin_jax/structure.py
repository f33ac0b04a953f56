"""What the program of an objective shows before it runs: the axes of y along which it is a sum.

If f(y) = sum_i f_i(y_i), y_i being the slices of y along an axis, the Hessian has one diagonal
block for each slice and is zero elsewhere: it takes as many Hessian-vector products as *one*
block has columns (Curtis, Powell & Reid, On the Estimation of Sparse Jacobian Matrices, 1974),
and each block is factorised by itself. Regression with many outputs, W of shape (outputs,
features), is of this kind, and so is any sum over independent problems.

The finding is a proof, by propagation through the jaxpr; what is not understood counts as mixed.
(Custom derivative rules are taken to be derivatives of their functions. One that is not is caught
later: the backward solve is checked against products with the Hessian itself.)
"""

import enum
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import equinox as eqx
import jax
import jax.extend.core as jex
import jax.numpy as jnp
from jax.interpreters.partial_eval import dce_jaxpr
from jaxtyping import Array, Float, PyTree


@dataclass(frozen=True)
class Blocks:
    """The division of a flat vector, of an array of ``shape``, into slices along ``axes``."""

    shape: tuple[int, ...]
    axes: tuple[int, ...] = ()

    @property
    def count(self) -> int:
        return math.prod(self.shape[axis] for axis in self.axes)

    @property
    def size(self) -> int:
        return math.prod(self.shape) // self.count

    @property
    def _order(self) -> tuple[int, ...]:
        others = (axis for axis in range(len(self.shape)) if axis not in self.axes)
        return (*self.axes, *others)

    def split(self, v: Float[Array, " n"]) -> Float[Array, "count size"]:
        return v.reshape(self.shape).transpose(self._order).reshape(self.count, self.size)

    def join(self, blocks: Float[Array, "count size"]) -> Float[Array, " n"]:
        ordered = blocks.reshape([self.shape[axis] for axis in self._order])
        inverse = sorted(range(len(self.shape)), key=self._order.__getitem__)
        return ordered.transpose(inverse).reshape(-1)


def find_blocks(objective: Callable, y: PyTree, *args: PyTree) -> Blocks:
    """The finest division of ``y`` by axes such that ``objective(y, *args)`` is a sum over it.

    A flat y that the objective gives a shape is divided by the axes of that. One block where y has
    several leaves, or where no axis is found.
    """
    leaves = jax.tree.leaves(y)
    if len(leaves) != 1:
        return Blocks((sum(leaf.size for leaf in leaves),))
    (shape,) = (leaf.shape for leaf in leaves)
    program = jax.make_jaxpr(objective)(y, *args).jaxpr
    others: list[_State] = [_Kind.CONSTANT] * (len(program.invars) - 1)

    def divided(folded: tuple[int, ...]) -> Blocks:
        axes = []
        for axis, length in enumerate(folded):
            if length > 1:
                start = axis if folded == shape else _Folded(folded, axis)
                (value,) = _propagate(program, [start, *others])
                if value is not _Kind.MIXED:
                    axes.append(axis)
        return Blocks(folded, tuple(axes))

    foldings = _foldings(program, shape) if len(shape) == 1 else []
    return max(map(divided, dict.fromkeys([shape, *foldings])), key=lambda blocks: blocks.count)


class Constant(eqx.Module):
    """Derivatives of a constrained problem that are the same at every point; None if they differ.

    That a trace shows it is no proof where a function has kinks: that of |y| has no curvature.
    """

    jacobian: Float[Array, "r n"] | None  # of the constraints
    hessian: Float[Array, "n n"] | None  # of the Lagrangian


def constant_derivatives(
    objective: Callable[[Array], Array], constraints: Callable[[Array], Array], y: Array
) -> Constant:
    """What the traces of a problem tell to be constant, evaluated once."""
    jacobian = jacobian_function(constraints, y)
    if not _is_constant(jacobian, y):
        return Constant(None, None)
    hessian = jax.hessian(objective)
    return Constant(jacobian(y), hessian(y) if _is_constant(hessian, y) else None)


def is_quadratic(objective: Callable[..., Array], y: Array, *args: Any) -> bool:
    """Whether the trace of a function of y shows that its Hessian is the same at every point."""

    def product(y, *args):
        return jax.jvp(jax.grad(lambda y: objective(y, *args)), (y,), (jnp.ones_like(y),))[1]

    closed = jax.make_jaxpr(product)(y, *args)
    _, used = dce_jaxpr(closed.jaxpr, [True] * len(closed.jaxpr.outvars))
    return not used[0]


def jacobian_function(fn: Callable[[Array], Array], y: Array) -> Callable[[Array], Array]:
    """The Jacobian, in the mode that needs fewer passes."""
    return jax.jacrev(fn) if jax.eval_shape(fn, y).size < y.size else jax.jacfwd(fn)


def _is_constant(fn: Callable[[Array], Any], y: Array) -> bool:
    """Whether the result of ``fn`` does not depend on y, as its trace tells."""
    closed = jax.make_jaxpr(fn)(y)
    _, used = dce_jaxpr(closed.jaxpr, [True] * len(closed.jaxpr.outvars))
    return not any(used)


def _foldings(program: Any, shape: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    """The shapes that arrays of ``shape`` are given."""
    for eqn in program.eqns:
        if eqn.primitive.name == "reshape" and eqn.invars[0].aval.shape == shape:
            yield eqn.outvars[0].aval.shape
        inner = _inner(eqn)
        if inner is not None:
            yield from _foldings(inner, shape)


class _Kind(enum.Enum):
    """How an array depends on the slices of y, where it is not aligned with them."""

    CONSTANT = "does not depend on y"
    SUM = "each entry is a sum of functions of one slice each"
    MIXED = "not known"


@dataclass(frozen=True)
class _Folded:
    """A flat array that is aligned with the slices of y along ``axis`` once it has ``shape``."""

    shape: tuple[int, ...]
    axis: int


# An axis: the slices of the array along it depend each on the slice of y with the same index.
# (Each entry of such an array is a function of one slice, and so in particular a SUM.)
_State = int | _Folded | _Kind

_LINEAR = set(
    "add sub add_any neg convert_element_type copy stop_gradient reduce_precision".split()
)
_ELEMENTWISE = _LINEAR | set(
    "mul div rem max min pow integer_pow square sqrt rsqrt cbrt exp exp2 log log1p expm1 "
    "abs sign floor ceil round sin cos tan asin acos atan atan2 sinh cosh tanh asinh "
    "acosh atanh logistic erf erfc erf_inv lgamma digamma select_n clamp eq ne lt le gt "
    "ge and or xor not is_finite nextafter".split()
)
_CALLS = {
    "jit": "jaxpr",
    "pjit": "jaxpr",
    "closed_call": "call_jaxpr",
    "custom_jvp_call": "call_jaxpr",
    "custom_vjp_call": "call_jaxpr",
    "checkpoint": "jaxpr",
}


def _propagate(program: Any, inputs: Sequence[_State]) -> list[_State]:
    """The states of a jaxpr's outputs from those of its inputs."""
    known: dict[Any, _State] = dict(zip(program.invars, inputs, strict=True))

    def state(atom: Any) -> _State:
        # What is not an input or computed here is a literal or a constant of the program.
        return _Kind.CONSTANT if isinstance(atom, jex.Literal) else known.get(atom, _Kind.CONSTANT)

    for eqn in program.eqns:
        states = [state(atom) for atom in eqn.invars]
        if all(s is _Kind.CONSTANT for s in states):
            continue
        found = [_Kind.MIXED] * len(eqn.outvars)
        if _Kind.MIXED not in states:
            found = _outputs(eqn, states)
        known.update(zip(eqn.outvars, found, strict=True))
    return [state(atom) for atom in program.outvars]


def _outputs(eqn: Any, states: list[_State]) -> list[_State]:
    name = eqn.primitive.name
    if name in _CALLS:
        inner = _inner(eqn)
        if inner is None or len(inner.invars) != len(states):
            return [_Kind.MIXED] * len(eqn.outvars)
        return _propagate(inner, states)
    if name in _ELEMENTWISE:
        return [_elementwise(name, eqn, states)]
    rule = _RULES.get(name)
    return [rule(eqn, states)] if rule else [_Kind.MIXED] * len(eqn.outvars)


def _inner(eqn: Any) -> Any:
    """The program that an equation calls, or None."""
    inner = eqn.params.get(_CALLS.get(eqn.primitive.name))
    return getattr(inner, "jaxpr", inner)  # of a closed jaxpr


def _elementwise(name: str, eqn: Any, states: list[_State]) -> _State:
    varying = {s for s in states if s is not _Kind.CONSTANT}
    (first,) = varying if len(varying) == 1 else (_Kind.SUM,)
    if isinstance(first, int | _Folded):
        return first
    factors = [k for k, s in enumerate(states) if s is not _Kind.CONSTANT]
    linear = (
        name in _LINEAR
        or (name == "mul" and len(factors) == 1)
        or (name == "div" and factors == [0])
        or (name == "select_n" and 0 not in factors)
    )
    return _Kind.SUM if linear else _Kind.MIXED


def _moved(rule: Callable[[Any, int], int | None]) -> Callable:
    """The rule of an operation that only moves entries: ``rule`` gives the new place of the
    aligned axis, or None if it does not survive as such."""

    def apply(eqn: Any, states: list[_State]) -> _State:
        varying = {s for s in states if s is not _Kind.CONSTANT}
        if len(varying) > 1 or states[0] is _Kind.CONSTANT:
            return _Kind.SUM if eqn.primitive.name == "concatenate" else _Kind.MIXED
        if not isinstance(states[0], int):
            return _Kind.SUM
        axis = rule(eqn, states[0])
        return _Kind.SUM if axis is None else axis

    return apply


def _reshaped(eqn: Any, states: list[_State]) -> _State:
    (state,) = states
    old, new = eqn.invars[0].aval.shape, eqn.outvars[0].aval.shape
    if isinstance(state, _Folded):
        return state.axis if new == state.shape else _Kind.SUM
    if not isinstance(state, int):
        return _Kind.SUM
    for place, length in enumerate(new):
        if length == old[state] and math.prod(new[:place]) == math.prod(old[:state]):
            return place
    return _Folded(old, state) if len(new) == 1 else _Kind.SUM


def _sliced(eqn: Any, axis: int) -> int | None:
    return axis if eqn.outvars[0].aval.shape[axis] == eqn.invars[0].aval.shape[axis] else None


def _without(axes: Sequence[int], axis: int) -> int:
    return axis - sum(a < axis for a in axes)


def _reduced_sum(eqn: Any, states: list[_State]) -> _State:
    return _kept(eqn, states[0], _Kind.SUM)


def _reduced(eqn: Any, states: list[_State]) -> _State:
    return _kept(eqn, states[0], _Kind.MIXED)


def _kept(eqn: Any, state: _State, otherwise: _State) -> _State:
    """The aligned axis after a reduction of others."""
    axes = eqn.params["axes"]
    return _without(axes, state) if isinstance(state, int) and state not in axes else otherwise


def _contracted(eqn: Any, states: list[_State]) -> _State:
    """Of dot_general: the output's axes are the batch, then the left free, then the right free."""
    contracting, batch = eqn.params["dimension_numbers"]
    places = [
        _place(state, contracting[side], batch[side], eqn.invars[side].aval.ndim)
        for side, state in enumerate(states)
    ]
    left_free = eqn.invars[0].aval.ndim - len(contracting[0]) - len(batch[0])
    if _Kind.CONSTANT in states:  # linear in the other
        side = 1 if states[0] is _Kind.CONSTANT else 0
        kind, index = places[side]
        if kind == "batch":
            return index
        if kind == "free":
            return len(batch[0]) + index + (left_free if side == 1 else 0)
        return _Kind.SUM
    if isinstance(states[0], _Folded):  # the product of two flat arrays with themselves
        inner_product = states[0] == states[1] and contracting == ((0,), (0,))
        return _Kind.SUM if inner_product else _Kind.MIXED
    (kind, index), other = places
    if (kind, index) != other:
        return _Kind.MIXED
    return {"batch": index, "contracting": _Kind.SUM}.get(kind, _Kind.MIXED)


def _place(
    state: _State, contracting: Sequence[int], batch: Sequence[int], ndim: int
) -> tuple[str, int]:
    """What dot_general does with an aligned axis, and where it stands among those of its kind."""
    if not isinstance(state, int):
        return "none", -1
    if state in batch:
        return "batch", list(batch).index(state)
    if state in contracting:
        return "contracting", list(contracting).index(state)
    free = [axis for axis in range(ndim) if axis not in contracting and axis not in batch]
    return "free", free.index(state)


_RULES: dict[str, Callable[[Any, list[_State]], _State]] = {
    "dot_general": _contracted,
    "reduce_sum": _reduced_sum,
    **dict.fromkeys(("reduce_max", "reduce_min", "reduce_prod", "argmax", "argmin"), _reduced),
    "broadcast_in_dim": _moved(lambda eqn, k: eqn.params["broadcast_dimensions"][k]),
    "transpose": _moved(lambda eqn, k: eqn.params["permutation"].index(k)),
    "squeeze": _moved(lambda eqn, k: _without(eqn.params["dimensions"], k)),
    "reshape": _reshaped,
    "slice": _moved(_sliced),
    "concatenate": _moved(lambda eqn, k: k if k != eqn.params["dimension"] else None),
    "rev": _moved(lambda eqn, k: k if k not in eqn.params["dimensions"] else None),
}


def hessian_blocks(
    product: Callable[[Float[Array, " n"]], Float[Array, " n"]],
    blocks: Blocks,
    dtype: Any,
    inside: Array | None = None,
) -> Float[Array, "count size size"]:
    """The diagonal blocks of a symmetric matrix from products with it, ``blocks.size`` of them.

    In a loop that may not run, ``inside`` is an array that changes in it. The unit vectors then
    depend on it, in name only: else XLA would do what is the same in every pass, such as products
    of them with constants, before the loop, and so always.
    """

    def column(direction: Float[Array, " size"]) -> Float[Array, "count size"]:
        everywhere = jnp.broadcast_to(direction, (blocks.count, blocks.size))
        return blocks.split(product(blocks.join(everywhere)))

    rows = columns = jnp.arange(blocks.size)
    if inside is not None:
        columns = rows + jnp.any(jnp.isnan(inside))
    unit = (rows[:, None] == columns[None, :]).astype(dtype)
    # Rows of the result are columns of the matrix, which is symmetric.
    return jax.vmap(column, out_axes=1)(unit)
