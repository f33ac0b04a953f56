"""What a contender makes of a case: two programs that can be run again and again."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from .problems import Case

Minimise = Callable[..., Array]  # (y0, *params) -> y


@dataclass(frozen=True)
class Program:
    """The work of a contender on a case; a call returns when it is done.

    Attributes:
        forward: returns y.
        forward_backward: returns y and the gradients in the floating params of <weights, y>.
        compile_s: of tracing and compiling forward_backward; None where nothing is compiled.
        memory_mb: what forward_backward allocates besides its arguments, as XLA plans it; None
            where that is not known.
    """

    forward: Callable[[], Any]
    forward_backward: Callable[[], tuple[Any, Any]]
    compile_s: float | None = None
    memory_mb: float | None = None


@dataclass(frozen=True)
class Contender:
    """A way to a minimiser and its gradient.

    Attributes:
        package: whose work it is, as installed.
        prepare: makes the programs for a case, with the package's own tolerance, if it has one.
        probe: makes, of a case, a function from tolerances to points: the tolerance is then the
            loosest power of ten at which the gradient can be right. None: as its defaults are.
        kinds: of problem that it applies to; all if empty.
        largest: the most unknowns that it is run with.
        single: whether it is not run on lanes.
        beside: whether it needs an interpreter beside ours, with packages that ours cannot hold.
        threads: that XLA is to have, where with one for each core a batch of LAPACK calls may wait
            for itself for ever; more threads than cores slow all else down.
    """

    package: str
    prepare: Callable[[Case, float], Program]
    probe: Callable[[Case], Callable[[float], np.ndarray]] | None = None
    kinds: tuple[str, ...] = ()
    largest: float = float("inf")
    single: bool = False
    beside: bool = False
    threads: int | None = None

    def applies_to(self, case: Case) -> bool:
        return (
            case.unknowns <= self.largest
            and (not self.kinds or case.kind in self.kinds)
            and (case.lanes == 1 or not self.single)
        )


def in_jax(
    package: str, minimiser: Callable[[Case, Any], Minimise], ladder: bool = False, **where: Any
) -> Contender:
    """A contender whose ``minimiser(case, tolerance)`` JAX can compile, batch and differentiate."""
    return Contender(
        package,
        lambda case, tolerance: compiled(minimiser(case, tolerance), case),
        (lambda case: probing(minimiser, case)) if ladder else None,
        **where,
    )


def compiled(minimise: Minimise, case: Case) -> Program:
    """Jitted, under vmap where the case has lanes."""
    backward, arguments = pulling_back(minimise, case)
    _, y0, params, _ = arguments
    jax.block_until_ready(jax.jit(jnp.sum)(y0))  # the compiler's own start is nobody's
    forward = jax.jit(jax.vmap(minimise) if case.lanes > 1 else minimise)
    began = time.perf_counter()
    plan = backward.lower(*arguments).compile()
    compile_s = time.perf_counter() - began
    memory: Any = plan.memory_analysis()
    return Program(
        lambda: jax.block_until_ready(forward(y0, *params)),
        lambda: jax.block_until_ready(backward(*arguments)),
        compile_s,
        (memory.temp_size_in_bytes + memory.output_size_in_bytes) / 1e6,
    )


def pulling_back(minimise: Minimise, case: Case) -> tuple[Any, tuple]:
    """The jitted function that returns y and the gradients of <weights, y>, and its arguments."""

    def loss(floating, y0, params, weights):
        params = list(params)
        for k, value in zip(case.floating, floating, strict=True):
            params[k] = value
        y = minimise(y0, *params)
        return jnp.vdot(weights, y), y

    def pull_back(floating, y0, params, weights):
        (_, y), gradients = jax.value_and_grad(loss, has_aux=True)(floating, y0, params, weights)
        return y, gradients

    y0, params, weights = jax.device_put((case.start, case.params, case.weights))
    floating = tuple(params[k] for k in case.floating)
    jitted = jax.jit(jax.vmap(pull_back) if case.lanes > 1 else pull_back)
    return jitted, (floating, y0, params, weights)


def probing(
    minimiser: Callable[[Case, Any], Minimise], case: Case
) -> Callable[[float], np.ndarray]:
    """The point as a function of the tolerance, compiled once."""

    def run(tolerance, y0, *params):
        return minimiser(case, tolerance)(y0, *params)

    axes = (None, *[0] * (1 + len(case.params)))
    batched = jax.jit(jax.vmap(run, in_axes=axes) if case.lanes > 1 else run)
    return lambda tolerance: np.array(batched(jnp.asarray(tolerance), case.start, *case.params))
