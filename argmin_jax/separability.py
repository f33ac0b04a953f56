"""How a program treats the slices of its argument along an axis, found by propagation through its
jaxpr: a proof, as what is not understood counts as mixed.

(Custom derivative rules are taken to be derivatives of their functions. One that is not is caught
later: the backward solve is checked against products with the Hessian itself.)
"""

import enum
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax.extend.core as jex


def is_sum(program: jex.Jaxpr, shape: tuple[int, ...], axis: int) -> bool:
    """Whether the scalar that ``program`` returns is a sum of functions of one slice each, of its
    first argument in ``shape`` along ``axis``."""
    (value,) = _propagate(program, _start(program, shape, axis), alike=False)
    return value is not _Kind.MIXED


def is_alike(program: jex.Jaxpr, shape: tuple[int, ...], axis: int) -> bool:
    """Whether ``program`` applies one and the same function to each slice of its first argument in
    ``shape`` along ``axis``, and returns the results in the place of the slices."""
    start = _start(program, shape, axis)
    return _propagate(program, start, alike=True) == start[:1]


def inner_program(eqn: Any) -> Any:
    """The program that an equation calls, or None."""
    inner = eqn.params.get(_CALLS.get(eqn.primitive.name))
    return getattr(inner, "jaxpr", inner)  # of a closed jaxpr


class _Kind(enum.Enum):
    """How an array depends on the slices, where it is not aligned with them."""

    SUM = "each entry is a sum of functions of one slice each"
    MIXED = "not known"


@dataclass(frozen=True)
class _Constant:
    """Does not depend on the slices, and holds the same numbers all along its axes ``flat``."""

    flat: frozenset[int] = frozenset()


@dataclass(frozen=True)
class _Folded:
    """A flat array that is aligned with the slices along ``axis`` once it has ``shape``."""

    shape: tuple[int, ...]
    axis: int


# An axis: the slices of the array along it depend each on the argument's slice of the same index.
# (Each entry of such an array is a function of one slice, and so in particular a SUM.)
_State = int | _Folded | _Kind | _Constant

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
    "remat2": "jaxpr",
}


def _start(program: Any, shape: tuple[int, ...], axis: int) -> list[_State]:
    first, *others = program.invars
    aligned = axis if first.aval.shape == shape else _Folded(shape, axis)
    return [aligned, *[_Constant()] * len(others)]


def _propagate(program: jex.Jaxpr, inputs: Sequence[_State], alike: bool) -> list[_State]:
    """The states of a jaxpr's outputs from those of its inputs. If all slices are to be treated
    ``alike``, what differs between them for any reason but the argument is mixed."""
    known: dict[Any, _State] = dict(zip(program.invars, inputs, strict=True))

    def state(atom: Any) -> _State:
        # What is not an input or computed here is a literal or a constant of the program.
        return _Constant() if isinstance(atom, jex.Literal) else known.get(atom, _Constant())

    for eqn in program.eqns:
        states = [state(atom) for atom in eqn.invars]
        if all(isinstance(s, _Constant) for s in states):
            known.update((out, _Constant(_flat_axes(eqn, states))) for out in eqn.outvars)
            continue
        found: list[_State] = [_Kind.MIXED] * len(eqn.outvars)
        if _Kind.MIXED not in states and not (alike and _tells_apart(eqn, states)):
            found = _outputs(eqn, states, alike)
        known.update(zip(eqn.outvars, found, strict=True))
    return [state(atom) for atom in program.outvars]


def _outputs(eqn: Any, states: list[_State], alike: bool) -> list[_State]:
    name = eqn.primitive.name
    if name in _CALLS:
        inner = inner_program(eqn)
        if inner is None or len(inner.invars) != len(states):
            return [_Kind.MIXED] * len(eqn.outvars)
        return _propagate(inner, states, alike)
    if name in _ELEMENTWISE:
        return [_elementwise(name, eqn, states)]
    rule = _RULES.get(name)
    return [rule(eqn, states)] if rule else [_Kind.MIXED] * len(eqn.outvars)


def _flat_axes(eqn: Any, states: list[_State]) -> frozenset[int]:
    """Along which the result of constants holds the same numbers, as far as it is understood."""
    every = frozenset(range(eqn.outvars[0].aval.ndim))
    arrays = [
        (atom.aval.shape, s.flat)
        for atom, s in zip(eqn.invars, states, strict=True)
        if isinstance(s, _Constant) and atom.aval.ndim > 0
    ]
    if eqn.primitive.name in _ELEMENTWISE:
        return every.intersection(*(flat for _, flat in arrays))
    if eqn.primitive.name == "broadcast_in_dim":
        for shape, flat in arrays:
            own = eqn.params["broadcast_dimensions"]
            every -= {own[k] for k in range(len(shape)) if k not in flat and shape[k] > 1}
        return every
    return frozenset()


def _tells_apart(eqn: Any, states: list[_State]) -> bool:
    """Whether a constant that meets an aligned array differs between the slices."""
    aligned = next((k for k, s in enumerate(states) if isinstance(s, int | _Folded)), None)
    if aligned is None or eqn.primitive.name in _CALLS:
        return False
    axis = states[aligned]
    place = axis if isinstance(axis, int) else 0
    if eqn.primitive.name == "dot_general":
        _, batch = eqn.params["dimension_numbers"]
        if place not in batch[aligned]:
            return False
        place = batch[1 - aligned][list(batch[aligned]).index(place)]
    return any(
        isinstance(s, _Constant) and atom.aval.ndim > 0 and place not in s.flat
        for atom, s in zip(eqn.invars, states, strict=True)
    )


def _elementwise(name: str, eqn: Any, states: list[_State]) -> _State:
    varying = {s for s in states if not isinstance(s, _Constant)}
    (first,) = varying if len(varying) == 1 else (_Kind.SUM,)
    if isinstance(first, int | _Folded):
        return first
    factors = [k for k, s in enumerate(states) if not isinstance(s, _Constant)]
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
        varying = {s for s in states if not isinstance(s, _Constant)}
        if len(varying) > 1 or isinstance(states[0], _Constant):
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
    if any(isinstance(s, _Constant) for s in states):  # linear in the other
        side = 1 if isinstance(states[0], _Constant) else 0
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
