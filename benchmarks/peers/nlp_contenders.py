"""The contenders of family e: small nonlinear programs, with Ipopt on the host lane by lane."""

import importlib
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .problems import Case
from .programs import Contender, Program, in_jax
from .qp_contenders import ours

TOLERANCE = 1e-9


def by_lanes(
    case: Case, solve: Callable[[Case], Any], pull_back: Callable[[Case, Any], Any], built_s: float
) -> Program:
    """Programs of a solver of one problem: ``solve`` returns a point with y first, of which
    ``pull_back`` makes gradients."""
    lanes = [case.lane(k) for k in range(case.lanes)]

    def forward():
        return np.stack([solve(lane)[0] for lane in lanes])

    def forward_backward():
        points = [solve(lane) for lane in lanes]
        gradients = [pull_back(*pair) for pair in zip(lanes, points, strict=True)]
        return np.stack([p[0] for p in points]), [np.stack(g) for g in zip(*gradients, strict=True)]

    return Program(forward, forward_backward, built_s)


def cyipopt(case: Case, tolerance: float) -> Program:
    """Ipopt with JAX's derivatives; its sensitivities are written by hand, as its users have to:
    one solve with the optimality system of the constraints whose multipliers are not zero."""
    del tolerance
    ipopt = importlib.import_module("cyipopt")
    assert case.eq is not None and case.ineq is not None
    eq, ineq, objective = case.eq, case.ineq, case.objective

    def constraints(y, *params):
        return jnp.concatenate([jnp.ravel(eq(y, *params)), jnp.ravel(ineq(y, *params))])

    def lagrangian(y, multipliers, factor, *params):
        return factor * objective(y, *params) + multipliers @ constraints(y, *params)

    def system(y, multipliers, active, *params):
        slope = jax.grad(lagrangian)(y, multipliers, 1.0, *params)
        return jnp.concatenate([slope, jnp.where(active, constraints(y, *params), multipliers)])

    def pulled(y, multipliers, active, weights, *params):
        rows = jax.jacobian(system, argnums=(0, 1))(y, multipliers, active, *params)
        b = jnp.concatenate([weights, jnp.zeros_like(multipliers)])
        u = jnp.linalg.solve(jnp.concatenate(rows, axis=1).T, b)
        _, pull = jax.vjp(lambda *params: system(y, multipliers, active, *params), *params)
        return pull(-u)

    began = time.perf_counter()
    lane = case.lane(0)
    y, params = lane.start, lane.params
    zeros = np.zeros(jax.eval_shape(constraints, y, *params).shape)

    def compiled(fn, *args):
        return jax.jit(fn).lower(*args, *params).compile()

    value = compiled(objective, y)
    slope = compiled(jax.grad(objective), y)
    values = compiled(constraints, y)
    rows = compiled(jax.jacobian(constraints), y)
    hessian = compiled(jax.hessian(lagrangian), y, zeros, 1.0)
    pull = compiled(pulled, y, zeros, zeros > 0, lane.weights)
    built_s = time.perf_counter() - began
    equalities = int(jax.eval_shape(eq, y, *params).size)
    lower = np.where(np.arange(zeros.size) < equalities, 0.0, -np.inf)
    row, column = np.tril_indices(y.size)

    class Callbacks:
        def __init__(self, params):
            self.params = params

        def objective(self, y):
            return float(value(y, *self.params))

        def gradient(self, y):
            return np.array(slope(y, *self.params))

        def constraints(self, y):
            return np.array(values(y, *self.params))

        def jacobian(self, y):
            return np.array(rows(y, *self.params)).ravel()

        def hessianstructure(self):
            return row, column

        def hessian(self, y, multipliers, factor):
            return np.array(hessian(y, multipliers, factor, *self.params))[row, column]

    def solve(lane: Case):
        problem = ipopt.Problem(
            n=y.size, m=zeros.size, problem_obj=Callbacks(lane.params), cl=lower, cu=0 * zeros
        )
        for option in ({"print_level": 0}, {"sb": "yes"}, {"tol": TOLERANCE}):
            problem.add_option(*option.popitem())
        found, info = problem.solve(lane.start)
        return found, info["mult_g"]

    def pull_back(lane: Case, point):
        found, multipliers = point
        active = (np.arange(zeros.size) < equalities) | (multipliers > 1e-6)
        return [np.array(g) for g in pull(found, multipliers, active, lane.weights, *lane.params)]

    return by_lanes(case, solve, pull_back, built_s)


def casadi(case: Case, tolerance: float) -> Program:
    """Ipopt by CasADi, which differentiates its solver itself."""
    del tolerance
    ca = importlib.import_module("casadi")
    began = time.perf_counter()
    lane = case.lane(0)
    sizes = [p.size for p in lane.params]
    y, p = ca.SX.sym("y", lane.start.size), ca.SX.sym("p", sum(sizes))
    value, eq, ineq = CASADI[case.name](ca, y, p)
    solver = ca.nlpsol(
        "solver",
        "ipopt",
        {"x": y, "p": p, "f": value, "g": ca.vertcat(eq, ineq)},
        {
            "print_time": False,
            "ipopt": {"print_level": 0, "sb": "yes", "tol": TOLERANCE},
        },
    )
    lower = ca.vertcat(ca.DM.zeros(eq.size1()), -ca.inf * ca.DM.ones(ineq.size1()))
    start, params = ca.MX.sym("start", y.size1()), ca.MX.sym("params", p.size1())
    weights = ca.MX.sym("weights", y.size1())
    found = solver(x0=start, p=params, lbg=lower, ubg=0)["x"]
    forward = ca.Function("forward", [start, params], [found])
    slope = ca.gradient(ca.dot(weights, found), params)
    both = ca.Function("both", [start, params, weights], [found, slope])
    built_s = time.perf_counter() - began
    lanes = [case.lane(k) for k in range(case.lanes)]
    flat = [np.concatenate([np.ravel(p) for p in lane.params]) for lane in lanes]

    def run_forward():
        return np.stack(
            [
                np.ravel(forward(lane.start, values))
                for lane, values in zip(lanes, flat, strict=True)
            ]
        )

    def run_both():
        found = [
            both(lane.start, values, lane.weights) for lane, values in zip(lanes, flat, strict=True)
        ]
        slopes = np.split(np.stack([np.ravel(g) for _, g in found]), np.cumsum(sizes)[:-1], axis=1)
        shaped = [g.reshape(p.shape) for g, p in zip(slopes, case.params, strict=True)]
        return np.stack([np.ravel(y) for y, _ in found]), shaped

    return Program(run_forward, run_both, built_s)


def hs71(ca: Any, y: Any, p: Any):
    value = y[0] * y[3] * (y[0] + y[1] + y[2]) + p[0] * y[2]
    product = y[0] * y[1] * y[2] * y[3]
    return value, ca.sumsqr(y) - p[1], ca.vertcat(p[2] - product, 1 - y, y - 5)


def sphere(ca: Any, y: Any, p: Any):
    n = y.size1()
    value = ca.sum1(ca.cosh(y - p[:n])) + ca.sumsqr(y[1:] * y[:-1]) / 10
    ineq = ca.vertcat(ca.exp(y[0]) + y[1] - p[n + 1], y[2] ** 2 - y[3] - p[n + 1])
    return value, ca.sumsqr(y) - p[n] ** 2, ineq


CASADI = {"HS71": hs71, "sphere": sphere}

CONTENDERS = {
    "argmin_jax": in_jax("argmin_jax", ours),
    "cyipopt, sensitivities by hand": Contender("cyipopt-wheels", cyipopt),
    "CasADi's Ipopt": Contender("casadi", casadi),
}
