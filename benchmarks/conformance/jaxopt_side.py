"""JAXopt: with its defaults, and with the forward tolerance tightened.

Constraints are put as its users put them: as a projection where it has one for the set, as OSQP's
matrices where the problem is a quadratic program.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import jaxopt

from . import constrained as sets
from .faults import LIPSCHITZ, proximal_gradient
from .problem import Answer, Ask, CannotExpress, Form, Problem

TIGHT = {"float64": 1e-10, "float32": 1e-5}
TIGHT_STEPS = 2_000


def solve_by_default(
    problem: Problem, objective: Callable, y0: Any, params: tuple[Any, ...]
) -> Answer:
    return _solve({}, problem, objective, y0, params)


def solve_tightly(problem: Problem, objective: Callable, y0: Any, params: tuple[Any, ...]):
    tol = TIGHT[jax.tree.leaves(y0)[0].dtype.name]
    return _solve({"tol": tol, "maxiter": TIGHT_STEPS}, problem, objective, y0, params)


def _solve(options: dict[str, Any], problem, objective, y0, params) -> Answer:
    if problem.max_steps is not None:
        options = options | {"maxiter": problem.max_steps}
    if problem.form is Form.LEAST_SQUARES:
        solver = jaxopt.LevenbergMarquardt(objective, **options)
        return Answer(solver.run(y0, *params).params)
    if problem.objective is proximal_gradient:
        return Answer(_lasso(options, y0, *params))
    if problem.constrained:
        return Answer(_constrained(options, problem, objective, y0, params))
    has_aux = problem.ask is Ask.AUX
    found = jaxopt.LBFGS(objective, has_aux=has_aux, **options).run(y0, *params)
    return Answer(found.params, found.state.value, found.state.aux)


def _lasso(options: dict[str, Any], w, x, t, penalty):
    solver = jaxopt.ProximalGradient(
        lambda w, data: ((data[0] @ w - data[1]) ** 2).sum() / 2,
        prox=jaxopt.prox.prox_lasso,
        stepsize=1 / LIPSCHITZ,
        **options,
    )
    return solver.run(w, penalty, (x, t)).params


def _constrained(options: dict[str, Any], problem: Problem, objective, y0, params):
    program = PROGRAMS.get(problem.objective)
    if program is not None:
        return jaxopt.OSQP(**options).run(None, **program(*params)).params.primal
    if problem.eq in EQUATIONS:
        t, *others = params
        solver = jaxopt.EqualityConstrainedQP(**options)
        objective_matrices = jnp.eye(t.size, dtype=t.dtype), -t
        return solver.run(None, objective_matrices, EQUATIONS[problem.eq](t, *others)).params.primal
    if problem.objective is sets.entropy:
        # Entropic mirror descent, for which JAXopt wants a step of the user's.
        solver = jaxopt.MirrorDescent(objective, _entropic_step, stepsize=0.5, **options)
        return solver.run(y0, None, *params).params
    projection = PROJECTIONS.get((problem.objective, problem.eq, problem.ineq))
    if projection is None:
        raise CannotExpress("neither a projection nor a quadratic program of its own")
    project, of_params = projection
    solver = jaxopt.ProjectedGradient(lambda y, p: objective(y, *p), project, **options)
    return solver.run(y0, of_params(*params), params).params


def _entropic_step(y, gradient, stepsize, nothing):
    return jax.nn.softmax(jnp.log(y) - stepsize * gradient)


def _simplex(y, nothing):
    return jaxopt.projection.projection_simplex(y)


def _nothing(*params):
    return None


def _last(*params):
    return params[-1]


# By objective and constraints: the projection, and its hyperparameters from the params.
PROJECTIONS = {
    (sets.distance, sets.sums_to, None): (
        lambda y, total: jaxopt.projection.projection_hyperplane(y, (jnp.ones_like(y), total)),
        _last,
    ),
    (sets.sphere_objective, sets.on_the_sphere, None): (
        jaxopt.projection.projection_l2_sphere,
        _last,
    ),
    (sets.distance, sets.on_the_simplex, None): (_simplex, _nothing),
    (sets.distance, None, sets.in_the_ball): (jaxopt.projection.projection_l2_ball, _last),
    (sets.box_objective, None, None): (
        jaxopt.projection.projection_box,
        lambda a, b, lower, upper: (lower, upper),
    ),
    (sets.distance, None, None): (
        lambda y, nothing: jaxopt.projection.projection_non_negative(y),
        _nothing,
    ),
}

# By equations, the objective being the distance from t: their matrix and right-hand side.
EQUATIONS = {
    sets.sums_to_twice: lambda t, total: (
        jnp.stack([jnp.ones_like(t), jnp.full_like(t, 2)]),
        jnp.stack([total, 2 * total]),
    ),
    sets.contradiction: lambda t: (jnp.ones((2, t.size), t.dtype), jnp.array([1, 2], t.dtype)),
}

# By objective: OSQP's arguments.
PROGRAMS = {
    sets.qp_objective: lambda q, c, a, b, g, h: {
        "params_obj": (q, c),
        "params_eq": (a, b),
        "params_ineq": (g, h),
    },
    sets.lp_objective: lambda c, g, h: {
        "params_obj": (jnp.zeros((c.size, c.size), c.dtype), c),
        "params_eq": None,
        "params_ineq": (g, h),
    },
}
