"""Ipopt through cyipopt, and InteriorPoint against it on problems of Hock and Schittkowski."""

import builtins

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from argmin_jax.solvers.interior_point import InteriorPoint
from argmin_jax.solvers.ipopt import Ipopt
from argmin_jax.solvers.nlp import NonlinearProgram, nowhere
from benchmarks.cutest_judge import judge
from benchmarks.cutest_problems import load, program

pytest.importorskip("cyipopt")
pytest.importorskip("sif2jax")

# Inequalities, equalities, bounds, a degenerate solution (24), nonconvex ones, one without
# an interior of its bounds' corner (33) and several that need more than one barrier parameter
NAMES = ("HS7", "HS12", "HS16", "HS24", "HS26", "HS33", "HS39", "HS43", "HS65", "HS71", "HS76",
         "HS100")  # fmt: skip
PROBLEMS = load(lambda name: name in NAMES)


def simplex(target):
    return NonlinearProgram(
        lambda y: jnp.sum((y - target) ** 2) / 2,
        lambda y: jnp.sum(y)[None] - 1,
        nowhere,
        jnp.zeros(3),
        jnp.full(3, jnp.inf),
    )


def project(target):
    return Ipopt().run(simplex(target), jnp.ones(3), jnp.array(1e-9), jnp.array(100))


def test_multipliers_have_our_signs():
    at = project(jnp.array([0.9, 0.5, -0.7]))
    np.testing.assert_allclose(at.y, [0.7, 0.3, 0.0], atol=1e-7)
    np.testing.assert_allclose(at.eq, [0.2], atol=1e-7)
    np.testing.assert_allclose(at.lower, [0.0, 0.0, 0.9], atol=1e-7)


def test_works_under_jit_and_vmap_with_captured_tracers():
    targets = jnp.array([[0.9, 0.5, -0.7], [0.2, 0.3, 0.4]])
    lanes = jax.jit(jax.vmap(project))(targets)
    np.testing.assert_allclose(lanes.y, [[0.7, 0.3, 0.0], [0.7 / 3, 1 / 3, 1.3 / 3]], atol=1e-7)


def test_a_fixed_unknown_has_a_multiplier():
    base = simplex(jnp.array([0.9, 0.5, -0.7]))
    fixed = NonlinearProgram(
        base.objective,
        base.equalities,
        nowhere,
        base.lower.at[0].set(0.1),
        base.upper.at[0].set(0.1),
    )
    at = Ipopt().run(fixed, jnp.ones(3), jnp.array(1e-9), jnp.array(100))
    np.testing.assert_allclose(at.y, [0.1, 0.9, 0.0], atol=1e-7)
    np.testing.assert_allclose(at.upper[0] - at.lower[0], 0.8 + 0.4, atol=1e-6)


def test_infeasible_is_said():
    program = NonlinearProgram(
        lambda y: y[0], nowhere, lambda y: (y @ y + 1)[None], jnp.full(2, -5.0), jnp.full(2, 5.0)
    )
    assert Ipopt().run(program, jnp.ones(2), jnp.array(1e-8), jnp.array(200)).infeasible


def test_options_reach_ipopt():
    stopped = Ipopt(max_iter=1).run(
        simplex(jnp.ones(3)), jnp.ones(3), jnp.array(1e-9), jnp.array(100)
    )
    assert stopped.steps == 1


def test_names_the_extra_that_is_missing(monkeypatch):
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name == "cyipopt":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match=r"argmin_jax\[ipopt\]"):
        Ipopt()


@pytest.mark.parametrize("name", NAMES)
def test_interior_point_finds_what_ipopt_finds(name):
    flat, start = program(PROBLEMS[name])

    def objective_and_judgement(solver):
        run = jax.jit(lambda y: solver.run(flat, y, jnp.array(1e-8), jnp.array(500)).y)
        return judge(flat, np.asarray(run(start)))

    with jax.numpy_rank_promotion("allow"):
        mine, reference = objective_and_judgement(InteriorPoint()), objective_and_judgement(Ipopt())
    assert mine.solved(1e-6)
    np.testing.assert_allclose(mine.objective, reference.objective, rtol=1e-6, atol=1e-6)
