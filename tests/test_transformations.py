"""Every composition of the table in docs/transformations.md, on a problem with a closed form.

y* = t^(1/3), entry by entry, so that derivatives of every order are known.
"""

import itertools
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import pytest
from jax.errors import JaxRuntimeError

from argmin_jax import ArgminError, Auto, argmin, solve

from .problems import assert_close, cube_root

PAGE = Path(__file__).parents[1] / "docs" / "transformations.md"
T = jnp.array([0.7, 1.5, 2.0])
START = jnp.ones(3)
BATCH = jnp.stack([T, 2 * T])


def root(t):
    return t ** (1 / 3)


def slope(t):
    return t ** (-2 / 3) / 3


def curvature(t):
    return -2 / 9 * t ** (-5 / 3)


def minimiser(t, y0=START, **options):
    return argmin(cube_root, y0, t, **options)


def loss(t):
    return jnp.sum(minimiser(t))


def closing_over(t, y0=START):
    return argmin(lambda y: jnp.sum(y**4 / 4 - t * y), y0)


forward = partial(minimiser, forward_mode=True)


def forward_loss(t):
    return jnp.sum(forward(t))


def _scanned(fn, ts):
    return jax.lax.scan(lambda total, t: (total + jnp.sum(fn(t)), None), 0.0, ts)[0]


def _while(t):
    def body(carry):
        k, y = carry
        return k + 1, minimiser(t, y)

    return jax.lax.while_loop(lambda carry: carry[0] < 2, body, (0, START))[1]


# The table: the composition as its row names it, what it computes, and the closed form.
BY_DEFAULT = {
    "`jit`": (lambda: jax.jit(minimiser)(T), root(T)),
    "`grad`": (lambda: jax.grad(loss)(T), slope(T)),
    "`value_and_grad`": (lambda: jax.value_and_grad(loss)(T), (jnp.sum(root(T)), slope(T))),
    "`jacrev`": (lambda: jax.jacrev(minimiser)(T), jnp.diag(slope(T))),
    "`vjp`": (lambda: jax.vjp(minimiser, T)[1](T)[0], T * slope(T)),
    "`jit` of `grad`": (lambda: jax.jit(jax.grad(loss))(T), slope(T)),
    "`grad` of `jit`": (lambda: jax.grad(jax.jit(loss))(T), slope(T)),
    "`vmap` over params": (lambda: jax.vmap(minimiser)(BATCH), root(BATCH)),
    "`vmap` over y0": (
        lambda: jax.vmap(minimiser, (None, 0))(T, jnp.stack([START, 2 * START])),
        jnp.stack([root(T)] * 2),
    ),
    "`vmap` over closed-over arrays": (lambda: jax.vmap(closing_over)(BATCH), root(BATCH)),
    "`vmap` of `vmap`": (
        lambda: jax.vmap(jax.vmap(lambda t: minimiser(t, jnp.ones(()))))(BATCH),
        root(BATCH),
    ),
    "`vmap` of `grad`": (lambda: jax.vmap(jax.grad(loss))(BATCH), slope(BATCH)),
    "`grad` of `vmap`": (
        lambda: jax.grad(lambda ts: jnp.sum(jax.vmap(minimiser)(ts)))(BATCH),
        slope(BATCH),
    ),
    "`grad` over closed-over arrays": (
        lambda: jax.grad(lambda t: jnp.sum(closing_over(t)))(T),
        slope(T),
    ),
    "`checkpoint`": (lambda: jax.grad(jax.checkpoint(loss))(T), slope(T)),
    "`scan`, and `grad` through it": (
        lambda: jax.grad(partial(_scanned, minimiser))(BATCH),
        slope(BATCH),
    ),
    "`while_loop`": (lambda: jax.jit(_while)(T), root(T)),
    "`grad` inside a `while_loop`": (
        lambda: jax.lax.while_loop(
            lambda carry: carry[0] < 2, lambda carry: (carry[0] + 1, jax.grad(loss)(T)), (0, T)
        )[1],
        slope(T),
    ),
    "`cond`, and `grad` through it": (
        lambda: jax.grad(lambda t: jax.lax.cond(t[0] > 0, loss, jnp.sum, t))(T),
        slope(T),
    ),
    "`map`": (lambda: jax.lax.map(minimiser, BATCH), root(BATCH)),
    "reverse over reverse": (
        lambda: jax.jacrev(jax.grad(loss))(T),
        jnp.diag(curvature(T)),
    ),
    "`solve(...).value`: `grad` and reverse over reverse": (
        lambda: (
            jax.grad(lambda t: solve(cube_root, START, t).value)(T),
            jax.jacrev(jax.grad(lambda t: solve(cube_root, START, t).value))(T),
        ),
        (-root(T), -jnp.diag(slope(T))),
    ),
}
IN_FORWARD_MODE = {
    "`jvp`": (lambda: jax.jvp(forward, (T,), (T,))[1], T * slope(T)),
    "`jacfwd`": (lambda: jax.jacfwd(forward)(T), jnp.diag(slope(T))),
    "`linearize`": (lambda: jax.linearize(forward, T)[1](T), T * slope(T)),
    "`linear_transpose` of `linearize`": (
        lambda: jax.linear_transpose(jax.linearize(forward, T)[1], T)(T)[0],
        T * slope(T),
    ),
    "`grad`, `jacrev`, with forward mode allowed": (lambda: jax.grad(forward_loss)(T), slope(T)),
    "`hessian`": (lambda: jax.hessian(forward_loss)(T), jnp.diag(curvature(T))),
    "`jit` of `hessian`": (lambda: jax.jit(jax.hessian(forward_loss))(T), jnp.diag(curvature(T))),
    "`jvp` of `grad` (Hessian-vector products)": (
        lambda: jax.jvp(jax.grad(forward_loss), (T,), (T,))[1],
        T * curvature(T),
    ),
    "`vmap` of `jacfwd`": (
        lambda: jax.vmap(jax.jacfwd(forward))(BATCH),
        jnp.stack([jnp.diag(slope(t)) for t in BATCH]),
    ),
    "`jvp` through `scan`": (
        lambda: jax.jvp(partial(_scanned, forward), (BATCH,), (BATCH,))[1],
        jnp.sum(BATCH * slope(BATCH)),
    ),
    "`hessian` through `scan` and `map`": (
        lambda: (
            jax.hessian(lambda t: _scanned(forward, jnp.stack([t, 2 * t])))(T),
            jax.hessian(lambda t: jnp.sum(jax.lax.map(forward, jnp.stack([t, 2 * t]))))(T),
        ),
        (jnp.diag(curvature(T) + 4 * curvature(2 * T)),) * 2,
    ),
    "`jvp` through `while_loop`": (
        lambda: jax.jvp(
            lambda t: jax.lax.while_loop(
                lambda c: c[0] < 2, lambda c: (c[0] + 1, forward(t)), (0, START)
            )[1],
            (T,),
            (T,),
        )[1],
        T * slope(T),
    ),
    "`jvp` over closed-over arrays": (
        lambda: jax.jvp(
            lambda t: argmin(lambda y: jnp.sum(y**4 / 4 - t * y), START, forward_mode=True),
            (T,),
            (T,),
        )[1],
        T * slope(T),
    ),
    "`solve(...).value`: `jvp` and `hessian`": (
        lambda: (
            jax.jvp(lambda t: solve(cube_root, START, t, forward_mode=True).value, (T,), (T,))[1],
            jax.hessian(lambda t: solve(cube_root, START, t, forward_mode=True).value)(T),
        ),
        (-jnp.sum(T * root(T)), -jnp.diag(slope(T))),
    ),
}


@pytest.mark.parametrize("row", BY_DEFAULT)
def test_composition_is_exact_by_default(row):
    compute, expected = BY_DEFAULT[row]
    # Newton's polish leaves y right to rounding; derivatives lose a digit or two to it.
    assert_close(compute(), expected, 1e-12)


@pytest.mark.parametrize("row", IN_FORWARD_MODE)
def test_composition_is_exact_in_forward_mode(row):
    compute, expected = IN_FORWARD_MODE[row]
    assert_close(compute(), expected, 1e-12)


@pytest.mark.parametrize("order", [2, 3])
def test_all_nestings_of_forward_and_reverse_mode_agree_with_the_closed_form(order):
    def of(t):
        return argmin(cube_root, jnp.ones(()), t, forward_mode=True)

    t = jnp.array(2.0)
    expected = {2: curvature(t), 3: 10 / 27 * t ** (-8 / 3)}[order]
    modes = jax.jacfwd, jax.jacrev
    nestings = list(itertools.product(modes, repeat=2))
    if order == 3:  # each once in each place
        nestings = [(modes[0],) * 3, (modes[1],) * 3, (*modes, modes[0]), (*modes[::-1], modes[1])]
    for nesting in nestings:
        derivative = of
        for mode in nesting:
            derivative = mode(derivative)
        assert_close(derivative(t), expected, 1e-12)


def _chain(step, t):
    return jax.lax.scan(lambda y, _: (step(t + y / 10), None), 0.0, None, length=2)[0]


@pytest.mark.parametrize(
    "of_steps",
    [
        _chain,
        lambda step, t: _chain(jax.checkpoint(step), t),
        lambda step, t: jnp.sum(jax.lax.map(step, jnp.stack([t, 2 * t]))),
    ],
    ids=["scan", "scan of checkpoint", "map"],
)
def test_all_nestings_through_a_loop_agree_with_the_closed_form(of_steps):
    """In reverse mode `scan` drops a `custom_jvp`'s rule from the primal result, and with it all
    further derivatives: a rule of that kind alone has a second derivative of zero here."""
    step = partial(argmin, cube_root, jnp.ones(()), forward_mode=True)
    modes = jax.jacfwd, jax.jacrev
    t = jnp.array([0.7, 2.0])
    for nesting in [*itertools.product(modes, repeat=2), (*modes, modes[0])]:
        found, expected = partial(of_steps, step), partial(of_steps, root)
        for mode in nesting:
            found, expected = mode(found), mode(expected)
        assert_close(found(t[0]), expected(t[0]), 1e-12)
        assert_close(jax.vmap(found)(t), jax.vmap(expected)(t), 1e-12)


def test_a_loop_keeps_the_derivative_in_what_its_own_transposition_does_not_touch():
    """The outer derivative is with respect to a, which the inner one knows nothing of."""

    def total(a, b, forward_mode):
        def step(carry, x):
            y = argmin(cube_root, jnp.ones(()), a + carry / 10, forward_mode=forward_mode)
            return carry + b * x * y, None

        return jax.lax.scan(step, 0.0, jnp.array([1.0, 2.0]))[0]

    def expected(a, b):
        first = b * root(a)
        return first + 2 * b * root(a + first / 10)

    a, b = jnp.array(0.7), jnp.array(1.3)
    for outer, forward_mode in ((jax.jacfwd, True), (jax.jacrev, True), (jax.jacrev, False)):
        found = outer(jax.grad(total, argnums=1))(a, b, forward_mode)
        assert_close(found, jax.grad(jax.grad(expected, argnums=1))(a, b), 1e-12)


def test_the_optimal_value_has_its_second_derivative_through_a_loop():
    def values(t):
        return jax.lax.map(
            lambda t: solve(cube_root, jnp.ones(()), t, forward_mode=True).value, jnp.stack([t, t])
        )[0]

    t = jnp.array(0.7)
    for outer, inner in itertools.product((jax.jacfwd, jax.jacrev), repeat=2):
        assert_close(outer(inner(values))(t), -slope(t), 1e-12)


def test_all_second_order_nestings_agree_with_dense_algebra_where_the_hessian_is_full():
    """d^2/dt^2 of c'y* with K(y*, t) y*' = -R by differentiating the dense solve."""
    matrix = jnp.array([[2.0, 0.3], [0.3, 1.0]])
    start = jnp.zeros(2)

    def objective(y, t):
        return jnp.sum(jnp.cosh(y)) + y @ matrix @ y / 2 - jnp.sum(jnp.sin(t) * y)

    def tangent(y, t):  # dy*/dt, as a function of y* and t
        hessian = jax.hessian(objective)(y, t)
        cross = jax.jacfwd(jax.grad(objective), argnums=1)(y, t)
        return -jnp.linalg.solve(hessian, cross)

    t = jnp.array([0.4, -0.9])
    y = argmin(objective, start, t)
    along_y, along_t = jax.jacfwd(tangent, argnums=(0, 1))(y, t)
    expected = jnp.einsum("ijk,kl->ijl", along_y, tangent(y, t)) + along_t
    fn = partial(argmin, objective, start, forward_mode=True)
    for outer, inner in itertools.product((jax.jacfwd, jax.jacrev), repeat=2):
        assert_close(outer(inner(fn))(t), expected, 1e-10)


def test_the_forward_rule_ran_rather_than_differentiation_through_the_iterations():
    """Similar to the derivative of the unrolled iterations, yet not the same in the last bits."""

    def unrolled(t):
        y = START
        for _ in range(6):
            y = y - (y**3 - t) / (3 * y**2)
        return y

    found, other = jax.jvp(forward, (T,), (T,))[1], jax.jvp(unrolled, (T,), (T,))[1]
    np.testing.assert_allclose(found, other, rtol=1e-9)
    program = str(jax.make_jaxpr(lambda t: jax.jvp(forward, (t,), (t,)))(T))
    assert "linear_solve" in program


def test_forward_mode_without_the_option_names_it():
    for transform in (jax.jacfwd, jax.hessian, lambda f: jax.jit(jax.jacfwd(f))):
        with pytest.raises(TypeError, match="forward_mode=True"):
            transform(loss)(T)


@pytest.mark.parametrize("option", ["has_aux", "forward_mode"])
def test_a_flag_that_is_no_bool_is_refused_by_name(option):
    with pytest.raises(TypeError, match=f"{option} must be True or False; found 'yes'"):
        minimiser(T, **{option: "yes"})


def test_a_failed_linear_solve_is_not_silent_in_forward_mode():
    """Beyond the dense limit, conjugate gradients cannot solve a Hessian of condition 1e14."""
    scales = jnp.geomspace(1.0, 1e14, 40)

    def fn(t, policy):
        return argmin(
            lambda y, t: jnp.sum(scales * (y - t) ** 2) / 2 + jnp.sum(y) ** 2 / 2,
            t,  # the start: near enough for the forward pass
            t,
            linear_solver=Auto(dense_limit=2),
            on_failure=policy,
            forward_mode=True,
        )

    ones = jnp.ones(40)
    # The tangent's linear solve runs inside a jitted function: JAX wraps our error in its own.
    with pytest.raises((ArgminError, JaxRuntimeError), match="argmin: LINEAR_SOLVE_FAILED"):
        jax.jvp(lambda t: fn(t, "raise"), (ones,), (ones,))
    tangent = jax.jvp(lambda t: fn(t, "nan"), (ones,), (ones,))[1]
    assert np.all(np.isnan(tangent))


@pytest.mark.parametrize("bounds", [None, (0.0, 5.0)], ids=["free", "bounded"])
def test_jax_debug_nans_finds_no_fault_in_a_healthy_problem(bounds):
    """NaN stands for "not known" within a solve; outside of `jit` JAX looks at each result."""
    y = partial(minimiser, bounds=bounds)
    both_modes = partial(y, forward_mode=True)
    with jax.debug_nans(True):
        assert_close(y(T), root(T), 1e-12)
        assert_close(jax.grad(lambda t: jnp.sum(y(t)))(T), slope(T), 1e-12)
        assert_close(
            jax.hessian(lambda t: jnp.sum(both_modes(t)))(T), jnp.diag(curvature(T)), 1e-12
        )
        with pytest.raises(FloatingPointError):
            y(T * jnp.nan, on_failure="nan")


BATCHED_DERIVATIVES = {
    "grad of vmap": lambda fn: jax.grad(lambda ts: jnp.sum(jax.vmap(fn)(ts) ** 2)),
    "jacrev": lambda fn: jax.vmap(jax.jacrev(fn)),
    "reverse over reverse": lambda fn: jax.vmap(jax.jacrev(jax.jacrev(fn))),
    "hessian": lambda fn: jax.vmap(jax.hessian(fn)),
    "forward over forward": lambda fn: jax.vmap(jax.jacfwd(jax.jacfwd(fn))),
    "reverse over forward": lambda fn: jax.vmap(jax.jacrev(jax.jacfwd(fn))),
}


@pytest.mark.parametrize("bounds", [None, (0.0, 5.0)], ids=["free", "bounded"])
@pytest.mark.parametrize("name", BATCHED_DERIVATIVES)
def test_a_bad_lane_is_nan_in_every_derivative_and_leaves_the_others_alone(name, bounds):
    """Lineax raises an error of its own for a whole batch where a derivative of a linear solve is
    not finite in one lane."""
    derivative = BATCHED_DERIVATIVES[name]
    lanes = jnp.stack([T, T.at[1].set(jnp.nan), 2 * T])
    for forward_mode in (False, True):
        if not forward_mode and ("forward" in name or name == "hessian"):
            continue
        fn = partial(minimiser, bounds=bounds, on_failure="nan", forward_mode=forward_mode)
        found = jax.jit(derivative(fn))(lanes)
        healthy = jax.jit(derivative(fn))(lanes[jnp.array([0, 2])])
        assert_close(found[jnp.array([0, 2])], healthy, 1e-15)
        assert np.all(np.isfinite(healthy))
        assert np.all(np.isnan(found[1]))


@pytest.mark.parametrize("forward_mode", [False, True])
def test_value_and_aux_of_a_bad_lane_are_nan_though_the_objective_has_a_value_at_nan(forward_mode):
    """A comparison with NaN is false: a truncated loss takes it for an outlier, of value 7."""

    def truncated(y, p):
        value = jnp.where(jnp.abs(y) < 2, (y**2 - p) ** 2, 7.0)
        return value, (jnp.abs(y) < 2) * p

    def of(p):  # from a maximum, where p is positive
        options = {"has_aux": True, "on_failure": "nan", "forward_mode": forward_mode}
        return solve(truncated, jnp.zeros(()), p, **options)

    p = jnp.array([1.0, -1.0, 0.5])
    found = jax.jit(jax.vmap(of))(p)
    slopes = jax.jit(jax.vmap(jax.grad(lambda p: of(p).value + of(p).aux)))(p)
    bad = np.array([True, False, True])
    for result in (found.y, found.value, found.aux, slopes):
        np.testing.assert_array_equal(np.isnan(result), bad)
    assert_close(slopes[1], jnp.array(-1.0), 1e-14)  # of p^2 + p


@pytest.mark.parametrize("forward_mode", [False, True])
def test_options_of_solvers_may_be_arrays_or_traced(forward_mode):
    def of(t, rtol):
        linear_solver = lx.CG(rtol=rtol, atol=1e-14)
        return minimiser(t, linear_solver=linear_solver, forward_mode=forward_mode)

    rtol = jnp.array(1e-13)
    assert_close(jax.jit(lambda t: of(t, rtol))(T), root(T), 1e-12)
    assert_close(jax.jit(of)(T, rtol), root(T), 1e-12)
    slopes = jax.jit(jax.grad(lambda t, rtol: jnp.sum(of(t, rtol))))(T, rtol)
    assert_close(slopes, slope(T), 1e-12)


def test_outside_of_jit_a_second_batch_compiles_nothing(caplog):
    other = 2 * BATCH
    for fn in (minimiser, jax.grad(loss)):
        jax.vmap(fn)(BATCH)
        with jax.log_compiles(), caplog.at_level("WARNING"):
            caplog.clear()
            jax.vmap(fn)(other)
            assert not [r for r in caplog.records if "Compiling" in r.getMessage()]


ON_TWO_DEVICES = """
import jax
import jax.numpy as jnp
from jax.sharding import AxisType, PartitionSpec as P

from argmin_jax import argmin

jax.config.update("jax_enable_x64", True)
mesh = jax.make_mesh((2,), ("devices",), axis_types=(AxisType.Auto,))
t = jnp.array([0.5, 1.5, 2.0, 3.0])


def loss(t, forward_mode=False):
    y = argmin(lambda y, t: jnp.sum(y**4 / 4 - t * y), jnp.ones(2), t, forward_mode=forward_mode)
    return jnp.sum(y)


def sharded(fn, in_specs=P("devices"), out_specs=P("devices")):
    sharded = jax.shard_map(
        fn, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False
    )
    return jax.jit(sharded)


def close(found, expected):
    assert found.shape == expected.shape
    assert jnp.max(jnp.abs(found - expected)) < 1e-12, (found, expected)


def total(t, scale):
    return sharded(
        lambda t, scale: jax.lax.psum(loss(scale * t), "devices"), (P("devices"), P()), P()
    )(t, scale)


close(sharded(jax.grad(loss))(t), t ** (-2 / 3) / 3)
value, gradients = jax.value_and_grad(total, argnums=(0, 1))(t, 8.0)
close(value, 2 * jnp.sum(t ** (1 / 3)))
close(gradients[0], 2 * t ** (-2 / 3) / 3)
close(gradients[1], jnp.sum(t ** (1 / 3)) / 12)
hessian = sharded(lambda t: jnp.diag(jax.hessian(lambda t: loss(t, forward_mode=True))(t)))(t)
close(hessian, -2 / 9 * t ** (-5 / 3))
"""


def test_shard_map_over_two_devices_has_the_closed_forms_values_gradients_and_hessian():
    flags = os.environ["XLA_FLAGS"] + " --xla_force_host_platform_device_count=2"
    done = subprocess.run(
        [sys.executable, "-c", ON_TWO_DEVICES],
        env={**os.environ, "XLA_FLAGS": flags},
        cwd=PAGE.parents[1],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr


def test_the_page_shows_every_composition_and_no_other():
    rows = [line.split("|")[1:3] for line in PAGE.read_text().splitlines() if line.startswith("| ")]
    found = {name.strip(): needs.strip() for name, needs in rows[1:] if "---" not in name}
    expected = dict.fromkeys(BY_DEFAULT, "nothing") | {
        "`shard_map`, and `grad` of it": "`check_vma=False` of `shard_map`",
        "`hessian` inside a `shard_map`": "`forward_mode=True`, `check_vma=False` of `shard_map`",
    }
    assert found == expected | dict.fromkeys(
        [*IN_FORWARD_MODE, "every nesting of forward and reverse, to third order"],
        "`forward_mode=True`",
    )
