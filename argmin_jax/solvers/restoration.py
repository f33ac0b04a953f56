"""What takes the place of the objective where no step along a direction is accepted."""

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Scalar

from .barrier import Bounds, Point, size

ENOUGH = 0.9  # the violation has to fall below this part, section 3.3


class Restoration(eqx.Module):
    """While active, |c|^2 / (2 unit) is minimised under the bounds, from near a reference.

    In section 3.3 of Wächter & Biegler 2006 the violation is measured in the 1-norm. By its
    square the rows' multipliers are c / unit, and the system of a step is the ordinary one, with
    ``unit`` for the relaxation of the rows. A term sqrt(mu) |D (y - reference)|^2 / 2 holds y
    back, with their D.
    """

    active: Bool[Array, ""]
    unit: Scalar  # the largest violation at its start
    reference: Float[Array, " n"]
    theta: Scalar  # the violation at its start
    mu: Scalar  # the barrier parameter of the problem itself, meanwhile

    def objective(self, x: Float[Array, " n+m"], c: Float[Array, " p+m"], mu: Scalar) -> Scalar:
        away = self._near() * self._away(x)
        return c @ c / (2 * self.unit) + jnp.sqrt(mu) / 2 * (away @ away)

    def slope(self, x: Float[Array, " n+m"], mu: Scalar) -> Float[Array, " n"]:
        """Of the term that holds y back."""
        return jnp.where(self.active, jnp.sqrt(mu) * self._near() ** 2 * self._away(x), 0)

    def curvature(self, mu: Scalar) -> Float[Array, " n"]:
        return jnp.where(self.active, jnp.sqrt(mu) * self._near() ** 2, 0)

    def is_stationary(
        self,
        bounds: Bounds,
        point: Point,
        c: Float[Array, " p+m"],
        stationarity: Float[Array, " n+m"],
        tolerance: Scalar,
    ) -> Bool[Array, ""]:
        """Whether |c| is positive and no feasible direction makes it smaller."""
        # The rows' multipliers are c / unit: relative to them
        unit = jnp.maximum(size(point.rows), float(jnp.finfo(c.dtype).eps))
        lower, upper = bounds.products(point)
        residual = jnp.maximum(size(stationarity), jnp.maximum(size(lower), size(upper)))
        return (size(c) > 10 * tolerance) & (residual <= tolerance**0.75 * unit)

    def _near(self) -> Float[Array, " n"]:
        return 1 / jnp.maximum(1, jnp.abs(self.reference))

    def _away(self, x: Float[Array, " n+m"]) -> Float[Array, " n"]:
        return x[: self.reference.size] - self.reference
