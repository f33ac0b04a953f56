"""What is asked of a library: a problem, and which of its derivatives."""

import enum
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

DTYPES = ("float64", "float32")
TOLERANCES = {"float64": 1e-6, "float32": 1e-2}
HOPELESS = 0.1  # a tolerance that leaves no digit


class Ask(enum.Enum):
    """Which derivative; every vector in it is fixed, see `asks`."""

    GRADIENT = "the gradient of c.y* in all params"
    VALUE = "the gradient of the optimal value that the library returned"
    AUX = "the gradient of c.aux, the auxiliary output that the library returned"
    SECOND = "the gradient of d.(gradient of c.y*)"
    FORWARD = "the derivative of y* along a direction, in forward mode"
    CLOSURE = "the gradient of c.y*, the objective closing over all params"
    BATCH = "the gradient of c.y* summed over a batch of problems, solved under vmap"


class Form(enum.Enum):
    """How the solution is defined."""

    MINIMISE = "the minimiser of objective(y, *params)"
    LEAST_SQUARES = "the minimiser of the sum of squares of objective(y, *params), a residual"
    FIXED_POINT = "the y with objective(y, *params) = y"


@dataclass(frozen=True)
class Problem:
    """A problem with its true derivative.

    The functions take the array module (``jax.numpy`` or ``torch``) first, so that every library
    is asked the same.
    """

    name: str
    posed: str
    """What is well posed about it, or why there is no gradient to be had."""
    objective: Callable[..., Any]
    """``(xp, y, *params)``; with AUX it returns a pair."""
    y0: Any
    params: tuple[np.ndarray, ...]
    solutions: tuple[Callable[..., Any], ...] = ()
    """The true y*, as functions of the params that JAX differentiates in float64, one for each
    minimum that a solver may end in; empty where a library has to refuse."""
    ask: Ask = Ask.GRADIENT
    form: Form = Form.MINIMISE
    eq: Callable[..., Any] | None = None
    """``(xp, y, *params)``, zero where feasible."""
    ineq: Callable[..., Any] | None = None
    """``(xp, y, *params)``, at most zero where feasible."""
    bounds: Callable[..., tuple[Any, Any]] | None = None
    """``(*params) -> (lower, upper)``."""
    condition: float = 1.0
    """By how much the derivative amplifies relative errors of rounding."""
    max_steps: int | None = None
    """Steps that the solver is allowed, where they are too few."""
    in_axes: tuple[int | None, ...] = ()
    """With BATCH: the batch axis of each param."""
    bad_lanes: tuple[int, ...] = ()
    """With BATCH: those that have no solution."""

    def tolerance(self, dtype: str) -> float:
        """The largest relative error of a right gradient: ten times what rounding makes of the
        condition number, and never less than `TOLERANCES`."""
        return max(TOLERANCES[dtype], 10 * self.condition * float(np.finfo(dtype).eps))

    @property
    def dtypes(self) -> tuple[str, ...]:
        """The precisions that leave the answer a digit."""
        return tuple(dtype for dtype in DTYPES if self.tolerance(dtype) < HOPELESS)

    @property
    def constrained(self) -> bool:
        return any(option is not None for option in (self.eq, self.ineq, self.bounds))


@dataclass(frozen=True)
class Answer:
    """What a library returned for one problem, all of it differentiable or meant to be."""

    y: Any
    value: Any = None
    aux: Any = None


class CannotExpress(Exception):
    """The library has no way to put this question."""
