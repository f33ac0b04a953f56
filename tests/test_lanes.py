"""Solves under vmap in chunks: lane by lane the same, however the lanes are divided."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from argmin_jax import Status, argmin, lanes, solve
from argmin_jax.lanes import by_chunks

LANES = 7
DATA = np.random.default_rng(0).normal(size=(LANES, 4))
SHARED = np.random.default_rng(1).normal(size=(3, 4))


def objective(y, shift, matrix):
    return jnp.sum(jnp.cosh(y - shift)) + jnp.sum((matrix @ y) ** 2)


def solution(shift, matrix):
    return argmin(objective, jnp.zeros(4), shift, matrix)


def size_of_chunks(monkeypatch, count):
    """At most ``count`` lanes in a chunk, whatever they take."""
    monkeypatch.setattr(lanes, "_bytes", lambda tree: lanes.CHUNK_BYTES * LANES // count)
    jax.clear_caches()


@pytest.mark.parametrize("count", [1, 3, LANES])
def test_values_and_gradients_are_those_of_single_solves(monkeypatch, count):
    """To rounding: batched products add up in another order."""
    size_of_chunks(monkeypatch, count)

    def loss(shift, matrix):
        return jnp.sum(solution(shift, matrix) ** 3)

    batched = jax.jit(jax.vmap(jax.value_and_grad(loss, argnums=(0, 1)), in_axes=(0, None)))
    single = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))
    found = batched(DATA, SHARED)
    for lane, shift in enumerate(DATA):
        jax.tree.map(
            lambda a, b, lane=lane: np.testing.assert_allclose(a[lane], b, rtol=1e-10, atol=1e-12),
            found,
            single(shift, SHARED),
        )


def test_each_lane_has_its_own_report(monkeypatch):
    size_of_chunks(monkeypatch, 2)

    def status(shift):
        return solve(objective, jnp.zeros(4), shift, SHARED, on_failure="ignore").report.status

    found = jax.vmap(status)(jnp.asarray(DATA).at[4].set(jnp.nan))
    np.testing.assert_array_equal(found == Status.CONVERGED, np.arange(LANES) != 4)


def test_nested_batches_are_those_of_one_batch(monkeypatch):
    size_of_chunks(monkeypatch, 2)
    inner = jax.vmap(solution, in_axes=(0, None))
    matrices = jnp.stack([SHARED, 2 * SHARED])
    nested = jax.jit(jax.vmap(inner, in_axes=(None, 0)))(DATA, matrices)
    for matrix, found in zip(matrices, nested, strict=True):
        np.testing.assert_allclose(found, inner(DATA, matrix), rtol=1e-10, atol=1e-12)


def test_a_solver_may_close_over_what_differs_between_lanes(monkeypatch):
    size_of_chunks(monkeypatch, 3)

    def loss(shift):
        found = argmin(
            lambda y, s: jnp.sum((y - s) ** 2),
            jnp.zeros(4),
            shift,
            solver=lambda objective, y0, s: shift + 0 * jnp.arange(4),
        )
        return jnp.sum(found**2)

    np.testing.assert_allclose(jax.jit(jax.vmap(jax.grad(loss)))(DATA), 2 * DATA, rtol=1e-12)


def batches_seen(lanes: int, size: int) -> set[str]:
    """The shapes of sines of ``size`` numbers, solved for in so many lanes."""
    program = jax.make_jaxpr(jax.vmap(lambda x: by_chunks(jnp.sin, x)))(jnp.zeros((lanes, size)))
    return set(re.findall(r"f64(\[[0-9,]*\]) = sin", str(program)))


def test_lanes_are_divided_by_what_they_take():
    """Ten thousand floats given and as many returned: 160 kB a lane."""
    most = lanes.CHUNK_BYTES // 160_000
    assert batches_seen(most, 10_000) == {f"[{most},10000]"}
    assert batches_seen(2 * most, 10_000) == {f"[{most},10000]"}


def test_no_lane_waits_for_more_than_so_many_however_small_they_are():
    most = lanes.CHUNK_LANES
    assert batches_seen(most, 1) == {f"[{most},1]"}
    assert batches_seen(8 * most, 1) == {f"[{most},1]"}


@pytest.mark.parametrize("count", [3, LANES])
def test_a_batch_is_traced_once_however_it_is_divided(monkeypatch, count):
    """Tracing a batch of quadratic programs takes a second, which nobody waits for twice."""
    size_of_chunks(monkeypatch, count)
    traces = []
    as_fun = lanes.jex.jaxpr_as_fun

    def counted(program):
        traces.append(program)
        return as_fun(program)

    monkeypatch.setattr(lanes.jex, "jaxpr_as_fun", counted)
    jax.make_jaxpr(jax.vmap(lambda x: by_chunks(jnp.sin, x)))(jnp.zeros((LANES, 2)))
    batched = [trace for trace in traces if trace.jaxpr.invars[0].aval.shape == (2,)]
    assert len(batched) == 2  # once as it is, which is what JAX batches, and once in lanes


def test_accelerators_get_all_lanes_at_once(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert batches_seen(1_000, 1_000) == {"[1000,1000]"}


def test_a_batch_of_no_lanes_has_results_of_none():
    y, slopes = jax.vmap(jax.value_and_grad(lambda p: jnp.sum(solution(p, SHARED))))(DATA[:0])
    assert (y.shape, slopes.shape) == ((0,), (0, 4))
