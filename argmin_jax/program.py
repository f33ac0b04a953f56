"""A function of the user's as a pure function of one flat vector.

What it closed over, traced or not, is hoisted, and travels beside its parameters: it is then
differentiated, batched and scanned like them. Traces are kept, so that the same function is traced
once, and a jitted solve with it compiled once.
"""

from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator

import equinox as eqx
import jax
import jax.extend.core as jex
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, PyTree, Scalar

from .identity import Opaque, identity, is_plain


class Arguments(eqx.Module):
    """All that a problem depends on besides y: what its functions closed over, each function in
    its own slot; the parameters; and the bounds, flat."""

    closed_over: tuple[list[Array], ...]
    params: tuple[PyTree, ...]
    bounds: tuple[Float[Array, " n"], Float[Array, " n"]] | None = None


class Function(eqx.Module):
    """A function ``(y, *params)`` of the user's, called as ``(y, args)`` with a flat ``y``.

    Instances hold no arrays.
    """

    program: "Program" = eqx.field(static=True)
    unravel: Callable[[Float[Array, " n"]], PyTree] = eqx.field(static=True)
    slot: int = eqx.field(static=True)

    def returned(self, y: Float[Array, " n"], args: Arguments) -> PyTree:
        """What the user's function returns."""
        return self.program(args.closed_over[self.slot], self.unravel(y), *args.params)

    def with_structure(
        self, y: Float[Array, " n"], args: Arguments
    ) -> tuple[Callable[..., PyTree], PyTree]:
        """The function ``(y, *params)`` as the user wrote it, and y as they hold it."""

        def fn(y, *params):
            return self.program(args.closed_over[self.slot], y, *params)

        return fn, self.unravel(y)


class Objective(Function):
    """The objective ``(y, args) -> scalar``."""

    has_aux: bool = eqx.field(static=True)

    def __call__(self, y: Float[Array, " n"], args: Arguments) -> Scalar:
        found = self.returned(y, args)
        # A float32 y with float64 params has a float64 value: the solvers work in y's dtype.
        return (found[0] if self.has_aux else found).astype(y.dtype)

    def aux(self, y: Float[Array, " n"], args: Arguments) -> PyTree:
        """What the user's function returns beside its value, under ``has_aux``."""
        return self.returned(y, args)[1]

    def with_structure(
        self, y: Float[Array, " n"], args: Arguments
    ) -> tuple[Callable[..., Scalar], PyTree]:
        """The same, without the auxiliary output."""
        whole, structured = super().with_structure(y, args)
        return (lambda *given: whole(*given)[0]) if self.has_aux else whole, structured


class SumOfSquares(Objective):
    """Half the sum of the squares of what the user's function returns."""

    def __call__(self, y: Float[Array, " n"], args: Arguments) -> Scalar:
        return self._half_squares(self.returned(y, args)).astype(y.dtype)

    def with_structure(self, y, args):
        residual, structured = super().with_structure(y, args)
        return lambda *given: self._half_squares(residual(*given)), structured

    @staticmethod
    def _half_squares(residual: PyTree) -> Scalar:
        leaves = jax.tree.leaves(residual)
        return sum((jnp.sum(leaf**2) for leaf in leaves), jnp.zeros((), leaves[0].dtype)) / 2


class VectorFunction(Function):
    """A function whose value, a pytree of floating arrays, is flattened: ``(y, args) -> (m,)``."""

    size: int = eqx.field(static=True)

    def __call__(self, y: Float[Array, " n"], args: Arguments) -> Float[Array, " m"]:
        leaves = jax.tree.leaves(self.returned(y, args))
        if not leaves:
            return jnp.zeros(0, y.dtype)
        return jnp.concatenate([jnp.ravel(leaf).astype(y.dtype) for leaf in leaves])

    def restore(self, value: Float[Array, " m"]) -> PyTree:
        """A vector of this function's size, in the structure of what the user's returns."""
        structs = self.program.out
        leaves = jax.tree.leaves(structs)
        ends = np.cumsum([0, *(leaf.size for leaf in leaves)])
        parts = [
            value[start : start + leaf.size].reshape(leaf.shape)
            for start, leaf in zip(ends, leaves, strict=False)
        ]
        return jax.tree.unflatten(jax.tree.structure(structs), parts)


class Program:
    """A function as a jaxpr; what it closed over is passed in. Equal to itself alone."""

    def __init__(self, jaxpr: jex.Jaxpr, out: PyTree):
        self.jaxpr = jaxpr
        self.out = out  # of jax.ShapeDtypeStruct

        # Jitted, so that JAX differentiates and batches it once, however often it is called.
        @jax.jit
        def run(closed_over: list[Array], leaves: list[Array]) -> list[Array]:
            return jex.jaxpr_as_fun(jex.ClosedJaxpr(jaxpr, closed_over))(*leaves)

        self._run = run

    def __call__(self, closed_over: list[Array], *args: PyTree) -> PyTree:
        found = self._run(closed_over, jax.tree.leaves(args))
        return jax.tree.unflatten(jax.tree.structure(self.out), found)


# Traced functions, by all that the trace depends on: the same function gives the same `Program`.
_traced: OrderedDict[Hashable, tuple] = OrderedDict()
_TRACED_SIZE = 128


def hoist(
    fn: Callable, y0: PyTree, params: tuple[PyTree, ...], check: Callable[[PyTree], None]
) -> tuple[Program, list[Array], Callable]:
    """The function without the arrays it closes over, those arrays, and y's unravelling.

    ``check`` looks at what the function returns when it is traced, and raises where that is not
    what it should be.
    """
    key = _trace_key(fn, (y0, params))
    if key is not None and (key, check) in _traced:
        _traced.move_to_end((key, check))
        return _traced[key, check]
    program, closed_over = _trace(fn, y0, params, check)
    with jax.numpy_dtype_promotion("standard"):
        _, unravel = ravel_pytree(jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), y0))
    hoisted = program, closed_over, unravel
    traced = any(isinstance(x, Tracer) for x in closed_over)
    # Under the key of now: a function that counts its traces, say, has changed what it reads.
    key = _trace_key(fn, (y0, params))
    if key is not None and not traced:
        _traced[key, check] = hoisted
        if len(_traced) > _TRACED_SIZE:
            _traced.popitem(last=False)
    return hoisted


def _trace(
    fn: Callable, y0: PyTree, params: tuple[PyTree, ...], check: Callable[[PyTree], None]
) -> tuple[Program, list[Array]]:
    """The program of a function, and the arrays, traced or not, that it closes over."""
    out = None

    def checked(*args):
        nonlocal out
        found = fn(*args)
        check(found)
        out = jax.tree.map(lambda x: jax.ShapeDtypeStruct(jnp.shape(x), jnp.result_type(x)), found)
        return jax.tree.leaves(found)

    closed = jax.make_jaxpr(checked)(y0, *params)
    for name, axis in _collectives(closed.jaxpr):
        raise ValueError(
            f"a function of y must not look along the named axis {axis!r}, as it does by {name}: "
            "each lane, or shard, is a problem of its own. Compute what it needs of the others "
            "outside, and pass it as a param; or solve one problem for all of them."
        )
    # A copy of an array of NumPy, which might be changed in place later.
    closed_over = [jnp.array(x) if isinstance(x, np.ndarray) else x for x in closed.consts]
    return Program(closed.jaxpr, out), closed_over


# Operations that name an axis and do not look along it.
_LOCAL = frozenset("pvary pcast pbroadcast".split())


def _collectives(jaxpr: jex.Jaxpr) -> Iterator[tuple[str, str]]:
    """The operations that look along a named axis from outside of a program, and the axis."""
    for eqn in jaxpr.eqns:
        axes = eqn.params.get("axis_name", eqn.params.get("axes", ()))
        for axis in axes if isinstance(axes, tuple) else (axes,):
            if isinstance(axis, str) and eqn.primitive.name not in _LOCAL:
                yield eqn.primitive.name, axis
        if eqn.primitive.name != "shard_map":  # that binds its axes itself
            for inner in jax.tree.leaves(eqn.params, is_leaf=lambda x: hasattr(x, "eqns")):
                inner = getattr(inner, "jaxpr", inner)
                if hasattr(inner, "eqns"):
                    yield from _collectives(inner)


_CONFIG = (
    "jax_enable_x64",
    "jax_default_matmul_precision",
    "jax_default_prng_impl",
    "jax_threefry_partitionable",
    "jax_numpy_dtype_promotion",
    "jax_numpy_rank_promotion",
)


def _trace_key(fn: Callable, args: PyTree) -> Hashable | None:
    """All that a trace of the function depends on: what it can read, and its arguments' types.

    None where that cannot be told, so that the function is traced anew by each call.
    """
    leaves, structure = jax.tree.flatten(args)
    if not is_plain(structure):
        return None
    try:
        read = identity(fn)
    except Opaque:
        return None
    config = tuple(getattr(jax.config, name) for name in _CONFIG)
    return read, structure, tuple(jax.typeof(leaf) for leaf in leaves), config
