"""What is found out about an objective's sums is true of its Hessian, and is used."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import argmin_jax
from argmin_jax.structure import (
    Blocks,
    constant_hessian,
    find_blocks,
    hessian_blocks,
    same_blocks,
)

from .problems import assert_close, regression, ridge, ridge_solution

KEY = jax.random.key(0)
MATRIX = jax.random.normal(KEY, (4, 4))
DESIGN = jax.random.normal(jax.random.key(1), (7, 4))

# Objectives of y, shaped (4, 4), and the axes along which they are sums.
SUMS = {
    "entries": (lambda y: jnp.sum(y**4 / 4 - MATRIX * y), (0, 1)),
    "regression on the right": (lambda y: jnp.mean((DESIGN @ y - 1) ** 2) + jnp.sum(y**2), (1,)),
    "regression on the left": (lambda y: jnp.mean((y @ DESIGN.T - 1) ** 2), (0,)),
    "einsum": (lambda y: jnp.sum(jnp.einsum("ab,cb->ca", y, DESIGN) ** 2), (0,)),
    "norms of rows": (lambda y: jnp.sum(jnp.sqrt(1 + jnp.sum(y**2, axis=1))), (0,)),
    "softmax of rows": (lambda y: -jnp.sum(jax.nn.log_softmax(y, axis=1)[:, 0]), (0,)),
    "lanes of a vmap": (
        lambda y: jnp.sum(
            jax.vmap(lambda v, a: (v @ a @ v) ** 2)(y, DESIGN[:4, :, None] * MATRIX[None])
        ),
        (0,),
    ),
    "custom rules and branches by entry": (
        lambda y: jnp.sum(jnp.where(y > 0, jax.nn.softplus(y), jax.nn.gelu(y))),
        (0, 1),
    ),
    "linear couplings": (lambda y: jnp.sum(y + y.T) + jnp.sum(y**2), (0, 1)),
    "reshaped": (lambda y: jnp.sum(jnp.sum(y.reshape(4, 2, 2), axis=2) ** 2), (0,)),
    "checkpointed": (lambda y: jnp.sum(jax.checkpoint(lambda v: jnp.cosh(v.sum(1)))(y)), (0,)),
    "stacked": (lambda y: jnp.sum(jnp.concatenate([y, 2 * y], axis=1).sum(axis=1) ** 2), (0,)),
}
NO_SUMS = {
    "square of a sum": lambda y: jnp.sum(y**2) ** 2,
    "square of a coupling": lambda y: jnp.sum((y + y.T) ** 2),
    "product with a transpose": lambda y: jnp.sum((y * y.T) ** 2),
    "neighbours": lambda y: jnp.sum((y[1:, 1:] - y[:-1, :-1] ** 2) ** 2),
    "both sides": lambda y: jnp.sum((y @ y) ** 2),
    "reversed": lambda y: jnp.sum(y * y[::-1, ::-1]),
    "a gather": lambda y: jnp.sum(y.ravel()[jnp.array([0, 0, 7])] ** 2) + jnp.sum(y) ** 2,
    "maximum of all": lambda y: jnp.max(y) ** 2,
    "running sums": lambda y: jnp.sum(jnp.cumsum(jnp.cumsum(y, 0), 1) ** 2),
    "a loop": lambda y: jax.lax.fori_loop(0, 3, lambda _, s: s**2 + jnp.sum(y**2), 0.0),
    "divided by a sum": lambda y: jnp.sum(y**2 / (1 + jnp.sum(y**2))),
    "normalised rows and columns": lambda y: jnp.sum(
        jax.nn.softmax(y, axis=0) * jax.nn.softmax(y, axis=1)
    ),
}


# The same of a flat y, and the shape in which its axes were found.
FLAT_SUMS = {
    "regression": (
        lambda y: jnp.mean((DESIGN @ y.reshape(4, 4) - 1) ** 2) + jnp.sum(y**2), (4, 4), (1,)
    ),
    "inner product": (lambda y: jnp.sum((y.reshape(4, 4) @ MATRIX) ** 2) + y @ y, (4, 4), (0,)),
    "ravelled again": (
        lambda y: jnp.sum(jnp.sin((y.reshape(2, 8) ** 2).ravel()).reshape(2, 8).sum(1) ** 2),
        (2, 8),
        (0,),
    ),
    "in a function of its own": (
        lambda y: jax.jit(lambda w: jnp.sum(jnp.cosh(w.reshape(2, 8).sum(axis=1))))(y), (2, 8), (0,)
    ),
    "two shapes": (
        lambda y: jnp.sum(y.reshape(2, 8).sum(1) ** 2) + jnp.sum(y.reshape(4, 4).sum(1) ** 2),
        (16,),
        (),
    ),
    "no shape": (lambda y: jnp.sum(y**2), (16,), (0,)),
    "coupled by an outer product": (
        lambda y: jnp.sum(jnp.outer(y, y) ** 2) + jnp.sum(y.reshape(4, 4) ** 2), (16,), ()
    ),
    "coupled by its order": (
        lambda y: jnp.sum((y.reshape(4, 4) * y[::-1].reshape(4, 4)) ** 2), (16,), ()
    ),
}  # fmt: skip


def dense_hessian(objective, y):
    return jax.hessian(lambda v: objective(v.reshape(y.shape)))(y.ravel())


def assembled(objective, y):
    """The Hessian from its blocks, and the blocks."""
    blocks = same_blocks(find_blocks(objective, y), constant_hessian(objective, y))
    hessian = dense_hessian(objective, y)
    found = hessian_blocks(lambda v: hessian @ v, blocks, y.dtype)
    found = np.broadcast_to(found, (blocks.count, blocks.size, blocks.size))
    whole = np.zeros_like(hessian)
    for place, block in zip(blocks.split(jnp.arange(y.size)), found, strict=True):
        whole[np.ix_(place, place)] = block
    return whole, blocks


@pytest.mark.parametrize("name", FLAT_SUMS)
def test_a_flat_variable_is_divided_by_the_axes_of_the_shape_that_it_is_given(name):
    objective, shape, axes = FLAT_SUMS[name]
    y = MATRIX.ravel()
    whole, blocks = assembled(objective, y)
    assert (blocks.shape, blocks.axes) == (shape, axes)
    np.testing.assert_allclose(whole, dense_hessian(objective, y), atol=1e-12)


@pytest.mark.parametrize("name", SUMS)
def test_the_axes_of_a_sum_are_found_and_its_blocks_are_the_whole_hessian(name):
    objective, axes = SUMS[name]
    whole, blocks = assembled(objective, MATRIX)
    assert blocks.axes == axes
    # Rounding alone: each entry is one product's.
    np.testing.assert_allclose(whole, dense_hessian(objective, MATRIX), atol=1e-12)


@pytest.mark.parametrize("name", NO_SUMS)
def test_what_is_no_sum_is_left_in_one_block(name):
    _, blocks = assembled(NO_SUMS[name], MATRIX)
    assert blocks.axes == ()
    assert (blocks.count, blocks.size) == (1, 16)


def test_parameters_may_couple_what_y_does_not():
    blocks = find_blocks(ridge, jnp.zeros((3, 2)), jnp.ones((5, 3)), jnp.ones((5, 2)), 0.0)
    assert blocks == Blocks((3, 2), (1,))


def test_several_leaves_are_one_block():
    blocks = find_blocks(
        lambda y: jnp.sum(y["a"] ** 2) + jnp.sum(y["b"]), {"a": jnp.ones(3), "b": jnp.ones((2, 2))}
    )
    assert blocks == Blocks((7,))


@pytest.mark.parametrize("axes", [(), (0,), (1,), (0, 2), (2, 1)])
def test_splitting_and_joining_are_inverse(axes):
    blocks = Blocks((2, 3, 4), axes)
    v = jnp.arange(24.0)
    assert blocks.split(v).shape == (blocks.count, blocks.size)
    np.testing.assert_array_equal(blocks.join(blocks.split(v)), v)


def with_weights(w, x, t, log_penalty):
    """Regression of which each output has its own weight, so that no two blocks are alike."""
    weights = 1 + jnp.arange(t.shape[1], dtype=t.dtype)
    return ridge(w, x, t, log_penalty) + jnp.sum((x @ w - t) ** 2 * weights[None])


@pytest.mark.parametrize(
    ("objective", "shape"), [(with_weights, "[50,4,4]"), (ridge, "[1,4,4]")], ids=["own", "alike"]
)
def test_a_hessian_of_blocks_is_never_formed_whole(objective, shape):
    """The layer's work shows in its program: no array of n x n, though n is below the limit, and
    one block where all are alike, from one product for all of its columns."""
    x, t = regression(0, 12, 4, outputs=50)

    def run(t):
        return jnp.sum(argmin_jax.argmin(objective, jnp.zeros((4, 50)), x, t, jnp.zeros(())) ** 2)

    program = str(jax.make_jaxpr(jax.grad(run))(t))
    assert shape in program
    assert "[200,200]" not in program
    assert ("[50,4,4]" in program) == (objective is with_weights)


SCALES = jnp.arange(1.0, 5)

# Quadratic objectives of y, shaped (4, 4), that are sums along an axis, and whether all slices have
# the same Hessian.
ALIKE = {
    "regression": (lambda y: jnp.mean((DESIGN @ y - 1) ** 2) + jnp.sum(y**2), True),
    "flat": (lambda y: jnp.sum((y.reshape(16).reshape(4, 4) @ MATRIX) ** 2), True),
    "own targets": (lambda y: jnp.sum((MATRIX @ y - MATRIX) ** 2) + jnp.sum(MATRIX * y), True),
    "weights of samples": (lambda y: jnp.sum((MATRIX @ y) ** 2 * SCALES[:, None]), True),
    "the same weight of all": (lambda y: jnp.sum((MATRIX @ y) ** 2 * jnp.full(4, 3.0)[None]), True),
    "entries": (lambda y: jnp.sum((y - MATRIX) ** 2), True),
    "weights of slices": (lambda y: jnp.sum((MATRIX @ y) ** 2 * SCALES[None]), False),
    "weights of entries": (lambda y: jnp.sum(y**2 * MATRIX), False),
    "a design for each slice": (
        lambda y: jnp.sum(jnp.einsum("kij,kj->ki", jnp.stack([MATRIX, DESIGN[:4]] * 2), y) ** 2),
        False,
    ),
    "some slices twice": (lambda y: jnp.sum(y**2) + jnp.sum((y[:2] @ MATRIX) ** 2), False),
    "a slice of its own": (
        lambda y: jnp.sum(jnp.where(jnp.arange(4)[:, None] > 2, y, 2 * y) ** 2), False
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", ALIKE)
def test_slices_are_alike_where_all_have_the_same_hessian_and_the_rest_is_found(name):
    objective, alike = ALIKE[name]
    whole, blocks = assembled(objective, MATRIX)
    assert blocks.alike == alike
    np.testing.assert_allclose(whole, dense_hessian(objective, MATRIX), atol=1e-12)


@pytest.mark.parametrize("shape", [(2, 5), (5, 2), (3, 3), (2, 1), (1, 2)])
def test_one_product_finds_a_column_of_each_slice_that_is_alike(shape):
    """As many products as it takes with unit vectors in all slices at once: 3 for two of five."""
    count, size = shape
    matrix = jnp.arange(1.0, 1 + size**2).reshape(size, size)
    symmetric = matrix + matrix.T
    blocks = Blocks(shape, (0,), alike=True)

    def found(matrix):
        return hessian_blocks(lambda v: (v.reshape(shape) @ matrix).ravel(), blocks, matrix.dtype)

    np.testing.assert_array_equal(found(symmetric)[0], symmetric)
    assert blocks.products == -(-size // count)
    assert f"f64[{blocks.products},{count},{size}]" in str(jax.make_jaxpr(found)(symmetric))


def test_null_directions_of_slices_that_are_alike_are_counted_in_each():
    x, t = regression(1, 12, 3, outputs=2)
    x = x.at[:, 2].set(x[:, 1])

    def objective(w, t):
        return jnp.sum((x @ w - t) ** 2) / 2

    solution = argmin_jax.solve(objective, jnp.zeros((3, 2)), t)
    assert int(solution.report.rank_deficiency) == 2
    jacobian = jax.jacrev(lambda t: argmin_jax.argmin(objective, jnp.zeros((3, 2)), t))(t)
    for k in range(2):
        assert_close(jacobian[:, k, :, k], jnp.linalg.pinv(x), 1e-10)
        assert_close(jacobian[:, k, :, 1 - k], jnp.zeros((3, 12)), 1e-12)


def test_gradients_by_blocks_are_right_also_where_some_blocks_are_singular():
    # Output 0 has no penalty and two equal features: a flat direction, and the answer of smallest
    # norm there; output 1 is regular.
    x, t = regression(1, 12, 3, outputs=2)
    x = x.at[:, 2].set(x[:, 1])
    penalty = jnp.array([0.0, 1.0])

    def objective(w, t):
        return jnp.sum((x @ w - t) ** 2) / 2 + jnp.sum(penalty[None] * w**2) / 2

    solution = argmin_jax.solve(objective, jnp.zeros((3, 2)), t)
    assert int(solution.report.rank_deficiency) == 1
    jacobian = jax.jacrev(lambda t: argmin_jax.argmin(objective, jnp.zeros((3, 2)), t))(t)
    assert_close(jacobian[:, 0, :, 0], jnp.linalg.pinv(x), 1e-10)
    regular = jnp.linalg.solve(x.T @ x + jnp.eye(3), x.T)
    assert_close(jacobian[:, 1, :, 1], regular, 1e-10)
    assert_close(jacobian[:, 0, :, 1], jnp.zeros((3, 12)), 1e-12)


def test_a_sum_beyond_the_dense_limit_is_still_factorised():
    t = jnp.linspace(1.0, 2.0, 5_000)
    solution = argmin_jax.solve(lambda y, t: jnp.sum(y**4 / 4 - t * y), jnp.ones(5_000), t)
    assert int(solution.report.rank_deficiency) == 0  # -1 where nothing was factorised
    assert_close(solution.y, t ** (1 / 3), 1e-12)


def test_the_ridge_solution_by_blocks_is_that_of_the_normal_equations():
    x, t = regression(2, 12, 4, outputs=3)
    found = argmin_jax.argmin(ridge, jnp.zeros((4, 3)), x, t, jnp.zeros(()))
    assert_close(found, ridge_solution(x, t, jnp.zeros(())), 1e-12)


QUADRATIC = {
    "regression": lambda y: jnp.mean((DESIGN @ y - 1) ** 2) + jnp.sum(y**2),
    "coupled": lambda y: jnp.vdot(y, MATRIX @ y.T) + jnp.sum(y),
    "branch on a parameter": lambda y: jax.lax.cond(MATRIX[0, 0] > 0, jnp.sum, jnp.mean, y**2),
}
NOT_QUADRATIC = {
    "quartic": lambda y: jnp.sum(y**4),
    "huber": lambda y: jnp.sum(jnp.where(jnp.abs(y) < 1, y**2 / 2, jnp.abs(y) - 0.5)),
    "regularised by an entropy": lambda y: jnp.sum(y**2) + jnp.sum(jax.nn.softplus(y)),
}


@pytest.mark.parametrize("name", [*QUADRATIC, *NOT_QUADRATIC])
def test_the_trace_of_an_objective_tells_whether_its_hessian_is_constant(name):
    assert (constant_hessian((QUADRATIC | NOT_QUADRATIC)[name], MATRIX) is not None) == (
        name in QUADRATIC
    )


def test_a_quadratic_takes_no_step_of_the_solver_and_one_with_kinks_as_many_as_it_needs():
    """The Hessian of |y - 3| + y^2 / 2 is constant but for the kink: the minimum is at 1 from below
    and, from above the kink, where a Newton step leads, to -1, beyond it."""

    def kinked(y):
        return jnp.sum(jnp.abs(y - 3) + y**2 / 2)

    assert constant_hessian(kinked, jnp.zeros(2)) is not None
    found = argmin_jax.solve(lambda y: jnp.sum((y - 2) ** 2), jnp.zeros(2))
    assert int(found.report.steps) == 0
    assert_close(found.y, jnp.full(2, 2.0), 1e-15)
    found = argmin_jax.solve(kinked, jnp.full(2, 5.0))
    assert_close(found.y, jnp.ones(2), 1e-12)
