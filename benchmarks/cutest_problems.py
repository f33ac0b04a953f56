"""The problems of the package sif2jax as flat programs, without importing all of it."""

import ast
import functools
import importlib
import importlib.machinery
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from argmin_jax.solvers.nlp import NonlinearProgram

GROUPS = ("_bounded_minimisation", "_constrained_minimisation", "_quadratic_problems")


def names(group: str) -> dict[str, str]:
    """Class name -> module name of the problems that sif2jax lists in ``group``."""
    tree = ast.parse((_root() / "cutest" / group / "__init__.py").read_text())
    modules = {
        alias.name: node.module
        for node in tree.body
        if isinstance(node, ast.ImportFrom) and node.module
        for alias in node.names
    }
    listed = {
        call.func.id
        for node in tree.body
        if isinstance(node, ast.Assign | ast.AnnAssign) and isinstance(node.value, ast.Tuple)
        for call in node.value.elts
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Name)
    }
    return {name: modules[name] for name in sorted(listed) if name in modules}


def load(wanted: Callable[[str], bool]) -> dict[str, object]:
    """The problems whose class name is ``wanted``, in the order of their numbers."""
    _prepare()
    found = {}
    for group in GROUPS:
        for name, module in names(group).items():
            if wanted(name):
                source = importlib.import_module(f"sif2jax.cutest.{group}.{module}")
                found[name] = getattr(source, name)()
    return dict(sorted(found.items(), key=lambda item: order(item[0])))


def program(problem) -> tuple[NonlinearProgram, jax.Array]:
    """The flat program of a problem, whose inequalities are >= 0 in sif2jax, and its start."""
    start, unravel = ravel_pytree(jax.tree.map(lambda leaf: jnp.asarray(leaf, float), problem.y0))

    def flat(tree):
        return ravel_pytree(tree)[0].astype(start.dtype) if tree is not None else start[:0]

    def constraints(y):
        if not hasattr(problem, "constraint"):
            return None, None
        return problem.constraint(unravel(y))

    bounds = getattr(problem, "bounds", None)
    lower, upper = (-jnp.inf, jnp.inf) if bounds is None else (flat(bound) for bound in bounds)
    made = NonlinearProgram(
        objective=lambda y: jnp.squeeze(problem.objective(unravel(y), problem.args)),
        equalities=lambda y: flat(constraints(y)[0]),
        inequalities=lambda y: -flat(constraints(y)[1]),
        lower=jnp.broadcast_to(lower, start.shape),
        upper=jnp.broadcast_to(upper, start.shape),
    )
    return made, start


def order(name: str) -> tuple:
    """The key that sorts HS2 before HS10."""
    digits = "".join(c if c.isdigit() else " " for c in name).split()
    return (name.rstrip("0123456789") if not digits else name[: name.index(digits[0])],
            int(digits[0]) if digits else 0, name)  # fmt: skip


@functools.cache
def _root() -> Path:
    spec = importlib.util.find_spec("sif2jax")
    if spec is None or spec.origin is None:
        raise ImportError("The problems need the package sif2jax: pip install 'argmin_jax[bench]'.")
    return Path(spec.origin).parent


def _prepare() -> None:
    """Packages without their contents: `import sif2jax` builds all 849 problems, in a minute."""
    root = _root()
    packages = {"sif2jax": root, "sif2jax.cutest": root / "cutest"}
    packages |= {f"sif2jax.cutest.{group}": root / "cutest" / group for group in GROUPS}
    for name, path in packages.items():
        if name not in sys.modules:
            spec = importlib.machinery.ModuleSpec(name, None, is_package=True)
            spec.submodule_search_locations = [str(path)]
            sys.modules[name] = importlib.util.module_from_spec(spec)
