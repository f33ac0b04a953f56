"""The Jacobian of a function at a point, as a Lineax operator that is never formed here.

Lineax's own converts its function to a closed program for arguments of certain types, which inside
`jax.shard_map` are never equal to those that it is called with: types there say more than shape
and dtype. This one calls its function as it is.
"""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
from jaxtyping import Array, Float, PyTree


class Jacobian(lx.AbstractLinearOperator):
    """dF/dy at ``(y, args)``, square.

    ``fn`` is a function ``(y, args) -> F`` and a pytree; ``tags`` are Lineax's, unchecked.
    """

    fn: Callable[[Float[Array, " n"], PyTree], Float[Array, " n"]]
    y: Float[Array, " n"]
    args: PyTree
    tags: frozenset[object] = eqx.field(static=True)

    def mv(self, vector: Float[Array, " n"]) -> Float[Array, " n"]:
        return jax.jvp(lambda y: self.fn(y, self.args), (self.y,), (vector,))[1]

    def as_matrix(self) -> Float[Array, "n n"]:
        return _matrix(lx.linearise(self))

    def transpose(self) -> "lx.AbstractLinearOperator":
        return self if lx.is_symmetric(self) else lx.linearise(self).transpose()

    def in_structure(self) -> jax.ShapeDtypeStruct:
        return jax.eval_shape(lambda: self.y)

    def out_structure(self) -> jax.ShapeDtypeStruct:
        return self.in_structure()


class Linearised(lx.AbstractLinearOperator):
    """The same after one linearisation, whose products do not evaluate the function again."""

    product: Callable[[Float[Array, " n"]], Float[Array, " n"]]  # a pytree that holds arrays
    structure: jax.ShapeDtypeStruct = eqx.field(static=True)
    tags: frozenset[object] = eqx.field(static=True)

    def mv(self, vector: Float[Array, " n"]) -> Float[Array, " n"]:
        return self.product(vector)

    def as_matrix(self) -> Float[Array, "n n"]:
        return _matrix(self)

    def transpose(self) -> "Linearised":
        if lx.is_symmetric(self):
            return self
        transposed = jax.linear_transpose(self.product, self.structure)
        product = jax.tree_util.Partial(_first_of, transposed)
        return Linearised(product, self.structure, lx.transpose_tags(self.tags))

    def in_structure(self) -> jax.ShapeDtypeStruct:
        return self.structure

    def out_structure(self) -> jax.ShapeDtypeStruct:
        return self.structure


def _first_of(fn: Callable, vector: Float[Array, " n"]) -> Float[Array, " n"]:
    return fn(vector)[0]


def _matrix(operator: lx.AbstractLinearOperator) -> Float[Array, "n n"]:
    unit = jnp.eye(operator.in_size(), dtype=operator.in_structure().dtype)
    # The columns of a symmetric matrix are its rows, which saves a transposition.
    return jax.vmap(operator.mv, out_axes=0 if lx.is_symmetric(operator) else 1)(unit)


@lx.linearise.register(Jacobian)
def _(operator: Jacobian) -> Linearised:
    _, product = jax.linearize(lambda y: operator.fn(y, operator.args), operator.y)
    return Linearised(product, operator.in_structure(), operator.tags)


@lx.linearise.register(Linearised)
@lx.conj.register(Linearised)
@lx.conj.register(Jacobian)  # it is real
def _(operator):
    return operator


@lx.materialise.register(Jacobian)
@lx.materialise.register(Linearised)
def _(operator):
    return lx.MatrixLinearOperator(operator.as_matrix(), operator.tags)


@lx.diagonal.register(Jacobian)
@lx.diagonal.register(Linearised)
def _(operator):
    return jnp.diag(operator.as_matrix())


@lx.is_symmetric.register(Jacobian)
@lx.is_symmetric.register(Linearised)
def _(operator):
    return bool(operator.tags & {lx.symmetric_tag, lx.positive_semidefinite_tag})


@lx.is_positive_semidefinite.register(Jacobian)
@lx.is_positive_semidefinite.register(Linearised)
def _(operator):
    return lx.positive_semidefinite_tag in operator.tags


for has_not in (
    lx.is_negative_semidefinite, lx.is_diagonal, lx.is_tridiagonal, lx.has_unit_diagonal,
    lx.is_lower_triangular, lx.is_upper_triangular,
):  # fmt: skip
    has_not.register(Jacobian, lambda operator: False)
    has_not.register(Linearised, lambda operator: False)
