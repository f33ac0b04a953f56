"""A run: trains, evaluates, and keeps a folder from which it can be taken up again."""

import csv
import io
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path

import numpy as np
import pandas as pd
from flax import nnx
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar
from rich.table import Table

from argmin_jax.nnx import LastReport
from data import Segments, load_prices, make_segments

from . import plots, training
from .checkpoints import Checkpoints
from .forecaster import BASE_DAYS, TARGET_DAYS, EncoderPredictorDecoder
from .output import UserError, prepare_output, record_of, require, save, write

DTYPES = ("float64", "float32")


@dataclass(frozen=True)
class Config:
    """What a run's numbers depend on, besides `checkpoint_every`. The defaults of the command
    line live here. `last_activation` None means: True in dollars, False in standardised units."""

    path: str | None = None
    names: tuple[str, ...] | None = None
    scaling: str = "segment"
    split: str = "shuffled"
    train_fraction: float = 0.7
    epochs: int = 25
    batch_size: int = 8
    learning_rate: float = 3e-3
    decay: float = 0.9
    last_activation: bool | None = None
    dtype: str = "float64"
    seed: int = 0
    checkpoint_every: int = 5

    def __post_init__(self):
        for name in ("epochs", "batch_size", "checkpoint_every"):
            require(getattr(self, name) >= 1, name, "at least 1", getattr(self, name))
        rate = self.learning_rate
        require(0 < rate < float("inf"), "learning_rate", "positive and finite", rate)
        require(0 < self.decay <= 1, "decay", "above 0 and at most 1", self.decay)
        require(0 <= self.seed < 2**63, "seed", "at least 0 and below 2**63", self.seed)
        require(self.dtype in DTYPES, "dtype", f"one of {', '.join(DTYPES)}", self.dtype)


@dataclass(frozen=True)
class Results:
    """What `run` leaves: its folder, its last progress, and the table at the end."""

    output: Path
    progress: training.Progress
    errors: dict[str, training.Errors] = field(default_factory=dict)


def run(
    config: Config,
    output: Path,
    resume: bool = False,
    overwrite: bool = False,
    console: Console | None = None,
    on_epoch: Callable[[training.EpochMetrics], None] = lambda row: None,
) -> Results:
    """Trains, evaluates and writes the output folder.

    Args:
        config: float64 asks for ``jax_enable_x64``, which the caller switches on.
        output: the folder; made if need be.
        resume: go on from its last checkpoint.
        overwrite: replace the run that it holds.
        console: where the progress bar and the table go; by default nowhere.
        on_epoch: called after each epoch, its checkpoint and its row of metrics.csv.

    Raises:
        UserError, OSError, CorruptCheckpointError: with a message for the user.
    """
    console = console or Console(quiet=True)
    try:
        prices, train, test = _load(config)
    except ValueError as error:  # of the data or the options
        raise UserError(str(error)) from error
    record = record_of(config, prices)
    prepare_output(output, record, resume, overwrite)
    console.print(
        f"{len(train)} training and {len(test)} test segments of {BASE_DAYS} + {TARGET_DAYS} days;"
        f" output in {output}",
        markup=False,
    )
    return _train(config, output, record, train, test, console, on_epoch)


def _load(config: Config) -> tuple[pd.DataFrame, Segments, Segments]:
    """The prices, and the training and test segments in the model's dtype."""
    prices = load_prices(config.path, config.names)
    train, test = make_segments(
        prices,
        base_days=BASE_DAYS,
        target_days=TARGET_DAYS,
        scaling=config.scaling,
        split=config.split,
        train_fraction=config.train_fraction,
        seed=config.seed,
    )
    training.training_batches(len(train), config.batch_size, config.seed, 0)  # enough for one?
    return prices, _in_dtype(train, config.dtype), _in_dtype(test, config.dtype)


def _train(
    config: Config,
    output: Path,
    record: dict,
    train: Segments,
    test: Segments,
    console: Console,
    on_epoch: Callable[[training.EpochMetrics], None],
) -> Results:
    steps = len(training.training_batches(len(train), config.batch_size, config.seed, 0))
    optimizer = training.make_optimizer(config.learning_rate, config.decay, steps)
    graphdef, state = nnx.split(_make_model(config, on_failure="nan"))
    step = training.make_train_step(graphdef, optimizer)
    # A batch that cannot be learned from is skipped; a forecast that is none is an error.
    predict = training.make_predict(nnx.graphdef(_make_model(config, on_failure="raise")))
    start = training.Progress(state, training.init_optimizer(optimizer, state), ())
    with Checkpoints(output / "checkpoints") as checkpoints:
        progress, warnings = checkpoints.load_latest(start)
        for warning in warnings:
            console.print(
                f"warning: {warning}; going on from an earlier one", style="yellow", markup=False
            )
        progress = progress or start
        if len(progress.history) > config.epochs:
            raise UserError(
                f"--epochs {config.epochs}: {output} has {len(progress.history)} epochs behind "
                "it already. Ask for as many or more, or choose another --output."
            )
        write(output / "config.json", json.dumps(record, indent=2) + "\n")
        _write_metrics(output, progress)
        with _bar(console) as bar:
            first = len(progress.history)
            task = bar.add_task("", total=config.epochs * steps, completed=first * steps, note="")
            for epoch in range(first, config.epochs):
                progress = _train_one_epoch(
                    config, step, predict, progress, train, test, epoch,
                    lambda note: bar.update(task, advance=1, note=note),
                    lambda line: console.print(line, style="yellow", markup=False),
                )  # fmt: skip
                if (epoch + 1) % config.checkpoint_every == 0 or epoch + 1 == config.epochs:
                    checkpoints.save(progress)
                _write_metrics(output, progress)
                on_epoch(progress.history[-1])
    return _finish(config, output, predict, progress, train, test, console)


def _train_one_epoch(
    config: Config,
    step: training.TrainStep,
    predict: training.Predict,
    progress: training.Progress,
    train: Segments,
    test: Segments,
    epoch: int,
    on_step: Callable[[str], None],
    log: Callable[[str], None],
) -> training.Progress:
    previous = f", test loss {progress.history[-1].test_loss:.4g}" if progress.history else ""
    batches = training.training_batches(len(train), config.batch_size, config.seed, epoch)
    state, opt_state, loss, skipped = training.train_epoch(
        step,
        progress.state,
        progress.opt_state,
        train.base,
        train.target,
        batches,
        lambda loss: on_step(f"epoch {epoch + 1}, loss {loss:.4g}{previous}"),
        lambda number, state: log(
            f"warning: epoch {epoch + 1}, step {number} skipped: its loss or a gradient is not "
            f"finite; the argmin {_finding(state)}"
        ),
    )
    forecasts = training.evaluate(predict, state, test, config.batch_size)
    with np.errstate(over="ignore"):  # judged in the next line
        test_loss = float(np.mean((np.asarray(forecasts, np.float64) - test.target) ** 2))
    if not np.isfinite([loss, test_loss]).all():
        raise UserError(
            f"the loss is not finite in epoch {epoch + 1}. Lower --learning-rate"
            f" ({config.learning_rate:g}), or compute in float64."
        )
    row = training.EpochMetrics(
        epoch=epoch + 1,
        learning_rate=config.learning_rate * config.decay**epoch,
        train_loss=loss,
        test_loss=test_loss,
        ridge_lambda=float(np.exp(np.asarray(state["predictor"]["log_lambda"][...]))),
        skipped=skipped,
    )
    return training.Progress(state, opt_state, (*progress.history, row))


def _finding(state: nnx.State) -> str:
    """Status and meaning, of the last call of the argmin in training."""
    ((_, report),) = nnx.to_flat_state(nnx.filter_state(state, LastReport))
    return str(report.get_value()).splitlines()[0]


def _finish(
    config: Config,
    output: Path,
    predict: training.Predict,
    progress: training.Progress,
    train: Segments,
    test: Segments,
    console: Console,
) -> Results:
    """The table, the pictures and results.json."""
    forecasts = training.evaluate(predict, progress.state, test, config.batch_size)
    flat = training.persistence(test)
    ridge_lambda = training.best_ridge_lambda(train, config.batch_size)
    ridge = training.ridge(test, ridge_lambda, config.batch_size)
    errors = {
        "model": training.errors_of(forecasts, test),
        "persistence": training.errors_of(flat, test),
        "ridge": training.errors_of(ridge, test),
    }
    results = {name: asdict(error) for name, error in errors.items()}
    write(output / "results.json", json.dumps(results, indent=2) + "\n")
    loss = errors["persistence"].rmse_scaled ** 2
    save(plots.loss_figure(progress.history, loss), output / "loss.png")
    save(plots.forecast_figure(test, forecasts, flat), output / "forecast.png")
    console.print(_table(errors, ridge_lambda, len(test), config.scaling))
    console.print(_verdict(errors))
    console.print(f"pictures, metrics and checkpoints: {output}", markup=False)
    return Results(output, progress, errors)


def _make_model(config: Config, on_failure: str) -> EncoderPredictorDecoder:
    last_activation = config.last_activation
    if last_activation is None:
        last_activation = config.scaling == "none"
    return EncoderPredictorDecoder(
        rngs=nnx.Rngs(config.seed),
        dtype=np.dtype(config.dtype),
        last_activation=last_activation,
        on_failure=on_failure,
    )


def _in_dtype(segments: Segments, dtype: str) -> Segments:
    """What the model sees, in its dtype; mean and scale, which return to dollars, in float64."""
    return replace(segments, base=segments.base.astype(dtype), target=segments.target.astype(dtype))


def _write_metrics(output: Path, progress: training.Progress) -> None:
    """metrics.csv from the history, so that after a resume it has the checkpoint's epochs."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([column.name for column in fields(training.EpochMetrics)])
    writer.writerows(asdict(row).values() for row in progress.history)
    write(output / "metrics.csv", text.getvalue())


# What the terminal shows.


def _bar(console: Console) -> Bar:
    return Bar(
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("steps"),
        TimeElapsedColumn(),
        TextColumn("{task.fields[note]}"),
        console=console,
    )


LABELS = {"model": "forecaster", "persistence": "persistence", "ridge": "ridge, no encoder"}


def _table(
    errors: dict[str, training.Errors], ridge_lambda: float, count: int, scaling: str
) -> Table:
    table = Table(
        title=f"Error on {count} test segments",
        caption="persistence: the last price, repeated. ridge, no encoder: the same postdiction "
        f"on the prices themselves, lambda {ridge_lambda:g} best in training. RMSE: root of the "
        "mean squared error; MAE: mean of the absolute error.",
        title_justify="left",
        caption_justify="left",
    )
    table.add_column("", no_wrap=True)
    units = ["dollars"] if scaling == "none" else ["scaled", "dollars"]
    for unit in units:
        table.add_column(f"RMSE, {unit}", justify="right")
        table.add_column(f"MAE, {unit}", justify="right")
    for name, error in errors.items():
        values = asdict(error)
        cells = [f"{values[f'{kind}_{unit}']:.4g}" for unit in units for kind in ("rmse", "mae")]
        table.add_row(LABELS[name], *cells)
    return table


def _verdict(errors: dict[str, training.Errors]) -> str:
    """One sentence on who is best by RMSE in scaled units, what training minimised."""
    model = errors["model"].rmse_scaled
    best = min(errors, key=lambda name: errors[name].rmse_scaled)
    simple = min(errors["persistence"].rmse_scaled, errors["ridge"].rmse_scaled)
    if simple == 0:
        return "A simple forecast makes no error: these prices leave nothing to learn."
    if best == "model":
        return (
            f"The forecaster's RMSE (scaled) is {1 - model / simple:.1%} below the better simple "
            "forecast."
        )
    return (
        f"Best by RMSE (scaled): {LABELS[best]}; the forecaster's is {model / simple - 1:.1%} "
        "above the better simple forecast. Daily prices are close to a random walk, which the "
        "last price forecasts best."
    )
