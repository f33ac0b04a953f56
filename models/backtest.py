"""Walking forward through prices: train on the past, hold portfolios through the next block, move
on; and what is to be said of the result.

Axes: d days, n stocks, k periods.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np
import pandas as pd
from jaxtyping import Array, Float, Int
from numpy.lib.stride_tricks import sliding_window_view

from .allocation import Learner, Market, Rules, Step, drifted

LOOKBACK = 120  # days, of features and covariance
SHRINKAGE = 0.1  # of the covariance towards its diagonal
TRADING_DAYS = 252
RESAMPLES = 2000
CONFIDENCE = 0.9
BLOCK = 8  # periods that are resampled together

AnyArray = Array | np.ndarray
Decide = Callable[[int, np.ndarray], tuple[AnyArray, Any]]


def closes_of(prices: pd.DataFrame) -> pd.DataFrame:
    """Days by stocks: the days on which every stock has a price."""
    return prices.pivot(index="date", columns="name", values="close").dropna()


def make_market(closes: Float[np.ndarray, "d n"], hold: int) -> Market:
    """Features, covariances and returns of each day, in periods of ``hold`` days. Whatever is
    known of a day comes from the ``LOOKBACK`` returns before it, which end at its close; of the
    first ``LOOKBACK`` days nothing is known, and all is zero."""
    daily = closes[1:] / closes[:-1] - 1
    windows = sliding_window_view(daily, LOOKBACK, axis=0)  # (d - LOOKBACK, n, LOOKBACK)
    covariance = np.einsum("dit,djt->dij", windows, windows) * hold / LOOKBACK
    diagonal = covariance * np.eye(closes.shape[1])
    covariance += SHRINKAGE * (diagonal - covariance)
    future = np.full_like(closes, np.nan)
    future[:-hold] = closes[hold:] / closes[:-hold] - 1
    past = np.zeros_like(closes)
    past[hold:] = future[:-hold]

    def from_first(values: np.ndarray) -> np.ndarray:
        return np.concatenate([np.zeros((LOOKBACK, *values.shape[1:])), values])

    return Market(
        features=jnp.asarray(from_first(_features(windows))),
        covariance=jnp.asarray(from_first(covariance)),
        past=jnp.asarray(past),
        future=jnp.asarray(future),
    )


def _features(windows: Float[np.ndarray, "d n t"]) -> Float[np.ndarray, "d n f"]:
    """Trends over a week, a month, a quarter and the window, each in units of its deviation; the
    same of all stocks together over a month and the window; and how wild the last month was."""
    deviation = np.sqrt(np.mean(windows**2, axis=2))

    def trend(days: int) -> np.ndarray:
        return np.sum(windows[..., -days:], axis=2) / (deviation * np.sqrt(days))

    def of_all(values: np.ndarray) -> np.ndarray:
        return np.broadcast_to(values.mean(axis=1, keepdims=True), values.shape)

    month, whole = trend(21), trend(LOOKBACK)
    wild = np.log(np.sqrt(np.mean(windows[..., -21:] ** 2, axis=2)) / deviation)
    features = [trend(5), month, trend(63), whole, of_all(month), of_all(whole), wild]
    return np.stack(features, axis=2)


def decision_days(
    days: int, hold: int, first_train: int, block: int
) -> Iterator[Int[np.ndarray, " k"]]:
    """The days on which portfolios are chosen, block by block: every ``hold`` days, from the first
    that has ``first_train`` days to learn from, each with a whole period after it."""
    chosen = np.arange(LOOKBACK + first_train + hold, days - hold, hold)
    periods = max(1, block // hold)
    for at in range(0, len(chosen), periods):
        yield chosen[at : at + periods]


def train(
    step: Step,
    learner: Learner,
    market: Market,
    before: int,
    hold: int,
    epochs: int,
    batch: int,
    seed: int,
) -> tuple[Learner, int]:
    """Learns from all days whose period has ended by the close of day ``before``; returns with the
    learner how many days it has seen, those of each epoch counted."""
    days = np.arange(LOOKBACK + hold, before - hold + 1)
    batch = min(batch, len(days))
    for epoch in range(epochs):
        order = np.random.default_rng((seed, before, epoch)).permutation(days)
        for at in range(0, len(order) - batch + 1, batch):
            learner, _ = step(learner, market, jnp.asarray(order[at : at + batch]))
    return learner, epochs * (len(days) // batch) * batch


@dataclass(frozen=True)
class Path:
    """What a strategy did, period by period.

    Attributes:
        weights: chosen at the beginning of each period.
        traded: sum |trades| there, as a share of the wealth; building the first portfolio from
            equal weights.
        net: the return of each period less the cost of the trades.
        failed: how many portfolios were not solved for, and so left as they had become.
    """

    weights: Float[np.ndarray, "k n"]
    traded: Float[np.ndarray, " k"]
    net: Float[np.ndarray, " k"]
    failed: int = 0


class Walker:
    """A strategy on its way: its portfolio, and its `Path` so far."""

    def __init__(self, market: Market, cost: float):
        self.future = np.asarray(market.future)
        self.cost = cost
        stocks = self.future.shape[1]
        self.held = np.full(stocks, 1 / stocks)
        self.rows: list[tuple[np.ndarray, float, float]] = []
        self.failed = 0

    def walk(self, days: Int[np.ndarray, " k"], decide: Decide) -> None:
        for day in days:
            weights, failed = decide(int(day), self.held)
            weights, returns = np.asarray(weights), self.future[day]
            traded = float(np.sum(np.abs(weights - self.held)))
            net = float((1 - self.cost * traded) * (1 + weights @ returns) - 1)
            self.rows.append((weights, traded, net))
            self.failed += bool(failed)
            self.held = np.asarray(drifted(jnp.asarray(weights), jnp.asarray(returns)))

    @property
    def path(self) -> Path:
        weights, traded, net = map(np.array, zip(*self.rows, strict=True))
        return Path(weights, traded, net, self.failed)


def equal_weights(day: int, held: np.ndarray) -> tuple[np.ndarray, bool]:
    return np.full_like(held, 1 / held.size), False


# What is to be said.


@dataclass(frozen=True)
class Estimate:
    """A number, and the interval that holds `CONFIDENCE` of what resampled histories give."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Performance:
    """Of a path, net of costs and by the year. `sharpe` is mean over deviation; `utility` the mean
    of net - aversion/2 net^2 over the periods; `drawdown` the largest loss from a peak."""

    annual_return: float
    volatility: float
    sharpe: Estimate
    utility: float
    turnover: float
    drawdown: float
    failed: int


def wealth_of(path: Path) -> Float[np.ndarray, " k+1"]:
    return np.concatenate([[1.0], np.cumprod(1 + path.net)])


def drawdowns(path: Path) -> Float[np.ndarray, " k+1"]:
    wealth = wealth_of(path)
    return 1 - wealth / np.maximum.accumulate(wealth)


def performance(path: Path, rules: Rules, hold: int, seed: int) -> Performance:
    per_year = TRADING_DAYS / hold
    chosen = resampled(len(path.net), seed)

    def sharpe(net: np.ndarray) -> Any:
        return np.mean(net, axis=-1) / np.std(net, axis=-1) * np.sqrt(per_year)

    return Performance(
        annual_return=float(wealth_of(path)[-1] ** (per_year / len(path.net)) - 1),
        volatility=float(np.std(path.net) * np.sqrt(per_year)),
        sharpe=_estimate(sharpe(path.net), sharpe(path.net[chosen])),
        utility=float(np.mean(_utilities(path, rules)) * per_year),
        turnover=float(np.mean(path.traded) * per_year),
        drawdown=float(np.max(drawdowns(path))),
        failed=path.failed,
    )


def gain(path: Path, over: Path, rules: Rules, hold: int, seed: int) -> Estimate:
    """The utility of one path less that of another, by the year. Both are resampled by the same
    periods, since what moved all stocks moved both."""
    gains = (_utilities(path, rules) - _utilities(over, rules)) * TRADING_DAYS / hold
    chosen = resampled(len(gains), seed)
    return _estimate(np.mean(gains), np.mean(gains[chosen], axis=1))


def _utilities(path: Path, rules: Rules) -> Float[np.ndarray, " k"]:
    return path.net - rules.risk_aversion / 2 * path.net**2


def resampled(periods: int, seed: int) -> Int[np.ndarray, "r k"]:
    """Periods of resampled paths: blocks of `BLOCK` in their order, drawn with replacement and
    around the end (the circular block bootstrap of Politis & Romano 1992), since returns and above
    all their size depend on those just before."""
    blocks = -(-periods // BLOCK)
    starts = np.random.default_rng(seed).integers(periods, size=(RESAMPLES, blocks, 1))
    return ((starts + np.arange(BLOCK)) % periods).reshape(RESAMPLES, -1)[:, :periods]


def _estimate(value: Any, resampled: np.ndarray) -> Estimate:
    low, high = np.quantile(resampled, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Estimate(float(value), float(low), float(high))
