"""Runs the contenders of a family in turns and judges what they found."""

import statistics
import tempfile
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ..timing import median_ms, take_turns
from .families import FAMILIES, Judge
from .process import Lost, Process

WHAT = ("forward", "forward_backward")
RIGHT = 1e-6  # the largest relative error of a gradient that counts as right
LADDER = [10.0**-k for k in range(3, 15)]


def measure_family(
    family: str,
    cases: Iterable[str],
    contenders: Iterable[str],
    pythons: tuple[str, str | None],
    rounds: int,
    case_budget_s: float,
    limit_s: float,
    progress: Callable[[str], None] = lambda line: None,
) -> Iterator[list[dict[str, Any]]]:
    """Case by case, a row for each contender.

    Args:
        pythons: the interpreter of most contenders, and of those that need one beside, which are
            left out without it.
        case_budget_s: bounds the rounds of one case.
        limit_s: on any one answer of a contender.
    """
    known = FAMILIES[family].contenders()
    processes = {
        name: Process(python, family, name, known[name].threads)
        for name in contenders
        if (python := pythons[known[name].beside]) is not None
    }
    try:
        for name in cases:
            case = FAMILIES[family].cases()[name]()
            taking_part = {n: p for n, p in processes.items() if known[n].applies_to(case)}
            judge = FAMILIES[family].make_judge(case)
            measured = []
            for who, process in taking_part.items():
                progress(f"{family}: {name}: {who}")
                ladder = known[who].probe is not None
                row = {"family": family, "case": name, "contender": who}
                row |= {"package": known[who].package}
                measured.append(row | prepare(process, judge, name, ladder, limit_s))
            progress(f"{family}: {name}: turns")
            running = {
                row["contender"]: taking_part[row["contender"]]
                for row in measured
                if row["lost"] is None
            }
            timings = time_in_turns(running, rounds, case_budget_s, limit_s)
            yield [row | timings.get(row["contender"], {}) for row in measured]
    finally:
        for process in processes.values():
            process.stop()


def prepare(
    process: Process, judge: Judge, case: str, ladder: bool, limit_s: float
) -> dict[str, Any]:
    """What is known of a contender before its turns; ``lost`` is why it takes none, or None."""
    row: dict[str, Any] = {"tolerance": None, "error": None, "compile_s": None, "memory_mb": None}
    with tempfile.TemporaryDirectory() as folder:
        save = str(Path(folder) / "found.npz")
        try:
            if ladder:
                row["tolerance"] = choose_tolerance(process, judge, case, limit_s, save)
            order = {"case": case, "tolerance": row["tolerance"] or 0.0, "save": save}
            row |= process.ask(limit_s, "prepare", **order)
        except Lost as lost:
            return row | {"lost": str(lost)}
        with np.load(save) as found:
            y, *gradients = found.values()
    error = judge.error(y, gradients)
    return row | {"error": error if np.isfinite(error) else None, "lost": None}


def choose_tolerance(process: Process, judge: Judge, case: str, limit_s: float, save: str) -> float:
    """The loosest power of ten at which the point is good enough for a right gradient; else the
    one with the smallest error."""
    errors = {}
    for level in LADDER:
        process.ask(limit_s, "point", case=case, tolerance=level, save=save)
        with np.load(save) as found:
            errors[level] = judge.error_of_point(found["y"])
        if errors[level] <= RIGHT / 2:
            break
    return min(errors, key=lambda level: errors[level])


def time_in_turns(
    processes: dict[str, Process], rounds: int, case_budget_s: float, limit_s: float
) -> dict[str, dict[str, Any]]:
    """The median milliseconds of both programs of each contender; or why it was lost meanwhile."""
    keys = [(name, what) for name in processes for what in WHAT]
    lost: dict[str, str] = {}

    def seconds_of(name: str, what: str, budget_s: float) -> list[float]:
        if name in lost:
            return []
        try:
            return processes[name].ask(limit_s, "turn", what=what, budget_s=budget_s)
        except Lost as why:
            lost[name] = str(why)
            return []

    def turns(budget_s: float):
        return {" ".join(key): partial(seconds_of, *key, budget_s) for key in keys}

    if not keys:
        return {}
    once = [taken for taken in take_turns(turns(0.0), 1).values() if taken]
    spent = sum(map(sum, once))
    budget_s = 0.05
    # A turn takes its budget, or one run where that is longer.
    each = sum(max(budget_s, statistics.fmean(taken)) for taken in once)
    if once:
        rounds = max(1, min(rounds, int((case_budget_s - spent) / each)))
    seconds = take_turns(turns(budget_s), rounds)
    return {
        name: {"lost": lost[name]}
        if name in lost
        else {f"{what}_ms": median_ms(seconds[f"{name} {what}"]) for what in WHAT}
        | {"rounds": rounds}
        for name in processes
    }
