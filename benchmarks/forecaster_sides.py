"""The contenders of the comparison with PyTorch: the forecaster on JAX's side and on PyTorch's."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
from flax import nnx

import argmin_jax
from models.forecaster import EncoderPredictorDecoder
from models.training import make_train_step

from .pytorch_forecaster import Forecaster, ReferenceArgmin, TunedArgmin

PYTORCH = {"pytorch_reference": ReferenceArgmin, "pytorch_tuned": TunedArgmin}
JAX: dict[str, Callable[..., EncoderPredictorDecoder]] = {
    "argmin_jax": EncoderPredictorDecoder,
    "argmin_jax_newton": partial(EncoderPredictorDecoder, solver=argmin_jax.NewtonCG()),
    "argmin_jax_svd": partial(EncoderPredictorDecoder, linear_solver=argmin_jax.SVD()),
    "closed_form": partial(EncoderPredictorDecoder, predictor="closed_form"),
}
LEARNING_RATE = 1e-4


@dataclass
class Pass:
    """What one training batch gave: all in JAX's layout."""

    w: np.ndarray  # (10, 20)
    predictions: np.ndarray  # (batch, 10)
    loss: float
    gradients: dict[str, np.ndarray]


def make_optimizer() -> optax.GradientTransformation:
    return optax.adamw(LEARNING_RATE, eps=1e-5, weight_decay=0.01)


class JaxSide:
    """One of the JAX contenders, with its own state."""

    def __init__(self, name: str, seed: int):
        model = JAX[name](rngs=nnx.Rngs(seed), dtype=jnp.float64)
        model.train()
        self.graphdef, self.state = nnx.split(model)
        self.step = make_train_step(self.graphdef, make_optimizer())
        self.opt_state = make_optimizer().init(nnx.split_state(self.state, nnx.Param, ...)[0])
        self.start = self.state, self.opt_state
        self.predict = jax.jit(lambda params, rest, x: self._loss(params, rest, x, 0.0)[1])
        self.gradient = jax.jit(jax.value_and_grad(self._loss, has_aux=True))

    def restart(self) -> None:
        """Back to the initial weights and the initial W."""
        self.state, self.opt_state = self.start

    def _loss(self, params, rest, x, y):
        model = nnx.merge(self.graphdef, params, rest, copy=True)
        predictions = model(x)
        _, rest = nnx.split_state(nnx.state(model), nnx.Param, ...)
        return jnp.mean((predictions - y) ** 2), (predictions, rest)

    def split(self):
        return nnx.split_state(self.state, nnx.Param, ...)

    def weights(self) -> dict[str, np.ndarray]:
        return weights_of(self.split()[0])

    def once(self, x, y) -> Pass:
        params, rest = self.split()
        (loss, (predictions, left)), gradients = self.gradient(params, rest, x, y)
        predictor = left["predictor"]
        w = predictor["argmin"]["y"][...] if "argmin" in predictor else predictor["w"][...]
        return Pass(np.array(w), np.array(predictions)[..., 0], float(loss), weights_of(gradients))

    def train(self, x, y) -> float:
        self.state, self.opt_state, loss, _ = self.step(self.state, self.opt_state, x, y)
        return float(loss)

    def runs(self, x, y) -> dict[str, Callable[[], Any]]:
        params, rest = self.split()
        return {
            "forward": lambda: jax.block_until_ready(self.predict(params, rest, x)),
            "forward_backward": lambda: jax.block_until_ready(self.gradient(params, rest, x, y)),
            "train_step": lambda: self.train(x, y),
        }


class PytorchSide:
    """One of the PyTorch contenders, begun from the same weights and the same W."""

    def __init__(self, name: str, weights: dict[str, np.ndarray], w: np.ndarray):
        self.name, self.start = name, (weights, w)
        self.model = Forecaster(PYTORCH[name])
        self.model.load(weights, w)
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=LEARNING_RATE, eps=1e-5, weight_decay=0.01
        )

    def loss(self, x, y):
        predictions = self.model(x)
        return ((predictions - y) ** 2).mean(), predictions

    def restart(self) -> None:
        """Back to the initial weights and the initial W."""
        self.__init__(self.name, *self.start)

    def once(self, x, y) -> Pass:
        """With W settled first: torch's L-BFGS, at the reference's tolerances and without a line
        search, stops short of the minimum by more than what is to be compared."""
        x, y = channels_first(x), channels_first(y)
        with torch.no_grad():
            self.model.predictor.settle(self.model.encoder(x))
        self.optimizer.zero_grad()
        loss, predictions = self.loss(x, y)
        loss.backward()
        w = self.model.predictor.w.numpy().copy()
        return Pass(w, predictions.detach().numpy()[:, 0], loss.item(), self.model.gradients())

    def train(self, x, y) -> float:
        self.optimizer.zero_grad()
        loss, _ = self.loss(x, y)
        loss.backward()
        self.optimizer.step()
        return loss.item()

    def runs(self, x, y) -> dict[str, Callable[[], Any]]:
        x, y = channels_first(x), channels_first(y)

        def forward():
            with torch.no_grad():
                return self.model(x)

        def forward_backward():
            self.optimizer.zero_grad()
            self.loss(x, y)[0].backward()

        return {
            "forward": forward,
            "forward_backward": forward_backward,
            "train_step": lambda: self.train(x, y),
        }


def weights_of(params: nnx.State) -> dict[str, np.ndarray]:
    """Weights (or gradients) by dotted names."""
    flat = nnx.to_flat_state(params)
    return {".".join(map(str, path)): np.array(leaf[...]) for path, leaf in flat}


def channels_first(x: jax.Array) -> torch.Tensor:
    return torch.as_tensor(np.array(x).transpose(0, 2, 1))


def build(contenders: list[str], seed: int) -> dict[str, JaxSide | PytorchSide]:
    """All contenders, from the weights and the W of the same seed."""
    sides: dict[str, Any] = {name: JaxSide(name, seed) for name in contenders if name in JAX}
    source = sides.get("argmin_jax") or JaxSide("argmin_jax", seed)
    w = np.array(source.split()[1]["predictor"]["argmin"]["y"][...])
    sides |= {n: PytorchSide(n, source.weights(), w) for n in contenders if n in PYTORCH}
    return {name: sides[name] for name in contenders}
