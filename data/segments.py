"""Segments: stretches of one stock, cut into days to learn from and days to forecast.

Axes: n segments, b base days, t target days, and one channel, last.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Float, Shaped

from .prices import check_prices

SCALINGS = ("segment", "none")
SPLITS = ("shuffled", "chronological")


@dataclass(frozen=True, eq=False)
class Segments:
    """Segments of prices, in order of their start date and then of the stock's name.

    Attributes:
        base: (n, b, 1), the days that are known, in scaled units.
        target: (n, t, 1), the days to forecast, in the same units.
        mean: (n,), in dollars.
        scale: (n,), in dollars: price = mean + scale * scaled price.
        name: (n,), the stock.
        start: (n,), the date of the first base day.
        end: (n,), the date of the last target day.
    """

    base: Float[np.ndarray, "n b 1"]
    target: Float[np.ndarray, "n t 1"]
    mean: Float[np.ndarray, " n"]
    scale: Float[np.ndarray, " n"]
    name: Shaped[np.ndarray, " n"]
    start: Shaped[np.ndarray, " n"]
    end: Shaped[np.ndarray, " n"]

    def __len__(self) -> int:
        return len(self.base)

    def __getitem__(self, index: slice | np.ndarray) -> "Segments":
        """The segments that a slice, or an array of indices or of booleans, picks."""
        return Segments(
            self.base[index],
            self.target[index],
            self.mean[index],
            self.scale[index],
            self.name[index],
            self.start[index],
            self.end[index],
        )

    def to_dollars(self, scaled: Float[np.ndarray, "n d 1"]) -> Float[np.ndarray, "n d 1"]:
        """Values in the units of each segment, such as forecasts (n, d, 1), in dollars."""
        return self.mean[:, None, None] + self.scale[:, None, None] * np.asarray(scaled)


def make_segments(
    prices: pd.DataFrame,
    *,
    base_days: int = 30,
    target_days: int = 10,
    scaling: str = "segment",
    split: str = "shuffled",
    train_fraction: float = 0.7,
    seed: int = 0,
) -> tuple[Segments, Segments]:
    """Cuts prices into segments of ``base_days + target_days`` rows, for training and for test.

    Each stock is cut from its first row on, so that no segment holds two stocks; the rows at its
    end that do not fill a segment are dropped.

    Args:
        prices: columns date, name, close, sorted by name and date, as of `data.load_prices`.
        base_days: rows that are known; at least 1.
        target_days: rows to forecast; at least 1.
        scaling: "segment": each segment standardised by the mean and the standard deviation of
            its own base days (never of its target); where they are constant, scale 1. "none":
            dollars.
        split: "shuffled": at random; a test segment may then lie between training segments in
            time. "chronological": by date; every test segment begins after every training
            segment of whatever stock has ended, and segments across that date are dropped.
        train_fraction: the share of the segments that trains, between 0 and 1.
        seed: of the shuffle; the same seed gives the same segments. Without effect on a
            chronological split.

    Returns:
        Training segments and test segments, at least one of each.

    Raises:
        ValueError: a value that cannot be meant; prices that `data.prices.check_prices` refuses;
            too few rows.
    """
    _check_choice("scaling", scaling, SCALINGS)
    _check_choice("split", split, SPLITS)
    _check_days("base_days", base_days)
    _check_days("target_days", target_days)
    if not 0 < train_fraction < 1:
        raise ValueError(f"train_fraction must lie between 0 and 1; found {train_fraction!r}.")
    check_prices(prices)
    segments = _cut(prices, base_days, target_days, scaling)
    if split == "shuffled":
        in_train, in_test = _split_shuffled(len(segments), train_fraction, seed)
    else:
        in_train, in_test = _split_chronological(segments, train_fraction)
    if not in_train.any() or not in_test.any():
        raise ValueError(
            f"prices: {len(segments)} segments of {base_days + target_days} days leave "
            f"{int(in_train.sum())} to train and {int(in_test.sum())} to test (split={split!r}, "
            f"train_fraction={train_fraction}). Give more rows or shorter segments, or change "
            "train_fraction."
        )
    return segments[in_train], segments[in_test]


def _cut(prices: pd.DataFrame, base_days: int, target_days: int, scaling: str) -> Segments:
    days = base_days + target_days
    names, closes, dates = [], [], []
    for name, stock in prices.groupby("name"):
        count = len(stock) // days
        names += [str(name)] * count
        closes.append(stock["close"].to_numpy(np.float64)[: count * days].reshape(count, days))
        dates.append(stock["date"].to_numpy()[: count * days].reshape(count, days))
    if not names:
        longest = prices.groupby("name").size()
        raise ValueError(
            f"prices: too few rows for one segment of {base_days} + {target_days} days; the "
            f"longest stock, {longest.idxmax()}, has {longest.max()}. Give more rows or shorter "
            "segments (base_days, target_days)."
        )
    close, date, name = np.concatenate(closes), np.concatenate(dates), np.array(names)
    base = close[:, :base_days]
    if scaling == "segment":
        mean, scale = base.mean(axis=1), base.std(axis=1)
        # Of equal prices the mean, and so the deviation, may still be off by rounding.
        scale = np.where(np.ptp(base, axis=1) == 0, 1.0, scale)
    else:
        mean, scale = np.zeros(len(close)), np.ones(len(close))
    scaled = ((close - mean[:, None]) / scale[:, None])[:, :, None]
    order = np.lexsort((name, date[:, 0]))
    return Segments(
        scaled[:, :base_days], scaled[:, base_days:], mean, scale, name, date[:, 0], date[:, -1]
    )[order]


def _split_shuffled(count: int, train_fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Masks of the training and of the test segments."""
    order = np.random.default_rng(seed).permutation(count)
    in_train = np.zeros(count, bool)
    in_train[order[: round(train_fraction * count)]] = True
    return in_train, ~in_train


def _split_chronological(
    segments: Segments, train_fraction: float
) -> tuple[np.ndarray, np.ndarray]:
    """Masks of the training and of the test segments."""
    count = max(1, round(train_fraction * len(segments)))
    boundary = np.sort(segments.end)[count - 1]
    return segments.end <= boundary, segments.start > boundary


def _check_choice(argument: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{argument} must be one of {', '.join(choices)}; found {value!r}.")


def _check_days(argument: str, value: int) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 1:
        raise ValueError(f"{argument} must be a whole number of at least 1; found {value!r}.")
