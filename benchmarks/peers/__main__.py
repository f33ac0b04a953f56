"""The command line: ``python -m benchmarks.peers``."""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import jax
from rich.console import Console

import argmin_jax

from ..timing import machine, versions
from .families import FAMILIES
from .measure import measure_family
from .tables import show

RESULTS = Path(__file__).parents[1] / "results" / "peers.json"


def selected(known: Sequence[str], asked: Sequence[str] | None) -> list[str]:
    """Those whose name contains one of the words asked for; all without words."""
    return [name for name in known if not asked or any(word in name for word in asked)]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.peers",
        description="argmin_jax against its peers, on the same work.",
    )
    parser.add_argument("--quick", action="store_true", help="few rounds: within five minutes")
    parser.add_argument("--families", nargs="+", choices=[*FAMILIES], default=[*FAMILIES])
    parser.add_argument("--cases", nargs="+", metavar="WORD", help="cases with these in the name")
    parser.add_argument("--contenders", nargs="+", metavar="WORD", help="the same of contenders")
    parser.add_argument("--rounds", type=int, help="default 15; 3 with --quick")
    parser.add_argument("--limit", type=float, default=120, help="seconds for any one answer")
    parser.add_argument("--python", default=sys.executable, help="interpreter of the contenders")
    parser.add_argument("--python-beside", help="of those that need older packages than ours")
    parser.add_argument("--json", type=Path, metavar="PATH", help="write the results")
    options = parser.parse_args(argv)
    jax.config.update("jax_enable_x64", True)
    rounds = options.rounds or (3 if options.quick else 15)
    beside = options.python_beside or options.python
    console = Console()
    rows = []
    for key in options.families:
        family = FAMILIES[key]
        rows += measure_family(
            key,
            selected([*family.cases()], options.cases),
            selected([*family.contenders()], options.contenders),
            (options.python, beside),
            rounds,
            case_budget_s=3.0 if options.quick else 20.0,
            limit_s=options.limit,
            progress=lambda line: console.print(line, style="dim"),
        )
    packages = ("jax", "jaxlib", "jaxopt", "optimistix", "lineax", "equinox", "numpy", "torch")
    results = {
        "machine": machine(),
        "versions": versions(*packages) | {"argmin_jax": argmin_jax.__version__},
        "rows": rows,
    }
    show(results, console)
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(results, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
