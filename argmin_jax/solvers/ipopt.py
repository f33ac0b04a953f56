"""Ipopt, through cyipopt, with exact derivatives by JAX."""

import importlib
from collections.abc import Callable, Hashable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PyTree, Scalar

from .nlp import NonlinearProgram, PrimalDual

LOCALLY_INFEASIBLE = 2  # of Ipopt's ApplicationReturnStatus
INFINITE = 1e20  # from here on Ipopt takes a bound for infinite


class Ipopt:
    """Ipopt (Wächter & Biegler 2006), called on the host: the reference that we are tested with.

    It works under jit and vmap, one lane after the other, in float64 whatever the program's
    dtype. Needs the extra ``ipopt``.

    Args:
        **options: of Ipopt, hashable. By default it is silent, ``tol`` is the tolerance that
            `run` is given, and ``max_iter`` its bound on the steps.

    Raises:
        ImportError: cyipopt is not installed.
    """

    def __init__(self, **options: Hashable):
        try:
            cyipopt: Any = importlib.import_module("cyipopt")  # which has no types
        except ImportError as error:
            raise ImportError(
                "Ipopt needs the package cyipopt: pip install 'argmin_jax[ipopt]'."
            ) from error
        self.engine = cyipopt.Problem
        self.options = tuple(sorted(options.items()))

    def run(
        self,
        program: NonlinearProgram,
        y: Float[Array, " n"],
        tolerance: Scalar,
        max_steps: Int[Array, ""],
    ) -> PrimalDual:
        """Solves ``program`` from ``y`` until Ipopt's own error is at most ``tolerance``."""

        def functions(y):
            constraints = jnp.concatenate([program.equalities(y), program.inequalities(y)])
            return program.objective(y), constraints

        # They may close over traced values, which the host cannot see: what they close over
        # becomes an argument.
        captured, static = eqx.partition(eqx.filter_closure_convert(functions, y), eqx.is_array)
        p = jax.eval_shape(program.equalities, y).size
        m = jax.eval_shape(program.inequalities, y).size
        answer = jax.eval_shape(lambda: _no_answer(y, p, m))
        host = _Host(self.engine, self.options, static, p)
        bounds = program.lower, program.upper
        return jax.pure_callback(
            host, answer, captured, bounds, y, tolerance, max_steps, vmap_method="sequential"
        )


class _Host:
    """The numerical side: JAX functions, compiled once, handed to Ipopt as NumPy arrays."""

    def __init__(self, engine: Callable, options: tuple, static: PyTree, equalities: int):
        def functions(captured, y):
            return eqx.combine(captured, static)(y)

        def lagrangian(captured, y, factor, multipliers):
            value, constraints = functions(captured, y)
            return factor * value + multipliers @ constraints

        self.engine = engine
        self.options = options
        self.equalities = equalities
        self.values = jax.jit(functions)
        self.slopes = jax.jit(jax.jacrev(functions, argnums=1))
        self.curvature = jax.jit(jax.hessian(lagrangian, argnums=1))

    def __call__(self, captured, bounds, y, tolerance, max_steps) -> PrimalDual:
        start = np.asarray(y)
        lower, upper = (np.asarray(bound, np.float64) for bound in bounds)
        evaluator = _Evaluator(self, captured, start)
        rows = evaluator.constraints(start).size
        zeros = np.zeros(rows)
        solver = self.engine(
            n=start.size,
            m=rows,
            problem_obj=evaluator,
            lb=np.maximum(lower, -INFINITE),
            ub=np.minimum(upper, INFINITE),
            cl=np.where(np.arange(rows) < self.equalities, zeros, -INFINITE),
            cu=zeros,
        )
        defaults = {
            "print_level": 0,
            "sb": "yes",
            "tol": float(tolerance),
            "max_iter": int(max_steps),
        }
        for name, value in {**defaults, **dict(self.options)}.items():
            solver.add_option(name, value)
        found, info = solver.solve(start.astype(np.float64))
        multipliers = info["mult_g"]
        slope = evaluator.gradient(found) + multipliers @ evaluator.jacobian(found)
        # Ipopt takes a fixed unknown out of the problem, and reports no multiplier for it.
        fixed = lower == upper
        contradictory = np.any(lower > upper)
        fields: dict[str, Any] = {
            "y": np.clip(found, lower, np.maximum(lower, upper)),
            "eq": multipliers[: self.equalities],
            "ineq": np.maximum(multipliers[self.equalities :], 0),
            "lower": np.where(fixed, np.maximum(slope, 0), info["mult_x_L"]),
            "upper": np.where(fixed, np.maximum(-slope, 0), info["mult_x_U"]),
        }
        fields = {name: value.astype(start.dtype) for name, value in fields.items()}
        infeasible = contradictory or info["status"] == LOCALLY_INFEASIBLE
        fields |= {"steps": np.int32(evaluator.steps), "infeasible": np.bool_(infeasible)}
        return PrimalDual(**fields)


class _Evaluator:
    """cyipopt's protocol: the callbacks of one solve."""

    def __init__(self, host: _Host, captured: PyTree, start: np.ndarray):
        self.host = host
        self.captured = captured
        self.dtype = start.dtype
        self.unknowns = start.size
        self.steps = 0
        self.seen: dict[str, tuple[bytes, Any]] = {}

    def objective(self, y):
        return self._at(y, "values")[0]

    def constraints(self, y):
        return self._at(y, "values")[1]

    def gradient(self, y):
        return self._at(y, "slopes")[0]

    def jacobian(self, y):
        return self._at(y, "slopes")[1]

    def hessian(self, y, multipliers, factor):
        y, multipliers = y.astype(self.dtype), multipliers.astype(self.dtype)
        factor = self.dtype.type(factor)
        full = np.asarray(self.host.curvature(self.captured, y, factor, multipliers), np.float64)
        return full[np.tril_indices(y.size)]

    def hessianstructure(self):
        return np.tril_indices(self.unknowns)

    def intermediate(self, mode, step, *progress):
        del mode, progress
        self.steps = step
        return True

    def _at(self, y, name):
        """Values or slopes at y; Ipopt asks for f and its constraints at the same point."""
        key = y.tobytes()
        if self.seen.get(name, (b"", None))[0] != key:
            found = getattr(self.host, name)(self.captured, y.astype(self.dtype))
            self.seen[name] = key, tuple(np.asarray(part, np.float64) for part in found)
        return self.seen[name][1]


def _no_answer(y: Float[Array, " n"], equalities: int, inequalities: int) -> PrimalDual:
    return PrimalDual(
        y=y,
        eq=jnp.zeros(equalities, y.dtype),
        ineq=jnp.zeros(inequalities, y.dtype),
        lower=y,
        upper=y,
        steps=jnp.zeros((), jnp.int32),
        infeasible=jnp.array(False),
    )
