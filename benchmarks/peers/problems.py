"""The problems of families a to c: unconstrained, alone and in lanes, and least squares."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Scalar

from ..lbfgs_problems import Problem, logistic, model_ridge, pseudo_huber

SEED = 0
QUARTIC_SIZE = 20_000


@dataclass(frozen=True)
class Case:
    """A problem with its data, and the loss that is differentiated through its minimiser.

    The loss is <weights, y*>; gradients are asked for in every floating param.

    Attributes:
        lanes: 1, or the size of the leading axis of ``start``, ``params`` and ``weights``.
        residual: where the objective is half the sum of its squares.
        bandwidth: of the Hessian, where it is banded.
        eq, ineq: constraints ``(y, *params)``, == 0 and <= 0.
    """

    name: str
    kind: str
    lanes: int
    objective: Callable[..., Scalar]
    start: np.ndarray
    params: tuple[np.ndarray, ...]
    weights: np.ndarray
    residual: Callable[..., Array] | None = None
    bandwidth: int | None = None
    eq: Callable[..., Array] | None = None
    ineq: Callable[..., Array] | None = None

    @property
    def unknowns(self) -> int:
        """Of one lane."""
        return self.start.size // self.lanes

    @property
    def floating(self) -> tuple[int, ...]:
        """Which params get gradients."""
        return tuple(k for k, p in enumerate(self.params) if np.issubdtype(p.dtype, np.floating))

    def lane(self, k: int) -> "Case":
        """Lane k by itself."""
        if self.lanes == 1:
            return self
        return Case(
            **vars(self)
            | {
                "lanes": 1,
                "start": self.start[k],
                "params": tuple(p[k] for p in self.params),
                "weights": self.weights[k],
            }
        )


def softmax(rng: np.random.Generator, features: int = 30, classes: int = 10) -> Problem:
    x = rng.normal(size=(400, features))
    labels = np.argmax(x @ rng.normal(size=(features, classes)) + rng.gumbel(size=classes), axis=1)

    def objective(w, x, labels, log_penalty):
        w = w.reshape(features, classes)
        logits = x @ w
        chosen = jnp.take_along_axis(logits, labels[:, None], axis=1)[:, 0]
        loss = jnp.mean(jax.nn.logsumexp(logits, axis=1) - chosen)
        return loss + jnp.exp(log_penalty) * jnp.sum(w**2) / 2

    return Problem(
        "softmax",
        f"multinomial regression of 400 samples on {features} features with {classes} classes and "
        "the penalty 1e-2 |W|² / 2, from zero",
        objective,
        np.zeros(features * classes),
        (x, labels, np.log(1e-2)),
    )


def rosenbrock(rng: np.random.Generator, n: int = 20) -> Problem:
    centres = 1 + 0.1 * rng.normal(size=n - 1)

    def objective(y, centres):
        return jnp.sum(100 * (y[1:] - y[:-1] ** 2) ** 2 + (centres - y[:-1]) ** 2)

    return Problem(
        "Rosenbrock",
        f"the chained Rosenbrock function in {n} dimensions, its centres being parameters near 1, "
        "from (-1.2, 1, -1.2, 1, ...)",
        objective,
        np.where(np.arange(n) % 2 == 0, -1.2, 1.0),
        (centres,),
    )


def quartic(rng: np.random.Generator, n: int = QUARTIC_SIZE) -> Problem:
    targets = 2 * rng.normal(size=n)

    def objective(y, targets):
        own = jnp.sum((y - targets) ** 2 / 2 + y**4 / 4)
        return own + jnp.sum((y[1:] - y[:-1]) ** 2) / 2

    return Problem(
        "quartic",
        f"a chain of {n:,} unknowns, (y - t)² / 2 + y⁴ / 4 each, neighbours tied by half the "
        "square of their difference, from zero",
        objective,
        np.zeros(n),
        (targets,),
    )


def _sum_of_squares(residual: Callable[..., Array]) -> Callable[..., Scalar]:
    return lambda y, *params: jnp.sum(residual(y, *params) ** 2) / 2


def exponentials_residual(
    y: Float[Array, "4"], times: Float[Array, " m"], found: Float[Array, " m"]
) -> Float[Array, " m"]:
    return y[0] * jnp.exp(-y[1] * times) + y[2] * jnp.exp(-y[3] * times) - found


def exponentials(rng: np.random.Generator) -> Problem:
    times = np.linspace(0, 4, 60)
    found = 2 * np.exp(-0.4 * times) + 3 * np.exp(-2.5 * times) + 0.3 * rng.normal(size=60)
    return Problem(
        "exponentials",
        "two decaying exponentials, 4 unknowns, fitted to 60 values with noise of size 0.3",
        _sum_of_squares(exponentials_residual),
        np.array([1.5, 0.3, 3.5, 3.0]),
        (times, found),
    )


def sines_residual(
    y: Float[Array, " n"], x: Float[Array, "m n"], found: Float[Array, " m"]
) -> Float[Array, " m"]:
    return jnp.sin(x @ y) - found


def sines(rng: np.random.Generator, samples: int = 200, n: int = 40) -> Problem:
    x = rng.normal(size=(samples, n)) / np.sqrt(n)
    truth = 0.5 * rng.normal(size=n)
    return Problem(
        "sines",
        f"sin(x'y) of {n} unknowns fitted to {samples} values with noise of size 0.3, from zero",
        _sum_of_squares(sines_residual),
        np.zeros(n),
        (x, np.sin(x @ truth) + 0.3 * rng.normal(size=samples)),
    )


SINGLE = (model_ridge, logistic, softmax, pseudo_huber, rosenbrock, quartic)
LEAST_SQUARES = (exponentials, sines)
RESIDUALS = {"exponentials": exponentials_residual, "sines": sines_residual}
BANDWIDTHS = {"quartic": 1}
LANES = (64, 1024)
# A thousand quartics are twenty million unknowns: gigabytes for each method that keeps a history.
MOST_UNKNOWNS_IN_LANES = 2_000_000


def make_case(make: Callable[..., Problem], lanes: int = 1) -> Case:
    """The same numbers in every process: a case is named by its maker and its lanes."""
    problem = make(np.random.default_rng(SEED))
    rng = np.random.default_rng(SEED + 1)
    start, *params = problem.lanes(rng, lanes)
    params = [
        # lanes() perturbs the first parameter, and with it leaves nothing an integer.
        np.ascontiguousarray(p, dtype=np.asarray(own).dtype)
        for p, own in zip(params, problem.params, strict=True)
    ]
    weights = rng.normal(size=start.shape)
    if lanes == 1:
        start, weights, params = start[0], weights[0], [p[0] for p in params]
    return Case(
        name=problem.name if lanes == 1 else f"{problem.name} x {lanes}",
        kind=problem.name,
        lanes=lanes,
        objective=problem.objective,
        start=start,
        params=tuple(np.asarray(p) for p in params),
        weights=weights,
        residual=RESIDUALS.get(problem.name),
        bandwidth=BANDWIDTHS.get(problem.name),
    )


def family_a() -> dict[str, Callable[[], Case]]:
    return {_name(make): partial(make_case, make) for make in SINGLE}


def family_b() -> dict[str, Callable[[], Case]]:
    return {
        f"{_name(make)} x {lanes}": partial(make_case, make, lanes)
        for make in SINGLE
        for lanes in LANES
        if make is not quartic or lanes * QUARTIC_SIZE <= MOST_UNKNOWNS_IN_LANES
    }


def family_c() -> dict[str, Callable[[], Case]]:
    return {_name(make): partial(make_case, make) for make in LEAST_SQUARES}


def _name(make: Callable[..., Problem]) -> str:
    return {"model_ridge": "model's ridge", "pseudo_huber": "pseudo-Huber"}.get(
        make.__name__, make.__name__ if make is not rosenbrock else "Rosenbrock"
    )
