"""Bounds and their logarithmic barrier, over x = (y, s): the unknowns, and then the slacks s >= 0.

The numbers in parentheses are equations of Wächter & Biegler, On the implementation of an
interior-point filter line-search algorithm for large-scale nonlinear programming, 2006.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Scalar

KAPPA_1, KAPPA_2 = 1e-2, 1e-2  # the start's distance from the bounds, section 3.6
KAPPA_D = 1e-5  # damping where a bound has no opposite, section 3.7
KAPPA_SIGMA = 1e10  # how far multipliers may be from mu / distance, (16)
S_MAX = 100.0  # multipliers up to here leave the error unscaled, (6)


class Point(eqx.Module):
    """x, the multipliers of the rows (equalities, then inequalities), and of the bounds."""

    x: Float[Array, " n+m"]
    rows: Float[Array, " p+m"]
    lower: Float[Array, " n+m"]
    upper: Float[Array, " n+m"]

    def moved(self, direction: "Point", alpha: Scalar) -> "Point":
        """The point ``alpha`` times the direction further."""
        return jax.tree.map(lambda at, step: at + alpha * step, self, direction)


class Bounds(eqx.Module):
    """The bounds of x. Where there is none, or an unknown is fixed, ``has_*`` is False."""

    lower: Float[Array, " n+m"]
    upper: Float[Array, " n+m"]
    has_lower: Bool[Array, " n+m"]
    has_upper: Bool[Array, " n+m"]
    damping: Float[Array, " n+m"]

    def __init__(
        self,
        lower: Float[Array, " n"],
        upper: Float[Array, " n"],
        slacks: int,
        relaxation: Scalar,
    ):
        zero = jnp.zeros(slacks, lower.dtype)
        has_lower = jnp.isfinite(lower) & (lower < upper)
        has_upper = jnp.isfinite(upper) & (lower < upper)
        self.has_lower = jnp.concatenate([has_lower, jnp.full(slacks, True)])
        self.has_upper = jnp.concatenate([has_upper, jnp.full(slacks, False)])
        lower = jnp.concatenate([jnp.where(has_lower, lower, 0), zero])
        upper = jnp.concatenate([jnp.where(has_upper, upper, 0), zero])
        # Section 3.5: bounds that leave no interior get a little of one. It does not grow with the
        # bound, as it does there: the solution is moved back, and has to stay feasible.
        self.lower = lower - relaxation
        self.upper = upper + relaxation
        damped = self.has_lower.astype(lower.dtype) - self.has_upper.astype(lower.dtype)
        self.damping = KAPPA_D * damped

    @property
    def count(self) -> Scalar:
        return jnp.sum(self.has_lower) + jnp.sum(self.has_upper)

    def inside(self, x: Float[Array, " n+m"]) -> Float[Array, " n+m"]:
        """x moved to some distance from the bounds."""
        both = self.has_lower & self.has_upper
        room = jnp.where(both, KAPPA_2 * (self.upper - self.lower), jnp.inf)
        least = self.lower + jnp.minimum(KAPPA_1 * jnp.maximum(1, jnp.abs(self.lower)), room)
        most = self.upper - jnp.minimum(KAPPA_1 * jnp.maximum(1, jnp.abs(self.upper)), room)
        x = jnp.where(self.has_lower, jnp.maximum(x, least), x)
        return jnp.where(self.has_upper, jnp.minimum(x, most), x)

    def distances(self, x: Float[Array, " n+m"]) -> tuple[Array, Array]:
        """To both bounds; one where there is none, and never zero."""
        eps = float(jnp.finfo(x.dtype).eps)
        below = jnp.maximum(x - self.lower, eps / 8 * jnp.maximum(1, jnp.abs(self.lower)))
        above = jnp.maximum(self.upper - x, eps / 8 * jnp.maximum(1, jnp.abs(self.upper)))
        return jnp.where(self.has_lower, below, 1), jnp.where(self.has_upper, above, 1)

    def barrier(self, x: Float[Array, " n+m"]) -> Scalar:
        """The term whose multiple mu is added to the objective."""
        below, above = self.distances(x)
        damped = self.damping * jnp.where(self.damping > 0, x - self.lower, x - self.upper)
        return jnp.sum(damped) - jnp.sum(jnp.log(below)) - jnp.sum(jnp.log(above))

    def slope(self, x: Float[Array, " n+m"], mu: Scalar) -> Float[Array, " n+m"]:
        """The gradient of mu times `barrier`."""
        return self.push(x, mu, mu) + mu * self.damping

    def push(self, x: Float[Array, " n+m"], lower: Array, upper: Array) -> Float[Array, " n+m"]:
        """-z_l + z_u, with the multipliers for which the products are ``lower`` and ``upper``."""
        below, above = self.distances(x)
        return self.has_upper * upper / above - self.has_lower * lower / below

    def curvature(self, point: Point) -> Float[Array, " n+m"]:
        """Sigma, the diagonal of the primal-dual Hessian of the barrier, below (13)."""
        below, above = self.distances(point.x)
        return point.lower / below + point.upper / above

    def products(self, point: Point) -> tuple[Array, Array]:
        """Distances times multipliers, whose common target is mu."""
        below, above = self.distances(point.x)
        return point.lower * below, point.upper * above

    def average(self, point: Point) -> Scalar:
        """Of the products of complementarity."""
        lower, upper = self.products(point)
        return (jnp.sum(lower) + jnp.sum(upper)) / jnp.maximum(self.count, 1)

    def direction(self, point: Point, dx: Array, rows: Array, lower: Array, upper: Array) -> Point:
        """The whole step, for dx and the targets of the products of complementarity, (12)."""
        below, above = self.distances(point.x)
        lower = (lower - point.lower * dx) / below - point.lower
        upper = (upper + point.upper * dx) / above - point.upper
        return Point(
            dx, rows, jnp.where(self.has_lower, lower, 0), jnp.where(self.has_upper, upper, 0)
        )

    def longest(self, point: Point, direction: Point, tau: Scalar | float) -> tuple[Scalar, Scalar]:
        """The step sizes of x and of the multipliers that keep a part 1 - tau of each, (15)."""
        below, above = self.distances(point.x)
        primal = jnp.maximum(
            _largest(jnp.where(self.has_lower, -direction.x / below, 0)),
            _largest(jnp.where(self.has_upper, direction.x / above, 0)),
        )
        dual = jnp.maximum(
            _largest(-direction.lower / jnp.where(self.has_lower, point.lower, 1)),
            _largest(-direction.upper / jnp.where(self.has_upper, point.upper, 1)),
        )
        return tau / jnp.maximum(primal, tau), tau / jnp.maximum(dual, tau)

    def centred(self, x: Float[Array, " n+m"], mu: Scalar) -> tuple[Array, Array]:
        """The multipliers for which every product is mu."""
        below, above = self.distances(x)
        return jnp.where(self.has_lower, mu / below, 0), jnp.where(self.has_upper, mu / above, 0)

    def safeguarded(self, point: Point, mu: Scalar) -> Point:
        """The multipliers brought near to mu / distance, (16)."""
        lower, upper = self.centred(point.x, mu)
        return Point(
            x=point.x,
            rows=point.rows,
            lower=jnp.clip(point.lower, lower / KAPPA_SIGMA, lower * KAPPA_SIGMA),
            upper=jnp.clip(point.upper, upper / KAPPA_SIGMA, upper * KAPPA_SIGMA),
        )


class Errors(eqx.Module):
    """The parts of the optimality error (5)."""

    linear: Scalar  # dual and primal
    lower: Float[Array, " n+m"]  # products of complementarity
    upper: Float[Array, " n+m"]
    scale: Scalar  # by which the products were divided

    def at(self, mu: Scalar | float, bounds: Bounds) -> Scalar:
        """The error in the optimality conditions of the barrier problem for mu."""
        target = mu / self.scale
        lower = jnp.where(bounds.has_lower, self.lower - target, 0)
        upper = jnp.where(bounds.has_upper, self.upper - target, 0)
        return jnp.maximum(self.linear, jnp.maximum(size(lower), size(upper)))


def errors(bounds: Bounds, point: Point, stationarity: Array, violation: Array) -> Errors:
    """Scaled as in (5) and (6)."""
    of_bounds = jnp.sum(point.lower) + jnp.sum(point.upper)
    of_all = of_bounds + jnp.sum(jnp.abs(point.rows))
    dual = jnp.maximum(S_MAX, of_all / jnp.maximum(bounds.count + point.rows.size, 1)) / S_MAX
    scale = jnp.maximum(S_MAX, of_bounds / jnp.maximum(bounds.count, 1)) / S_MAX
    lower, upper = bounds.products(point)
    linear = jnp.maximum(size(stationarity) / dual, size(violation))
    return Errors(linear, lower / scale, upper / scale, scale)


def size(x: Array) -> Scalar:
    return jnp.max(jnp.abs(x), initial=0)


def _largest(x: Array) -> Scalar:
    return jnp.max(x, initial=0)
