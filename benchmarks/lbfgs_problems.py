"""The problems on which the L-BFGSs are compared."""

from collections.abc import Callable
from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np
from jaxtyping import Scalar

from models.forecaster import postdiction_loss

START_SPREAD = 0.1
DATA_SPREAD = 0.05


@dataclass(frozen=True)
class Problem:
    """An objective of a flat y and its data, in float64.

    Attributes:
        known: the minimiser, where it is known; else it is computed.
    """

    name: str
    description: str
    objective: Callable[..., Scalar]
    start: np.ndarray
    params: tuple[np.ndarray, ...] = ()
    known: np.ndarray | None = None

    def lanes(self, rng: np.random.Generator, count: int) -> tuple[np.ndarray, ...]:
        """(starts, *params) with ``count`` lanes in front: one lane is the problem itself,
        several have perturbed starts and a perturbed first parameter, the inputs."""
        spread = [START_SPREAD, DATA_SPREAD, *[0.0] * len(self.params)] if count > 1 else []
        batch = [np.repeat(x[None], count, axis=0) for x in (self.start, *self.params)]
        for k, size in enumerate(spread[: len(batch)]):
            noise = size * rng.normal(size=batch[k].shape)
            batch[k] = batch[k] + noise if k == 0 else batch[k] * (1 + noise)
        return tuple(batch)


def model_ridge(rng: np.random.Generator) -> Problem:
    embedding = rng.normal(size=(8, 30, 16))

    def objective(w, history, future, log_lambda):
        return postdiction_loss(w.reshape(10, 20), history, future, log_lambda)

    return Problem(
        "model's ridge",
        "the forecaster's inner problem: ridge regression of a 10 x 20 matrix W on a random "
        "embedding of shape (8, 30, 16), from a random W",
        objective,
        rng.normal(size=200),
        (embedding[:, :20], embedding[:, 20:], np.zeros(())),
    )


def logistic(rng: np.random.Generator, samples: int = 500, features: int = 50) -> Problem:
    x = rng.normal(size=(samples, features))
    chances = 1 / (1 + np.exp(-x @ rng.normal(size=features)))
    labels = (rng.uniform(size=samples) < chances).astype(float)

    def objective(w, x, labels):
        margins = x @ w
        loss = jnp.mean(jnp.logaddexp(0.0, margins) - labels * margins)
        return loss + 1e-3 * jnp.sum(w**2) / 2

    return Problem(
        "logistic",
        f"logistic regression of {samples} samples on {features} features with the penalty "
        "1e-3 |w|² / 2, from zero",
        objective,
        np.zeros(features),
        (x, labels),
    )


def pseudo_huber(rng: np.random.Generator, samples: int = 300, features: int = 40) -> Problem:
    x = rng.normal(size=(samples, features)) * np.geomspace(1, 30, features)
    targets = x @ rng.normal(size=features) + rng.standard_t(df=2, size=samples)

    def objective(w, x, targets):
        return jnp.mean(jnp.sqrt(1 + (x @ w - targets) ** 2) - 1)

    return Problem(
        "pseudo-Huber",
        f"pseudo-Huber regression of {samples} samples on {features} features whose columns are "
        "scaled from 1 to 30, with heavy-tailed noise, from zero",
        objective,
        np.zeros(features),
        (x, targets),
    )


def rosenbrock(rng: np.random.Generator, n: int = 20) -> Problem:
    del rng

    def objective(y):
        return jnp.sum(100 * (y[1:] - y[:-1] ** 2) ** 2 + (1 - y[:-1]) ** 2)

    return Problem(
        "Rosenbrock",
        f"the chained Rosenbrock function in {n} dimensions, from (-1.2, 1, -1.2, 1, ...); a point "
        "that is stationary to the tolerance can still lie far from the reference (1, ..., 1), in "
        "its flat valley or in its second minimum near (-1, 1, ..., 1)",
        objective,
        np.where(np.arange(n) % 2 == 0, -1.2, 1.0),
        known=np.ones(n),
    )


PROBLEMS = (model_ridge, logistic, pseudo_huber, rosenbrock)
