"""The libraries, by name: how each answers, and of which packages its version is kept."""

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Contender:
    """A library as its users call it.

    The module is imported by the process that runs this library and by no other.
    """

    module: str
    package: str
    how: str
    solve: str = "solve"
    in_jax: bool = True

    def load(self) -> Callable[..., Any]:
        """Its function: an `asks.Solve`, or outside of JAX `torchopt_side.answer`."""
        return getattr(importlib.import_module(f"{__package__}.{self.module}"), self.solve)


CONTENDERS = {
    "argmin_jax": Contender(
        "argmin_side",
        "argmin_jax",
        '`argmin`, `solve` and their siblings with their defaults (`on_failure="nan"` where a '
        "batch is known to have a bad lane; `forward_mode=True` where forward mode is asked)",
    ),
    "JAXopt": Contender(
        "jaxopt_side",
        "jaxopt",
        "`LBFGS`, `LevenbergMarquardt`, `ProximalGradient`, `ProjectedGradient`, `MirrorDescent`, "
        "`EqualityConstrainedQP`, `OSQP`, whichever fits, with their defaults",
        "solve_by_default",
    ),
    "JAXopt, tight": Contender(
        "jaxopt_side",
        "jaxopt",
        "the same with `maxiter=2000` and a `tol` of 1e-10 in float64, 1e-5 in float32, so that "
        "what is left is not the forward tolerance's",
        "solve_tightly",
    ),
    "Optimistix": Contender(
        "optimistix_side",
        "optimistix",
        "`minimise` with `BFGS`, `least_squares` with `LevenbergMarquardt`, `fixed_point` with "
        "`FixedPointIteration`, `rtol = atol` 1e-8 in float64 and 1e-4 in float32 (there are no "
        "defaults), all else by default",
    ),
    "TorchOpt": Contender(
        "torchopt_side",
        "torchopt",
        "`custom_root` with its defaults on the gradient of the objective, around `torch.optim."
        "LBFGS` (500 steps, strong Wolfe line search): TorchOpt brings no minimiser that stops by "
        "itself",
        "answer",
        in_jax=False,
    ),
}
