"""What a report says of the errors of solution and gradient, lane by lane."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from argmin_jax import LBFGS, ArgminError, Auto, NewtonCG, Status, argmin, solve

from .problems import assert_close, quadratic, random_spd


def many_kinds(y, steepness, push, bend):
    """Separable: a parabola, a double well (from its ridge, where ``bend`` > 0) and a valley."""
    parabola = steepness * y[0] ** 2 / 2 - push * y[0]
    well = y[1] ** 4 / 4 - bend * y[1] ** 2 / 2
    valley = 100 * (y[3] - y[2] ** 2) ** 2 + (1 - y[2]) ** 2
    return parabola + well + valley


LANES = 1000
EASY_START = np.array([0.0, 0.0, 1.0, 1.0])
FAILED = {  # lane: what is changed there, and what comes of it
    **dict.fromkeys((3, 250, 999), ("push", np.nan, Status.NOT_FINITE)),
    **dict.fromkeys((17, 500), ("steepness", -1.0, Status.UNBOUNDED)),
    **dict.fromkeys((42, 640, 777), ("bend", 1.0, Status.NOT_A_MINIMUM)),
    **dict.fromkeys((100, 101), ("start", np.array([0.0, 0, -50, 7]), Status.MAX_STEPS)),
}


@pytest.fixture(scope="module")
def thousand_lanes():
    """The inputs of the lanes, and the function that solves one."""
    rng = np.random.default_rng(0)
    inputs = {
        "start": np.tile(EASY_START, (LANES, 1)),
        "steepness": rng.uniform(0.5, 5, LANES),
        "push": rng.normal(size=LANES),
        "bend": rng.uniform(-3, -1, LANES),
    }
    for lane, (name, value, _) in FAILED.items():
        inputs[name][lane] = value

    @jax.jit
    def one(start, steepness, push, bend):
        def value(push):
            options = {"max_steps": 12, "on_failure": "nan"}
            found = solve(many_kinds, start, steepness, push, bend, **options)
            return found.y[0], found

        slope, found = jax.grad(value, has_aux=True)(push)
        return found.y, slope, found.report

    return inputs, one


def test_failed_lanes_of_a_thousand_carry_their_status_and_leave_the_others_alone(thousand_lanes):
    inputs, one = thousand_lanes
    y, slope, report = jax.vmap(one)(*inputs.values())
    expected = np.zeros(LANES, int)
    for lane, (_, _, status) in FAILED.items():
        expected[lane] = status
    np.testing.assert_array_equal(report.status, expected)
    solved = expected == Status.CONVERGED
    assert solved.sum() == 990
    assert np.all(np.isnan(np.asarray(y)[~solved])) and np.all(np.isnan(np.asarray(slope)[~solved]))
    # y0* = push / steepness, and its derivative in the push.
    assert_close(y[solved, 0], (inputs["push"] / inputs["steepness"])[solved], 1e-12)
    assert_close(slope[solved], (1 / inputs["steepness"])[solved], 1e-12)
    for lane in [*range(0, LANES, 90), *FAILED]:
        alone = one(*(value[lane] for value in inputs.values()))
        together = jax.tree.map(lambda leaf, k=lane: leaf[k], (y, slope))
        # Batched and single arithmetic round differently.
        np.testing.assert_allclose(together[0], alone[0], rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(together[1], alone[1], rtol=1e-12)
        assert int(alone[2].status) == expected[lane]


def test_curvature_is_the_smallest_eigenvalue_of_the_hessian():
    matrix = random_spd(3, 6, 1e3)
    report = solve(quadratic, jnp.zeros(6), matrix, jnp.ones(6)).report
    # A few steps of inverse iteration: within a tenth, and from above.
    assert 1 - 1e-9 <= report.curvature < 1.1


def test_curvature_of_a_saddle_is_negative_and_of_a_singular_hessian_zero():
    def saddle(y):
        return y[0] ** 2 - 3 * y[1] ** 2 + y[1] ** 4

    at_saddle = solve(saddle, jnp.zeros(2), on_failure="ignore").report
    assert int(at_saddle.status) == Status.NOT_A_MINIMUM
    assert_close(at_saddle.curvature, jnp.array(-6.0), 1e-12)
    flat = solve(lambda y: (y[0] + y[1] - 1) ** 2, jnp.zeros(2)).report
    assert_close(flat.curvature, jnp.array(0.0), 1e-12)
    assert int(flat.rank_deficiency) == 1


def test_saddle_is_found_without_the_matrix_too():
    scales = jnp.ones(40).at[7].set(-0.5)
    report = solve(
        lambda y: jnp.sum(scales * y**2) / 2 + jnp.sum(y**4), jnp.zeros(40),
        linear_solver=Auto(dense_limit=10), on_failure="ignore",
    ).report  # fmt: skip
    assert int(report.status) == Status.NOT_A_MINIMUM
    assert -0.5 - 1e-9 <= report.curvature < 0


@pytest.mark.parametrize("constraints", [{}, {"eq": lambda y: y[2:]}], ids=["free", "equality"])
def test_a_saddle_that_the_polish_steps_onto_is_seen_though_the_hessian_was_positive_before(
    constraints,
):
    """At (3, 0, 0) the Hessian is diag(1, 2, 2), and a single Newton step leads to the saddle at
    the origin, where it is diag(1, -1, 2)."""
    found = solve(
        lambda y: y[0] ** 2 / 2 + (y[0] - 1) * y[1] ** 2 / 2 + y[2] ** 2,
        jnp.zeros(3),
        solver=lambda objective, y0: jnp.array([3.0, 0.0, 0.0]),
        on_failure="ignore",
        **constraints,
    )
    assert int(found.report.status) == Status.NOT_A_MINIMUM
    np.testing.assert_allclose(found.report.curvature, -1, rtol=1e-12)


@pytest.mark.parametrize("power", [2, 4])
@pytest.mark.parametrize("solver", [LBFGS(), NewtonCG()], ids=["LBFGS", "NewtonCG"])
def test_a_fall_to_infinity_along_a_flat_direction_is_no_solution(solver, power):
    """cosh(y0) - 1 + (y0 - c) y1^2 / 2 falls for ever as y1 grows and y0 = -log(y1^2) or so; its
    gradient there, 1e26, is nothing beside its steepest curvature, 1e50."""
    for c in (0.003, 1.0):
        found = solve(
            lambda y, c=c: jnp.cosh(y[0]) - 1 + (y[0] - c) * y[1] ** 2 / 2 + y[2] ** power,
            jnp.array([3.0, 0.0, 1.0]),
            solver=solver,
            on_failure="ignore",
        )
        assert int(found.report.status) in (Status.UNBOUNDED, Status.NOT_A_MINIMUM)


def valley(y, target, push, loss):
    """Flat along (1, -1), and pushed that way."""
    return loss(y[0] + y[1] - target) + push * (y[0] - y[1])


LOSSES = {"quadratic": lambda x: x**2 / 2, "logistic": lambda x: jnp.logaddexp(x, -x)}
WAYS = {
    "LBFGS": {"solver": LBFGS()},
    "NewtonCG": {"solver": NewtonCG()},
    "inequality": {"ineq": lambda y, *params: y[0] + y[1] - 10},
    "bound": {"bounds": (jnp.array([-jnp.inf, -1.0]), jnp.inf)},
}


@pytest.mark.parametrize("options", WAYS.values(), ids=WAYS.keys())
@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES.keys())
def test_a_push_along_a_valley_without_end_is_no_solution_however_small_it_is(loss, options):
    """The residual, the push, is small beside y, which goes as far as 1e38: so would any be."""
    for push in (1.0, 1e-2, 1e-4, 1e-6):
        found = solve(
            lambda y, target, push: valley(y, target, push, loss),
            jnp.zeros(2),
            1.0,
            push,
            on_failure="ignore",
            **options,
        )
        assert int(found.report.status) == Status.UNBOUNDED, push


@pytest.mark.parametrize(
    "push, solver", [(1e-4, LBFGS()), (1e-9, NewtonCG())], ids=["LBFGS", "NewtonCG"]
)
def test_a_push_along_a_curved_valley_without_end_is_seen_without_factors(push, solver):
    """The way from the start is not all along what K takes as null: y2 follows y0 by degrees."""

    def curved(y, target, push):
        return valley(y, target, push, LOSSES["quadratic"]) + 0.1 * (y[2] - y[0]) ** 4

    options = {"solver": solver, "linear_solver": Auto(dense_limit=0), "on_failure": "ignore"}
    found = solve(curved, jnp.zeros(3), 1.0, push, **options)
    assert jnp.max(jnp.abs(found.y)) > 1e4
    assert int(found.report.status) == Status.UNBOUNDED


@pytest.mark.parametrize("size", [1e3, 1e6])
def test_a_solution_far_off_in_a_flat_valley_is_one_without_factors(size):
    """Closed form; with a condition number of 1e9, more than the look at the sign can tell."""
    scales = jnp.geomspace(1.0, 1e-9, 60)
    far = size * jnp.cos(jnp.arange(60.0))
    found = solve(
        lambda y, far: jnp.sum(scales * (y - far) ** 2) / 2,
        jnp.zeros(60),
        far,
        linear_solver=Auto(dense_limit=0),
        on_failure="ignore",
    )
    assert int(found.report.rank_deficiency) == -1  # unknown
    assert int(found.report.status) == Status.CONVERGED
    assert_close(found.y, far, 1e-6)  # rounding times the condition number


@pytest.mark.parametrize("solver", [LBFGS(), NewtonCG()], ids=["LBFGS", "NewtonCG"])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64], ids=["float32", "float64"])
def test_a_solution_far_off_of_which_directions_are_free_is_one(solver, dtype):
    """Least squares of minimum norm: prices of about 1e5 by features of which two agree."""
    x = np.random.default_rng(0).normal(size=(30, 4))
    x = jnp.asarray(np.concatenate([x, x[:, :1]], axis=1), dtype)
    prices = x @ jnp.array([1e5, -3e5, 2e5, 5e4, 1e5], dtype) + 1e4 * jnp.sin(
        jnp.arange(30, dtype=dtype)
    )
    found = solve(
        lambda w, x, t: jnp.mean((x @ w - t) ** 2),
        jnp.zeros(5, dtype),
        x,
        prices,
        solver=solver,
        on_failure="ignore",
    )
    assert int(found.report.status) == Status.CONVERGED
    assert int(found.report.rank_deficiency) == 1
    # Rounding times the condition number, below 10, of the normal equations.
    assert_close(found.y, np.linalg.pinv(x) @ prices, 1e3 * float(jnp.finfo(dtype).eps))


POINTS = jnp.array([[0.0, 0.0], [1.0, 0.1], [-0.9, 0.3], [0.1, 1.0], [0.2, -1.1]])


@pytest.mark.parametrize("shift", [0.0, 0.3])
def test_a_kink_where_curvature_has_no_bound_is_no_solution(shift):
    """The geometric median of these points is one of them, as the unit vectors from there to the
    others add up to less than one. Nearby the gradient is no smaller, only small beside the
    Hessian, and its derivative in the points is not what the Hessian says."""
    starts = jnp.asarray(np.random.default_rng(0).normal(size=(20, 2)))

    def distances(y, points):
        return jnp.sum(jnp.linalg.norm(y[None] - points, axis=-1))

    def median(start):
        return solve(distances, start, POINTS + shift, on_failure="ignore")

    found = jax.jit(jax.vmap(median))(starts)
    assert jnp.max(jnp.abs(found.y - shift)) < 1e-6
    assert not jnp.any(found.report.status == Status.CONVERGED)


@pytest.mark.parametrize("start", [0.5, 2.0, -3.0])
def test_a_tie_at_the_minimum_is_no_solution(start):
    """JAX's gradient at a tie is the mean of both, here zero: the jump beside it tells. y* =
    (1 - sqrt p) / (1 + sqrt p) has the derivative -1/4 at p = 1, and the Hessian says -1/2."""
    with pytest.raises(ArgminError):
        argmin(lambda y, p: jnp.maximum((y - 1) ** 2, p * (y + 1) ** 2), jnp.array(start), 1.0)


@pytest.mark.parametrize(
    "width, dtype",
    [(1e-2, jnp.float32), (1e-3, jnp.float32), (1e-3, jnp.float64), (1e-6, jnp.float64)],
)
def test_a_kink_that_is_smoothed_is_a_solution_however_steep_it_is(width, dtype):
    """Soft thresholding by sqrt(y^2 + width^2): (y - p) + y / sqrt(...) = 0 in every entry. (In
    float32, whose tolerance is 1e-4, points at widths of 1e-4 may be wrong, and are refused.)"""
    p = jnp.array([0.5, -0.3, 2.0], dtype)
    y = argmin(lambda y, p: jnp.sum((y - p) ** 2 / 2 + jnp.sqrt(y**2 + width**2)), p, p)
    slope = y / jnp.sqrt(y**2 + width**2)
    # Rounding of y times the slope's derivative, which is up to 1 / width.
    assert_close(y - p, -slope, 10 * float(jnp.finfo(dtype).eps) / width)


@pytest.mark.parametrize("unit", [1.0, 1e-5])
def test_a_solution_far_smaller_than_one_is_found_in_float32(unit):
    """Closed form: y* = unit log p, dy*/dp = unit / p. At zero the residual is small, too."""
    unit = jnp.array(unit, jnp.float32)
    p = jnp.array([3.0, 7.0], jnp.float32)

    def minimiser(p):
        return argmin(
            lambda y, p: jnp.sum(jnp.exp(y / unit) - p * y / unit), jnp.zeros(2, jnp.float32), p
        )

    assert_close(minimiser(p) / unit, jnp.log(p), 1e-5)  # a hundred roundings
    assert_close(jax.jacrev(minimiser)(p) / unit, jnp.diag(1 / p), 1e-5)


def test_a_start_that_is_a_solution_only_beside_one_is_none():
    """The same in a unit so small that the residual at zero is below the tolerance."""
    unit = 1e-12
    found = solve(
        lambda y: jnp.sum(jnp.exp(y / unit) - 7 * y / unit), jnp.zeros(2), on_failure="ignore"
    )
    solution = unit * jnp.log(7.0)
    right = jnp.max(jnp.abs(found.y - solution)) <= 1e-8 * solution
    assert right or int(found.report.status) != Status.CONVERGED


@pytest.mark.parametrize("exponent", [2, 6, 10])
def test_estimates_bound_the_errors_of_an_ill_conditioned_problem(exponent):
    """Closed form: y = b / scales, so that the gradient of sum(y) in b is 1 / scales."""
    scales = jnp.geomspace(1.0, 10.0**-exponent, 5)
    turn = jnp.asarray(np.linalg.qr(np.random.default_rng(1).normal(size=(5, 5)))[0])

    def value(b):
        found = solve(
            lambda y, b: jnp.sum(scales * (turn @ y) ** 2) / 2 - b @ (turn @ y), jnp.zeros(5), b
        )
        return jnp.sum(turn @ found.y), found

    b = scales * jnp.array([1.0, -2.0, 0.5, 1.5, -1.0])
    gradient, found = jax.grad(value, has_aux=True)(b)
    error = jnp.linalg.norm(turn @ found.y - b / scales)
    relative = jnp.linalg.norm(gradient - 1 / scales) / jnp.linalg.norm(1 / scales)
    assert error <= 10 * found.report.solution_error <= 1e-14 * 10**exponent
    assert relative <= 10 * found.report.gradient_error <= 1e-13 * 10**exponent


def test_argmin_does_not_pay_for_the_certificate():
    """Its program is shorter than that of `solve`, whose report is used."""

    def steps_of(fn):
        return len(jax.jit(fn).lower(jnp.ones(3)).as_text().splitlines())

    def objective(y, t):
        return jnp.sum(jnp.cosh(y - t))

    plain = steps_of(lambda t: argmin(objective, jnp.zeros(3), t))
    certified = steps_of(lambda t: solve(objective, jnp.zeros(3), t).report)
    assert plain < certified


@pytest.mark.parametrize("temperature", [1e-4, 1e-5])
@pytest.mark.parametrize("start", [(3.0, 2.0), (0.0, 0.0)])
def test_the_tail_of_an_exponential_is_no_solution_though_every_step_there_is_short(
    temperature, start
):
    """max(y0 - 1, 1 - 2 y0, y1 - 1, -y1), smoothed: by symmetry y1 is 1/2. In between the gradient
    along y1 falls by a factor of e over each Newton step, whose length is the temperature."""

    def smoothed(y, t):
        pieces = jnp.stack([y[0] - 1, 1 - 2 * y[0], y[1] - 1, -y[1]])
        return t * jax.nn.logsumexp(pieces / t)

    found = solve(smoothed, jnp.array(start), temperature, on_failure="ignore")
    assert int(found.report.status) == Status.STALLED
