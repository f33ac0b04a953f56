"""Writes results into the documents that show them, between markers: no number is typed by hand.

``<!-- name -->`` opens and ``<!-- /name -->`` closes a part. Run ``python -m benchmarks.pages``.
"""

import json
import re
from pathlib import Path
from typing import Any

from . import scaling
from .lbfgs_choice_page import markdown_table
from .peers import tables

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks/results"
PAGES = (ROOT / "docs/benchmarks.md", ROOT / "README.md")


def fill(text: str, parts: dict[str, str]) -> str:
    """``text`` with what stands between the markers of each part replaced."""
    for name, content in parts.items():
        mark = re.escape(name)
        pattern = rf"(<!-- {mark} -->\n).*?(<!-- /{mark} -->)"
        text = re.sub(pattern, lambda m, new=content: f"{m[1]}\n{new}\n\n{m[2]}", text, flags=re.S)
    return text


def parts() -> dict[str, str]:
    """All that the committed results have to say, by the names of the markers."""
    found: dict[str, str] = {}
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


def _read(name: str) -> dict[str, Any] | None:
    path = RESULTS / name
    return json.loads(path.read_text("utf-8")) if path.exists() else None


def main() -> None:
    for page in PAGES:
        page.write_text(fill(page.read_text("utf-8"), parts()), encoding="utf-8")


if __name__ == "__main__":
    main()
