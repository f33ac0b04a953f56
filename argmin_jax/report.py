"""What is known about a solution, in numbers and in words, and what to do about a failure."""

import dataclasses
import enum
import warnings
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Bool, Float, Int, Scalar

ON_FAILURE = ("raise", "warn", "nan", "ignore")


class Status(enum.IntEnum):
    """How a solve ended. Only `CONVERGED` is a solution whose gradient can be used."""

    CONVERGED = 0
    MAX_STEPS = 1
    STALLED = 2
    NOT_FINITE = 3
    UNBOUNDED = 4
    NOT_A_MINIMUM = 5
    INFEASIBLE = 6
    DEGENERATE = 7
    LINEAR_SOLVE_FAILED = 8
    NOT_RUN = 9


EXPLANATIONS = {
    Status.CONVERGED: ("the point satisfies the optimality conditions", ""),
    Status.MAX_STEPS: (
        "the solver used up its steps before the point was optimal",
        "Raise max_steps, start nearer (y0), try another solver (without constraints "
        "argmin_jax.NewtonCG()), rescale the variables, or loosen tol.",
    ),
    Status.STALLED: (
        "the solver stopped at a point that is not optimal, by its residual or by the Newton step "
        "that is left",
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
    Status.INFEASIBLE: (
        "no point that satisfies the constraints was found",
        "Check the signs of the constraints (ineq is <= 0) and that they do not contradict each "
        "other or the bounds; start nearer (y0) if they are not convex.",
    ),
    Status.DEGENERATE: (
        "the point satisfies the constraints, but their multipliers grow without bound: the "
        "gradients of the constraints do not determine the solution",
        "Reformulate constraints whose gradient vanishes where they hold, such as x**2 <= 0.",
    ),
    Status.LINEAR_SOLVE_FAILED: (
        "the linear solve of the backward pass did not converge, or rounding leaves fewer than six "
        "of its digits (in float32 two)",
        "Rescale or regularise the variables, compute in float64, or, if there are more than 1000 "
        "unknowns, use linear_solver=argmin_jax.Auto(dense_limit=...) to form the Hessian.",
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
    """Scaled residual ||grad L||_inf / ||H v||_inf, v of unit relative size (`optimality`)."""
    infeasibility: Float[Array, "..."]
    """The largest violation of a constraint, each in its own scale; 0 where there is none."""
    complementarity: Float[Array, "..."]
    """The largest of min(slack, multiplier), each in its scale; 0 without inequalities."""
    solution_error: Float[Array, "..."]
    """Estimate of ||y - y*||_2, in the units of y: the length of the next Newton step."""
    gradient_error: Float[Array, "..."]
    """Estimate of the relative error of a gradient taken here, without unit."""
    curvature: Float[Array, "..."]
    """The smallest eigenvalue of the Hessian on the feasible directions, estimated from above
    where it is positive; inf at a vertex, NaN where not known."""
    rank_deficiency: Int[Array, "..."]
    """Directions, of y or of multipliers, treated as null; -1 where not known."""
    weakly_active: Int[Array, "..."]
    """Inequalities and bounds whose slack and multiplier are both zero to working precision."""

    @property
    def residual(self) -> Float[Array, "..."]:
        """The largest of the three scaled residuals, which is held against ``tol``."""
        return jnp.maximum(self.stationarity, jnp.maximum(self.infeasibility, self.complementarity))

    def __str__(self) -> str:
        if np.ndim(self.status) > 0:
            return _summary_of_lanes(self)
        status = Status(int(self.status))
        meaning, remedy = EXPLANATIONS[status]
        lines = [f"{status.name}: {meaning}"]
        lines += [f"  {name:<16} {text}" for name, text in _numbers(self)]
        return "\n".join([*lines, f"  {remedy}"] if remedy else lines)

    def summary(self) -> str:
        """The report in one line, for a log."""
        if np.ndim(self.status) > 0:
            return ", ".join(line.strip(" ,") for line in str(self).splitlines())
        numbers = ", ".join(f"{name} {text}" for name, text in _numbers(self))
        return f"{Status(int(self.status)).name}: {numbers}"


# Of constraints, and shown only where there is something to show.
_OF_CONSTRAINTS = ("infeasibility", "complementarity", "weakly_active")


def _numbers(report: Report) -> list[tuple[str, str]]:
    """The fields of a single lane, in words."""
    found = []
    for name in (field.name for field in dataclasses.fields(Report) if field.name != "status"):
        value = np.asarray(getattr(report, name))
        if name in _OF_CONSTRAINTS and value == 0:
            continue
        unknown = np.isnan(value) or (name in ("steps", "rank_deficiency") and value < 0)
        number = f"{int(value)}" if value.dtype.kind == "i" else f"{float(value):.1e}"
        found.append((name, "not known" if unknown else number))
    return found


class ArgminError(RuntimeError):
    """A solve or its gradient failed and ``on_failure="raise"``."""


def blank_report(dtype) -> Report:
    """The report of a layer that has not been called."""
    infinite, unknown = jnp.array(jnp.inf, dtype), jnp.array(jnp.nan, dtype)
    return Report(
        status=jnp.array(int(Status.NOT_RUN), jnp.int32),
        steps=jnp.array(0, jnp.int32),
        stationarity=infinite,
        infeasibility=jnp.zeros_like(infinite),
        complementarity=jnp.zeros_like(infinite),
        solution_error=infinite,
        gradient_error=infinite,
        curvature=unknown,
        rank_deficiency=jnp.array(-1, jnp.int32),
        weakly_active=jnp.array(0, jnp.int32),
    )


def failure_offset(
    on_failure: str, tol: float, status: Int[Array, ""], steps: Array, residual: Scalar
) -> Scalar:
    """Applies the policy; returns what is to be *added* to a result: 0, or NaN under "nan".

    Under "raise" and "warn" the message goes out when the computation runs: at once where the
    values are at hand, else by a callback that only a failure calls. The sum makes the result
    depend on it, so that no compiler drops the check.

    Raises:
        ArgminError: under "raise", for a status other than `CONVERGED`. Inside `jax.jit` JAX
            wraps it in an error of its own, whose text ends with this message.
    """
    status, steps, residual = jax.lax.stop_gradient((status, steps, residual))
    failed = status != Status.CONVERGED
    zero = jnp.zeros((), residual.dtype)
    if on_failure == "ignore":
        return zero
    if on_failure == "nan":
        return jnp.where(failed, jnp.nan, zero)
    if isinstance(status, Tracer):
        return _checker(on_failure, tol)(status, steps, residual)
    _announce(on_failure, tol, status, steps, residual)
    return zero


class _Around(lx.AbstractLinearSolver):
    """A linear solver around another one, which it is but for `compute`."""

    solver: lx.AbstractLinearSolver

    def init(self, operator: lx.AbstractLinearOperator, options: dict[str, Any]) -> Any:
        return self.solver.init(operator, options)

    def transpose(self, state: Any, options: dict[str, Any]):
        return self.solver.transpose(state, options)

    def conj(self, state: Any, options: dict[str, Any]):
        return self.solver.conj(state, options)

    def assume_full_rank(self) -> bool:
        return self.solver.assume_full_rank()


class Policed(_Around):
    """A linear solver that applies the failure policy to its own verdict.

    For a rule that has to stay linear, so that it can be transposed: there the verdict, which
    depends on the right-hand side, must not be looked at outside of the linear solve.
    """

    on_failure: str = eqx.field(static=True)
    tol: float = eqx.field(static=True)
    steps: Int[Array, ""]  # of the forward pass, for the message
    residual: Scalar

    def compute(self, state: Any, vector: Array, options: dict[str, Any]):
        x, result, stats = self.solver.compute(state, vector, options)
        solved = result == lx.RESULTS.successful
        status = jnp.where(solved, Status.CONVERGED, Status.LINEAR_SOLVE_FAILED).astype(jnp.int32)
        offset = failure_offset(self.on_failure, self.tol, status, self.steps, self.residual)
        return x + offset.astype(x.dtype), lx.RESULTS.successful, stats


class Masked(_Around):
    """A linear solver whose solution is zero where the problem is ``lost``.

    In derivatives of a linear solve Lineax raises an error of its own where a solution is not
    finite, which one bad lane would do to a whole batch. What is lost is marked outside.
    """

    lost: Bool[Array, ""]

    def compute(self, state: Any, vector: Array, options: dict[str, Any]):
        x, result, stats = self.solver.compute(state, vector, options)
        result = lx.RESULTS.where(self.lost, lx.RESULTS.successful, result)
        return jnp.where(self.lost, 0, x), result, stats


@lru_cache
def _checker(on_failure: str, tol: float) -> Callable[[Array, Array, Array], Scalar]:
    """0, after a look at ``status`` when the program runs: one look for a whole batch.

    The same function for each call, for outside of `jit` another would be compiled.
    """

    @jax.jit
    def call(status, steps, residual):
        struct = jax.ShapeDtypeStruct(jnp.shape(residual), residual.dtype)

        def on_host(status, steps, residual):
            _announce(on_failure, tol, status, steps, residual)
            return np.zeros(struct.shape, struct.dtype)

        return jax.lax.cond(
            jnp.any(status != Status.CONVERGED),
            lambda *found: jax.pure_callback(on_host, struct, *found),
            lambda *found: jnp.zeros(struct.shape, struct.dtype),
            status,
            steps,
            residual,
        )

    batched = jax.custom_batching.custom_vmap(call)

    # Under vmap a cond on a batched predicate would run both branches, the callback too.
    @batched.def_vmap
    def rule(axis_size, in_batched, status, steps, residual):
        def whole(x, is_batched):
            return x if is_batched else jnp.broadcast_to(x, (axis_size, *jnp.shape(x)))

        return batched(*map(whole, (status, steps, residual), in_batched)), True

    return batched


def _announce(on_failure: str, tol: float, status, steps, residual) -> None:
    status = np.asarray(status)
    if np.all(status == Status.CONVERGED):
        return
    message = failure_message(tol, status, np.asarray(steps), np.asarray(residual))
    if on_failure == "raise":
        raise ArgminError(message)
    warnings.warn(message, RuntimeWarning, stacklevel=2)


def failure_message(tol: float, status: np.ndarray, steps: np.ndarray, residual: np.ndarray):
    """One sentence on what failed, with the numbers, and one on what to try."""
    steps, residual = np.broadcast_arrays(steps, residual)
    steps = np.broadcast_to(steps, status.shape)
    residual = np.broadcast_to(residual, status.shape)
    failed = status != Status.CONVERGED
    worst = np.argmax(np.where(failed, np.where(np.isnan(residual), np.inf, residual), -1))
    kind = Status(int(status.flat[worst]))
    meaning, remedy = EXPLANATIONS[kind]
    lanes = (
        f" ({int(failed.sum())} of {status.size} lanes failed; the worst is lane {worst})"
        if status.size > 1
        else ""
    )
    return (
        f"argmin: {kind.name}: {meaning}{lanes}; scaled residual "
        f"{float(residual.flat[worst]):.1e} against tol {tol:.0e} after "
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
        for name in ("steps", "residual", "solution_error", "gradient_error", "rank_deficiency")
    }
    return (
        f"{status.size} lanes: {kinds}\n"
        f"  most steps {worst['steps']:.0f}, largest residual {worst['residual']:.1e}, "
        f"largest solution_error {worst['solution_error']:.1e},\n"
        f"  largest gradient_error {worst['gradient_error']:.1e}, "
        f"largest rank_deficiency {worst['rank_deficiency']:.0f}"
    )
