"""The solvers of the forward problem: ours, Optimistix's and anybody's."""

import sys

import equinox as eqx
import jax
import jax.numpy as jnp
import jaxopt
import numpy as np
import optimistix as optx
import pytest

from argmin_jax import LBFGS, ArgminError, Auto, Jaxopt, NewtonCG, Scipy, Status, argmin, solve
from argmin_jax.conjugate_gradients import conjugate_gradients
from argmin_jax.solvers import adapt, newton_cg

from .problems import assert_close, central_difference, cube_root, quadratic, random_spd, rosenbrock

Y0 = jnp.ones(3)
T = jnp.array([1.0, 2.0, 3.0])


def solution_and_slope(solver, **options):
    """y* = t^(1/3) of `cube_root`, and the gradient of its sum, t^(-2/3) / 3."""

    def total(t):
        y = argmin(cube_root, Y0, t, solver=solver, **options)
        return jnp.sum(y), y

    (_, y), gradient = jax.value_and_grad(total, has_aux=True)(T)
    return y, gradient


EXACT = jnp.cbrt(T), T ** (-2 / 3) / 3


# LBFGS


@pytest.mark.parametrize("name", ["memory", "line_search_steps"])
@pytest.mark.parametrize("value", [0, -1])
def test_lbfgs_refuses_options_below_one(name, value):
    with pytest.raises(
        ValueError, match=rf"LBFGS\({name}=\.\.\.\) must be at least 1; found {value}"
    ):
        LBFGS(**{name: value})


@eqx.filter_jit
def _descend(solver, fn, y, tolerance, max_steps):
    return solver.run(fn, y, tolerance, max_steps)


def descend(fn, y, tolerance=1e-9, max_steps=200, memory=10):
    """Runs LBFGS by itself, compiled once for each function and shape."""
    limits = jnp.array(tolerance, y.dtype), jnp.array(max_steps, jnp.int32)
    return _descend(LBFGS(memory=memory), fn, y, *limits)


def banana(y):
    return rosenbrock(y, 1.0)


BANANA_START = jnp.array([-1.2, 1.0])


def test_lbfgs_of_little_and_of_much_memory_finds_the_minimum_of_the_banana():
    for memory in (1, 10):
        y, _ = descend(banana, BANANA_START, memory=memory)
        assert_close(y, jnp.ones(2), 1e-8)


def test_more_memory_saves_steps_on_an_ill_conditioned_quadratic():
    matrix, b = random_spd(0, 20, 1e4), jnp.ones(20)

    def fn(y):
        return quadratic(y, matrix, b)

    steps = {memory: int(descend(fn, 0 * b, 1e-6, 2000, memory)[1]) for memory in (2, 20)}
    assert steps[20] < steps[2] < 2000


def test_steps_of_lbfgs_are_bounded_and_counted():
    points = {k: descend(banana, BANANA_START, 0.0, k) for k in (0, 1, 3)}
    assert {k: int(steps) for k, (_, steps) in points.items()} == {0: 0, 1: 1, 3: 3}
    assert_close(points[0][0], BANANA_START, 0.0)
    values = [float(banana(y)) for y, _ in points.values()]
    assert values[0] > values[1] > values[2]


def test_tolerance_bounds_the_largest_entry_of_the_gradient():
    tight = int(descend(banana, BANANA_START, 1e-6)[1])
    for tolerance in (1e-2, 1e-6):
        y, steps = descend(banana, BANANA_START, tolerance)
        assert jnp.max(jnp.abs(jax.grad(banana)(y))) <= tolerance
        assert (int(steps) < tight) == (tolerance > 1e-6)
    assert int(descend(banana, jnp.ones(2), 1e-6)[1]) == 0


HARD = {
    "logarithm": (lambda y: jnp.sum(y - jnp.log(y)), jnp.array([10.0, 1e-3])),
    "square root": (lambda y: jnp.sum(jnp.sqrt(y) * (y - 3)), jnp.array([0.01, 5.0])),
    "unbounded below": (lambda y: jnp.sum(-jnp.exp(y)), jnp.array([1.0, 2.0])),
    "overflow": (lambda y: jnp.sum(jnp.cosh(10 * y)), jnp.array([60.0, -50.0])),
    "kink": (lambda y: jnp.sum(jnp.abs(y)), jnp.array([1.0, -0.3])),
    "noise": (lambda y: jnp.sum(y**2) + 0.3 * jnp.sum(jnp.sin(1e4 * y)), jnp.array([1.0, 2.0])),
}


@pytest.mark.parametrize("case", HARD.values(), ids=HARD.keys())
def test_lbfgs_never_returns_a_worse_or_non_finite_point(case):
    fn, start = case
    y, steps = descend(fn, start)
    assert jnp.isfinite(y).all()
    assert jnp.isfinite(fn(y))
    assert fn(y) <= fn(start)
    assert 0 <= int(steps) <= 200


def test_a_lane_that_has_ended_costs_the_others_no_evaluations_of_lbfgs():
    count = []

    def evaluations(starts, offsets):
        def run(y, offset):
            def fn(y):
                jax.debug.callback(lambda: count.append(1))  # once for all lanes
                return banana(y) + offset

            return LBFGS().run(fn, y, jnp.array(1e-6), jnp.array(200))[0]

        count.clear()
        jax.block_until_ready(jax.jit(jax.vmap(run))(starts, offsets))
        jax.effects_barrier()
        return len(count)

    alone = evaluations(BANANA_START[None], jnp.zeros(1))
    # At the offset no change of the value can be seen any more: a search there is in vain.
    solved = jnp.stack([BANANA_START, jnp.full(2, 1 + 1e-10)])
    assert evaluations(solved, jnp.array([0.0, 1e8])) == alone


def test_a_lane_that_has_ended_costs_the_others_no_products_of_newton_cg(monkeypatch):
    count = []

    def counted(product, *rest):
        def product_and_count(v):
            jax.debug.callback(lambda: count.append(1))  # once for all lanes
            return product(v)

        return conjugate_gradients(product_and_count, *rest)

    monkeypatch.setattr(newton_cg, "conjugate_gradients", counted)

    def products(weights, max_steps):
        def run(weights, max_steps):
            def fn(y):
                return jnp.sum(weights * y**4)

            return NewtonCG().run(fn, jnp.ones(20), jnp.array(1e-12), max_steps)[0]

        count.clear()
        jax.block_until_ready(jax.jit(jax.vmap(run))(weights, max_steps))
        jax.effects_barrier()
        return len(count)

    # One product a step where all weights are equal, and many where they are not; the lane of
    # those ends after one step.
    weights = jnp.stack([jnp.ones(20), jnp.geomspace(1, 1e4, 20)])
    steps = jnp.array([200, 1])
    alone, other = (products(weights[k : k + 1], steps[k : k + 1]) for k in (0, 1))
    assert other > 5
    assert products(weights, steps) <= alone + other


def test_lbfgs_that_starts_where_nothing_is_finite_stays_there():
    start = jnp.array([-1.0, -2.0])
    y, steps = descend(lambda y: jnp.sum(jnp.log(y)), start)
    assert_close(y, start, 0.0)
    assert int(steps) == 0


def test_lbfgs_computes_in_the_dtype_of_the_start():
    seen = []

    def fn(y):
        seen.append(y.dtype)
        return jnp.sum(y**4 / 4 - T.astype(y.dtype) * y)

    y, _ = descend(fn, Y0.astype(jnp.float32), 1e-5)
    assert y.dtype == jnp.float32
    assert set(seen) == {jnp.dtype("float32")}
    assert_close(y, jnp.cbrt(T).astype(jnp.float32), 1e-5)


# Other people's solvers, through the layer


def newton(objective, y0, *params):
    """What a user might write: a loop with a fixed number of Newton steps."""

    def step(_, y):
        hessian = jax.hessian(objective)(y, *params)
        return y - jnp.linalg.solve(hessian, jax.grad(objective)(y, *params))

    return jax.lax.fori_loop(0, 8, step, y0 + 1)


def by_jaxopt(objective, y0, *params):
    return jaxopt.LBFGS(objective, maxiter=60, implicit_diff=False).run(y0, *params).params


SOLVERS = {
    "LBFGS": LBFGS(memory=4),
    "Optimistix BFGS": optx.BFGS(rtol=1e-6, atol=1e-6),
    "Optimistix LBFGS": optx.LBFGS(rtol=1e-6, atol=1e-6),
    "Optimistix NonlinearCG": optx.NonlinearCG(rtol=1e-6, atol=1e-6),
    "Optimistix GradientDescent": optx.GradientDescent(0.1, rtol=1e-6, atol=1e-6),
    "Optimistix Nelder-Mead": optx.NelderMead(rtol=1e-5, atol=1e-5),
    "closed form": lambda objective, y0, t: jnp.cbrt(t),
    "loop": newton,
    "JAXopt in a callable": by_jaxopt,
    "Jaxopt": Jaxopt("BFGS", tol=1e-6),
    "SciPy by values": Scipy("Nelder-Mead"),
    "SciPy by gradients": Scipy("L-BFGS-B", maxcor=5),
    "SciPy by products": Scipy("trust-krylov", tol=1e-6),
}


@pytest.mark.parametrize("solver", SOLVERS.values(), ids=SOLVERS.keys())
def test_every_solver_gives_the_same_solution_and_gradient(solver):
    y, gradient = solution_and_slope(solver)
    assert_close(y, EXACT[0], 1e-12)
    assert_close(gradient, EXACT[1], 1e-12)


def test_steps_are_counted_where_the_solver_tells():
    def steps(solver):
        return int(solve(cube_root, Y0, T, solver=solver).report.steps)

    assert steps(SOLVERS["LBFGS"]) > 0
    assert steps(SOLVERS["Optimistix BFGS"]) > 0
    assert steps(SOLVERS["closed form"]) == -1


@pytest.mark.parametrize(
    "solver",
    [LBFGS(), optx.GradientDescent(1e-4, rtol=1e-9, atol=1e-9)],
    ids=["LBFGS", "Optimistix"],
)
def test_max_steps_bounds_every_solver(solver):
    options = {"solver": solver, "max_steps": 2, "on_failure": "ignore"}
    report = solve(rosenbrock, BANANA_START, 1.0, **options).report
    assert int(report.status) == Status.MAX_STEPS
    assert 0 < int(report.steps) <= 2


EARLY = {
    "BFGS": optx.BFGS(rtol=1e-1, atol=1e-1),
    "LBFGS": optx.LBFGS(rtol=1e-1, atol=1e-1),
    "Nelder-Mead": optx.NelderMead(rtol=1e-1, atol=1e-1),
}


def one_run(solver):
    """Of Optimistix's solver by itself."""
    return optx.minimise(rosenbrock, solver, BANANA_START, 1.0, throw=False)


@pytest.mark.parametrize("solver", EARLY.values(), ids=EARLY.keys())
def test_an_optimistix_solver_that_stops_too_early_goes_on_with_tighter_tolerances(solver):
    alone = one_run(solver)
    assert not np.allclose(alone.value, 1, atol=0.1)  # too far for Newton's method
    found = solve(rosenbrock, BANANA_START, 1.0, solver=solver)
    assert_close(found.y, jnp.ones(2), 1e-12)
    assert int(found.report.steps) > int(alone.stats["num_steps"])


def test_an_optimistix_solver_runs_once_with_its_own_tolerances_where_that_suffices():
    for solver in (optx.BFGS(rtol=1e-5, atol=1e-5), optx.BFGS(rtol=0.0, atol=1e-5)):
        report = solve(rosenbrock, BANANA_START, 1.0, solver=solver).report
        assert int(report.steps) == int(one_run(solver).stats["num_steps"])


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64], ids=["float32", "float64"])
def test_tolerances_are_not_tightened_to_where_rounding_keeps_the_solver_from_ending(dtype):
    def kink(y, t):  # no point is a solution to Newton's method
        return jnp.sum(jnp.abs(y - t))

    start, t = Y0.astype(dtype), T.astype(dtype)
    solver = optx.BFGS(rtol=1e-2, atol=1e-2)
    report = solve(kink, start, t, solver=solver, on_failure="ignore").report
    assert int(report.status) == Status.STALLED
    assert int(report.steps) < 1000


def test_an_optimistix_solver_whose_tolerances_are_those_of_another_runs_once():
    solver = optx.BestSoFarMinimiser(EARLY["BFGS"])
    found = solve(rosenbrock, BANANA_START, 1.0, solver=solver, on_failure="ignore")
    assert int(found.report.status) == Status.STALLED
    assert int(found.report.steps) == int(one_run(solver).stats["num_steps"])


def test_lanes_in_which_a_solver_stops_too_early_go_on_and_the_others_stay():
    starts = jnp.stack([BANANA_START, jnp.ones(2) + 1e-3, -BANANA_START])

    def find(start):
        return solve(rosenbrock, start, 1.0, solver=EARLY["BFGS"])

    together, alone = jax.vmap(find)(starts), [find(start) for start in starts]
    for k in range(3):
        assert int(together.report.steps[k]) == int(alone[k].report.steps)
        assert_close(together.y[k], jnp.ones(2), 1e-12)


def test_objective_that_a_callable_gets_is_the_users_own():
    found = []

    def solver(objective, y0, params):
        found.append((jax.tree.structure(y0), jax.tree.structure(params)))
        assert objective(y0, params).shape == ()
        return {"a": params["p"], "b": (params["q"],)}

    def objective(y, params):
        return (y["a"] - params["p"]) ** 2 + jnp.sum((y["b"][0] - params["q"]) ** 2)

    y0 = {"a": jnp.zeros(()), "b": (jnp.zeros(2),)}
    params = {"p": jnp.array(1.0), "q": jnp.array([2.0, 3.0])}
    y = argmin(objective, y0, params, solver=solver)
    assert_close(y, {"a": params["p"], "b": (params["q"],)}, 1e-12)
    assert set(found) == {(jax.tree.structure(y0), jax.tree.structure(params))}


def bumpy(y, t):
    """One minimum, near t, with flat shoulders from which Newton's method does not return."""
    return -jnp.exp(-jnp.sum((y - t) ** 2))


WRONG_POINTS = {
    "far off": (lambda f, y0, t: jnp.full(3, 5.0), Status.STALLED),
    "on the shoulder": (lambda f, y0, t: t + 1.5, Status.STALLED),
    "NaN": (lambda f, y0, t: y0 * jnp.nan, Status.NOT_FINITE),
}


@pytest.mark.parametrize("case", WRONG_POINTS.values(), ids=WRONG_POINTS.keys())
def test_wrong_point_of_a_callable_is_not_passed_in_silence(case):
    solver, status = case
    found = solve(bumpy, Y0, T, solver=solver, on_failure="ignore").report.status
    assert Status(int(found)) is status
    with pytest.raises(ArgminError, match=status.name):
        jax.grad(lambda t: jnp.sum(argmin(bumpy, Y0, t, solver=solver)))(T)
    poisoned = jax.jacrev(lambda t: argmin(bumpy, Y0, t, solver=solver, on_failure="nan"))(T)
    assert np.isnan(poisoned).all()


def test_nearly_right_point_of_a_callable_is_polished():
    y, gradient = solution_and_slope(lambda f, y0, t: jnp.cbrt(t) + 1e-3)
    assert_close(y, EXACT[0], 1e-12)
    assert_close(gradient, EXACT[1], 1e-12)


OTHER_POINTS = {
    "structure": (lambda f, y0, t: (y0,), r"y0's structure .* found"),
    "shape": (lambda f, y0, t: y0[:2], r"y0's shapes and dtypes .* found \(\(2,\)"),
    "scalar": (lambda f, y0, t: jnp.sum(y0), r"y0's shapes and dtypes .* found \(\(\)"),
    "dtype": (lambda f, y0, t: y0.astype(jnp.float32), r"y0's shapes and dtypes .* 'float32'"),
    "nothing": (lambda f, y0, t: None, r"y0's structure"),
}


@pytest.mark.parametrize("case", OTHER_POINTS.values(), ids=OTHER_POINTS.keys())
def test_point_of_another_kind_than_the_start_is_refused(case):
    solver, message = case
    with pytest.raises(ValueError, match="solver must return a point of " + message):
        argmin(cube_root, Y0, T, solver=solver)


@pytest.mark.parametrize(
    "transform", [jax.grad, lambda f: jax.jit(jax.grad(f))], ids=["grad", "jit of grad"]
)
def test_callable_may_close_over_a_traced_value_which_gets_its_gradient(transform):
    # The solver is outside of all differentiation: the gradient is that of the theorem.
    def total(t):
        return jnp.sum(argmin(cube_root, Y0, t, solver=lambda f, y0, _: jnp.cbrt(t)))

    assert_close(transform(total)(T), T ** (-2 / 3) / 3, 1e-12)


def test_callable_reads_its_surroundings_anew():
    offset = 0.0

    def solver(objective, y0, t):
        return jnp.cbrt(t) + offset

    assert_close(argmin(cube_root, Y0, T, solver=solver), EXACT[0], 1e-12)
    offset = jnp.nan
    with pytest.raises(ArgminError, match="NOT_FINITE"):
        argmin(cube_root, Y0, T, solver=solver)


def test_solvers_work_in_float32():
    t = T.astype(jnp.float32)
    for name in ("Optimistix BFGS", "closed form"):

        def total(t, solver=SOLVERS[name]):
            return jnp.sum(argmin(cube_root, Y0.astype(jnp.float32), t, solver=solver))

        gradient = jax.grad(total)(t)
        assert gradient.dtype == jnp.float32
        assert_close(gradient, EXACT[1].astype(jnp.float32), 1e-5)


def test_gradient_of_another_peoples_solver_is_that_of_central_differences():
    def total(t):
        solver = SOLVERS["Optimistix BFGS"]
        return jnp.sum(jnp.sin(argmin(cube_root, Y0, t, solver=solver)))

    direction = jnp.array([0.3, 1.0, -0.5])
    slope = jnp.vdot(jax.grad(total)(T), direction)
    assert_close(slope, central_difference(total, T, direction), 1e-8)


def test_solver_of_a_lane_does_not_disturb_the_others():
    ts = jnp.stack([T, 10 * T, 0.1 * T])
    solver = SOLVERS["Optimistix BFGS"]
    y = jax.vmap(lambda t: argmin(cube_root, Y0, t, solver=solver))(ts)
    assert_close(y, jnp.cbrt(ts), 1e-10)


@pytest.mark.parametrize("solver", [LBFGS, optx.BFGS, "LBFGS", 3])
def test_what_is_no_solver_is_refused(solver):
    with pytest.raises(TypeError, match="solver must be"):
        adapt(solver, 10)


def test_jaxopt_is_told_its_options_and_counts_its_steps():
    options = {"solver": Jaxopt("BFGS", maxiter=3), "on_failure": "ignore"}
    report = solve(rosenbrock, BANANA_START, 1.0, **options).report
    assert int(report.steps) == 3
    assert int(report.status) != Status.CONVERGED


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("Nothing", {}, "found 'Nothing'"),
        ("GaussNewton", {}, "found 'GaussNewton'"),  # of residuals, not of a function
        (jnp.sum, {}, "name must be that of a JAXopt minimiser"),
        ("LBFGS", {"memory": 3}, "jaxopt.LBFGS has no option memory"),
    ],
)
def test_jaxopt_refuses_what_it_does_not_have_by_name(name, options, message):
    with pytest.raises(ValueError, match=message):
        Jaxopt(name, **options)


def test_jaxopt_that_is_not_installed_is_named_with_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "jaxopt", None)
    with pytest.raises(ImportError, match=r"argmin_jax\[jaxopt\]"):
        Jaxopt("LBFGS")


# SciPy


def test_scipy_is_told_its_options_and_counts_its_steps():
    def report(max_steps, **options):
        solver = Scipy("BFGS", **options)
        found = solve(
            rosenbrock, BANANA_START, 1.0, solver=solver, max_steps=max_steps, on_failure="ignore"
        )
        return int(found.report.steps), Status(int(found.report.status))

    assert report(1000)[1] is Status.CONVERGED
    assert report(1000, maxiter=3) == (3, Status.STALLED)
    assert report(4) == (4, Status.MAX_STEPS)


def noisy(y, t, n, key):
    return jnp.sum((y - n * t - jax.random.normal(key, (3,))) ** 2)


def test_scipy_works_in_compiled_programs_under_two_levels_of_vmap_with_params_of_any_dtype():
    def minimiser(t, n, key):
        return argmin(noisy, Y0, t, n, key, solver=Scipy("BFGS"))

    ts, ns, keys = jnp.stack([T, 2 * T]), jnp.arange(3), jax.random.split(jax.random.key(0), 3)
    value_and_slope = jax.value_and_grad(lambda *args: jnp.sum(minimiser(*args)))
    batched = jax.vmap(jax.vmap(value_and_slope, (None, 0, 0)), (0, None, None))
    values, slopes = jax.jit(batched)(ts, ns, keys)
    noise = jax.vmap(lambda key: jnp.sum(jax.random.normal(key, (3,))))(keys)
    assert_close(values, jnp.outer(jnp.sum(ts, axis=1), ns) + noise[None], 1e-12)
    assert_close(slopes, jnp.broadcast_to(ns[None, :, None], (2, 3, 3)).astype(float), 1e-12)


def test_scipy_stays_in_float32_and_in_a_scan():
    start, t = Y0.astype(jnp.float32), T.astype(jnp.float32)

    def step(y, _):
        y = argmin(cube_root, y, t, solver=Scipy("CG"))
        return y, y

    _, found = jax.lax.scan(step, start, None, length=2)
    assert found.dtype == jnp.float32
    assert_close(found, jnp.stack([jnp.cbrt(t)] * 2), 1e-5)


def test_scipy_does_not_wait_for_a_processor_that_its_own_program_holds():
    """JAX called from a callback does, where several programs with large arrays are under way
    (jax#24255): a callback that evaluated the objective stood still at these sizes."""
    matrix = jnp.eye(1500, dtype=jnp.float32)

    @jax.jit
    def found(b):
        large = matrix @ matrix
        options = {"solver": Scipy("L-BFGS-B"), "linear_solver": Auto(dense_limit=1)}
        return argmin(quadratic, 0 * b, large, b, **options)

    b = jnp.linspace(1, 2, 1500, dtype=jnp.float32)
    under_way = [found(k * b) for k in range(1, 7)]
    for k, y in enumerate(under_way, start=1):
        assert_close(y, k * b, 1e-5)


@pytest.mark.parametrize("method", ["BFGS", "trust-krylov", "Nelder-Mead"])
def test_scipy_that_meets_nan_is_reported(method):
    t = jnp.array([1.0, jnp.nan, 1.0])
    options = {"solver": Scipy(method), "max_steps": 20, "on_failure": "ignore"}
    report = solve(cube_root, Y0, t, **options).report
    assert Status(int(report.status)) is Status.NOT_FINITE


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        ("Nothing", {}, "method must be one of 'nelder-mead'.* found 'nothing'"),
        (None, {}, "method must be one of .* found None"),
        ("trust-exact", {}, "method 'trust-exact' needs the Hessian as a matrix; .*trust-krylov"),
        ("BFGS", {"memory": 3}, "refuses its options: .*memory"),
        ("SLSQP", {"constraints": ()}, "constraints.* are options of argmin"),
    ],
)
def test_scipy_refuses_what_it_does_not_have(method, options, message):
    with pytest.raises(ValueError, match=message):
        Scipy(method, **options)


def test_scipy_that_is_not_installed_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "scipy.optimize", None)
    with pytest.raises(ImportError, match="Scipy needs the package scipy"):
        Scipy("BFGS")


# The textbooks' starts, through the layer.


def textbook(y, index):
    functions = (banana, beale, himmelblau, two_wells)
    return jax.lax.switch(index, functions, y)


def beale(y):
    return sum((a - y[0] * (1 - y[1] ** k)) ** 2 for k, a in enumerate((1.5, 2.25, 2.625), 1))


def himmelblau(y):
    return (y[0] ** 2 + y[1] - 11) ** 2 + (y[0] + y[1] ** 2 - 7) ** 2


def two_wells(y):
    """A saddle at 0, minima at (0, 1) and (0, -1); the ridge is the first axis."""
    return y[0] ** 2 / 2 - y[1] ** 2 / 2 + y[1] ** 4 / 4


STARTS = {
    "Rosenbrock": (0, [-1.2, 1.0], [1.0, 1.0]),
    "Beale": (1, [1.0, 1.0], [3.0, 0.5]),
    "Himmelblau": (2, [0.0, 0.0], [3.0, 2.0]),
    "near a saddle": (3, [1e-3, 1e-3], [0.0, 1.0]),
}


@pytest.mark.parametrize("solver", [LBFGS(), NewtonCG()], ids=["LBFGS", "NewtonCG"])
def test_native_solvers_find_the_minima_of_the_textbooks_or_report_the_saddle(solver):
    @jax.jit
    def found(start, index):
        return solve(textbook, start, index, solver=solver, on_failure="ignore")

    for name, (index, start, minimum) in STARTS.items():
        solution = found(jnp.array(start), index)
        assert Status(int(solution.report.status)) is Status.CONVERGED, name
        assert_close(solution.y, jnp.array(minimum), 1e-8)
    # Exactly on the saddle there is nothing to descend along.
    on_saddle = found(jnp.zeros(2), 3).report.status
    assert Status(int(on_saddle)) is Status.NOT_A_MINIMUM
    # On the ridge that leads there the gradient never points aside: the saddle is never passed
    # off as a minimum.
    from_ridge = found(jnp.array([1.0, 0.0]), 3)
    at_minimum = jnp.max(jnp.abs(jnp.abs(from_ridge.y) - jnp.array([0.0, 1.0]))) < 1e-8
    expected = Status.CONVERGED if at_minimum else Status.NOT_A_MINIMUM
    assert Status(int(from_ridge.report.status)) is expected
    assert at_minimum == isinstance(solver, NewtonCG)
