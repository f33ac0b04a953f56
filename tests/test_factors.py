"""Factors of the matrix of the KKT conditions, against NumPy's dense algebra."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from argmin_jax.factors import KKTMatrices, factorise_kkt

from .problems import compiled

N, ROWS = 6, 3
NONE = np.zeros(N, bool)


def parts(seed=0, active=(True, True, False), fixed=NONE, jacobian=None, hessian=None):
    rng = np.random.default_rng(seed)
    root = rng.normal(size=(N, N))
    return KKTMatrices(
        hessian=jnp.asarray(root @ root.T + np.eye(N) if hessian is None else hessian),
        stiffness=jnp.ones(()),
        jacobian=jnp.asarray(rng.normal(size=(ROWS, N)) if jacobian is None else jacobian),
        active=jnp.asarray(active),
        fixed=jnp.asarray(fixed),
        bounded=True,
    )


def dense(found: KKTMatrices) -> np.ndarray:
    """K: an inactive row says that its multiplier, negated, is the right-hand side."""
    a, f = np.diag(np.asarray(found.active, float)), np.diag(np.asarray(found.fixed, float))
    rows, i = a @ np.asarray(found.jacobian), np.eye
    zero = np.zeros
    return np.block(
        [
            [np.asarray(found.hessian), rows.T, f],
            [rows, a - i(ROWS), zero((ROWS, N))],
            [f, zero((N, ROWS)), f - i(N)],
        ]
    )


@pytest.mark.parametrize("fixed", [NONE, np.arange(N) == 2, np.arange(N) < 3])
def test_solution_is_that_of_the_whole_matrix(fixed):
    given = parts(fixed=fixed)
    b = np.random.default_rng(1).normal(size=2 * N + ROWS)
    found = factorise_kkt(given)
    np.testing.assert_allclose(found.solve(jnp.asarray(b)), np.linalg.solve(dense(given), b), 1e-9)
    assert found.rank_deficiency == 0
    assert not found.indefinite


def test_curvature_counts_only_on_the_null_space_of_the_active_rows():
    down = np.diag([-1.0, 1, 1, 1, 1, 1])
    along, across = np.eye(ROWS, N), np.eye(ROWS, N, k=2)
    assert not factorise_kkt(parts(hessian=down, jacobian=along)).indefinite
    found = factorise_kkt(parts(hessian=down, jacobian=across))
    assert found.indefinite
    np.testing.assert_allclose(found.curvature, -1, rtol=1e-12)


def test_repeated_rows_share_their_multiplier_and_are_counted():
    row = np.random.default_rng(2).normal(size=N)
    given = parts(jacobian=np.stack([row, row, row]))
    b = np.concatenate([np.ones(N), [0.3, 0.3], np.zeros(1 + N)])
    found = factorise_kkt(given)
    x = found.solve(jnp.asarray(b))
    assert found.rank_deficiency == 1
    np.testing.assert_allclose(dense(given) @ x, b, atol=1e-12)
    np.testing.assert_allclose(x[N], x[N + 1], rtol=1e-9)


def test_a_batch_may_mix_regular_and_singular_lanes():
    row = np.random.default_rng(2).normal(size=N)
    lanes = [parts(), parts(jacobian=np.stack([row, row, row]))]
    together = jax.vmap(factorise_kkt)(jax.tree.map(lambda *x: jnp.stack(x), *lanes))
    assert together.rank_deficiency.tolist() == [0, 1]
    b = jnp.asarray(np.random.default_rng(3).normal(size=2 * N + ROWS))
    for lane, given in enumerate(lanes):
        one = jax.tree.map(lambda x, lane=lane: x[lane], together).solve(b)
        np.testing.assert_allclose(one, factorise_kkt(given).solve(b), rtol=1e-9, atol=1e-11)


def test_the_expensive_decompositions_are_not_moved_out_of_the_loop_that_is_seldom_run():
    """XLA moves what is the same in every pass out of a loop, where it would always run."""
    lanes = jax.tree.map(lambda x: jnp.stack([x, x]), parts())
    program = compiled(jax.vmap(factorise_kkt), lanes)
    entry = program[program.index("\nENTRY") :]
    assert "potrf" in entry
    for decomposition in ("syevd", "gesdd"):
        assert decomposition in program
        assert decomposition not in entry


@pytest.mark.parametrize("size", [0, 1])
def test_more_rows_than_unknowns_depend_on_each_other_whatever_rounding_says(size):
    """Of such matrices without large condition numbers one in twenty passes by its pivots."""
    rng = np.random.default_rng(0)

    def rank_deficiency(jacobian):
        given = KKTMatrices(
            hessian=size * jnp.eye(N),
            stiffness=jnp.ones(()),
            jacobian=jacobian,
            active=jnp.ones(N + 1, bool),
            fixed=jnp.zeros(N, bool),
            bounded=False,
        )
        return factorise_kkt(given).rank_deficiency

    found = jax.jit(jax.vmap(rank_deficiency))(rng.normal(size=(200, N + 1, N)))
    assert np.all(np.asarray(found) >= 1)


def without_bounds(hessian, rows):
    n, r = len(hessian), len(rows)
    return KKTMatrices(
        hessian=jnp.asarray(hessian),
        stiffness=jnp.ones(()),
        jacobian=jnp.asarray(rows),
        active=jnp.ones(r, bool),
        fixed=jnp.zeros(n, bool),
        bounded=False,
    )


@pytest.mark.parametrize("curvature", [1e-6, 1e-15, 1e-30, 0.0])
def test_rows_that_share_an_unknown_of_hardly_any_curvature_are_independent(curvature):
    """In units in which that is one they would all be nearly that unknown alone. The condition
    number of K without the row that is given twice is 4."""
    rows = np.array([[1.0, 1, 0, 1], [0, 1, 1, -1], [1, 1, 0, 1]])
    hessian = np.diag([1.0, 2, 3, curvature])
    found = factorise_kkt(without_bounds(hessian, rows))
    b = np.array([0.3, -0.2, 0.5, 0.1, 1.0, 0.5, 1.0])
    bordered = np.block([[hessian, rows[:2].T], [rows[:2], np.zeros((2, 2))]])
    expected = np.linalg.solve(bordered, b[:6])[:4]
    np.testing.assert_allclose(found.solve(jnp.asarray(b))[:4], expected, atol=1e-14)
    assert found.rank_deficiency == 1


def test_noise_that_couples_unknowns_without_curvature_is_not_inverted():
    hessian = np.diag([1.0, 2, 0, 0])
    hessian[2, 3] = hessian[3, 2] = 1e-17
    found = factorise_kkt(without_bounds(hessian, np.array([[1.0, 1, 0, 0]])))
    assert found.rank_deficiency == 2
    solution = found.solve(jnp.array([0.0, 0.0, 1.0, 1.0, 0.0]))
    np.testing.assert_allclose(solution, np.zeros(5), atol=1e-15)


def test_unknowns_in_unequal_units_lose_nothing_beside_a_row_that_is_given_twice():
    rng = np.random.default_rng(0)
    root, row = rng.normal(size=(4, 4)), rng.normal(size=4)
    units = np.array([1e-5, 1.0, 1e5, 1e2])
    hessian = (root @ root.T + np.eye(4)) / units[:, None] / units
    rows = np.stack([row, row]) / units
    b = np.append(rng.normal(size=4) / units, [0.7, 0.7])
    found = factorise_kkt(without_bounds(hessian, rows))
    ones = np.block([[root @ root.T + np.eye(4), row[:, None]], [row[None], np.zeros((1, 1))]])
    expected = np.linalg.solve(ones, np.append(b[:4] * units, 0.7))[:4]
    np.testing.assert_allclose(found.solve(jnp.asarray(b))[:4] / units, expected, rtol=1e-11)
    assert found.rank_deficiency == 1
