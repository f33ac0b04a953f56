"""The command line of training: ``python -m models.train``; ``--help`` explains it."""

import argparse
import logging
import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

import jax
from jax.errors import JaxRuntimeError
from rich.console import Console
from threadpoolctl import threadpool_limits

from argmin_jax import ArgminError
from data.segments import SCALINGS, SPLITS

from .checkpoints import CorruptCheckpointError
from .output import UserError, one_line
from .run import DTYPES, Config, run

RUNS = Path("runs")

EXAMPLES = """\
examples:
  python -m models.train
      the four bundled stocks, each segment standardised, about half a minute
  python -m models.train --split chronological
      judge the forecaster on what came after its training, as in real use
  python -m models.train --path all_stocks_2006-01-01_to_2018-01-01.csv.gz
      Kaggle's DJIA prices instead of the bundled ones
  python -m models.train --scaling none --epochs 1 --learning-rate 1e-4
      the settings of the lecture notes: dollars, one epoch; the loss barely moves
  python -m models.train --output runs/mine --epochs 100
  python -m models.train --output runs/mine --epochs 100 --resume
      go on after an interruption: the end is the same, to the last bit

the output folder gets metrics.csv (one row per epoch), results.json (the table at the end),
config.json, loss.png, forecast.png and checkpoints/.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code: 0, 2 after an error, 130 if interrupted."""
    options = make_parser().parse_args(arguments)
    console = Console()
    # It would show the traceback of an inner problem that failed, which gets its line below.
    logging.getLogger("jax._src.callback").setLevel(logging.CRITICAL)
    try:
        config = _config_from(options)
        if config.dtype == "float64":
            jax.config.update("jax_enable_x64", True)
        output = choose_output(options.output, options.resume)
        # On busy cores the threads of one small factorisation wait for each other: a step of
        # training took 123 ms with two threads beside another process, 8 ms with one.
        with threadpool_limits(limits=1, user_api="blas"):
            run(config, output, options.resume, options.overwrite, console)
    except (UserError, OSError, CorruptCheckpointError) as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        return 2
    except (ArgminError, JaxRuntimeError, ValueError) as error:
        if "ArgminError" not in f"{type(error)} {error}":
            raise
        print(f"error: {_argmin_message(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(
            "interrupted; the same command with --resume (and --output, if it was not given) "
            "goes on from the last checkpoint",
            file=sys.stderr,
        )
        return 130
    return 0


def make_parser() -> argparse.ArgumentParser:
    default = Config()
    parser = argparse.ArgumentParser(
        prog="python -m models.train",
        description="Trains the forecaster: a convolutional encoder, a linear forecast that is "
        "the solution of an optimisation problem (argmin_jax), and a decoder. It forecasts 10 "
        "days of a stock from the 30 before.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument_group("prices").add_argument
    add(
        "--path",
        metavar="CSV",
        help="a .csv or .csv.gz with the columns Date, Close and Name "
        "(default: the prices that bokeh-sampledata ships, 2000 to 2013)",
    )
    add(
        "--names",
        nargs="+",
        metavar="NAME",
        help="stocks (default: AAPL GOOG IBM MSFT; of a file AAPL GOOGL MSFT AMZN)",
    )
    add(
        "--scaling",
        choices=SCALINGS,
        default=default.scaling,
        help="segment: standardise each segment by its own 30 base days; none: dollars "
        "(default: %(default)s)",
    )
    add(
        "--split",
        choices=SPLITS,
        default=default.split,
        help="shuffled: test segments lie between training segments in time; chronological: all "
        "come after (default: %(default)s)",
    )
    add(
        "--train-fraction",
        type=float,
        default=default.train_fraction,
        metavar="F",
        help="share of the segments that trains (default: %(default)s)",
    )
    add = parser.add_argument_group("training").add_argument
    add("--epochs", type=int, default=default.epochs, metavar="N", help="(default: %(default)s)")
    add(
        "--batch-size",
        type=int,
        default=default.batch_size,
        metavar="N",
        help="segments that share one W, in training and in evaluation (default: %(default)s)",
    )
    add(
        "--learning-rate",
        type=float,
        default=default.learning_rate,
        metavar="R",
        help="of AdamW in the first epoch (default: %(default)s; the lecture notes take 1e-4, "
        "with which the about 25 steps of an epoch on the bundled prices move little)",
    )
    add(
        "--decay",
        type=float,
        default=default.decay,
        metavar="D",
        help="factor on the learning rate after each epoch (default: %(default)s)",
    )
    add(
        "--last-activation",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="end the decoder with ELU(0.5), as the lecture notes do. It cannot go below -0.5, "
        "which forbids forecasts of falling standardised prices (default: on with --scaling "
        "none, else off)",
    )
    add("--dtype", choices=DTYPES, default=default.dtype, help="(default: %(default)s)")
    add(
        "--seed",
        type=int,
        default=default.seed,
        metavar="N",
        help="of the weights, the split and the batches (default: %(default)s)",
    )
    add = parser.add_argument_group("output").add_argument
    add(
        "--output",
        metavar="FOLDER",
        help=f"(default: the next free one of {RUNS}/001, {RUNS}/002, ...; with --resume the "
        "last of these)",
    )
    add(
        "--resume",
        action="store_true",
        help="go on from the last checkpoint in the output folder. The options must be the same; "
        "only --epochs, --checkpoint-every and the place of the CSV may change",
    )
    add("--overwrite", action="store_true", help="replace the run in the output folder")
    add(
        "--checkpoint-every",
        type=int,
        default=default.checkpoint_every,
        metavar="N",
        help="epochs from one checkpoint to the next (default: %(default)s)",
    )
    return parser


def choose_output(output: str | None, resume: bool, runs: Path = RUNS) -> Path:
    """The output folder: the one asked for, or the next (with ``resume`` the last) numbered."""
    if output is not None:
        return Path(output)
    numbers = [int(path.name) for path in runs.glob("[0-9]*") if path.name.isdecimal()]
    last = max(numbers, default=0)
    return runs / f"{max(last, 1) if resume else last + 1:03d}"


# Errors.


def _config_from(options: argparse.Namespace) -> Config:
    values = {column.name: getattr(options, column.name) for column in fields(Config)}
    if values["names"] is not None:
        values["names"] = tuple(values["names"])
    return Config(**values)


def _argmin_message(error: Exception) -> str:
    """One line: of a message under jit, whose beginning are tracebacks, the last one."""
    last = str(error).strip().splitlines()[-1].removeprefix("ArgminError: ")
    return f"the inner problem was not solved; lower --learning-rate? {last}"


if __name__ == "__main__":
    sys.exit(main())
