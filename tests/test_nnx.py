"""`ArgminLayer`: a warm start that no optimiser moves and no failure spoils."""

import jax
import jax.numpy as jnp
import optax
import pytest
from flax import nnx

from argmin_jax import ArgminError, Status, argmin
from argmin_jax.nnx import ArgminLayer, LastReport, WarmStart

from .problems import assert_close

T = jnp.array([2.0, 3.0])


def well(y, t):
    """Far from quadratic, so that a cold start takes steps: y* = t, and none below t = -20."""
    return jnp.sum(jnp.cosh(y - t)) + jnp.where(t[0] < -20, jnp.nan, 0.0)


def layer(**options):
    return ArgminLayer(well, jnp.array([-3.0, 9.0]), **options)


@nnx.jit
def call(layer, t):
    return layer(t)


@nnx.jit
def loss_and_gradient(layer, t):
    return nnx.value_and_grad(lambda layer, t: jnp.sum(jnp.sin(layer(t))), argnums=1)(layer, t)


def test_second_call_starts_where_the_first_ended():
    argmin_layer = layer()
    assert_close(call(argmin_layer, T), T, 1e-10)
    first = int(argmin_layer.report.get_value().steps)
    assert_close(argmin_layer.y.get_value(), T, 1e-10)
    assert_close(call(argmin_layer, T + 1e-3), T + 1e-3, 1e-10)
    assert int(argmin_layer.report.get_value().steps) < first
    call(argmin_layer, T + 1e-3)
    assert int(argmin_layer.report.get_value().steps) == 0


def test_report_is_that_of_the_last_call():
    argmin_layer = layer()
    assert int(argmin_layer.report.get_value().status) == Status.NOT_RUN
    call(argmin_layer, T)
    assert int(argmin_layer.report.get_value().status) == Status.CONVERGED
    assert float(argmin_layer.report.get_value().stationarity) <= 1e-8


def test_split_and_merge_inside_jax_jit_carry_the_warm_start_on():
    graph, state = nnx.split(layer())

    @jax.jit
    def step(state, t):
        argmin_layer = nnx.merge(graph, state)
        y = argmin_layer(t)
        return y, nnx.state(argmin_layer), argmin_layer.report.get_value().steps

    y, state, cold = step(state, T)
    assert_close(y, T, 1e-10)
    y, state, warm = step(state, T)
    assert_close(y, T, 1e-10)
    assert 0 == int(warm) < int(cold)
    assert step._cache_size() == 1


@pytest.mark.parametrize("policy", ["ignore", "nan"])
def test_failed_solve_leaves_the_warm_start_as_it_was(policy):
    argmin_layer = layer(on_failure=policy)
    call(argmin_layer, T)
    y = call(argmin_layer, jnp.array([-30.0, 0.0]))
    assert jnp.isnan(y).all() == (policy == "nan")
    assert int(argmin_layer.report.get_value().status) == Status.NOT_FINITE
    assert_close(argmin_layer.y.get_value(), T, 1e-10)
    assert_close(call(argmin_layer, T), T, 1e-10)
    assert int(argmin_layer.report.get_value().steps) == 0


def test_failed_solve_raises_by_default():
    with pytest.raises(ArgminError, match="NOT_FINITE"):
        layer()(jnp.array([-30.0, 0.0]))


def test_no_optimiser_moves_the_warm_start():
    class Model(nnx.Module):
        def __init__(self):
            self.t = nnx.Param(T)
            self.argmin = layer()

        def __call__(self):
            return self.argmin(self.t[...])

    model = Model()
    assert len(jax.tree.leaves(nnx.state(model, nnx.Param))) == 1
    assert len(jax.tree.leaves(nnx.state(model, WarmStart))) == 1
    assert len(jax.tree.leaves(nnx.state(model, LastReport))) > 1
    optimiser = nnx.Optimizer(model, optax.sgd(0.1), wrt=nnx.Param)

    @nnx.jit
    def train(model, optimiser):
        loss, gradient = nnx.value_and_grad(lambda model: jnp.sum(model() ** 2))(model)
        optimiser.update(model, gradient)
        return loss, gradient

    loss, gradient = train(model, optimiser)
    # The loss is sum(t^2): its gradient is 2 t, and the step leads to 0.8 t.
    assert_close(loss, jnp.sum(T**2), 1e-10)
    assert_close(jax.tree.leaves(gradient), [2 * T], 1e-10)
    assert_close(model.t[...], 0.8 * T, 1e-10)
    assert_close(model.argmin.y.get_value(), T, 1e-10)  # the solution before the step, unmoved


def test_gradients_are_those_of_argmin_cold_and_warm():
    argmin_layer = layer()
    exact = jax.grad(lambda t: jnp.sum(jnp.sin(argmin(well, jnp.array([-3.0, 9.0]), t))))(T)
    assert_close(exact, jnp.cos(T), 1e-10)  # y* = t
    for _ in range(2):
        loss, gradient = loss_and_gradient(argmin_layer, T)
        assert_close(loss, jnp.sum(jnp.sin(T)), 1e-10)
        assert_close(gradient, exact, 1e-10)
    assert int(argmin_layer.report.get_value().steps) == 0


def test_warm_start_carries_no_gradient_to_the_next_call():
    graph, state = nnx.split(layer())

    def second_solution(first_t):
        argmin_layer = nnx.merge(graph, state, copy=True)
        argmin_layer(first_t)
        return jnp.sum(argmin_layer(T))

    assert_close(jax.jit(jax.grad(second_solution))(T + 1), jnp.zeros(2), 0.0)


def test_start_may_be_a_pytree_and_the_graph_is_hashable():
    argmin_layer = ArgminLayer(
        lambda y, t: jnp.sum(jnp.cosh(y["a"] - t)) + y["b"] ** 2,
        {"a": jnp.zeros(2), "b": jnp.ones(())},
        max_steps=50,
    )
    hash(nnx.graphdef(argmin_layer))
    y = call(argmin_layer, T)
    assert_close(y, {"a": T, "b": jnp.zeros(())}, 1e-10)
    assert_close(argmin_layer.y.get_value(), y, 0.0)
