"""The contenders of family d: batches of convex quadratic programs."""

import importlib
import time
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np

import argmin_jax

from .problems import Case
from .programs import Contender, Minimise, Program, in_jax


def ours(case: Case, tolerance: Any) -> Minimise:
    del tolerance
    options: dict[str, Any] = {"eq": case.eq, "ineq": case.ineq}
    return lambda y0, *params: argmin_jax.argmin(case.objective, y0, *params, **options)


def qpax(**options: Any) -> Callable[[Case, Any], Minimise]:
    def minimiser(case: Case, tolerance: Any) -> Minimise:
        del case, tolerance
        solve = importlib.import_module("qpax").solve_qp_primal
        return lambda y0, Q, c, G, h, A, b: solve(Q, c, A, b, G, h, **options)

    return minimiser


def moreau(case: Case, tolerance: Any) -> Minimise:
    """Minimise y'Py/2 + q'y, where A y + s = b; s = 0 for the equalities, s >= 0 for the others."""
    del tolerance
    package = importlib.import_module("moreau")
    layer = importlib.import_module("moreau.jax")
    n = case.unknowns
    equalities, inequalities = case.params[4].shape[1], case.params[2].shape[1]
    m = equalities + inequalities
    solver = layer.Solver(
        n=n,
        m=m,
        P_row_offsets=np.arange(n + 1) * n,
        P_col_indices=np.tile(np.arange(n), n),
        A_row_offsets=np.arange(m + 1) * n,
        A_col_indices=np.tile(np.arange(n), m),
        cones=package.Cones(num_zero_cones=equalities, num_nonneg_cones=inequalities),
        settings=package.Settings(device="cpu", batch_size=case.lanes, enable_grad=True),
    )

    def minimise(y0, Q, c, G, h, A, b):
        rows, limits = jnp.concatenate([A, G]), jnp.concatenate([b, h])
        return solver.solve(Q.ravel(), rows.ravel(), c, limits).x

    return minimise


def by_torch(make: Callable[[Case], Callable[..., Any]], case: Case, tolerance: float) -> Program:
    """A layer of PyTorch that takes whole batches of (Q, c, G, h, A, b)."""
    del tolerance
    import torch

    began = time.perf_counter()
    solve = make(case)
    built_s = time.perf_counter() - began
    weights = torch.from_numpy(case.weights)
    params = [torch.from_numpy(p).requires_grad_() for p in case.params]

    def forward():
        # Recording what the backward pass needs, too: without that cvxpylayers hands its mode of
        # differentiation to a solver that does not know it.
        return solve(*params).detach().numpy()

    def forward_backward():
        y = solve(*params)
        gradients = torch.autograd.grad((weights * y).sum(), params)
        return y.detach().numpy(), [g.numpy() for g in gradients]

    return Program(forward, forward_backward, built_s)


def qpth(case: Case) -> Callable[..., Any]:
    del case
    return importlib.import_module("qpth.qp").QPFunction(verbose=-1)


def cvxpylayers(solver_args: dict[str, Any], case: Case) -> Callable[..., Any]:
    """Q enters by its Cholesky factor, since a parametrised quadratic form is not allowed."""
    import torch

    cp = importlib.import_module("cvxpy")

    layers = importlib.import_module("cvxpylayers.torch")
    n, inequalities, equalities = case.unknowns, case.params[2].shape[1], case.params[4].shape[1]
    y = cp.Variable(n)
    root, c = cp.Parameter((n, n)), cp.Parameter(n)
    G, h = cp.Parameter((inequalities, n)), cp.Parameter(inequalities)
    A, b = cp.Parameter((equalities, n)), cp.Parameter(equalities)
    problem = cp.Problem(
        cp.Minimize(cp.sum_squares(root @ y) / 2 + c @ y), [G @ y <= h, A @ y == b]
    )
    layer = layers.CvxpyLayer(problem, [root, c, G, h, A, b], [y], solver_args=solver_args)

    def solve(Q, *others):
        (found,) = layer(torch.linalg.cholesky(Q).mT, *others)
        return found

    return solve


def torch_contender(package: str, make: Callable[[Case], Any], **where: Any) -> Contender:
    return Contender(package, lambda case, tolerance: by_torch(make, case, tolerance), **where)


THREADS = 8  # with as many as two cores, a batch of qpax's LAPACK calls can stand still for ever
TIGHT = {"solver_tol": 1e-10, "target_kappa": 1e-10}
EXACT = {"solve_method": "Clarabel", "mode": "dense"}

CONTENDERS = {
    "argmin_jax": in_jax("argmin_jax", ours),
    "qpax": in_jax("qpax", qpax(), threads=THREADS),
    "qpax, implicit": in_jax("qpax", qpax(backend="i"), threads=THREADS),
    "qpax, kappa 1e-10": in_jax("qpax", qpax(**TIGHT), threads=THREADS),
    "qpax, implicit, kappa 1e-10": in_jax("qpax", qpax(backend="i", **TIGHT), threads=THREADS),
    "moreau": in_jax("moreau", moreau),
    "cvxpylayers": torch_contender("cvxpylayers", lambda case: cvxpylayers({}, case)),
    "cvxpylayers, dense": torch_contender(
        "cvxpylayers", lambda case: cvxpylayers({"mode": "dense"}, case)
    ),
    "cvxpylayers, dense, Clarabel": torch_contender(
        "cvxpylayers", lambda case: cvxpylayers(EXACT, case)
    ),
    "qpth": torch_contender("qpth", qpth, beside=True),
}
