"""InteriorPoint(smoothing=...): points of the central path, smooth where a minimiser has a kink."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from argmin_jax import InteriorPoint, Status, argmin, solve

from .problems import assert_close, central_difference

MU = 1e-3


def clamped(p, **options):
    """min (y - p)^2 / 2 with y >= 0: max(p, 0), smoothed (p + sqrt(p^2 + 4 mu)) / 2."""
    return solve(lambda y, p: (y - p) ** 2 / 2, jnp.zeros(()), p, bounds=(0.0, None), **options)


def test_kink_is_smoothed_to_its_closed_form():
    @jax.jit
    @jax.vmap
    @partial(jax.value_and_grad, has_aux=True)
    def found(p):
        solution = clamped(p, solver=InteriorPoint(smoothing=MU))
        return solution.y, solution

    p = jnp.array([-1.0, -0.01, 0.0, 0.02, 1.0])
    (y, solution), slope = found(p)
    root = jnp.sqrt(p**2 + 4 * MU)
    assert_close(y, (p + root) / 2, 1e-12)
    assert_close(slope, (1 + p / root) / 2, 1e-12)
    assert_close(solution.multipliers.lower, MU / y, 1e-12)
    assert_close(solution.multipliers.upper, jnp.zeros(5), 0.0)
    assert_close(solution.value, (y - p) ** 2 / 2, 1e-12)
    assert np.all(solution.report.status == Status.CONVERGED)
    assert np.all(solution.report.weakly_active == 0)
    assert np.all(solution.report.residual < 1e-10)


def test_by_default_nothing_is_smoothed_and_the_kink_is_reported():
    assert InteriorPoint().smoothing is None
    found = clamped(jnp.array(0.0), solver=InteriorPoint())
    assert int(found.report.weakly_active) == 1
    assert_close(found.y, jnp.array(0.0), 0.0)


G = jnp.array([[1.0, 1.0, 0.5, 0.0], [-0.3, 1.0, 2.0, 0.1]])


def program(values, smoothing=None, forward_mode=False):
    """A convex program with an equality, inequalities, one of them not linear, bounds of all kinds
    and a fixed variable. At p = 0 the first bound and the first inequality are weakly active."""
    p, h, cap, fixed = values
    infinite = jnp.array(jnp.inf)
    return solve(
        lambda y, p: jnp.sum(jnp.cosh(y - p)) + (y[0] * y[1] + y[2] * y[3]) / 4,
        jnp.full(4, 0.1), p,
        eq=lambda y, p: y[1] - y[2] + 0.2 * jnp.sin(p[1]),
        ineq=lambda y, p: {"linear": G @ y - h, "ball": y @ y - cap},
        bounds=(jnp.stack([0.0 * cap, -infinite, -1.0 + cap, fixed]),
                jnp.stack([infinite, cap, infinite, fixed])),
        solver=InteriorPoint(smoothing=smoothing), forward_mode=forward_mode,
    )  # fmt: skip


VALUES = jnp.zeros(4), jnp.array([0.0, 0.5]), jnp.array(0.8), jnp.array(0.3)


def outputs(values, **options):
    found = program(values, **options)
    m = found.multipliers
    parts = found.y, found.value, m.eq, m.ineq["linear"], m.ineq["ball"], m.lower, m.upper
    return jnp.concatenate([jnp.ravel(part) for part in parts]), found.report


@pytest.fixture(scope="module")
def smoothed():
    """Of weights and values: the outputs, and the gradient of the outputs times the weights."""

    @jax.jit
    def found(weights, values):
        out, pull_back, report = jax.vjp(partial(outputs, smoothing=MU), values, has_aux=True)
        return out, pull_back(weights)[0], report

    return found


WHICH = {
    "y": slice(0, 4), "value": 4, "multiplier of eq": 5, "multipliers of ineq": slice(6, 9),
    "multipliers of bounds": slice(9, 17),
}  # fmt: skip


@pytest.mark.parametrize("which", WHICH.values(), ids=WHICH.keys())
def test_derivatives_through_weakly_active_constraints_agree_with_differences(smoothed, which):
    weights = jnp.zeros(17).at[which].set(jnp.cos(jnp.arange(17.0))[which])
    direction = (
        jnp.array([0.5, -1.0, 0.3, 0.2]), jnp.array([1.0, 0.4]), jnp.array(0.7), jnp.array(-0.6),
    )  # fmt: skip

    def along(step):
        moved = jax.tree.map(lambda value, change: value + step * change, VALUES, direction)
        return weights @ smoothed(weights, moved)[0]

    _, slopes, report = smoothed(weights, VALUES)
    assert int(report.status) == Status.CONVERGED and int(report.weakly_active) == 0
    found = sum(jnp.sum(a * b) for a, b in zip(slopes, direction, strict=True))
    # Where slacks are as small as mu, third derivatives are as large as its inverse.
    expected = central_difference(along, jnp.array(0.0), jnp.array(1.0), 1e-6)
    assert abs(float(expected)) > 1e-3
    assert_close(found, expected, 1e-6)


def test_point_satisfies_the_perturbed_conditions(smoothed):
    out, _, _ = smoothed(jnp.zeros(17), VALUES)
    y, of_ineq, lower, upper = out[:4], out[6:9], out[9:13], out[13:]
    _, h, cap, fixed = VALUES
    slacks = jnp.concatenate([h - G @ y, (cap - y @ y)[None]])
    assert np.all(slacks > 0)
    assert_close(of_ineq * slacks, jnp.full(3, MU), 1e-10)
    assert_close(
        lower[jnp.array([0, 2])] * jnp.stack([y[0], y[2] + 1 - cap]), jnp.full(2, MU), 1e-10
    )
    assert_close(upper[1] * (cap - y[1]), jnp.array(MU), 1e-10)
    assert_close(y[3], fixed, 0.0)


def test_derivatives_of_both_modes_agree(smoothed):
    weights = jnp.cos(jnp.arange(17.0))
    _, slopes, _ = smoothed(weights, VALUES)
    direction = jax.tree.map(jnp.ones_like, VALUES)
    run = partial(outputs, smoothing=MU, forward_mode=True)
    _, change, _ = jax.jit(lambda v, d: jax.jvp(run, (v,), (d,), has_aux=True))(VALUES, direction)
    assert_close(weights @ change, sum(jnp.sum(slope) for slope in slopes), 1e-10)


def test_derivatives_tend_to_those_of_the_minimiser():
    """Away from kinks, with an error of the order of mu."""

    def slope(smoothing):
        return jax.grad(
            lambda p: argmin(
                lambda y, p: jnp.sum((y - p) ** 2) / 2 + y[0] * y[1] / 3, jnp.ones(2), p,
                ineq=lambda y, p: y[0] ** 2 + y[1] - 1, solver=InteriorPoint(smoothing=smoothing),
            )[0]
        )(jnp.array([1.5, 1.2]))  # fmt: skip

    exact = slope(None)
    coarse, fine = (float(jnp.max(jnp.abs(slope(mu) - exact))) for mu in (1e-4, 1e-6))
    assert 1e-6 < coarse < 1e-2
    assert 0.9 < coarse / (100 * fine) < 1.1


def test_without_inequalities_nothing_changes():
    solver = InteriorPoint(smoothing=0.1)
    found = solve(lambda y: jnp.sum((y - 1) ** 2), jnp.zeros(2), eq=lambda y: y[0], solver=solver)
    assert_close(found.y, jnp.array([0.0, 1.0]), 1e-12)


def test_set_without_interior_has_no_central_path():
    found = solve(
        lambda y: jnp.sum(y**2), jnp.ones(2), ineq=lambda y: jnp.stack([y[0], -y[0]]),
        solver=InteriorPoint(smoothing=MU), on_failure="ignore",
    )  # fmt: skip
    assert int(found.report.status) != Status.CONVERGED


@pytest.mark.parametrize("bad", [0.0, -1.0, float("nan"), float("inf")])
def test_smoothing_that_is_not_positive_and_finite_is_refused(bad):
    with pytest.raises(ValueError, match=r"smoothing=...\) must be positive and finite"):
        InteriorPoint(smoothing=bad)
    with pytest.raises(TypeError, match=r"smoothing=...\) must be None or a Python number"):
        InteriorPoint(smoothing=jnp.array(bad))
