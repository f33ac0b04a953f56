"""Inverses of triangular matrices by blocks, against NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from argmin_jax.triangular import inverse_of_lower


@pytest.mark.parametrize("size", [0, 1, 31, 33, 70])  # one block, two of unequal size, four
def test_inverse_times_the_triangle_is_the_identity_in_every_lane(size):
    root = np.random.default_rng(size).normal(size=(3, size, size))
    lower = np.linalg.cholesky(root @ root.swapaxes(1, 2) + np.eye(size) * max(size, 1))
    inverse = jax.vmap(inverse_of_lower)(jnp.asarray(lower))
    # The condition number is about 10.
    np.testing.assert_allclose(
        inverse @ lower, np.broadcast_to(np.eye(size), lower.shape), rtol=0, atol=1e-13
    )
    assert not np.any(np.triu(inverse, 1))
