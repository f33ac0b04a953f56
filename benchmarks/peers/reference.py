"""What is right: gradients by dense (or banded) float64 algebra at a minimum found to rounding.

None of argmin_jax's own code is used. The minimum is the one next to the point that a contender
found: where there are several, each is right about its own.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg

from .problems import Case

NEWTON_STEPS = 30
MOST_LANES = 16  # lanes that are checked, spread over the batch


def relative_error(found: list[np.ndarray], expected: list[np.ndarray]) -> float:
    """The largest relative error of a param's gradient, in 2-norm, each held against at least a
    thousandth of the largest gradient; inf where something is not finite."""
    sizes = [float(np.linalg.norm(e)) for e in expected]
    floor = 1e-3 * max(sizes)
    errors = [
        float(np.linalg.norm(f - e)) / max(size, floor)
        for f, e, size in zip(found, expected, sizes, strict=True)
    ]
    return max(errors) if np.all(np.isfinite(errors)) else np.inf


class Reference:
    """Gradients of one case, exact to rounding."""

    def __init__(self, case: Case):
        self.case = case
        count = min(case.lanes, MOST_LANES)
        self.lanes = np.linspace(0, case.lanes - 1, count).astype(int)
        gradient = jax.grad(case.objective)
        self._gradient = jax.jit(gradient)
        self._hessian = jax.jit(jax.hessian(case.objective))
        self._products = jax.jit(
            lambda y, vs, *params: jax.vmap(
                lambda v: jax.jvp(lambda y: gradient(y, *params), (y,), (v,))[1]
            )(vs)
        )

        def pull_back(y, u, *params):
            def floating(*chosen):
                full = list(params)
                for k, value in zip(case.floating, chosen, strict=True):
                    full[k] = value
                return gradient(y, *full)

            _, pull = jax.vjp(floating, *(params[k] for k in case.floating))
            return pull(-u)

        self._pull_back = jax.jit(pull_back)

    def error(self, y: np.ndarray, gradients: list[np.ndarray]) -> float:
        """The largest relative error of a param's gradient, in 2-norm, over the lanes; inf where
        the point is next to no minimum."""
        return self._worst(y, lambda k: [g if self.case.lanes == 1 else g[k] for g in gradients])

    def error_of_point(self, y: np.ndarray) -> float:
        """The error that the theorem itself, applied exactly at ``y``, would leave."""
        return self._worst(y, None)

    def _worst(self, y, found_in_lane) -> float:
        worst = 0.0
        for k in self.lanes:
            lane = self.case.lane(k)
            here = np.asarray(y if self.case.lanes == 1 else y[k], np.float64)
            solution = self._minimum(here, lane)
            if solution is None:
                return np.inf
            expected = self._implicit(solution, lane)
            found = found_in_lane(k) if found_in_lane else self._implicit(here, lane)
            worst = max(worst, relative_error(found, expected))
        return worst

    def _minimum(self, y: np.ndarray, lane: Case) -> np.ndarray | None:
        """Newton's method to the level of rounding: until its steps no longer shrink."""
        size = np.inf
        for _ in range(NEWTON_STEPS):
            if not np.all(np.isfinite(y)):
                return None
            try:
                step = self._solve(y, np.array(self._gradient(y, *lane.params)), lane)
            except np.linalg.LinAlgError:  # not positive definite
                return None
            length = np.linalg.norm(step)
            small = length <= 1e-10 * max(1.0, np.linalg.norm(y))
            if small and length > 0.5 * size:
                return y
            y, size = y - step, length
            if length == 0:
                return y
        return None

    def _implicit(self, y: np.ndarray, lane: Case) -> list[np.ndarray]:
        try:
            u = self._solve(y, lane.weights, lane)
        except np.linalg.LinAlgError:
            return [np.full(lane.params[k].shape, np.nan) for k in lane.floating]
        return [np.array(g) for g in self._pull_back(y, u, *lane.params)]

    def _solve(self, y: np.ndarray, b: np.ndarray, lane: Case) -> np.ndarray:
        """K^-1 b by Cholesky, refined once."""
        solve = self._factorised(y, lane)
        x = solve(b)
        (image,) = np.array(self._products(y, jnp.asarray(x)[None], *lane.params))
        return x + solve(b - image)

    def _factorised(self, y: np.ndarray, lane: Case) -> Callable[[np.ndarray], np.ndarray]:
        if lane.bandwidth is not None:
            return partial(
                scipy.linalg.solveh_banded, self._band(y, lane, lane.bandwidth), lower=True
            )
        hessian = np.array(self._hessian(y, *lane.params))
        return partial(scipy.linalg.cho_solve, scipy.linalg.cho_factor(hessian))

    def _band(self, y: np.ndarray, lane: Case, width: int) -> np.ndarray:
        """The lower band of the Hessian from 2 width + 1 products (Curtis, Powell & Reid, 1974)."""
        n, period = y.size, 2 * width + 1
        combs = np.array([(np.arange(n) % period == k) * 1.0 for k in range(period)])
        images = np.array(self._products(y, combs, *lane.params))
        band = np.zeros((width + 1, n))
        for offset in range(width + 1):
            columns = np.arange(n - offset)
            band[offset, columns] = images[columns % period, columns + offset]
        return band
