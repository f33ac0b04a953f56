"""Gradients held against differences of re-solved problems: for a user's own objective."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree, Scalar

from .layer import solve
from .report import Status

DIRECTIONS = 2
LARGEST_STEP = 0.05  # relative to the size of a leaf
MARGIN = 10.0  # a difference this much larger than the uncertainty of the differences is no noise
RIGHT, WRONG, UNKNOWN = "right", "WRONG", "cannot tell"


@dataclass(frozen=True)
class _Precision:
    """What the coarsest of the dtypes involved allows."""

    eps: float
    halvings: int  # of the largest step
    tolerance: float  # the relative difference that is called right


def _precision(*arrays: jax.Array) -> _Precision:
    eps = max(float(jnp.finfo(array.dtype).eps) for array in arrays)
    return _Precision(eps, 14, 1e-5) if eps < 1e-10 else _Precision(eps, 9, 1e-2)


@dataclass(frozen=True)
class LeafCheck:
    """What the differences say about one leaf of the params.

    Attributes:
        name: which leaf, as in ``params[0]['weights']``.
        gradient: the derivative along a random direction by the implicit function theorem.
        difference: the same by differences of re-solved problems.
        uncertainty: the estimated error of ``difference``.
        verdict: "right", "WRONG" or "cannot tell: ...", which says why.
    """

    name: str
    gradient: float
    difference: float
    uncertainty: float
    verdict: str


@dataclass(frozen=True)
class GradientCheck:
    """The verdicts of `check_gradients`; ``str()`` is a table.

    Attributes:
        rows: a `LeafCheck` for each floating leaf of the params, the worst of its directions.
    """

    rows: tuple[LeafCheck, ...]

    @property
    def passed(self) -> bool:
        """Every gradient was found to be right."""
        return all(row.verdict == RIGHT for row in self.rows)

    def __str__(self) -> str:
        header = ("param", "gradient", "difference", "uncertainty", "verdict")
        cells = [
            (
                row.name,
                f"{row.gradient:.6e}",
                f"{row.difference:.6e}",
                f"{row.uncertainty:.0e}",
                row.verdict,
            )
            for row in self.rows
        ]
        widths = [max(map(len, column)) for column in zip(header, *cells, strict=True)]
        return "\n".join(
            "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
            for line in (header, *cells)
        )


def check_gradients(
    objective: Callable[..., Scalar], y0: PyTree, *params: PyTree, **options: Any
) -> GradientCheck:
    """Holds the gradient of every floating leaf of ``params`` against central differences.

    Solves the problem, and solves it again for params moved along random directions, with steps
    from 5 % of a leaf's size downwards; each of these starts from the solution. What is compared
    is a fixed random linear functional of y*. The differences carry an estimate of their own
    error, and where that is too large the verdict is "cannot tell": a kink of the solution (a
    bound that is about to become active, say), a neighbour that cannot be solved, or a precision
    that leaves too few digits.

    Arguments and options are those of `argmin_jax.solve`. What the objective closes over is not
    checked: pass it as a param.

    Returns:
        A `GradientCheck`: ``.passed``, ``.rows``, and a table when printed.

    Raises:
        TypeError, ValueError: as `argmin_jax.solve`; ValueError also if no param has a floating
            leaf.
        ArgminError: the problem itself cannot be solved, under ``on_failure="raise"``.
    """
    y0, params = jax.tree.map(jnp.asarray, (y0, params))
    floating, other = eqx.partition(params, eqx.is_inexact_array)
    leaves = jax.tree_util.tree_leaves_with_path(floating)
    if not leaves:
        raise ValueError("params have no floating leaf: there is no gradient to check.")
    rng = np.random.default_rng(0)
    weights = jax.tree.map(lambda y: _normal(rng, y), y0)

    def functional(floating, start):
        found = solve(objective, start, *eqx.combine(floating, other), **quiet)
        products = jax.tree.map(lambda w, y: jnp.sum(w * y), weights, found.y)
        return sum(jax.tree.leaves(products)), found

    # One program for the gradient and for all differences.
    quiet: dict[str, Any] = {**options, "on_failure": "nan"}
    evaluate = jax.jit(jax.value_and_grad(functional, has_aux=True))
    (_, solution), gradient = evaluate(floating, y0)
    if solution.report.status != Status.CONVERGED:
        solve(objective, y0, *params, **options)  # raises or warns, as it was asked to
    structure = jax.tree.structure(floating)
    scale = _norm(weights) * _norm(solution.y)

    def moved(index, direction, step) -> tuple[float, float]:
        """The functional for params moved in one leaf, NaN if unsolved, and its error."""
        near = list(jax.tree.leaves(floating))
        near[index] = near[index] + step * direction
        (value, found), _ = evaluate(jax.tree.unflatten(structure, near), solution.y)
        return float(value), _norm(weights) * float(found.report.solution_error)

    rows = []
    for index, (path, leaf) in enumerate(leaves):
        checks, precision = [], _precision(leaf, *jax.tree.leaves(y0))
        for _ in range(DIRECTIONS):
            direction = _normal(rng, leaf) * _size(leaf)
            slope = float(jnp.sum(jax.tree.leaves(gradient)[index] * direction))
            found = _differences(partial(moved, index, direction), precision, scale)
            checks.append(_verdict("params" + jax.tree_util.keystr(path), slope, found, precision))
        rows.append(max(checks, key=_severity))
    return GradientCheck(tuple(rows))


@dataclass(frozen=True)
class _Differences:
    """Estimates of a derivative from central differences.

    ``noise`` is what rounding and unfinished solves may contribute to ``slope``; ``bend`` the
    disagreement of the two one-sided differences, at this step and at twice this step: it
    halves with the step where the function is smooth.
    """

    slope: float
    uncertainty: float
    noise: float
    bend: tuple[float, float]
    scale: float


def _differences(value: Callable, precision: _Precision, scale: float) -> _Differences | None:
    """The extrapolated difference whose estimated error is least; None where nothing is solved.

    Central differences at h and h/2 give (4 D(h/2) - D(h)) / 3, of fourth order (Richardson; see
    Ridders, Accurate computation of F'(x) and F'(x) F''(x), 1982). Its error is estimated by its
    distance from D(h/2), which is that of second order, and by the noise of the values over the
    step.
    """
    centre, _ = value(0.0)
    steps = LARGEST_STEP * 0.5 ** np.arange(precision.halvings)
    sides = [(value(h), value(-h)) for h in steps]
    forward = np.array(
        [(plus - centre) / h for h, ((plus, _), _) in zip(steps, sides, strict=True)]
    )
    backward = np.array(
        [(centre - minus) / h for h, (_, (minus, _)) in zip(steps, sides, strict=True)]
    )
    errors = np.array([max(plus, minus) for (_, plus), (_, minus) in sides])
    central, bend = (forward + backward) / 2, np.abs(forward - backward)
    # The solutions and the moved params are rounded.
    rounding = 4 * precision.eps * np.maximum(scale, np.abs(central))
    noise = (errors + rounding) / steps
    extrapolated = (4 * central[1:] - central[:-1]) / 3
    uncertainty = np.abs(extrapolated - central[1:]) + 2 * noise[1:]
    if not np.any(np.isfinite(uncertainty)):
        return None
    best = int(np.nanargmin(uncertainty))
    return _Differences(
        float(extrapolated[best]),
        float(uncertainty[best]),
        float(noise[best + 1]),
        (float(bend[best + 1]), float(bend[best])),
        scale,
    )


def _verdict(
    name: str, slope: float, found: _Differences | None, precision: _Precision
) -> LeafCheck:
    if found is None:
        reason = "the problems beside this one could not be solved"
        return LeafCheck(name, slope, np.nan, np.nan, f"{UNKNOWN}: {reason}")
    tolerance = precision.tolerance
    size, distance = max(abs(slope), abs(found.slope)), abs(slope - found.slope)
    bend, wider_bend = found.bend
    if bend > max(MARGIN * found.noise, tolerance * size) and bend > 0.75 * wider_bend:
        verdict = f"{UNKNOWN}: the solution has a kink here; one-sided derivatives differ"
    elif not np.isfinite(slope) or distance > max(tolerance * size, MARGIN * found.uncertainty):
        verdict = WRONG
    elif max(distance, found.uncertainty) <= tolerance * size:
        verdict = RIGHT
    elif size <= MARGIN * found.uncertainty and found.uncertainty <= tolerance * found.scale:
        # Both are zero, as far as can be told from values of this size.
        verdict = RIGHT
    else:
        verdict = f"{UNKNOWN}: the differences are too uncertain"
    return LeafCheck(name, slope, found.slope, found.uncertainty, verdict)


def _severity(check: LeafCheck) -> int:
    return (RIGHT, UNKNOWN, WRONG).index(check.verdict.partition(":")[0])


def _normal(rng: np.random.Generator, like: jax.Array) -> jax.Array:
    return jnp.asarray(rng.normal(size=jnp.shape(like)), like.dtype)


def _size(leaf: jax.Array) -> float:
    """The root mean square of a leaf's entries; 1 for a leaf of zeros."""
    size = float(jnp.sqrt(jnp.mean(jnp.square(leaf)))) if leaf.size else 0.0
    return size if size > 0 else 1.0


def _norm(tree: PyTree) -> float:
    return float(jnp.sqrt(sum(jnp.sum(jnp.square(leaf)) for leaf in jax.tree.leaves(tree))))
