"""The forecaster: a convolutional encoder, a linear forecast fitted by an argmin, a decoder.

Axes: b segments of a batch, days, c channels, last. The embedding of a batch is (b, 30, 16).

The forecast is linear in the embedding, and its matrix W is no weight of the network: it is
fitted, anew for each batch, to *postdict* the last 10 known days from the 20 before them, by
ridge regression. The same W then carries the last 20 known days 10 days further. The gradient of
the loss reaches the encoder and the ridge's lambda through W.
"""

import itertools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Scalar

from argmin_jax.nnx import ArgminLayer

BASE_DAYS = 30
TARGET_DAYS = 10
HISTORY_DAYS = BASE_DAYS - TARGET_DAYS
CHANNELS = (1, 4, 8, 16)
PREDICTORS = ("argmin", "closed_form")


def postdiction_loss(
    w: Float[Array, "t h"],
    history: Float[Array, "b h c"],
    future: Float[Array, "b t c"],
    log_lambda: Scalar,
) -> Scalar:
    """mean((X Wᵀ - Y)²) + lambda mean(W²), each day's row of W acting on the days, every channel
    of every segment being one observation."""
    error = apply_weights(w, history) - future
    return jnp.mean(error**2) + jnp.exp(log_lambda) * jnp.mean(w**2)


def ridge_weights(
    history: Float[Array, "b h c"], future: Float[Array, "b t c"], log_lambda: Scalar
) -> Float[Array, "t h"]:
    """The minimiser of `postdiction_loss` by its formula.

    With N = b t c observed values and t h weights, the gradient 2/N (W G - C) + 2 lambda/(t h) W
    vanishes for W (G + lambda N/(t h) I) = C, where G = sum x xᵀ and C = sum y xᵀ over segments
    and channels.
    """
    gram = jnp.einsum("bic,bjc->ij", history, history)
    cross = jnp.einsum("btc,bjc->tj", future, history)
    weights = future.shape[1] * history.shape[1]
    shift = jnp.exp(log_lambda) * (future.size / weights)
    factor = jax.scipy.linalg.cho_factor(gram + shift * jnp.eye(len(gram), dtype=gram.dtype))
    return jax.scipy.linalg.cho_solve(factor, cross.T).T


def apply_weights(w: Float[Array, "t h"], history: Float[Array, "b h c"]) -> Float[Array, "b t c"]:
    """X Wᵀ, channel by channel."""
    return jnp.einsum("th,bhc->btc", w, history)


class Encoder(nnx.Module):
    """(b, days, 1) -> (b, days, 16): thrice convolution, ELU, batch normalisation."""

    def __init__(self, *, rngs: nnx.Rngs, dtype: Any = jnp.float32):
        pairs = list(itertools.pairwise(CHANNELS))
        self.convs = nnx.List([_conv(*pair, rngs, dtype) for pair in pairs])
        self.norms = nnx.List([_norm(channels, rngs, dtype) for _, channels in pairs])

    def __call__(self, x: Float[Array, "b d 1"]) -> Float[Array, "b d 16"]:
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = norm(_elu(conv(x)))
        return x


class Decoder(nnx.Module):
    """(b, days, 16) -> (b, days, 1): as the encoder, without the last normalisation.

    Args:
        last_activation: whether the last convolution is followed by ELU. ELU(0.5) is never below
            -0.5, so that with it no standardised price that falls by more than half a standard
            deviation can be forecast.
    """

    def __init__(self, *, rngs: nnx.Rngs, dtype: Any = jnp.float32, last_activation: bool = True):
        pairs = list(itertools.pairwise(CHANNELS[::-1]))
        self.convs = nnx.List([_conv(*pair, rngs, dtype) for pair in pairs])
        self.norms = nnx.List([_norm(channels, rngs, dtype) for _, channels in pairs[:-1]])
        self.last_activation = last_activation

    def __call__(self, x: Float[Array, "b d 16"]) -> Float[Array, "b d 1"]:
        for conv, norm in zip(self.convs, self.norms, strict=False):
            x = norm(_elu(conv(x)))
        x = self.convs[-1](x)
        return _elu(x) if self.last_activation else x


class ArgminPredictor(nnx.Module):
    """(b, 30, 16) -> (b, 10, 16), by the W that `argmin_jax` finds for this batch.

    Attributes:
        log_lambda: the logarithm of the ridge's lambda, which is learned and starts at 1.
        argmin: the layer; its state is the last W (10, 20), where the next solve starts.
    """

    def __init__(self, *, rngs: nnx.Rngs, dtype: Any = jnp.float32, **argmin_options: Any):
        self.log_lambda = nnx.Param(jnp.zeros((), dtype))
        start = jax.random.normal(rngs.params(), (TARGET_DAYS, HISTORY_DAYS), dtype)
        # Training looks at the status alone; the estimates would cost a tenth of a step.
        self.argmin = ArgminLayer(postdiction_loss, start, estimates=False, **argmin_options)

    def __call__(self, e: Float[Array, "b 30 c"]) -> Float[Array, "b 10 c"]:
        w = self.argmin(e[:, :HISTORY_DAYS], e[:, HISTORY_DAYS:], self.log_lambda[...])
        return apply_weights(w, e[:, -HISTORY_DAYS:])


class RidgePredictor(nnx.Module):
    """The same as `ArgminPredictor`, by the formula of ridge regression: the yardstick.

    Attributes:
        log_lambda: as there.
        w: the last W (10, 20), to be looked at; it has no influence on the next.
    """

    def __init__(self, *, dtype: Any = jnp.float32):
        self.log_lambda = nnx.Param(jnp.zeros((), dtype))
        self.w = nnx.Variable(jnp.zeros((TARGET_DAYS, HISTORY_DAYS), dtype))

    def __call__(self, e: Float[Array, "b 30 c"]) -> Float[Array, "b 10 c"]:
        w = ridge_weights(e[:, :HISTORY_DAYS], e[:, HISTORY_DAYS:], self.log_lambda[...])
        self.w.set_value(jax.lax.stop_gradient(w))
        return apply_weights(w, e[:, -HISTORY_DAYS:])


class EncoderPredictorDecoder(nnx.Module):
    """Forecasts 10 days from 30: (b, 30, 1) -> (b, 10, 1), in the units of its input.

    Args:
        rngs: draws the weights. The same seed gives both kinds of predictor the same weights.
        dtype: of the parameters, of W and of the computation; the input should have it too.
        last_activation: see `Decoder`.
        predictor: "argmin" or "closed_form": `ArgminPredictor` or `RidgePredictor`.
        **argmin_options: options of `argmin_jax.solve`, for the argmin predictor.

    ``model.train()`` and ``model.eval()`` choose the statistics of batch normalisation. In both
    modes one W serves a whole batch, so that a forecast depends on its companions there.
    """

    def __init__(
        self,
        *,
        rngs: nnx.Rngs,
        dtype: Any = jnp.float32,
        last_activation: bool = True,
        predictor: str = "argmin",
        **argmin_options: Any,
    ):
        if predictor not in PREDICTORS:
            raise ValueError(
                f"predictor must be one of {', '.join(PREDICTORS)}; found {predictor!r}."
            )
        if predictor == "closed_form" and argmin_options:
            raise ValueError(
                f"{', '.join(argmin_options)}: options of the argmin, which "
                "predictor='closed_form' does not run. Leave them out."
            )
        self.encoder = Encoder(rngs=rngs, dtype=dtype)
        self.decoder = Decoder(rngs=rngs, dtype=dtype, last_activation=last_activation)
        if predictor == "argmin":
            self.predictor = ArgminPredictor(rngs=rngs, dtype=dtype, **argmin_options)
        else:
            self.predictor = RidgePredictor(dtype=dtype)

    def __call__(self, x: Float[Array, "b 30 1"]) -> Float[Array, "b 10 1"]:
        if x.ndim != 3 or x.shape[1:] != (BASE_DAYS, 1):
            raise ValueError(
                f"x must have the shape (batch, {BASE_DAYS}, 1), channels last; found {x.shape}."
            )
        return self.decoder(self.predictor(self.encoder(x)))


def _elu(x: Array) -> Array:
    return nnx.elu(x, alpha=0.5)


def _conv(inputs: int, outputs: int, rngs: nnx.Rngs, dtype: Any) -> nnx.Conv:
    return nnx.Conv(
        inputs, outputs, kernel_size=(5,), padding=2, dtype=dtype, param_dtype=dtype, rngs=rngs
    )


def _norm(channels: int, rngs: nnx.Rngs, dtype: Any) -> nnx.BatchNorm:
    norm = nnx.BatchNorm(
        channels,
        momentum=0.9,
        epsilon=1e-5,
        use_fast_variance=False,
        dtype=dtype,
        param_dtype=dtype,
        rngs=rngs,
    )
    # Flax keeps the running statistics in float32 whatever param_dtype is.
    norm.mean = nnx.BatchStat(jnp.zeros((channels,), dtype))
    norm.var = nnx.BatchStat(jnp.ones((channels,), dtype))
    return norm
