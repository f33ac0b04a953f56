"""The verdict on the L-BFGSs, its tables and its page of the docs: all from the results alone."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

# Verdict -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Standing:
    """One contender over all cases; means are geometric, over the cases that it solved."""

    name: str
    maintained: bool
    cases: int
    failures: int
    time: float  # relative to the fastest that solved the case
    groups: dict[tuple[str, int], float]  # the same by dtype and lanes
    steps: float  # relative to the fewest
    distance: float
    compile_s: float


def solved(row: dict[str, Any]) -> bool:
    return row["lanes_reached"] == row["lanes"]


def case(row: dict[str, Any]) -> tuple[str, str, int]:
    return row["problem"], row["dtype"], row["lanes"]


def least(results: dict[str, Any], what: str) -> dict[tuple[str, str, int], float]:
    """The least time (or steps, ...) of those that solved each case."""
    found: dict[tuple[str, str, int], float] = {}
    for row in filter(solved, results["rows"]):
        found[case(row)] = min(found.get(case(row), float("inf")), row[what])
    return found


def geometric_mean(values: Iterable[float]) -> float:
    logs = [np.log(value) for value in values]
    return float(np.exp(np.mean(logs))) if logs else float("nan")


def standings(results: dict[str, Any]) -> list[Standing]:
    """Fewest failures first; among equals, the fastest."""
    times, steps = least(results, "median_ms"), least(results, "steps")
    found = []
    for name, contender in results["contenders"].items():
        rows = [row for row in results["rows"] if row["contender"] == name]
        good = [row for row in rows if solved(row)]
        groups = {(row["dtype"], row["lanes"]): [] for row in rows}
        for row in good:
            groups[row["dtype"], row["lanes"]].append(row["median_ms"] / times[case(row)])
        found.append(
            Standing(
                name=name,
                maintained=contender["maintained"],
                cases=len(rows),
                failures=len(rows) - len(good),
                time=geometric_mean(row["median_ms"] / times[case(row)] for row in good),
                groups={group: geometric_mean(ratios) for group, ratios in groups.items()},
                steps=geometric_mean(row["steps"] / steps[case(row)] for row in good),
                distance=geometric_mean(row["distance"] for row in good),
                compile_s=geometric_mean(row["compile_s"] for row in rows),
            )
        )
    return sorted(found, key=lambda s: (s.failures, s.time))


def relative_time(results: dict[str, Any], name: str, other: str) -> float:
    """The time of ``name`` over that of ``other``, in the cases that both solved."""
    times = {
        (row["contender"], case(row)): row["median_ms"] for row in results["rows"] if solved(row)
    }
    shared = [where for who, where in times if who == name and (other, where) in times]
    return geometric_mean(times[name, where] / times[other, where] for where in shared)


def verdict(results: dict[str, Any]) -> str:
    """The winner among the maintained by the rule of the page, and who was faster or better."""
    ranked = standings(results)
    maintained = [s for s in ranked if s.maintained]
    best = maintained[0]
    lines = [
        f"**{best.name}** is the choice: of the maintained contenders it has the fewest failures "
        f"({best.failures} in {best.cases} cases) and, among equals in that, the best time: in "
        f"the geometric mean {best.time:.2f} times that of the fastest contender that solved the "
        "case."
    ]
    for other in ranked:
        if other is best:
            continue
        status = "" if other.maintained else " (unmaintained)"
        lines.append(
            f"{other.name}{status}: {other.failures} failures, {other.time:.2f} times the fastest."
        )
    shares = {s.name: relative_time(results, s.name, best.name) for s in ranked}
    quicker = [f"{name} ({share:.2f})" for name, share in shares.items() if share < 1]
    if quicker:
        lines.append(
            f"Faster than {best.name} over the cases that both solved (times its time, geometric "
            f"mean): {', '.join(quicker)}."
        )
    else:
        lines.append(f"None is faster than {best.name} over the cases that both solved.")
    return " ".join(lines)


# Output --------------------------------------------------------------------------------------

COLUMNS = (
    "problem",
    "contender",
    "time / best",
    "ms",
    "steps",
    "gradient",
    "distance",
    "compile s",
    "reached",
)
STANDING_COLUMNS = ("contender", "maintained", "failures", "time / best")


def title(dtype: str, lanes: int) -> str:
    return f"{dtype}, {'single' if lanes == 1 else f'vmap over {lanes} lanes'}"


def groups_of(results: dict[str, Any]) -> list[tuple[str, int]]:
    return list(dict.fromkeys((row["dtype"], row["lanes"]) for row in results["rows"]))


def case_cells(results: dict[str, Any], group: tuple[str, int]) -> list[list[str]]:
    times = least(results, "median_ms")
    return [
        [
            row["problem"],
            row["contender"],
            f"{row['median_ms'] / times[case(row)]:.2f}" if case(row) in times else "-",
            f"{row['median_ms']:.3g}",
            str(row["steps"]),
            f"{row['gradient']:.1e}",
            f"{row['distance']:.1e}",
            f"{row['compile_s']:.2f}",
            "yes" if solved(row) else f"**no**: {row['lanes_reached']} of {row['lanes']}",
        ]
        for row in results["rows"]
        if (row["dtype"], row["lanes"]) == group
    ]


def standing_cells(results: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    groups = groups_of(results)
    header = [*STANDING_COLUMNS, *(title(*g) for g in groups)]
    header += ["steps / fewest", "distance", "compile s"]
    cells = [
        [
            s.name,
            "yes" if s.maintained else "no",
            f"{s.failures} of {s.cases}",
            f"{s.time:.2f}",
            *("-" if np.isnan(s.groups[g]) else f"{s.groups[g]:.2f}" for g in groups),
            f"{s.steps:.2f}",
            f"{s.distance:.1e}",
            f"{s.compile_s:.2f}",
        ]
        for s in standings(results)
    ]
    return header, cells


def show(results: dict[str, Any], console: Console) -> None:
    console.print(f"{results['machine']}\n{results['versions']}\n")
    tables = [("All cases", *standing_cells(results))]
    tables += [(title(*g), list(COLUMNS), case_cells(results, g)) for g in groups_of(results)]
    for name, header, cells in tables:
        table = Table(title=name)
        for k, column in enumerate(header):
            table.add_column(column, justify="left" if k < 2 else "right")
        for row in cells:
            table.add_row(*(cell.replace("**", "") for cell in row))
        console.print(table)
    console.print(verdict(results).replace("**", ""))


def markdown_table(header: list[str], cells: list[list[str]], left: int) -> str:
    marks = ["---" if k < left else "---:" for k in range(len(header))]
    return "\n".join("| " + " | ".join(row) + " |" for row in (header, marks, *cells))


def render(results: dict[str, Any]) -> str:
    """The page, wholly from the results."""
    tolerances = ", ".join(f"{tol:g} in {dtype}" for dtype, tol in results["tolerances"].items())
    packages = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    spread = results["spread"]
    stops = "\n".join(f"- {name}: {c['stop']}." for name, c in results["contenders"].items())
    problems = "\n".join(f"- {name}: {text}." for name, text in results["problems"].items())
    rounds = sorted({row["rounds"] for row in results["rows"]})
    sections = "\n\n".join(
        f"## {title(*group)}\n\n{markdown_table(list(COLUMNS), case_cells(results, group), 2)}"
        for group in groups_of(results)
    )
    return f"""# The choice of the L-BFGS

This page is generated by `python -m benchmarks.lbfgs_choice`: every number is from its results.

**Asked**: which L-BFGS serves best as the default solver, by forward time, steps, accuracy,
float32 and vmap, provided that it is maintained.

**Verdict**: {verdict(results)}

{markdown_table(*standing_cells(results), 1)}

A case is a problem in one precision, alone or under vmap. Time, steps and distance are geometric
means over the cases that a contender solved; time is relative to the fastest contender that solved
the case. The order, and the verdict, count failures first and time second.

## How it was measured

Every contender keeps {results["memory"]} past steps, may take {results["max_steps"]} steps, and is
otherwise as its package has it by default. All are to reach the same: a largest entry of the
gradient of at most the tolerance ({tolerances}) times the largest entry at the start, in every
lane. Reached means that the gradient at the point found, recomputed in float64, is within
{results["slack"]:g} times that. How each is told to stop:

{stops}

Optimistix counts every trial of its line search as a step, and {results["max_steps"]} bounds these
trials; the table shows the steps that it accepted. The others evaluate the objective once or
several times a step.

The problems (seed {results["seed"]}):

{problems}

Under vmap, {results["lanes"]} lanes have starts perturbed by normal numbers of size
{spread["start"]:g} and inputs perturbed by a relative {spread["data"]:g}; steps, gradient and
distance are those of the worst lane. float32 is measured with JAX's 64-bit mode off. Distance is
the largest error of y against a float64 reference, relative to the largest entry of that.

Times are medians of jitted runs in one process, the contenders taking turns in {rounds[-1]} rounds
(down to {rounds[0]} where a contender takes long); compile s is tracing and compiling. Trust the
ratios rather than the milliseconds, which are of this machine: {results["machine"]}; {packages}.

{sections}

## Again

```
python -m benchmarks.lbfgs_choice --json benchmarks/results/lbfgs_choice.json \\
    --page docs/choice-of-lbfgs.md
```
"""
