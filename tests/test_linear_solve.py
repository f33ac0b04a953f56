"""`solve_ls`, `SVD` and `Auto` against NumPy's dense algebra and central differences."""

import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import make_regression

from argmin_jax import SVD, Auto, solve_ls
from argmin_jax.linear_solve import AutoState, can_do_without
from argmin_jax.structure import Blocks

from .problems import assert_close, central_difference, random_spd

SOLVERS = {"SVD": SVD(rtol=1e-14, atol=0.0), "Auto": Auto()}


def random_matrix(seed: int, m: int, n: int, rank: int) -> np.ndarray:
    """Of the given rank, with singular values between 1 and 2."""
    rng = np.random.default_rng(seed)
    u, _ = np.linalg.qr(rng.normal(size=(m, m)))
    v, _ = np.linalg.qr(rng.normal(size=(n, n)))
    return (u[:, :rank] * rng.uniform(1, 2, rank)) @ v[:, :rank].T


def symmetric(seed: int, eigenvalues) -> np.ndarray:
    n = len(eigenvalues)
    q, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(n, n)))
    return (q * np.asarray(eigenvalues)) @ q.T


def solve(matrix, b, solver):
    """x and whether the solver claims success, with the matrix as a Lineax operator."""
    operator = lx.MatrixLinearOperator(jnp.asarray(matrix), lx.positive_semidefinite_tag)
    solution = lx.linear_solve(operator, jnp.asarray(b), solver, throw=False)
    return solution.value, solution.result == lx.RESULTS.successful


def test_solve_ls_finds_the_weights_of_the_references_regression():
    x, t, weights = make_regression(1000, 20, coef=True, random_state=42, bias=10, noise=1)
    x = (x - x.mean(0)) / x.std(0)
    np.testing.assert_allclose(solve_ls(x, t), weights, rtol=0.1, atol=0.1)


@settings(max_examples=12, deadline=None)
@given(
    shape=st.sampled_from([(1, 1), (4, 4), (7, 3), (3, 7)]),
    rank=st.integers(0, 4),
    seed=st.integers(0, 2**32 - 1),
)
def test_solve_ls_is_the_minimum_norm_least_squares_solution_of_any_shape_and_rank(
    shape, rank, seed
):
    matrix = random_matrix(seed, *shape, min(rank, *shape))
    b = np.random.default_rng(seed).normal(size=shape[0])
    expected = np.linalg.lstsq(matrix, b, rcond=1e-6)[0]
    np.testing.assert_allclose(solve_ls(matrix, b), expected, rtol=0, atol=1e-12)


def test_solve_ls_solves_several_right_hand_sides_at_once():
    matrix, b = random_matrix(0, 7, 3, 2), np.random.default_rng(0).normal(size=(7, 4))
    found = solve_ls(matrix, b)
    assert_close(found, jnp.asarray(np.linalg.lstsq(matrix, b, rcond=1e-6)[0]), 1e-13)
    assert_close(found[:, 2], solve_ls(matrix, b[:, 2]), 1e-13)


@pytest.mark.parametrize(
    ("clips", "kept"),
    [
        ({}, [1, 1, 0, 0]),  # 1e-6 is dropped, being up to the clip
        ({"rtol": 1e-3, "atol": 0.0}, [1, 0, 0, 0]),
        ({"rtol": 0.0, "atol": 1e-7}, [1, 1, 1, 0]),
        ({"rtol": 0.0, "atol": 0.0}, [1, 1, 1, 1]),
        ({"rtol": 0.0, "atol": 2.0}, [0, 0, 0, 0]),
    ],
)
def test_singular_values_up_to_the_larger_clip_are_dropped(clips, kept):
    values = np.array([1.0, 1e-3, 1e-6, 1e-9])
    found = solve_ls(np.diag(values), np.ones(4), **clips)
    np.testing.assert_allclose(found, kept / values, rtol=1e-12)
    by_solver, _ = solve(np.diag(values), np.ones(4), SVD(**clips))
    np.testing.assert_allclose(by_solver, kept / values, rtol=1e-12)


def test_relative_clip_follows_the_largest_singular_value():
    values = np.array([1e6, 0.5])
    np.testing.assert_allclose(solve_ls(np.diag(values), np.ones(2)), [1e-6, 0.0], rtol=1e-12)


def test_solve_ls_has_the_derivatives_of_the_least_squares_solution():
    rng = np.random.default_rng(1)
    weights = jnp.asarray(rng.normal(size=4))
    # At full rank, where the least-squares solution is differentiable.
    matrix, b = jnp.asarray(random_matrix(1, 6, 4, 4)), jnp.asarray(rng.normal(size=6))
    gradients = jax.grad(lambda a, b: weights @ solve_ls(a, b), argnums=(0, 1))(matrix, b)
    assert_close(gradients[1], jnp.linalg.pinv(matrix).T @ weights, 1e-12)
    direction = jnp.asarray(rng.normal(size=(6, 4)))
    expected = central_difference(lambda a: weights @ jnp.linalg.lstsq(a, b)[0], matrix, direction)
    assert_close(jnp.vdot(gradients[0], direction), expected, 1e-7)


BAD_SYSTEMS = {
    "vector for a matrix": (np.ones(3), np.ones(3), {}, r"A of shape \(m, n\).*found A \(3,\)"),
    "rows that do not fit": (np.ones((3, 2)), np.ones(2), {}, r"found A \(3, 2\), b \(2,\)"),
    "cube on the right": (np.ones((3, 2)), np.ones((3, 1, 1)), {}, r"b \(3, 1, 1\)"),
    "scalar on the right": (np.ones((3, 2)), np.ones(()), {}, r"b \(\)"),
    "negative rtol": (np.eye(2), np.ones(2), {"rtol": -1e-6}, "rtol must not be negative"),
    "negative atol": (np.eye(2), np.ones(2), {"atol": -1e-6}, "atol must not be negative"),
    "NaN clip": (np.eye(2), np.ones(2), {"atol": float("nan")}, "atol .* found nan"),
}


@pytest.mark.parametrize("case", BAD_SYSTEMS.values(), ids=BAD_SYSTEMS.keys())
def test_solve_ls_refuses_what_does_not_fit(case):
    matrix, b, clips, message = case
    with pytest.raises(ValueError, match=message):
        solve_ls(matrix, b, **clips)


@pytest.mark.parametrize("name", ["rtol", "atol"])
def test_svd_refuses_a_negative_clip(name):
    with pytest.raises(ValueError, match=f"{name} must not be negative; found -1"):
        SVD(**{name: -1.0})


MATRICES = {
    "definite": (symmetric(0, np.geomspace(1, 10, 6)), 1e-13),
    "definite, ill-conditioned": (symmetric(1, np.geomspace(1, 1e10, 6)), 1e-5),  # eps 1e10
    "semidefinite": (symmetric(2, [0, 0, 1, 2, 3, 4]), 1e-13),
    "indefinite": (symmetric(3, [-3, -1, 1, 2, 3, 4]), 1e-13),
    "indefinite and singular": (symmetric(4, [-3, 0, 1, 2, 3, 4]), 1e-13),
    "zero": (np.zeros((6, 6)), 0.0),
}


@pytest.mark.parametrize("solver", SOLVERS.values(), ids=SOLVERS.keys())
@pytest.mark.parametrize("case", MATRICES.values(), ids=MATRICES.keys())
def test_consistent_and_inconsistent_systems_have_the_minimum_norm_solution(case, solver):
    matrix, tolerance = case
    any_b = np.random.default_rng(5).normal(size=6)
    inverse = np.linalg.pinv(matrix, rcond=1e-12, hermitian=True)
    for b in (matrix @ any_b, any_b):
        x, solved = solve(matrix, b, solver)
        assert_close(x, jnp.asarray(inverse @ b), tolerance)
        assert solved


def test_dense_solves_are_differentiable_to_the_derivative_of_the_inverse():
    matrix, rng = random_spd(6, 6), np.random.default_rng(6)
    b, weights, direction = (jnp.asarray(rng.normal(size=s)) for s in (6, 6, (6, 6)))
    direction = direction + direction.T  # the solver sees symmetric matrices alone
    inverse = jnp.linalg.inv(matrix)
    expected = -weights @ inverse @ direction @ inverse @ b
    for solver in SOLVERS.values():
        gradient = jax.grad(lambda m, s=solver: weights @ solve(m, b, s)[0])(matrix)
        assert_close(jnp.vdot(gradient, direction), expected, 1e-12)


def test_conjugate_gradients_beyond_the_dense_limit_solve_without_the_matrix():
    matrix, b = random_spd(7, 30, 100.0), np.random.default_rng(7).normal(size=30)

    class OnlyProducts(lx.MatrixLinearOperator):
        def as_matrix(self):
            raise AssertionError("the matrix was formed")

    operator = OnlyProducts(matrix, lx.positive_semidefinite_tag)
    products = Auto(dense_limit=29)
    state = products.init(operator, {})
    x, result, _ = products.compute(state, jnp.asarray(b), {})
    assert_close(x, jnp.linalg.solve(matrix, b), 1e-9)
    assert result == lx.RESULTS.successful
    spectrum = products.spectrum(state)
    # Conjugate gradients converged on a random vector, which proves it definite, and brought one of
    # the Rayleigh quotients near the smallest eigenvalue of those from 1 to 100.
    assert int(spectrum.rank_deficiency) == 0
    assert 1 - 1e-9 <= spectrum.curvature < 3
    formed = Auto(dense_limit=30)
    by_factors = formed.init(lx.MatrixLinearOperator(matrix, lx.positive_semidefinite_tag), {})
    assert int(formed.spectrum(by_factors).rank_deficiency) == 0


@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e12])
def test_conjugate_gradients_do_not_depend_on_the_scale_of_the_right_hand_side(scale):
    matrix, b = random_spd(8, 20), scale * np.random.default_rng(8).normal(size=20)
    x, solved = solve(matrix, b, Auto(dense_limit=1))
    assert_close(x, jnp.linalg.solve(matrix, b), 1e-9)
    assert solved


def test_conjugate_gradients_report_what_they_cannot_solve():
    b = np.random.default_rng(9).normal(size=40)
    hopeless = symmetric(9, np.geomspace(1, 1e14, 40))
    inconsistent = symmetric(9, [0.0] * 3 + [1.0] * 37)
    for matrix in (hopeless, inconsistent):
        x, solved = solve(matrix, b, Auto(dense_limit=1))
        residual = np.max(np.abs(matrix @ x - b)) / np.max(np.abs(b))
        assert not solved
        assert not residual <= 1e-8


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_factors_of_a_nearby_matrix_are_refined_though_the_units_hide_the_contraction(seed):
    """K' = D (1 + E) D and K = D^2, with units D from 1e-2 to 1e2 and |E| = 0.3: in the norm of K a
    correction is a third of the one before, in the Euclidean norm it may be longer."""
    rng = np.random.default_rng(seed)
    size = 6
    change = rng.normal(size=(size, size))
    change = change + change.T
    change *= 0.3 / np.linalg.norm(change, 2)
    units = np.geomspace(1e-2, 1e2, size)
    nearby = jnp.asarray(np.diag(units**2))
    matrix = jnp.asarray(units[:, None] * (np.eye(size) + change) * units)
    b = jnp.asarray(rng.normal(size=size))
    solver = Auto()
    factors = solver.init(lx.MatrixLinearOperator(nearby, lx.positive_semidefinite_tag), {}).factors
    operator = lx.MatrixLinearOperator(matrix, lx.positive_semidefinite_tag)
    x, result, _ = solver.compute(AutoState(operator, factors), b, {})
    assert result == lx.RESULTS.successful
    # The error is measured in the units of each unknown.
    assert_close(x * units, jnp.linalg.solve(matrix, b) * units, 1e-8)


def test_zero_right_hand_side_has_the_solution_zero():
    for solver in (*SOLVERS.values(), Auto(dense_limit=1)):
        x, solved = solve(random_spd(10, 5), np.zeros(5), solver)
        assert_close(x, jnp.zeros(5), 0.0)
        assert solved


SPECTRA = {
    "definite": (np.geomspace(1, 10, 6), 0, False),
    "definite, ill-conditioned": (np.geomspace(1, 1e10, 6), 0, False),
    "two null directions": ([0, 0, 1, 2, 3, 4], 2, False),
    "one negative eigenvalue": ([-1e-3, 1, 1, 2, 3, 4], 0, True),
    "negative and null": ([-1, 0, 1, 2, 3, 4], 1, True),
    "negative definite": ([-6, -5, -4, -3, -2, -1], 0, True),
    "zero": ([0] * 6, 6, False),
}


@pytest.mark.parametrize("solver", SOLVERS.values(), ids=SOLVERS.keys())
@pytest.mark.parametrize("case", SPECTRA.values(), ids=SPECTRA.keys())
def test_spectrum_tells_rank_and_sign(case, solver):
    eigenvalues, rank_deficiency, indefinite = case
    operator = lx.MatrixLinearOperator(
        jnp.asarray(symmetric(11, eigenvalues)), lx.positive_semidefinite_tag
    )
    spectrum = solver.spectrum(solver.init(operator, {}))
    assert (int(spectrum.rank_deficiency), bool(spectrum.indefinite)) == (
        rank_deficiency,
        indefinite,
    )


def test_default_clip_of_svd_shows_in_the_rank():
    operator = lx.MatrixLinearOperator(jnp.diag(jnp.array([1.0, 1e-7])))
    assert int(SVD().spectrum(SVD().init(operator, {})).rank_deficiency) == 1


@pytest.mark.parametrize("solver", SOLVERS.values(), ids=SOLVERS.keys())
def test_batch_may_mix_definite_singular_and_indefinite_lanes(solver):
    names = ("definite", "semidefinite", "indefinite", "definite, ill-conditioned")
    matrices = np.stack([MATRICES[name][0] for name in names])
    b = np.random.default_rng(12).normal(size=(4, 6))
    found, solved = jax.jit(jax.vmap(lambda m, b: solve(m, b, solver)))(matrices, b)
    for lane, name in enumerate(names):
        inverse = np.linalg.pinv(matrices[lane], rcond=1e-12, hermitian=True)
        assert_close(found[lane], jnp.asarray(inverse @ b[lane]), MATRICES[name][1])
    assert solved.all()


@pytest.mark.parametrize("solver", SOLVERS.values(), ids=SOLVERS.keys())
def test_float32_matrices_stay_float32(solver):
    matrix = random_spd(13, 6).astype(jnp.float32)
    x, solved = solve(matrix, jnp.ones(6, jnp.float32), solver)
    assert x.dtype == jnp.float32
    assert solved
    assert_close(x, jnp.linalg.solve(matrix, jnp.ones(6, jnp.float32)), 1e-5)


def test_what_few_products_find_is_formed_at_once():
    """Five alike blocks of 200 take 40 products; not known to be alike, they take 200."""
    assert can_do_without(Auto(), Blocks((5, 200), (0,))) == (jax.default_backend() == "cpu")
    assert not can_do_without(Auto(), Blocks((5, 200), (0,), alike=True))
    assert Auto().forms(Blocks((10**6, 20), (0,), alike=True))
    assert not Auto().forms(Blocks((10**6, 20), (0,)))


@pytest.mark.parametrize("limit", [1000, 0], ids=["dense", "matrix-free"])
@pytest.mark.parametrize("size, of_b", [(1e20, 1.0), (1e12, 1e-8)])
def test_solutions_whose_squares_are_no_numbers_any_more_are_solutions(size, of_b, limit):
    """In float32, where squares of less than 1e-19 vanish."""
    matrix = (size * random_spd(3, 5)).astype(np.float32)
    b = (of_b * np.random.default_rng(4).normal(size=5)).astype(np.float32)
    x, solved = solve(matrix, b, Auto(dense_limit=limit))
    assert solved
    expected = np.linalg.solve(matrix.astype(float), b.astype(float))
    # The condition number times the rounding of float32.
    assert_close(x.astype(float), jnp.asarray(expected), 1e-5)
