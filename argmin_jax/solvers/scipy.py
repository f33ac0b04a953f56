"""SciPy's minimisers, which run on the host, inside programs that JAX compiles.

SciPy calls the objective; under `jax.jit` the objective can only be computed by the program that
is waiting for SciPy. (JAX called from inside a callback of JAX can wait for ever for a processor:
jax-ml/jax#24255.) So the two hold a conversation: the program computes value and gradient at a
point, tells them to SciPy, which runs in a thread of its own, and is told the next point.
"""

import itertools
import threading
import warnings
from collections.abc import Hashable
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Scalar

from ..problem import Arguments, Problem, check_choice

# What each method asks of the objective.
_BY_VALUES = ("nelder-mead", "powell", "cobyla", "cobyqa")
_BY_GRADIENTS = ("cg", "bfgs", "l-bfgs-b", "tnc", "slsqp", "trust-constr")
_BY_PRODUCTS = ("newton-cg", "trust-ncg", "trust-krylov")
_BY_MATRICES = ("dogleg", "trust-exact")


class Scipy:
    """A method of `scipy.optimize.minimize`, with derivatives by JAX; for problems that are small
    or a method that is nowhere else, as every step leaves the device.

    Works under `jax.jit`, `jax.grad` and `jax.vmap` (one lane after the other).

    Args:
        method: its name: "BFGS", "L-BFGS-B", "Nelder-Mead", "trust-krylov", ...
        tol: `minimize`'s tolerance; by default each method's own.
        **options: of that method, hashable; the bound on its steps is by default the layer's
            ``max_steps``.

    Raises:
        ImportError: SciPy is not installed.
        ValueError: there is no such method, it needs the Hessian as a matrix, or it has not such
            an option.
    """

    def __init__(self, method: str = "BFGS", tol: float | None = None, **options: Hashable):
        try:
            import scipy.optimize
        except ImportError as error:
            raise ImportError("Scipy needs the package scipy: pip install scipy.") from error
        self.method = method.lower() if isinstance(method, str) else method
        if self.method in _BY_MATRICES:
            raise ValueError(
                f"method {method!r} needs the Hessian as a matrix; take one that works with "
                'products, such as "trust-krylov" or "trust-ncg".'
            )
        check_choice("method", self.method, (*_BY_VALUES, *_BY_GRADIENTS, *_BY_PRODUCTS))
        self.tol = tol
        self.options = tuple(sorted(options.items()))
        with warnings.catch_warnings():
            warnings.simplefilter("error", scipy.optimize.OptimizeWarning)
            try:  # on a parabola, as SciPy looks at options only when it runs
                _minimize(self, options, _parabola, np.ones(1))
            except (scipy.optimize.OptimizeWarning, TypeError, ValueError) as error:
                raise ValueError(
                    f"scipy.optimize.minimize(method={method!r}) refuses its options: {error} "
                    "Constraints and bounds are options of argmin."
                ) from error

    def __eq__(self, other):
        return isinstance(other, Scipy) and self._key == other._key

    def __hash__(self):
        return hash(self._key)

    @property
    def _key(self):
        return self.method, self.tol, self.options

    @property
    def by_products(self) -> bool:
        return self.method in _BY_PRODUCTS


def _minimize(solver: Scipy, options: dict, answer: Any, start: np.ndarray) -> Any:
    """SciPy's own loop, where ``answer(point, direction)`` gives value, gradient and H d."""
    import scipy.optimize

    arguments: dict[str, Any] = {"fun": lambda y: answer(y, None)[:2], "jac": True}
    if solver.method in _BY_VALUES:
        arguments = {"fun": lambda y: answer(y, None)[0]}
    if solver.by_products:
        arguments["hessp"] = lambda y, direction: answer(y, direction)[2]
    return scipy.optimize.minimize(
        x0=start, method=solver.method, tol=solver.tol, options=options, **arguments
    )


def _parabola(y: np.ndarray, direction: np.ndarray | None):
    return float(y @ y), 2 * y, None if direction is None else 2 * direction


@dataclass(frozen=True)
class ScipyMinimiser:
    """`Scipy` as a `Minimiser`."""

    solver: Scipy
    max_steps: int
    restartable = False

    def run(
        self,
        problem: Problem,
        y: Float[Array, " n"],
        tolerance: Scalar,
        share: Scalar,
        max_steps: Array,
    ) -> tuple[Float[Array, " n"], Int[Array, ""]]:
        del tolerance, share, max_steps

        def hessian_product(turn: _Turn, args: Arguments) -> Array:
            gradient = jax.grad(problem.objective)
            return jax.jvp(lambda y: gradient(y, args), (turn.point,), (turn.direction,))[1]

        def next_turn(turn: _Turn, args: Arguments) -> _Turn:
            found = jax.value_and_grad(problem.objective)(turn.point, args)
            product = jnp.zeros_like(turn.point)
            if self.solver.by_products:
                product = jax.lax.cond(
                    jnp.any(turn.direction != 0),
                    lambda: hessian_product(turn, args),
                    lambda: product,
                )
            return jax.pure_callback(
                self._converse, turn, turn, *found, product, vmap_method="sequential"
            )

        # One lane after the other, each to its end: one conversation at a time.
        @jax.custom_batching.sequential_vmap
        def descend(y, args):
            number = jnp.array(-1, jnp.int32)
            turn = _Turn(number, y, jnp.zeros_like(y), jnp.array(False), number)
            return jax.lax.while_loop(
                lambda turn: ~turn.finished, lambda turn: next_turn(turn, args), turn
            )

        last = descend(y, problem.args)
        return last.point, last.steps

    def _converse(self, turn: "_Turn", value, gradient, product) -> "_Turn":
        """On the host: tells SciPy what it asked for, and returns what it asks for next."""
        point, number = np.asarray(turn.point), int(turn.number)
        if number < 0:
            talk = _Conversation(self._options(), self.solver, point)
        else:
            talk = _conversations[number]
            derivatives = (np.asarray(x, np.float64) for x in (gradient, product))
            talk.answers.put((float(value), *derivatives))
        question = talk.questions.get()
        finished = question is None
        if finished:
            del _conversations[talk.number]
            question = talk.end, np.zeros_like(point)
        asked, direction = (x.astype(point.dtype) for x in question)
        number, steps = np.int32(talk.number), np.int32(talk.steps)
        return _Turn(number, asked, direction, np.bool_(finished), steps)

    def _options(self) -> dict[str, Any]:
        bound = "maxfun" if self.solver.method == "tnc" else "maxiter"
        return {bound: self.max_steps, **dict(self.solver.options)}


class _Turn(eqx.Module):
    """What SciPy asks for next, or where it ended; arrays of JAX or, on the host, of NumPy."""

    number: Any  # of the conversation; -1 before it begins
    point: Any
    direction: Any  # whose product with the Hessian is asked for; zero if none is
    finished: Any
    steps: Any  # -1 before the end


class _Conversation:
    """SciPy in a thread, which waits for answers to its questions; the last question is None."""

    def __init__(self, options: dict[str, Any], solver: Scipy, start: np.ndarray):
        self.questions: SimpleQueue = SimpleQueue()
        self.answers: SimpleQueue = SimpleQueue()
        self.end, self.steps = start, -1
        self.number = next(_numbers) % 2**31
        _conversations[self.number] = self
        threading.Thread(target=self._run, args=(solver, options), daemon=True).start()

    def _run(self, solver: Scipy, options: dict[str, Any]) -> None:
        try:
            found = _minimize(solver, options, self._ask, self.end.astype(np.float64))
            self.end, self.steps = found.x, found.get("nit", found.nfev)
        except ValueError:  # about numbers that are not finite: the report will tell of them
            pass
        finally:
            self.questions.put(None)

    def _ask(self, point: np.ndarray, direction: np.ndarray | None) -> tuple:
        self.end = point.copy()
        self.questions.put((self.end, np.zeros_like(point) if direction is None else direction))
        return self.answers.get()


_numbers = itertools.count()
_conversations: dict[int, _Conversation] = {}  # those under way
