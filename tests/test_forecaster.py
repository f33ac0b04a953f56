"""The forecaster: against plain arithmetic, and its two predictors against each other."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from argmin_jax import Status
from argmin_jax.nnx import LastReport
from models import EncoderPredictorDecoder, postdiction_loss, ridge_weights, training


def windows(count=8, seed=0, dtype=jnp.float64):
    steps = jax.random.normal(jax.random.key(seed), (count, 30, 1), dtype)
    return jnp.cumsum(steps, axis=1)


def make_model(predictor="argmin", seed=0, **options):
    return EncoderPredictorDecoder(
        rngs=nnx.Rngs(seed), dtype=jnp.float64, predictor=predictor, **options
    )


def plain_elu(x):
    return np.where(x > 0, x, 0.5 * np.expm1(np.minimum(x, 0)))


def plain_conv(x, conv):
    kernel, bias = np.asarray(conv.kernel[...]), np.asarray(conv.bias[...])
    padded = np.pad(x, ((0, 0), (2, 2), (0, 0)))
    days = x.shape[1]
    return sum(padded[:, k : k + days] @ kernel[k] for k in range(5)) + bias[None, None]


def plain_norm(x, norm):
    mean, var = x.mean(axis=(0, 1), keepdims=True), x.var(axis=(0, 1), keepdims=True)
    scale, bias = np.asarray(norm.scale[...]), np.asarray(norm.bias[...])
    return (x - mean) / np.sqrt(var + 1e-5) * scale[None, None] + bias[None, None]


def plain_forecast(model, x):
    """The forecast in training mode, by numpy alone."""
    e = np.asarray(x)
    for conv, norm in zip(model.encoder.convs, model.encoder.norms, strict=True):
        e = plain_norm(plain_elu(plain_conv(e, conv)), norm)
    history, future = (np.moveaxis(part, 1, 2) for part in (e[:, :20], e[:, 20:]))
    history, future = history.reshape(-1, 20), future.reshape(-1, 10)
    shift = np.exp(float(model.predictor.log_lambda[...])) * future.size / 200
    w = np.linalg.solve(history.T @ history + shift * np.eye(20), history.T @ future).T
    d = np.einsum("th,bhc->btc", w, e[:, -20:])
    for conv, norm in zip(model.decoder.convs, model.decoder.norms, strict=False):
        d = plain_norm(plain_elu(plain_conv(d, conv)), norm)
    d = plain_conv(d, model.decoder.convs[-1])
    return plain_elu(d) if model.decoder.last_activation else d


@pytest.mark.parametrize("last_activation", [True, False])
def test_the_forecast_is_that_of_plain_arithmetic(last_activation):
    model = make_model(last_activation=last_activation)
    x = windows()
    expected = plain_forecast(model, x)
    assert expected.shape == (8, 10, 1)
    np.testing.assert_allclose(model(x), expected, rtol=1e-8, atol=1e-9)


def test_the_last_activation_bounds_the_forecast_below():
    x = windows(seed=1) * 5
    assert float(make_model("closed_form")(x).min()) > -0.5


def test_the_formula_of_the_ridge_makes_the_gradient_vanish():
    key = jax.random.key(0)
    history, future = jax.random.normal(key, (3, 20, 5)), jax.random.normal(key, (3, 10, 5))
    w = ridge_weights(history, future, jnp.log(0.3))
    slope = jax.grad(postdiction_loss)(w, history, future, jnp.log(0.3))
    assert float(jnp.abs(slope).max()) < 1e-15


def test_the_argmin_predictor_and_the_formula_agree_in_value_and_in_every_gradient():
    x, y = windows(), jnp.ones((8, 10, 1))

    def value_and_slopes(predictor):
        graphdef, weights, rest = nnx.split(make_model(predictor), nnx.Param, ...)

        def loss(weights):
            return jnp.mean((nnx.merge(graphdef, weights, rest, copy=True)(x) - y) ** 2)

        value, slopes = jax.jit(jax.value_and_grad(loss))(weights)
        return value, nnx.to_pure_dict(slopes)

    (value, slopes), (expected, formula) = map(value_and_slopes, ("argmin", "closed_form"))
    np.testing.assert_allclose(value, expected, rtol=1e-10)
    assert float(jnp.abs(slopes["predictor"]["log_lambda"])) > 1e-6
    largest = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(formula))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-8, atol=1e-10 * largest),
        slopes,
        formula,
    )


@pytest.fixture(scope="module")
def stepped():
    """A model's state before, and after one and two steps of training on the same batch."""
    graphdef, state = nnx.split(make_model())
    optimizer = training.make_optimizer(1e-2, 0.9, 10)
    step = training.make_train_step(graphdef, optimizer)
    opt_state = training.init_optimizer(optimizer, state)
    x, y = windows(), jnp.zeros((8, 10, 1))
    once, opt_state, *_ = step(state, opt_state, x, y)
    twice, opt_state, *_ = step(once, opt_state, x, y)
    return graphdef, opt_state, (state, once, twice)


def test_the_optimizer_has_no_moments_for_w_or_the_statistics(stepped):
    _, opt_state, (state, *_) = stepped
    moments = next(part for part in opt_state if isinstance(part, optax.ScaleByAdamState))
    weights = nnx.filter_state(state, nnx.Param)
    assert jax.tree.structure(moments.mu) == jax.tree.structure(weights)
    assert "argmin" not in weights["predictor"]


def test_w_after_a_step_is_the_solution_and_no_step_of_the_optimizer(stepped):
    graphdef, _, (state, once, _) = stepped
    model = nnx.merge(graphdef, state, copy=True)
    e = model.encoder(windows())
    expected = ridge_weights(e[:, :20], e[:, 20:], jnp.zeros(()))
    w = once["predictor"]["argmin"]["y"].get_value()
    np.testing.assert_allclose(w, expected, rtol=1e-8, atol=1e-10)


def test_the_inner_problem_is_quadratic_and_takes_no_step_of_a_solver(stepped):
    _, _, (_, once, twice) = stepped
    for state in (once, twice):
        report = state["predictor"]["argmin"]["report"].get_value()
        assert int(report.status) == Status.CONVERGED
        assert int(report.steps) == 0


def test_lambda_and_every_weight_move(stepped):
    _, _, (state, _, twice) = stepped
    before, after = (jax.tree.leaves(nnx.filter_state(s, nnx.Param)) for s in (state, twice))
    assert all(bool(jnp.any(a != b)) for a, b in zip(before, after, strict=True))


def poisoned(x):
    return x.at[3, 7, 0].set(jnp.nan)


@pytest.fixture(scope="module")
def steps():
    """The step under ``on_failure="nan"``, and a state and moments that one step has moved."""
    graphdef, state = nnx.split(make_model(on_failure="nan"))
    optimizer = training.make_optimizer(1e-2, 0.9, 10)
    step = training.make_train_step(graphdef, optimizer)
    start = state, training.init_optimizer(optimizer, state)
    state, opt_state, *_ = step(*start, windows(), jnp.zeros((8, 10, 1)))
    return step, start, (state, opt_state)


def bits(tree):
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(tree)]


def without_report(state):
    return nnx.filter_state(state, nnx.Not(LastReport))


@pytest.mark.parametrize(
    ("poison_x", "poison_y", "status"),
    [
        (poisoned, lambda y: y, Status.NOT_FINITE),  # the inner problem has no solution
        (lambda x: x, lambda y: y.at[0, 0, 0].set(jnp.nan), Status.CONVERGED),  # the loss is NaN
        (lambda x: x, lambda y: y.at[0, 0, 0].set(1e160), Status.CONVERGED),  # it overflows
    ],
)
def test_a_step_on_a_poisoned_batch_leaves_everything_but_the_report_bit_for_bit(
    steps, poison_x, poison_y, status
):
    step, _, (state, opt_state) = steps
    x, y = windows(seed=1), jnp.ones((8, 10, 1))
    after, opt_after, loss, taken = step(state, opt_state, poison_x(x), poison_y(y))
    assert not taken and not jnp.isfinite(loss)
    assert bits((without_report(after), opt_after)) == bits((without_report(state), opt_state))
    assert int(after["predictor"]["argmin"]["report"].get_value().status) == status
    expected, found = step(state, opt_state, x, y), step(after, opt_after, x, y)
    assert bits(found) == bits(expected) and expected[3]


class Root(nnx.Module):
    """sqrt(w), which is finite at 0, as its slope is not."""

    def __init__(self):
        self.w = nnx.Param(jnp.zeros(()))

    def __call__(self, x):
        return jnp.sqrt(self.w[...]) + 0 * x


def test_a_gradient_that_is_not_finite_skips_the_step_though_the_loss_is_finite():
    graphdef, state = nnx.split(Root())
    optimizer = training.make_optimizer(1e-2, 0.9, 10)
    opt_state = training.init_optimizer(optimizer, state)
    step = training.make_train_step(graphdef, optimizer)
    after, opt_after, loss, taken = step(state, opt_state, jnp.ones(3), jnp.ones(3))
    assert loss == 1 and not taken
    assert bits((after, opt_after)) == bits((state, opt_state))


def test_a_step_that_is_taken_is_that_of_the_plain_recipe():
    """To rounding: the recipe is another program. Both predictors have the same weights."""
    graphdef, state = nnx.split(make_model(on_failure="nan"))
    optimizer = training.make_optimizer(1e-2, 0.9, 10)
    opt_state = training.init_optimizer(optimizer, state)
    x, y = windows(), jnp.ones((8, 10, 1))
    after, moments, loss, taken = training.make_train_step(graphdef, optimizer)(
        state, opt_state, x, y
    )

    @jax.jit
    @jax.value_and_grad
    def loss_of(weights):
        return jnp.mean((nnx.merge(graphdef, weights, rest, copy=True)(x) - y) ** 2)

    weights, rest = nnx.split_state(state, nnx.Param, ...)
    expected, slopes = loss_of(weights)
    updates, expected_moments = optimizer.update(slopes, opt_state, weights)
    moved = optax.apply_updates(weights, updates)
    assert taken
    np.testing.assert_allclose(loss, expected, rtol=1e-12)
    for a, b in zip(
        jax.tree.leaves((nnx.filter_state(after, nnx.Param), moments)),
        jax.tree.leaves((moved, expected_moments)),
        strict=True,
    ):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12)


def test_prediction_uses_the_running_statistics_and_leaves_the_state(stepped):
    graphdef, _, (_, once, _) = stepped
    x = windows(seed=5)
    kept = jax.tree.map(np.asarray, once)
    found = training.make_predict(graphdef)(once, x)
    model = nnx.merge(graphdef, once, copy=True)
    model.train()
    assert float(jnp.abs(found - model(x)).max()) > 1e-3
    jax.tree.map(np.testing.assert_array_equal, kept, jax.tree.map(np.asarray, once))


def test_running_statistics_move_a_tenth_of_the_way():
    model = make_model("closed_form")
    x = windows()
    mean = plain_elu(plain_conv(np.asarray(x), model.encoder.convs[0])).mean(axis=(0, 1))
    model(x)
    np.testing.assert_allclose(model.encoder.norms[0].mean[...], 0.1 * mean, rtol=1e-12)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_all_floating_state_and_the_forecast_have_the_chosen_dtype(dtype):
    model = EncoderPredictorDecoder(rngs=nnx.Rngs(0), dtype=dtype)
    assert model(windows(dtype=dtype)).dtype == dtype
    leaves = jax.tree.leaves(nnx.state(model))
    assert {x.dtype for x in leaves if jnp.issubdtype(x.dtype, jnp.floating)} == {jnp.dtype(dtype)}


def test_both_predictors_come_with_the_same_weights_for_a_seed():
    argmin, formula = (
        jax.tree.leaves(nnx.state(make_model(kind), nnx.Param))
        for kind in ("argmin", "closed_form")
    )
    jax.tree.map(np.testing.assert_array_equal, argmin, formula)


def test_an_unknown_predictor_and_a_wrong_shape_are_refused():
    with pytest.raises(ValueError, match="predictor must be one of argmin, closed_form"):
        make_model("lasso")
    with pytest.raises(ValueError, match="tol: options of the argmin"):
        make_model("closed_form", tol=1e-3)
    with pytest.raises(ValueError, match=r"shape \(batch, 30, 1\).*found \(8, 1, 30\)"):
        make_model("closed_form")(jnp.zeros((8, 1, 30)))
