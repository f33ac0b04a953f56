"""The forecaster against PyTorch: the same numbers, and how much faster.

Same weights, same batch, same float64 on every side. Run ``python -m benchmarks.compare --help``.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from rich.console import Console

import argmin_jax
from data import load_prices, make_segments

from .compare_tables import plot, show
from .forecaster_sides import JAX, PYTORCH, JaxSide, Pass, PytorchSide, build
from .timing import interleave, machine, median_ms, versions

WHAT = ("forward", "forward_backward", "train_step")
TARGETS = {"W*": 1e-8, "loss": 1e-8}
TARGET = 1e-6  # of the predictions and of each weight's gradient
RESULTS = Path(__file__).parent / "results" / "compare.json"


def differences(found: Pass, expected: Pass) -> dict[str, float]:
    """The largest difference of each quantity, relative to its largest entry.

    A bias before a BatchNorm has a gradient that is small by cancellation; every gradient is
    therefore held against at least a thousandth of the largest gradient of all.
    """
    largest = max(np.max(np.abs(g)) for g in expected.gradients.values())
    result = {
        "W*": _relative(found.w, expected.w),
        "predictions": _relative(found.predictions, expected.predictions),
        "loss": abs(found.loss - expected.loss) / abs(expected.loss),
    }
    for name, gradient in expected.gradients.items():
        floor = 1e-3 * largest
        result[name] = _relative(found.gradients[name], gradient, floor)
    return result


def _relative(found: np.ndarray, expected: np.ndarray, floor: float = 0.0) -> float:
    return float(np.max(np.abs(found - expected)) / max(np.max(np.abs(expected)), floor))


def missed(parity: dict[str, dict[str, float]]) -> list[str]:
    """What is further from the reference than the targets allow."""
    return [
        f"{name}: {what} {value:.1e}"
        for name, row in parity.items()
        for what, value in row.items()
        if not value <= TARGETS.get(what, TARGET)
    ]


def load_batches(seed: int, size: int, count: int) -> list[tuple[jax.Array, jax.Array]]:
    """Batches of standardised segments of the bundled prices."""
    train, _ = make_segments(load_prices(), seed=seed)
    order = np.random.default_rng(seed).permutation(len(train))
    chunks = [order[k * size : (k + 1) * size] for k in range(count)]
    return [
        (
            jnp.asarray(np.reshape(train.base[c], (size, 30, 1))),
            jnp.asarray(np.reshape(train.target[c], (size, 10, 1))),
        )
        for c in chunks
    ]


def choose_threads(side: JaxSide | PytorchSide, x, y) -> int:
    """Gives PyTorch the number of threads with which it is faster: all, or one.

    On cores that others use too, its threads wait for each other, for up to twenty times as long
    as one thread takes for all.
    """
    seconds = {}
    for threads in (1, torch.get_num_threads()):
        torch.set_num_threads(threads)
        run = side.runs(x, y)["forward_backward"]
        run()
        seconds[threads] = median_ms([timed(run)[0] for _ in range(9)])
    side.restart()
    fastest = min(seconds, key=seconds.__getitem__)
    torch.set_num_threads(fastest)
    return fastest


def compare(contenders: list[str], rounds: int, seed: int, steps: int, batch: int = 8) -> dict:
    """Parity, the losses of the first training steps, and speed, ready for JSON."""
    batches = load_batches(seed, batch, steps)
    x, y = batches[0]
    sides = build(contenders, seed)
    threads = choose_threads(build(["pytorch_tuned"], seed)["pytorch_tuned"], x, y)
    compiled, passes = compile_and_pass(sides, x, y)
    reference, formula = passes["pytorch_reference"], passes.get("closed_form")
    parity = {n: differences(p, reference) for n, p in passes.items() if n != "pytorch_reference"}
    losses, seconds = train_side_by_side(sides, batches)
    # Each W is warm now. The first step of a contender is left out: PyTorch's threads start then.
    timings = {"train_step": {name: taken[1:] for name, taken in seconds.items()}}
    runs = {name: side.runs(x, y) for name, side in sides.items()}
    for what in WHAT:
        more = interleave({name: run[what] for name, run in runs.items()}, rounds)
        first = timings.get(what, {})
        timings[what] = {name: first.get(name, []) + taken for name, taken in more.items()}
    packages = ("jax", "jaxlib", "flax", "optax", "lineax", "equinox", "torch", "numpy")
    return {
        "machine": f"{machine()}; PyTorch on {threads} threads",
        "versions": versions(*packages) | {"argmin_jax": argmin_jax.__version__},
        "rows": rows_of(timings, compiled, parity),
        "parity": parity,
        "reference_to_formula": differences(reference, formula) if formula else {},
        "losses": losses,
        "missed": missed(parity),
    }


def compile_and_pass(
    sides: dict[str, JaxSide | PytorchSide], x, y
) -> tuple[dict[str, float], dict[str, Pass]]:
    """The milliseconds of each training step's first call, which compiles it, measured one by
    one; then one pass of each contender, while the other programs are compiled, two at a time."""
    compiled = {}
    for name, side in sides.items():
        if isinstance(side, JaxSide):
            compiled[name] = 1e3 * timed(side.runs(x, y)["train_step"])[0]
            side.restart()
    with ThreadPoolExecutor(2) as pool:
        forwards = [
            pool.submit(side.runs(x, y)["forward"])
            for side in sides.values()
            if isinstance(side, JaxSide)
        ]
        passes = {name: pool.submit(side.once, x, y) for name, side in sides.items()}
        for forward in forwards:
            forward.result()
        return compiled, {name: done.result() for name, done in passes.items()}


def train_side_by_side(
    sides: dict[str, JaxSide | PytorchSide], batches: list
) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """The losses and the seconds of each contender's first training steps, taken in turn."""
    losses: dict[str, list[float]] = {name: [] for name in sides}
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for side in sides.values():
        side.restart()
    for x, y in batches:
        for name, side in sides.items():
            taken, loss = timed(side.runs(x, y)["train_step"])
            seconds[name].append(taken)
            losses[name].append(loss)
    return losses, seconds


def rows_of(timings: dict, compiled: dict, parity: dict) -> list[dict]:
    """One row for each program of each contender."""
    rows = []
    for what in WHAT:
        medians = {name: median_ms(taken) for name, taken in timings[what].items()}
        for name, median in medians.items():
            rows.append(
                {
                    "contender": name,
                    "what": what,
                    "median_ms": median,
                    "ratio": medians["pytorch_reference"] / median,
                    "to_closed_form": median / medians.get("closed_form", float("nan")),
                    "compile_ms": compiled.get(name) if what == "train_step" else None,
                    "max_relative_error": max(parity.get(name, {"": 0.0}).values()),
                }
            )
    return rows


def timed(run: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds that a call took, and what it returned."""
    start = time.perf_counter()
    result = run()
    return time.perf_counter() - start, result


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.compare", description=__doc__)
    known = [*PYTORCH, *JAX]
    parser.add_argument("--quick", action="store_true", help="few rounds: within a minute")
    parser.add_argument("--rounds", type=int, help="default 15; 1 with --quick")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--contenders", nargs="+", choices=known, default=known)
    parser.add_argument("--json", type=Path, metavar="PATH", help="write the results")
    parser.add_argument("--plot", type=Path, metavar="PATH", help="write a picture")
    options = parser.parse_args(argv)
    if "pytorch_reference" not in options.contenders:
        parser.error("--contenders must include pytorch_reference: all is measured against it")
    jax.config.update("jax_enable_x64", True)
    rounds = options.rounds or (1 if options.quick else 15)
    results = compare(options.contenders, rounds, options.seed, steps=10)
    show(results, Console())
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(results, indent=1) + "\n")
    if options.plot:
        options.plot.parent.mkdir(parents=True, exist_ok=True)
        plot(results, options.plot)
    return 1 if results["missed"] else 0


if __name__ == "__main__":
    sys.exit(main())
