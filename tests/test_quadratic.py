"""A quadratic is proved to be one, and its factors alone tell where its minimum is, if at all."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from argmin_jax import LBFGS, NewtonCG, Status, argmin, solve
from argmin_jax.quadratic import is_quadratic

from .problems import assert_close

MATRIX = jax.random.normal(jax.random.key(0), (4, 4))
DESIGN = jax.random.normal(jax.random.key(1), (7, 4))
Y = jnp.array([0.3, -1.2, 2.0, 0.7])


def scanned(step):
    """An objective summed up by a loop over the entries of y, from a state of zero."""
    return lambda y: jnp.sum(jax.lax.scan(step, 0.0, y)[1])


QUADRATIC = {
    "regression": lambda y: jnp.mean((DESIGN @ y - 1) ** 2) + 1e-3 * jnp.sum(y**2),
    "lanes of a vmap": lambda y: jnp.sum(jax.vmap(lambda x: (x @ y - 1) ** 2)(DESIGN)),
    "differences": lambda y: jnp.sum(jnp.diff(y) ** 2) + (y[0] - y[jnp.array(3)]) ** 2,
    "running sums": lambda y: jnp.sum(jnp.cumsum(jnp.pad(y, 1)) ** 2),
    "placed": lambda y: jnp.sum(jnp.ones(9).at[2:6].set(y) ** 2) + jnp.sum(jnp.roll(y, 1) * y),
    "einsum": lambda y: jnp.einsum("i,ij,j->", y, MATRIX, y),
    "control of a linear system": scanned(lambda x, u: (0.9 * x + u, x**2 + u**2)),
    "branch on a parameter": lambda y: jax.lax.cond(MATRIX[0, 0] > 0, jnp.sum, jnp.mean, y**2),
    "function of its own": lambda y: jax.jit(jax.checkpoint(lambda v: jnp.vdot(v, v)))(y),
    "linear": jnp.sum,
}
# Of the first six the Hessian is constant by its trace, as it is of quadratics.
NOT_QUADRATIC = {
    "kinked": lambda y: jnp.sum(jnp.abs(y - 3) + y**2 / 2),
    "maximum": lambda y: jnp.max(y) + y @ y,
    "sorted": lambda y: jnp.sort(y) @ jnp.arange(4.0) + y @ y,
    "rounded": lambda y: jnp.sum(jnp.floor(y) * y) + y @ y,
    "cast to integers": lambda y: jnp.sum(y.astype(int).astype(float) * y),
    "derivatives stopped": lambda y: jnp.sum(jax.lax.stop_gradient(y) * y),
    "quartic": lambda y: jnp.sum(y**4),
    "branch on y": lambda y: jax.lax.cond(y[0] > 0, jnp.sum, jnp.mean, y**2),
    "loop that squares": scanned(lambda x, u: (x**2 + u, x)),
    "huber": lambda y: jnp.sum(jnp.where(jnp.abs(y) < 1, y**2 / 2, jnp.abs(y) - 0.5)),
}


@pytest.mark.parametrize("name", QUADRATIC)
def test_a_quadratic_is_proved_to_be_one(name):
    objective = QUADRATIC[name]
    assert is_quadratic(objective, Y)
    # The oracle: the gradient of a quadratic at the middle is the mean of those at the ends.
    ends = jax.vmap(jax.grad(objective))(jnp.stack([Y, 5 * Y[::-1]]))
    middle = jax.grad(objective)((Y + 5 * Y[::-1]) / 2)
    np.testing.assert_allclose(middle, jnp.mean(ends, axis=0), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", NOT_QUADRATIC)
def test_what_is_no_quadratic_is_not_taken_for_one_though_its_hessian_may_seem_constant(name):
    assert not is_quadratic(NOT_QUADRATIC[name], Y)


def test_parameters_may_go_through_anything():
    def objective(y, a):
        return jnp.sum(jnp.abs(jnp.sort(a)) * y**2) - jnp.max(a) * y[0]

    assert is_quadratic(objective, Y, Y)
    assert not is_quadratic(lambda a, y: objective(y, a), Y, Y)


def test_a_pytree_is_quadratic_in_all_of_its_leaves_together():
    y = {"weights": Y, "bias": jnp.zeros(())}
    assert is_quadratic(lambda y: jnp.mean((DESIGN @ y["weights"] + y["bias"]) ** 2), y)
    assert not is_quadratic(lambda y: jnp.sum(y["weights"] ** 2) * y["bias"], y)


def bowls(y, curvatures, pushes):
    """A sum over entries, with a Hessian of as many blocks."""
    return jnp.sum(curvatures * y**2 / 2 - pushes * y)


def coupled(y, curvatures, pushes):
    """The same, turned, so that the Hessian is one block."""
    q, _ = jnp.linalg.qr(MATRIX)
    return bowls(q @ y, curvatures, pushes)


@pytest.mark.parametrize("solver", [LBFGS(), NewtonCG()], ids=["LBFGS", "NewtonCG"])
@pytest.mark.parametrize("objective", [bowls, coupled])
@pytest.mark.parametrize(
    "curvatures, pushes, status",
    [
        ((1.0, 2.0, 3.0, 4.0), (1.0, 1.0, 1.0, 1.0), Status.CONVERGED),
        ((1.0, 2.0, 3.0, 0.0), (1.0, 1.0, 1.0, 0.0), Status.CONVERGED),
        ((1.0, 2.0, 3.0, 0.0), (1.0, 1.0, 1.0, 1e-9), Status.UNBOUNDED),
        ((0.0, 0.0, 0.0, 0.0), (0.0, 0.0, 0.0, 1e-3), Status.UNBOUNDED),
        ((0.0, 0.0, 0.0, 0.0), (0.0, 0.0, 0.0, 0.0), Status.CONVERGED),
        ((1.0, 2.0, 3.0, -1e-9), (1.0, 1.0, 1.0, 1.0), Status.UNBOUNDED),
        ((1.0, 2.0, 3.0, -1.0), (0.0, 0.0, 0.0, 0.0), Status.NOT_A_MINIMUM),
    ],
    ids="regular flat pushed linear constant concave saddle".split(),
)
def test_the_factors_of_a_quadratic_tell_what_it_is(objective, curvatures, pushes, status, solver):
    curvatures, pushes = jnp.array(curvatures), jnp.array(pushes)
    found = solve(objective, jnp.zeros(4), curvatures, pushes, solver=solver, on_failure="ignore")
    assert int(found.report.status) == status
    assert int(found.report.steps) == 0
    if status == Status.CONVERGED:  # the solution next to the start, which is zero
        nearest = jnp.where(curvatures > 0, pushes / jnp.where(curvatures > 0, curvatures, 1), 0)
        turn = jnp.eye(4) if objective is bowls else jnp.linalg.qr(MATRIX)[0]
        assert_close(found.y, turn.T @ nearest, 1e-14)


def test_a_flat_direction_that_rounding_alone_pushes_has_minima():
    """Least squares on a feature that is there twice, with targets of a million: in every unit."""
    design = jnp.concatenate([DESIGN, DESIGN[:, :1]], axis=1)
    targets = 1e6 * jnp.cos(jnp.arange(7.0))
    for dtype in (jnp.float32, jnp.float64):
        for unit in (1e-4, 1.0, 1e4):
            x, t = (unit * design).astype(dtype), targets.astype(dtype)
            found = solve(
                lambda y, x, t: jnp.mean((x @ y - t) ** 2),
                jnp.zeros(5, dtype),
                x,
                t,
                on_failure="ignore",
            )
            assert int(found.report.status) == Status.CONVERGED, (dtype, unit)
            expected = jnp.linalg.lstsq(x, t, rcond=1e-6)[0]
            # Of normal equations in float32: the condition number of the rest, 5, squared.
            assert_close(found.y, expected, 1e-12 if dtype == jnp.float64 else 1e-4)


@pytest.mark.parametrize("dtype, size", [(jnp.float32, 1e4), (jnp.float64, 1e9)], ids=str)
def test_one_large_feature_beside_dummies_that_are_collinear_costs_no_other_its_weight(dtype, size):
    """An intercept, three dummies that add up to it, and incomes or times: the predictions, and
    their slopes in the targets, are those of the design without one of the dummies."""
    groups = np.arange(60) % 3
    large = size * (1 + np.random.default_rng(0).random(60))
    full = np.column_stack([np.ones(60), np.eye(3)[groups], large])
    targets = groups + 1 + np.cos(np.arange(60.0))
    rest = full[:, 1:] / [1, 1, 1, size]
    hat = rest @ np.linalg.pinv(rest)
    x = jnp.asarray(full, dtype)

    def predictions(t):
        return x @ argmin(lambda y, t: jnp.mean((x @ y - t) ** 2), jnp.zeros(5, dtype), t)

    t = jnp.asarray(targets, dtype)
    # The condition number of the normal equations in units of the features is about 100.
    tolerance = 1e-4 if dtype == jnp.float32 else 1e-12
    assert_close(predictions(t), jnp.asarray(hat @ targets, dtype), tolerance)
    assert_close(jax.jacrev(predictions)(t), jnp.asarray(hat, dtype), tolerance)


@pytest.mark.parametrize("ratio", [1e10, 1e17], ids=str)
def test_entries_of_very_different_curvature_have_each_its_gradient(ratio):
    curvatures = jnp.array([ratio, 1.0, 1.0, 1 / ratio])
    for start in (jnp.zeros(4), jnp.ones(4)):
        slopes = jax.jacrev(lambda p, y=start: argmin(bowls, y, curvatures, curvatures * p))(
            jnp.ones(4)
        )
        assert_close(slopes, jnp.eye(4), 1e-14)
