"""One library in one precision in a process of its own: a line of JSON for each problem.

Started by `guard`, with the names of the contender, the precision and the problems.
"""

import json
import os
import re
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .asks import derivative
from .catalogue import CATALOGUE
from .contenders import CONTENDERS, Contender
from .problem import CannotExpress, Problem

Outcome = dict[str, Any]


def attempt(contender: Contender, problem: Problem, dtype: str) -> Outcome:
    """What the library did: the arrays that it returned, with the warnings that it showed, or the
    exception that it raised: any exception is a finding, and is looked at as a future's."""
    with warnings.catch_warnings(record=True) as caught, ThreadPoolExecutor(1) as pool:
        warnings.simplefilter("always")
        future = pool.submit(run, contender, problem, dtype)
        error = future.exception()
    if isinstance(error, CannotExpress):
        return {"cannot": str(error)}
    if error is not None:
        return {"raised": describe(error)}
    shown = [str(w.message) for w in caught if w.category is RuntimeWarning]
    return {"arrays": [np.asarray(a).tolist() for a in future.result()], "warned": shown}


def run(contender: Contender, problem: Problem, dtype: str) -> list[Any]:
    solve = contender.load()
    if not contender.in_jax:
        return solve(problem, dtype)
    params = tuple(jnp.asarray(p, dtype) for p in problem.params)
    y0 = jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), problem.y0)
    return jax.block_until_ready(derivative(problem, solve, params, y0))


def describe(error: BaseException) -> str:
    """The kind of an exception and its sentence: what a traceback within the text ends with, or
    else the first line."""
    within = re.findall(r"^[\w.]*Error: (.+)$", str(error), re.MULTILINE)
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    sentence = (within[-1:] or lines[:1] or [""])[0]
    return f"{type(error).__name__}: {sentence}"[:300]


def main(name: str, dtype: str, problems: list[str]) -> None:
    jax.config.update("jax_enable_x64", dtype == "float64")
    # A library may print: the results have a channel of their own.
    results = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for problem in problems:
        outcome = attempt(CONTENDERS[name], CATALOGUE[problem], dtype)
        print(json.dumps({"problem": problem, **outcome}), file=results, flush=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3:])
