"""The contenders of families a to c that run in JAX: minimisers that can be differentiated.

A contender is ``minimiser(case, tolerance) -> (y0, *params) -> y``. The tolerance is the package's
own, for contenders that have one; argmin_jax has none: its defaults are what is measured.
"""

import warnings
from collections.abc import Callable
from typing import Any

import lineax as lx
import optimistix as optx

import argmin_jax
from models.forecaster import ridge_weights

from .problems import Case
from .programs import Minimise, in_jax

MAX_STEPS = 10_000


def ours(**options: Any) -> Callable[[Case, Any], Minimise]:
    """argmin_jax's argmin with some documented options."""

    def minimiser(case: Case, tolerance: Any) -> Minimise:
        del tolerance
        return lambda y0, *params: argmin_jax.argmin(case.objective, y0, *params, **options)

    return minimiser


def jaxopt_lbfgs(case: Case, tolerance: Any) -> Minimise:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its own end of maintenance
        import jaxopt

    def minimise(y0, *params):
        solver = jaxopt.LBFGS(case.objective, tol=tolerance, maxiter=MAX_STEPS, implicit_diff=True)
        return solver.run(y0, *params).params

    return minimise


def optimistix(
    solver: Callable[..., optx.AbstractMinimiser], **options: Any
) -> Callable[[Case, Any], Minimise]:
    def minimiser(case: Case, tolerance: Any) -> Minimise:
        def minimise(y0, *params):
            return optx.minimise(
                lambda y, params: case.objective(y, *params),
                solver(rtol=tolerance, atol=tolerance),
                y0,
                params,
                max_steps=MAX_STEPS,
                throw=False,
                **options,
            ).value

        return minimise

    return minimiser


BY_CG: dict[str, Any] = {
    "adjoint": optx.ImplicitAdjoint(linear_solver=lx.CG(rtol=1e-10, atol=1e-10)),
    "tags": frozenset({lx.positive_semidefinite_tag}),
}


def closed_form(case: Case, tolerance: Any) -> Minimise:
    del case, tolerance
    return lambda y0, *params: ridge_weights(*params).reshape(y0.shape)


def our_least_squares(case: Case, tolerance: Any) -> Minimise:
    del tolerance
    residual: Any = case.residual
    return lambda y0, *params: argmin_jax.least_squares(residual, y0, *params)


def jaxopt_least_squares(case: Case, tolerance: Any) -> Minimise:
    import jaxopt

    residual: Any = case.residual

    def minimise(y0, *params):
        solver = jaxopt.LevenbergMarquardt(
            residual, tol=tolerance, xtol=tolerance, gtol=tolerance, maxiter=MAX_STEPS
        )
        return solver.run(y0, *params).params

    return minimise


def optimistix_least_squares(case: Case, tolerance: Any) -> Minimise:
    residual: Any = case.residual

    def minimise(y0, *params):
        return optx.least_squares(
            lambda y, params: residual(y, *params),
            optx.LevenbergMarquardt(rtol=tolerance, atol=tolerance),
            y0,
            params,
            max_steps=MAX_STEPS,
            throw=False,
        ).value

    return minimise


DENSE = 2_000  # unknowns, beyond which a dense matrix of them does not fit
EARLY = 1e-3  # a tolerance of Optimistix's from which the polish does the rest, as a rule

MINIMISERS = {
    "argmin_jax": in_jax("argmin_jax", ours()),
    "argmin_jax, NewtonCG": in_jax("argmin_jax", ours(solver=argmin_jax.NewtonCG())),
    "argmin_jax, NewtonCG, matrix-free": in_jax(
        "argmin_jax",
        ours(solver=argmin_jax.NewtonCG(), linear_solver=argmin_jax.Auto(dense_limit=0)),
    ),
    "argmin_jax, Optimistix L-BFGS": in_jax(
        "argmin_jax", ours(solver=optx.LBFGS(rtol=EARLY, atol=EARLY))
    ),
    "argmin_jax, Optimistix BFGS": in_jax(
        "argmin_jax", ours(solver=optx.BFGS(rtol=EARLY, atol=EARLY)), largest=DENSE
    ),
    "JAXopt L-BFGS": in_jax("jaxopt", jaxopt_lbfgs, ladder=True),
    "Optimistix L-BFGS": in_jax("optimistix", optimistix(optx.LBFGS), ladder=True, largest=DENSE),
    "Optimistix L-BFGS, CG adjoint": in_jax(
        "optimistix", optimistix(optx.LBFGS, **BY_CG), ladder=True
    ),
    "Optimistix BFGS": in_jax("optimistix", optimistix(optx.BFGS), ladder=True, largest=DENSE),
    "Optimistix BFGS, CG adjoint": in_jax(
        "optimistix", optimistix(optx.BFGS, **BY_CG), ladder=True, largest=DENSE
    ),
    "closed form": in_jax("argmin_jax", closed_form, kinds=("model's ridge",)),
}
LEAST_SQUARES = {
    "argmin_jax": in_jax("argmin_jax", ours()),
    "argmin_jax, NewtonCG": in_jax("argmin_jax", ours(solver=argmin_jax.NewtonCG())),
    "argmin_jax, least_squares": in_jax("argmin_jax", our_least_squares),
    "JAXopt LM": in_jax("jaxopt", jaxopt_least_squares, ladder=True),
    "Optimistix LM": in_jax("optimistix", optimistix_least_squares, ladder=True),
}
