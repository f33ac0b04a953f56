"""Factors of symmetric blocks, and how far another matrix is from theirs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from argmin_jax.structure import Blocks
from argmin_jax.symmetric import factorise

from .problems import assert_close, random_spd

SAMPLES = 8


def deviation(matrix, other):
    factors = factorise(matrix[None], Blocks((len(matrix),)))
    return factors.deviation(factors.samples(SAMPLES) @ other)


def test_a_matrix_does_not_deviate_from_its_own_factors():
    matrix = random_spd(0, 9, 1e4)
    assert deviation(matrix, matrix) < 1e-10  # rounding, times the condition number


def test_the_deviation_is_relative_whatever_the_units_of_the_unknowns():
    matrix, units = random_spd(1, 9), jnp.geomspace(1e-6, 1e6, 9)
    scaled = units[:, None] * matrix * units[None]
    assert_close(deviation(matrix, 1.1 * matrix), deviation(scaled, 1.1 * scaled), 1e-6)


# Few sizes, as each is compiled anew.
@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    size=st.sampled_from([2, 7, 40]),
    eigenvalue=st.floats(-1.0, 0.0),
)
def test_a_matrix_that_is_not_positive_definite_deviates_by_more_than_is_tolerated(
    seed, size, eigenvalue
):
    """K = A A^T with A any matrix, and K' = A (1 - (1 - e) v v^T) A^T, |v| = 1."""
    rng = np.random.default_rng(seed)
    root = jnp.asarray(rng.normal(size=(size, size)) + 2 * np.eye(size))
    v = rng.normal(size=size)
    v = jnp.asarray(v / np.linalg.norm(v))
    changed = jnp.eye(size) - (1 - eigenvalue) * jnp.outer(v, v)
    assert deviation(root @ root.T, root @ changed @ root.T) > 0.2


@pytest.mark.parametrize("blocks", [Blocks((3, 4), (0,)), Blocks((12,)), Blocks((3, 4), (0, 1))])
def test_blocks_deviate_like_the_whole(blocks):
    matrices = jnp.stack([random_spd(k, blocks.size) for k in range(blocks.count)])
    factors = factorise(matrices, blocks)

    def product(v):
        return blocks.join(jnp.einsum("kij,kj->ki", 1.5 * matrices, blocks.split(v)))

    samples = factors.samples(SAMPLES)
    lengths = jnp.sqrt(jnp.sum(samples * jax.vmap(product)(samples), axis=1) / 1.5)
    # The matrix is 1.5 times that of the factors: of each w a half is left.
    assert_close(factors.deviation(jax.vmap(product)(samples)), 0.5 * jnp.max(lengths), 1e-10)
