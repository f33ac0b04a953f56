"""The contenders of family a in PyTorch: with a Hessian as a good engineer forms it, and TorchOpt.

Eager, on one thread: at these sizes more threads wait for each other.
"""

import importlib
from collections.abc import Callable

import torch
from torch import Tensor

from ..pytorch_forecaster import TunedArgmin, minimise, postdiction_loss
from .problems import Case
from .programs import Contender, Program

Objective = Callable[..., Tensor]


def ridge(y: Tensor, history: Tensor, future: Tensor, log_lambda: Tensor) -> Tensor:
    channels_first = history.transpose(-1, -2), future.transpose(-1, -2)
    return postdiction_loss(y.reshape(10, 20), *channels_first, log_lambda)


def logistic(w: Tensor, x: Tensor, labels: Tensor) -> Tensor:
    margins = x @ w
    loss = torch.nn.functional.softplus(margins) - labels * margins
    return loss.mean() + 1e-3 * (w**2).sum() / 2


def softmax(w: Tensor, x: Tensor, labels: Tensor, log_penalty: Tensor) -> Tensor:
    w = w.reshape(x.shape[1], -1)
    return torch.nn.functional.cross_entropy(x @ w, labels) + log_penalty.exp() * (w**2).sum() / 2


def pseudo_huber(w: Tensor, x: Tensor, targets: Tensor) -> Tensor:
    return ((1 + (x @ w - targets) ** 2).sqrt() - 1).mean()


def rosenbrock(y: Tensor, centres: Tensor) -> Tensor:
    return (100 * (y[1:] - y[:-1] ** 2) ** 2 + (centres - y[:-1]) ** 2).sum()


def quartic(y: Tensor, targets: Tensor) -> Tensor:
    own = ((y - targets) ** 2 / 2 + y**4 / 4).sum()
    return own + ((y[1:] - y[:-1]) ** 2).sum() / 2


OBJECTIVES: dict[str, Objective] = {
    "model's ridge": ridge,
    "logistic": logistic,
    "softmax": softmax,
    "pseudo-Huber": pseudo_huber,
    "Rosenbrock": rosenbrock,
    "quartic": quartic,
}
ARGUMENTS = 4  # of the objectives, at most


class Tuned(TunedArgmin):
    """Stops at a gradient of ``tolerance``, which the forecaster's leaves at PyTorch's default."""

    @staticmethod
    def forward(ctx, objective, tolerance, y, *z):  # pyright: ignore[reportIncompatibleMethodOverride]
        found = minimise(objective, y, z, tolerance_grad=tolerance, tolerance_change=0)
        ctx.objective = objective
        ctx.save_for_backward(found, *(part.detach() for part in z))
        return found

    @staticmethod
    def backward(ctx, y_bar):  # pyright: ignore[reportIncompatibleMethodOverride]
        return None, *TunedArgmin.backward(ctx, y_bar)


def by_hessian(objective: Objective, tolerance: float) -> Callable[..., Tensor]:
    return lambda y, *z: Tuned.apply(objective, tolerance, y, *z)


def by_torchopt(objective: Objective, tolerance: float) -> Callable[..., Tensor]:
    """TorchOpt differentiates; it has no second-order minimiser, so PyTorch's L-BFGS minimises."""
    torchopt = importlib.import_module("torchopt")

    def optimality(y, *z):
        return torch.func.grad(objective)(y, *z)

    @torchopt.diff.implicit.custom_root(
        optimality, argnums=tuple(range(1, ARGUMENTS)), solve=torchopt.linear_solve.solve_cg()
    )
    def solve(y, *z):
        return minimise(objective, y, z, tolerance_grad=tolerance, tolerance_change=0)

    return solve


def prepare(
    make: Callable[[Objective, float], Callable[..., Tensor]], case: Case, tolerance: float
) -> Program:
    torch.set_num_threads(1)
    solve = make(OBJECTIVES[case.kind], tolerance)
    weights = torch.from_numpy(case.weights)
    params = [torch.from_numpy(p) for p in case.params]
    leaves = [p.requires_grad_() if k in case.floating else p for k, p in enumerate(params)]
    wanted = [leaves[k] for k in case.floating]

    def forward():
        with torch.no_grad():
            return solve(torch.tensor(case.start), *leaves).numpy()

    def forward_backward():
        y = solve(torch.tensor(case.start), *leaves)
        gradients = torch.autograd.grad((weights * y).sum(), wanted)
        return y.detach().numpy(), [g.numpy() for g in gradients]

    return Program(forward, forward_backward)


def contender(make, package: str, **where) -> Contender:
    return Contender(
        package,
        lambda case, tolerance: prepare(make, case, tolerance),
        lambda case: lambda tolerance: prepare(make, case, tolerance).forward(),
        single=True,
        **where,
    )


MINIMISERS = {
    "PyTorch, dense Hessian": contender(by_hessian, "torch", largest=2_000),
    "TorchOpt, CG": contender(by_torchopt, "torchopt"),
}
