"""Units for the unknowns: rows of one length, from products, and what a solver gains by them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from argmin_jax import LBFGS, NewtonCG, solve
from argmin_jax.equilibration import equilibrated_units

from .problems import assert_close

SIZE = 30


def correlation(seed: int) -> np.ndarray:
    """A positive definite matrix with ones on its diagonal."""
    rows = np.random.default_rng(seed).normal(size=(SIZE, 2 * SIZE))
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return rows @ rows.T


@jax.jit
def units_of(matrix):
    return equilibrated_units(lambda v: matrix @ v, jnp.ones(len(matrix), matrix.dtype))


def spread(matrix) -> float:
    lengths = np.linalg.norm(matrix, axis=1)
    return lengths.max() / lengths.min()


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**16), st.floats(0, 1.5))
def test_rows_of_a_badly_scaled_matrix_get_about_one_length(seed, decades):
    scales = 10 ** np.random.default_rng(seed).uniform(-decades, decades, SIZE)
    matrix = scales[:, None] * correlation(seed) * scales
    units = np.asarray(units_of(matrix))
    assert np.all(units > 0)
    np.testing.assert_allclose(np.mean(np.log(units)), 0, atol=1e-12)  # rounding alone
    # Each round halves the spread's logarithm, but for the noise of an estimate from four probes:
    # a factor of about two, seldom four, for each row. Rows that were of one length before are left
    # with that noise alone. (The worst of 3,000 are 4.5, and 27 without bad scaling.)
    noise = 8 if decades >= 0.5 else 64
    assert spread(units[:, None] * matrix * units) <= noise * max(1, spread(matrix)) ** 0.3


@pytest.mark.parametrize("entry", [0.0, np.nan, np.inf])
def test_a_matrix_that_tells_nothing_leaves_the_units_alone(entry):
    np.testing.assert_array_equal(units_of(np.full((4, 4), entry)), np.ones(4))


def test_a_row_of_zeros_gets_a_finite_unit():
    units = np.asarray(units_of(np.diag([1.0, 4.0, 0.0])))
    # Lengths 1, 4 and sqrt(eps) * 4 in the first round: exact, a diagonal having no noise.
    assert np.all(np.isfinite(units))
    assert_close(units[0] / units[1], 2.0, relative=1e-12)
    assert 1e2 < units[2] / units[1] < 1e8


def test_eight_products_are_all_that_it_costs():
    count = []

    def product(v):
        jax.debug.callback(lambda: count.append(1))
        return 2 * v

    jax.block_until_ready(jax.jit(lambda: equilibrated_units(product, jnp.ones(3)))())
    jax.effects_barrier()
    assert len(count) == 8


# A robust regression whose features come in different units.

RNG = np.random.default_rng(0)
FEATURES = RNG.normal(size=(200, 12))
TARGETS = FEATURES @ RNG.normal(size=12) + RNG.standard_t(2, size=200)


def robust(w, features, targets):
    residuals = features @ w - targets
    return jnp.sum(jnp.sqrt(1 + residuals**2) - 1) + 1e-3 * jnp.sum(w**2)


def steps_and_fit(solver, decades):
    scales = np.geomspace(1, 10**decades, 12)
    found = solve(robust, np.zeros(12), FEATURES * scales, TARGETS, solver=solver)
    return int(found.report.steps), found.y * scales


@pytest.mark.parametrize("solver", [LBFGS(), NewtonCG()], ids=["LBFGS", "NewtonCG"])
def test_units_of_the_features_hardly_show_in_the_number_of_steps(solver):
    alike, reference = steps_and_fit(solver, 0)
    mixed, found = steps_and_fit(solver, 2.5)
    # The penalty, which does not scale with the features, moves the fit by about 1e-5.
    np.testing.assert_allclose(found, reference, atol=1e-4)
    # Twelve steps go by before the units are looked at.
    assert mixed <= alike + 30


def test_without_units_they_do():
    scaled = FEATURES * np.geomspace(1, 10**2.5, 12)

    def fn(w):
        return robust(w, scaled, TARGETS)

    slope = float(jnp.max(jnp.abs(jax.grad(fn)(jnp.zeros(12)))))
    _, steps = jax.jit(lambda: LBFGS().run(fn, jnp.zeros(12), 1e-4 * slope, 1000))()
    assert int(steps) > 60
