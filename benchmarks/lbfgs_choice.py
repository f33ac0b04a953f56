"""Which L-BFGS is the default: Optimistix's, Optax's and JAXopt's on the same problems.

Writes docs/choice-of-lbfgs.md. Run ``python -m benchmarks.lbfgs_choice --help``.
"""

import argparse
import json
import sys
import time
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optimistix as optx
from jaxtyping import Array, Float, Int, Scalar
from rich.console import Console

from argmin_jax.solvers import LBFGS

from .lbfgs_choice_page import render, show
from .lbfgs_problems import DATA_SPREAD, PROBLEMS, START_SPREAD, Problem
from .timing import interleave, machine, median_ms, versions

TOLERANCES = {"float64": 1e-8, "float32": 1e-4}
MAX_STEPS = 1000
MEMORY = 10
LANES = 32
CASE_BUDGET_S = 10.0
FEWEST_ROUNDS = 3
# A solver sees the gradient rounded to its own precision, and is judged by the exact one.
SLACK = 1.1

Objective = Callable[[Float[Array, " n"]], Scalar]
Outcome = tuple[Float[Array, " n"], Int[Array, ""]]


# Contenders ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Contender:
    """An L-BFGS: ``run(fn, y, tolerance)`` returns the point found and the steps taken.

    Attributes:
        stop: what its stopping rule is.
        ladder: whether ``tolerance`` is of a rule of its own, to be searched for.
    """

    package: str
    maintained: bool
    run: Callable[[Objective, Float[Array, " n"], Scalar], Outcome]
    stop: str
    ladder: bool = False


def run_optax(fn: Objective, y: Float[Array, " n"], tolerance: Scalar) -> Outcome:
    return LBFGS(memory=MEMORY).run(fn, y, tolerance, jnp.array(MAX_STEPS, jnp.int32))


class GradientStop(optx.LBFGS):
    """Optimistix's L-BFGS that ends where the largest entry of the gradient is small."""

    tolerance: Scalar

    def __init__(self, tolerance: Scalar):
        super().__init__(rtol=0.0, atol=0.0, history_length=MEMORY)
        self.tolerance = tolerance

    def terminate(self, fn, y, args, options, state, tags):
        small = jnp.max(jnp.abs(state.f_info.grad)) <= self.tolerance
        return small & ~state.first_step, state.result


def run_optimistix(
    fn: Objective, y: Float[Array, " n"], tolerance: Scalar, gradient_stop: bool
) -> Outcome:
    solver = (
        GradientStop(tolerance)
        if gradient_stop
        else optx.LBFGS(rtol=_as_float(tolerance), atol=_as_float(tolerance), history_length=MEMORY)
    )
    end = optx.minimise(lambda y, _: fn(y), solver, y, max_steps=MAX_STEPS, throw=False)
    # Its first "accepted step" is the evaluation at the start.
    return end.value, end.state.num_accepted_steps - 1


def run_jaxopt(fn: Objective, y: Float[Array, " n"], tolerance: Scalar, linesearch: str) -> Outcome:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its own end of maintenance
        import jaxopt
    # implicit_diff, though there is no derivative here: without it the loops are unrolled.
    solver = jaxopt.LBFGS(fn, linesearch=linesearch, history_size=MEMORY, implicit_diff=True)

    def goes_on(carry):
        _, state = carry
        return (jnp.max(jnp.abs(state.grad)) > tolerance) & (state.iter_num < MAX_STEPS)

    start = (y, solver.init_state(y))
    y, state = jax.lax.while_loop(goes_on, lambda carry: tuple(solver.update(*carry)), start)
    return y, state.iter_num


def _as_float(x: Any) -> float:
    """For the type checker: Optimistix asks for a float and takes a traced scalar."""
    return x


OURS = "the largest entry of the gradient, in the loop of `argmin_jax.solvers.LBFGS`"
JAXOPTS = (
    "the largest entry of the gradient, in a loop of ours around its `update` (its own `run` "
    "would test the 2-norm)"
)
CONTENDERS = {
    "Optax": Contender("optax", True, run_optax, OURS),
    "Optimistix": Contender(
        "optimistix",
        True,
        partial(run_optimistix, gradient_stop=False),
        "its own, on the changes of y and of f, which cannot be asked for a gradient: for every "
        "case the loosest power of ten as rtol = atol that reached the tolerance was searched for "
        "beforehand, at no charge (where none did, the one of the smallest gradient)",
        ladder=True,
    ),
    "Optimistix, gradient stop": Contender(
        "optimistix",
        True,
        partial(run_optimistix, gradient_stop=True),
        "the largest entry of the gradient, in a subclass of ours that overrides `terminate`",
    ),
    "JAXopt, zoom": Contender("jaxopt", False, partial(run_jaxopt, linesearch="zoom"), JAXOPTS),
    "JAXopt, Hager-Zhang": Contender(
        "jaxopt", False, partial(run_jaxopt, linesearch="hager-zhang"), JAXOPTS
    ),
}


# Measurement ---------------------------------------------------------------------------------


class Judge:
    """What is right, lane by lane, in float64 for the very data that the contenders get."""

    def __init__(self, problem: Problem, batch: tuple[np.ndarray, ...]):
        starts, *params = (x.astype(np.float64) for x in batch)
        with jax.enable_x64(True):
            self._gradient = jax.jit(jax.grad(problem.objective))
            self._value = jax.jit(problem.objective)
            self._hessian = jax.jit(jax.hessian(problem.objective))
            self._params = list(zip(*params, strict=True)) if params else [()] * len(starts)
            self.scale = self._gradients(starts)
            self.references = [
                self._minimiser(y, p) if problem.known is None else problem.known
                for y, p in zip(starts, self._params, strict=True)
            ]

    def gradients(self, ys: np.ndarray) -> np.ndarray:
        """Each lane's largest entry of the gradient, relative to that at the lane's start."""
        with jax.enable_x64(True):
            found = self._gradients(ys.astype(np.float64)) / self.scale
        return np.where(np.isfinite(found), found, np.inf)

    def distances(self, ys: np.ndarray) -> np.ndarray:
        """Each lane's largest error, relative to the largest entry of the minimiser."""
        pairs = zip(ys.astype(np.float64), self.references, strict=True)
        return np.array([np.max(np.abs(y - r)) / np.max(np.abs(r)) for y, r in pairs])

    def _gradients(self, ys: np.ndarray) -> np.ndarray:
        pairs = zip(ys, self._params, strict=True)
        return np.array([np.max(np.abs(self._gradient(y, *p))) for y, p in pairs])

    def _minimiser(self, start: np.ndarray, params: tuple) -> np.ndarray:
        """By a trust region with the exact Hessian, and Newton steps to the level of rounding."""
        from scipy.optimize import minimize

        y = minimize(
            lambda y: float(self._value(y, *params)),
            start,
            method="trust-exact",
            jac=lambda y: np.array(self._gradient(y, *params)),
            hess=lambda y: np.array(self._hessian(y, *params)),
        ).x
        for _ in range(3):
            y = y - np.linalg.solve(
                np.array(self._hessian(y, *params)), np.array(self._gradient(y, *params))
            )
        return y


class Entry:
    """One contender, compiled for one case."""

    def __init__(self, contender: Contender, problem: Problem, batch: tuple, judge: Judge):
        self.batch, self.judge, self.lanes = batch, judge, len(batch[0])

        def run(tolerance, y, *params):
            return contender.run(lambda y: problem.objective(y, *params), y, tolerance)

        example = self._arguments(np.ones(self.lanes))
        began = time.perf_counter()
        self._run = jax.jit(jax.vmap(run) if self.lanes > 1 else run).lower(*example).compile()
        self.compile_s = time.perf_counter() - began

    def timed(self, tolerances: np.ndarray) -> Callable[[], object]:
        arguments = jax.block_until_ready(self._arguments(tolerances))
        return lambda: jax.block_until_ready(self._run(*arguments))

    def assess(self, tolerances: np.ndarray) -> dict[str, Any]:
        """What came out; the worst lane of each."""
        ys, steps = self._run(*self._arguments(tolerances))
        ys = np.array(ys).reshape(self.lanes, -1)
        gradients = self.judge.gradients(ys)
        target = TOLERANCES[str(ys.dtype)]
        return {
            "steps": int(np.max(np.array(steps))),
            "gradient": float(np.max(gradients)),
            "distance": float(np.max(self.judge.distances(ys))),
            "lanes_reached": int(np.sum(gradients <= SLACK * target)),
        }

    def _arguments(self, tolerances: np.ndarray) -> tuple[jax.Array, ...]:
        arguments = [jnp.asarray(x) for x in (tolerances.astype(self.batch[0].dtype), *self.batch)]
        return tuple(arguments if self.lanes > 1 else [x[0] for x in arguments])


def choose_tolerance(entry: Entry, dtype: str) -> float:
    """The loosest power of ten that reaches the target in all lanes, else the most accurate."""
    powers = range(1, 16 if dtype == "float64" else 8)
    found = {}
    for level in (10.0**-k for k in powers):
        result = entry.assess(np.full(entry.lanes, level))
        if result["lanes_reached"] == entry.lanes:
            return level
        found[level] = result["gradient"]
    return min(found, key=lambda level: found[level])


def measure_case(
    problem: Problem, dtype: str, lanes: int, rounds: int, seed: int, names: Iterable[str]
) -> list[dict[str, Any]]:
    """A row for each contender."""
    batch = tuple(x.astype(dtype) for x in problem.lanes(np.random.default_rng(seed), lanes))
    judge = Judge(problem, batch)
    rows, runs = [], {}
    with jax.enable_x64(dtype == "float64"):
        for name in names:
            entry = Entry(CONTENDERS[name], problem, batch, judge)
            tolerances, own = TOLERANCES[dtype] * judge.scale, None
            if CONTENDERS[name].ladder:
                own = choose_tolerance(entry, dtype)
                tolerances = np.full(lanes, own)
            row = {"problem": problem.name, "dtype": dtype, "lanes": lanes, "contender": name}
            row |= {"own_tolerance": own, "compile_s": entry.compile_s}
            rows.append(row | entry.assess(tolerances))
            runs[name] = entry.timed(tolerances)
        once = interleave(runs, 1, budget_s=0.0)
        affordable = int(CASE_BUDGET_S / sum(map(sum, once.values())))
        rounds = min(rounds, max(affordable, FEWEST_ROUNDS))
        seconds = interleave(runs, rounds)
    rows = [row | {"rounds": rounds} for row in rows]
    return [row | {"median_ms": median_ms(seconds[row["contender"]])} for row in rows]


def measure(
    rounds: int,
    seed: int = 0,
    lanes: int = LANES,
    makers: Iterable[Callable[[np.random.Generator], Problem]] = PROBLEMS,
    progress: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """All cases, ready for JSON."""
    problems = [make(np.random.default_rng(seed)) for make in makers]
    rows = []
    for dtype in TOLERANCES:
        for count in (1, lanes):
            for problem in problems:
                progress(f"{problem.name}, {dtype}, lanes: {count}")
                rows += measure_case(problem, dtype, count, rounds, seed, CONTENDERS)
    return {
        "machine": machine(),
        "versions": versions("jax", "jaxlib", "optax", "optimistix", "jaxopt"),
        "seed": seed,
        "tolerances": TOLERANCES,
        "slack": SLACK,
        "max_steps": MAX_STEPS,
        "memory": MEMORY,
        "lanes": lanes,
        "spread": {"start": START_SPREAD, "data": DATA_SPREAD},
        "problems": {p.name: p.description for p in problems},
        "contenders": {
            name: {"package": c.package, "maintained": c.maintained, "stop": c.stop}
            for name, c in CONTENDERS.items()
        },
        "rows": rows,
    }


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.lbfgs_choice", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few rounds and lanes")
    parser.add_argument("--rounds", type=int, help="default 15; 2 with --quick")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, metavar="PATH", help="write the results")
    parser.add_argument("--page", type=Path, metavar="PATH", help="write the page of the docs")
    options = parser.parse_args(argv)
    rounds = options.rounds or (2 if options.quick else 15)
    console = Console()
    with console.status("") as status:
        results = measure(
            rounds, options.seed, lanes=4 if options.quick else LANES, progress=status.update
        )
    show(results, console)
    written = {options.json: json.dumps(results, indent=1) + "\n", options.page: render(results)}
    for path, text in written.items():
        if path:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
