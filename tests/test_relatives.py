"""Roots, fixed points and least squares: the same theorem, options, report and policies."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optimistix as optx
import pytest

from argmin_jax import (
    SVD,
    ArgminError,
    Auto,
    Status,
    fixed_point,
    least_squares,
    root,
    root_jvp,
    root_vjp,
    solve_fixed_point,
    solve_least_squares,
    solve_root,
)

from .problems import assert_close, central_difference

T = jnp.array([0.7, 1.5, 2.0])
Z0 = jnp.ones(3)
# Couples the unknowns, and is not symmetric: a wrong transpose would show.
MIX = jnp.array([[0.0, 0.3, -0.1], [0.2, 0.0, 0.4], [-0.3, 0.1, 0.0]])


def cubic(z, t):
    return z**3 + MIX @ z - t


def dense_jacobian(z, t):
    """dz*/dt = -K^-1 dF/dt by dense algebra."""
    return -jnp.linalg.solve(jax.jacfwd(cubic)(z, t), jax.jacfwd(cubic, argnums=1)(z, t))


def test_root_is_a_zero_and_its_jacobian_that_of_dense_algebra():
    z = root(cubic, Z0, T)
    assert_close(cubic(z, T), jnp.zeros(3), 1e-13)
    assert_close(jax.jacrev(lambda t: root(cubic, Z0, t))(T), dense_jacobian(z, T), 1e-12)
    forward = partial(root, cubic, Z0, forward_mode=True)
    assert_close(jax.jacfwd(forward)(T), dense_jacobian(z, T), 1e-12)


def test_second_derivatives_of_a_root_are_those_of_central_differences():
    def slope(t):
        return jax.grad(lambda t: jnp.sum(root(cubic, Z0, t) ** 2))(t)

    direction = jnp.array([0.3, -1.0, 0.5])
    found = jax.jacrev(slope)(T) @ direction
    # Central differences of an exact gradient: their error is of the order of 1e-10.
    assert_close(found, central_difference(slope, T, direction), 1e-8)


ROOT_FINDERS = {
    "Newton": optx.Newton(rtol=1e-6, atol=1e-6),
    "Chord": optx.Chord(rtol=1e-6, atol=1e-6),
    "least squares": optx.LevenbergMarquardt(rtol=1e-6, atol=1e-6),
    "callable": lambda residual, z0, t: jnp.linalg.solve(jnp.eye(3), root(cubic, Z0, T)),
}


@pytest.mark.parametrize("solver", ROOT_FINDERS.values(), ids=ROOT_FINDERS.keys())
def test_every_root_finder_leads_to_the_same_root_and_gradient(solver):
    z, gradient = jax.value_and_grad(lambda t: jnp.sum(root(cubic, Z0, t, solver=solver)))(T)
    expected = root(cubic, Z0, T)
    assert_close(z, jnp.sum(expected), 1e-12)
    assert_close(gradient, jnp.sum(dense_jacobian(expected, T), axis=0), 1e-12)


IN_FLOAT32 = {
    "root": lambda t: root(lambda z, t: z**3 - t, jnp.ones(3, t.dtype), t),
    "fixed point": lambda t: fixed_point(
        lambda z, t: z - (z**3 - t) / 12, jnp.ones(3, t.dtype), t, solver=optx.Newton(1e-4, 1e-4)
    ),
    "least squares": lambda t: least_squares(lambda z, t: z**3 - t, jnp.ones(3, t.dtype), t),
}


@pytest.mark.parametrize("solve", IN_FLOAT32.values(), ids=IN_FLOAT32.keys())
def test_float32_unknowns_are_solved_for_in_float32_though_float64_is_on(solve):
    t = T.astype(jnp.float32)
    z = solve(t)
    assert z.dtype == jnp.float32
    assert_close(z, jnp.cbrt(T), 1e-6)
    assert_close(jax.jacrev(solve)(t), jnp.diag(jnp.cbrt(T) / (3 * T)), 1e-6)


@pytest.mark.parametrize("start", [0.0, 5e-6, 1e-5])
def test_root_far_smaller_than_one_is_found_in_float32(start):
    """A binding equilibrium in moles per litre: x^2 + (c + k - t) x - k t = 0."""

    def free(x, t):
        return x + jnp.float32(3e-6) * x / (jnp.float32(2e-6) + x) - t

    def closed_form(t):
        b = 3e-6 + 2e-6 - t
        return (-b + jnp.sqrt(b**2 + 4 * 2e-6 * t)) / 2

    def found(t):
        return root(free, jnp.array(start, jnp.float32), t)

    t = jnp.array(5e-6, jnp.float32)
    assert_close(found(t), closed_form(5e-6), 1e-5)  # a hundred roundings
    assert_close(jax.grad(found)(t), jax.grad(closed_form)(5e-6), 1e-5)


@pytest.mark.parametrize("solver", [SVD(), Auto(dense_limit=2)], ids=["SVD", "matrix-free"])
def test_linear_solvers_of_a_root_agree_with_dense_algebra(solver):
    gradient = jax.grad(lambda t: jnp.sum(root(cubic, Z0, t, linear_solver=solver)))(T)
    expected = jnp.sum(dense_jacobian(root(cubic, Z0, T), T), axis=0)
    assert_close(gradient, expected, 1e-10)


def test_root_of_a_pytree_that_closes_over_a_traced_array_under_vmap():
    def find(t):
        def residual(z):
            return {"a": z["b"] - t, "b": z["a"] ** 3 - z["b"]}

        return root(residual, {"a": jnp.ones(()), "b": jnp.ones(())})["a"]

    slopes = jax.vmap(jax.grad(find))(T)
    assert_close(slopes, T ** (-2 / 3) / 3, 1e-12)


def test_singular_root_has_the_gradient_of_smallest_norm_and_says_so():
    """z1 + z2 = t leaves a line of roots; the smallest step from one to another is along (1, 1)."""

    def residual(z, t):
        return jnp.array([1.0, 2.0]) * (jnp.sum(z) - t)

    found = solve_root(residual, jnp.zeros(2), 3.0)
    assert int(found.report.rank_deficiency) == 1
    jacobian = jax.jacrev(lambda t: root(residual, jnp.zeros(2), t))(3.0)
    assert_close(jacobian, jnp.array([0.5, 0.5]), 1e-12)


def test_root_that_does_not_exist_is_not_passed_in_silence():
    def residual(z, t):
        return z**2 + t

    with pytest.raises(ArgminError):
        root(residual, Z0, T)
    poisoned = jax.grad(lambda t: jnp.sum(root(residual, Z0, t, on_failure="nan")))(T)
    assert np.all(np.isnan(poisoned))
    assert int(solve_root(residual, Z0, T, on_failure="ignore").report.status) != Status.CONVERGED


def test_fixed_point_has_the_gradient_of_its_closed_form():
    """z = (z + t / z) / 2 is the square root of t, as Heron found it."""

    def heron(z, t):
        return (z + t / z) / 2

    found = solve_fixed_point(heron, Z0, T)
    assert_close(found.y, jnp.sqrt(T), 1e-12)
    assert found.value is None
    slope = jax.grad(lambda t: jnp.sum(fixed_point(heron, Z0, t)))(T)
    assert_close(slope, 0.5 / jnp.sqrt(T), 1e-12)


def test_slow_contraction_is_finished_by_newtons_method():
    """z = 0.999 z + t takes thousands of iterations to 1e-8; its fixed point is 1000 t."""

    def slow(z, t):
        return 0.999 * z + t

    found = solve_fixed_point(slow, Z0, T, max_steps=50)
    assert int(found.report.status) == Status.CONVERGED
    assert_close(found.y, 1000 * T, 1e-12)


def test_lasso_by_proximal_gradient_has_the_gradient_of_its_active_set():
    rng = np.random.default_rng(0)
    x, t = jnp.asarray(rng.normal(size=(20, 4))), jnp.asarray(rng.normal(size=20))

    def step(w, penalty):
        moved = w - 0.02 * x.T @ (x @ w - t)
        return jnp.sign(moved) * jnp.maximum(jnp.abs(moved) - 0.02 * penalty, 0)

    penalty = jnp.array(1.0)
    w = fixed_point(step, jnp.zeros(4), penalty)
    active = np.flatnonzero(np.asarray(w))
    assert 0 < len(active) < 4
    slope = jax.jacrev(lambda p: fixed_point(step, jnp.zeros(4), p))(penalty)
    chosen = x[:, active]
    expected = (
        jnp.zeros(4).at[active].set(-jnp.linalg.solve(chosen.T @ chosen, jnp.sign(w[active])))
    )
    assert_close(slope, expected, 1e-10)


def curved(y, t):
    """Residuals that cannot all vanish, of a model that is not linear."""
    return jnp.concatenate([jnp.exp(0.3 * y) - t, y[:1] * y[1:2] - 2.0, jnp.sin(y)])


@pytest.mark.parametrize("solver", [None, optx.BFGS(rtol=1e-6, atol=1e-6)], ids=["LM", "BFGS"])
def test_least_squares_with_nonzero_residual_has_the_gradient_of_the_full_hessian(solver):
    def objective(y, t):
        return jnp.sum(curved(y, t) ** 2) / 2

    found = solve_least_squares(curved, Z0, T, solver=solver)
    y = found.y
    assert found.value > 0.1  # far from zero
    assert_close(found.value, objective(y, T), 1e-12)
    hessian = jax.hessian(objective)(y, T)
    cross = jax.jacfwd(jax.grad(objective), argnums=1)(y, T)
    expected = -jnp.linalg.solve(hessian, cross)
    found_jacobian = jax.jacrev(lambda t: least_squares(curved, Z0, t, solver=solver))(T)
    assert_close(found_jacobian, expected, 1e-10)
    # What Gauss and Newton would have is something else.
    of_residual = jax.jacfwd(curved)(y, T)
    gauss_newton = -jnp.linalg.solve(of_residual.T @ of_residual, cross)
    assert np.max(np.abs(gauss_newton - expected)) > 1e-2 * np.max(np.abs(expected))


def test_the_theorem_as_plain_functions_gives_vector_products_on_both_sides():
    import lineax as lx

    z = root(cubic, Z0, T)
    matrix = jax.jacfwd(cubic)(z, T)
    vector = jnp.array([0.2, -1.0, 0.7])
    operator = lx.MatrixLinearOperator(matrix)
    back, _ = root_vjp(cubic, z, T, vector, operator.T, lx.LU())
    ahead, _ = root_jvp(cubic, z, T, vector, operator, lx.LU())
    assert_close(back, vector @ dense_jacobian(z, T), 1e-12)
    assert_close(ahead, dense_jacobian(z, T) @ vector, 1e-12)


BAD = {
    "residual of another size": (
        lambda: root(lambda z, t: z[:2], Z0, T),
        ValueError,
        r"residual must return as many numbers as z0 holds, 3; found 2",
    ),
    "map of another shape": (
        lambda: fixed_point(lambda z, t: z[None], Z0, T),
        ValueError,
        r"map must return what z0 is, of shapes \(3,\); found \(1, 3\)",
    ),
    "boolean residual": (
        lambda: root(lambda z, t: z > t, Z0, T),
        ValueError,
        r"residual must return a pytree of real floating arrays; found bool",
    ),
    "no function": (lambda: root(3.0, Z0), TypeError, r"residual must be a function"),
    "empty residual": (
        lambda: least_squares(lambda y: jnp.zeros(0), Z0),
        ValueError,
        r"residual must return at least one number",
    ),
    "integer start": (
        lambda: root(cubic, jnp.ones(3, int), T),
        TypeError,
        r"z0 must be of floating dtype",
    ),
    "solver's class": (lambda: root(cubic, Z0, T, solver=optx.Newton), TypeError, "Call it"),
    "solver's name": (
        lambda: fixed_point(cubic, Z0, T, solver="newton"),
        TypeError,
        r"Optimistix fixed-point solver, root finder",
    ),
    "forward mode by name": (
        lambda: root(cubic, Z0, T, forward_mode="yes"),
        TypeError,
        "forward_mode must be True or False",
    ),
}


@pytest.mark.parametrize("case", BAD.values(), ids=BAD.keys())
def test_bad_input_is_refused_by_its_name(case):
    call, error, message = case
    with pytest.raises(error, match=message):
        call()
