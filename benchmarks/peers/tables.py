"""The tables of the comparison with peers, from its results alone, on screen and in the docs."""

from collections.abc import Iterable
from typing import Any

import rich.box
from rich.console import Console
from rich.table import Table

from ..lbfgs_choice_page import geometric_mean, markdown_table
from .families import FAMILIES
from .measure import RIGHT

Row = dict[str, Any]
OURS = "argmin_jax"
FLOOR = "closed form"
COLUMNS: tuple[str, ...] = (
    "case",
    "contender",
    "time / best peer",
    "forward + backward ms",
    "forward ms",
    "gradient error",
    "compile s",
    "memory MB",
)
STANDING: tuple[str, ...] = (
    "family",
    "cases",
    "default / best right peer",
    "best setting / best right peer",
    "largest error",
    "peers' runs that are wrong or do not end",
)


def is_right(row: Row) -> bool:
    return row["lost"] is None and row["error"] is not None and row["error"] <= RIGHT


def is_ours(row: Row) -> bool:
    return row["contender"].split(",")[0] == OURS


def is_peer(row: Row) -> bool:
    return not is_ours(row) and row["contender"] != FLOOR


def best(rows: Iterable[Row]) -> Row | None:
    """The row of the least time of forward and backward, among those that are right."""
    right = [row for row in rows if is_right(row)]
    return min(right, key=lambda row: row["forward_backward_ms"], default=None)


def cases_of(rows: Iterable[Row]) -> dict[str, list[Row]]:
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(row["case"], []).append(row)
    return found


def case_cells(rows: list[Row]) -> list[list[str]]:
    """The rows of one case, the fastest first, each as the texts of `COLUMNS`."""
    peer = best(filter(is_peer, rows))
    ran = sorted(
        (row for row in rows if row["lost"] is None), key=lambda row: row["forward_backward_ms"]
    )
    found = []
    for row in ran:
        verdict = "**wrong**"
        if is_right(row):
            share = row["forward_backward_ms"] / peer["forward_backward_ms"] if peer else None
            verdict = _number(share, ".2f")
        found.append(
            [
                row["case"],
                row["contender"],
                verdict,
                f"{row['forward_backward_ms']:.3g}",
                f"{row['forward_ms']:.3g}",
                "no minimum" if row["error"] is None else f"{row['error']:.0e}",
                _number(row["compile_s"], ".2f"),
                _number(row["memory_mb"], ".3g"),
            ]
        )
    for row in rows:
        if row["lost"] is not None:
            found.append([row["case"], row["contender"], "**lost**", "", "", "", "", ""])
    return found


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def family_cells(rows: Iterable[Row]) -> list[list[str]]:
    return [line for case in cases_of(rows).values() for line in case_cells(case)]


def losses(rows: Iterable[Row]) -> list[str]:
    """Who was lost and why."""
    return [
        f"{row['contender']} on {row['case']}: {row['lost']}"
        for row in rows
        if row["lost"] is not None
    ]


def standing(title: str, rows: list[Row]) -> list[str]:
    """One family in one line, as the texts of `STANDING`."""
    cases = cases_of(rows)
    default, setting = [], []
    for of_case in cases.values():
        peer = best(filter(is_peer, of_case))
        ours = best(filter(is_ours, of_case))
        plain = [row for row in of_case if row["contender"] == OURS and is_right(row)]
        if peer is None:
            continue
        default += [row["forward_backward_ms"] / peer["forward_backward_ms"] for row in plain]
        if ours is not None:
            setting.append(ours["forward_backward_ms"] / peer["forward_backward_ms"])
    errors = [row["error"] for row in rows if is_ours(row) and row["lost"] is None]
    peers = [row for row in rows if is_peer(row)]
    wrong = sum(not is_right(row) for row in peers)
    largest = "" if not errors else "no minimum" if None in errors else f"{max(errors):.0e}"
    return [
        title,
        str(len(cases)),
        _spread(default),
        _spread(setting),
        largest,
        f"{wrong} of {len(peers)}",
    ]


def _spread(ratios: list[float]) -> str:
    return f"{geometric_mean(ratios):.2f} (worst {max(ratios):.2f})" if ratios else "-"


def standings(results: dict[str, Any]) -> list[list[str]]:
    return [
        standing(FAMILIES[key].title, found["rows"])
        for key, found in sorted(results["families"].items())
    ]


def setting_of(found: dict[str, Any]) -> str:
    packages = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    return f"{found['machine']}; {packages}"


def show(results: dict[str, Any], console: Console) -> None:
    tables = [("Families", list(STANDING), standings(results))]
    for key, found in sorted(results["families"].items()):
        title = f"{key}. {FAMILIES[key].title}"
        tables.append((title, list(COLUMNS), family_cells(found["rows"])))
        console.print(f"{key}: {setting_of(found)}", *losses(found["rows"]), sep="\n")
    for title, header, cells in tables:
        table = Table(title=title, title_justify="left", box=rich.box.SIMPLE_HEAD, pad_edge=False)
        for k, column in enumerate(header):
            table.add_column(column, justify="left" if k < 2 else "right", overflow="fold")
        last = None
        for line in cells:
            if last not in (None, line[0]):
                table.add_section()
            shown = "" if line[0] == last else line[0]
            table.add_row(shown, *(text.replace("**", "") for text in line[1:]))
            last = line[0]
        console.print(table)


def family_section(key: str, found: dict[str, Any]) -> str:
    """The results of a family in Markdown."""
    text = markdown_table(list(COLUMNS), family_cells(found["rows"]), 2)
    lost = "".join(f"\n- {line}" for line in losses(found["rows"]))
    return f"{text}\n{lost and f'{chr(10)}Lost:{chr(10)}{lost}{chr(10)}'}\nOn {setting_of(found)}."


def summary(results: dict[str, Any]) -> str:
    """The standings in Markdown."""
    return markdown_table(list(STANDING), standings(results), 1)
