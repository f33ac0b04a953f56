"""`ArgminLayer`: a warm start that no optimiser moves and no failure spoils."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
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


# Flax's transformations, and a checkpoint.


def test_vmap_over_a_stack_of_layers_keeps_a_warm_start_and_a_report_for_each():
    starts = jnp.array([[-3.0, 9.0], [0.0, 0.0], [5.0, 5.0]])
    ts = jnp.stack([T, 2 * T, -T])
    layers = nnx.vmap(lambda start: ArgminLayer(well, start))(starts)
    over_layers = nnx.jit(nnx.vmap(lambda layer, t: layer(t)))
    assert_close(over_layers(layers, ts), ts, 1e-10)
    assert_close(layers.y.get_value(), ts, 1e-10)
    cold = layers.report.get_value().steps
    assert cold.shape == (3,) and (cold > 0).all()
    assert_close(over_layers(layers, ts), ts, 1e-10)
    assert (layers.report.get_value().steps == 0).all()


def test_scan_carries_the_warm_start_from_step_to_step():
    argmin_layer = layer()
    ts = T[None] + jnp.linspace(0, 0.1, 5)[:, None]

    @nnx.jit
    @nnx.scan(in_axes=(nnx.Carry, 0), out_axes=(nnx.Carry, 0))
    def walk(argmin_layer, t):
        y = argmin_layer(t)
        return argmin_layer, (y, argmin_layer.report.get_value().steps)

    argmin_layer, (ys, steps) = walk(argmin_layer, ts)
    assert_close(ys, ts, 1e-10)
    assert_close(argmin_layer.y.get_value(), ts[-1], 1e-10)
    assert (steps[1:] < steps[0]).all()


def test_warm_start_and_report_survive_a_checkpoint(tmp_path):
    trained = layer()
    call(trained, T)
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "layer", nnx.to_pure_dict(nnx.state(trained)))
    fresh = layer()
    with ocp.StandardCheckpointer() as checkpointer:
        state = nnx.state(fresh)
        saved = checkpointer.restore(tmp_path / "layer", nnx.to_pure_dict(state))
    nnx.replace_by_pure_dict(state, saved)
    nnx.update(fresh, state)
    assert_close(fresh.y.get_value(), trained.y.get_value(), 0.0)
    assert_close(fresh.report.get_value(), trained.report.get_value(), 0.0)
    assert_close(call(fresh, T), T, 1e-10)
    assert int(fresh.report.get_value().steps) == 0


def test_layer_without_estimates_gives_the_same_solution_and_status():
    def objective(y, p):
        return jnp.sum(jnp.cosh(y - p))

    p = jnp.array([0.3, -0.7])
    layers = [ArgminLayer(objective, jnp.zeros(2), estimates=wanted) for wanted in (True, False)]
    certified, plain = (layer(p) for layer in layers)
    assert_close(certified, plain, 0.0)
    reports = [layer.report.get_value() for layer in layers]
    assert [int(report.status) for report in reports] == [Status.CONVERGED] * 2
    assert np.isfinite(reports[0].gradient_error) and np.isnan(reports[1].gradient_error)


def test_layer_takes_constraints_and_bounds_that_are_arrays():
    layer = ArgminLayer(
        lambda y, p: jnp.sum((y - p) ** 2),
        jnp.zeros(2),
        eq=lambda y, p: jnp.sum(y) - 1,
        bounds=(jnp.array([0.0, 0.4]), None),
    )
    found = nnx.jit(lambda layer, p: layer(p))(layer, jnp.array([1.0, 0.2]))
    assert_close(found, jnp.array([0.6, 0.4]), 1e-10)
    assert int(layer.report.get_value().status) == Status.CONVERGED
