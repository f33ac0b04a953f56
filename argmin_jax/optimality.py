"""What "solved" means: the optimality residual of a point, and the scale it is measured on.

A point is judged by these functions alone, whichever solver produced it.
"""

import jax
import jax.numpy as jnp
import lineax as lx
from jaxtyping import Array, Float, Scalar

from .operators import Jacobian
from .problem import Arguments, Objective


def residual(objective: Objective, y: Float[Array, " n"], args: Arguments) -> Float[Array, " n"]:
    """F(y, theta): the gradient of the objective in y, zero at a solution."""
    return jax.grad(objective)(y, args)


def jacobian(
    objective: Objective, y: Float[Array, " n"], args: Arguments
) -> lx.AbstractLinearOperator:
    """K = dF/dy, the Hessian of the objective, as a Lineax operator that is never formed here.

    It carries the tag `positive_semidefinite`, which holds at every minimum, so that each of
    Lineax's solvers accepts it. Whether it holds *here* is for `report` to judge.
    """
    return Jacobian(jax.tree_util.Partial(residual, objective), y, args)


def probe(y: Float[Array, " n"]) -> Float[Array, " n"]:
    """A displacement of unit relative size: |v_i| = max(1, |y_i|), with signs that vary.

    The signs are those of a fixed quasi-random sequence, so that the probe lies in no subspace
    that a problem's structure singles out (the constant vectors, say, on which every difference
    operator vanishes).
    """
    golden = (5**0.5 - 1) / 2
    turns = jnp.arange(y.size, dtype=y.dtype) * golden
    signs = jnp.where(turns - jnp.floor(turns) < 0.5, 1.0, -1.0).astype(y.dtype)
    return signs * jnp.maximum(jnp.abs(y), 1)


def stationarity(gradient: Float[Array, " n"], response: Float[Array, " n"]) -> Scalar:
    """The scaled optimality residual ||F||_inf / ||K v||_inf; ``response`` is K v, v = probe(y).

    K v is the change of the gradient under a displacement of relative size one, so the quotient
    is a relative error: it does not change when the objective is multiplied by a constant, and
    1 means as far from stationary as a point one (relative) unit away. It is 0 where the
    gradient vanishes, and inf where it does not though the Hessian does.
    """
    size = jnp.max(jnp.abs(gradient))
    scale = jnp.max(jnp.abs(response))
    quotient = size / jnp.where(scale > 0, scale, 1)
    return jnp.where(size == 0, 0, jnp.where(scale > 0, quotient, jnp.inf)).astype(size.dtype)
