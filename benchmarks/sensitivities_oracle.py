"""What the sensitivities of a program are at a point, by dense algebra in NumPy.

Only values, slopes and the Hessian of the Lagrangian come from JAX: the active set, Newton's
method, the judgement and the derivatives share no code with argmin_jax.

The constraints are one list of rows c(y) <= 0, or = 0 for equalities: eq, ineq, l - y, y - u.
Numbers are relative: variables in units of max(1, |y|), rows then of unit length, multipliers and
curvature against the largest of the forces and of the Hessian's entries.
"""

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from argmin_jax.solvers.nlp import NonlinearProgram

NEAR = 1e-6  # a slack up to this is none
WEAK = 1e-6  # a multiplier up to this is none
DEPENDENT = 1e-7  # a singular value of the active rows up to this is none
FLAT = 1e-9  # a curvature up to this is none
SOLVED = 1e-9  # largest residual of a point that Newton's method calls solved
NEWTON_STEPS = 200  # enough to halve an error down to rounding, as at a flat minimum
PARAMS = ("objective", "eq", "ineq", "lower", "upper")


@dataclass(frozen=True)
class Sizes:
    unknowns: int
    eq: int
    ineq: int

    @property
    def rows(self) -> int:
        return self.eq + self.ineq + 2 * self.unknowns

    def split(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        """What belongs to eq, ineq, lower and upper, along the last axis."""
        ends = np.cumsum([self.eq, self.ineq, self.unknowns])
        return dict(zip(PARAMS[1:], np.split(rows, ends, axis=-1), strict=True))


@dataclass(frozen=True)
class Truth:
    degenerate: tuple[str, ...]
    """What the implicit function theorem lacks here; the derivatives then mean nothing."""
    residual: float
    """Of the KKT conditions, after Newton's method."""
    moved: float
    """How far Newton's method went, relatively."""
    y: np.ndarray
    of_y: dict[str, np.ndarray]
    """dy/dtheta, theta being added to the objective's slope, the rows and the bounds."""
    of_multipliers: dict[str, np.ndarray]
    """The same, of the multipliers of all rows."""
    units: dict[str, np.ndarray]
    """A change of each theta that moves y by about its own size."""


Evaluate = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, ...]]


def evaluation(program: NonlinearProgram, sizes: Sizes) -> Evaluate:
    """``(y, multipliers) -> (grad f, rows, their slopes, Hessian of the Lagrangian)``."""

    def general(y):
        return jnp.concatenate([program.equalities(y), program.inequalities(y)])

    @jax.jit
    def compiled(y, multipliers):
        def slope(y):
            return jax.grad(lambda y: program.objective(y) + multipliers @ general(y))(y)

        return (
            jax.grad(program.objective)(y),
            general(y),
            jax.jacrev(general)(y),
            jax.jacfwd(slope)(y),
        )

    lower, upper = np.asarray(program.lower), np.asarray(program.upper)
    unit = np.eye(sizes.unknowns)

    def evaluate(y, multipliers):
        r = sizes.eq + sizes.ineq
        found = compiled(jnp.asarray(y), jnp.asarray(multipliers[:r]))
        gradient, values, slopes, hessian = (np.asarray(part) for part in found)
        rows = np.concatenate([values, lower - y, y - upper])
        return gradient, rows, np.concatenate([slopes, -unit, unit]), hessian

    return evaluate


def sensitivities(program: NonlinearProgram, sizes: Sizes, y: np.ndarray) -> Truth:
    """The truth near ``y``, which some solver found."""
    evaluate = evaluation(program, sizes)
    start = y
    fixed = np.asarray(program.lower == program.upper)
    equality = np.concatenate(
        [np.ones(sizes.eq, bool), np.zeros(sizes.ineq, bool), fixed, np.zeros(fixed.size, bool)]
    )
    never = np.concatenate([np.zeros(sizes.rows - fixed.size, bool), fixed])
    here = _Point.at(evaluate, y, np.zeros(sizes.rows))
    if not here.finite:
        return _nothing(sizes, "not finite", y)
    near = equality | (~never & (here.slack <= NEAR))
    multipliers = here.least_squares(near)
    strong = near & (equality | (multipliers > WEAK * here.force(multipliers)))
    here, residual = _newton(evaluate, here, np.where(strong, multipliers, 0), strong)
    if not here.finite:
        return _nothing(sizes, "not finite", y)
    # What Newton's method on the strong rows found, judged with all rows that hold there.
    near = strong | (~never & (np.abs(here.slack) <= NEAR))
    relative = here.multipliers * here.lengths / here.force(here.multipliers * here.lengths)
    wrong = max(
        -np.min(here.slack[~equality & ~never], initial=0),
        -np.min(relative[strong & ~equality], initial=0),
    )
    reasons = here.degeneracy(near, strong, relative, equality)
    residual = float(max(residual, wrong))
    if not residual <= SOLVED:
        reasons.append("no multipliers")
    of_y, of_multipliers = here.derivatives(strong)
    return Truth(
        degenerate=tuple(reasons),
        residual=residual,
        moved=float(np.max(np.abs(here.y - start) / here.size)),
        y=here.y,
        of_y=_by_param(sizes, of_y),
        of_multipliers=_by_param(sizes, of_multipliers),
        units={"objective": here.stiffness / here.size} | sizes.split(here.lengths),
    )


@dataclass(frozen=True)
class _Point:
    y: np.ndarray
    multipliers: np.ndarray
    gradient: np.ndarray
    rows: np.ndarray
    slopes: np.ndarray
    hessian: np.ndarray

    @classmethod
    def at(cls, evaluate: Evaluate, y: np.ndarray, multipliers: np.ndarray) -> "_Point":
        return cls(y, multipliers, *evaluate(y, multipliers))

    @property
    def finite(self) -> bool:
        parts = self.gradient, self.slopes, self.hessian, self.rows[np.isfinite(self.rows)]
        return all(np.all(np.isfinite(part)) for part in parts) and not np.any(np.isnan(self.rows))

    @property
    def size(self) -> np.ndarray:
        return np.maximum(1, np.abs(self.y))

    @property
    def lengths(self) -> np.ndarray:
        found = np.linalg.norm(self.slopes * self.size, axis=1)
        return np.where(found > 0, found, 1)

    @property
    def slack(self) -> np.ndarray:
        return -self.rows / self.lengths

    @property
    def unit_rows(self) -> np.ndarray:
        return self.slopes * self.size / self.lengths[:, None]

    @property
    def scaled_hessian(self) -> np.ndarray:
        return self.size[:, None] * self.hessian * self.size

    @property
    def stiffness(self) -> float:
        forces = np.abs(self.size * self.gradient)
        return max(np.max(np.abs(self.scaled_hessian)), np.max(forces)) or 1.0

    def force(self, multipliers: np.ndarray) -> float:
        """The largest of the forces that balance; ``multipliers`` are those of the unit rows.
        Beside the force of a displacement of relative size one, smaller ones may be rounding."""
        pulls = np.abs(multipliers[:, None] * self.unit_rows)
        found = max(np.max(np.abs(self.size * self.gradient)), np.max(pulls, initial=0))
        return max(found, SOLVED * self.stiffness)

    def least_squares(self, near: np.ndarray) -> np.ndarray:
        """The multipliers of the unit rows that balance the objective best."""
        found = np.zeros(near.size)
        target = -self.size * self.gradient
        found[near] = np.linalg.lstsq(self.unit_rows[near].T, target, rcond=1e-10)[0]
        return found

    def residual(self, active: np.ndarray) -> float:
        """How far the active rows and the balance are from holding."""
        balance = self.gradient + (self.multipliers * active) @ self.slopes
        force = self.force(self.multipliers * self.lengths)
        scale = max(force, np.max(np.abs(self.scaled_hessian)))
        return max(
            np.max(np.abs(self.size * balance)) / scale,
            np.max(np.abs(self.slack[active]), initial=0),
        )

    def inverse(self, active: np.ndarray) -> np.ndarray:
        """The inverse of the matrix of the KKT conditions, by way of one without units."""
        rows, stiffness = self.slopes[active], np.sqrt(self.stiffness)
        whole = np.block([[self.hessian, rows.T], [rows, np.zeros((len(rows), len(rows)))]])
        units = np.concatenate([self.size / stiffness, stiffness / self.lengths[active]])
        scaled = units[:, None] * whole * units
        return units[:, None] * np.linalg.pinv(scaled, rcond=1e-15) * units

    def derivatives(self, active: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Of y and of the multipliers, in the objective's slope and in the rows."""
        n, places = self.y.size, np.flatnonzero(active)
        inverse = -self.inverse(active)
        whole = np.zeros((n + active.size, n + active.size))
        index = np.concatenate([np.arange(n), n + places])
        whole[np.ix_(index, index)] = inverse
        return whole[:n], whole[n:]

    def degeneracy(
        self, near: np.ndarray, strong: np.ndarray, relative: np.ndarray, equality: np.ndarray
    ) -> list[str]:
        reasons = []
        if np.any(near & ~equality & (relative <= WEAK)):
            reasons.append("weakly active")
        values = np.linalg.svd(self.unit_rows[near], compute_uv=False)
        vanishing = np.linalg.norm(self.slopes[near] * self.size, axis=1) == 0
        rank = np.sum(values > DEPENDENT) - np.sum(vanishing)
        if rank < np.sum(near):
            reasons.append("dependent rows")
        rows = self.unit_rows[strong]
        _, values, vectors = np.linalg.svd(rows, full_matrices=True)
        tangent = vectors[np.sum(values > DEPENDENT) :].T
        if tangent.size:
            curved = tangent.T @ self.scaled_hessian @ tangent
            smallest = np.linalg.eigvalsh((curved + curved.T) / 2)[0]
            smallest /= np.max(np.abs(self.scaled_hessian)) or 1.0
            if smallest <= FLAT:
                reasons.append("flat" if smallest >= -FLAT else "curved downwards")
        return reasons


def _newton(
    evaluate: Evaluate, here: _Point, multipliers: np.ndarray, active: np.ndarray
) -> tuple[_Point, float]:
    """Newton's method on the active rows as equalities, until it gets no nearer."""
    here = _Point.at(evaluate, here.y, multipliers / here.lengths)
    residual, shortest = here.residual(active), np.inf
    n = here.y.size
    for _ in range(NEWTON_STEPS):
        balance = here.gradient + here.multipliers @ here.slopes
        step = -here.inverse(active) @ np.concatenate([balance, here.rows[active]])
        length = np.max(np.abs(step[:n]) / here.size)
        if not length < 2 * shortest:
            break
        shortest = min(length, shortest)
        moved = here.multipliers.copy()
        moved[active] += step[n:]
        there = _Point.at(evaluate, here.y + step[:n], moved)
        if not there.finite or there.residual(active) > max(10 * residual, 1e-14):
            break
        here, residual = there, there.residual(active)
        if length <= 1e-16:
            break
    return here, residual


def _by_param(sizes: Sizes, derivatives: np.ndarray) -> dict[str, np.ndarray]:
    n = sizes.unknowns
    found = {"objective": derivatives[:, :n]} | sizes.split(derivatives[:, n:])
    # The rows hold l - y and y - u.
    return found | {"upper": -found["upper"]}


def _nothing(sizes: Sizes, reason: str, y: np.ndarray) -> Truth:
    n = sizes.unknowns
    empty = np.full((n, n + sizes.rows), np.nan)
    return Truth(
        (reason,),
        np.inf,
        0.0,
        y,
        _by_param(sizes, empty),
        _by_param(sizes, np.full((sizes.rows, n + sizes.rows), np.nan)),
        {name: np.ones(size.shape[1]) for name, size in _by_param(sizes, empty).items()},
    )
