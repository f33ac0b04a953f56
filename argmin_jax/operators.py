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
    """dF/dy at ``(y, args)``, symmetric and tagged as positive semidefinite.

    ``fn`` is a function ``(y, args) -> F`` and a pytree.
    """

    fn: Callable[[Float[Array, " n"], PyTree], Float[Array, " n"]]
    y: Float[Array, " n"]
    args: PyTree

    def mv(self, vector: Float[Array, " n"]) -> Float[Array, " n"]:
        return jax.jvp(lambda y: self.fn(y, self.args), (self.y,), (vector,))[1]

    def as_matrix(self) -> Float[Array, "n n"]:
        return _columns(lx.linearise(self))

    def transpose(self) -> "Jacobian":
        return self

    def in_structure(self) -> jax.ShapeDtypeStruct:
        return jax.eval_shape(lambda: self.y)

    def out_structure(self) -> jax.ShapeDtypeStruct:
        return self.in_structure()


class Linearised(lx.AbstractLinearOperator):
    """The same after one linearisation, whose products do not evaluate the function again."""

    product: Callable[[Float[Array, " n"]], Float[Array, " n"]]  # a pytree that holds arrays
    structure: jax.ShapeDtypeStruct = eqx.field(static=True)

    def mv(self, vector: Float[Array, " n"]) -> Float[Array, " n"]:
        return self.product(vector)

    def as_matrix(self) -> Float[Array, "n n"]:
        return _columns(self)

    def transpose(self) -> "Linearised":
        return self

    def in_structure(self) -> jax.ShapeDtypeStruct:
        return self.structure

    def out_structure(self) -> jax.ShapeDtypeStruct:
        return self.structure


def _columns(operator: Linearised) -> Float[Array, "n n"]:
    # Rows of the result are columns of the matrix, which is symmetric.
    return jax.vmap(operator.mv)(jnp.eye(operator.in_size(), dtype=operator.structure.dtype))


@lx.linearise.register(Jacobian)
def _(operator: Jacobian) -> Linearised:
    _, product = jax.linearize(lambda y: operator.fn(y, operator.args), operator.y)
    return Linearised(product, operator.in_structure())


@lx.linearise.register(Linearised)
@lx.conj.register(Linearised)
@lx.conj.register(Jacobian)  # it is real
def _(operator):
    return operator


@lx.materialise.register(Jacobian)
@lx.materialise.register(Linearised)
def _(operator):
    return lx.MatrixLinearOperator(operator.as_matrix(), lx.positive_semidefinite_tag)


@lx.diagonal.register(Jacobian)
@lx.diagonal.register(Linearised)
def _(operator):
    return jnp.diag(operator.as_matrix())


for has in (lx.is_symmetric, lx.is_positive_semidefinite):
    has.register(Jacobian, lambda operator: True)
    has.register(Linearised, lambda operator: True)
for has_not in (
    lx.is_negative_semidefinite, lx.is_diagonal, lx.is_tridiagonal, lx.has_unit_diagonal,
    lx.is_lower_triangular, lx.is_upper_triangular,
):  # fmt: skip
    has_not.register(Jacobian, lambda operator: False)
    has_not.register(Linearised, lambda operator: False)
