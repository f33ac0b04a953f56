"""The tables of the comparison with peers, from its results alone."""

from collections.abc import Iterable
from typing import Any

import rich.box
from rich.console import Console
from rich.table import Table

from .families import FAMILIES
from .measure import RIGHT

OURS = "argmin_jax"
COLUMNS = ("case", "contender", "of best peer", "fwd + bwd ms", "forward ms", "error", "compile s", "MB")


def is_right(row: dict[str, Any]) -> bool:
    return row["lost"] is None and row["error"] is not None and row["error"] <= RIGHT


def is_peer(row: dict[str, Any]) -> bool:
    return not row["contender"].startswith(OURS) and row["contender"] != "closed form"


def best_peer(rows: Iterable[dict[str, Any]], case: str) -> float | None:
    """The least time of forward and backward among the peers that are right."""
    times = [
        row["forward_backward_ms"]
        for row in rows
        if row["case"] == case and is_peer(row) and is_right(row)
    ]
    return min(times, default=None)


def cells(rows: list[dict[str, Any]]) -> list[list[str]]:
    """The rows of one family, each as the texts of `COLUMNS`."""
    found = []
    for row in rows:
        name = [row["case"], row["contender"]]
        if row["lost"] is not None:
            found.append([*name, "", "", "", row["lost"], "", ""])
            continue
        best = best_peer(rows, row["case"])
        ratio = f"{row['forward_backward_ms'] / best:.2f}" if best else ""
        error = "no minimum" if row["error"] is None else f"{row['error']:.0e}"
        found.append(
            [
                *name,
                ratio if is_right(row) else "wrong",
                f"{row['forward_backward_ms']:.3g}",
                f"{row['forward_ms']:.3g}",
                error,
                _number(row["compile_s"], ".2f"),
                _number(row["memory_mb"], ".3g"),
            ]
        )
    return found


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def show(results: dict[str, Any], console: Console) -> None:
    found = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    console.print(f"{results['machine']}; {found}\n")
    for key in dict.fromkeys(row["family"] for row in results["rows"]):
        rows = [row for row in results["rows"] if row["family"] == key]
        title = f"{key}. {FAMILIES[key].title}"
        table = Table(title=title, title_justify="left", box=rich.box.SIMPLE_HEAD, pad_edge=False)
        for k, column in enumerate(COLUMNS):
            table.add_column(column, justify="left" if k < 2 else "right", overflow="fold")
        last = None
        for line in cells(rows):
            if last not in (None, line[0]):
                table.add_section()
            table.add_row(line[0] if line[0] != last else "", *line[1:])
            last = line[0]
        console.print(table)
