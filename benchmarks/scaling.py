"""How time and memory of forward + backward grow with the unknowns and with the lanes.

The problem is the chain of quartics of the peers' family a. Run ``python -m benchmarks.scaling
--help``.
"""

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from matplotlib.figure import Figure
from rich.console import Console

import argmin_jax
from argmin_jax import ArgminError, Auto, NewtonCG

from .lbfgs_choice_page import markdown_table
from .peers.contenders import ours
from .peers.problems import Case, make_case, quartic, rosenbrock
from .peers.programs import compiled
from .timing import interleave, machine, median_ms, versions

UNKNOWNS = (10, 30, 100, 300, 1_000, 3_000, 10_000, 30_000, 100_000, 300_000, 1_000_000)
LANES = (1, 3, 10, 30, 100, 300, 1_000, 3_000, 10_000)
DENSE_LIMIT = 1_000  # beyond, the dense path would need gigabytes
FITTED_FROM = {"unknowns": 10_000, "lanes": 100}

SETTINGS: dict[str, tuple[dict[str, Any], int]] = {
    "default": ({}, UNKNOWNS[-1]),
    "dense": ({"solver": NewtonCG(), "linear_solver": Auto(dense_limit=DENSE_LIMIT)}, DENSE_LIMIT),
    "matrix-free": (
        {"solver": NewtonCG(), "linear_solver": Auto(dense_limit=0)},
        UNKNOWNS[-1],
    ),
}


def case_of(axis: str, size: int) -> Case:
    """A chain of ``size`` unknowns, or Rosenbrock's function in ``size`` lanes."""
    if axis == "unknowns":
        return make_case(partial(quartic, n=size))
    return make_case(rosenbrock, size)


def measure(
    axis: str, sizes: Sequence[int], rounds: int, progress: Callable[[str], None] = lambda _: None
) -> list[dict[str, Any]]:
    """A row for each size and setting, from the smallest on; the settings take turns. One that
    fails, if only in one lane, is lost: it has no time."""
    rows = []
    for size in sizes:
        case = case_of(axis, size)
        programs, lost = {}, {}
        for name, (options, largest) in SETTINGS.items():
            if case.unknowns <= largest:
                progress(f"{axis}: {size}: {name}")
                programs[name] = compiled(ours(**options)(case, None), case)
                try:
                    programs[name].forward_backward()
                except (ArgminError, jax.errors.JaxRuntimeError) as error:
                    lost[name] = str(error).strip().splitlines()[-1]
                    progress(f"lost: {lost[name]}")
        runs = {name: program.forward_backward for name, program in programs.items()}
        seconds = interleave({name: run for name, run in runs.items() if name not in lost}, rounds)
        rows += [
            {
                "axis": axis,
                "size": size,
                "setting": name,
                "median_ms": None if name in lost else median_ms(seconds[name]),
                "lost": lost.get(name),
                "memory_mb": program.memory_mb,
                "copies": 1e6 * (program.memory_mb or 0) / case.start.nbytes,
                "compile_s": program.compile_s,
            }
            for name, program in programs.items()
        ]
    return rows


def _points(
    rows: Sequence[dict[str, Any]], axis: str, setting: str, what: str
) -> list[tuple[int, float]]:
    """Sizes and values, without what was lost."""
    return [
        (row["size"], row[what])
        for row in rows
        if row["axis"] == axis and row["setting"] == setting and row[what] is not None
    ]


def exponent(rows: Sequence[dict[str, Any]], axis: str, setting: str, what: str) -> float | None:
    """The slope of ``what`` against size, both logarithmic, over the large sizes."""
    least = FITTED_FROM[axis]
    points = [point for point in _points(rows, axis, setting, what) if point[0] >= least]
    if len(points) < 2:
        return None
    sizes, values = np.log(np.array(points)).T
    return float(np.polyfit(sizes, values, 1)[0])


def section(results: dict[str, Any]) -> str:
    """The exponents and the rows, in Markdown."""
    rows = results["rows"]
    header = ["setting", "unknowns", "lanes"]
    settings = list(dict.fromkeys(row["setting"] for row in rows))
    lines = []
    for what, name in (("median_ms", "time"), ("memory_mb", "memory")):
        for setting in settings:
            found = [exponent(rows, axis, setting, what) for axis in FITTED_FROM]
            lines.append([f"{name}, {setting}", *("-" if e is None else f"{e:.2f}" for e in found)])
    columns = ["size", "setting", "forward + backward ms", "memory MB", "copies of y", "compile s"]
    parts = [
        "![Time and memory by unknowns and by lanes](images/scaling.png)",
        "Exponents, fitted from "
        + " and ".join(f"{least:,} {axis}" for axis, least in FITTED_FROM.items())
        + " on:\n\n"
        + markdown_table(header, lines, 1),
    ]
    for axis in FITTED_FROM:
        cells = [
            [
                f"{row['size']:,}",
                row["setting"],
                "lost" if row["median_ms"] is None else f"{row['median_ms']:.3g}",
                f"{row['memory_mb']:.3g}",
                f"{row['copies']:.0f}",
                f"{row['compile_s']:.1f}",
            ]
            for row in rows
            if row["axis"] == axis
        ]
        parts.append(f"By {axis}:\n\n" + markdown_table(columns, cells, 2))
        parts += [
            f"{row['setting']} at {row['size']:,} {axis} was lost: {row['lost']}"
            for row in rows
            if row["axis"] == axis and row.get("lost")
        ]
    packages = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    return "\n\n".join([*parts, f"On {results['machine']}; {packages}."])


COLOURS = {"default": "#1f6fb4", "dense": "#c05020", "matrix-free": "#2a8c4a"}


def plot(results: dict[str, Any], path: Path) -> None:
    """Time and memory against unknowns and against lanes, both axes logarithmic."""
    figure = Figure(figsize=(9, 6), layout="constrained")
    panels = figure.subplots(2, 2, sharex="col")
    for column, axis in enumerate(FITTED_FROM):
        for line, (what, label) in enumerate(
            (("median_ms", "forward + backward, ms"), ("memory_mb", "memory, MB"))
        ):
            axes = panels[line][column]
            for setting in SETTINGS:
                points = _points(results["rows"], axis, setting, what)
                slope = exponent(results["rows"], axis, setting, what)
                name = setting if slope is None else f"{setting} (exponent {slope:.2f})"
                axes.loglog(
                    [size for size, _ in points],
                    [value for _, value in points],
                    "o-",
                    color=COLOURS[setting],
                    markersize=3,
                    label=name,
                )
            axes.legend(frameon=False, fontsize=8)
            axes.spines[["top", "right"]].set_visible(False)
            axes.set_ylabel(label)
            if line == 1:
                axes.set_xlabel(
                    "unknowns (chain of quartics)"
                    if axis == "unknowns"
                    else "lanes (Rosenbrock's function of 20 unknowns)"
                )
    figure.savefig(path, dpi=150)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scaling", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="up to 10,000 unknowns and 100 lanes")
    parser.add_argument("--rounds", type=int, help="default 7; 2 with --quick")
    parser.add_argument("--json", type=Path, metavar="PATH", help="write the results")
    parser.add_argument("--plot", type=Path, metavar="PATH", help="write a picture")
    options = parser.parse_args(argv)
    jax.config.update("jax_enable_x64", True)
    console = Console()
    rounds = options.rounds or (2 if options.quick else 7)
    rows = []
    for axis, sizes, most in (("unknowns", UNKNOWNS, 10_000), ("lanes", LANES, 100)):
        chosen = [size for size in sizes if size <= most or not options.quick]
        rows += measure(axis, chosen, rounds, lambda line: console.print(line, style="dim"))
    results = {
        "machine": machine(),
        "versions": versions("jax", "jaxlib") | {"argmin_jax": argmin_jax.__version__},
        "rows": rows,
    }
    console.print(section(results))
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    if options.plot:
        options.plot.parent.mkdir(parents=True, exist_ok=True)
        plot(results, options.plot)
    return 0


if __name__ == "__main__":
    sys.exit(main())
