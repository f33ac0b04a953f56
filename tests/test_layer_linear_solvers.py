"""The option ``linear_solver`` of the layer: any of Lineax's, ours, and what they cannot solve."""

import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import pytest

from argmin_jax import ArgminError, Auto, argmin

from .problems import assert_close, quadratic, random_spd

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


def test_jacobian_of_the_minimiser_costs_one_factorisation():
    factorised = []

    class Counting(Auto):
        def init(self, operator, options):
            jax.debug.callback(lambda: factorised.append(1))
            return super().init(operator, options)

    matrix, b = random_spd(7, 8), jnp.ones(8)

    def minimiser(b):
        return argmin(quadratic, jnp.zeros(8), matrix, b, linear_solver=Counting())

    assert_close(jax.jacrev(minimiser)(b), jnp.linalg.inv(matrix), 1e-10)
    jax.effects_barrier()
    assert len(factorised) == 1
