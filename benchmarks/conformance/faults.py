"""Problems without constraints on which some library of the field is known to go wrong, and those
that have no gradient to give."""

import jax.numpy as jnp
import numpy as np

from .oracle import lasso_solution, least_squares_points
from .problem import Ask, Form, Problem

N = 6
RNG = np.random.default_rng(7)
ROTATION = np.linalg.qr(RNG.normal(size=(N, N)))[0]
B = RNG.normal(size=N)


def with_condition(kappa: float) -> np.ndarray:
    """A symmetric matrix with eigenvalues from 1 to kappa."""
    return (ROTATION * np.geomspace(1, kappa, N)) @ ROTATION.T


def quadratic(xp, y, a, b):
    return y @ a @ y / 2 - b @ y


def quadratic_solution(a, b):
    return jnp.linalg.solve((a + a.T) / 2, b)


def quartic_well(xp, y, t):
    """sum(z^4/4 + z^2/2 - t z) with z = Q y: z^3 + z = t."""
    z = xp.asarray(ROTATION, dtype=y.dtype) @ y
    return (z**4 / 4 + z**2 / 2 - t * z).sum()


def quartic_well_solution(t):
    """Cardano's formula: z^3 + z = t has one real root."""
    root = jnp.sqrt(t**2 / 4 + 1 / 27)
    return ROTATION.T @ (jnp.cbrt(t / 2 + root) + jnp.cbrt(t / 2 - root))


def cosh_valley(xp, y, t):
    """Convex and far from quadratic: y* = arcsinh(t) / (1, 2, ..., n)."""
    rate = xp.arange(1, len(y) + 1, dtype=y.dtype)
    return (xp.cosh(rate * y) / rate - t * y).sum()


def cosh_valley_solution(t):
    return jnp.arcsinh(t) / jnp.arange(1, t.size + 1)


def with_predictions(xp, y, a, b, t):
    """A quadratic, and as auxiliary output something that depends on y and on a param."""
    return quadratic(xp, y, a, b), y**2 * t


def wide_least_squares(xp, y, b):
    """Fewer equations than unknowns: a plane of minimisers."""
    return ((xp.asarray(WIDE, dtype=y.dtype) @ y - b) ** 2).sum() / 2


WIDE = RNG.normal(size=(3, N))


def exponential_fit(xp, y, times, values):
    return y[0] * xp.exp(-y[1] * times) - values


TIMES = np.linspace(0.0, 3.0, 12)
# Noise of half the signal: the second derivatives of the residual matter.
NOISY = 2.0 * np.exp(-TIMES) + 0.5 * RNG.normal(size=12)


def double_well(xp, y, t):
    return ((y**2 - t) ** 2).sum()


def curved(xp, y, a, b):
    """a > 0: a minimum at b / a. a < 0: no minimum."""
    return (a * y**2 / 2 - b * y).sum()


def shared_scale(xp, y, b, scale):
    return (xp.cosh(y) * scale - b * y).sum()


def flat_at_the_minimum(xp, y, t):
    return (y[0] - t[0]) ** 2 + (y[1] - t[1]) ** 4


def soft_threshold(xp, y, t):
    return (xp.abs(y) + (y - t) ** 2 / 2).sum()


def logarithm(xp, y, t):
    return (y - t * xp.log(y)).sum()


def unattained(xp, y, t):
    return xp.exp(-t * y).sum()


def linear(xp, y, t):
    return (t * y).sum()


def in_small_units(xp, y, a, b):
    return 1e-9 * quadratic(xp, y, a, b)


UNITS = np.array([1e-4, 1e-2, 1.0, 1.0, 1e2, 1e4])


def unequal_units(xp, y, t):
    units = xp.asarray(UNITS, dtype=y.dtype)
    z = y / units
    return (z**2 / 2 - t * z).sum() + (z[:-1] * z[1:]).sum() / 4


def unequal_units_solution(t):
    n = t.size
    matrix = np.eye(n) + (np.eye(n, k=1) + np.eye(n, k=-1)) / 4
    return UNITS * jnp.linalg.solve(jnp.asarray(matrix), t)


def proximal_gradient(xp, w, x, t, penalty):
    """One step of proximal gradient descent on |X w - t|^2 / 2 + penalty |w|_1 (ISTA); its fixed
    point is the lasso's solution."""
    step = 1 / LIPSCHITZ
    moved = w - step * (x.T @ (x @ w - t))
    return xp.sign(moved) * xp.clip(xp.abs(moved) - step * penalty, 0)


X = RNG.normal(size=(30, N))
LIPSCHITZ = float(np.linalg.norm(X, 2) ** 2)
SPARSE = X @ np.array([2.0, 0, 0, -1.5, 0, 0]) + 0.1 * RNG.normal(size=30)

ZEROS, ONES = np.zeros(N), np.ones(N)
QUADRATIC = with_condition(10.0)
SYMMETRIC = "closed form: y* = A^-1 b"

FAULTS = (
    Problem(
        "ill-conditioned quadratic, 1e4",
        f"{SYMMETRIC}; float32 leaves three digits",
        quadratic, ZEROS, (with_condition(1e4), B), (quadratic_solution,), condition=1e4,
    ),
    Problem(
        "ill-conditioned quadratic, 1e6",
        f"{SYMMETRIC}; float64 leaves ten digits, float32 none",
        quadratic, ZEROS, (with_condition(1e6), B), (quadratic_solution,), condition=1e6,
    ),
    Problem(
        "stopped after 2 steps",
        "the solution is well posed; a solver that is not there yet has to say so",
        cosh_valley, ZEROS, (3 * B,), (cosh_valley_solution,), max_steps=2,
    ),
    Problem(
        "gradient of the optimal value",
        "envelope theorem: dv/dtheta = df/dtheta at y*",
        quadratic, ZEROS, (QUADRATIC, B), (quadratic_solution,), Ask.VALUE,
    ),
    Problem(
        "gradient of the auxiliary output",
        "through y* and directly",
        with_predictions, ZEROS, (QUADRATIC, B, ONES), (lambda a, b, t: quadratic_solution(a, b),),
        Ask.AUX,
    ),
    Problem(
        "objective closes over its params",
        SYMMETRIC, quadratic, ZEROS, (QUADRATIC, B), (quadratic_solution,), Ask.CLOSURE,
    ),
    Problem(
        "second order",
        "Cardano's formula, differentiated twice",
        quartic_well, ZEROS, (3 * B,), (quartic_well_solution,), Ask.SECOND,
    ),
    Problem(
        "forward mode",
        "Cardano's formula",
        quartic_well, ZEROS, (3 * B,), (quartic_well_solution,), Ask.FORWARD,
    ),
    Problem(
        "params shared by a batch",
        "the gradient of what all lanes share is the sum over the lanes; y* = arcsinh(b / s)",
        shared_scale, np.zeros(2), (RNG.normal(size=(3, 2)), np.array(0.7)),
        (lambda b, scale: jnp.arcsinh(b / scale),), Ask.BATCH, in_axes=(0, None),
    ),
    Problem(
        "one bad lane of a batch",
        "y* = b / a in the good lanes; the lane with a < 0 has no minimum",
        curved, np.zeros(2), (np.array([1.0, -1.0, 2.0]), np.ones((3, 2))),
        (lambda a, b: b / a,), Ask.BATCH, in_axes=(0, 0), bad_lanes=(1,),
    ),
    Problem(
        "singular Hessian, minimum norm",
        "from 0 a descent ends in the solution of smallest norm, y* = A^+ b, A being wide",
        wide_least_squares, ZEROS, (RNG.normal(size=3),),
        (lambda b: jnp.linalg.pinv(WIDE) @ b,), condition=100.0,
    ),
    Problem(
        "least squares, large residual",
        "a Gauss-Newton Hessian would be wrong; the full one is well conditioned",
        exponential_fit, np.array([1.5, 1.2]), (TIMES, NOISY),
        least_squares_points(exponential_fit, np.array([2.0, 1.0])),
        form=Form.LEAST_SQUARES, condition=100.0,
    ),
    Problem(
        "lasso",
        "strict complementarity: the support stays as it is",
        proximal_gradient, ZEROS, (X, SPARSE, np.array(2.0)),
        (lambda x, t, penalty: lasso_solution(x, t, penalty, (0, 3), (1.0, -1.0)),),
        form=Form.FIXED_POINT, condition=100.0,
    ),
    Problem(
        "objective in small units",
        "the same minimiser as without the factor 1e-9: an absolute tolerance stops at once",
        in_small_units, ZEROS, (QUADRATIC, B), (quadratic_solution,),
    ),
    Problem(
        "variables in unequal units",
        "a well-conditioned quadratic in y / u, the units u from 1e-4 to 1e4",
        unequal_units, ZEROS, (B,), (unequal_units_solution,), condition=1e6,
    ),
    Problem(
        "quartic minimum",
        "y* = theta, although the Hessian vanishes at the solution",
        flat_at_the_minimum, np.zeros(2), (np.array([0.5, -1.0]),), (lambda t: t,),
    ),
    Problem(
        "kink at the minimum",
        "y* = sign(t) max(|t| - 1, 0) has a derivative; the objective has none at y*",
        soft_threshold, np.full(3, 0.3), (np.array([0.5, -0.3, 2.0]),),
        (lambda t: jnp.sign(t) * jnp.maximum(jnp.abs(t) - 1, 0),),
    ),
    Problem(
        "start at a saddle point",
        "the gradient of the objective vanishes at the start; the minima are at (+-1, 2)",
        double_well, np.array([0.0, 2.0]), (np.array([1.0, 4.0]),),
        (jnp.sqrt, lambda t: jnp.sqrt(t) * jnp.array([-1.0, 1.0])),
    ),
    Problem(
        "unbounded objective",
        "no minimum: one eigenvalue is negative",
        curved, np.zeros(2), (np.array([1.0, -1.0]), np.array([0.5, 0.5])),
    ),
    Problem(
        "linear objective",
        "no minimum; the Hessian is zero",
        linear, np.zeros(2), (np.array([1.0, -1.0]),),
    ),
    Problem(
        "minimum not attained",
        "the infimum of exp(-t y) is at infinity",
        unattained, np.zeros(2), (np.array([1.0, 2.0]),),
    ),
    Problem(
        "NaN in the data",
        "nothing is defined",
        quadratic, ZEROS, (QUADRATIC, np.where(np.arange(N) == 2, np.nan, B)),
    ),
    Problem(
        "start outside of the domain",
        "log y at a negative start is NaN",
        logarithm, np.full(2, -1.0), (np.array([1.0, 2.0]),),
    ),
)  # fmt: skip
