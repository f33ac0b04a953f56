"""`Report` in words, and the failure policies: raise, warn, nan, ignore."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from argmin_jax import ArgminError, Report, Status
from argmin_jax.report import (
    EXPLANATIONS,
    ON_FAILURE,
    blank_report,
    failure_message,
    failure_offset,
)

FAILURES = [status for status in Status if status is not Status.CONVERGED]


def report_of(status, **numbers):
    """A report of the numbers given; the others are those below."""
    fields = {
        "steps": 12, "stationarity": 3.21e-3, "infeasibility": 0.0, "complementarity": 0.0,
        "solution_error": 4.5e-2, "gradient_error": 6.7e-1, "curvature": 8.9, "rank_deficiency": 1,
        "weakly_active": 0,
    }  # fmt: skip
    fields |= numbers
    return Report(jnp.asarray(status), **{k: jnp.asarray(v) for k, v in fields.items()})


@pytest.mark.parametrize("status", Status)
def test_report_reads_as_status_meaning_numbers_and_remedy(status):
    meaning, remedy = EXPLANATIONS[status]
    lines = str(report_of(status)).splitlines()
    assert lines[0] == f"{status.name}: {meaning}"
    assert [line.split() for line in lines[1:7]] == [
        ["steps", "12"],
        ["stationarity", "3.2e-03"],
        ["solution_error", "4.5e-02"],
        ["gradient_error", "6.7e-01"],
        ["curvature", "8.9e+00"],
        ["rank_deficiency", "1"],
    ]
    assert lines[7:] == ([f"  {remedy}"] if remedy else [])


def test_report_shows_what_concerns_constraints_where_there_is_something_to_show():
    text = str(report_of(Status.CONVERGED, infeasibility=1e-9, weakly_active=2))
    assert "  infeasibility    1.0e-09" in text
    assert "  weakly_active    2" in text
    assert "complementarity" not in text


def test_report_says_what_is_not_known():
    unknown = {"steps": -1, "rank_deficiency": -1, "curvature": jnp.nan}
    text = str(report_of(Status.CONVERGED, **unknown))
    for name in unknown:
        assert [name, "not", "known"] in [line.split() for line in text.splitlines()]


def test_summary_is_one_line_of_status_and_numbers():
    assert report_of(Status.STALLED).summary() == (
        "STALLED: steps 12, stationarity 3.2e-03, solution_error 4.5e-02, gradient_error 6.7e-01, "
        "curvature 8.9e+00, rank_deficiency 1"
    )
    lanes = report_of([0, 1], stationarity=[0.1, 0.2]).summary()
    assert lanes.startswith("2 lanes: 1 CONVERGED, 1 MAX_STEPS, most steps 12")
    assert "\n" not in lanes


def test_report_of_lanes_counts_each_status_and_gives_the_worst_numbers():
    report = report_of(
        [[Status.CONVERGED, Status.MAX_STEPS], [Status.CONVERGED, Status.NOT_FINITE]],
        steps=[[3, 50], [4, 2]],
        stationarity=[[1e-12, 2e-3], [1e-10, np.nan]],
        solution_error=[[1e-9, 0.25], [0.0, np.nan]],
        gradient_error=[[1e-9, 0.5], [1e-16, np.nan]],
        rank_deficiency=[[0, 2], [1, 0]],
    )
    assert str(report) == (
        "4 lanes: 2 CONVERGED, 1 MAX_STEPS, 1 NOT_FINITE\n"
        "  most steps 50, largest residual 2.0e-03, largest solution_error 2.5e-01,\n"
        "  largest gradient_error 5.0e-01, largest rank_deficiency 2"
    )


def test_report_of_lanes_that_all_failed_can_be_read():
    nan = jnp.full(2, jnp.nan)
    report = report_of([Status.NOT_FINITE] * 2, stationarity=nan, solution_error=nan)
    assert str(report).startswith("2 lanes: 2 NOT_FINITE\n")


def test_blank_report_says_that_nothing_was_solved():
    report = blank_report(jnp.float32)
    assert str(report).startswith("NOT_RUN: nothing was solved yet")
    assert report.stationarity.dtype == jnp.float32


@pytest.mark.parametrize("status", FAILURES)
def test_message_names_status_residual_tolerance_steps_and_remedy(status):
    meaning, remedy = EXPLANATIONS[status]
    message = failure_message(1e-8, np.array(int(status)), np.array(12), np.array(3.2e-3))
    assert message == (
        f"argmin: {status.name}: {meaning}; scaled residual 3.2e-03 against tol 1e-08 after "
        f"12 steps. {remedy} To go on regardless, pass "
        'on_failure="warn", "nan" or "ignore".'
    )
    assert "\n" not in message


def test_message_on_a_batch_counts_the_failed_lanes_and_speaks_of_the_worst():
    status = np.array([0, Status.MAX_STEPS, Status.STALLED, Status.MAX_STEPS])
    message = failure_message(1e-8, status, np.array([9, 5, 7, 5]), np.array([0.9, 0.1, 0.5, 0.2]))
    assert "argmin: STALLED" in message
    assert "(3 of 4 lanes failed; the worst is lane 2)" in message
    assert "scaled residual 5.0e-01" in message
    assert "after 7 steps" in message


@pytest.mark.parametrize("worst", [np.nan, np.inf])
def test_lane_that_is_not_finite_is_the_worst(worst):
    status = np.array([Status.MAX_STEPS, Status.NOT_FINITE])
    message = failure_message(1e-8, status, np.array([5, 0]), np.array([0.9, worst]))
    assert "argmin: NOT_FINITE" in message
    assert "lane 1" in message


# The policies, on a function y = 2 x that fails where x < 0.


def guarded(policy):
    def fn(x):
        status = jnp.where(x < 0, Status.MAX_STEPS, Status.CONVERGED)
        return 2 * x + failure_offset(policy, 1e-8, status, jnp.array(7), 0.5 + 0 * x)

    return fn


def slope(fn):  # of a function of the result, which is there only if the result is
    return jax.grad(lambda x: fn(x) ** 2)


WAYS = {
    "eager": lambda f: f,
    "jit": jax.jit,
    "grad": slope,
    "jit of grad": lambda f: jax.jit(slope(f)),
    "grad of jit": lambda f: slope(jax.jit(f)),
}
LANES = {
    "vmap": jax.vmap,
    "jit of vmap": lambda f: jax.jit(jax.vmap(f)),
    "vmap of jit": lambda f: jax.vmap(jax.jit(f)),
    "vmap of vmap": lambda f: lambda x: jax.vmap(jax.vmap(f))(x[None])[0],
    "vmap of grad": lambda f: jax.vmap(slope(f)),
    "map": lambda f: lambda x: jax.lax.map(f, x),
}
SENTENCE = r"argmin: MAX_STEPS.*scaled residual 5\.0e-01 against tol 1e-08 after 7 steps"


def run(fn, x):
    result = jax.block_until_ready(fn(x))
    jax.effects_barrier()
    return result


@pytest.mark.parametrize("policy", ON_FAILURE)
@pytest.mark.parametrize("way", (WAYS | LANES).values(), ids=(WAYS | LANES).keys())
def test_no_policy_touches_a_success(policy, way, recwarn):
    x = jnp.array([1.0, 3.0]) if way in LANES.values() else jnp.array(3.0)
    plain = way(lambda x: 2 * x)(x)
    assert np.array_equal(run(way(guarded(policy)), x), plain)
    assert not [w for w in recwarn if "argmin" in str(w.message)]


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS.keys())
def test_raise_ends_with_our_sentence(way):
    with pytest.raises(Exception, match=SENTENCE) as caught:
        run(way(guarded("raise")), -3.0)
    assert "on_failure" in str(caught.value).splitlines()[-1]


def test_raise_is_an_argmin_error_where_values_are_at_hand():
    with pytest.raises(ArgminError, match=SENTENCE):
        guarded("raise")(-3.0)


@pytest.mark.parametrize("way", LANES.values(), ids=LANES.keys())
def test_raise_under_vmap_looks_at_every_lane(way):
    with pytest.raises(Exception, match=SENTENCE):
        run(way(guarded("raise")), jnp.array([1.0, -3.0, 2.0]))


def test_raise_under_vmap_counts_the_lanes():
    with pytest.raises(Exception, match="2 of 3 lanes failed"):
        run(jax.jit(jax.vmap(guarded("raise"))), jnp.array([-1.0, 3.0, -2.0]))


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS.keys())
def test_warn_says_the_same_and_goes_on(way):
    with pytest.warns(RuntimeWarning, match=SENTENCE):
        found = run(way(guarded("warn")), -3.0)
    assert found == way(lambda x: 2 * x)(-3.0)


@pytest.mark.parametrize("way", LANES.values(), ids=LANES.keys())
def test_warn_under_vmap_goes_on_in_every_lane(way):
    x = jnp.array([1.0, -3.0])
    with pytest.warns(RuntimeWarning, match=SENTENCE):
        found = run(way(guarded("warn")), x)
    assert np.array_equal(found, way(lambda x: 2 * x)(x))


@pytest.mark.parametrize("way", [jax.vmap, LANES["jit of vmap"], LANES["map"]])
def test_nan_poisons_the_failed_lanes_alone(way, recwarn):
    found = run(way(guarded("nan")), jnp.array([1.0, -3.0, 2.0]))
    np.testing.assert_array_equal(found, [2.0, np.nan, 4.0])
    assert not [w for w in recwarn if "argmin" in str(w.message)]


def test_ignore_touches_nothing(recwarn):
    found = run(jax.jit(jax.vmap(guarded("ignore"))), jnp.array([1.0, -3.0]))
    np.testing.assert_array_equal(found, [2.0, -6.0])
    assert not [w for w in recwarn if "argmin" in str(w.message)]


@pytest.mark.parametrize("policy", ["raise", "warn"])
def test_lanes_that_all_converged_call_nothing_on_the_host(policy, monkeypatch):
    calls = []
    monkeypatch.setattr("argmin_jax.report._announce", lambda *args: calls.append(args))
    fn = jax.jit(jax.vmap(guarded(policy)))
    run(fn, jnp.array([1.0, 2.0]))
    assert not calls
    run(fn, jnp.array([1.0, -2.0]))
    assert len(calls) == 1


def test_check_keeps_the_dtype_of_the_residual():
    for policy in ON_FAILURE:
        offset = failure_offset(
            policy, 1e-4, jnp.array(0), jnp.array(1), jnp.array(1e-5, jnp.float32)
        )
        assert offset.dtype == jnp.float32
