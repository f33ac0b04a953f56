"""The command line: ``python -m benchmarks.peers``."""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
from rich.console import Console

from ..timing import machine, versions
from .families import FAMILIES
from .measure import measure_family
from .tables import show


def selected(known: Sequence[str], asked: Sequence[str] | None) -> list[str]:
    """Those whose name contains one of the words asked for; all without words."""
    return [name for name in known if not asked or any(word in name for word in asked)]


def merge(
    families: dict[str, Any], key: str, setting: dict[str, Any], rows: list[dict[str, Any]]
) -> None:
    """Puts the rows of one case in the place of those that were there; results of another machine
    or of other versions are not mixed with them."""
    before = families.get(key, {})
    kept = before["rows"] if all(before.get(k) == v for k, v in setting.items()) else []
    kept = [row for row in kept if row["case"] != rows[0]["case"]] if rows else kept
    families[key] = setting | {"rows": kept + rows}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.peers",
        description="argmin_jax against its peers, on the same work.",
    )
    parser.add_argument("--quick", action="store_true", help="few cases: within five minutes")
    parser.add_argument("--families", nargs="+", choices=[*FAMILIES], default=[*FAMILIES])
    parser.add_argument("--cases", nargs="+", metavar="WORD", help="cases with these in the name")
    parser.add_argument("--contenders", nargs="+", metavar="WORD", help="the same of contenders")
    parser.add_argument("--rounds", type=int, help="default 15; 3 with --quick")
    parser.add_argument("--limit", type=float, default=120, help="seconds for any one answer")
    parser.add_argument("--python", default=sys.executable, help="interpreter of the contenders")
    parser.add_argument("--python-beside", help="of those that need older packages than ours")
    parser.add_argument("--json", type=Path, metavar="PATH", help="put the results in this file")
    options = parser.parse_args(argv)
    jax.config.update("jax_enable_x64", True)
    console = Console()
    results: dict[str, Any] = {"families": {}}
    if options.json and options.json.exists():
        results = json.loads(options.json.read_text("utf-8"))
    for key in options.families:
        family = FAMILIES[key]
        cases = family.quick if options.quick and not options.cases else [*family.cases()]
        contenders = {
            name: family.contenders()[name]
            for name in selected([*family.contenders()], options.contenders)
        }
        packages = {c.package for c in contenders.values() if not c.beside} | {"jax", "jaxlib"}
        setting = {"machine": machine(), "versions": versions(*sorted(packages))}
        for rows in measure_family(
            key,
            selected(cases, options.cases),
            [*contenders],
            (options.python, options.python_beside),
            options.rounds or (3 if options.quick else 15),
            case_budget_s=3.0 if options.quick else 20.0,
            limit_s=options.limit,
            progress=lambda line: console.print(line, style="dim"),
        ):
            merge(results["families"], key, setting, rows)
            if options.json:
                options.json.parent.mkdir(parents=True, exist_ok=True)
                options.json.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    show(results, console)
    return 0


if __name__ == "__main__":
    sys.exit(main())
