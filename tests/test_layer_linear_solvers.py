"""The option ``linear_solver`` of the layer: any of Lineax's, ours, and what they cannot solve."""

import math
import re
from fractions import Fraction

import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import pytest

from argmin_jax import LBFGS, ArgminError, Auto, NewtonCG, argmin

from .problems import assert_close, compiled, implicit_jacobian, quadratic, random_spd

LINEAR_SOLVERS = {
    "AutoLinearSolver": lx.AutoLinearSolver(well_posed=True),
    "Cholesky": lx.Cholesky(),
    "LU": lx.LU(),
    "QR": lx.QR(),
    "SVD": lx.SVD(),
    "CG": lx.CG(rtol=1e-12, atol=1e-12),
    "Normal CG": lx.Normal(lx.CG(rtol=1e-12, atol=1e-12)),
    "GMRES": lx.GMRES(rtol=1e-12, atol=1e-12),
    "BiCGStab": lx.BiCGStab(rtol=1e-12, atol=1e-12),
}


@pytest.mark.parametrize("linear_solver", LINEAR_SOLVERS.values(), ids=LINEAR_SOLVERS.keys())
def test_every_linear_solver_of_lineax_gives_the_same_gradient(linear_solver):
    matrix, b, cotangent = random_spd(8, 6), jnp.ones(6), jnp.arange(1.0, 7.0)

    def loss(b):
        y = argmin(quadratic, jnp.zeros(6), matrix, b, linear_solver=linear_solver)
        return cotangent @ y

    assert_close(jax.grad(loss)(b), jnp.linalg.solve(matrix, cotangent), 1e-9)


@pytest.mark.parametrize("spectrum", ["spread evenly", "two clusters"])
def test_condition_number_of_1e10_without_the_matrix_is_right_or_reported(spectrum):
    n = 40
    even = random_spd(9, n, 1e10)
    values, basis = jnp.linalg.eigh(even)
    clustered = (basis * jnp.where(values < 1e5, 1.0, 1e10)[None]) @ basis.T
    matrix = even if spectrum == "spread evenly" else clustered
    weights, b = jnp.ones(n), matrix @ jnp.ones(n)

    def gradient(policy):
        options = {"linear_solver": Auto(dense_limit=1), "on_failure": policy}
        return jax.grad(lambda b: weights @ argmin(quadratic, jnp.ones(n), matrix, b, **options))(b)

    found = gradient("nan")
    if np.isnan(found).all():
        with pytest.raises(ArgminError, match="LINEAR_SOLVE_FAILED"):
            gradient("raise")
    else:
        # A backward stable solve is right to eps times 1e10.
        assert_close(found, jnp.linalg.solve(matrix, weights), 1e-4)


def test_condition_number_of_1e10_gives_a_right_gradient():
    matrix, b = random_spd(5, 20, 1e10), jnp.ones(20)
    gradient = jax.grad(lambda b: jnp.sum(argmin(quadratic, jnp.zeros(20), matrix, b)))(b)
    assert_close(gradient, jnp.linalg.solve(matrix, jnp.ones(20)), 1e-5)  # eps * 1e10


def exact_solution(matrix, b) -> np.ndarray:
    """By Gaussian elimination in rational numbers, without any rounding."""
    rows = [[Fraction(float(entry)) for entry in row] for row in np.column_stack([matrix, b])]
    for i, pivot in enumerate(rows):
        rows[i] = pivot = [entry / pivot[i] for entry in pivot]
        for j, row in enumerate(rows):
            if j != i:
                rows[j] = [a - row[i] * b for a, b in zip(row, pivot, strict=True)]
    return np.array([float(row[-1]) for row in rows])


def hilbert(n: int) -> np.ndarray:
    return 1 / (1.0 + np.arange(n)[:, None] + np.arange(n)[None])


def nearly_flat(exponent: float, n: int = 6) -> np.ndarray:
    """All eigenvalues are 1 but one, 10**-exponent."""
    q, _ = np.linalg.qr(np.random.default_rng(3).normal(size=(n, n)))
    matrix = (q * np.array([10.0**-exponent] + [1.0] * (n - 1))) @ q.T
    return (matrix + matrix.T) / 2


@pytest.mark.parametrize("dense_limit", [0, 1000], ids=["matrix-free", "dense"])
@pytest.mark.parametrize(
    ("matrices", "right"),
    [
        # Condition numbers 5e8, 5e11, 2e13; and 10 to the exponents.
        ([hilbert(n) for n in (7, 9, 10)], 1),
        ([nearly_flat(exponent) for exponent in (8, 10, 11.5, 12)], 2),
    ],
    ids=["Hilbert", "nearly flat"],
)
def test_a_gradient_that_rounding_spoils_is_refused(matrices, right, dense_limit):
    options = {"linear_solver": Auto(dense_limit=dense_limit), "on_failure": "nan"}
    errors = []
    for matrix in matrices:
        ones, hessian = np.ones(len(matrix)), jnp.asarray(matrix)

        def loss(b, ones=ones, hessian=hessian):
            return ones @ argmin(quadratic, jnp.zeros_like(b), hessian, b, **options)

        found, expected = jax.grad(loss)(hessian @ ones), exact_solution(matrix, ones)
        errors.append(np.linalg.norm(found - expected) / np.linalg.norm(expected))
    assert np.all(np.isfinite(errors[:right]))
    # It is to have six digits, by an estimate that is a sample of the rounding: a margin of ten.
    assert np.all(np.isnan(errors) | (np.array(errors) <= 1e-5)), errors
    assert np.isnan(errors[-1])


FORMED: list[int] = []


class Counting(Auto):
    """Auto that counts the matrices that are formed when a program runs."""

    def init(self, operator, options):
        jax.debug.callback(lambda: FORMED.append(1))
        return super().init(operator, options)


@pytest.fixture
def formed():
    FORMED.clear()
    return FORMED


def test_jacobian_of_the_minimiser_costs_one_factorisation(formed):
    matrix, b = random_spd(7, 8), jnp.ones(8)

    def minimiser(b):
        return argmin(quadratic, jnp.zeros(8), matrix, b, linear_solver=Counting())

    assert_close(jax.jacrev(minimiser)(b), jnp.linalg.inv(matrix), 1e-10)
    jax.effects_barrier()
    assert len(formed) == 1


# From 129 unknowns on, argmin tries conjugate gradients first.

MANY = 150


def gradient_of_sum(matrix, b, **options):
    def loss(b):
        return jnp.sum(argmin(quadratic, jnp.zeros(len(b)), matrix, b, **options))

    found = jax.grad(loss)(b)
    jax.effects_barrier()
    return found


def test_many_unknowns_need_no_matrix_where_conjugate_gradients_converge(formed):
    matrix, b = random_spd(11, MANY), jnp.arange(MANY, dtype=float)
    gradient = gradient_of_sum(matrix, b, linear_solver=Counting())
    assert_close(gradient, jnp.linalg.solve(matrix, jnp.ones(MANY)), 1e-12)
    assert formed == []


def test_many_unknowns_of_condition_number_1e10_get_the_matrix_and_a_right_gradient(formed):
    matrix, b = random_spd(12, MANY, 1e10), jnp.ones(MANY)
    gradient = gradient_of_sum(matrix, b, linear_solver=Counting())
    assert_close(gradient, jnp.linalg.solve(matrix, jnp.ones(MANY)), 1e-5)  # eps * 1e10
    assert formed


@pytest.mark.parametrize("jacobian", [jax.jacrev, jax.jacfwd])
def test_many_unknowns_with_flat_directions_have_the_derivative_of_smallest_norm(jacobian):
    """Least squares of 100 equations for 150 unknowns: dy/db is the pseudo-inverse."""
    rows = jnp.asarray(np.random.default_rng(13).normal(size=(100, MANY)))

    def minimiser(b):
        def objective(y, b):
            return jnp.sum((rows @ y - b) ** 2)

        return argmin(objective, jnp.zeros(MANY), b, forward_mode=jacobian is jax.jacfwd)

    b = jnp.arange(100.0)
    inverse = jnp.linalg.pinv(rows)
    # The Hessian squares the condition number, about 10.
    assert_close(minimiser(b), inverse @ b, 1e-10)
    assert_close(jacobian(minimiser)(b), inverse, 1e-10)


@pytest.mark.parametrize("power", [2, 4], ids=["quadratic", "quartic"])
def test_a_matrix_that_is_not_needed_costs_nothing(power):
    """XLA moves what is the same in every pass out of a loop, even out of one that may not run."""

    def chain(y, t):
        return jnp.sum((y - t) ** 2 + (y - t) ** power) + jnp.sum(jnp.diff(y) ** 2)

    def loss(t):
        return jnp.sum(argmin(chain, jnp.zeros(MANY), t))

    program = compiled(jax.value_and_grad(loss), jnp.ones(MANY))
    always = program.index("ENTRY")
    assert f"f64[{MANY},{MANY}]" in program[:always]
    sizes = [shape.split(",") for shape in re.findall(r"f64\[([\d,]+)\]", program[always:])]
    assert max(math.prod(map(int, shape)) for shape in sizes) < MANY**2


@pytest.mark.parametrize("negative", [-1.0, -1e-3, -1e-6])
def test_a_saddle_of_many_unknowns_is_found_however_flat_it_is(negative):
    values = jnp.linspace(1, 2, MANY).at[MANY // 2].set(negative)
    basis = jnp.linalg.qr(jax.random.normal(jax.random.key(0), (MANY, MANY)))[0]
    with pytest.raises(ArgminError, match="NOT_A_MINIMUM"):
        gradient_of_sum((basis * values[None]) @ basis.T, jnp.zeros(MANY))


def test_lanes_of_many_unknowns_may_mix_definite_and_singular_matrices():
    values = jnp.stack([jnp.linspace(1, 2, MANY), jnp.linspace(1, 2, MANY).at[:3].set(0)])
    b = jnp.where(values > 0, 1.0, 0.0)
    gradients = jax.vmap(lambda v, b: gradient_of_sum(jnp.diag(v), b))(values, b)
    assert_close(gradients, jnp.where(values > 0, 1 / values, 0), 1e-12)


@pytest.mark.parametrize("solver", [LBFGS(), NewtonCG()], ids=["LBFGS", "NewtonCG"])
def test_without_the_matrix_gradients_in_curved_valleys_are_right(solver):
    """The chained Rosenbrock function, with a Hessian of condition number 4,000: a residual that is
    small enough for `tol` leaves an error of 1e-7, which is for the polish to remove."""
    centres = 1 + 0.1 * jnp.asarray(np.random.default_rng(14).normal(size=(16, 19)))
    start = jnp.where(jnp.arange(20) % 2 == 0, -1.2, 1.0)

    def objective(y, centres):
        return jnp.sum(100 * (y[1:] - y[:-1] ** 2) ** 2 + (centres - y[:-1]) ** 2)

    def jacobian(centres):
        def minimiser(centres):
            options = {"solver": solver, "linear_solver": Auto(dense_limit=0)}
            y = argmin(objective, start, centres, **options)
            return y, y

        return jax.jacrev(minimiser, has_aux=True)(centres)

    found, y = jax.vmap(jacobian)(centres)
    expected = jax.vmap(lambda y, c: implicit_jacobian(objective, y, c))(y, centres)
    # y right to rounding times the condition number, and so is what is built upon it.
    assert_close(found, expected, 1e-10)
    gradients = jax.vmap(jax.grad(objective))(y, centres)
    assert float(jnp.max(jnp.abs(gradients))) < 1e-10
