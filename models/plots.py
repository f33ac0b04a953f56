"""The two pictures of a run. Drawn on figures of their own: no display, no global state."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from data import Segments

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
