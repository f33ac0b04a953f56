"""Writes results into the documents that show them, between markers: no number is typed by hand.

``<!-- name -->`` opens and ``<!-- /name -->`` closes a part. Run ``python -m benchmarks.pages``.
"""

import json
import re
from pathlib import Path
from typing import Any

from . import scaling
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
    curves = _read("scaling.json")
    if curves:
        found["scaling"] = scaling.section(curves)
    return found


def _read(name: str) -> dict[str, Any] | None:
    path = RESULTS / name
    return json.loads(path.read_text("utf-8")) if path.exists() else None


def main() -> None:
    for page in PAGES:
        page.write_text(fill(page.read_text("utf-8"), parts()), encoding="utf-8")


if __name__ == "__main__":
    main()
