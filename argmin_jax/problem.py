"""What is asked: the objective as a pure function of one flat vector; checks of the arguments.

Everything behind this room works on a flat vector ``y`` of shape ``(n,)`` and one pytree of
arguments; the structure that the user chose is restored at the door, in `layer`.
"""

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any

import equinox as eqx
import jax
import jax.extend.core as jex
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, PyTree, Scalar

from .identity import Opaque, identity, is_plain


class Objective(eqx.Module):
    """The objective as a pure function ``(y, args) -> scalar`` of a flat ``y``.

    Instances hold no arrays: whatever the user's function closed over travels in ``args``, so
    that it is differentiated, batched and scanned like any parameter.
    """

    program: "_Program" = eqx.field(static=True)
    has_aux: bool = eqx.field(static=True)
    unravel: Callable[[Float[Array, " n"]], PyTree] = eqx.field(static=True)

    def __call__(self, y: Float[Array, " n"], args: "Arguments") -> Scalar:
        fn, structured = self.with_structure(y, args)
        # A float32 y with float64 params has a float64 value: the solvers work in y's dtype.
        return fn(structured, *args.params).astype(y.dtype)

    def aux(self, y: Float[Array, " n"], args: "Arguments") -> PyTree:
        """What the user's function returns beside its value, under ``has_aux``."""
        return self.program(args.closed_over, self.unravel(y), *args.params)[1]

    def with_structure(
        self, y: Float[Array, " n"], args: "Arguments"
    ) -> tuple[Callable[..., Scalar], PyTree]:
        """The objective ``(y, *params) -> scalar`` as the user wrote it, and y as they hold it."""

        def fn(y, *params):
            found = self.program(args.closed_over, y, *params)
            return found[0] if self.has_aux else found

        return fn, self.unravel(y)


class Arguments(eqx.Module):
    """All that the objective depends on besides y: its parameters and what it closed over."""

    closed_over: list[Array]
    params: tuple[PyTree, ...]


class Problem(eqx.Module):
    """An unconstrained problem, flattened: minimise ``objective(y, args)`` from ``start``."""

    objective: Objective
    start: Float[Array, " n"]
    args: Arguments


def build_problem(
    objective: Callable[..., Any], y0: PyTree, params: tuple[PyTree, ...], has_aux: bool = False
) -> Problem:
    """Checks the arguments of `argmin`, hoists closures and flattens ``y``.

    Raises:
        TypeError: the objective is not callable; a leaf of ``y0`` is not a floating array of at
            least 32 bits; a leaf of a param is not an array.
        ValueError: ``y0`` is empty or, where its values can be seen, not finite; the objective
            does not return one real floating scalar, or under ``has_aux`` not a pair of one and a
            pytree of arrays.
    """
    if not isinstance(has_aux, bool):
        raise TypeError(f"has_aux must be True or False; found {has_aux!r}.")
    if not callable(objective):
        raise TypeError(
            f"objective must be a function (y, *params) -> scalar; found {objective!r}."
        )
    y0 = _checked_start(y0)
    params = tuple(_checked_param(i, param) for i, param in enumerate(params))
    # y0's gradient is zero by definition: cutting it here keeps tangents of y0 out of the solve.
    y0 = jax.lax.stop_gradient(y0)
    program, closed_over, unravel = _hoisted(objective, y0, params, has_aux)
    with jax.numpy_dtype_promotion("standard"):  # y0 may mix float32 and float64 leaves
        start, _ = ravel_pytree(y0)
    return Problem(Objective(program, has_aux, unravel), start, Arguments(closed_over, params))


# Traced objectives, by all that the trace depends on: the same objective gives the same
# `Objective`, so that a jitted solve of it is compiled once.
_traced: OrderedDict[Hashable, tuple] = OrderedDict()
_TRACED_SIZE = 128


def _hoisted(objective: Callable, y0: PyTree, params: tuple[PyTree, ...], has_aux: bool) -> tuple:
    """The objective without the arrays it closes over, those arrays, and y's unravelling."""
    key = _trace_key(objective, (y0, params))
    if key is not None and (key, has_aux) in _traced:
        _traced.move_to_end((key, has_aux))
        return _traced[key, has_aux]
    program, closed_over = _trace(objective, y0, params, has_aux)
    with jax.numpy_dtype_promotion("standard"):
        _, unravel = ravel_pytree(jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), y0))
    hoisted = program, closed_over, unravel
    traced = any(isinstance(x, Tracer) for x in closed_over)
    # Under the key of now: an objective that counts its traces, say, has changed what it reads.
    key = _trace_key(objective, (y0, params))
    if key is not None and not traced:
        _traced[key, has_aux] = hoisted
        if len(_traced) > _TRACED_SIZE:
            _traced.popitem(last=False)
    return hoisted


class _Program:
    """The user's function as a jaxpr; what it closed over is passed in. Equal to itself alone."""

    def __init__(self, jaxpr: jex.Jaxpr, structure: Any):
        self.jaxpr, self.structure = jaxpr, structure

    def __call__(self, closed_over: list[Array], *args: PyTree) -> PyTree:
        run = jex.jaxpr_as_fun(jex.ClosedJaxpr(self.jaxpr, closed_over))
        return jax.tree.unflatten(self.structure, run(*jax.tree.leaves(args)))


def _trace(
    objective: Callable, y0: PyTree, params: tuple[PyTree, ...], has_aux: bool
) -> tuple[_Program, list[Array]]:
    """The program of the objective, and the arrays, traced or not, that it closes over."""
    structure = None

    def checked(*args):
        nonlocal structure
        found = objective(*args)
        _check_value(found, has_aux)
        leaves, structure = jax.tree.flatten(found)
        return leaves

    closed = jax.make_jaxpr(checked)(y0, *params)
    # A copy of an array of NumPy, which might be changed in place later.
    closed_over = [jnp.array(x) if isinstance(x, np.ndarray) else x for x in closed.consts]
    return _Program(closed.jaxpr, structure), closed_over


_CONFIG = (
    "jax_enable_x64",
    "jax_default_matmul_precision",
    "jax_default_prng_impl",
    "jax_threefry_partitionable",
    "jax_numpy_dtype_promotion",
    "jax_numpy_rank_promotion",
)


def _trace_key(objective: Callable, args: PyTree) -> Hashable | None:
    """All that a trace of the objective depends on: what it can read, and its arguments' types.

    None where that cannot be told, so that the objective is traced anew by each call.
    """
    leaves, structure = jax.tree.flatten(args)
    if not is_plain(structure):
        return None
    try:
        read = identity(objective)
    except Opaque:
        return None
    config = tuple(getattr(jax.config, name) for name in _CONFIG)
    return read, structure, tuple(jax.typeof(leaf) for leaf in leaves), config


def check_choice(name: str, found: Hashable, known: tuple[str, ...]) -> None:
    """Raises ValueError unless ``found`` is one of the ``known`` values of the option ``name``."""
    if found not in known:
        choices = ", ".join(repr(choice) for choice in known)
        raise ValueError(f"{name} must be one of {choices}; found {found!r}.")


def default_tolerance(dtype: Any) -> float:
    """The residual at which a point counts as solved: 1e-8 in float64, 1e-4 in float32."""
    return 1e-8 if jnp.finfo(dtype).bits == 64 else 1e-4


def _checked_start(y0: PyTree) -> PyTree:
    leaves = jax.tree_util.tree_leaves_with_path(y0)
    if sum(np.size(leaf) for _, leaf in leaves) == 0:
        raise ValueError("y0 is empty: it must hold at least one number to minimise over.")
    for path, leaf in leaves:
        name = "y0" + jax.tree_util.keystr(path)
        if not eqx.is_array_like(leaf):
            raise TypeError(f"{name} must be a floating array; found {type(leaf).__name__}.")
        dtype = jnp.result_type(leaf)
        if not jnp.issubdtype(dtype, jnp.floating):
            raise TypeError(
                f"{name} must be of floating dtype to be minimised over; found {dtype}. "
                "Convert it, for instance with jnp.asarray(y0, float); complex variables are "
                "passed as real and imaginary parts."
            )
        if jnp.finfo(dtype).bits < 32:
            raise TypeError(
                f"{name} is of dtype {dtype}; the linear algebra of the gradient needs float32 "
                "or float64. Cast y0 up; the objective may compute in lower precision inside."
            )
        if not isinstance(leaf, Tracer) and not np.all(np.isfinite(leaf)):
            raise ValueError(f"{name} is not finite: the solve has to start at a finite point.")
    return jax.tree.map(jnp.asarray, y0)


def _checked_param(index: int, param: PyTree) -> PyTree:
    for path, leaf in jax.tree_util.tree_leaves_with_path(param):
        if not eqx.is_array_like(leaf):
            name = f"params[{index}]" + jax.tree_util.keystr(path)
            raise TypeError(
                f"{name} must be an array or a number; found {type(leaf).__name__}. "
                "Functions, strings and other settings belong in the objective's closure."
            )
    return jax.tree.map(jnp.asarray, param)


def _check_value(found: Any, has_aux: bool) -> None:
    """Raises ValueError unless the objective returned what it should."""
    value = found
    if has_aux:
        if not (isinstance(found, tuple) and len(found) == 2):
            raise ValueError(
                "objective must return a pair (value, aux) under has_aux=True; found "
                f"{jax.tree.structure(found)}."
            )
        value, aux = found
        for path, leaf in jax.tree_util.tree_leaves_with_path(aux):
            if not eqx.is_array_like(leaf):
                raise ValueError(
                    f"aux{jax.tree_util.keystr(path)} must be an array; found "
                    f"{type(leaf).__name__}. The auxiliary output of the objective is a pytree of "
                    "arrays."
                )
    if not eqx.is_array_like(value):
        raise ValueError(
            "objective must return one scalar; found a pytree of structure "
            f"{jax.tree.structure(value)}. If it is a pair of a value and auxiliary output, pass "
            "has_aux=True."
        )
    shape, dtype = jnp.shape(value), jnp.result_type(value)
    if shape != () or not jnp.issubdtype(dtype, jnp.floating):
        raise ValueError(
            f"objective must return a real floating scalar of shape (); found shape {shape}, dtype "
            f"{dtype}. Reduce it, for instance with jnp.sum or jnp.squeeze."
        )
