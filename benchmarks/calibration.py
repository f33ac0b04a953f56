"""Are the estimates of a report honest? True errors against `solution_error` and `gradient_error`.

    python -m benchmarks.calibration [--json PATH] [--plot PATH] [--lanes N]

Random problems f(y; A, b) = y'Ay/2 + c sum(y^4)/4 - b'y whose matrices have condition numbers from
1 to 1e10, solved to tolerances from 1e-2 to 1e-12, in float64 and float32. The true solution, and
the true gradient of a random v'y* in A and b, come from Newton's method and iterative refinement
with residuals in extended precision (64 bits of mantissa against 53).
"""

import argparse
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
from rich.console import Console
from rich.table import Table

import argmin_jax
from argmin_jax import solve

from .timing import machine, versions

matplotlib.use("Agg")
SIZE = 8
TOLERANCES = (1e-2, 1e-4, 1e-6, 1e-8, 1e-10, 1e-12)
CONDITIONS = (0.0, 10.0)  # exponents
ABOVE, BELOW = 10.0, 100.0  # true error < ABOVE * estimate; estimate < BELOW * true error


def objective(y, matrix, linear, quartic):
    return y @ matrix @ y / 2 + quartic * jnp.sum(y**4) / 4 - linear @ y


def random_problems(lanes: int, seed: int, dtype: type) -> dict[str, np.ndarray]:
    """Matrices, linear terms, quartic weights and cotangents, one a lane."""
    rng = np.random.default_rng(seed)
    basis = np.linalg.qr(rng.normal(size=(lanes, SIZE, SIZE)))[0]
    exponents = rng.uniform(*CONDITIONS, size=lanes)
    values = 10 ** (-np.linspace(0, 1, SIZE)[None, :] * exponents[:, None])
    matrix = (basis * values[:, None, :]) @ np.swapaxes(basis, 1, 2)
    # A solution near a random point of size one, where the quartic term bends the objective by
    # as much as its smallest curvature, or less: more would mend the condition number.
    quartic = 10 ** -(exponents + rng.uniform(0, 4, size=lanes))
    near = rng.normal(size=(lanes, SIZE))
    linear = np.einsum("kij,kj->ki", matrix, near) + quartic[:, None] * near**3
    return {
        "matrix": ((matrix + np.swapaxes(matrix, 1, 2)) / 2).astype(dtype),
        "linear": linear.astype(dtype),
        "quartic": quartic.astype(dtype),
        "cotangent": rng.normal(size=(lanes, SIZE)).astype(dtype),
    }


def truth(y: np.ndarray, matrix, linear, quartic, cotangent) -> tuple[np.ndarray, np.ndarray]:
    """y* and the gradient of v'y* in (A, b), from a y that is nearly right, for one lane."""
    wide = np.longdouble
    y, a, b, c, v = (np.asarray(x, wide) for x in (y, matrix, linear, quartic, cotangent))
    for _ in range(60):
        hessian = (a + 3 * c * np.diag(y**2)).astype(np.float64)
        step = np.linalg.solve(hessian, (a @ y + c * y**3 - b).astype(np.float64))
        y = y - step
        if np.linalg.norm(step) <= 1e-17 * np.linalg.norm(y.astype(np.float64)):
            break
    hessian = a + 3 * c * np.diag(y**2)
    u = np.zeros_like(v)
    for _ in range(20):
        remaining = (v - hessian @ u).astype(np.float64)
        u = u + np.linalg.solve(hessian.astype(np.float64), remaining)
    of_matrix = -(np.outer(u, y) + np.outer(y, u)) / 2
    return y, np.concatenate([of_matrix.ravel(), u])


def errors(tol: float, problems: dict[str, np.ndarray]) -> list[dict[str, float]]:
    """Estimated and true errors of each lane that was solved."""

    def of_lane(matrix, linear, quartic, cotangent):
        def loss(matrix, linear):
            found = solve(
                objective, jnp.zeros_like(linear), matrix, linear, quartic,
                tol=tol, on_failure="ignore",
            )  # fmt: skip
            return cotangent @ found.y, found

        gradient, found = jax.grad(loss, argnums=(0, 1), has_aux=True)(matrix, linear)
        return found.y, found.report, jnp.concatenate([gradient[0].ravel(), gradient[1]])

    found = jax.jit(jax.vmap(of_lane))(*problems.values())
    found_y, report, gradients = jax.tree.map(np.asarray, found)
    rows = []
    for k in range(len(found_y)):
        lane = {name: value[k] for name, value in problems.items()}
        y, gradient = truth(found_y[k], **lane)
        if int(report.status[k]) == argmin_jax.Status.CONVERGED:
            of_gradient = np.linalg.norm((gradients[k] - gradient).astype(np.float64))
            rows.append(
                {
                    "dtype": str(problems["linear"].dtype),
                    "tol": tol,
                    "condition": float(np.linalg.cond(lane["matrix"].astype(np.float64))),
                    "solution_error": float(report.solution_error[k]),
                    "true_solution_error": float(np.linalg.norm((found_y[k] - y).astype(float))),
                    "gradient_error": float(report.gradient_error[k]),
                    "true_gradient_error": float(
                        of_gradient / np.linalg.norm(gradient.astype(np.float64))
                    ),
                }
            )
    return rows


def shares(rows: list[dict[str, float]], name: str) -> dict[str, float]:
    """The shares of the cases in which an estimate is not too small, and not too large."""
    estimate = np.array([row[name] for row in rows])
    true = np.array([row["true_" + name] for row in rows])
    return {
        "cases": len(rows),
        "true below 10 x estimate": float(np.mean(true <= ABOVE * estimate)),
        "estimate below 100 x true": float(np.mean(estimate <= BELOW * true)),
    }


def plot(rows: list[dict[str, float]], path: Path) -> None:
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(10, 4.6), constrained_layout=True)
    colours = {"float64": "tab:blue", "float32": "tab:orange"}
    for ax, name in zip(axes, ("solution_error", "gradient_error"), strict=True):
        for dtype, colour in colours.items():
            chosen = [row for row in rows if row["dtype"] == dtype]
            true = np.maximum([row["true_" + name] for row in chosen], 1e-18)
            ax.loglog(
                [row[name] for row in chosen], true, ".", color=colour, ms=4, alpha=0.5, label=dtype
            )
        ends = np.array([1e-17, 1e1])
        ax.plot(ends, ends, "k-", lw=0.8, label="estimate = truth")
        ax.fill_between(ends, ends / BELOW, ends * ABOVE, color="k", alpha=0.07, lw=0)
        ax.set(xlim=ends, ylim=ends, xlabel=f"report.{name}", ylabel="true error")
        ax.set_title(f"{name}: {shares(rows, name)['true below 10 x estimate']:.1%} not too small")
        ax.grid(alpha=0.3)
    axes[0].legend()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description="Hold the estimates of a report against the truth."
    )
    parser.add_argument("--lanes", type=int, default=60, help="problems a tolerance and dtype")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="where to write every case")
    parser.add_argument("--plot", type=Path, help="where to draw them")
    given = parser.parse_args(argv)

    jax.config.update("jax_enable_x64", True)
    rows = []
    for dtype in (np.float64, np.float32):
        for k, tol in enumerate(TOLERANCES):
            if tol >= 10 * np.finfo(dtype).eps:
                rows += errors(tol, random_problems(given.lanes, given.seed + k, dtype))
                jax.clear_caches()
    table = Table("estimate", "cases", "true < 10 x estimate", "estimate < 100 x true")
    summary = {}
    for name in ("solution_error", "gradient_error"):
        summary[name] = found = shares(rows, name)
        table.add_row(name, *(f"{v:.1%}" if v <= 1 else f"{v}" for v in found.values()))
    Console().print(table)
    if given.json:
        about = {
            "machine": machine(),
            "versions": versions("jax", "jaxlib", "numpy") | {"argmin_jax": argmin_jax.__version__},
        }
        text = json.dumps(about | {"summary": summary, "rows": rows}, indent=1)
        given.json.write_text(text + "\n")
    if given.plot:
        plot(rows, given.plot)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
