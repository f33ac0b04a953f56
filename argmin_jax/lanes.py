"""Problems under vmap: solved chunk by chunk, so that a chunk's matrices stay in the caches.

A batched program takes all its lanes through every operation before the next one. On a CPU their
matrices then come from main memory every time, and all lanes go on until the slowest has ended. A
GPU wants all lanes at once.
"""

import math
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.extend.core as jex
import jax.numpy as jnp
from jax.core import Tracer
from jaxtyping import PyTree

# Of what its lanes are given and return, the factors included: half of a core's second cache. With
# eight times as much, nested loops wait for the slowest of more lanes: 64 pseudo-Huber regressions
# take twice as long by `NewtonCG`, and 128 programs of 100 unknowns half as long again.
CHUNK_BYTES = 2**19
CHUNK_LANES = 64  # which wait for the slowest: by 128, 1,024 of Rosenbrock's take a fifth longer


def by_chunks(fn: Callable[[PyTree], PyTree], problem: PyTree) -> PyTree:
    """``fn(problem)``; under `jax.vmap` on a CPU the lanes run in chunks, one after the other.

    ``fn`` is not differentiated, and returns arrays.
    """
    arrays, static = eqx.partition(problem, eqx.is_array)
    if not any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(arrays)):
        return fn(problem)
    traced, out = jax.make_jaxpr(lambda given: fn(eqx.combine(given, static)), return_shape=True)(
        arrays
    )

    def solve(given: tuple[list, PyTree]) -> PyTree:
        closed_over, arrays = given
        run = jex.jaxpr_as_fun(jex.ClosedJaxpr(traced.jaxpr, closed_over))
        return jax.tree.unflatten(jax.tree.structure(out), run(*jax.tree.leaves(arrays)))

    batched = jax.custom_batching.custom_vmap(solve)

    @batched.def_vmap
    def rule(lanes: int, are_batched: list[PyTree], given: PyTree):
        (is_batched,) = are_batched
        own, shared = eqx.partition(given, is_batched)

        def chunk(own):
            return jax.vmap(lambda each: solve(eqx.combine(each, shared)))(own)

        # Not asked of `chunk`, which would be traced once more.
        shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct((lanes, *x.shape), x.dtype), out)
        size = _chunk_size((own, shapes), lanes)
        found = chunk(own) if size == lanes else _mapped(chunk, own, shapes, lanes, size)
        return found, jax.tree.map(lambda _: True, found)

    # What a solver of the user's closes over may be traced, too.
    return batched((jax.lax.stop_gradient(traced.consts), arrays))


def _chunk_size(all_lanes: PyTree, lanes: int) -> int:
    """Of chunks that are as equal as can be."""
    if jax.default_backend() != "cpu" or lanes == 0:
        return lanes
    fitting = CHUNK_BYTES * lanes // _bytes(all_lanes)
    most = min(CHUNK_LANES, max(1, fitting))
    return math.ceil(lanes / math.ceil(lanes / most))


def _bytes(tree: PyTree) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def _mapped(chunk: Callable, own: PyTree, shapes: PyTree, lanes: int, size: int) -> Any:
    """``chunk`` over all lanes, with results of ``shapes``; the last chunk begins sooner where it
    has too few."""

    def step(index, found):
        start = jnp.minimum(index * size, lanes - size)

        def part(x):
            return jax.lax.dynamic_slice_in_dim(x, start, size)

        def put(whole, new):
            return jax.lax.dynamic_update_slice_in_dim(whole, new, start, 0)

        return jax.tree.map(put, found, chunk(jax.tree.map(part, own)))

    blank = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    return jax.lax.fori_loop(0, math.ceil(lanes / size), step, blank)
