"""Derivatives of the solutions of the problems of Hock and Schittkowski, held against the truth.

Every problem is shifted in all that it has: theta . y is added to the objective, a theta to every
equality, inequality and bound. The whole Jacobian of y and of the multipliers in theta = 0, through
the public interface with default options, is compared with dense algebra in NumPy
(`benchmarks.sensitivities_oracle`) and with central differences of re-solved problems. Where the
implicit function theorem does not apply the report has to say so. Run
``python -m benchmarks.sensitivities --help``.
"""

import argparse
import dataclasses
import json
import multiprocessing
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.table import Table

from argmin_jax import Report, Solution, Status, solve
from argmin_jax.solvers.nlp import NonlinearProgram

from .cutest_problems import GROUPS, load, names, order, program
from .sensitivities_oracle import PARAMS, Sizes, Truth, sensitivities
from .timing import machine, versions

RESULTS = Path(__file__).parent / "results" / "sensitivities.json"
RIGHT = 1e-6  # largest relative error of a right derivative
STEP = 1e-5  # of the central differences, in units that move y by about its own size
SMALL = 1e-6  # a part of the Jacobian this much smaller than the whole is measured against that
ELSEWHERE = 1e4  # so many steps away, a solution that is solved for again is another one
PROBLEMS_A_PROCESS = 8  # compiled programs are not given back

Theta = dict[str, jax.Array]
Pull = Callable[[Theta, jax.Array, jax.Array], tuple[jax.Array, Report, Theta]]


def sizes_of(flat: NonlinearProgram, start: jax.Array) -> Sizes:
    eq, ineq = (jax.eval_shape(fn, start).size for fn in (flat.equalities, flat.inequalities))
    return Sizes(start.size, eq, ineq)


def unshifted(sizes: Sizes) -> Theta:
    lengths = (sizes.unknowns, sizes.eq, sizes.ineq, sizes.unknowns, sizes.unknowns)
    return {name: jnp.zeros(length) for name, length in zip(PARAMS, lengths, strict=True)}


def shifted_solution(flat: NonlinearProgram, start: jax.Array, theta: Theta) -> Solution:
    """The solution of the program with everything in it shifted by theta."""
    sizes, constraints = sizes_of(flat, start), {}
    if sizes.eq:
        constraints["eq"] = lambda y, t: flat.equalities(y) + t["eq"]
    if sizes.ineq:
        constraints["ineq"] = lambda y, t: flat.inequalities(y) + t["ineq"]
    if np.any(np.isfinite(flat.lower)) or np.any(np.isfinite(flat.upper)):
        constraints["bounds"] = flat.lower + theta["lower"], flat.upper + theta["upper"]
    return solve(
        lambda y, t: flat.objective(y) + t["objective"] @ y,
        start,
        theta,
        on_failure="ignore",
        **constraints,
    )


def pull_back(flat: NonlinearProgram, sizes: Sizes) -> Pull:
    """``(theta, start, cotangent) -> (y and multipliers, report, cotangent of theta)``."""

    def unknowns(theta: Theta, start: jax.Array) -> tuple[jax.Array, Report]:
        found = shifted_solution(flat, start, theta)
        held, parts = found.multipliers, [found.y]
        for name, size in zip(PARAMS[1:], (sizes.eq, sizes.ineq, *2 * (start.size,)), strict=True):
            part = None if held is None else getattr(held, name)
            parts.append(jnp.zeros(size) if part is None else part)
        return jnp.concatenate(parts), found.report

    @jax.jit
    def pull(theta, start, cotangent):
        z, back, report = jax.vjp(lambda theta: unknowns(theta, start), theta, has_aux=True)
        return z, report, back(cotangent)[0]

    return pull


def measure(flat: NonlinearProgram, start: jax.Array) -> dict[str, Any]:
    sizes = sizes_of(flat, start)
    n, theta, pull = sizes.unknowns, unshifted(sizes), pull_back(flat, sizes)
    answers = [pull(theta, start, jnp.asarray(row)) for row in np.eye(n + sizes.rows)]
    z, report, _ = answers[0]
    jacobian = {name: np.stack([np.asarray(bar[name]) for *_, bar in answers]) for name in PARAMS}
    truth = sensitivities(flat, sizes, np.asarray(z[:n]))
    of_y = {name: part[:n] for name, part in jacobian.items()}
    of_multipliers = {name: part[n:] for name, part in jacobian.items()}
    error = relative_error(of_y, truth.of_y, truth.units, np.maximum(1, np.abs(truth.y)))
    forces = truth.units["objective"].max() / np.concatenate(
        [truth.units[name] for name in PARAMS[1:]]
    )
    return {
        "n": n,
        "equalities": sizes.eq,
        "inequalities": sizes.ineq,
        "verdict": verdict(report, truth, error),
        "degenerate": list(truth.degenerate),
        "error": error,
        "error of multipliers": relative_error(
            of_multipliers, truth.of_multipliers, truth.units, forces
        ),
        "difference from central differences": difference(pull, theta, truth, of_y, n),
        "moved": truth.moved,
        "residual": truth.residual,
        "report": told(report),
    }


def measure_by_name(name: str) -> dict[str, Any]:
    jax.config.update("jax_enable_x64", True)
    (problem,) = load(lambda found: found == name).values()
    found = measure(*program(problem))
    jax.clear_caches()
    return found


def all_names() -> list[str]:
    found = (name for group in GROUPS for name in names(group) if name.startswith("HS"))
    return sorted(found, key=order)


def verdict(report: Report, truth: Truth, error: float) -> str:
    converged = int(report.status) == Status.CONVERGED
    named = int(report.rank_deficiency) > 0 or int(report.weakly_active) > 0
    if truth.degenerate:
        return "degenerate and reported" if named or not converged else "degenerate but silent"
    if not converged:
        return "refused"
    return "right" if error <= RIGHT else "wrong"


def relative_error(
    found: dict[str, np.ndarray],
    true: dict[str, np.ndarray],
    units: dict[str, np.ndarray],
    of: np.ndarray,
) -> float:
    """The largest of the params' errors, each against the size of its own part; all in units of
    the params and ``of`` what is differentiated."""
    weights = {name: unit / of[:, None] for name, unit in units.items()}
    sizes = {name: np.linalg.norm(part * weights[name]) for name, part in true.items()}
    least = SMALL * max(sizes.values())
    errors = [
        np.linalg.norm((found[name] - part) * weights[name]) / (max(sizes[name], least) or 1.0)
        for name, part in true.items()
    ]
    return float(np.max(errors))


def difference(
    pull: Pull, theta: Theta, truth: Truth, of_y: dict[str, np.ndarray], n: int
) -> float | None:
    """Of the derivative along a random direction from central differences of order four; None
    where a problem that is solved again, from the solution, has another one elsewhere."""
    random = np.random.default_rng(0)
    direction = {name: random.normal(size=unit.shape) * unit for name, unit in truth.units.items()}
    start = jnp.asarray(truth.y)
    blank = jnp.zeros(n + sum(len(truth.units[name]) for name in PARAMS[1:]))

    def solution(step: float) -> np.ndarray:
        shifted = {name: theta[name] + step * direction[name] for name in PARAMS}
        return np.asarray(pull(shifted, start, blank)[0][:n])

    along = sum((of_y[name] @ direction[name] for name in PARAMS), np.zeros(n))
    found = {k: solution(k * STEP) for k in (-2, -1, 1, 2)}
    reach = ELSEWHERE * STEP * np.maximum(1, np.abs(along))
    if any(np.any(np.abs(y - truth.y) > reach * np.maximum(1, np.abs(y))) for y in found.values()):
        return None
    one, two = ((found[k] - found[-k]) / (2 * k * STEP) for k in (1, 2))
    expected = (4 * one - two) / 3
    return float(np.linalg.norm(along - expected) / (np.linalg.norm(expected) or 1.0))


def told(report: Report) -> dict[str, Any]:
    numbers = {
        field.name: np.asarray(getattr(report, field.name)).item()
        for field in dataclasses.fields(report)
    }
    return numbers | {"status": Status(numbers["status"]).name}


def show(problems: dict[str, Any], console: Console) -> None:
    table = Table(title=f"{len(problems)} problems")
    for column in ("problem", "verdict", "lacks", "error", "of multipliers", "differences", "says"):
        table.add_column(column)
    for name, row in problems.items():
        says, differs = row["report"], row["difference from central differences"]
        table.add_row(
            name,
            row["verdict"],
            ", ".join(row["degenerate"]),
            f"{row['error']:.0e}",
            f"{row['error of multipliers']:.0e}",
            "" if differs is None else f"{differs:.0e}",
            f"{says['status']}, rank -{says['rank_deficiency']}, weak {says['weakly_active']}, "
            f"error {says['gradient_error']:.0e}",
        )
    console.print(table)
    counts = Counter(row["verdict"] for row in problems.values())
    console.print(", ".join(f"{count} {kind}" for kind, count in counts.most_common()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--problems", help="names, with commas; by default all that begin with HS")
    parser.add_argument("--json", type=Path, default=RESULTS, help="where the results are kept")
    parser.add_argument("--resume", action="store_true", help="keep what the file already holds")
    options = parser.parse_args()

    console = Console()
    kept = options.resume and options.json.exists()
    results = json.loads(options.json.read_text())["problems"] if kept else {}
    asked = options.problems.split(",") if options.problems else all_names()
    wanted = [name for name in asked if name not in results]
    spawn = multiprocessing.get_context("spawn")
    with spawn.Pool(1, maxtasksperchild=PROBLEMS_A_PROCESS) as pool:
        for name, row in zip(wanted, pool.imap(measure_by_name, wanted), strict=True):
            console.print(name, row["verdict"])
            results = dict(sorted([*results.items(), (name, row)], key=lambda item: order(item[0])))
            found = {"machine": machine(), "versions": versions("jax", "sif2jax")}
            options.json.write_text(json.dumps(found | {"problems": results}, indent=1))
    show(results, console)


if __name__ == "__main__":
    main()
