"""Linear systems and signs from products alone, held against dense algebra."""

import itertools

import jax.numpy as jnp
import lineax as lx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from argmin_jax.matrix_free import sign, solve_matrix_free

from .problems import assert_close, random_spd


def semidefinite(matrix):
    return lx.MatrixLinearOperator(matrix, lx.positive_semidefinite_tag)


def with_eigenvalues(seed: int, values) -> jnp.ndarray:
    basis = np.linalg.qr(np.random.default_rng(seed).normal(size=(len(values), len(values))))[0]
    return jnp.asarray((basis * np.asarray(values)) @ basis.T)


# The same examples every time: one in a thousand is missed, as `sign` says.
@settings(max_examples=30, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 10**6),
    negative=st.floats(1e-6, 10.0),
    size=st.sampled_from([2, 9, 60]),
)
def test_one_negative_eigenvalue_among_many_is_found_however_small_it_is(seed, negative, size):
    values = np.linspace(0.5, 2.0, size)
    values[0] = -negative
    found = sign(semidefinite(with_eigenvalues(seed, values)))
    assert found.indefinite
    assert not found.definite
    # A Rayleigh quotient: no smaller than the smallest eigenvalue.
    assert -negative * (1 + 1e-9) <= found.bound < 0


@pytest.mark.parametrize("relative", [-1, 1])
def test_negative_curvature_along_two_unknowns_is_found_whichever_they_are(relative):
    """A vector of random signs has no part along half of these directions."""
    unit = np.eye(4)
    for i, j in itertools.combinations(range(4), 2):
        u = unit[i] + relative * unit[j]
        assert sign(semidefinite(jnp.asarray(unit - np.outer(u, u)))).indefinite  # 1 - |u|^2 = -1


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), size=st.sampled_from([1, 9, 60]), decades=st.floats(0, 4))
def test_a_definite_matrix_is_proved_to_be_so(seed, size, decades):
    matrix = random_spd(seed, size, 10**decades)
    found = sign(semidefinite(matrix))
    assert found.definite
    assert not found.indefinite
    smallest = jnp.linalg.eigvalsh(matrix)[0]
    assert smallest * (1 - 1e-9) <= found.bound
    assert found.bound <= 10 * smallest or decades > 2


@pytest.mark.parametrize("seed", range(5))
def test_a_singular_matrix_is_neither(seed):
    found = sign(semidefinite(with_eigenvalues(seed, [0.0, 0.0, *np.linspace(1, 2, 20)])))
    assert not found.definite
    assert not found.indefinite


def test_a_matrix_too_ill_conditioned_for_so_many_steps_is_neither():
    found = sign(semidefinite(jnp.diag(jnp.geomspace(1e-12, 1.0, 2000))))
    assert not found.definite
    assert not found.indefinite


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6), size=st.sampled_from([1, 9, 40]), decades=st.floats(0, 6))
def test_a_solution_that_is_said_to_be_one_is_right(seed, size, decades):
    matrix = random_spd(seed, size, 10**decades)
    b = jnp.asarray(np.random.default_rng(seed).normal(size=size))
    x, converged = solve_matrix_free(semidefinite(matrix), b)
    assert converged
    # Backward stable: eps times the condition number, of at most 1e6, and a margin for growth.
    assert_close(x, jnp.linalg.solve(matrix, b), 1e-8)


def test_a_system_without_a_solution_is_not_said_to_be_solved():
    singular = semidefinite(jnp.diag(jnp.array([1.0, 2.0, 0.0])))
    _, converged = solve_matrix_free(singular, jnp.ones(3))
    assert not converged


def test_a_matrix_that_is_not_symmetric_is_solved_by_gmres():
    matrix = random_spd(2, 12) + jnp.triu(jnp.ones((12, 12)), 1)
    x, converged = solve_matrix_free(lx.MatrixLinearOperator(matrix), jnp.ones(12))
    assert converged
    assert_close(x, jnp.linalg.solve(matrix, jnp.ones(12)), 1e-10)
