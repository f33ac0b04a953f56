"""The layer as a Flax NNX module. Imported on demand: argmin_jax itself needs no Flax."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.flatten_util import ravel_pytree
from jaxtyping import PyTree, Scalar

from .layer import solve, solve_without_estimates
from .report import Status, blank_report


class WarmStart(nnx.Variable):
    """The last solution of an `ArgminLayer`: state, which no optimiser may move."""


class LastReport(nnx.Variable):
    """The report on the last solution of an `ArgminLayer`."""


class Bounds(nnx.Variable):
    """The bounds of an `ArgminLayer`: given, not learned."""


class ArgminLayer(nnx.Module):
    """`argmin_jax.argmin` as a layer that starts each solve at its own last solution.

    Args:
        objective: ``(y, *params) -> scalar``, as for `argmin_jax.argmin`.
        y0: a pytree of floating arrays: the first start.
        estimates: whether the report is to hold ``solution_error``, ``gradient_error`` and
            ``curvature``. They cost a few products and solves in each call; without them they
            are NaN, while the status, and all else, is as it is.
        bounds: as for `argmin_jax.argmin`; kept as a `Bounds`, which no optimiser moves.
        **options: the others of `argmin_jax.solve`.

    Attributes:
        y: `WarmStart`, the last solution (a solve that failed leaves it as it was, so that one
            bad batch does not spoil the next).
        report: `LastReport`, the `argmin_jax.Report` on the last call, failed or not; before
            the first its status is ``Status.NOT_RUN``.

    Works under `nnx.jit`, `nnx.grad`, `nnx.vmap` (a stack of layers) and `nnx.scan` (carried), and
    inside `jax.jit` with `nnx.split` / `nnx.merge`; a checkpoint of its state restores it.
    """

    def __init__(
        self,
        objective: Callable[..., Scalar],
        y0: PyTree,
        *,
        estimates: bool = True,
        bounds: tuple[PyTree, PyTree] | None = None,
        **options: Any,
    ):
        y0 = jax.tree.map(jnp.asarray, y0)
        self.objective = objective
        self.estimates = estimates
        self.options = tuple(sorted(options.items()))  # hashable, as nnx.GraphDef has to be
        self.bounds = None if bounds is None else Bounds(jax.tree.map(jnp.asarray, tuple(bounds)))
        self.y = WarmStart(y0)
        self.report = LastReport(blank_report(ravel_pytree(y0)[0].dtype))

    def __call__(self, *params: PyTree) -> PyTree:
        """The minimiser for ``params``, of y0's structure, shapes and dtypes."""
        start = self.y.get_value()
        find = solve if self.estimates else solve_without_estimates
        options = dict(self.options)
        if self.bounds is not None:
            options["bounds"] = self.bounds.get_value()
        solution = find(self.objective, start, *params, **options)
        solved = solution.report.status == Status.CONVERGED
        self.y.set_value(
            jax.tree.map(
                lambda new, old: jax.lax.stop_gradient(jnp.where(solved, new, old)),
                solution.y,
                start,
            )
        )
        self.report.set_value(solution.report)
        return solution.y
