"""Block principal pivoting for strictly convex quadratic programs.

The optimality conditions of min y'Hy/2 + c'y subject to lower <= J y <= upper are, without y, a
linear complementarity problem in the multipliers with the matrix J H^-1 J'. A few guesses at the
active set, each for one Cholesky factorisation, solve it: all rows on the wrong side change at
once (Júdice & Pires, A block principal pivoting algorithm for large-scale strictly monotone linear
complementarity problems, 1994). Where that brings their number down no more the row furthest on
the wrong side changes alone: fewer guesses than with their choice, the last one, though not
certain to end. So the number of guesses is limited; and many more rows than unknowns, with which
the matrix is singular, are no task for this method.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.lax.linalg import cholesky, triangular_solve
from jaxtyping import Array, Bool, Float, Int

from ..triangular import inverse_of_lower
from .barrier import Point
from .scaled import ScaledProgram, Slopes

BLOCKS = 1  # exchanges of all rows that may fail to bring their number down
GUESSES = 15  # after which other methods have their turn
ROWS = 1.25  # for each unknown, at most


class Pivoted(eqx.Module):
    """Where the pivoting ended: a solution, if the last guess was right."""

    point: Point
    count: Int[Array, ""]  # of guesses


class Sides(eqx.Module):
    """The rows that are held at their lower and at their upper limits."""

    lower: Bool[Array, " r"]
    upper: Bool[Array, " r"]


class _State(eqx.Module):
    sides: Sides
    multipliers: Float[Array, " r"]
    wrong: Int[Array, ""]  # rows on the wrong side
    fewest: Int[Array, ""]  # of them so far
    blocks: Int[Array, ""]  # that may still fail
    count: Int[Array, ""]


def has_few_rows(scaled: ScaledProgram) -> bool:
    return scaled.p + scaled.m + scaled.bounded * scaled.n <= ROWS * scaled.n


def pivot(
    scaled: ScaledProgram,
    hessian: Float[Array, "n n"],
    y: Float[Array, " n"],
    slopes: Slopes,
    max_steps: Int[Array, ""],
) -> Pivoted:
    """Where pivoting ends from ``y``, with the slopes there; not finite without convexity."""
    eliminated = _Eliminated(scaled, hessian, y, slopes)
    problem = eliminated.problem

    def goes_on(state: _State):
        return (state.wrong > 0) & (state.count < jnp.minimum(max_steps, GUESSES))

    end = jax.lax.while_loop(goes_on, lambda state: problem.step(state), problem.start())
    return Pivoted(eliminated.point(end), end.count)


class Complementarity(eqx.Module):
    """Multipliers l of the rows v = free - matrix l, which have to be between their limits: l is
    zero inside, not negative at the upper and not positive at the lower limit."""

    matrix: Float[Array, "r r"]
    free: Float[Array, " r"]
    lower: Float[Array, " r"]
    upper: Float[Array, " r"]  # equal to ``lower`` where the row is an equality

    @property
    def equal(self) -> Bool[Array, " r"]:
        return self.lower >= self.upper

    def held(self, sides: Sides) -> Bool[Array, " r"]:
        return self.equal | sides.lower | sides.upper

    def limit(self, sides: Sides) -> Float[Array, " r"]:
        return jnp.where(sides.upper, self.upper, self.lower)

    def values(self, multipliers: Float[Array, " r"]) -> Float[Array, " r"]:
        return self.free - self.matrix @ multipliers

    def start(self) -> _State:
        """With all rows held that are violated without multipliers."""
        inner = ~self.equal
        return _State(
            sides=Sides(inner & (self.free < self.lower), inner & (self.free > self.upper)),
            multipliers=jnp.zeros_like(self.free),
            wrong=jnp.array(1, jnp.int32),
            fewest=jnp.array(self.free.size + 1, jnp.int32),
            blocks=jnp.array(BLOCKS, jnp.int32),
            count=jnp.array(0, jnp.int32),
        )

    def step(self, state: _State) -> _State:
        multipliers = self.multipliers(state.sides)
        below, above, released = self.wrong(state.sides, multipliers)
        exchanged = (below > 0) | (above > 0) | (released > 0)
        wrong = jnp.sum(exchanged).astype(jnp.int32)
        better = wrong < state.fewest
        distances = below + above + released
        furthest = distances == jnp.max(distances, initial=0)
        exchanged = exchanged & (better | (state.blocks > 0) | furthest)
        sides = Sides(
            jnp.where(exchanged, below > 0, state.sides.lower),
            jnp.where(exchanged, above > 0, state.sides.upper),
        )
        return _State(
            sides=sides,
            multipliers=multipliers,
            wrong=wrong,
            fewest=jnp.minimum(wrong, state.fewest),
            blocks=jnp.where(better, BLOCKS, state.blocks - 1),
            count=state.count + 1,
        )

    def multipliers(self, sides: Sides) -> Float[Array, " r"]:
        """Those with which the rows that are held are at their limits, the others being zero."""
        held = self.held(sides)
        own = jnp.diagonal(self.matrix)
        # Rows that depend on others would make it singular.
        apart = float(jnp.finfo(own.dtype).eps) ** 0.8 * jnp.where(own > 0, own, 1)
        both = held[:, None] & held[None]
        matrix = jnp.where(both, self.matrix, 0) + jnp.diag(jnp.where(held, apart, 1))
        right = jnp.where(held, self.free - jnp.where(held, self.limit(sides), 0), 0)[:, None]
        factor = cholesky(matrix.T, symmetrize_input=False)
        forward = triangular_solve(factor, right, left_side=True, lower=True)
        return triangular_solve(factor, forward, left_side=True, lower=True, transpose_a=True)[:, 0]

    def wrong(
        self, sides: Sides, multipliers: Float[Array, " r"]
    ) -> tuple[Float[Array, " r"], Float[Array, " r"], Float[Array, " r"]]:
        """How far rows are below and above their limits, and multipliers on the wrong side of zero,
        in the norm of H; zero where they are not, to rounding."""
        rounding = float(jnp.finfo(multipliers.dtype).eps) ** (2 / 3)
        inside, values = ~self.held(sides), self.values(multipliers)
        level = rounding * jnp.maximum(1, jnp.max(jnp.abs(self.free), initial=0))
        zero = rounding * jnp.max(jnp.abs(multipliers), initial=0)
        length = jnp.sqrt(jnp.diagonal(self.matrix))
        length = jnp.where(length > 0, length, 1)

        def beyond(where, distance, level):
            return jnp.where(where & (distance > level), distance, 0)

        below = beyond(inside, self.lower - values, level) / length
        above = beyond(inside, values - self.upper, level) / length
        released = beyond(sides.upper, -multipliers, zero) + beyond(sides.lower, multipliers, zero)
        return below, above, released * length


class _Eliminated:
    """A quadratic program without its unknowns: y = start - L^-T (forward + half l), H = L L'."""

    def __init__(
        self,
        scaled: ScaledProgram,
        hessian: Float[Array, "n n"],
        start: Float[Array, " n"],
        slopes: Slopes,
    ):
        self.scaled, self.start = scaled, start
        # The transpose is the matrix itself, in the order that LAPACK reads without a copy.
        self.inverse = inverse_of_lower(cholesky(hessian.T, symmetrize_input=False))
        self.forward = self.inverse @ slopes.gradient
        half = self.inverse @ scaled.jacobian.T
        values = slopes.c
        zero, infinite = jnp.zeros_like(values), jnp.full(scaled.m, jnp.inf, start.dtype)
        lower, upper = jnp.concatenate([zero[: scaled.p], -infinite]), zero
        if scaled.bounded:
            program = scaled.program
            half = jnp.concatenate([half, self.inverse], axis=1)
            values = jnp.concatenate([values, start])
            lower = jnp.concatenate([lower, program.lower])
            upper = jnp.concatenate([upper, program.upper])
        self.half = half
        self.problem = Complementarity(
            matrix=half.T @ half,
            free=values - half.T @ self.forward,
            lower=lower,
            upper=upper,
        )

    def point(self, end: _State) -> Point:
        p, m = self.scaled.p, self.scaled.m
        problem, multipliers = self.problem, end.multipliers
        held, values = problem.held(end.sides), problem.values(multipliers)
        slacks = jnp.where(held, 0, -values)[p : p + m]
        y = self.start - self.inverse.T @ (self.forward + self.half @ multipliers)
        of_bounds = jnp.zeros_like(y)
        if self.scaled.bounded:
            y = jnp.where(held[p + m :], problem.limit(end.sides)[p + m :], y)
            of_bounds = jnp.where(self.scaled.fixed, 0, multipliers[p + m :])
        rows = multipliers[: p + m]
        return Point(
            x=jnp.concatenate([y, jnp.maximum(slacks, 0)]),
            rows=rows,
            lower=jnp.concatenate([jnp.maximum(-of_bounds, 0), jnp.maximum(rows[p:], 0)]),
            upper=jnp.concatenate([jnp.maximum(of_bounds, 0), jnp.zeros(m, y.dtype)]),
        )
