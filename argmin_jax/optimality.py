"""What "solved" means: the optimality residual of a point, and the scale it is measured on.

A point is judged by these functions alone, whichever solver produced it. Each kind of problem has
its conditions: a residual F(z, theta) that is zero at a solution z, and its Jacobian K = dF/dz.

With constraints, z holds y and the multipliers, and F depends on which constraints are active; with
these given it is smooth, and the implicit function theorem applies to it as to any other residual.
"""

import abc
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
from jaxtyping import Array, Bool, Float, Scalar

from .operators import Jacobian
from .program import Arguments, Objective, VectorFunction


class Active(eqx.Module):
    """Which inequalities and bounds hold as equalities; the equalities always do."""

    ineq: Bool[Array, " m"]
    lower: Bool[Array, " n"]
    upper: Bool[Array, " n"]

    @property
    def fixed(self) -> Bool[Array, " n"]:
        return self.lower | self.upper


class Conditions(eqx.Module):
    """What a solution satisfies: ``residual(z, args, active) == 0``. Instances hold no arrays."""

    tags: eqx.AbstractClassVar[frozenset[object]]
    """What is known of K, in Lineax's words."""

    @property
    def symmetric(self) -> bool:
        return bool(self.tags & {lx.symmetric_tag, lx.positive_semidefinite_tag})

    @abc.abstractmethod
    def residual(
        self, z: Float[Array, " k"], args: Arguments, active: Active | None = None
    ) -> Float[Array, " k"]:
        """F(z, theta)."""

    def jacobian(
        self, z: Float[Array, " k"], args: Arguments, active: Active | None = None
    ) -> lx.AbstractLinearOperator:
        """K = dF/dz, as a Lineax operator that is never formed here."""
        return Jacobian(self._residual_at, z, (args, active), self.tags)

    def _residual_at(self, z, rest):
        return self.residual(z, *rest)


class Stationary(Conditions):
    """Of an unconstrained minimum: the gradient is zero. K is the Hessian.

    K carries the tag `positive_semidefinite`, which holds at every minimum, so that each of
    Lineax's solvers accepts it. Whether it holds *here* is for `forward` to judge.
    """

    objective: Objective
    tags: ClassVar[frozenset[object]] = frozenset({lx.positive_semidefinite_tag})

    def residual(self, z, args, active=None) -> Float[Array, " n"]:
        return jax.grad(self.objective)(z, args)

    def primal(self, z: Float[Array, " n"]) -> Float[Array, " n"]:
        return z

    def value(self, z: Float[Array, " n"], args: Arguments) -> Scalar:
        """The objective: its partial derivative in ``args`` is that of the optimal value."""
        return self.objective(z, args)


class Zero(Conditions):
    """Of a root: the function is zero. K is its Jacobian, of no particular kind."""

    function: VectorFunction
    tags: ClassVar[frozenset[object]] = frozenset()

    def residual(self, z, args, active=None) -> Float[Array, " n"]:
        return self.function(z, args)


class Fixed(Conditions):
    """Of a fixed point: the map returns its argument. K is the map's Jacobian less the identity."""

    function: VectorFunction
    tags: ClassVar[frozenset[object]] = frozenset()

    def residual(self, z, args, active=None) -> Float[Array, " n"]:
        return self.function(z, args) - z


class Multipliers(eqx.Module):
    """A point z, taken apart. ``bounds`` is positive at an upper bound, negative at a lower."""

    y: Float[Array, " n"]
    eq: Float[Array, " p"]
    ineq: Float[Array, " m"]
    bounds: Float[Array, " n"]

    @property
    def lower(self) -> Float[Array, " n"]:
        return jnp.maximum(-self.bounds, 0)

    @property
    def upper(self) -> Float[Array, " n"]:
        return jnp.maximum(self.bounds, 0)


class KarushKuhnTucker(Conditions):
    """Of a constrained minimum (Nocedal & Wright, Numerical Optimization, 2006, theorem 12.1).

    z = (y, nu, lambda, mu): the point and the multipliers of equalities, inequalities and bounds,
    the last signed. With a and b telling which inequalities and bounds are active,

        F = (grad f + h'^T nu + g'^T (a lambda) + b mu,    h,    a g - (1 - a) lambda,
             b (y - bound) - (1 - b) mu),

    so that an inactive constraint has the multiplier zero. K is symmetric.
    """

    objective: "Objective | Barrier"
    eq: VectorFunction | None
    ineq: VectorFunction | None
    bounded: bool = eqx.field(static=True)
    size: int = eqx.field(static=True)  # of y
    tags: ClassVar[frozenset[object]] = frozenset({lx.symmetric_tag})

    @property
    def rows(self) -> tuple[int, int]:
        """The numbers of equalities and of inequalities."""
        return (0 if self.eq is None else self.eq.size), (
            0 if self.ineq is None else self.ineq.size
        )

    def split(self, z: Float[Array, " k"]) -> Multipliers:
        n, (p, m) = self.size, self.rows
        bounds = z[n + p + m :] if self.bounded else jnp.zeros(n, z.dtype)
        return Multipliers(z[:n], z[n : n + p], z[n + p : n + p + m], bounds)

    def primal(self, z: Float[Array, " k"]) -> Float[Array, " n"]:
        return z[: self.size]

    def multipliers(self, z: Float[Array, " k"], args: Arguments) -> Multipliers:
        """The point with the multipliers that a user gets to see."""
        return self.split(z)

    def join(self, parts: Multipliers) -> Float[Array, " k"]:
        bounds = [parts.bounds] if self.bounded else []
        return jnp.concatenate([parts.y, parts.eq, parts.ineq, *bounds])

    def constraints(self, y: Float[Array, " n"], args: Arguments) -> Float[Array, " r"]:
        """h and g, one after the other."""
        found = [fn(y, args) for fn in (self.eq, self.ineq) if fn is not None]
        return jnp.concatenate([jnp.zeros(0, y.dtype), *found])

    def value(self, z: Float[Array, " k"], args: Arguments) -> Scalar:
        """The Lagrangian: its partial derivative in ``args`` is that of the optimal value."""
        at = self.split(z)
        total = self.objective(at.y, args)
        total += jnp.concatenate([at.eq, at.ineq]) @ self.constraints(at.y, args)
        if args.bounds is not None:
            lower, upper = args.bounds
            total += _product(at.lower, lower - at.y) + _product(at.upper, at.y - upper)
        return total

    def residual(self, z, args, active=None) -> Float[Array, " k"]:
        assert active is not None
        at = self.split(z)
        a = active.ineq.astype(z.dtype)

        def lagrangian(y):
            multipliers = jnp.concatenate([at.eq, a * at.ineq])
            values = self.constraints(y, args)
            return self.objective(y, args) + multipliers @ values, values

        gradient, values = jax.grad(lagrangian, has_aux=True)(at.y)
        p, _ = self.rows
        parts = [values[:p], a * values[p:] - (1 - a) * at.ineq]
        if args.bounds is not None:
            lower, upper = args.bounds
            # Of the other bound, which may be infinite, nothing may reach the derivative.
            bound = jnp.where(active.lower, lower, jnp.where(active.upper, upper, 0))
            gradient += jnp.where(active.fixed, at.bounds, 0)
            parts.append(jnp.where(active.fixed, at.y - bound, -at.bounds))
        return jnp.concatenate([gradient, *parts])


class Slacks(eqx.Module):
    """How far a point is inside; inf where there is no bound, and where a variable is fixed."""

    ineq: Float[Array, " m"]
    lower: Float[Array, " n"]
    upper: Float[Array, " n"]


class Barrier(eqx.Module):
    """f less mu times the logarithms of all slacks, as an objective. Instances hold no arrays."""

    objective: Objective
    ineq: VectorFunction | None
    mu: float = eqx.field(static=True)

    def slacks(self, y: Float[Array, " n"], args: Arguments) -> Slacks:
        ineq = jnp.zeros(0, y.dtype) if self.ineq is None else -self.ineq(y, args)
        infinite = jnp.full_like(y, jnp.inf)
        lower, upper = (-infinite, infinite) if args.bounds is None else args.bounds
        movable = lower < upper
        has_lower, has_upper = movable & jnp.isfinite(lower), movable & jnp.isfinite(upper)
        # Nothing of a bound that is infinite may reach the derivative.
        below = y - jnp.where(has_lower, lower, 0)
        above = jnp.where(has_upper, upper, 0) - y
        return Slacks(
            ineq, jnp.where(has_lower, below, jnp.inf), jnp.where(has_upper, above, jnp.inf)
        )

    def __call__(self, y: Float[Array, " n"], args: Arguments) -> Scalar:
        slacks = jnp.concatenate(jax.tree.leaves(self.slacks(y, args)))
        logarithms = jnp.log(jnp.where(slacks < jnp.inf, slacks, 1))
        return self.objective(y, args) - self.mu * jnp.sum(logarithms)


class CentralPath(KarushKuhnTucker):
    """Of a minimum of f - mu sum(log slacks) subject to the equalities: a point of the central path
    (Nocedal & Wright, Numerical Optimization, 2006, section 19.1). No inequality is ever active;
    those of a constrained minimum with the multipliers mu / slack hold but for complementarity,

        grad f + h'^T nu + g'^T lambda - lambda_l + lambda_u = 0,    h = 0,    slack * lambda = mu.

    The objective is a `Barrier`, and z is that of `KarushKuhnTucker` with every inequality
    inactive: only the multipliers of equalities and of fixed variables in it are not zero.
    """

    @property
    def barrier(self) -> Barrier:
        assert isinstance(self.objective, Barrier)
        return self.objective

    @property
    def limit(self) -> KarushKuhnTucker:
        """The conditions where mu is zero."""
        return KarushKuhnTucker(self.barrier.objective, self.eq, self.ineq, self.bounded, self.size)

    def multipliers(self, z: Float[Array, " k"], args: Arguments) -> "PathMultipliers":
        at, mu = self.split(z), self.barrier.mu
        slacks = self.barrier.slacks(at.y, args)
        return PathMultipliers(
            y=at.y,
            eq=at.eq,
            ineq=mu / slacks.ineq,
            bounds=at.bounds,
            of_lower=mu / slacks.lower,
            of_upper=mu / slacks.upper,
        )


class PathMultipliers(Multipliers):
    """Of both bounds of a variable at once; ``bounds`` holds those of fixed variables."""

    of_lower: Float[Array, " n"]
    of_upper: Float[Array, " n"]

    @property
    def lower(self) -> Float[Array, " n"]:
        return self.of_lower + super().lower

    @property
    def upper(self) -> Float[Array, " n"]:
        return self.of_upper + super().upper


def _product(multipliers: Float[Array, " n"], gaps: Float[Array, " n"]) -> Scalar:
    """The sum of the products, without those of multiplier zero, whose gaps may be infinite."""
    held = multipliers != 0
    return jnp.sum(jnp.where(held, multipliers * jnp.where(held, gaps, 0), 0))


def probe(y: Float[Array, " n"]) -> Float[Array, " n"]:
    """A displacement of unit relative size: |v_i| between half of max(1, |y_i|) and the whole.

    Signs and sizes are those of fixed quasi-random sequences, so that the probe lies in no subspace
    that a problem's structure singles out (the constant vectors, say, on which every difference
    operator vanishes, or those whose entries add up to zero).
    """
    places = jnp.arange(y.size, dtype=y.dtype)
    signs = jnp.where(_fraction(places * (5**0.5 - 1) / 2) < 0.5, 1.0, -1.0).astype(y.dtype)
    return signs * (1 - _fraction(places * 2**0.5) / 2) * jnp.maximum(jnp.abs(y), 1)


def _fraction(x: Array) -> Array:
    return x - jnp.floor(x)


def stationarity(residual: Float[Array, " n"], response: Float[Array, " n"]) -> Scalar:
    """The scaled optimality residual ||F||_inf / ||K v||_inf; ``response`` is K v, v = probe(y).

    K v is the change of F under a displacement of relative size one, so the quotient is a relative
    error: it does not change when F, or the objective, is multiplied by a constant, and 1 means as
    far from solved as a point one (relative) unit away. It is 0 where F vanishes, and inf where it
    does not though K does.
    """
    return quotient(jnp.max(jnp.abs(residual)), jnp.max(jnp.abs(response)))


def quotient(size: Array, scale: Array) -> Array:
    """``size / scale``, 0 where the size is, else inf where the scale is zero."""
    found = size / jnp.where(scale > 0, scale, 1)
    return jnp.where(size == 0, 0, jnp.where(scale > 0, found, jnp.inf)).astype(size.dtype)
