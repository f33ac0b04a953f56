"""The matrix in all its forms, from the results alone: terminal, README and docs/conformance.md."""

from collections import Counter
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from .judge import Kind

MARKERS = "<!-- conformance -->", "<!-- /conformance -->"
STYLES = {
    Kind.RIGHT: "green",
    Kind.WRONG: "bold red",
    Kind.REFUSED: "yellow",
    Kind.CANNOT: "dim",
    Kind.HUNG: "bold red",
}


def cell(row: dict[str, Any]) -> str:
    """A verdict in a word, with its error."""
    kind, error = Kind(row["kind"]), row["error"]
    if kind is Kind.RIGHT:
        return f"{error:.0e}" if error > 0 else "exact"
    if kind is Kind.WRONG:
        return "wrong" if error is None else f"wrong: {size(error)}"
    return {Kind.REFUSED: "refused", Kind.CANNOT: "-", Kind.HUNG: "hangs"}[kind]


def size(error: float) -> str:
    """A relative error that is too large."""
    return f"{error:.0%}" if 0.01 <= error < 100 else f"{error:.0e}"


def marked(row: dict[str, Any]) -> str:
    """The same for Markdown: what is wrong stands out."""
    text = cell(row)
    return f"**{text}**" if Kind(row["kind"]) in (Kind.WRONG, Kind.HUNG) else text


def find(results: dict[str, Any], dtype: str) -> dict[tuple[str, str], dict[str, Any]]:
    return {
        (row["problem"], row["contender"]): row for row in results["rows"] if row["dtype"] == dtype
    }


def counts(results: dict[str, Any], dtype: str) -> dict[str, Counter[Kind]]:
    found = {name: Counter() for name in results["contenders"]}
    for row in results["rows"]:
        if row["dtype"] == dtype:
            found[row["contender"]][Kind(row["kind"])] += 1
    return found


def show(results: dict[str, Any], console: Console) -> None:
    packages = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    console.print(f"{results['machine']}; {packages}\n")
    for dtype in results["dtypes"]:
        rows = find(results, dtype)
        table = Table(title=f"Relative error of the gradient, {dtype}", title_justify="left")
        table.add_column("problem")
        for name in results["contenders"]:
            table.add_column(name, justify="right")
        for problems in results["groups"].values():
            for problem in problems:
                if any((problem, name) in rows for name in results["contenders"]):
                    found = [rows.get((problem, name)) for name in results["contenders"]]
                    table.add_row(problem, *(coloured(row) for row in found))
            table.add_section()
        for kind in Kind:
            totals = [str(c[kind]) for c in counts(results, dtype).values()]
            table.add_row(str(kind), *totals, style=STYLES[kind])
        console.print(table)


def coloured(row: dict[str, Any] | None) -> str:
    if row is None:
        return ""
    style = STYLES[Kind(row["kind"])]
    return f"[{style}]{cell(row)}[/{style}]"


def markdown_matrix(results: dict[str, Any], dtype: str) -> str:
    names, rows = list(results["contenders"]), find(results, dtype)
    lines = [["problem", *names], ["---", *["---:"] * len(names)]]
    for group, problems in results["groups"].items():
        asked = [p for p in problems if any((p, name) in rows for name in names)]
        lines.append([f"*{group}*", *[""] * len(names)])
        for problem in asked:
            cells = [rows.get((problem, name)) for name in names]
            lines.append([problem, *("" if row is None else marked(row) for row in cells)])
    lines.append(["*All*", *[""] * len(names)])
    for kind in Kind:
        totals = [str(c[kind]) for c in counts(results, dtype).values()]
        if any(total != "0" for total in totals):
            lines.append([str(kind), *totals])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def readme_block(results: dict[str, Any]) -> str:
    """What stands between the markers of the README."""
    return f"{MARKERS[0]}\n{markdown_matrix(results, 'float64')}\n{MARKERS[1]}"


def with_block(readme: str, results: dict[str, Any]) -> str:
    """The README with its matrix renewed."""
    start, end = (readme.index(marker) for marker in MARKERS)
    return readme[:start] + readme_block(results) + readme[end + len(MARKERS[1]) :]


def render(results: dict[str, Any]) -> str:
    """The page of the docs, wholly from the results."""
    packages = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    how = "\n".join(f"- {name}: {text}." for name, text in results["contenders"].items())
    matrices = "\n\n".join(
        f"## {dtype}\n\n{markdown_matrix(results, dtype)}" for dtype in results["dtypes"]
    )
    problems = "\n".join(
        f"| {name} | {p['ask']} | {p['posed']} | {tolerances(p)} |"
        for name, p in results["problems"].items()
    )
    notes = "\n".join(
        f"- {row['problem']} ({row['dtype']}), {row['contender']}: {row['note'].replace('|', '/')}"
        for row in results["rows"]
        if row["note"] and Kind(row["kind"]) in (Kind.REFUSED, Kind.HUNG)
    )
    return f"""# Conformance

This page is generated by `make conformance`: every number is from its results.

**Asked**: does a library's gradient of an argmin agree with the truth, and where it does not, does
the library say so? {len(results["problems"])} problems with known derivatives, closed forms or
dense algebra in float64; each library called as its users would, in a process of its own, with
{results["limit_s"]:.0f} s for a problem.

- A number is the relative error of a right gradient (the largest of all params).
- **wrong** is wrong in silence: a finite gradient, further from the truth than the tolerance, or
  where no gradient exists, with no exception and no warning.
- refused: an exception, a `RuntimeWarning`, or NaN. Loud, and never held against a library here.
- `-`: the library has no way to put the question.

{matrices}

## The libraries

{how}

## The problems

| problem | asked for | what is well posed about it | tolerance |
| --- | --- | --- | --- |
{problems}

The vectors c and d are fixed. A tolerance is at least 1e-6 in float64 and 1e-2 in float32, and ten
times the rounding error that the problem's conditioning makes; a precision that leaves no digit is
not asked for. The truth is that of the params after rounding to the precision. Where there is no
truth a library has to refuse.

## What was refused, and how

{notes}

## Where it was run

{results["machine"]}; {packages}.

```
make conformance   # prints the matrix; writes it with ARGS="--write"
```
"""


def tolerances(problem: dict[str, Any]) -> str:
    if not problem["has_truth"]:
        return "to be refused"
    return ", ".join(f"{tol:.0e} ({dtype})" for dtype, tol in problem["tolerances"].items())


def write_pages(results: dict[str, Any], root: Path) -> None:
    (root / "docs" / "conformance.md").write_text(render(results), "utf-8")
    readme = root / "README.md"
    text = readme.read_text("utf-8")
    if all(marker in text for marker in MARKERS):
        readme.write_text(with_block(text, results), "utf-8")
