"""`check_gradients` calls right gradients right, wrong ones wrong, and says when it cannot tell."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from argmin_jax import ArgminError, check_gradients

from .problems import regression, ridge


@jax.custom_jvp
def square(a):
    """Its derivative is a lie: 2.2 a instead of 2 a."""
    return a**2


@square.defjvp
def _(primals, tangents):
    return primals[0] ** 2, 2.2 * primals[0] * tangents[0]


def cross_derivative_lies(y, a, b, c):
    """The derivatives in y are right, and so is the solution; those in a are 10 % too large; c has
    no influence on the solution."""
    return jnp.sum(jnp.cosh(y) - square(a) * y + (y - b) ** 2) + c


def verdicts(check):
    return [row.verdict.partition(":")[0] for row in check.rows]


@pytest.fixture(scope="module")
def ridge_check():
    x, t = regression(0, samples=12, features=3)
    params = {"x": x, "t": t, "rows": jnp.arange(3)}
    return check_gradients(
        lambda w, data, log_lambda: ridge(w, data["x"], data["t"], log_lambda),
        jnp.zeros(3),
        params,
        jnp.array(-1.0),
    )


def test_right_gradients_pass_and_every_floating_leaf_has_its_row(ridge_check):
    assert ridge_check.passed
    assert [row.name for row in ridge_check.rows] == [
        "params[0]['t']",
        "params[0]['x']",
        "params[1]",
    ]


def test_differences_agree_with_the_gradient_within_their_own_uncertainty(ridge_check):
    for row in ridge_check.rows:
        assert abs(row.gradient - row.difference) <= row.uncertainty
        # Richardson's extrapolation in float64 leaves some ten digits.
        assert row.uncertainty <= 1e-8 * abs(row.gradient)


def test_table_names_leaves_and_verdicts(ridge_check):
    lines = str(ridge_check).splitlines()
    assert lines[0].split() == "param gradient difference uncertainty verdict".split()
    assert len(lines) == 4 and all(line.endswith("right") for line in lines[1:])


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_a_derivative_that_lies_is_found_wrong_and_its_neighbours_right(dtype):
    params = [jnp.array(p, dtype) for p in ([1.0, 0.5, 0.3], 2.0, -1.0)]
    check = check_gradients(cross_derivative_lies, jnp.zeros(3, dtype), *params)
    assert verdicts(check) == ["WRONG", "right", "right"]
    assert not check.passed
    wrong, _, without_influence = check.rows
    # Float32 solutions have seven digits, their differences four.
    assert wrong.gradient == pytest.approx(1.1 * wrong.difference, rel=1e-3)
    assert without_influence.gradient == 0


def test_a_weakly_active_bound_is_a_kink_about_which_nothing_can_be_told():
    # y* = max(t, 0): at t = 0 its one-sided derivatives are 0 and 1.
    check = check_gradients(
        lambda y, t: jnp.sum((y - t) ** 2) / 2,
        jnp.ones(2),
        jnp.array([0.0, 1.0]),
        bounds=(0.0, None),
        on_failure="ignore",
    )
    assert verdicts(check) == ["cannot tell"]
    assert "kink" in check.rows[0].verdict


def test_neighbours_that_cannot_be_solved_are_told():
    # Not a number unless |t| < 1e-9, which no step from 0 is.
    check = check_gradients(
        lambda y, t: jnp.sum(y**2) + 0 * jnp.log(1e-9 - jnp.abs(t)), jnp.ones(2), jnp.array(0.0)
    )
    assert verdicts(check) == ["cannot tell"]
    assert "could not be solved" in check.rows[0].verdict


def test_a_problem_that_cannot_be_solved_raises_like_the_layer():
    with pytest.raises(ArgminError, match="UNBOUNDED"):
        check_gradients(lambda y, a: jnp.sum(a * y**2), jnp.ones(2), jnp.array(-1.0))


def test_params_without_a_floating_leaf_are_refused():
    with pytest.raises(ValueError, match="no floating leaf"):
        check_gradients(lambda y, k: jnp.sum((y - k) ** 2), jnp.ones(2), np.arange(2))


def test_bad_options_are_named_by_the_layer():
    with pytest.raises(ValueError, match="max_steps"):
        check_gradients(lambda y, a: jnp.sum((y - a) ** 2), jnp.ones(2), jnp.ones(2), max_steps=0)
