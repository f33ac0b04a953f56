"""Other people's solvers, brought to one signature."""

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field, fields
from typing import Any, Protocol, runtime_checkable

import equinox as eqx
import jax
import jax.numpy as jnp
import optimistix as optx
from jaxtyping import Array, Float, Int, Scalar

from ..identity import ById, Opaque, identity
from ..program import VectorFunction
from .interior_point import InteriorPoint
from .ipopt import Ipopt
from .lbfgs import LBFGS
from .newton_cg import NewtonCG
from .nlp import NonlinearProgram, PrimalDual, nowhere
from .scipy import Scipy, ScipyMinimiser


class Minimiser(Protocol):
    """Runs an algorithm on ``problem`` from ``y``, and returns the last point and its steps.

    ``tolerance`` bounds the largest entry of the gradient. An algorithm with a stopping rule of its
    own multiplies the tolerances of that by ``share``, or ignores both: the point is judged
    afterwards, whatever stopped the solver.
    """

    @property
    def restartable(self) -> bool:
        """Whether `run` heeds what is asked for and may be called again from where it ended."""
        ...

    def run(
        self,
        problem: Any,
        y: Float[Array, " n"],
        tolerance: Scalar,
        share: Scalar,
        max_steps: Array,
    ) -> tuple[Float[Array, " n"], Int[Array, ""]]: ...


@runtime_checkable
class ConstrainedMinimiser(Minimiser, Protocol):
    """A solver of constrained problems that finds multipliers too. ``tolerance`` is relative."""

    @property
    def smoothing(self) -> float | None:
        """The barrier parameter at which it stops, if it is to stop at one."""
        ...

    def run_program(
        self, program: NonlinearProgram, y: Float[Array, " n"], tolerance: Scalar, max_steps: Array
    ) -> PrimalDual: ...


@runtime_checkable
class ScalableMinimiser(Minimiser, Protocol):
    """A restartable solver without units of its own: what it does depends on those of ``y``."""

    def run_in_units(
        self,
        problem: Any,
        y: Float[Array, " n"],
        units: Float[Array, " n"],
        tolerance: Scalar,
        max_steps: Array,
    ) -> tuple[Float[Array, " n"], Int[Array, ""]]:
        """`run` on y / units; ``tolerance`` bounds the gradient with respect to that."""
        ...


class Jaxopt:
    """A minimiser of JAXopt, which is no longer maintained; for those who come from there.

    Only its iterations are used: the derivatives are ours. Needs the extra ``jaxopt``.

    Args:
        name: of a JAXopt class whose first argument is ``fun``: "LBFGS", "BFGS", "NonlinearCG",
            "GradientDescent", ...
        **options: of that class, hashable; ``maxiter`` is by default the layer's ``max_steps``.

    Raises:
        ImportError: JAXopt is not installed.
        ValueError: JAXopt has no minimiser of that name, or it has not such an option.
    """

    def __init__(self, name: str, **options: Hashable):
        try:
            import jaxopt
        except ImportError as error:
            raise ImportError(
                "Jaxopt needs the package jaxopt: pip install 'argmin_jax[jaxopt]'."
            ) from error
        self.kind = getattr(jaxopt, name, None) if isinstance(name, str) else None
        known = getattr(self.kind, "__dataclass_fields__", {})
        if "fun" not in known:
            raise ValueError(
                'name must be that of a JAXopt minimiser of a function, such as "LBFGS"; '
                f"found {name!r}."
            )
        unknown = sorted(set(options) - set(known))
        if unknown:
            raise ValueError(f"jaxopt.{name} has no option {', '.join(unknown)}.")
        self.options = tuple(sorted(options.items()))


def adapt(solver: Any, max_steps: int, constrained: bool = False) -> Minimiser:
    """The `Minimiser` behind the option ``solver`` of `argmin`.

    Raises:
        TypeError: ``solver`` is neither one of ours, nor an Optimistix minimiser, nor callable;
            or it is a class where an instance is needed.
        ValueError: it knows nothing of constraints, and there are some.
    """
    _check_instance(solver)
    if solver is None:
        solver = InteriorPoint() if constrained else LBFGS()
    if isinstance(solver, InteriorPoint | Ipopt):
        return _Program(solver)
    if constrained and isinstance(solver, LBFGS | Jaxopt | Scipy | optx.AbstractMinimiser):
        raise ValueError(
            f"solver={type(solver).__name__}(...) knows nothing of constraints: leave solver out, "
            "or pass InteriorPoint(...), Ipopt(...) or a callable (objective, y0, *params) -> y."
        )
    if isinstance(solver, LBFGS | NewtonCG):
        return _Native(solver)
    if isinstance(solver, optx.AbstractMinimiser):
        return _Optimistix(solver, max_steps)
    if isinstance(solver, Jaxopt):
        return _Jaxopt(solver.kind, solver.options, max_steps)
    if isinstance(solver, Scipy):
        return ScipyMinimiser(solver, max_steps)
    if callable(solver):
        return _function(solver)
    raise TypeError(
        "solver must be argmin_jax.LBFGS(...), NewtonCG(...), InteriorPoint(...), Ipopt(...), "
        "Scipy(...) or Jaxopt(...), an Optimistix minimiser or a callable "
        f"(objective, y0, *params) -> y; found {solver!r}."
    )


def adapt_least_squares(solver: Any, max_steps: int, residual: VectorFunction) -> Minimiser:
    """The `Minimiser` behind the option ``solver`` of `least_squares`; raises as `adapt`."""
    _check_instance(solver)
    if solver is None or isinstance(solver, optx.AbstractLeastSquaresSolver):
        return _LeastSquares(solver, residual, max_steps)
    return adapt(solver, max_steps)


def adapt_root_finder(solver: Any, max_steps: int, is_map: bool) -> Minimiser:
    """The `Minimiser` behind the option ``solver`` of `root` or `fixed_point`.

    Raises:
        TypeError: ``solver`` is neither of the kinds that Optimistix takes, nor callable.
    """
    _check_instance(solver)
    kinds = optx.AbstractRootFinder | optx.AbstractLeastSquaresSolver | optx.AbstractMinimiser
    if is_map:
        kinds = kinds | optx.AbstractFixedPointSolver
    if solver is None or isinstance(solver, kinds):
        return _RootFinder(solver, max_steps)
    if callable(solver):
        return _function(solver)
    fixed = "fixed-point solver, " if is_map else ""
    raise TypeError(
        f"solver must be an Optimistix {fixed}root finder, least-squares solver or minimiser, or "
        f"a callable (function, z0, *params) -> z; found {solver!r}."
    )


def _check_instance(solver: Any) -> None:
    if isinstance(solver, type):
        raise TypeError(
            f"solver must be an instance; found the class {solver.__name__}. "
            f"Call it: solver={solver.__name__}(...)."
        )


@dataclass(frozen=True)
class _Program:
    solver: InteriorPoint | Ipopt
    restartable = False

    @property
    def smoothing(self) -> float | None:
        return self.solver.smoothing if isinstance(self.solver, InteriorPoint) else None

    def run_program(self, program, y, tolerance, max_steps) -> PrimalDual:
        return self.solver.run(program, y, tolerance, max_steps)

    def run(self, problem, y, tolerance, share, max_steps):
        """Of a problem without constraints."""
        del share
        infinite = jnp.full_like(y, jnp.inf)
        program = NonlinearProgram(
            lambda y: problem.objective(y, problem.args), nowhere, nowhere, -infinite, infinite
        )
        # A gradient of this size, in the solver's own scale, is what the polish can deal with.
        end = self.run_program(program, y, jnp.finfo(y.dtype).eps ** 0.5 + tolerance, max_steps)
        return end.y, end.steps


@dataclass(frozen=True)
class _Native:
    solver: LBFGS | NewtonCG
    restartable = True

    def run(self, problem, y, tolerance, share, max_steps):
        del share
        return self.run_in_units(problem, y, jnp.ones_like(y), tolerance, max_steps)

    def run_in_units(self, problem, y, units, tolerance, max_steps):
        def objective(w):
            return problem.objective(units * w, problem.args)

        w, steps = self.solver.run(objective, y / units, tolerance, max_steps)
        return units * w, steps


@dataclass(frozen=True)
class _Optimistix:
    """Its tolerances are the user's in the first round. ``max_steps`` bounds each run."""

    solver: optx.AbstractMinimiser
    max_steps: int

    @property
    def restartable(self) -> bool:
        leaves = {f.name for f in fields(self.solver) if not f.metadata.get("static")}
        return {"rtol", "atol"} <= leaves

    def run(self, problem, y, tolerance, share, max_steps):
        del tolerance, max_steps
        solver: Any = self.solver
        if self.restartable:
            # Smaller changes of y do not show in the objective's values, by which they search.
            least = float(jnp.finfo(y.dtype).eps) ** 0.5
            for option in ("rtol", "atol"):
                given = getattr(solver, option)
                tightened = jnp.minimum(given, jnp.maximum(share * given, least))
                solver = eqx.tree_at(lambda s, option=option: getattr(s, option), solver, tightened)
        solution = optx.minimise(
            _in_working_precision(problem.objective, y.dtype),
            solver,
            y.astype(jnp.result_type(float)),
            problem.args,
            max_steps=self.max_steps,
            throw=False,
        )
        return _point_and_steps(solution, y.dtype)


@dataclass(frozen=True)
class _LeastSquares:
    solver: optx.AbstractLeastSquaresSolver | None
    residual: VectorFunction
    max_steps: int
    restartable = False

    def run(self, problem, y, tolerance, share, max_steps):
        del tolerance, share, max_steps
        loose = _loose_tolerance(y)
        solution = optx.least_squares(
            _in_working_precision(self.residual, y.dtype),
            self.solver or optx.LevenbergMarquardt(rtol=loose, atol=loose),
            y.astype(jnp.result_type(float)),
            problem.args,
            max_steps=self.max_steps,
            throw=False,
        )
        return _point_and_steps(solution, y.dtype)


@dataclass(frozen=True)
class _RootFinder:
    solver: Any
    max_steps: int
    restartable = False

    def run(self, problem, y, tolerance, share, max_steps):
        del tolerance, share, max_steps
        loose = _loose_tolerance(y)
        default = optx.FixedPointIteration if problem.is_map else optx.Dogleg
        find: Any = optx.fixed_point if problem.is_map else optx.root_find
        solution = find(
            _in_working_precision(problem.function, y.dtype),
            self.solver or default(rtol=loose, atol=loose),
            y.astype(jnp.result_type(float)),
            problem.args,
            max_steps=self.max_steps,
            throw=False,
        )
        return _point_and_steps(solution, y.dtype)


def _point_and_steps(solution: optx.Solution, dtype: Any) -> tuple[Array, Array]:
    return solution.value.astype(dtype), jnp.asarray(solution.stats["num_steps"], jnp.int32)


def _in_working_precision(fn: Callable, dtype: Any) -> Callable:
    """A function of y, evaluated in y's ``dtype``, for solvers that keep step sizes and the like in
    JAX's default precision and mix the two."""

    def cast(y: Array, args: Any) -> Array:
        return fn(y.astype(dtype), args).astype(jnp.result_type(float))

    return fn if dtype == jnp.result_type(float) else cast


def _loose_tolerance(y: Array) -> float:
    """From where the polish does the rest."""
    return float(jnp.finfo(y.dtype).eps) ** 0.375


@dataclass(frozen=True)
class _Jaxopt:
    kind: Any
    options: tuple[tuple[str, Hashable], ...]
    max_steps: int
    restartable = False

    def run(self, problem, y, tolerance, share, max_steps):
        del tolerance, share, max_steps
        # Otherwise JAXopt unrolls its loops, many times slower under vmap.
        settings = {"maxiter": self.max_steps, "implicit_diff": True, **dict(self.options)}
        y, state = self.kind(fun=problem.objective, **settings).run(y, problem.args)
        return y, jnp.asarray(state.iter_num, jnp.int32)


@dataclass(frozen=True)
class _Function:
    solver: Callable = field(compare=False)
    key: Hashable  # equal for two solvers that do the same, so that a solve is compiled once
    restartable = False

    def run(self, problem, y, tolerance, share, max_steps):
        del tolerance, share, max_steps
        function, structured = problem.asked.with_structure(y, problem.args)
        found = self.solver(function, structured, *problem.args.params)
        _check_structure(structured, found)
        flat = jnp.concatenate([jnp.ravel(leaf).astype(y.dtype) for leaf in jax.tree.leaves(found)])
        return flat, jnp.array(-1, jnp.int32)


def _function(solver: Callable) -> _Function:
    try:
        return _Function(solver, identity(solver))
    except Opaque:  # by JAX's convention then: the same object does the same
        return _Function(solver, ById(solver))


def _check_structure(expected: Any, found: Any) -> None:
    def describe(tree):
        return jax.tree.map(lambda leaf: (jnp.shape(leaf), jnp.result_type(leaf).name), tree)

    if jax.tree.structure(expected) != jax.tree.structure(found):
        raise ValueError(
            "solver must return a point of y0's structure "
            f"{jax.tree.structure(expected)}; found {jax.tree.structure(found)}."
        )
    if describe(expected) != describe(found):
        raise ValueError(
            "solver must return a point of y0's shapes and dtypes "
            f"{describe(expected)}; found {describe(found)}."
        )
