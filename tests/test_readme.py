"""The code of README and docs runs as printed, in a fresh process as its readers start it."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
PAGES = [README, *((ROOT / "docs" / f"{name}.md").read_text() for name in ("constraints", "trust"))]
# Each Python block, with what its page says it prints.
BLOCKS = re.findall(r"```python\n(.*?)```\n+```text\n(.*?)```", "\n".join(PAGES), re.DOTALL)

# One process for all: what it costs is importing JAX. Each block has its own namespace.
RUNNER = """
import contextlib, io, json, sys
printed = []
for block in json.load(sys.stdin):
    with contextlib.redirect_stdout(io.StringIO()) as out:
        exec(compile(block, "README", "exec"), {"__name__": "__main__"})
    printed.append(out.getvalue())
json.dump(printed, sys.stdout)
"""
NUMBER = re.compile(r"[-+]?\d+\.?\d*(?:e[-+]?\d+)?")


@pytest.fixture(scope="module")
def printed():
    done = subprocess.run(
        [sys.executable, "-c", RUNNER],
        input=json.dumps([code for code, _ in BLOCKS]),
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={name: value for name, value in os.environ.items() if name != "XLA_FLAGS"},
        timeout=1000,  # many times what it takes, for machines that are shared
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return json.loads(done.stdout)


def test_every_python_block_says_what_it_prints():
    assert len(BLOCKS) == sum(page.count("```python") for page in PAGES) >= 6


@pytest.mark.parametrize("index", range(len(BLOCKS)))
def test_block_prints_what_the_readme_says(printed, index):
    found, expected = printed[index], BLOCKS[index][1]
    # The same words, and numbers that agree but for float32's rounding on another machine.
    assert NUMBER.sub("#", found) == NUMBER.sub("#", expected)
    for a, b in zip(NUMBER.findall(found), NUMBER.findall(expected), strict=True):
        assert float(a) == pytest.approx(float(b), rel=1e-3, abs=1e-5)


def test_commands_that_the_readme_names_are_targets_of_the_makefile():
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"\bmake ([a-z]+)\b", README))
    assert {"train", "test", "compare", "lint"} <= named & targets
    # "make another" is no command.
    assert named - targets <= {"another"}


def test_files_that_the_readme_links_to_exist():
    links = re.findall(r"\]\(([^)#]+)\)", README)
    assert len(links) >= 4
    for link in links:
        assert link.startswith("https://") or (ROOT / link).is_file(), link
