"""When two objectives are the same: the key under which a trace is kept and found again.

JAX takes a function that is the same object to have the same trace. Ours has to hold for code
outside `jax.jit` too, where what an objective reads may change between two calls, and a trace
that is out of date would be a wrong gradient in silence. So the key is made of all that a function
can read: what can be changed in place is read by content, and what cannot be followed (objects,
classes of the user, his modules) makes a function `Opaque`, which is then traced by each call.
"""

import builtins
import dis
import functools
import hashlib
import types
from collections.abc import Hashable, Iterable
from typing import Any

import jax
import numpy as np
from jax.core import Tracer

# Libraries whose functions and classes depend on their arguments alone.
_PURE = frozenset(
    "argmin_jax equinox functools itertools jax jaxlib jaxtyping lineax math numpy optax "
    "optimistix typing".split()
)
# Builtins that look at their arguments only, and not at the world behind them, as getattr may.
_BUILTINS = frozenset(
    getattr(builtins, name)
    for name in "abs all any bool complex dict divmod enumerate filter float int isinstance "
    "issubclass len list map max min pow print range reversed round slice sorted str sum "
    "tuple type zip Exception ValueError TypeError RuntimeError AssertionError".split()
)
# Functions of the libraries that read more than their arguments: random states, files, named axes.
_WORLDLY = frozenset(
    "random load loadtxt genfromtxt fromfile memmap open_memmap axis_size axis_index psum pmean "
    "pmax pmin all_gather all_to_all psum_scatter ppermute pshuffle".split()
)
_CONTAINERS = (list, tuple, dict, type(None))
_MOST_VALUES = 2000


class Opaque(Exception):
    """A value whose content, or whose effect on a trace, cannot be told."""


class ById:
    """Equal to another if both hold the same object, which is kept alive by being held."""

    def __init__(self, value: Any):
        self.value = value

    def __hash__(self):
        return id(self.value)

    def __eq__(self, other):
        return isinstance(other, ById) and self.value is other.value


def identity(fn: Any) -> Hashable:
    """A key of all that ``fn`` can read besides its arguments: equal keys, equal traces.

    Raises:
        Opaque: that cannot be told.
    """
    return _Reader().read(fn)


def is_plain(structure: Any) -> bool:
    """Whether a tree consists of Python's containers and those of libraries that we know, so that
    no method of the user's classes, and none of his functions, can reach the trace through it."""
    node = structure.node_data()
    if node is not None and node[0] not in _CONTAINERS:
        kind, static = node
        if not (_is_pure(kind.__module__) and _is_settled(static)):
            return False
    return all(is_plain(child) for child in structure.children())


def _is_settled(static: Any) -> bool:
    """Whether what a container holds besides its leaves is data, or functions of libraries."""
    if isinstance(static, dict):
        return all(map(_is_settled, (*static.keys(), *static.values())))
    if isinstance(static, tuple | list | frozenset | set):
        return all(map(_is_settled, static))
    if callable(static) and type(static) is not functools.partial:
        return _is_pure(getattr(static, "__module__", None) or "") or _is_immutable(static)
    return not callable(static) and (
        type(static).__module__ == "builtins" or _is_pure(type(static).__module__)
    )


class _Reader:
    """One walk: remembers which functions and containers it has seen, as cycles end there."""

    def __init__(self):
        self.seen: dict[int, tuple[int, Any]] = {}  # by id; the value is kept, so that ids hold

    def read(self, value: Any) -> Hashable:
        if value is None or type(value) in (bool, int, str, bytes, complex):
            return type(value), value
        if type(value) is float:
            return float, value.hex()  # NaN equals itself, 0.0 is not -0.0
        if type(value) is np.ndarray and not value.dtype.hasobject:
            return value.shape, value.dtype, hashlib.blake2b(value.tobytes()).digest()
        if _is_immutable(value):
            return ById(value)
        if id(value) in self.seen:
            return "seen", self.seen[id(value)][0]
        self.seen[id(value)] = len(self.seen), value
        if len(self.seen) > _MOST_VALUES:
            raise Opaque
        return type(value), *self._parts(value)

    def _parts(self, value: Any) -> Iterable[Hashable]:
        if type(value) in (list, tuple):
            return map(self.read, value)
        if type(value) is dict:
            return [self.read(part) for item in value.items() for part in item]
        if type(value) is functools.partial:
            return map(self.read, (value.func, value.args, value.keywords, vars(value)))
        if type(value) is type(jax.jit(abs)):
            return [self.read(vars(value)["__wrapped__"])]
        if isinstance(value, types.FunctionType):
            return self._function(value)
        raise Opaque

    def _function(self, fn: types.FunctionType) -> Iterable[Hashable]:
        key = [ById(fn.__code__)]
        key += [self.read(x) for x in (fn.__defaults__, fn.__kwdefaults__, vars(fn))]
        names, own, own_globals = _names(fn.__code__)
        for name, cell in zip(fn.__code__.co_freevars, fn.__closure__ or (), strict=True):
            if name not in own:
                try:
                    key.append(self.read(cell.cell_contents))
                except ValueError:  # a name that is not bound yet
                    raise Opaque from None
        if _is_pure(fn.__globals__.get("__name__", "")):
            return key
        if names is None:
            raise Opaque
        for name in names:  # of globals, but also of attributes
            if name in own_globals:
                continue
            if name in fn.__globals__:
                key += [name, self.read(fn.__globals__[name])]
            elif getattr(builtins, name, abs) not in _BUILTINS:  # getattr, eval, open, next, ...
                raise Opaque
        return key


def _is_immutable(value: Any) -> bool:
    """Whether one and the same object always has the same effect on a trace."""
    if isinstance(value, jax.Array):
        return not isinstance(value, Tracer)
    if isinstance(value, np.ufunc):  # and not one that wraps a function of the user
        return getattr(np, value.__name__, None) is value
    if isinstance(value, types.ModuleType):
        return _is_pure(value.__name__)
    if isinstance(value, types.BuiltinFunctionType):  # and not a bound method of an object
        of_module = isinstance(value.__self__, types.ModuleType | None)
        return of_module and (value in _BUILTINS or _is_pure(value.__module__ or ""))
    if isinstance(value, type):
        return value in _BUILTINS or _is_pure(value.__module__)
    return isinstance(value, np.bool_ | np.number | np.dtype | types.EllipsisType)


def _is_pure(module: str) -> bool:
    return module.partition(".")[0] in _PURE and not module.startswith("numpy.random")


@functools.lru_cache(maxsize=1024)
def _names(
    code: types.CodeType,
) -> tuple[tuple[str, ...] | None, frozenset[str], frozenset[str]]:
    """The names in a function's code and in that of the functions inside it (None if they lead
    beyond what can be read), and those of the outer variables, and of the globals, that it assigns
    to. These, counters of calls and the like, are its own affair: a value that depended on them
    would be no function. A variable of an inner function is another one, whatever its name."""
    instructions = list(dis.get_instructions(code))

    def assigned(operation: str) -> set[str]:
        return {i.argval for i in instructions if i.opname == operation}

    imports = [i.argval for i in instructions if i.opname == "IMPORT_NAME"]
    outer = set(code.co_freevars) - set(code.co_cellvars)
    own, own_globals = assigned("STORE_DEREF") & outer, assigned("STORE_GLOBAL")
    # f.__globals__, x.__dict__, np.random, ...; modules imported while the function runs.
    worldly = any(name.startswith("__") or name in _WORLDLY for name in code.co_names)
    names = None if worldly or not all(map(_is_pure, imports)) else dict.fromkeys(code.co_names)
    for inner in (_names(const) for const in code.co_consts if isinstance(const, types.CodeType)):
        own |= inner[1] & outer
        own_globals |= inner[2]
        names = None if names is None or inner[0] is None else names | dict.fromkeys(inner[0])
    return names if names is None else tuple(names), frozenset(own), frozenset(own_globals)
