"""A portfolio of stocks, chosen by an optimisation problem whose forecast of returns is learned.

Each period the layer solves, for the weights w of n stocks,

    maximise   forecast'w - aversion/2 w'Sw - cost(w - w_before)
    such that  sum(w) = 1,   0 <= w <= cap,   w'Sw <= limit^2,

S the covariance estimated from the past. The network that forecasts is trained either on the
squared error of its forecasts or, through the argmin, on the utility that the weights earned.

Axes: d days, b of a batch, n stocks, f features.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, Scalar

from argmin_jax import Solution, Status, solve

HIDDEN = 16
# Of weight: below it a trade's cost is about quadratic. Ten times sharper, the kink takes the
# interior point, and with it all of a batch, ten times the steps.
SMOOTHING = 1e-2
MAX_STEPS = 200  # a batch waits for its slowest lane; the usual one takes 15


@dataclass(frozen=True)
class Rules:
    """What the weights are held to, and what they are to achieve.

    Attributes:
        cap: the largest weight of a stock; above 1/n.
        volatility: how much more volatile than equal weights the portfolio may be, by S; as it is
            above 1, equal weights are a point strictly inside all constraints.
        cost: of a trade, as a share of what is traded.
        risk_aversion: the price of variance.
    """

    cap: float = 0.5
    volatility: float = 1.05
    cost: float = 1e-3
    risk_aversion: float = 5.0


class Market(eqx.Module):
    """What is known at the close of each day, and what the next period brings.

    Attributes:
        features: of each stock, from the past.
        covariance: of the returns of a period, estimated from the past.
        past: the returns of the period that ends this day.
        future: the returns of the period that begins this day; NaN where it ends after the data.
    """

    features: Float[Array, "d n f"]
    covariance: Float[Array, "d n n"]
    past: Float[Array, "d n"]
    future: Float[Array, "d n"]


class Forecaster(nnx.Module):
    """Expected returns of each stock, from its own features, by one small network for all.

    The network's output is a ratio of return to risk, so that calm and wild stocks and times are
    alike to it.
    """

    def __init__(self, features: int, *, rngs: nnx.Rngs, dtype: Any = jnp.float64):
        self.inner = nnx.Linear(features, HIDDEN, param_dtype=dtype, rngs=rngs)
        # Before it has learned anything it expects nothing.
        zeros = nnx.initializers.zeros_init()
        self.outer = nnx.Linear(HIDDEN, 1, kernel_init=zeros, param_dtype=dtype, rngs=rngs)

    def __call__(
        self, features: Float[Array, "*b n f"], covariance: Float[Array, "*b n n"]
    ) -> Float[Array, "*b n"]:
        ratio = self.outer(jnp.tanh(self.inner(features)))[..., 0]
        return ratio * deviations(covariance)


def deviations(covariance: Float[Array, "*b n n"]) -> Float[Array, "*b n"]:
    return jnp.sqrt(jnp.diagonal(covariance, axis1=-2, axis2=-1))


def smooth_cost(trades: Float[Array, " n"], rate: float) -> Scalar:
    """``rate`` times sum |trades|, rounded where a trade is smaller than `SMOOTHING`."""
    return rate * jnp.sum(jnp.sqrt(trades**2 + SMOOTHING**2) - SMOOTHING)


def choose(
    forecast: Float[Array, " n"],
    covariance: Float[Array, "n n"],
    before: Float[Array, " n"],
    rules: Rules,
) -> Solution:
    """The solution of the problem above; of weights that are NaN where it failed."""
    equal = jnp.full_like(forecast, 1 / forecast.size)
    limit = rules.volatility**2 * equal @ covariance @ equal

    def objective(w, forecast, covariance, before):
        risk = rules.risk_aversion / 2 * w @ covariance @ w
        # In hundredths, so that what is minimised is of the size of the weights.
        return 100 * (risk + smooth_cost(w - before, rules.cost) - forecast @ w)

    return solve(
        objective,
        equal,
        forecast,
        covariance,
        before,
        eq=lambda w, *_: jnp.sum(w) - 1,
        ineq=lambda w, _, covariance, __: w @ covariance @ w / limit - 1,
        bounds=(0.0, rules.cap),
        max_steps=MAX_STEPS,
        on_failure="nan",
    )


def realised_utility(
    w: Float[Array, " n"], before: Float[Array, " n"], returns: Float[Array, " n"], rules: Rules
) -> Scalar:
    """What the weights earned in their period: return less costs and the price of risk."""
    gain = w @ returns
    return gain - smooth_cost(w - before, rules.cost) - rules.risk_aversion / 2 * gain**2


def earned(
    forecast: Float[Array, " n"],
    covariance: Float[Array, "n n"],
    before: Float[Array, " n"],
    returns: Float[Array, " n"],
    rules: Rules,
) -> tuple[Scalar, tuple[Float[Array, " n"], Bool[Array, ""]]]:
    """The utility of the weights chosen for a forecast; the weights, and whether they are one."""
    solution = choose(forecast, covariance, before, rules)
    solved = solution.report.status == Status.CONVERGED
    return realised_utility(solution.y, before, returns, rules), (solution.y, solved)


def drifted(w: Float[Array, "*b n"], returns: Float[Array, "*b n"]) -> Float[Array, "*b n"]:
    """The weights after a period in which nothing was traded."""
    grown = w * (1 + returns)
    return grown / jnp.sum(grown, axis=-1, keepdims=True)


class Learner(eqx.Module):
    """A forecaster in training.

    Attributes:
        weights: of the network.
        moments: of the optimizer.
        memory: for each day the weights that were last chosen for it. A batch of days can then be
            learned from at once, each with the portfolio that it would have met (Jiang, Xu & Liang
            2017, section 4.3, "portfolio-vector memory").
        failed: how many solves failed so far.
    """

    weights: Any
    moments: Any
    memory: Float[Array, "d n"]
    failed: Int[Array, ""]


Step = Callable[[Learner, Market, Array], tuple[Learner, Scalar]]


@lru_cache(maxsize=8)
def make_optimizer(learning_rate: float) -> optax.GradientTransformation:
    return optax.adamw(learning_rate, weight_decay=0.01)


def new_learner(
    market: Market, optimizer: optax.GradientTransformation, seed: int
) -> tuple[nnx.GraphDef, Learner]:
    """Before any training; the same seed gives the same network."""
    days, stocks, features = market.features.shape
    graphdef, weights = nnx.split(Forecaster(features, rngs=nnx.Rngs(seed)))
    memory = jnp.full((days, stocks), 1 / stocks)
    return graphdef, Learner(weights, optimizer.init(weights), memory, jnp.array(0))


@lru_cache(maxsize=8)
def make_utility_step(
    graphdef: nnx.GraphDef, optimizer: optax.GradientTransformation, rules: Rules, hold: int
) -> Step:
    """``step(learner, market, days) -> (learner, mean utility)``: towards more realised utility,
    of which the slope in the forecasts comes through the argmin.

    A day whose solve fails is NaN, value and slope. It is left out here, between the lanes and the
    weights that they share, where one NaN would be all there is.
    """
    lanes = jax.vmap(
        jax.value_and_grad(partial(earned, rules=rules), has_aux=True), in_axes=(0, 0, 0, 0)
    )

    @jax.jit
    def step(learner: Learner, market: Market, days: Int[Array, " b"]):
        covariance, returns = market.covariance[days], market.future[days]
        before = drifted(learner.memory[days - hold], market.past[days])
        forecasts, pull_back = jax.vjp(
            lambda weights: nnx.merge(graphdef, weights)(market.features[days], covariance),
            learner.weights,
        )
        (utilities, (chosen, solved)), slopes = lanes(forecasts, covariance, before, returns)
        good = solved & jnp.all(jnp.isfinite(slopes), axis=1)
        count = jnp.maximum(jnp.sum(good), 1)
        (uphill,) = pull_back(jnp.where(good[:, None], slopes, 0) / count)
        memory = jnp.where(good[:, None], chosen, learner.memory[days])
        failed = learner.failed + jnp.sum(~good)
        after = _moved(learner, optimizer, jax.tree.map(jnp.negative, uphill))
        after = Learner(after.weights, after.moments, learner.memory.at[days].set(memory), failed)
        return after, jnp.sum(jnp.where(good, utilities, 0)) / count

    return step


@lru_cache(maxsize=8)
def make_forecast_step(graphdef: nnx.GraphDef, optimizer: optax.GradientTransformation) -> Step:
    """``step(learner, market, days) -> (learner, mean squared error)`` of the forecast returns, in
    units of their deviations: the usual way, which knows nothing of the portfolio."""

    @jax.jit
    def step(learner: Learner, market: Market, days: Int[Array, " b"]):
        covariance = market.covariance[days]

        def loss_of(weights):
            forecasts = nnx.merge(graphdef, weights)(market.features[days], covariance)
            return jnp.mean(((forecasts - market.future[days]) / deviations(covariance)) ** 2)

        loss, slopes = jax.value_and_grad(loss_of)(learner.weights)
        return _moved(learner, optimizer, slopes), loss

    return step


def _moved(learner: Learner, optimizer: optax.GradientTransformation, slopes: Any) -> Learner:
    updates, moments = optimizer.update(slopes, learner.moments, learner.weights)
    weights = optax.apply_updates(learner.weights, updates)
    return Learner(weights, moments, learner.memory, learner.failed)


@lru_cache(maxsize=8)
def make_decide(graphdef: nnx.GraphDef, rules: Rules) -> Callable[..., tuple[Array, Array]]:
    """``decide(weights, market, day, before)``: the portfolio from this day on. Where the solve
    fails nothing is traded, and the second result is True."""

    @jax.jit
    def decide(weights: Any, market: Market, day: Int[Array, ""], before: Float[Array, " n"]):
        covariance = market.covariance[day]
        forecast = nnx.merge(graphdef, weights)(market.features[day], covariance)
        solution = choose(forecast, covariance, before, rules)
        failed = solution.report.status != Status.CONVERGED
        return jnp.where(failed, before, solution.y), failed

    return decide
