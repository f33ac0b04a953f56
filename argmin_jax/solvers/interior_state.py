"""What the interior-point method knows between its steps, and within one."""

import equinox as eqx
from jaxtyping import Array, Bool, Float, Int, Scalar

from .barrier import Errors, Point
from .filter import Filter, Merit
from .kkt_system import Factors, System
from .restoration import Restoration
from .scaled import Here, Scale, Values


class Search(eqx.Module):
    """The line search along a direction."""

    direction: Point
    alpha: Scalar  # as the tests see it, which in second-order corrections is the first one
    slope: Scalar  # of phi
    tiny: Bool[Array, ""]  # the direction is as short as rounding errors
    corrections: Int[Array, ""]
    corrected: Float[Array, " p+m"]  # the violation that the next correction removes
    last_theta: Scalar


class Kept(eqx.Module):
    """What a second-order correction needs of the last direction."""

    system: System
    factors: Factors
    rx: Float[Array, " n+m"]


class State(eqx.Module):
    """The best point so far, and the trial point, where the functions are evaluated next."""

    point: Point
    values: Values
    trial: Point
    forced: Bool[Array, ""]  # the trial point is not to be judged
    # 0: at the given start, for the scale; 1: inside, for the slacks; then 2.
    stage: Int[Array, ""]
    estimate: Bool[Array, ""]  # the multipliers of the rows are to be estimated
    mu: Scalar
    filter: Filter
    first_theta: Scalar
    search: Search
    kept: Kept | None
    last_shift: Scalar
    scale: Scale
    restoration: Restoration
    pull: Float[Array, " n"]  # the gradient of the Lagrangian without bounds
    steps: Int[Array, ""]
    finished: Bool[Array, ""]
    infeasible: Bool[Array, ""]

    @property
    def scaling(self) -> Bool[Array, ""]:
        return self.stage == 0

    @property
    def choosing(self) -> Bool[Array, ""]:
        return self.stage == 1

    @property
    def normal(self) -> Bool[Array, ""]:
        return (self.stage > 1) & ~self.estimate


class Seen(eqx.Module):
    """The trial point, and what the line search says of it."""

    here: Here
    before: Merit
    after: Merit
    accepted: Bool[Array, ""]
    by_armijo: Bool[Array, ""]


class Progress(eqx.Module):
    pull: Float[Array, " n"]
    error: Errors
    converged: Bool[Array, ""]
    infeasible: Bool[Array, ""]
    recovered: Bool[Array, ""]  # restoration has done its work


class Found(eqx.Module):
    """A direction, where the trial point was accepted or is to be corrected."""

    direction: Point
    slope: Scalar  # of phi
    drows: Float[Array, " p+m"]
    tiny: Bool[Array, ""]
    corrected: Float[Array, " p+m"]
    kept: Kept | None
    last_shift: Scalar
    sound: Bool[Array, ""]
