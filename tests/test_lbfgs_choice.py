"""The measurement behind the default L-BFGS: its page is its results, and its contenders work."""

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks.lbfgs_choice import CONTENDERS, TOLERANCES, Entry, Judge
from benchmarks.lbfgs_choice_page import render
from benchmarks.lbfgs_problems import logistic

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def small():
    problem = logistic(np.random.default_rng(0), samples=30, features=4)
    batch = problem.lanes(np.random.default_rng(0), 1)
    return problem, batch, Judge(problem, batch)


def test_the_page_is_what_the_committed_results_give():
    results = json.loads((ROOT / "benchmarks/results/lbfgs_choice.json").read_text("utf-8"))
    assert render(results) == (ROOT / "docs/choice-of-lbfgs.md").read_text("utf-8")


@pytest.mark.parametrize("name", CONTENDERS)
def test_every_contender_solves_a_small_problem(name, small):
    problem, batch, judge = small
    contender = CONTENDERS[name]
    entry = Entry(contender, problem, batch, judge)
    asked = np.array([1e-10]) if contender.ladder else TOLERANCES["float64"] * judge.scale
    found = entry.assess(asked)
    assert found["lanes_reached"] == 1
    assert 1 < found["steps"] < 50
    assert found["distance"] < 1e-6
