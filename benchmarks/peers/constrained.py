"""The problems of families d and e: batches of quadratic programs, and small nonlinear ones."""

from collections.abc import Callable
from functools import partial

import jax.numpy as jnp
import numpy as np

from .problems import SEED, Case

QP_LANES = 128
QP_SIZES = (10, 50, 100)
NLP_LANES = 64


def quadratic(y, Q, c, G, h, A, b):
    return y @ Q @ y / 2 + c @ y


def qp_eq(y, Q, c, G, h, A, b):
    return A @ y - b


def qp_ineq(y, Q, c, G, h, A, b):
    return G @ y - h


def qp_case(n: int) -> Case:
    """n unknowns, n inequalities, n/10 equalities, feasible by construction; dense."""
    rng = np.random.default_rng(SEED)
    m = n // 10
    root = rng.normal(size=(QP_LANES, n, n))
    Q = root @ root.swapaxes(1, 2) / n + 0.1 * np.eye(n)
    G, A = rng.normal(size=(QP_LANES, n, n)), rng.normal(size=(QP_LANES, m, n))
    inside = rng.normal(size=(QP_LANES, n))
    return Case(
        name=f"QP, n = {n}",
        kind="QP",
        lanes=QP_LANES,
        objective=quadratic,
        start=np.zeros((QP_LANES, n)),
        params=(
            Q,
            3 * rng.normal(size=(QP_LANES, n)),
            G,
            (G @ inside[..., None])[..., 0] + rng.uniform(0.1, 1, size=(QP_LANES, n)),
            A,
            (A @ inside[..., None])[..., 0],
        ),
        weights=rng.normal(size=(QP_LANES, n)),
        eq=qp_eq,
        ineq=qp_ineq,
    )


def sphere_objective(y, centre, radius, offset):
    return jnp.sum(jnp.cosh(y - centre)) + jnp.sum((y[1:] * y[:-1]) ** 2) / 10


def sphere_eq(y, centre, radius, offset):
    return jnp.sum(y**2) - radius**2


def sphere_ineq(y, centre, radius, offset):
    return jnp.stack([jnp.exp(y[0]) + y[1] - offset, y[2] ** 2 - y[3] - offset])


def sphere_case(n: int = 10) -> Case:
    """Nearest point, in a sense, to a centre on a sphere under two curved inequalities."""
    rng = np.random.default_rng(SEED)
    centre = 1 + 0.3 * rng.normal(size=(NLP_LANES, n))
    return Case(
        name="sphere",
        kind="NLP",
        lanes=NLP_LANES,
        objective=sphere_objective,
        start=np.full((NLP_LANES, n), 0.5),
        params=(
            centre,
            2 + 0.1 * rng.normal(size=NLP_LANES),
            1.5 + 0.1 * rng.normal(size=NLP_LANES),
        ),
        weights=rng.normal(size=(NLP_LANES, n)),
        eq=sphere_eq,
        ineq=sphere_ineq,
    )


def hs71_objective(y, p):
    return y[0] * y[3] * (y[0] + y[1] + y[2]) + p[0] * y[2]


def hs71_eq(y, p):
    return jnp.sum(y**2) - p[1]


def hs71_ineq(y, p):
    return jnp.concatenate([(p[2] - jnp.prod(y))[None], 1 - y, y - 5])


def hs71_case() -> Case:
    """Problem 71 of Hock & Schittkowski, Test Examples for Nonlinear Programming Codes (1981)."""
    rng = np.random.default_rng(SEED)
    scatter = 1 + 0.02 * rng.normal(size=(NLP_LANES, 3))
    return Case(
        name="HS71",
        kind="NLP",
        lanes=NLP_LANES,
        objective=hs71_objective,
        start=np.tile([1.0, 5.0, 5.0, 1.0], (NLP_LANES, 1)),
        params=(np.array([1.0, 40.0, 25.0]) * scatter,),
        weights=rng.normal(size=(NLP_LANES, 4)),
        eq=hs71_eq,
        ineq=hs71_ineq,
    )


def family_d() -> dict[str, Callable[[], Case]]:
    return {f"QP, n = {n}": partial(qp_case, n) for n in QP_SIZES}


def family_e() -> dict[str, Callable[[], Case]]:
    return {"HS71": hs71_case, "sphere": sphere_case}
