"""InteriorPoint, Ipopt and SLSQP on the problems of Hock and Schittkowski in CUTEst.

Every solver starts from the given start with its default options; what it returns is judged from
the point alone (`benchmarks.cutest_judge`). Run ``python -m benchmarks.cutest --help``.
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.table import Table
from scipy.optimize import minimize

from argmin_jax.solvers.interior_point import InteriorPoint
from argmin_jax.solvers.ipopt import Ipopt
from argmin_jax.solvers.nlp import NonlinearProgram, PrimalDual

from .cutest_judge import judge
from .cutest_problems import load, order, program
from .timing import machine, median_ms, versions

RESULTS = Path(__file__).parent / "results" / "cutest.json"
SOLVED = 1e-6  # largest violation and residual of a solved problem
AS_GOOD = 1e-4  # how much worse, relatively, the objective may be than Ipopt's
TOLERANCE = 1e-8  # that the solvers are given
MAX_STEPS = 1000
REFERENCE = "Ipopt"

Answer = tuple[np.ndarray, int, str]  # the point, the steps and what the solver says of itself
Solve = Callable[[], Answer]


def ours(solver: InteriorPoint | Ipopt) -> Callable[[NonlinearProgram, jax.Array], Solve]:
    def prepare(problem: NonlinearProgram, start: jax.Array) -> Solve:
        @jax.jit
        def run(y):
            answer = solver.run(problem, y, jnp.asarray(TOLERANCE), jnp.array(MAX_STEPS))
            return answer, _own_error(problem, answer)

        def solve() -> Answer:
            answer, error = jax.block_until_ready(run(start))
            says = "converged" if error <= SOLVED else "not converged"
            says = "infeasible" if answer.infeasible else says
            return np.asarray(answer.y), int(answer.steps), says

        return solve

    return prepare


def _own_error(problem: NonlinearProgram, at: PrimalDual) -> jax.Array:
    """The optimality conditions with the multipliers that the solver returns."""

    def lagrangian(y):
        rows = at.eq @ problem.equalities(y) + at.ineq @ problem.inequalities(y)
        return problem.objective(y) + rows

    h, g = problem.equalities(at.y), problem.inequalities(at.y)
    slope = jnp.max(jnp.abs(jax.grad(problem.objective)(at.y)))
    scale = jnp.maximum(jnp.maximum(1, slope), jnp.max(jnp.abs(at.eq), initial=0))
    scale = jnp.maximum(scale, jnp.max(at.ineq, initial=0))
    stationarity = jax.grad(lagrangian)(at.y) - at.lower + at.upper
    parts = [stationarity / scale, h / scale, jnp.maximum(g, 0) / scale, at.ineq * g / scale]
    return jnp.max(jnp.abs(jnp.concatenate(parts)))


def slsqp(problem: NonlinearProgram, start: jax.Array) -> Solve:
    fn = {
        name: (jax.jit(part), jax.jit(jax.jacfwd(part)))
        for name, part in (
            ("objective", problem.objective),
            ("eq", problem.equalities),
            ("ineq", lambda y: -problem.inequalities(y)),
        )
    }
    constraints = [
        {
            "type": kind,
            "fun": lambda y, kind=kind: np.asarray(fn[kind][0](y)),
            "jac": lambda y, kind=kind: np.asarray(fn[kind][1](y)),
        }
        for kind in ("eq", "ineq")
        if fn[kind][0](start).size
    ]
    bounds = list(zip(np.asarray(problem.lower), np.asarray(problem.upper), strict=True))

    def solve() -> Answer:
        result = minimize(
            lambda y: float(fn["objective"][0](y)),
            np.asarray(start),
            jac=lambda y: np.asarray(fn["objective"][1](y)),
            method="SLSQP",
            bounds=bounds,
            constraints=constraints,
            options={"maxiter": MAX_STEPS, "ftol": 1e-12},  # its default stops too early for 1e-6
        )
        return result.x, int(result.nit), "converged" if result.success else "not converged"

    return solve


CONTENDERS = {"InteriorPoint": ours(InteriorPoint()), REFERENCE: ours(Ipopt()), "SLSQP": slsqp}


def measure(name: str, problem: Any, rounds: int) -> dict[str, Any]:
    flat, start = program(problem)
    rows = (
        jax.eval_shape(flat.equalities, start).size,
        jax.eval_shape(flat.inequalities, start).size,
    )
    entry: dict[str, Any] = {"n": start.size, "equalities": rows[0], "inequalities": rows[1]}
    for contender, prepare in CONTENDERS.items():
        solve = prepare(flat, start)
        y, steps, says = solve()
        seconds = []
        for _ in range(rounds):
            begun = time.perf_counter()
            solve()
            seconds.append(time.perf_counter() - begun)
        found = judge(flat, y)
        entry[contender] = {
            "says": says,
            "objective": found.objective,
            "violation": found.violation,
            "residual": found.residual,
            "stationary": found.solved(SOLVED),
            "steps": steps,
            "ms": median_ms(seconds),
        }
    for contender in CONTENDERS:
        entry[contender]["solved"] = _solved(entry[contender], entry[REFERENCE])
    return entry


def _solved(mine: dict[str, Any], reference: dict[str, Any]) -> bool:
    worse = mine["objective"] - reference["objective"] > AS_GOOD * max(
        1, abs(reference["objective"])
    )
    return mine["stationary"] and not (reference["stationary"] and worse)


def show(problems: dict[str, Any], console: Console) -> None:
    table = Table(title=f"{len(problems)} problems")
    for column in ("solver", "solved", "claims convergence, but is not solved", "steps", "ms"):
        table.add_column(column)
    for contender in CONTENDERS:
        rows = {name: entry[contender] for name, entry in problems.items()}
        claims = [n for n, r in rows.items() if r["says"] == "converged" and not r["solved"]]
        table.add_row(
            contender,
            str(sum(row["solved"] for row in rows.values())),
            ", ".join(claims),
            f"{np.median([row['steps'] for row in rows.values()]):.0f}",
            f"{np.median([row['ms'] for row in rows.values()]):.3f}",
        )
    console.print(table)
    for contender in CONTENDERS:
        missed = [
            f"{name} ({_why(entry[contender])})"
            for name, entry in problems.items()
            if not entry[contender]["solved"]
        ]
        console.print(f"[bold]{contender}[/bold] does not solve: {', '.join(missed)}")


def _why(row: dict[str, Any]) -> str:
    return "worse minimum" if row["stationary"] else f"residual {row['residual']:.0e}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--problems", help="names, with commas; by default all that begin with HS")
    parser.add_argument("--rounds", type=int, default=5, help="timed solves of each")
    parser.add_argument("--json", type=Path, default=RESULTS, help="where the results are kept")
    parser.add_argument("--resume", action="store_true", help="keep what the file already holds")
    options = parser.parse_args()

    jax.config.update("jax_enable_x64", True)
    console = Console()
    names = options.problems.split(",") if options.problems else None
    wanted = load(lambda name: name.startswith("HS") if names is None else name in names)
    kept = json.loads(options.json.read_text())["problems"] if options.resume else {}
    results = dict(kept)
    for name, problem in wanted.items():
        if name in results:
            continue
        console.print(name, end=" ")
        results[name] = measure(name, problem, options.rounds)
        jax.clear_caches()
        options.json.write_text(
            json.dumps(
                {
                    "machine": machine(),
                    "versions": versions("jax", "sif2jax", "cyipopt-wheels", "scipy"),
                    "problems": {name: results[name] for name in sorted(results, key=order)},
                },
                indent=1,
            )
        )
    show({name: results[name] for name in sorted(results, key=order)}, console)


if __name__ == "__main__":
    main()
