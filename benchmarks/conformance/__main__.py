"""Asks every library for derivatives that are known, and prints who is right, who is wrong in
silence and who refuses."""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import jax
from rich.console import Console

from ..timing import machine, versions
from .asks import truths
from .catalogue import CATALOGUE, GROUPS
from .contenders import CONTENDERS
from .guard import ROOT, outcomes
from .judge import Kind, judge
from .page import show, write_pages
from .problem import DTYPES

RESULTS = ROOT / "benchmarks" / "results" / "conformance.json"
PACKAGES = ("jax", "jaxlib", "torch", "numpy")


def measure(
    contenders: list[str], dtypes: list[str], problems: list[str], limit_s: float, console: Console
) -> dict[str, Any]:
    """All verdicts, ready for JSON."""
    rows = []
    for dtype in dtypes:
        asked = [name for name in problems if dtype in CATALOGUE[name].dtypes]
        true = {name: truths(CATALOGUE[name], dtype) for name in asked}
        jax.clear_caches()  # the libraries need the memory
        for contender in contenders:
            with console.status("") as status:
                found = outcomes(
                    contender,
                    dtype,
                    asked,
                    limit_s,
                    lambda name, who=f"{contender}, {dtype}": status.update(f"{who}: {name}"),
                )
            for name in asked:
                verdict = judge(CATALOGUE[name], dtype, found[name], true[name])
                rows.append(
                    {
                        "problem": name,
                        "contender": contender,
                        "dtype": dtype,
                        "kind": verdict.kind.value,
                        "error": verdict.error,
                        "note": verdict.note,
                    }
                )
    packages = {CONTENDERS[name].package for name in contenders}
    return {
        "machine": machine(),
        "versions": versions(*PACKAGES, *sorted(packages)),
        "limit_s": limit_s,
        "dtypes": dtypes,
        "contenders": {name: CONTENDERS[name].how for name in contenders},
        "groups": {
            group: [p.name for p in members if p.name in problems]
            for group, members in GROUPS.items()
        },
        "problems": {name: described(name) for name in problems},
        "rows": rows,
    }


def described(name: str) -> dict[str, Any]:
    problem = CATALOGUE[name]
    return {
        "ask": problem.ask.value,
        "posed": problem.posed,
        "has_truth": bool(problem.solutions),
        "tolerances": {dtype: problem.tolerance(dtype) for dtype in problem.dtypes},
    }


def merge(stored: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """The new results, and of the stored ones what was not asked this time."""

    def asked(row: dict[str, Any]) -> tuple[str, str, str]:
        return row["problem"], row["contender"], row["dtype"]

    answered = {asked(row) for row in new["rows"]}
    kept = [
        row for row in stored["rows"] if asked(row) not in answered and row["problem"] in CATALOGUE
    ]
    rows = kept + new["rows"]
    names = {row["contender"] for row in rows}
    problems = {row["problem"] for row in rows}
    return new | {
        "versions": stored["versions"] | new["versions"],
        "dtypes": [dtype for dtype in DTYPES if dtype in {row["dtype"] for row in rows}],
        "contenders": {name: c.how for name, c in CONTENDERS.items() if name in names},
        "groups": {
            group: [p.name for p in members if p.name in problems]
            for group, members in GROUPS.items()
        },
        "problems": {name: described(name) for name in CATALOGUE if name in problems},
        "rows": rows,
    }


def write(results: dict[str, Any], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(results, indent=1) + "\n", "utf-8")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.conformance", description=__doc__)
    parser.add_argument("--contenders", nargs="+", choices=CONTENDERS, default=list(CONTENDERS))
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=list(DTYPES))
    parser.add_argument("--problems", nargs="+", choices=CATALOGUE, default=list(CATALOGUE))
    parser.add_argument("--limit", type=float, default=180.0, help="seconds for a problem")
    parser.add_argument("--json", type=Path, metavar="PATH", help="write the results")
    parser.add_argument(
        "--write",
        action="store_true",
        help="renew the results of the repository in what was asked, with docs/conformance.md and "
        "the README's matrix",
    )
    parser.add_argument(
        "--pages", action="store_true", help="write only the pages anew, from the stored results"
    )
    options = parser.parse_args(argv)
    if options.pages:
        write_pages(json.loads(RESULTS.read_text("utf-8")), ROOT)
        return 0
    # The truth is computed in float64, whatever is asked of the libraries.
    jax.config.update("jax_enable_x64", True)
    console = Console()
    results = measure(options.contenders, options.dtypes, options.problems, options.limit, console)
    show(results, console)
    if options.json:
        write(results, options.json)
    if options.write:
        stored = json.loads(RESULTS.read_text("utf-8")) if RESULTS.exists() else results
        merged = merge(stored, results)
        write(merged, RESULTS)
        write_pages(merged, ROOT)
    ours = [row for row in results["rows"] if row["contender"] == "argmin_jax"]
    return 1 if any(Kind(row["kind"]) in (Kind.WRONG, Kind.HUNG) for row in ours) else 0


if __name__ == "__main__":
    sys.exit(main())
