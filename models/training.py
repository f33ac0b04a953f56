"""Training: the step, the epochs, the errors, and the two simple forecasts to beat.

Everything here is a function of its arguments: the batches of an epoch depend on (seed, epoch)
alone, so that a run that is taken up again goes on exactly as it would have. What is made twice
from the same parts is the same function, and so compiled once.

Axes: n segments, b of a batch, t target days.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, PyTree, Scalar

from argmin_jax.nnx import LastReport
from data import Segments

from .forecaster import HISTORY_DAYS, apply_weights, ridge_weights

RIDGE_GRID = tuple(float(10**k) for k in range(-6, 5))

AnyArray = Array | np.ndarray
TrainStep = Callable[
    [nnx.State, Any, AnyArray, AnyArray], tuple[nnx.State, Any, Scalar, Bool[Array, ""]]
]
Predict = Callable[[nnx.State, AnyArray], Array]


@dataclass(frozen=True)
class EpochMetrics:
    """One row of metrics.csv. Losses are mean squared errors in scaled units: `train_loss` the
    mean over the epoch's steps while the weights moved, `test_loss` that of `evaluate`. `skipped`
    counts the steps that were not taken; see `make_train_step`."""

    epoch: int
    learning_rate: float
    train_loss: float
    test_loss: float
    ridge_lambda: float
    skipped: int = 0


@dataclass(frozen=True)
class Progress:
    """All that training needs to go on: after ``len(history)`` epochs."""

    state: nnx.State
    opt_state: Any
    history: tuple[EpochMetrics, ...]


@dataclass(frozen=True)
class Errors:
    """Of forecasts of n segments: root of the mean square, and mean of the absolute value."""

    rmse_scaled: float
    mae_scaled: float
    rmse_dollars: float
    mae_dollars: float


@lru_cache(maxsize=8)
def make_optimizer(
    learning_rate: float, decay: float, steps_per_epoch: int
) -> optax.GradientTransformation:
    """AdamW, whose learning rate is multiplied by ``decay`` after each epoch."""
    schedule = optax.exponential_decay(learning_rate, steps_per_epoch, decay, staircase=True)
    return optax.adamw(schedule, b1=0.9, b2=0.999, eps=1e-5, weight_decay=0.01)


def init_optimizer(optimizer: optax.GradientTransformation, state: nnx.State) -> Any:
    """The optimizer's state: for the weights in ``state`` and not for W or the statistics."""
    return optimizer.init(nnx.filter_state(state, nnx.Param))


@lru_cache(maxsize=8)
def make_train_step(graphdef: nnx.GraphDef, optimizer: optax.GradientTransformation) -> TrainStep:
    """One step of training, as one jitted function.

    Args:
        graphdef: of a model that maps x (b, 30, 1) to forecasts (b, 10, 1), as `nnx.split` gives.
        optimizer: of the model's `nnx.Param`; started by `init_optimizer`.

    Returns:
        ``step(state, opt_state, x, y) -> (state, opt_state, loss, taken)``, where state is all of
        the model's, the last W and the running statistics among it, and loss the mean squared
        error on this batch before the update.

    A step is skipped, and ``taken`` False, where the loss or a gradient is not finite, as where the
    argmin fails under ``on_failure="nan"``: weights, moments, statistics and W stay as they were,
    to the bit, and only the argmin's report tells of it. One bad batch then costs one step, where
    one NaN in the weights would cost the run.

    A Python loop calls it once a batch: as the body of a `lax.scan` its convolutions would take
    a hundred times as long on XLA's CPU backend (jax-ml/jax#12868).
    """

    def loss_of(weights: nnx.State, rest: nnx.State, x: Array, y: Array):
        model = nnx.merge(graphdef, weights, rest, copy=True)
        model.train()
        loss = jnp.mean((model(x) - y) ** 2)
        return loss, nnx.state(model, nnx.Not(nnx.Param))

    @jax.jit
    def step(state: nnx.State, opt_state: Any, x: Array, y: Array):
        weights, rest = nnx.split_state(state, nnx.Param, ...)
        (loss, rest), slopes = jax.value_and_grad(loss_of, has_aux=True)(weights, rest, x, y)
        updates, moments = optimizer.update(slopes, opt_state, weights)
        moved = nnx.merge_state(cast(nnx.State, optax.apply_updates(weights, updates)), rest)
        taken = _all_finite((loss, slopes))
        after, opt_state = jax.tree.map(
            partial(jnp.where, taken), (moved, moments), (state, opt_state)
        )
        after = nnx.merge_state(after, nnx.filter_state(rest, LastReport))
        return after, opt_state, loss, taken

    return step


def _all_finite(tree: PyTree) -> Bool[Array, ""]:
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(tree)]))


@lru_cache(maxsize=8)
def make_predict(graphdef: nnx.GraphDef) -> Predict:
    """``predict(state, x) -> forecast``, jitted: (b, 30, 1) -> (b, 10, 1), with the running
    statistics, leaving ``state`` as it was."""

    @jax.jit
    def predict(state: nnx.State, x: Array) -> Array:
        model = nnx.merge(graphdef, state, copy=True)
        model.eval()
        return model(x)

    return predict


def training_batches(
    count: int, batch_size: int, seed: int, epoch: int
) -> list[Int[np.ndarray, " b"]]:
    """The indices of each batch of an epoch, in an order drawn from (seed, epoch) alone.

    What does not fill a batch is left out; as the order is new each epoch, so is what is left
    out. Raises ValueError if not one batch can be filled.
    """
    if count < batch_size:
        raise ValueError(
            f"batch_size {batch_size} is more than the {count} training segments. Lower it, or "
            "give more prices."
        )
    order = np.random.default_rng((seed, epoch)).permutation(count)
    full = count // batch_size
    return list(order[: full * batch_size].reshape(full, batch_size))


def evaluation_batches(count: int, batch_size: int) -> list[slice]:
    """All segments in their order (by start date), the last batch as short as it comes."""
    return [slice(at, at + batch_size) for at in range(0, count, batch_size)]


def train_epoch(
    step: TrainStep,
    state: nnx.State,
    opt_state: Any,
    x: Float[np.ndarray, "n 30 1"],
    y: Float[np.ndarray, "n 10 1"],
    batches: Sequence[Int[np.ndarray, " b"]],
    on_step: Callable[[float], None] = lambda loss: None,
    on_skip: Callable[[int, nnx.State], None] = lambda number, state: None,
) -> tuple[nnx.State, Any, float, int]:
    """The state and the optimizer's after the given batches, the mean of the losses of the steps
    that were taken (NaN if there is none), and how many were skipped.

    ``on_step`` is told the loss of each step; ``on_skip`` the number of a skipped one, from 1, and
    the state after it, whose reports tell of the batch that was skipped.
    """
    losses = []
    for number, batch in enumerate(batches, 1):
        state, opt_state, loss, taken = step(state, opt_state, x[batch], y[batch])
        if taken:
            losses.append(float(loss))
        else:
            on_skip(number, state)
        on_step(float(loss))
    mean = float(np.mean(losses)) if losses else float("nan")
    return state, opt_state, mean, len(batches) - len(losses)


def forecast(
    predict: Callable[[AnyArray], Array], base: Float[np.ndarray, "n 30 1"], batch_size: int
) -> Float[np.ndarray, "n 10 1"]:
    """Forecasts of all segments, by `evaluation_batches`.

    W is fitted to the base days of a whole batch, so a forecast depends on the other segments
    there: the ``batch_size - 1`` that start next to it in time, each of which may end later
    than the forecast begins. No target day is ever used.
    """
    batches = evaluation_batches(len(base), batch_size)
    return np.concatenate([np.asarray(predict(base[batch])) for batch in batches])


def evaluate(
    predict: Predict, state: nnx.State, segments: Segments, batch_size: int
) -> Float[np.ndarray, "n 10 1"]:
    """The model's forecasts in scaled units; see `forecast`."""
    return forecast(partial(predict, state), segments.base, batch_size)


def persistence(segments: Segments) -> Float[np.ndarray, "n t 1"]:
    """The last known price, repeated; in scaled units."""
    return np.repeat(segments.base[:, -1:], segments.target.shape[1], axis=1)


def ridge(segments: Segments, ridge_lambda: float, batch_size: int) -> Float[np.ndarray, "n 10 1"]:
    """The model without its network: postdiction on the raw windows, by the same batches."""
    log_lambda = np.log(np.asarray(ridge_lambda, segments.base.dtype))

    def predict(x):
        return _ridge_forecast(x, log_lambda)

    return forecast(predict, segments.base, batch_size)


@jax.jit
def _ridge_forecast(x: Float[Array, "b 30 1"], log_lambda: Scalar) -> Float[Array, "b 10 1"]:
    w = ridge_weights(x[:, :HISTORY_DAYS], x[:, HISTORY_DAYS:], log_lambda)
    return apply_weights(w, x[:, -HISTORY_DAYS:])


def best_ridge_lambda(train: Segments, batch_size: int) -> float:
    """The lambda of `RIDGE_GRID` whose ridge errs least, in scaled units, on the training
    segments: the network learns its lambda from these too."""
    errors = [
        np.mean((ridge(train, ridge_lambda, batch_size) - train.target) ** 2)
        for ridge_lambda in RIDGE_GRID
    ]
    # A grid point too small for the precision gives NaN, which no comparison must pick.
    return RIDGE_GRID[int(np.nanargmin(errors))]


def errors_of(forecasts: Float[np.ndarray, "n t 1"], segments: Segments) -> Errors:
    """Errors against the targets, in scaled units and in dollars."""
    scaled = np.asarray(forecasts, np.float64) - segments.target
    dollars = segments.scale[:, None, None] * scaled
    return Errors(
        rmse_scaled=_rms(scaled),
        mae_scaled=float(np.mean(np.abs(scaled))),
        rmse_dollars=_rms(dollars),
        mae_dollars=float(np.mean(np.abs(dollars))),
    )


def _rms(error: np.ndarray) -> float:
    return float(np.sqrt(np.mean(error**2)))
