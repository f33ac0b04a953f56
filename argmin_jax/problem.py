"""What is asked: objective, constraints and bounds; checks of the arguments.

Everything behind this room works on a flat vector ``y`` of shape ``(n,)`` and one pytree of
arguments; the structure that the user chose is restored at the door, in `layer`.
"""

from collections.abc import Callable, Hashable
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, PyTree

from .program import Arguments, Objective, SumOfSquares, VectorFunction, hoist


class Problem(eqx.Module):
    """A problem, flattened: minimise ``objective(y, args)`` from ``start``, subject to
    ``eq(y, args) == 0``, ``ineq(y, args) <= 0`` and ``args.bounds``, where there are any."""

    objective: Objective
    start: Float[Array, " n"]
    args: Arguments
    eq: VectorFunction | None = None
    ineq: VectorFunction | None = None

    @property
    def asked(self) -> Objective:
        """The function that a solver is given."""
        return self.objective

    @property
    def constrained(self) -> bool:
        return not (self.eq is None and self.ineq is None and self.args.bounds is None)


class Equations(eqx.Module):
    """A square system, flattened: find a zero of ``function(z, args)`` from ``start``, or a fixed
    point where it ``is_map``."""

    function: VectorFunction
    start: Float[Array, " n"]
    args: Arguments
    is_map: bool = eqx.field(static=True)

    @property
    def asked(self) -> VectorFunction:
        """The function that a solver is given."""
        return self.function


def build_problem(
    objective: Callable[..., Any],
    y0: PyTree,
    params: tuple[PyTree, ...],
    has_aux: bool = False,
    eq: Callable[..., PyTree] | None = None,
    ineq: Callable[..., PyTree] | None = None,
    bounds: tuple[PyTree, PyTree] | None = None,
) -> Problem:
    """Checks the arguments of `argmin`, hoists closures and flattens ``y``.

    Raises:
        TypeError: a function is not callable; a leaf of ``y0`` is not a floating array of at
            least 32 bits; a leaf of a param is not an array; ``bounds`` is not a pair.
        ValueError: ``y0`` is empty or, where its values can be seen, not finite; the objective
            does not return one real floating scalar, or under ``has_aux`` not a pair of one and a
            pytree of arrays; a constraint does not return a pytree of real floating arrays, or
            there are more equalities than unknowns; bounds that do not fit ``y0`` or, where their
            values can be seen, contradict each other.
    """
    if not isinstance(has_aux, bool):
        raise TypeError(f"has_aux must be True or False; found {has_aux!r}.")
    _check_callable("objective", objective, "scalar")
    y0, params, start = _checked_arguments("y0", y0, params)
    check = _check_value_and_aux if has_aux else _check_value
    program, closed_over, unravel = hoist(objective, y0, params, check)
    slots = [closed_over]
    constraints = {}
    for name, fn in (("eq", eq), ("ineq", ineq)):
        if fn is not None:
            _check_callable(name, fn, "pytree of arrays")
            constraints[name], closed_over = _vector_function(name, fn, y0, params, len(slots))
            slots.append(closed_over)
    count = constraints["eq"].size if "eq" in constraints else 0
    if count > start.size:
        raise ValueError(
            f"eq returns {count} equalities for {start.size} unknowns: at most as many can hold. "
            "Leave out those that follow from others, or minimise the sum of their squares."
        )
    args = Arguments(tuple(slots), params, _checked_bounds(bounds, y0))
    return Problem(Objective(program, unravel, 0, has_aux), start, args, **constraints)


def build_equations(
    function: Callable[..., Any], z0: PyTree, params: tuple[PyTree, ...], is_map: bool
) -> Equations:
    """Checks the arguments of `root` or, where the function ``is_map``, of `fixed_point`.

    Raises:
        TypeError, ValueError: as `build_problem`; also where the function does not return as many
            numbers as the variable holds (a map: a pytree of its structure and shapes).
    """
    name = "map" if is_map else "residual"
    _check_callable(name, function, "pytree of arrays")
    z0, params, start = _checked_arguments("z0", z0, params)
    flat, closed_over = _vector_function(name, function, z0, params, 0)
    if is_map:
        found, wanted = (jax.tree.map(jnp.shape, tree) for tree in (flat.program.out, z0))
        if found != wanted:
            raise ValueError(f"map must return what z0 is, of shapes {wanted}; found {found}.")
    if flat.size != start.size:
        raise ValueError(
            f"residual must return as many numbers as z0 holds, {start.size}; found {flat.size}. "
            "To minimise the sum of their squares instead, use least_squares."
        )
    return Equations(flat, start, Arguments((closed_over,), params), is_map)


def build_least_squares(
    residual: Callable[..., Any], y0: PyTree, params: tuple[PyTree, ...]
) -> tuple[Problem, VectorFunction]:
    """The problem of minimising half the sum of the squares of ``residual(y, *params)``, and the
    residual itself, which its solvers need.

    Raises:
        TypeError, ValueError: as `build_problem`; also where the residual is empty.
    """
    _check_callable("residual", residual, "pytree of arrays")
    y0, params, start = _checked_arguments("y0", y0, params)
    flat, closed_over = _vector_function("residual", residual, y0, params, 0)
    if flat.size == 0:
        raise ValueError("residual must return at least one number; found none.")
    args = Arguments((closed_over,), params)
    objective = SumOfSquares(flat.program, flat.unravel, 0, has_aux=False)
    return Problem(objective, start, args), flat


def _vector_function(
    name: str, fn: Callable, y0: PyTree, params: tuple[PyTree, ...], slot: int
) -> tuple[VectorFunction, list[Array]]:
    program, closed_over, unravel = hoist(fn, y0, params, _CHECKS[name])
    size = sum(leaf.size for leaf in jax.tree.leaves(program.out))
    return VectorFunction(program, unravel, slot, size), closed_over


def _checked_arguments(
    name: str, y0: PyTree, params: tuple[PyTree, ...]
) -> tuple[PyTree, tuple[PyTree, ...], Float[Array, " n"]]:
    """The start and the params as arrays, and the start flattened."""
    y0 = _checked_start(name, y0)
    params = tuple(_checked_param(i, param) for i, param in enumerate(params))
    # y0's gradient is zero by definition: cutting it here keeps tangents of y0 out of the solve.
    y0 = jax.lax.stop_gradient(y0)
    with jax.numpy_dtype_promotion("standard"):  # y0 may mix float32 and float64 leaves
        start, _ = ravel_pytree(y0)
    return y0, params, start


def _check_callable(name: str, fn: Any, returned: str) -> None:
    if not callable(fn):
        raise TypeError(f"{name} must be a function (y, *params) -> {returned}; found {fn!r}.")


def _checked_bounds(bounds: Any, y0: PyTree) -> tuple[Array, Array] | None:
    """The bounds as two flat vectors of y's dtype; None where there are none at all."""
    lower, upper = pair_of_bounds(bounds)
    if lower is None and upper is None:
        return None
    lower = spread("the lower bound", lower, y0, -jnp.inf)
    upper = spread("the upper bound", upper, y0, jnp.inf)
    if not isinstance(lower, Tracer) and not isinstance(upper, Tracer):
        bad = ~(np.asarray(lower) <= np.asarray(upper)) | np.isposinf(lower) | np.isneginf(upper)
        if np.any(bad):
            k = int(np.argmax(bad))
            raise ValueError(
                f"bounds contradict each other at entry {k} of y0, flattened ({int(bad.sum())} "
                f"entries in all): lower {float(lower[k])}, upper {float(upper[k])}."
            )
    return lower, upper


def pair_of_bounds(bounds: Any) -> tuple[PyTree, PyTree]:
    """The lower and the upper bound, each None where there is none.

    Raises:
        TypeError: ``bounds`` is neither None nor a pair.
    """
    if bounds is None:
        return None, None
    if not (isinstance(bounds, tuple | list) and len(bounds) == 2):
        raise TypeError(
            "bounds must be a pair (lower, upper), each a number, None or a pytree like y0; found "
            f"{type(bounds).__name__}."
        )
    return bounds[0], bounds[1]


def spread(name: str, value: PyTree, y0: PyTree, missing: float) -> Float[Array, " n"]:
    """A number, None or a pytree like y0, broadcast to y and flattened.

    Raises:
        TypeError, ValueError: ``value``, which is called ``name``, is none of these.
    """

    def is_none(x):
        return x is None

    try:
        leaves = jax.tree.leaves(jax.tree.broadcast(value, y0, is_leaf=is_none), is_leaf=is_none)
    except ValueError as error:
        raise ValueError(
            f"{name} must be a number, None or a pytree like y0, "
            f"{jax.tree.structure(y0)}; found {jax.tree.structure(value)}."
        ) from error
    parts = []
    for leaf, like in zip(leaves, jax.tree.leaves(y0, is_leaf=is_none), strict=True):
        if like is None:
            continue
        leaf = missing if leaf is None else leaf
        if not eqx.is_array_like(leaf) or jnp.issubdtype(jnp.result_type(leaf), complex):
            raise TypeError(f"{name} must hold real numbers; found {leaf!r}.")
        if not _broadcasts(jnp.shape(leaf), like.shape):
            raise ValueError(
                f"{name}, of shape {jnp.shape(leaf)}, does not fit y0, of shape {like.shape}."
            )
        parts.append(jnp.broadcast_to(jnp.asarray(leaf, like.dtype), like.shape))
    with jax.numpy_dtype_promotion("standard"):
        return ravel_pytree(parts)[0]


def _broadcasts(shape: tuple[int, ...], to: tuple[int, ...]) -> bool:
    try:
        return np.broadcast_shapes(shape, to) == to
    except ValueError:
        return False


def check_choice(name: str, found: Hashable, known: tuple[str, ...]) -> None:
    """Raises ValueError unless ``found`` is one of the ``known`` values of the option ``name``."""
    if found not in known:
        choices = ", ".join(repr(choice) for choice in known)
        raise ValueError(f"{name} must be one of {choices}; found {found!r}.")


def default_tolerance(dtype: Any) -> float:
    """The residual at which a point counts as solved: 1e-8 in float64, 1e-4 in float32."""
    return 1e-8 if jnp.finfo(dtype).bits == 64 else 1e-4


def _checked_start(start: str, y0: PyTree) -> PyTree:
    leaves = jax.tree_util.tree_leaves_with_path(y0)
    if sum(np.size(leaf) for _, leaf in leaves) == 0:
        raise ValueError(f"{start} is empty: it must hold at least one number to solve for.")
    for path, leaf in leaves:
        name = start + jax.tree_util.keystr(path)
        if not eqx.is_array_like(leaf):
            raise TypeError(f"{name} must be a floating array; found {type(leaf).__name__}.")
        dtype = jnp.result_type(leaf)
        if not jnp.issubdtype(dtype, jnp.floating):
            raise TypeError(
                f"{name} must be of floating dtype to be solved for; found {dtype}. "
                f"Convert it, for instance with jnp.asarray({start}, float); complex variables are "
                "passed as real and imaginary parts."
            )
        if jnp.finfo(dtype).bits < 32:
            raise TypeError(
                f"{name} is of dtype {dtype}; the linear algebra of the gradient needs float32 "
                f"or float64. Cast {start} up; functions may compute in lower precision inside."
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


def _check_value(found: Any) -> None:
    """Raises ValueError unless the objective returned one real floating scalar."""
    if not eqx.is_array_like(found):
        raise ValueError(
            "objective must return one scalar; found a pytree of structure "
            f"{jax.tree.structure(found)}. If it is a pair of a value and auxiliary output, pass "
            "has_aux=True."
        )
    shape, dtype = jnp.shape(found), jnp.result_type(found)
    if shape != () or not jnp.issubdtype(dtype, jnp.floating):
        raise ValueError(
            f"objective must return a real floating scalar of shape (); found shape {shape}, dtype "
            f"{dtype}. Reduce it, for instance with jnp.sum or jnp.squeeze."
        )


def _check_value_and_aux(found: Any) -> None:
    """Raises ValueError unless the objective returned ``(value, aux)``."""
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
    _check_value(value)


def _check_vector(name: str, found: Any) -> None:
    """Raises ValueError unless a function returned real floating arrays."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(found):
        if not eqx.is_array_like(leaf) or not jnp.issubdtype(jnp.result_type(leaf), jnp.floating):
            kind = jnp.result_type(leaf) if eqx.is_array_like(leaf) else type(leaf).__name__
            raise ValueError(
                f"{name} must return a pytree of real floating arrays; found {kind} at "
                f"{name}(...){jax.tree_util.keystr(path)}. (A constraint is a number that is "
                "compared with zero, not a truth value.)"
            )


# One function object each, as the trace of a function is kept under its check.
_CHECKS = {name: partial(_check_vector, name) for name in ("eq", "ineq", "residual", "map")}
