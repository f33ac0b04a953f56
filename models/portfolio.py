"""The command line of the learned portfolio: ``python -m models.portfolio``; see ``--help``."""

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

import jax
import numpy as np
import pandas as pd
from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar
from rich.table import Table
from threadpoolctl import threadpool_limits

from data import adjust_for_splits, load_prices

from . import allocation, backtest, plots
from .output import UserError, one_line, prepare_output, record_of, require, save, write
from .train import choose_output

RUNS = Path("runs/portfolio")
LEARNED, TWO_STAGE, EQUAL = "learned", "two_stage", "equal"
LABELS = {
    LEARNED: "learned by argmin",
    TWO_STAGE: "forecast first",
    EQUAL: "equal weights",
}

EXAMPLES = """\
what it does:
  Every week an optimisation problem chooses the weights of some stocks: expected return, less the
  price of risk and the cost of trading; weights from 0 to --cap that sum to 1; no more than
  --volatility times as volatile as equal weights. A small network forecasts the returns. It is
  trained in two ways from the same start: on the squared error of its forecasts (the usual way),
  and on the utility that the chosen weights earned, whose gradient comes through the argmin. Once
  a year both learn from all of the past, then go on for a year that they have not seen.

examples:
  python -m models.portfolio
      four of the bundled stocks, 2004 to 2013, one or two minutes
  python -m models.portfolio --names AAPL IBM MSFT
      without GOOG the prices go back to 2000
  python -m models.portfolio --cost 0 --seed 1
      trade for nothing; see how much of the result the seed of the network makes
  python -m models.portfolio --path all_stocks_2006-01-01_to_2018-01-01.csv.gz --names AAPL JPM XOM
      Kaggle's DJIA prices instead of the bundled ones

the output folder gets results.json (the table at the end), portfolio.png and config.json.
"""


@dataclass(frozen=True)
class Config:
    """What the numbers depend on; the defaults of the command line. Days are trading days."""

    path: str | None = None
    names: tuple[str, ...] | None = None
    epochs: int = 5
    seed: int = 0
    cap: float = 0.5
    volatility: float = 1.05
    cost: float = 10.0
    risk_aversion: float = 5.0
    hold: int = 5
    first_train: int = 504
    block: int = 252
    batch_size: int = 64
    learning_rate: float = 1e-3

    def __post_init__(self):
        for name in ("epochs", "hold", "first_train", "block", "batch_size"):
            require(getattr(self, name) >= 1, name, "at least 1", getattr(self, name))
        require(0 <= self.seed < 2**63, "seed", "at least 0 and below 2**63", self.seed)
        require(0 < self.cap <= 1, "cap", "above 0 and at most 1", self.cap)
        require(1 < self.volatility < 100, "volatility", "above 1 and below 100", self.volatility)
        require(0 <= self.cost < 1e4, "cost", "at least 0 and below 10000", self.cost)
        for name in ("risk_aversion", "learning_rate"):
            value = getattr(self, name)
            require(0 < value < float("inf"), name, "positive and finite", value)

    @property
    def rules(self) -> allocation.Rules:
        return allocation.Rules(self.cap, self.volatility, self.cost / 1e4, self.risk_aversion)


@dataclass(frozen=True)
class Results:
    """What `run` found: the paths of the strategies, and what is to be said of them."""

    output: Path
    dates: pd.DatetimeIndex  # on which portfolios were chosen, and the end of the last period
    paths: dict[str, backtest.Path] = field(default_factory=dict)
    performances: dict[str, backtest.Performance] = field(default_factory=dict)
    gains: dict[str, backtest.Estimate] = field(default_factory=dict)  # of `LEARNED` over others
    failed_lanes: int = 0
    lanes: int = 0


def run(
    config: Config, output: Path, overwrite: bool = False, console: Console | None = None
) -> Results:
    """Walks forward with all strategies and writes the output folder.

    Args:
        config: what to do; float64 is needed (``jax_enable_x64``).
        output: the folder; made if need be.
        overwrite: replace the run that it holds.
        console: where the progress bar and the table go; by default nowhere.

    Raises:
        UserError, OSError: with a message for the user.
    """
    console = console or Console(quiet=True)
    try:
        prices = load_prices(config.path, config.names)
    except ValueError as error:
        raise UserError(str(error)) from error
    closes = backtest.closes_of(adjust_for_splits(prices))
    _check_enough(config, closes)
    prepare_output(output, record_of(config, prices), resume=None, overwrite=overwrite)
    results = walk_forward(config, closes, output, console)
    _write_results(config, results)
    names = [str(name) for name in closes.columns]
    save(
        plots.portfolio_figure(results.dates, results.paths, LABELS, names, LEARNED),
        output / "portfolio.png",
    )
    console.print(_table(results))
    console.print(_verdict(results))
    console.print(f"numbers and picture: {output}", markup=False)
    return results


def walk_forward(config: Config, closes: pd.DataFrame, output: Path, console: Console) -> Results:
    """Both learners and equal weights, through the same blocks."""
    market = backtest.make_market(closes.to_numpy(np.float64), config.hold)
    optimizer = allocation.make_optimizer(config.learning_rate)
    graphdef, start = allocation.new_learner(market, optimizer, config.seed)
    steps = {
        LEARNED: allocation.make_utility_step(graphdef, optimizer, config.rules, config.hold),
        TWO_STAGE: allocation.make_forecast_step(graphdef, optimizer),
    }
    decide = allocation.make_decide(graphdef, config.rules)
    learners = dict.fromkeys(steps, start)
    walkers = {name: backtest.Walker(market, config.cost / 1e4) for name in LABELS}
    blocks = list(
        backtest.decision_days(len(closes), config.hold, config.first_train, config.block)
    )
    lanes = 0
    with _bar(console) as bar:
        task = bar.add_task("", total=len(blocks), note="")
        for days in blocks:
            note = f"learns from the days before {closes.index[days[0]]:%Y-%m-%d}"
            bar.update(task, note=note)
            for name, step in steps.items():
                learners[name], taken = backtest.train(
                    step, learners[name], market, int(days[0]), config.hold, config.epochs,
                    config.batch_size, config.seed,
                )  # fmt: skip
                lanes += taken if name == LEARNED else 0
                weights = learners[name].weights
                walkers[name].walk(
                    days, lambda day, held, weights=weights: decide(weights, market, day, held)
                )
            walkers[EQUAL].walk(days, backtest.equal_weights)
            bar.update(task, advance=1)
    paths = {name: walker.path for name, walker in walkers.items()}
    chosen = np.concatenate(blocks)
    judged = config.rules, config.hold, config.seed
    return Results(
        output=output,
        dates=pd.DatetimeIndex(closes.index[np.append(chosen, chosen[-1] + config.hold)]),
        paths=paths,
        performances={name: backtest.performance(path, *judged) for name, path in paths.items()},
        gains={
            name: backtest.gain(paths[LEARNED], paths[name], *judged) for name in (TWO_STAGE, EQUAL)
        },
        failed_lanes=int(learners[LEARNED].failed),
        lanes=lanes,
    )


def _check_enough(config: Config, closes: pd.DataFrame) -> None:
    stocks = closes.shape[1]
    if stocks < 2:
        raise UserError(f"--names must be two stocks or more; found {', '.join(closes.columns)}.")
    require(config.cap * stocks > 1, "cap", f"above 1/{stocks}, for {stocks} stocks", config.cap)
    needed = backtest.LOOKBACK + config.first_train + 3 * config.hold
    if len(closes) < needed:
        raise UserError(
            f"the stocks have {len(closes)} days in common; {needed} are needed to learn from the "
            "first and go on. Leave out the stock that begins last, by --names."
        )


def _write_results(config: Config, results: Results) -> None:
    numbers = {
        "strategies": {name: asdict(value) for name, value in results.performances.items()},
        "learned_utility_over": {name: asdict(value) for name, value in results.gains.items()},
        "first": f"{results.dates[0]:%Y-%m-%d}",
        "last": f"{results.dates[-1]:%Y-%m-%d}",
        "periods": len(results.dates) - 1,
        "days_per_period": config.hold,
        "confidence": backtest.CONFIDENCE,
        "training_solves": results.lanes,
        "training_solves_failed": results.failed_lanes,
    }
    write(results.output / "results.json", json.dumps(numbers, indent=2) + "\n")


# What the terminal shows.


def _bar(console: Console) -> Bar:
    return Bar(BarColumn(), TimeElapsedColumn(), TextColumn("{task.fields[note]}"), console=console)


def _table(results: Results) -> Table:
    table = Table(
        title=f"{len(results.dates) - 1} portfolios from {results.dates[0]:%Y-%m-%d} to "
        f"{results.dates[-1]:%Y-%m-%d}, of times not learned from",
        caption="By the year, net of costs. In brackets: where "
        f"{backtest.CONFIDENCE:.0%} of resampled histories lie (blocks of {backtest.BLOCK} "
        "periods); what another --seed gives is not in them. Utility: mean return less the price "
        "of its square. Turnover: all that is bought and sold, in wealths. Unsolved: "
        "portfolios left as they were. Of "
        f"{results.lanes} solves in training {results.failed_lanes} failed and were left out.",
        title_justify="left",
        caption_justify="left",
    )
    table.add_column("", no_wrap=True)
    for name in results.performances:
        table.add_column(LABELS[name], justify="right")
    found = results.performances.values()

    def row(label: str, show: Callable[[backtest.Performance], str]) -> None:
        table.add_row(label, *[show(it) for it in found])

    row("return", lambda it: f"{it.annual_return:.1%}")
    row("volatility", lambda it: f"{it.volatility:.1%}")
    row("Sharpe ratio", lambda it: f"{it.sharpe.value:.2f}")
    row("", lambda it: f"({it.sharpe.low:.2f} to {it.sharpe.high:.2f})")
    row("utility", lambda it: f"{it.utility:+.1%}")
    row("turnover", lambda it: f"{it.turnover:.1f}")
    row("worst drawdown", lambda it: f"{it.drawdown:.1%}")
    row("unsolved", lambda it: str(it.failed))
    return table


def _verdict(results: Results) -> str:
    """Who did best by utility, and whether what was learned differs from the others by more than
    chance."""
    found = results.performances
    best = max(found, key=lambda name: found[name].utility)
    lines = [f"Best by utility: {LABELS[best]}. The difference of what was learned by argmin to"]
    for name, gain in results.gains.items():
        chance = gain.low <= 0 <= gain.high
        lines.append(
            f"  {LABELS[name]} is {gain.value:+.1%} ({gain.low:+.1%} to {gain.high:+.1%}), which "
            f"{'may be' if chance else 'is more than'} chance"
        )
    return "\n".join(lines)


# The command line.


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code: 0, 2 after an error, 130 if interrupted."""
    options = make_parser().parse_args(arguments)
    try:
        values = {name: value for name, value in vars(options).items() if name in _OPTIONS}
        if values["names"] is not None:
            values["names"] = tuple(values["names"])
        config = Config(**values)
        jax.config.update("jax_enable_x64", True)
        output = choose_output(options.output, resume=False, runs=RUNS)
        # As in training: on busy cores the threads of a small factorisation wait for each other.
        with threadpool_limits(limits=1, user_api="blas"):
            run(config, output, options.overwrite, Console())
    except (UserError, OSError) as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    return 0


_OPTIONS = {column.name for column in fields(Config)}


def make_parser() -> argparse.ArgumentParser:
    default = Config()
    parser = argparse.ArgumentParser(
        prog="python -m models.portfolio",
        description="Learns to choose portfolios through an optimisation problem (argmin_jax), and "
        "compares with forecasting first and optimising then, and with equal weights.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument_group("prices").add_argument
    add(
        "--path",
        metavar="CSV",
        help="a .csv or .csv.gz with the columns Date, Close and Name, adjusted for splits "
        "(default: the prices that bokeh-sampledata ships, 2000 to 2013)",
    )
    add(
        "--names",
        nargs="+",
        metavar="NAME",
        help="two stocks or more (default: AAPL GOOG IBM MSFT; of a file AAPL GOOGL MSFT AMZN)",
    )
    add = parser.add_argument_group("portfolio").add_argument
    add("--cap", type=float, default=default.cap, help="largest weight (default: %(default)s)")
    add(
        "--volatility",
        type=float,
        default=default.volatility,
        metavar="V",
        help="how much more volatile than equal weights, as estimated from the last "
        f"{backtest.LOOKBACK} days, the portfolio may be; above 1 (default: %(default)s)",
    )
    add(
        "--cost",
        type=float,
        default=default.cost,
        metavar="BP",
        help="of a trade, in hundredths of a percent of what is traded (default: %(default)s)",
    )
    add(
        "--risk-aversion",
        type=float,
        default=default.risk_aversion,
        metavar="A",
        help="the price of variance (default: %(default)s)",
    )
    add = parser.add_argument_group("training").add_argument
    add(
        "--epochs",
        type=int,
        default=default.epochs,
        metavar="N",
        help="passes over all of the past, each year (default: %(default)s)",
    )
    add(
        "--learning-rate",
        type=float,
        default=default.learning_rate,
        metavar="R",
        help="of AdamW (default: %(default)s)",
    )
    add(
        "--seed",
        type=int,
        default=default.seed,
        metavar="N",
        help="of the network, the batches and the resampling (default: %(default)s)",
    )
    add = parser.add_argument_group("output").add_argument
    add(
        "--output",
        metavar="FOLDER",
        help=f"(default: the next free one of {RUNS}/001, {RUNS}/002, ...)",
    )
    add("--overwrite", action="store_true", help="replace the run in the output folder")
    return parser


if __name__ == "__main__":
    sys.exit(main())
