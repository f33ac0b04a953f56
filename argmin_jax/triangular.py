"""Inverses of triangular matrices, for batches: by blocks, with one call of LAPACK.

A batched product is many times faster on XLA's CPU client than a batched triangular solve, so a
factor that is used more than once is worth inverting (Higham, Accuracy and Stability of Numerical
Algorithms, 2002, section 14.2: of a triangle this is about as accurate as substitution).
"""

import math
from functools import partial

import jax.numpy as jnp
from jax.lax.linalg import triangular_solve
from jaxtyping import Array, Float

# A product in full precision, which GPUs give float32 only if asked.
times = partial(jnp.matmul, precision="highest")

BLOCK = 32  # LAPACK inverts triangles up to this size; beyond, products of blocks are faster


def inverse_of_lower(lower: Float[Array, "k k"]) -> Float[Array, "k k"]:
    """Of a lower triangle: the inverses of its diagonal blocks, and products.

    All blocks go into one call of LAPACK. It splits a batch among XLA's threads and waits for
    them: two calls at the same time would take both threads of two cores, and wait for ever.
    """
    k = lower.shape[0]
    if k == 0:
        return lower
    if k <= BLOCK:
        unit = jnp.eye(k, dtype=lower.dtype)
        return triangular_solve(lower, unit, left_side=True, lower=True)
    halvings = math.ceil(math.log2(k / BLOCK))
    b = -(-k // 2**halvings)
    size = b * 2**halvings
    padded = jnp.pad(lower, (0, size - k))

    def blocks(rows, columns):
        return jnp.stack([padded[i : i + b, j : j + b] for i, j in zip(rows, columns, strict=True)])

    at = range(0, size, b)
    unit = jnp.broadcast_to(jnp.eye(b, dtype=lower.dtype), (len(at), b, b))
    beyond = jnp.reshape(jnp.arange(size) >= k, (len(at), b, 1))  # ones on the diagonal there
    diagonal = blocks(at, at) + jnp.where(beyond, unit, 0)
    inverse = triangular_solve(diagonal, unit, left_side=True, lower=True)
    while b < size:
        first, last = inverse[0::2], inverse[1::2]
        below = blocks(range(b, size, 2 * b), range(0, size, 2 * b))
        below = -times(last, times(below, first))
        upper_half = jnp.concatenate([first, jnp.zeros_like(first)], axis=2)
        inverse = jnp.concatenate([upper_half, jnp.concatenate([below, last], axis=2)], axis=1)
        b *= 2
    return inverse[0, :k, :k]
