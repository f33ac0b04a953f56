"""TorchOpt: `custom_root` with its defaults, around PyTorch's own L-BFGS.

TorchOpt leaves the solving to its user, and its differentiable optimisers take a fixed number of
steps.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from torchopt.diff.implicit import custom_root

from .asks import cotangent, tangent
from .problem import Ask, CannotExpress, Form, Problem

MAX_STEPS = 500
FIXED_POINT_STEPS = 10_000


def answer(problem: Problem, dtype: str) -> list[np.ndarray]:
    """What ``problem.ask`` asks for, as `asks.derivative` has it of the JAX libraries."""
    if problem.constrained:
        raise CannotExpress("custom_root has no constraints")
    if problem.ask is Ask.FORWARD:
        raise CannotExpress("custom_root has no forward mode")
    if problem.ask is Ask.CLOSURE:
        raise CannotExpress("custom_root differentiates in its arguments alone")
    kind = getattr(torch, dtype)
    y0 = _tensors(problem.y0, kind)
    params = tuple(torch.tensor(p, dtype=kind, requires_grad=True) for p in problem.params)
    with_aux = problem.ask in (Ask.VALUE, Ask.AUX)
    solver = _solver(problem, with_aux)

    def solve(*params):
        return solver(y0, *params)

    if problem.ask is Ask.BATCH:
        loss = _weighted(cotangent, torch.func.vmap(solve, problem.in_axes)(*params))
    elif with_aux:
        _, aux = solve(*params)
        loss = _weighted(cotangent, aux)
    else:
        loss = _weighted(cotangent, solve(*params))
    second = problem.ask is Ask.SECOND
    gradient = torch.autograd.grad(loss, params, create_graph=second)
    if second:
        gradient = torch.autograd.grad(_weighted(tangent, gradient), params)
    return [g.detach().numpy() for g in gradient]


def _solver(problem: Problem, with_aux: bool) -> Callable[..., Any]:
    """The solver of the problem, decorated by TorchOpt."""
    value, optimality = _conditions(problem)
    argnums = tuple(range(1, len(problem.params) + 1))

    @custom_root(optimality, argnums=argnums, has_aux=with_aux)
    def solve(y, *params):
        found = _run(problem, value, y, params)
        if not with_aux:
            return found
        returned = problem.objective(torch, found, *params)
        return found, (returned[1] if problem.ask is Ask.AUX else returned)

    return solve


def _conditions(problem: Problem) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """The function to minimise, and the optimality conditions F(y, *params) = 0."""
    objective = partial(problem.objective, torch)
    if problem.form is Form.FIXED_POINT:
        return objective, lambda y, *params: objective(y, *params) - y
    if problem.form is Form.LEAST_SQUARES:

        def value(y, *params):
            return (objective(y, *params) ** 2).sum() / 2
    elif problem.ask is Ask.AUX:

        def value(y, *params):
            return objective(y, *params)[0]
    else:
        value = objective
    return value, torch.func.grad(value)


def _run(problem: Problem, value: Callable[..., Any], y: Any, params: tuple[Any, ...]) -> Any:
    params = tuple(p.detach() for p in params)
    if problem.form is Form.FIXED_POINT:
        return _iterate(value, y, params)
    leaves = [leaf.detach().clone().requires_grad_() for leaf in _leaves(y)]
    optimiser = torch.optim.LBFGS(
        leaves, max_iter=problem.max_steps or MAX_STEPS, line_search_fn="strong_wolfe"
    )

    def closure():
        optimiser.zero_grad()
        loss = value(_like(y, leaves), *params)
        loss.backward()
        return loss

    with torch.enable_grad():
        optimiser.step(closure)
    return _like(y, [leaf.detach() for leaf in leaves])


def _iterate(step: Callable[..., Any], y: Any, params: tuple[Any, ...]) -> Any:
    for _ in range(FIXED_POINT_STEPS):
        last, y = y, step(y, *params)
        if torch.allclose(y, last, rtol=0, atol=10 * torch.finfo(y.dtype).eps):
            break
    return y


def _tensors(y: Any, dtype: torch.dtype) -> Any:
    if isinstance(y, tuple):
        return tuple(_tensors(leaf, dtype) for leaf in y)
    return torch.tensor(y, dtype=dtype)


def _leaves(y: Any) -> list[torch.Tensor]:
    return list(y) if isinstance(y, tuple) else [y]


def _like(y: Any, leaves: list[torch.Tensor]) -> Any:
    return tuple(leaves) if isinstance(y, tuple) else leaves[0]


def _weighted(weights: Callable[..., np.ndarray], y: Any) -> torch.Tensor:
    """The inner product of a tensor, or a tuple of them, with fixed weights."""
    products = [
        (leaf * torch.tensor(weights(tuple(leaf.shape)), dtype=leaf.dtype)).sum()
        for leaf in _leaves(y)
    ]
    return torch.stack(products).sum()
