"""What compiling a gradient through `argmin` takes, and two ways to have it sooner.

Each case is compiled as XLA compiles by default, with OPTIONS, and by a process that finds in
JAX's cache what another one has compiled: under ``on_failure="nan"``, as JAX keeps no program that
can call back, and raising takes that. Run ``python -m benchmarks.compiling --help``.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
from jax.stages import Compiled, Lowered
from rich.console import Console

import argmin_jax

from .lbfgs_choice_page import markdown_table
from .peers.constrained import qp_case
from .peers.problems import Case, family_a
from .peers.programs import pulling_back
from .timing import interleave, machine, median_ms, versions

OPTIONS: dict[str, str | bool | int] = {
    "xla_cpu_use_fusion_emitters": False,
    "xla_backend_optimization_level": 1,
    "xla_disable_hlo_passes": "while-loop-invariant-code-motion,tree_reduction_rewriter",
}
"""XLA's own, for its CPU; tests/conftest.py has them for the suite, at level 0."""

CASES: dict[str, Callable[[], Case]] = family_a() | {"128 QPs, n = 10": lambda: qp_case(10)}


def lowered(case: Case, on_failure: str = "raise") -> tuple[Lowered, tuple]:
    """The gradient by the default solvers, traced, and its arguments."""
    solve = partial(
        argmin_jax.argmin, case.objective, eq=case.eq, ineq=case.ineq, on_failure=on_failure
    )
    program, arguments = pulling_back(solve, case)
    return program.lower(*arguments), arguments


def compiled(
    case: Case, options: dict[str, Any], on_failure: str = "raise"
) -> tuple[Compiled, float]:
    """The program, and the seconds that tracing and compiling it took."""
    jax.clear_caches()
    began = time.perf_counter()
    program = lowered(case, on_failure)[0].compile(compiler_options=options)
    return program, time.perf_counter() - began


def measure(name: str, rounds: int) -> dict[str, Any]:
    """Seconds to compile and milliseconds to run, with and without OPTIONS, in turns."""
    case = CASES[name]()
    _, arguments = lowered(case)  # JAX's own start is nobody's
    settings = {"default": {}, "options": OPTIONS}
    programs, seconds = {}, {setting: [] for setting in settings}
    for _ in range(rounds):
        for setting, options in settings.items():
            programs[setting], took = compiled(case, options)
            seconds[setting].append(took)

    def runs(program: Compiled) -> Callable[[], Any]:
        return lambda: jax.block_until_ready(program(*arguments))

    times = interleave({setting: runs(program) for setting, program in programs.items()}, rounds=9)
    return {
        "case": name,
        "compile_s": {setting: statistics.median(took) for setting, took in seconds.items()}
        | {"cache": _from_cache(name)},
        "median_ms": {setting: median_ms(took) for setting, took in times.items()},
    }


def _from_cache(name: str) -> float:
    """Seconds of a process that finds everything in JAX's cache, where one before it left it."""
    command = [sys.executable, "-m", "benchmarks.compiling", "--once", name]
    with tempfile.TemporaryDirectory() as folder:
        cache = {
            "JAX_COMPILATION_CACHE_DIR": folder,
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        }
        for _ in range(2):
            done = subprocess.run(
                command, check=True, capture_output=True, text=True, env=os.environ | cache
            )
    return float(done.stdout)


def section(results: dict[str, Any]) -> str:
    """The rows, in Markdown."""
    header = ["case", "compile s", "with options", "from cache", "run ms", "with options"]
    cells = [
        [
            row["case"],
            *(f"{row['compile_s'][setting]:.1f}" for setting in ("default", "options", "cache")),
            *(f"{row['median_ms'][setting]:.3g}" for setting in ("default", "options")),
        ]
        for row in results["rows"]
    ]
    packages = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    return f"{markdown_table(header, cells, 1)}\n\nOn {results['machine']}; {packages}."


def options_section() -> str:
    """OPTIONS as code, in Markdown."""
    lines = "\n".join(f"    {name!r}: {value!r}," for name, value in OPTIONS.items())
    lines = lines.replace("'", '"')
    use = "step = jax.jit(step, compiler_options=options)"
    return f"```python\noptions = {{\n{lines}\n}}\n{use}\n```"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.compiling", description=__doc__)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES), metavar="CASE")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, metavar="PATH", help="write the results")
    parser.add_argument("--once", choices=CASES, help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    jax.config.update("jax_enable_x64", True)
    if options.once:
        case = CASES[options.once]()
        lowered(case)  # JAX's own start is nobody's
        print(compiled(case, {}, "nan")[1])
        return 0
    rows = []
    for name in options.cases:
        rows.append(measure(name, options.rounds))
        Console().print_json(data=rows[-1])
    packages = ("jax", "jaxlib", "equinox", "lineax", "optax")
    results = {
        "machine": machine(),
        "versions": versions(*packages) | {"argmin_jax": argmin_jax.__version__},
        "rows": rows,
    }
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
