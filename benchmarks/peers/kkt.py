"""What is right under constraints: the optimality system of the active ones, in dense float64.

None of argmin_jax's own code is used. With W = d²L/dy² and A the Jacobian of the active
constraints, K = [W Aᵀ; A 0] is symmetric: K u = (weights, 0), and the gradients are those of
-uᵀ F(z, params), F being the left-hand sides of the system.
"""

import jax
import jax.numpy as jnp
import numpy as np

from .problems import Case
from .reference import relative_error

NEWTON_STEPS = 20
ACTIVE_SETS = 20
NEAR = 1e-4  # an inequality nearer to zero than this at a point found is taken for active


class Reference:
    """Gradients of one case under constraints, exact to rounding."""

    def __init__(self, case: Case):
        self.case = case
        m = jax.eval_shape(case.eq, case.lane(0).start, *case.lane(0).params).size if case.eq else 0
        self.equalities = m

        def constraints(y, *params):
            both = [fn(y, *params).ravel() for fn in (case.eq, case.ineq) if fn]
            return jnp.concatenate(both)

        def lagrangian(y, multipliers, *params):
            return case.objective(y, *params) + multipliers @ constraints(y, *params)

        def system(z, active, *params):
            """Stationarity; active constraints; multiplier = 0 for the others."""
            y, multipliers = z
            slope = jax.grad(lagrangian)(y, multipliers, *params)
            return slope, jnp.where(active, constraints(y, *params), multipliers)

        def start(y, *params):
            slope = jax.grad(case.objective)(y, *params)
            return slope, jax.jacobian(constraints)(y, *params), constraints(y, *params)

        self._start = jax.jit(start)
        self._system = jax.jit(system)
        self._jacobian = jax.jit(jax.jacobian(system))

        def pull_back(z, u, active, *params):
            def floating(*chosen):
                full = list(params)
                for k, value in zip(case.floating, chosen, strict=True):
                    full[k] = value
                return system(z, active, *full)

            _, pull = jax.vjp(floating, *(params[k] for k in case.floating))
            return pull(jax.tree.map(jnp.negative, u))

        self._pull_back = jax.jit(pull_back)

    def error(self, y: np.ndarray, gradients: list[np.ndarray]) -> float:
        """The largest relative error of a param's gradient, in 2-norm, over the lanes; inf where
        a point is next to no solution."""
        worst = 0.0
        for k in range(self.case.lanes):
            expected = self._gradients(k, np.asarray(y[k]))
            if expected is None:
                return np.inf
            found = [_like(np.asarray(g[k]), e) for g, e in zip(gradients, expected, strict=True)]
            worst = max(worst, relative_error(found, expected))
        return worst

    def error_of_point(self, y: np.ndarray) -> float:
        """Not asked for: contenders under constraints keep their tolerances."""
        raise NotImplementedError

    def _gradients(self, k: int, y: np.ndarray) -> list[np.ndarray] | None:
        lane = self.case.lane(k)
        solution = self._solution(y, lane)
        if solution is None:
            return None
        z, active = solution
        K = _stack(self._jacobian(z, active, *lane.params))
        u = _refined(K.T, np.concatenate([lane.weights, np.zeros(active.size)]))
        pulled = self._pull_back(z, (u[: y.size], u[y.size :]), active, *lane.params)
        return [np.array(g) for g in pulled]

    def _solution(self, y: np.ndarray, lane: Case):
        """(y, multipliers) to rounding and the active set, by Newton's method on the system of
        the constraints taken for active, which is corrected until all signs are right
        (Hintermüller, Ito & Kunisch, The Primal-Dual Active Set Strategy, 2003)."""
        slope, rows, values = map(np.array, self._start(y, *lane.params))
        is_eq = np.arange(values.size) < self.equalities
        active = is_eq | (np.abs(values) < NEAR)
        multipliers = np.zeros(active.size)
        multipliers[active] = np.linalg.lstsq(rows[active].T, -slope, rcond=None)[0]
        for _ in range(ACTIVE_SETS):
            found = self._newton((y, multipliers), active, lane)
            if found is None:
                return None
            values = np.array(self._start(found[0], *lane.params)[2])
            wrong = ~is_eq & np.where(active, found[1] < 0, values > 1e-12)
            if not np.any(wrong):
                return found, active
            active = active ^ wrong
        return None

    def _newton(self, z, active: np.ndarray, lane: Case):
        n = lane.start.size
        for _ in range(NEWTON_STEPS):
            K = _stack(self._jacobian(z, active, *lane.params))
            F = np.concatenate([np.array(v) for v in self._system(z, active, *lane.params)])
            if not (np.all(np.isfinite(K)) and np.all(np.isfinite(F))):
                return None
            step = _refined(K, F)
            z = (z[0] - step[:n], z[1] - step[n:])
            if np.linalg.norm(step) <= 1e-11 * max(1.0, *map(np.linalg.norm, z)):
                return z
        return None


def _like(found: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """Of a matrix whose gradient is symmetric the symmetric part: only that enters a quadratic
    form."""
    if expected.ndim == 2 and expected.shape[0] == expected.shape[1]:
        return (found + found.T) / 2 if np.allclose(expected, expected.T, rtol=1e-12) else found
    return found


def _stack(jacobian) -> np.ndarray:
    return np.block([[np.array(block) for block in row] for row in jacobian])


def _refined(K: np.ndarray, b: np.ndarray) -> np.ndarray:
    x = np.linalg.solve(K, b)
    return x + np.linalg.solve(K, b - K @ x)
