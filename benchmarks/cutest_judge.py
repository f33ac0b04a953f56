"""Whether a point solves a program, judged from the point alone."""

from dataclasses import dataclass

import jax
import numpy as np
from scipy.optimize import nnls

from argmin_jax.solvers.nlp import NonlinearProgram


@dataclass(frozen=True)
class Judgement:
    objective: float
    violation: float
    """The largest one, every row divided by the larger of 1 and its largest slope."""
    residual: float
    """Of stationarity and complementarity, relative to the objective's slope where that is > 1,
    for the best multipliers."""

    def solved(self, tolerance: float) -> bool:
        return max(self.violation, self.residual) <= tolerance


def linearised(program: NonlinearProgram, y: np.ndarray) -> list[np.ndarray]:
    """Value, rows and their slopes at y, in NumPy."""
    parts = []
    for fn in (program.objective, program.equalities, program.inequalities):
        parts += [fn(y), jax.jacfwd(fn)(y)]
    return [np.asarray(part, float) for part in parts]


def judge(program: NonlinearProgram, y: np.ndarray) -> Judgement:
    """The optimality conditions at y, with multipliers by nonnegative least squares."""
    f, slope, h, of_h, g, of_g = linearised(program, y)
    if not all(np.all(np.isfinite(part)) for part in (f, slope, h, of_h, g, of_g)):
        return Judgement(float(f), np.inf, np.inf)
    h, of_h = _scaled(h, of_h)
    g, of_g = _scaled(g, of_g)
    lower, upper = np.asarray(program.lower), np.asarray(program.upper)
    below, above = np.isfinite(lower), np.isfinite(upper)
    unit = np.eye(y.size)
    slack = np.concatenate([-g, (y - lower)[below], (upper - y)[above]])
    rows = np.concatenate([of_h, -of_h, of_g, -unit[below], unit[above]])
    # Least squares over the multipliers of stationarity and, below it, complementarity:
    # |slope + rows' z|^2 + |slack z|^2
    weights = np.concatenate([np.zeros(2 * h.size), np.maximum(slack, 0)])
    matrix = np.concatenate([rows.T, np.diag(weights)[2 * h.size :]])
    target = np.concatenate([-slope / max(1, np.abs(slope).max()), np.zeros(slack.size)])
    residual = -target if matrix.shape[1] == 0 else matrix @ nnls(matrix, target)[0] - target
    violation = max(np.abs(h).max(initial=0), -slack.min(initial=0))
    return Judgement(float(f), float(violation), float(np.abs(residual).max()))


def _scaled(values: np.ndarray, slopes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    size = np.maximum(1, np.abs(slopes).max(axis=1, initial=0))
    return values / size, slopes / size[:, None]
