"""Ready-made sets: projections on them against closed forms, and the derivatives of these."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from argmin_jax import Status, argmin, solve
from argmin_jax.constraints import Constraints, affine, ball, box, halfspaces, simplex

from .problems import assert_close, central_difference

P = jnp.array([0.9, -0.3, 0.6, 0.2])
A = jnp.array([[1.0, 2.0, 0.5, -1.0], [0.3, -1.0, 1.0, 0.7]])
B = jnp.array([0.4, -0.2])


def distance(y, p):
    return jnp.sum((y - p) ** 2) / 2


def project(p, constraints, **options):
    """The Euclidean projection of p."""
    return argmin(distance, jnp.zeros_like(p), p, **constraints, **options)


def on_the_simplex(p, total):
    """By sorting: Duchi et al., Efficient Projections onto the l1-Ball, 2008, figure 1."""
    u = np.sort(p)[::-1]
    thresholds = (np.cumsum(u) - total) / np.arange(1, p.size + 1)
    return np.maximum(p - thresholds[np.nonzero(u > thresholds)[0][-1]], 0)


def on_the_ball(p, radius, center):
    apart = p - center
    return center + apart * np.minimum(1, radius / np.linalg.norm(apart))


def on_the_plane(p, a, b):
    return p - np.linalg.pinv(a) @ (a @ p - b)


# How a set is made, the closed form of the projection, and the values that it is asked for.
SETS = {
    "simplex": (simplex, on_the_simplex, [(1.0,), (2.5,)]),
    "box": (box, np.clip, [(jnp.array([-1.0, 0.1, 0.0, 0.0]), 0.5), (jnp.full(4, -0.1), 2.0)]),
    "ball": (ball, on_the_ball, [(0.5, 0.1 * P[::-1]), (5.0, jnp.zeros(4))]),
    "affine": (affine, on_the_plane, [(A, B)]),
    "halfspaces": (
        halfspaces,
        lambda p, g, h: on_the_plane(p, g, h) if h[0] < 0 else p,
        [(A, jnp.array([-0.5, -0.1])), (A, jnp.array([5.0, 5.0]))],
    ),
}
WEIGHTS = jnp.array([1.0, -2.0, 0.5, 3.0])


@pytest.mark.parametrize("case", SETS.values(), ids=SETS.keys())
def test_projection_and_its_derivatives_in_the_values_of_the_set_agree_with_its_closed_form(case):
    kind, closed_form, all_values = case

    @jax.jit
    @partial(jax.grad, has_aux=True)
    def slopes_and_projection(values):
        y = project(P, kind(*values))
        return WEIGHTS @ y, y

    for values in all_values:
        values = jax.tree.map(jnp.asarray, values)
        slopes, y = slopes_and_projection(values)
        assert_close(y, jnp.asarray(closed_form(P, *values)), 1e-10)
        for index, value in enumerate(values):
            direction = jnp.cos(jnp.arange(value.size, dtype=float)).reshape(value.shape)

            def along(value, index=index, values=values):
                moved = (*values[:index], value, *values[index + 1 :])
                return WEIGHTS @ slopes_and_projection(moved)[1]

            expected = central_difference(along, value, direction)
            assert abs(jnp.sum(slopes[index] * direction) - expected) < 1e-8


def test_projection_on_the_sums_to_one_has_the_derivative_of_its_closed_form():
    ones = affine(np.ones(4).tolist(), 1)
    slopes = jax.jacrev(lambda p: project(p, ones, solver=lambda f, y0, p: p))(P)
    assert_close(slopes, jnp.eye(4) - 0.25, 1e-12)


def test_intersection_keeps_the_tighter_bounds_and_is_differentiated_in_both_sets():
    """With one entry at the cap and one at zero, the other two share what is left."""
    cap, total = jnp.array(0.5), jnp.array(1.0)
    rest = (total - cap - P[2] - P[3]) / 2
    expected = jnp.array([cap, 0, P[2] + rest, P[3] + rest])

    def found(cap, total):
        y = project(P, simplex(total) & box(-1.0, cap))
        return y, y

    (of_cap, of_total), y = jax.jacrev(found, (0, 1), has_aux=True)(cap, total)
    assert_close(y, expected, 1e-10)
    assert_close(of_cap, jnp.array([1, 0, -0.5, -0.5]), 1e-10)
    assert_close(of_total, jnp.array([0, 0, 0.5, 0.5]), 1e-10)


def test_intersection_with_constraints_of_your_own_pairs_the_multipliers():
    own = Constraints(eq=lambda y, p: {"first": y[0] - y[2]}, ineq=lambda y, p: y[0] - 0.3)
    found = solve(distance, jnp.zeros(4), P, **(simplex() & own & ball(0.6) & halfspaces(A, B + 5)))
    assert_close(found.y[0], found.y[2], 1e-10)
    assert_close(jnp.sum(found.y), jnp.array(1.0), 1e-10)
    of_simplex, of_own = found.multipliers.eq
    assert of_simplex.shape == () and set(of_own) == {"first"}
    (of_ineq, of_ball), of_halfspaces = found.multipliers.ineq
    assert of_ineq.shape == of_ball.shape == () and of_halfspaces.shape == (2,)
    assert_close(of_halfspaces, jnp.zeros(2), 0.0)


def test_bounds_of_pytrees_intersect_leaf_by_leaf():
    one = box({"a": jnp.zeros(2), "b": None}, {"a": 1.0, "b": jnp.array([1.0, 2.0])})
    lower, upper = (one & box(0.5) & box(None, {"a": 2.0, "b": 1.5})).bounds
    assert_close(lower, {"a": jnp.full(2, 0.5), "b": 0.5}, 0.0)
    assert_close(upper, {"a": jnp.array(1.0), "b": jnp.array([1.0, 1.5])}, 0.0)
    with pytest.raises(ValueError, match=r"bounds of two sets .* one structure"):
        _ = one & box((0.0, 1.0))


def test_set_of_a_pytree_is_that_of_all_its_entries():
    p = {"a": P[:2], "b": P[2:].reshape(2, 1)}

    def apart(y, p):
        return sum(distance(y[name], p[name]) for name in y)

    y0 = jax.tree.map(jnp.zeros_like, p)
    expected = jnp.asarray(on_the_simplex(P, 1.0))
    near = {"a": expected[:2] + 1e-4, "b": expected[2:, None]}
    found = argmin(
        apart, y0, p, **(simplex() & ball(5.0, y0) & halfspaces(np.ones(4), 3.0)),
        solver=lambda f, y0, p: near,
    )  # fmt: skip
    assert_close(found, {"a": expected[:2], "b": expected[2:, None]}, 1e-10)


def test_batch_of_sets_has_the_projections_on_each():
    totals = jnp.array([0.5, 1.0, 2.0])
    found = jax.jit(jax.vmap(lambda total: project(P, simplex(total))))(totals)
    assert_close(found, jnp.stack([on_the_simplex(P, total) for total in totals]), 1e-10)


def test_set_is_passed_in_the_precision_of_y():
    y = P.astype(jnp.float32)
    found = (simplex(np.float64(1.0)) & affine(np.eye(4)[0], 0.3) & ball(1.0, P)).ineq(y)
    assert found.dtype == jnp.float32


def test_ball_of_negative_traced_radius_has_no_point():
    report = jax.jit(
        lambda r: solve(distance, jnp.zeros(4), P, **ball(r), on_failure="ignore").report
    )(-0.5)
    assert int(report.status) == Status.INFEASIBLE


BAD = {
    "radius zero": (lambda: ball(0.0), ValueError, r"ball\(radius\) must be positive"),
    "radius NaN": (lambda: ball(jnp.nan), ValueError, r"ball\(radius\) must be positive"),
    "radii": (lambda: ball(P), ValueError, r"ball\(radius\) must be one number; .* \(4,\)"),
    "radius of another kind": (lambda: ball("1"), TypeError, r"ball\(radius\) .* real numbers"),
    "negative total": (lambda: simplex(-1), ValueError, r"simplex\(total\) must be positive"),
    "no total": (lambda: simplex(None), TypeError, r"simplex\(total\) must hold real numbers"),
    "complex A": (lambda: affine(1j * A, B), TypeError, r"affine\(A\) must hold real numbers"),
    "b that does not fit": (
        lambda: affine(A, B[:1]), ValueError, r"affine needs A .* found A \(2, 4\), b \(1,\)",
    ),
    "h that does not fit": (
        lambda: halfspaces(A, 1.0), ValueError, r"halfspaces needs G .* found G \(2, 4\), h \(\)",
    ),
    "A that does not fit y": (
        lambda: project(P, affine(A[:, :3], B)), ValueError, r"affine\(A\) has 3 columns for 4",
    ),
    "center that does not fit y": (
        lambda: project(P, ball(1.0, B)), ValueError, r"ball\(center\), of shape \(2,\)",
    ),
    "bounds that contradict": (
        lambda: project(P, box(0.0, 1.0) & box(2.0)), ValueError, r"bounds contradict each other",
    ),
    "one bound": (lambda: Constraints(bounds=1.0), TypeError, r"bounds must be a pair"),
    "a dictionary": (lambda: simplex() & {"bounds": (0, 1)}, TypeError, r"unsupported operand"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD.values(), ids=BAD.keys())
def test_bad_value_is_refused_by_its_name(case):
    call, error, message = case
    with pytest.raises(error, match=message):
        call()
