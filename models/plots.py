"""The pictures of the runs. Drawn on figures of their own: no display, no global state."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FormatStrFormatter, LogLocator, MaxNLocator, NullFormatter

from data import Segments

from . import backtest
from .training import EpochMetrics

INK, GREY, BLUE, ORANGE = "#22262e", "#9aa1ad", "#1f6fb4", "#e07b28"


def loss_figure(history: Sequence[EpochMetrics], persistence_loss: float) -> Figure:
    """Training and test loss by epoch, and the loss of persistence on the test segments."""
    epochs = [row.epoch for row in history]
    figure = Figure(figsize=(7.2, 4.2), layout="constrained")
    axes = figure.subplots()
    axes.plot(epochs, [row.train_loss for row in history], "o-", color=BLUE, ms=3, label="training")
    axes.plot(epochs, [row.test_loss for row in history], "o-", color=ORANGE, ms=3, label="test")
    axes.axhline(persistence_loss, color=GREY, ls="--", lw=1.2, label="test, persistence")
    axes.set(xlabel="epoch", ylabel="mean squared error, scaled units")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_title("Loss of the forecaster", loc="left", fontsize=12, color=INK)
    axes.legend(frameon=False)
    _quiet(axes)
    axes.grid(axis="y", color="#e8eaee", lw=0.7)
    return figure


def forecast_figure(
    segments: Segments,
    forecasts: Float[np.ndarray, "n t 1"],
    persistence: Float[np.ndarray, "n t 1"],
    count: int = 6,
) -> Figure:
    """Some test segments, evenly spread in time: what was known, what came, what was forecast.

    Args:
        forecasts, persistence: in scaled units; the picture is in dollars.
    """
    # The middle one of each of ``count`` equal shares.
    chosen = np.unique(((np.arange(count) + 0.5) / count * len(segments)).astype(int))
    prices = [segments.to_dollars(values) for values in (segments.base, segments.target)]
    guesses = [segments.to_dollars(values) for values in (forecasts, persistence)]
    columns = min(3, len(chosen))
    rows = -(-len(chosen) // columns)
    figure = Figure(figsize=(3.9 * columns, 2.7 * rows + 0.6), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes, index in zip(grid, chosen, strict=False):
        base, target, guess, flat = (values[index, :, 0] for values in (*prices, *guesses))
        _draw_segment(axes, base, target, guess, flat)
        start = np.datetime_as_string(segments.start[index], unit="D")
        axes.set_title(f"{segments.name[index]}, from {start}", loc="left", fontsize=10, color=INK)
    for axes in grid[len(chosen) :]:
        axes.remove()
    for row in range(rows):
        grid[row * columns].set_ylabel("dollars")
    for axes in grid[max(0, len(chosen) - columns) : len(chosen)]:
        axes.set_xlabel("trading day")
    handles, labels = grid[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=4, frameon=False)
    return figure


STOCKS = ("#3d8b7d", "#d4b04c", "#7d6bb0", "#c0566f", "#6fa8c9", "#8a6a52", "#93b35a", "#5b6472")


def portfolio_figure(
    dates: pd.DatetimeIndex,
    paths: dict[str, backtest.Path],
    labels: dict[str, str],
    names: Sequence[str],
    shown: str,
) -> Figure:
    """The wealth of each strategy, net of costs; its losses from the peak; and the weights over
    time of the one ``shown``."""
    figure = Figure(figsize=(9.0, 8.2), layout="constrained")
    top, middle, bottom = figure.subplots(3, 1, sharex=True, height_ratios=(3, 1.2, 2))
    colors = dict(zip(paths, (ORANGE, BLUE, GREY), strict=False))
    for name, path in reversed(paths.items()):
        wealth = backtest.wealth_of(path)
        line = {"color": colors[name], "lw": 2.0 if name == shown else 1.5}
        top.plot(dates, wealth, **line)
        note = f"{labels[name]}  {wealth[-1]:.2f}"
        top.plot([], [], **line, label=note)
        middle.plot(dates, -100 * backtest.drawdowns(path), **line)
    top.set_yscale("log")
    top.yaxis.set_major_locator(LogLocator(subs=(1.0, 1.5, 2.0, 3.0, 5.0, 7.0)))
    top.yaxis.set_major_formatter(FormatStrFormatter("%g"))
    top.yaxis.set_minor_formatter(NullFormatter())
    top.legend(frameon=False, reverse=True, loc="upper left", fontsize=9)
    _titled(top, "Wealth net of costs, from 1; every year was unseen when it began", "")
    _titled(middle, "Below the last peak", "percent")
    weights = paths[shown].weights
    weights = 100 * np.vstack([weights, weights[-1:]])
    shades = [STOCKS[i % len(STOCKS)] for i in range(len(names))]
    bottom.stackplot(dates, weights.T, colors=shades, alpha=0.85, lw=0, step="post")
    middles = np.cumsum(weights[-1]) - weights[-1] / 2
    for name, color, height, share in zip(names, shades, middles, weights[-1], strict=True):
        if share > 4:
            bottom.annotate(
                name, (1.01, height), xycoords=("axes fraction", "data"), color=color, va="center",
                fontsize=9, annotation_clip=False,
            )  # fmt: skip
    bottom.set_ylim(0, 100)
    _titled(bottom, f"Weights of the portfolio {labels[shown]}", "percent")
    bottom.set_xlim(dates[0], dates[-1])
    return figure


def _titled(axes: Axes, title: str, unit: str) -> None:
    axes.set_title(title, loc="left", fontsize=11, color=INK)
    axes.set_ylabel(unit)
    axes.grid(axis="y", color="#e8eaee", lw=0.7)
    axes.set_axisbelow(True)
    _quiet(axes)


def save_figure(figure: Figure, path: Path) -> None:
    figure.savefig(path, dpi=150, format="png", metadata={"Software": None})


def _draw_segment(
    axes: Axes, base: np.ndarray, target: np.ndarray, guess: np.ndarray, flat: np.ndarray
) -> None:
    known = np.arange(1, len(base) + 1)
    ahead = np.arange(len(base), len(base) + len(target) + 1)
    axes.axvspan(len(base), ahead[-1], color="#f2f4f7", lw=0)

    def from_last(values: np.ndarray) -> np.ndarray:
        return np.concatenate([base[-1:], values])

    axes.plot(known, base, color=INK, lw=1.5, label="known")
    axes.plot(ahead, from_last(target), color=INK, lw=1.5, ls=":", label="what came")
    axes.plot(ahead, from_last(guess), color=ORANGE, lw=2, label="forecast")
    axes.plot(ahead, from_last(flat), color=GREY, ls="--", lw=1.3, label="persistence")
    axes.set_xlim(1, ahead[-1])
    _quiet(axes)


def _quiet(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(GREY)
    axes.tick_params(colors=INK, labelsize=8.5)
