"""The classics without constraints, with derivatives in closed form or by dense algebra."""

import jax.numpy as jnp
import numpy as np

from .oracle import least_squares_points, stationary_points
from .problem import Form, Problem

RNG = np.random.default_rng(11)
SAMPLES, FEATURES = 30, 5
X = RNG.normal(size=(SAMPLES, FEATURES))
TARGETS = X @ RNG.normal(size=FEATURES) + 0.3 * RNG.normal(size=SAMPLES)
LABELS = (X @ RNG.normal(size=FEATURES) + RNG.normal(size=SAMPLES) > 0).astype(float)


def ridge(xp, w, x, t, log_penalty):
    return ((x @ w - t) ** 2).sum() + xp.exp(log_penalty) * (w**2).sum()


def ridge_solution(x, t, log_penalty):
    """The normal equations."""
    return jnp.linalg.solve(x.T @ x + jnp.exp(log_penalty) * jnp.eye(FEATURES), x.T @ t)


def logistic(xp, weights, x, labels, penalty):
    """Cross entropy of a linear model with a bias: y is a pair."""
    w, bias = weights
    margins = x @ w + bias
    loss = (xp.log1p(xp.exp(-xp.abs(margins))) + xp.clip(margins, 0) - labels * margins).sum()
    return loss + penalty * (w**2).sum() / 2


def michaelis_menten(xp, y, substrate, velocity):
    """Residuals of Vmax s / (Km + s) - v, y = (Vmax, Km)."""
    return y[0] * substrate / (y[1] + substrate) - velocity


# The classical data of Michaelis-Menten kinetics: Treloar's puromycin experiment, treated cells
# (Bates & Watts, Nonlinear Regression Analysis, 1988, appendix A1.3).
SUBSTRATE = np.array([0.02, 0.02, 0.06, 0.06, 0.11, 0.11, 0.22, 0.22, 0.56, 0.56, 1.1, 1.1])
VELOCITY = np.array([76.0, 47, 97, 107, 123, 139, 159, 152, 191, 201, 207, 200])


def beale(xp, y, a):
    powers = xp.stack([y[1], y[1] ** 2, y[1] ** 3])
    return ((a - y[0] + y[0] * powers) ** 2).sum()


def himmelblau(xp, y, a):
    return (y[0] ** 2 + y[1] - a[0]) ** 2 + (y[0] + y[1] ** 2 - a[1]) ** 2


HIMMELBLAU_MINIMA = [[3.0, 2.0], [-2.805, 3.131], [-3.779, -3.283], [3.584, -1.848]]


def matyas(xp, y, a):
    """Matyas' function, its minimum moved from 0 by a linear term."""
    return 0.26 * (y**2).sum() - 0.48 * y[0] * y[1] - (a * y).sum()


def matyas_solution(a):
    return jnp.linalg.solve(jnp.array([[0.52, -0.48], [-0.48, 0.52]]), a)


def tilted_quartic(xp, y, t):
    """y^4 / 4 - y^2 + t y: two minima as long as |t| is small."""
    return (y**4 / 4 - y**2 + t * y).sum()


def rosenbrock(xp, y, a):
    return (a[0] - y[0]) ** 2 + a[1] * (y[1] - y[0] ** 2) ** 2


CLASSICS = (
    Problem(
        "ridge regression",
        "normal equations",
        ridge, np.zeros(FEATURES), (X, TARGETS, np.array(0.0)), (ridge_solution,),
    ),
    Problem(
        "logistic regression",
        "strictly convex by its penalty; y is a pair",
        logistic, (np.zeros(FEATURES), np.zeros(())), (X, LABELS, np.array(1.0)),
        stationary_points(logistic, (np.zeros(FEATURES), np.zeros(()))), condition=10.0,
    ),
    Problem(
        "enzyme kinetics",
        "least squares with a residual; y is near (213, 0.064), of unequal sizes",
        michaelis_menten, np.array([205.0, 0.08]), (SUBSTRATE, VELOCITY),
        least_squares_points(michaelis_menten, np.array([212.7, 0.0641])),
        form=Form.LEAST_SQUARES, condition=1e3,
    ),
    Problem(
        "Beale",
        "the minimum at (3, 1/2) is regular",
        beale, np.array([2.5, 0.3]), (np.array([1.5, 2.25, 2.625]),),
        stationary_points(beale, np.array([3.0, 0.5])), condition=200.0,
    ),
    Problem(
        "Himmelblau",
        "four regular minima, any of which will do",
        himmelblau, np.array([2.0, 1.0]), (np.array([11.0, 7.0]),),
        stationary_points(himmelblau, *map(np.array, HIMMELBLAU_MINIMA)), condition=10.0,
    ),
    Problem(
        "Matyas",
        "closed form; condition number 25",
        matyas, np.array([1.0, -2.0]), (np.array([0.3, -0.1]),), (matyas_solution,),
        condition=25.0,
    ),
    Problem(
        "polynomial with several minima",
        "two regular minima, either of which will do",
        tilted_quartic, np.array([1.0]), (np.array([0.3]),),
        stationary_points(tilted_quartic, np.array([1.3]), np.array([-1.5])), condition=2.0,
    ),
    Problem(
        "Rosenbrock",
        "a curved valley, condition number 2500; y* = (a, a^2)",
        rosenbrock, np.array([-1.2, 1.0]), (np.array([1.0, 100.0]),),
        (lambda a: jnp.stack([a[0], a[0] ** 2]),), condition=2.5e3,
    ),
)  # fmt: skip
