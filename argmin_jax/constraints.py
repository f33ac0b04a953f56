"""Sets that are often asked for, as the arguments of `argmin` that describe them.

    argmin(f, y0, p, **simplex())
    argmin(f, y0, p, **(box(0.0, cap) & affine(A, b)))

What a set is made of (a radius, a cap, A and b) may be traced, and is differentiated like all that
a constraint closes over. ``y`` may be a pytree: a set is one of its entries, flattened.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.flatten_util import ravel_pytree
from jax.tree_util import treedef_is_leaf
from jaxtyping import Array, Float, PyTree, Scalar

from .problem import pair_of_bounds, spread


@dataclass(frozen=True)
class Constraints:
    """The arguments ``eq``, ``ineq`` and ``bounds`` of `argmin`: what ``**`` passes on.

    ``one & other`` is the intersection. Where both have equalities (or inequalities), those of the
    intersection are the pair of them, and so are their multipliers; of two bounds the tighter one
    holds.

    Args:
        eq, ineq, bounds: your own, as for `argmin`; None where there are none.

    Raises:
        TypeError: bounds that are not a pair.
    """

    eq: Callable[..., PyTree] | None = None
    ineq: Callable[..., PyTree] | None = None
    bounds: tuple[PyTree, PyTree] | None = None

    def __post_init__(self):
        pair_of_bounds(self.bounds)

    def keys(self) -> Iterator[str]:
        """The names of the arguments that there are."""
        return (name for name in ("eq", "ineq", "bounds") if getattr(self, name) is not None)

    def __getitem__(self, name: str) -> Any:
        return getattr(self, name)

    def __and__(self, other: "Constraints") -> "Constraints":
        if not isinstance(other, Constraints):
            return NotImplemented
        bounds = None
        if self.bounds is not None or other.bounds is not None:
            (l1, u1), (l2, u2) = pair_of_bounds(self.bounds), pair_of_bounds(other.bounds)
            bounds = _tighter(jnp.maximum, l1, l2), _tighter(jnp.minimum, u1, u2)
        return Constraints(_both(self.eq, other.eq), _both(self.ineq, other.ineq), bounds)


def simplex(total: Scalar | float = 1.0) -> Constraints:
    """y >= 0 with sum(y) = total: probabilities, the weights of a portfolio.

    Args:
        total: a positive number.

    Raises:
        TypeError, ValueError: it is not one, where that can be seen.
    """
    size = _positive("simplex(total)", total)

    def excess(y, *params):
        flat = _flat(y)
        return jnp.sum(flat) - _like(size, flat)

    return Constraints(eq=excess, bounds=(0.0, None))


def box(lower: PyTree = None, upper: PyTree = None) -> Constraints:
    """lower <= y <= upper.

    Args:
        lower, upper: each a number, None or a pytree like y, as the ``bounds`` of `argmin`, which
            checks them.
    """
    return Constraints(bounds=(lower, upper))


def ball(radius: Scalar | float, center: PyTree = 0.0) -> Constraints:
    """|y - center| <= radius, in the Euclidean norm of all entries.

    Stated with squares, |y - center|^2 - radius^2 <= 0, which is smooth everywhere; its gradient
    vanishes at the center alone. Its multiplier is that of the squares.

    Args:
        radius: a positive number.
        center: a number or a pytree like y.

    Raises:
        TypeError, ValueError: a radius that is not positive, where that can be seen; when the
            problem is set up, a center that does not fit y.

    A traced radius that turns out negative makes a problem without a solution (`INFEASIBLE`).
    """
    size = _positive("ball(radius)", radius)

    def outside(y, *params):
        apart = _flat(y) - spread("ball(center)", center, y, 0.0)
        r = _like(size, apart)
        # A negative radius must not act as its absolute value.
        return apart @ apart - r * jnp.abs(r)

    return Constraints(ineq=outside)


def affine(A: Float[Array, "m n"], b: Float[Array, " m"]) -> Constraints:
    """A y = b.

    Args:
        A: of shape (m, n), n being the number of entries of y; or (n,), for one equation.
        b: of shape (m,); or (), for one equation.

    Raises:
        TypeError, ValueError: arguments that are not real numbers, or do not fit each other; when
            the problem is set up, an A that does not fit y.
    """
    return Constraints(eq=_linear("affine", "A", "b", A, b))


def halfspaces(G: Float[Array, "m n"], h: Float[Array, " m"]) -> Constraints:
    """G y <= h: a polyhedron.

    Args:
        G: of shape (m, n), n being the number of entries of y; or (n,), for one inequality.
        h: of shape (m,); or (), for one inequality.

    Raises:
        TypeError, ValueError: as `affine`.
    """
    return Constraints(ineq=_linear("halfspaces", "G", "h", G, h))


def _linear(where: str, left: str, right: str, matrix: Any, vector: Any) -> Callable[..., Array]:
    """``matrix @ y - vector`` as a constraint, after a look at the shapes."""
    matrix = _real(f"{where}({left})", matrix)
    vector = _real(f"{where}({right})", vector)
    if matrix.ndim not in (1, 2) or vector.shape != matrix.shape[:-1]:
        raise ValueError(
            f"{where} needs {left} of shape (m, n) and {right} of shape (m,), or (n,) and (); "
            f"found {left} {matrix.shape}, {right} {vector.shape}."
        )

    def difference(y, *params):
        flat = _flat(y)
        if matrix.shape[-1] != flat.size:
            raise ValueError(
                f"{where}({left}) has {matrix.shape[-1]} columns for {flat.size} unknowns."
            )
        return _like(matrix, flat) @ flat - _like(vector, flat)

    return difference


def _positive(name: str, value: Any) -> Array | np.ndarray:
    value = _real(name, value)
    if value.shape != ():
        raise ValueError(f"{name} must be one number; found shape {value.shape}.")
    if not isinstance(value, Tracer) and not 0 < float(value) < np.inf:
        raise ValueError(f"{name} must be positive and finite; found {float(value)}.")
    return value


def _real(name: str, value: Any) -> Array | np.ndarray:
    """An array of real numbers. What is none of JAX's becomes one of NumPy's, which the layer knows
    again by its content, so that two equal sets are compiled once."""
    if not isinstance(value, jax.Array):
        value = np.asarray(value)
    if not eqx.is_array_like(value) or not (
        jnp.issubdtype(value.dtype, jnp.floating) or jnp.issubdtype(value.dtype, jnp.integer)
    ):
        raise TypeError(f"{name} must hold real numbers; found dtype {value.dtype}.")
    return value


def _flat(y: PyTree) -> Float[Array, " n"]:
    with jax.numpy_dtype_promotion("standard"):  # y may mix float32 and float64 leaves
        return ravel_pytree(y)[0]


def _like(value: Array | np.ndarray, y: Float[Array, " n"]) -> Array:
    return jnp.asarray(value, y.dtype)


def _both(one: Callable | None, other: Callable | None) -> Callable | None:
    if one is None or other is None:
        return other if one is None else one
    return lambda y, *params: (one(y, *params), other(y, *params))


def _tighter(pick: Callable[[Array, Array], Array], one: PyTree, other: PyTree) -> PyTree:
    """Of two lower or two upper bounds, whichever ``pick`` picks, entry by entry. None is none."""

    def is_none(x):
        return x is None

    def tighter(a, b):
        if a is None or b is None:
            return b if a is None else a
        return pick(*jnp.broadcast_arrays(a, b))

    found = [jax.tree.structure(tree, is_leaf=is_none) for tree in (one, other)]
    # A number, or None, stands for a whole pytree.
    if treedef_is_leaf(found[0]):
        return jax.tree.map(partial(tighter, one), other, is_leaf=is_none)
    if treedef_is_leaf(found[1]):
        return jax.tree.map(partial(tighter, other), one, is_leaf=is_none)
    if found[0] != found[1]:
        raise ValueError(
            "bounds of two sets must be numbers, None or pytrees of one structure to be "
            f"intersected; found {found[0]} and {found[1]}."
        )
    return jax.tree.map(tighter, one, other, is_leaf=is_none)
