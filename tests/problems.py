"""Problems whose solutions and derivatives are known in closed form or by dense algebra, and what
several files ask of programs and numbers."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def cube_root(y, t):
    """sum(y^4/4 - t y): y* = t^(1/3), dy*/dt = t^(-2/3) / 3."""
    return jnp.sum(y**4 / 4 - t * y)


def ridge(w, x, t, log_lambda):
    """mean((X w - t)^2) + lambda mean(w^2), for a vector or a matrix of weights."""
    return jnp.mean((x @ w - t) ** 2) + jnp.exp(log_lambda) * jnp.mean(w**2)


def ridge_solution(x, t, log_lambda):
    """The minimiser of `ridge` from its normal equations."""
    gram = x.T @ x / t.size
    columns = 1 if t.ndim == 1 else t.shape[1]
    shrinkage = jnp.exp(log_lambda) / (x.shape[1] * columns)
    return jnp.linalg.solve(gram + shrinkage * jnp.eye(x.shape[1], dtype=x.dtype), x.T @ t / t.size)


def logistic(w, x, labels, log_lambda):
    """Mean logistic loss with a squared penalty; labels in {0, 1}, of any dtype."""
    margins = x @ w
    loss = jnp.mean(jnp.logaddexp(0.0, margins) - labels.astype(x.dtype) * margins)
    return loss + jnp.exp(log_lambda) * jnp.sum(w**2) / 2


def rosenbrock(y, a):
    """The banana valley; its minimum is at (a, a^2, a^4, ...) with value 0 in two dimensions."""
    return jnp.sum(100 * (y[1:] - y[:-1] ** 2) ** 2 + (a - y[:-1]) ** 2)


def quadratic(y, matrix, linear):
    """y' A y / 2 - b' y: y* = A^-1 b."""
    return y @ matrix @ y / 2 - linear @ y


def random_spd(seed: int, n: int, condition: float = 10.0) -> jax.Array:
    """A symmetric positive definite matrix with eigenvalues spread from 1 to ``condition``."""
    rng = np.random.default_rng(seed)
    q, _ = np.linalg.qr(rng.normal(size=(n, n)))
    return jnp.asarray((q * np.geomspace(1, condition, n)) @ q.T)


def regression(seed: int, samples: int, features: int, outputs: int | None = None):
    """A design matrix and targets of standard normal numbers."""
    rng = np.random.default_rng(seed)
    shape = (samples,) if outputs is None else (samples, outputs)
    return jnp.asarray(rng.normal(size=(samples, features))), jnp.asarray(rng.normal(size=shape))


def implicit_jacobian(objective: Callable, y: jax.Array, *params: Any) -> jax.Array:
    """dy*/dparams[0] = -H^-1 R by dense algebra at a given minimiser y, both flat."""
    hessian = jax.hessian(objective)(y, *params)
    cross = jax.jacfwd(jax.grad(objective), argnums=1)(y, *params)
    n = y.size
    flat = -jnp.linalg.solve(hessian.reshape(n, n), cross.reshape(n, -1))
    return flat.reshape(y.shape + jnp.shape(params[0]))


def central_difference(fn: Callable, x: jax.Array, direction: jax.Array, step: float = 1e-5):
    """The derivative of ``fn`` along ``direction``; its error is of the order of step^2."""
    return (fn(x + step * direction) - fn(x - step * direction)) / (2 * step)


def compiled(fn: Callable, *args: Any) -> str:
    """The text of a compiled program, by all of XLA's passes, as a user's program goes through."""
    program = jax.jit(fn).lower(*args).compile(compiler_options={"xla_disable_hlo_passes": ""})
    text = program.as_text()
    assert text is not None
    return text


def assert_close(found: Any, expected: Any, relative: float) -> None:
    """Every leaf agrees to ``relative`` times the largest entry of the expected leaf."""
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for f, e in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        size = np.max(np.abs(e))
        np.testing.assert_allclose(f, e, rtol=0, atol=relative * (size if size > 0 else 1.0))
