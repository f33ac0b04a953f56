"""Writes results into the documents that show them, between markers: no number is typed by hand.

``<!-- name -->`` opens and ``<!-- /name -->`` closes a part. Run ``python -m benchmarks.pages``.
"""

import json
import re
import statistics
from collections import Counter
from pathlib import Path
from typing import Any

from . import compiling, cutest, scaling
from .lbfgs_choice_page import markdown_table
from .peers import tables

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks/results"
PAGES = (ROOT / "docs/benchmarks.md", ROOT / "docs/compiling.md", ROOT / "README.md")


def fill(text: str, parts: dict[str, str]) -> str:
    """``text`` with what stands between the markers of each part replaced."""
    for name, content in parts.items():
        mark = re.escape(name)
        pattern = rf"(<!-- {mark} -->\n).*?(<!-- /{mark} -->)"
        text = re.sub(pattern, lambda m, new=content: f"{m[1]}\n{new}\n\n{m[2]}", text, flags=re.S)
    return text


def parts() -> dict[str, str]:
    """All that the committed results have to say, by the names of the markers."""
    found = {"compiling options": compiling.options_section()}
    peers = _read("peers.json")
    if peers:
        found["peers"] = tables.summary(peers)
        for key, family in peers["families"].items():
            found[f"peers {key}"] = tables.family_section(key, family)
    steps = _read("compare.json")
    if steps:
        found["peers f"] = step_section(steps)
    curves = _read("scaling.json")
    if curves:
        found["scaling"] = scaling.section(curves)
    compiled = _read("compiling.json")
    if compiled:
        found["compiling"] = compiling.section(compiled)
    solved = _read("cutest.json")
    if solved:
        found["cutest"] = cutest_section(solved)
    derivatives = _read("sensitivities.json")
    if derivatives:
        found["sensitivities"] = sensitivity_section(derivatives)
    return found


def step_section(results: dict[str, Any]) -> str:
    """The training step of the comparison with PyTorch, in Markdown."""
    rows = [row for row in results["rows"] if row["what"] == "train_step"]
    reference = min(row["median_ms"] for row in rows if row["contender"].startswith("pytorch"))
    header = [
        "contender",
        "time / best PyTorch",
        "ms",
        "of closed form",
        "largest error",
        "compile s",
    ]
    cells = [
        [
            row["contender"],
            f"{row['median_ms'] / reference:.2f}",
            f"{row['median_ms']:.3g}",
            f"{row['to_closed_form']:.2f}",
            f"{row['max_relative_error']:.0e}",
            "" if row["compile_ms"] is None else f"{row['compile_ms'] / 1e3:.1f}",
        ]
        for row in sorted(rows, key=lambda row: row["median_ms"])
    ]
    return f"{markdown_table(header, cells, 1)}\n\nOn {tables.setting_of(results)}."


def cutest_section(results: dict[str, Any]) -> str:
    """What each solver solved, in Markdown."""
    problems = results["problems"]
    rows = []
    for solver in cutest.CONTENDERS:
        found = {name: row[solver] for name, row in problems.items()}
        unsolved = {name: row for name, row in found.items() if not row["solved"]}
        claims = [name for name, row in unsolved.items() if row["says"] == "converged"]
        rows.append(
            [
                solver,
                ", ".join(name for name in unsolved if name not in claims),
                ", ".join(claims),
                f"{len(found) - len(unsolved)} of {len(found)}",
                f"{statistics.median(row['steps'] for row in found.values()):.0f}",
                f"{statistics.median(row['ms'] for row in found.values()):.2g}",
            ]
        )
    header = [
        "solver",
        "not solved, and said so",
        "not solved, and said to converge",
        "solved",
        "median steps",
        "median ms",
    ]
    return f"{markdown_table(header, rows, 3)}\n\nOn {tables.setting_of(results)}."


def sensitivity_section(results: dict[str, Any]) -> str:
    """The verdicts in Markdown, and all problems that are not simply right."""
    problems = results["problems"]
    counts = Counter(row["verdict"] for row in problems.values())
    rows = [[kind, str(count)] for kind, count in counts.most_common()]
    verdicts = markdown_table(["verdict", "problems"], rows, 1)
    others = {name: row for name, row in problems.items() if row["verdict"] != "right"}
    listed = markdown_table(
        ["problem", "verdict", "what is met there", "status", "rank_deficiency", "weakly_active"],
        [
            [name, row["verdict"], ", ".join(row["degenerate"])]
            + [str(row["report"][key]) for key in ("status", "rank_deficiency", "weakly_active")]
            for name, row in others.items()
        ],
        4,
    )
    right = [row["error"] for row in problems.values() if row["verdict"] == "right"]
    return (
        f"{verdicts}\n\nLargest relative error of those that are right: {max(right):.0e}; "
        f"median {statistics.median(right):.0e}.\n\n{listed}\n\nOn {tables.setting_of(results)}."
    )


def _read(name: str) -> dict[str, Any] | None:
    path = RESULTS / name
    return json.loads(path.read_text("utf-8")) if path.exists() else None


def main() -> None:
    for page in PAGES:
        page.write_text(fill(page.read_text("utf-8"), parts()), encoding="utf-8")


if __name__ == "__main__":
    main()
