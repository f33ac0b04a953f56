"""The memory that a gradient through a problem of very many unknowns takes, in copies of y.

Each measurement is a process of its own, whose peak is compared with that of the same program on
few unknowns: what grows with y. Run ``python -m benchmarks.memory --help``.
"""

import argparse
import json
import resource
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp

import argmin_jax

from .timing import machine, versions

RESULTS = Path(__file__).parent / "results" / "memory.json"
SOLVERS = {"LBFGS": argmin_jax.LBFGS(), "NewtonCG": argmin_jax.NewtonCG()}
FEW = 2_000  # and yet beyond what `Auto` factorises
BOUND = 60  # copies of y; the default L-BFGS alone keeps twenty


def chain(y, pull):
    """A chain of springs that are not linear, each link pulled to its own place."""
    return jnp.sum(jnp.cosh(y - pull)) + jnp.sum((y[1:] - y[:-1]) ** 2) / 2


def measure(name: str, unknowns: int) -> dict[str, float]:
    """The peak of this process after the gradient of sum(y*) in all of ``pull``, and its error."""
    pull = jnp.sin(jnp.arange(unknowns) * 0.01)
    y, pull_back = jax.vjp(
        lambda pull: argmin_jax.argmin(chain, jnp.zeros(unknowns), pull, solver=SOLVERS[name]),
        pull,
    )
    (gradient,) = pull_back(jnp.ones(unknowns))
    peak = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # The gradient is cosh(y - pull) u with K u = 1.
    u = gradient / jnp.cosh(y - pull)
    product = jax.jvp(lambda y: jax.grad(chain)(y, pull), (y,), (u,))[1]
    return {"peak_bytes": peak, "max_residual": float(jnp.max(jnp.abs(product - 1)))}


def in_a_process(name: str, unknowns: int) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.memory"]
    command += ["--unknowns", str(unknowns), "--measure", name]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(done.stdout)


def compare(unknowns: int) -> dict:
    """What each solver's peak grows by with each unknown, in copies of y, ready for JSON."""
    rows = []
    for name in SOLVERS:
        found = in_a_process(name, unknowns)
        before = in_a_process(name, FEW)["peak_bytes"]
        copies = (found["peak_bytes"] - before) / (8 * (unknowns - FEW))
        rows.append(
            {
                "solver": name,
                "unknowns": unknowns,
                "copies_of_y": round(copies, 1),
                "peak_megabytes": round(found["peak_bytes"] / 1e6),
                "max_residual": found["max_residual"],
            }
        )
    packages = ("jax", "jaxlib", "lineax", "equinox", "optax")
    return {
        "machine": machine(),
        "versions": versions(*packages) | {"argmin_jax": argmin_jax.__version__},
        "bound": BOUND,
        "rows": rows,
    }


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.memory", description=__doc__)
    parser.add_argument("--unknowns", type=int, default=1_000_000)
    parser.add_argument("--json", type=Path, metavar="PATH", help="write the results")
    parser.add_argument("--measure", choices=SOLVERS, help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    jax.config.update("jax_enable_x64", True)
    if options.measure:
        print(json.dumps(measure(options.measure, options.unknowns)))
        return 0
    results = compare(options.unknowns)
    for row in results["rows"]:
        print("  ".join(f"{name} {value}" for name, value in row.items()))
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(results, indent=1) + "\n")
    return 1 if any(row["copies_of_y"] > BOUND for row in results["rows"]) else 0


if __name__ == "__main__":
    sys.exit(main())
