"""Conjugate gradients, and what the curvature that they meet tells."""

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from argmin_jax.conjugate_gradients import conjugate_gradients

from .problems import assert_close, random_spd

EXACT = jnp.array(1e-28)  # a squared residual at rounding level


def of(matrix):
    return lambda v: matrix @ v


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6), size=st.sampled_from([1, 5, 12]), decades=st.floats(0, 3))
def test_a_definite_system_is_solved_and_its_pivots_lie_between_the_eigenvalues(
    seed, size, decades
):
    matrix = random_spd(seed, size, 10**decades)
    b = jnp.asarray(np.random.default_rng(seed).normal(size=size))
    end = conjugate_gradients(of(matrix), b, EXACT, 10 * size)
    assert end.inside
    # The residual, 1e-14, is multiplied by the inverse's norm.
    assert_close(end.x, jnp.linalg.solve(matrix, b), 1e-10)
    np.testing.assert_allclose(end.residual, b - matrix @ end.x, rtol=0, atol=1e-10)
    values = jnp.linalg.eigvalsh(matrix)
    smallest, largest = end.pivots
    assert values[0] * (1 - 1e-9) <= smallest <= largest <= values[-1] * (1 + 1e-9)


def test_negative_curvature_ends_it_at_the_last_point_with_the_direction_that_has_it():
    matrix = jnp.diag(jnp.array([1.0, 2.0, -1.0]))
    end = conjugate_gradients(of(matrix), jnp.array([1.0, 1.0, 0.5]), EXACT, 10)
    assert not end.inside
    assert end.curvature < 0
    assert_close(end.direction @ matrix @ end.direction, end.curvature, 1e-12)
    assert_close(end.residual, jnp.array([1.0, 1.0, 0.5]) - matrix @ end.x, 1e-12)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6), decades=st.floats(0, 6), share=st.floats(0.01, 0.99))
def test_it_ends_at_the_last_point_within_the_radius(seed, decades, share):
    matrix, b = random_spd(seed, 6, 10**decades), jnp.ones(6)
    radius = share * jnp.linalg.norm(jnp.linalg.solve(matrix, b))
    end = conjugate_gradients(of(matrix), b, EXACT, 20, radius)
    assert not end.inside
    assert end.curvature > 0
    # Where x will lie is known from recurrences, to the digits that conjugacy keeps.
    assert jnp.linalg.norm(end.x) < radius * (1 + 1e-9)
    beyond = end.x + end.square / end.curvature * end.direction
    assert jnp.linalg.norm(beyond) > radius * (1 - 1e-9)


def test_an_image_that_overflows_leaves_the_point_as_it_was():
    matrix = jnp.array([1.0, 2.0, 3.0])

    def product(v):  # finite at first, and no longer from the second direction on
        return jnp.where(v[0] == 1, 1.0, jnp.inf) * matrix * v

    end = conjugate_gradients(product, jnp.ones(3), EXACT, 10)
    assert not end.inside and end.count == 1
    assert jnp.all(jnp.isfinite(end.x)) and jnp.all(jnp.isfinite(end.residual))


def test_a_matrix_that_is_not_finite_ends_it_where_it_began():
    end = conjugate_gradients(lambda v: v * jnp.nan, jnp.ones(3), EXACT, 10)
    assert not end.inside
    np.testing.assert_array_equal(end.x, 0)


def test_nothing_is_done_for_a_right_hand_side_of_zero():
    end = conjugate_gradients(of(random_spd(0, 4)), jnp.zeros(4), jnp.array(0.0), 10)
    assert end.count == 0
    np.testing.assert_array_equal(end.x, 0)


def test_a_lane_that_is_done_waits_unchanged_for_the_others():
    matrices = jnp.stack([jnp.eye(5), random_spd(1, 5, 1e3)])

    def solve(matrix):
        return conjugate_gradients(of(matrix), jnp.ones(5), EXACT, 50)

    together, alone = jax.vmap(solve)(matrices), [solve(matrix) for matrix in matrices]
    for k in range(2):
        # Products of a batch are rounded differently: that may cost the longer run an iteration.
        assert abs(int(together.count[k]) - int(alone[k].count)) <= k
        assert_close(together.x[k], alone[k].x, 1e-12)
