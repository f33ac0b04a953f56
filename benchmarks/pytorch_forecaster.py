"""The system that we compare with, in PyTorch, as the lecture notes teach it; and tuned.

Method: lecture notes of the Technion course CS236781 (Deep Learning), the part on differentiable
optimization. `ReferenceArgmin` forms the Hessian over the variable *and* all parameters and
solves by least squares; `TunedArgmin` is what a good PyTorch engineer would write instead.
"""

import itertools
from collections.abc import Callable
from typing import TypedDict, Unpack

import numpy as np
import torch
from torch import Tensor, nn


def solve_ls(A: Tensor, b: Tensor, abs: float = 1e-6, rel: float = 1e-6) -> Tensor:
    """Least squares by SVD; singular values below max(rel * s_1, abs) are dropped."""
    u, s, vt = torch.linalg.svd(A, full_matrices=False)
    kept = s > torch.clamp(rel * s[0], min=abs)
    inverse = torch.where(kept, 1 / torch.where(kept, s, torch.ones_like(s)), torch.zeros_like(s))
    return vt.T @ (inverse * (u.T @ b))


class Tolerances(TypedDict, total=False):
    """Those of torch's L-BFGS, which has their defaults."""

    tolerance_grad: float
    tolerance_change: float


def minimise(
    objective: Callable[..., Tensor],
    y: Tensor,
    z: tuple[Tensor, ...],
    **tolerances: Unpack[Tolerances],
) -> Tensor:
    """Overwrites ``y`` by a minimiser: the next call starts where this one ended."""
    variable = y.detach().requires_grad_()  # shares y's memory
    method = torch.optim.LBFGS([variable], lr=0.9, max_iter=1000, **tolerances)

    def closure():
        method.zero_grad()
        with torch.enable_grad():
            loss = objective(variable, *z)
            (variable.grad,) = torch.autograd.grad(loss, variable)
        return loss

    method.step(closure)
    return variable.detach().clone()


class ReferenceArgmin(torch.autograd.Function):
    """All four blocks of the Hessian over (y, z); K u = y_bar; z_bar = -R^T u."""

    @staticmethod
    def forward(ctx, objective, y, *z):  # pyright: ignore[reportIncompatibleMethodOverride]
        z = tuple(part.detach() for part in z)
        found = minimise(objective, y, z)
        ctx.objective = objective
        ctx.save_for_backward(found, *z)
        return found

    @staticmethod
    def backward(ctx, y_bar):  # pyright: ignore[reportIncompatibleMethodOverride]
        y, *z = ctx.saved_tensors
        sizes, shapes = [part.numel() for part in z], [part.shape for part in z]

        def flat_objective(flat_y, flat_z):
            parts = [p.reshape(s) for p, s in zip(flat_z.split(sizes), shapes, strict=True)]
            return ctx.objective(flat_y.reshape(y.shape), *parts)

        flat_z = torch.cat([part.reshape(-1) for part in z])
        with torch.enable_grad():
            blocks = torch.autograd.functional.hessian(flat_objective, (y.reshape(-1), flat_z))
        (K, R), _ = blocks
        flat_bar = -R.T @ solve_ls(K, y_bar.reshape(-1))
        bars = [p.reshape(s) for p, s in zip(flat_bar.split(sizes), shapes, strict=True)]
        return None, None, *bars


class TunedArgmin(torch.autograd.Function):
    """The Hessian in y alone; z_bar by one differentiation of <grad_y f, u>."""

    @staticmethod
    def forward(ctx, objective, y, *z):  # pyright: ignore[reportIncompatibleMethodOverride]
        return ReferenceArgmin.forward(ctx, objective, y, *z)

    @staticmethod
    def backward(ctx, y_bar):  # pyright: ignore[reportIncompatibleMethodOverride]
        y, *z = ctx.saved_tensors

        def of_flat(flat_y):
            return ctx.objective(flat_y.reshape(y.shape), *z)

        K = torch.func.hessian(of_flat)(y.reshape(-1))
        u = solve_ls(K, y_bar.reshape(-1)).reshape(y.shape)
        with torch.enable_grad():
            y = y.detach().requires_grad_()
            z = [part.detach().requires_grad_() for part in z]
            (slope,) = torch.autograd.grad(ctx.objective(y, *z), y, create_graph=True)
            bars = torch.autograd.grad((slope * u).sum(), z)
        return None, None, *(-bar for bar in bars)


def postdiction_loss(w: Tensor, history: Tensor, future: Tensor, log_lambda: Tensor) -> Tensor:
    """mean((X W^T - Y)^2) + lambda mean(W^2); channels first."""
    return ((history @ w.T - future) ** 2).mean() + log_lambda.exp() * (w**2).mean()


class Predictor(nn.Module):
    """W* is a buffer, overwritten by each solve; no optimiser moves it."""

    def __init__(self, argmin: type[torch.autograd.Function]):
        super().__init__()
        self.argmin = argmin
        self.log_lambda = nn.Parameter(torch.zeros(()))
        self.w = nn.Buffer(torch.zeros(10, 20))

    def settle(self, e: Tensor) -> None:
        """Moves W to the minimum to rounding by the reference's own solver, whose tolerances
        stop it three digits earlier than the numbers are compared; it then has nothing to do."""
        z = e[..., :20], e[..., 20:], self.log_lambda.detach()
        minimise(postdiction_loss, self.w, z, tolerance_grad=1e-14, tolerance_change=0)

    def forward(self, e: Tensor) -> Tensor:
        z = e[..., :20], e[..., 20:], self.log_lambda
        w: Tensor = self.argmin.apply(postdiction_loss, self.w, *z)
        return e[..., -20:] @ w.T


class Forecaster(nn.Module):
    """The encoder - predictor - decoder: ``(batch, 1, 30) -> (batch, 1, 10)``."""

    def __init__(self, argmin: type[torch.autograd.Function]):
        super().__init__()

        def conv(i: int, o: int) -> list[nn.Module]:
            return [nn.Conv1d(i, o, kernel_size=5, padding=2), nn.ELU(alpha=0.5)]

        def stack(channels: list[int], norms: int) -> nn.Sequential:
            layers: list[nn.Module] = []
            for k, (i, o) in enumerate(itertools.pairwise(channels)):
                layers += conv(i, o) + ([nn.BatchNorm1d(o)] if k < norms else [])
            return nn.Sequential(*layers)

        self.encoder: nn.Sequential = stack([1, 4, 8, 16], 3)
        self.predictor: Predictor = Predictor(argmin)
        self.decoder: nn.Sequential = stack([16, 8, 4, 1], 2)
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        return self.decoder(self.predictor(self.encoder(x)))

    def load(self, weights: dict[str, np.ndarray], w: np.ndarray) -> None:
        """Takes the weights that `weights_of` names, and the warm start of W."""
        with torch.no_grad():
            for name, parameter in named_weights(self).items():
                parameter.copy_(torch.as_tensor(to_torch(weights[name])))
            self.predictor.w.copy_(torch.as_tensor(np.array(w)))

    def gradients(self) -> dict[str, np.ndarray]:
        """The gradients in JAX's layout, by the names of `weights_of`."""
        return {
            name: from_torch(p.grad.numpy())  # pyright: ignore[reportOptionalMemberAccess]
            for name, p in named_weights(self).items()
        }


def named_weights(model: Forecaster) -> dict[str, nn.Parameter]:
    """Each weight by the name that it has on the JAX side."""
    named = {"predictor.log_lambda": model.predictor.log_lambda}
    for part in ("encoder", "decoder"):
        layers = list(getattr(model, part))
        for kind, layer_type, fields in (
            ("convs", nn.Conv1d, {"kernel": "weight", "bias": "bias"}),
            ("norms", nn.BatchNorm1d, {"scale": "weight", "bias": "bias"}),
        ):
            for k, layer in enumerate(x for x in layers if isinstance(x, layer_type)):
                for ours, theirs in fields.items():
                    named[f"{part}.{kind}.{k}.{ours}"] = getattr(layer, theirs)
    return named


def to_torch(weight: np.ndarray) -> np.ndarray:
    """A kernel (width, in, out) as (out, in, width); other weights as they are."""
    return np.array(weight.transpose(2, 1, 0) if weight.ndim == 3 else weight)


from_torch = to_torch  # the transposition is its own inverse
