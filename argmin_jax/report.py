"""What is known about a solution, in numbers and in words, and what to do about a failure."""

import enum
import warnings
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float, Int, Scalar

ON_FAILURE = ("raise", "warn", "nan", "ignore")


class Status(enum.IntEnum):
    """How a solve ended. Only `CONVERGED` is a solution whose gradient can be used."""

    CONVERGED = 0
    MAX_STEPS = 1
    STALLED = 2
    NOT_FINITE = 3
    UNBOUNDED = 4
    NOT_A_MINIMUM = 5
    LINEAR_SOLVE_FAILED = 6
    NOT_RUN = 7


EXPLANATIONS = {
    Status.CONVERGED: ("the point satisfies the optimality conditions", ""),
    Status.MAX_STEPS: (
        "the solver used up its steps before the point was optimal",
        "Raise max_steps, start nearer (y0), rescale the variables, or loosen tol.",
    ),
    Status.STALLED: (
        "the solver stopped at a point that is not optimal",
        "Check that the objective is smooth, rescale the variables, compute in float64, tighten "
        "the tolerances of the solver, or loosen tol.",
    ),
    Status.NOT_FINITE: (
        "the objective or its gradient is not finite at the start or where the solver ended",
        "Check the parameters for NaN and the domain of the objective around y0 "
        "(log, sqrt and division in particular).",
    ),
    Status.UNBOUNDED: (
        "the objective falls without bound",
        "Check the signs of the parameters (a regularisation that became negative?).",
    ),
    Status.NOT_A_MINIMUM: (
        "the point is stationary but its Hessian has a negative eigenvalue: "
        "a saddle point or a maximum",
        "Move y0 off the symmetry that leads there.",
    ),
    Status.LINEAR_SOLVE_FAILED: (
        "the linear solve of the backward pass did not converge",
        "Use linear_solver=argmin_jax.SVD() or Auto(dense_limit=...) to form the Hessian, "
        "or rescale the variables.",
    ),
    Status.NOT_RUN: ("nothing was solved yet", ""),
}


class Report(eqx.Module):
    """What is known about a solution; every field an array, one entry a lane under vmap.

    Not differentiable: a cotangent of a report is ignored.
    """

    status: Int[Array, "..."]
    """A `Status`."""
    steps: Int[Array, "..."]
    """Steps of the solver; -1 where it does not tell."""
    stationarity: Float[Array, "..."]
    """Scaled optimality residual ||grad f||_inf / ||H v||_inf, v of unit relative size."""
    solution_error: Float[Array, "..."]
    """Estimate of ||y - y*||_2, in the units of y: the length of the next Newton step."""
    rank_deficiency: Int[Array, "..."]
    """Directions of the Hessian treated as null; -1 where not known."""

    def __str__(self) -> str:
        if np.ndim(self.status) > 0:
            return _summary_of_lanes(self)
        status = Status(int(self.status))
        meaning, remedy = EXPLANATIONS[status]
        lines = [
            f"{status.name}: {meaning}",
            f"  steps            {int(self.steps)}",
            f"  stationarity     {float(self.stationarity):.1e}",
            f"  solution_error   {float(self.solution_error):.1e}",
            f"  rank_deficiency  {int(self.rank_deficiency)}",
        ]
        return "\n".join([*lines, f"  {remedy}"] if remedy else lines)


class ArgminError(RuntimeError):
    """A solve or its gradient failed and ``on_failure="raise"``."""


def blank_report(dtype) -> Report:
    """The report of a layer that has not been called."""
    return Report(
        status=jnp.array(int(Status.NOT_RUN), jnp.int32),
        steps=jnp.array(0, jnp.int32),
        stationarity=jnp.array(jnp.inf, dtype),
        solution_error=jnp.array(jnp.inf, dtype),
        rank_deficiency=jnp.array(-1, jnp.int32),
    )


def failure_offset(
    on_failure: str, tol: float, status: Int[Array, ""], steps: Array, stationarity: Scalar
) -> Scalar:
    """Applies the policy; returns what is to be *added* to a result: 0, or NaN under "nan".

    Under "raise" and "warn" the message goes out when the computation runs: at once where the
    values are at hand, else by a callback that only a failure calls. The sum makes the result
    depend on it, so that no compiler drops the check.

    Raises:
        ArgminError: under "raise", for a status other than `CONVERGED`. Inside `jax.jit` JAX
            wraps it in an error of its own, whose text ends with this message.
    """
    status, steps, stationarity = jax.lax.stop_gradient((status, steps, stationarity))
    failed = status != Status.CONVERGED
    zero = jnp.zeros((), stationarity.dtype)
    if on_failure == "ignore":
        return zero
    if on_failure == "nan":
        return jnp.where(failed, jnp.nan, zero)
    announce = partial(_announce, on_failure, tol)
    if isinstance(status, Tracer):
        return _checked(announce, status, steps, stationarity)
    announce(status, steps, stationarity)
    return zero


class Policed(lx.AbstractLinearSolver):
    """A linear solver that applies the failure policy to its own verdict.

    For a rule that has to stay linear, so that it can be transposed: there the verdict, which
    depends on the right-hand side, must not be looked at outside of the linear solve.
    """

    solver: lx.AbstractLinearSolver
    on_failure: str = eqx.field(static=True)
    tol: float = eqx.field(static=True)
    report: Report

    def init(self, operator: lx.AbstractLinearOperator, options: dict[str, Any]) -> Any:
        return self.solver.init(operator, options)

    def compute(self, state: Any, vector: Array, options: dict[str, Any]):
        x, result, stats = self.solver.compute(state, vector, options)
        solved = result == lx.RESULTS.successful
        status = jnp.where(solved, Status.CONVERGED, Status.LINEAR_SOLVE_FAILED).astype(jnp.int32)
        offset = failure_offset(
            self.on_failure, self.tol, status, self.report.steps, self.report.stationarity
        )
        return x + offset.astype(x.dtype), lx.RESULTS.successful, stats

    def transpose(self, state: Any, options: dict[str, Any]):
        return self.solver.transpose(state, options)

    def conj(self, state: Any, options: dict[str, Any]):
        return self.solver.conj(state, options)

    def assume_full_rank(self) -> bool:
        return self.solver.assume_full_rank()


def _checked(announce, status, steps, stationarity) -> Scalar:
    """0, after a look at ``status`` when the program runs: one look for a whole batch."""

    def call(status, steps, stationarity):
        struct = jax.ShapeDtypeStruct(jnp.shape(stationarity), stationarity.dtype)

        def on_host(status, steps, stationarity):
            announce(status, steps, stationarity)
            return np.zeros(struct.shape, struct.dtype)

        return jax.lax.cond(
            jnp.any(status != Status.CONVERGED),
            lambda *found: jax.pure_callback(on_host, struct, *found),
            lambda *found: jnp.zeros(struct.shape, struct.dtype),
            status,
            steps,
            stationarity,
        )

    batched = jax.custom_batching.custom_vmap(call)

    # Under vmap a cond on a batched predicate would run both branches, the callback too.
    @batched.def_vmap
    def rule(axis_size, in_batched, status, steps, stationarity):
        def whole(x, is_batched):
            return x if is_batched else jnp.broadcast_to(x, (axis_size, *jnp.shape(x)))

        found = map(whole, (status, steps, stationarity), in_batched)
        return _checked(announce, *found), True

    return batched(status, steps, stationarity)


def _announce(on_failure: str, tol: float, status, steps, stationarity) -> None:
    status = np.asarray(status)
    if np.all(status == Status.CONVERGED):
        return
    message = failure_message(tol, status, np.asarray(steps), np.asarray(stationarity))
    if on_failure == "raise":
        raise ArgminError(message)
    warnings.warn(message, RuntimeWarning, stacklevel=2)


def failure_message(tol: float, status: np.ndarray, steps: np.ndarray, stationarity: np.ndarray):
    """One sentence on what failed, with the numbers, and one on what to try."""
    steps, stationarity = np.broadcast_arrays(steps, stationarity)
    steps = np.broadcast_to(steps, status.shape)
    stationarity = np.broadcast_to(stationarity, status.shape)
    failed = status != Status.CONVERGED
    worst = np.argmax(np.where(failed, np.where(np.isnan(stationarity), np.inf, stationarity), -1))
    kind = Status(int(status.flat[worst]))
    meaning, remedy = EXPLANATIONS[kind]
    lanes = (
        f" ({int(failed.sum())} of {status.size} lanes failed; the worst is lane {worst})"
        if status.size > 1
        else ""
    )
    return (
        f"argmin: {kind.name}: {meaning}{lanes}; scaled residual "
        f"{float(stationarity.flat[worst]):.1e} against tol {tol:.0e} after "
        f"{int(steps.flat[worst])} steps. {remedy} To go on regardless, pass "
        'on_failure="warn", "nan" or "ignore".'
    )


def _summary_of_lanes(report: Report) -> str:
    status = np.asarray(report.status).ravel()
    kinds = ", ".join(
        f"{int((status == kind).sum())} {kind.name}" for kind in Status if (status == kind).any()
    )
    worst = {
        name: np.nanmax(np.asarray(getattr(report, name)).astype(float), initial=-np.inf)
        for name in ("steps", "stationarity", "solution_error", "rank_deficiency")
    }
    return (
        f"{status.size} lanes: {kinds}\n"
        f"  most steps {worst['steps']:.0f}, largest stationarity {worst['stationarity']:.1e}, "
        f"largest solution_error {worst['solution_error']:.1e}, "
        f"largest rank_deficiency {worst['rank_deficiency']:.0f}"
    )
