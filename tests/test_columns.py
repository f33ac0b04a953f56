"""The matrix of a linear function is that of its products with unit vectors, at half the cost."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from argmin_jax.columns import columns

from .problems import assert_close

DESIGN = jax.random.normal(jax.random.key(0), (5, 6))
CUBE = jax.random.normal(jax.random.key(1), (4, 3, 5, 2))
WEIGHTS = jnp.arange(1.0, 6)

LINEAR = {
    "a matrix": lambda v: DESIGN @ v,
    "its transpose": lambda v: v @ DESIGN.T,
    "both sides of a regression": lambda v: DESIGN.T @ (WEIGHTS * (DESIGN @ v)) + 2 * v,
    "in functions of their own": lambda v: jax.jit(lambda u: jax.jit(jnp.matmul)(DESIGN, u))(v),
    "all axes of a tensor": lambda v: jnp.tensordot(CUBE, v.reshape(3, 2), ((1, 3), (0, 1))),
    "its axes in another order": lambda v: jnp.tensordot(v.reshape(2, 3), CUBE, ((0, 1), (3, 1))),
    "some axes of a tensor": lambda v: jnp.tensordot(CUBE, v.reshape(3, 2), ((1,), (0,))),
    "lanes": lambda v: jax.vmap(jnp.dot)(DESIGN, jnp.stack([v] * 5)),
    "itself": lambda v: v,
    "a permutation": lambda v: v.reshape(2, 3).T.ravel(),
    "nothing": lambda v: jnp.zeros(4),
    "a loop": lambda v: jax.lax.fori_loop(0, 3, lambda _, u: DESIGN.T @ (DESIGN @ u), v),
    "a branch": lambda v: jax.lax.cond(WEIGHTS[0] > 0, lambda u: DESIGN @ u, lambda u: u[:5], v),
    "made anew": lambda v: jax.checkpoint(lambda u: DESIGN @ u)(v),
    "sums and differences": lambda v: jnp.cumsum(v)[1:] - jnp.diff(v),
}  # fmt: skip


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("name", LINEAR)
def test_columns_are_the_images_of_the_unit_vectors(name, compiled):
    def found(v):
        return columns(LINEAR[name], v)

    images = np.stack([LINEAR[name](unit) for unit in np.eye(6)])
    found = (jax.jit(found) if compiled else found)(jnp.ones(6))
    assert found.dtype == jnp.float64
    # Rounding alone: sums of a few products of numbers near 1.
    np.testing.assert_allclose(found, images, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("name", "products"),
    [("a matrix", 0), ("all axes of a tensor", 0), ("both sides of a regression", 1)],
)
def test_what_a_function_does_to_its_argument_first_is_read_off(name, products):
    program = str(jax.make_jaxpr(lambda v: columns(LINEAR[name], v))(jnp.ones(6)))
    assert program.count("dot_general") == products


def test_the_matrix_is_differentiated_and_batched_like_any_other():
    def total(design):
        return jnp.sum(columns(lambda v: design.T @ jnp.tanh(design) @ v, jnp.ones(6)) ** 2)

    def dense(design):
        return jnp.sum((design.T @ jnp.tanh(design)) ** 2)

    assert_close(jax.grad(total)(DESIGN), jax.grad(dense)(DESIGN), 1e-12)
    several = jnp.stack([DESIGN, 2 * DESIGN])
    assert_close(jax.vmap(total)(several), jax.vmap(dense)(several), 1e-12)
