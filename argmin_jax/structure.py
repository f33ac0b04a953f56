"""What the program of an objective shows before it runs: the axes of y along which it is a sum.

If f(y) = sum_i f_i(y_i), y_i being the slices of y along an axis, the Hessian has one diagonal
block for each slice and is zero elsewhere: it takes as many Hessian-vector products as *one*
block has columns (Curtis, Powell & Reid, On the Estimation of Sparse Jacobian Matrices, 1974),
and each block is factorised by itself. Regression with many outputs, W of shape (outputs,
features), is of this kind, and so is any sum over independent problems.

If besides the Hessian is the same at every point and its blocks are all alike, as in linear
regression of many outputs on one design, one product finds as many columns as there are blocks,
and there is only one block to be factorised.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import equinox as eqx
import jax
import jax.extend.core as jex
import jax.numpy as jnp
from jax.interpreters.partial_eval import dce_jaxpr
from jaxtyping import Array, Float, PyTree

from .columns import columns
from .separability import inner_program, is_alike, is_sum


@dataclass(frozen=True)
class Blocks:
    """The division of a flat vector, of an array of ``shape``, into slices along ``axes``."""

    shape: tuple[int, ...]
    axes: tuple[int, ...] = ()
    alike: bool = False
    """Whether the matrix has the same block for each slice."""

    @property
    def count(self) -> int:
        return math.prod(self.shape[axis] for axis in self.axes)

    @property
    def size(self) -> int:
        return math.prod(self.shape) // self.count

    @property
    def distinct(self) -> int:
        """The number of blocks to be found and factorised."""
        return 1 if self.alike else self.count

    @property
    def products(self) -> int:
        """The number of products with the matrix that finds its blocks."""
        return math.ceil(self.size / self.count) if self.alike else self.size

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

    def divided(folded: tuple[int, ...]) -> Blocks:
        lengths = enumerate(folded)
        axes = [k for k, length in lengths if length > 1 and is_sum(program, folded, k)]
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
    quadratic = _is_constant(jax.hessian(objective), y)
    hessian = _matrix(jax.grad(objective), y) if quadratic else None
    return Constant(_matrix(constraints, y), hessian)


def constant_hessian(objective: Callable, y: PyTree, *args: PyTree) -> jex.Jaxpr | None:
    """The program of the product with the Hessian of ``objective(y, *args)`` in y, if its trace
    shows that it is the same at every point, else None. The leaves of the vector come first."""

    def product(y, v, *args):
        return jax.jvp(jax.grad(lambda y: objective(y, *args)), (y,), (v,))[1]

    program = jax.make_jaxpr(product)(y, y, *args).jaxpr
    leaves, inputs = len(jax.tree.leaves(y)), len(program.invars)
    kept = [leaves <= place < 2 * leaves for place in range(inputs)]
    pruned, used = dce_jaxpr(program, [True] * len(program.outvars), kept)
    return None if any(used[:leaves]) else pruned


def same_blocks(blocks: Blocks, product: jex.Jaxpr | None) -> Blocks:
    """``blocks``, and whether they are alike: of a constant Hessian its ``product`` tells that."""
    if product is None or not blocks.axes:
        return blocks
    alike = all(is_alike(product, blocks.shape, axis) for axis in blocks.axes)
    return replace(blocks, alike=alike)


def jacobian_function(fn: Callable[[Array], Array], y: Array) -> Callable[[Array], Array]:
    """The Jacobian, in the mode that needs fewer passes."""
    return jax.jacrev(fn) if jax.eval_shape(fn, y).size < y.size else jax.jacfwd(fn)


def _matrix(fn: Callable[[Array], Array], y: Array) -> Array:
    """The Jacobian of a function that is linear but for a constant."""
    return columns(jax.linearize(fn, y)[1], y).T


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
        inner = inner_program(eqn)
        if inner is not None:
            yield from _foldings(inner, shape)


def hessian_blocks(
    product: Callable[[Float[Array, " n"]], Float[Array, " n"]],
    blocks: Blocks,
    dtype: Any,
    inside: Array | None = None,
) -> Float[Array, "distinct size size"]:
    """The diagonal blocks of a symmetric matrix from products with it, as many as one block has
    columns; or the one block of all slices from one product for every ``blocks.count`` columns.

    In a loop that may not run, ``inside`` is an array that changes in it. The unit vectors then
    depend on it, in name only: else XLA would do what is the same in every pass, such as products
    of them with constants, before the loop, and so always.
    """

    def images(directions: Float[Array, "count size"]) -> Float[Array, "count size"]:
        return blocks.split(product(blocks.join(directions)))

    if blocks.count == 1 and inside is None:
        return columns(product, jnp.zeros(blocks.size, dtype))[None]
    # Which column each product finds of each block.
    if blocks.alike:
        wanted = jnp.arange(blocks.products * blocks.count).reshape(-1, blocks.count)
    else:
        wanted = jnp.broadcast_to(jnp.arange(blocks.size)[:, None], (blocks.size, blocks.count))
    if inside is not None:
        wanted = wanted + jnp.any(jnp.isnan(inside))
    unit = (wanted[:, :, None] == jnp.arange(blocks.size)[None, None]).astype(dtype)
    if blocks.alike:
        return jax.vmap(images)(unit).reshape(1, -1, blocks.size)[:, : blocks.size]
    # Rows of the result are columns of the matrix, which is symmetric.
    return jax.vmap(images, out_axes=1)(unit)
