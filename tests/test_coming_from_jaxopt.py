"""Every line of docs/coming-from-jaxopt.md: both columns are evaluated, and must agree."""

import re
from pathlib import Path

import jax
import pytest

from .problems import assert_close

PAGE = (Path(__file__).parents[1] / "docs" / "coming-from-jaxopt.md").read_text()
LINES = re.findall(r"^\| `(.+)` \| `(.+)` \|$", PAGE, re.MULTILINE)


@pytest.fixture(scope="module")
def names():
    """What the page's blocks of code define."""
    found = {}
    for block in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL):
        exec(compile(block, "docs/coming-from-jaxopt.md", "exec"), found)
    return found


def test_every_line_of_the_tables_is_read():
    rows = [line for line in PAGE.splitlines() if line.startswith("|")]
    heads = [line for line in rows if line in ("| JAXopt | argmin_jax |", "|---|---|")]
    assert len(LINES) == len(rows) - len(heads) >= 30


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("theirs, ours", LINES, ids=[ours for _, ours in LINES])
def test_both_columns_say_the_same(names, theirs, ours):
    found, expected = eval(ours, names), eval(theirs, names)
    # To the accuracy of JAXopt's solvers at the tolerances that the page gives them; one of its
    # projections runs OSQP at 1e-3 and cannot be told otherwise.
    tolerance = 1e-3 if "projection_polyhedron" in theirs else 1e-5
    assert_close(jax.numpy.asarray(found), jax.numpy.asarray(expected), tolerance)
