"""The comparison with PyTorch compares what it says, and says so when the numbers differ."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from benchmarks import compare, timing
from benchmarks.forecaster_sides import JAX, PYTORCH, build, channels_first

CONTENDERS = ["pytorch_reference", "pytorch_tuned", "argmin_jax", "closed_form"]


@pytest.fixture(scope="module")
def passes():
    """One forward and backward pass of each contender: from one seed, on one batch of prices."""
    torch.set_num_threads(1)
    (batch,) = compare.load_batches(seed=0, size=8, count=1)
    return {name: side.once(*batch) for name, side in build(CONTENDERS, 0).items()}


def test_every_number_is_that_of_pytorch(passes):
    reference = passes["pytorch_reference"]
    parity = {name: compare.differences(found, reference) for name, found in passes.items()}
    assert compare.missed(parity) == []
    assert set(parity["argmin_jax"]) >= {"W*", "predictions", "loss", "predictor.log_lambda"}
    # W*, predictions, loss, lambda, 6 convolutions and 5 normalisations of two weights each.
    assert len(parity["argmin_jax"]) == 26


def test_a_wrong_gradient_is_missed_by_name(passes):
    reference = passes["pytorch_reference"]
    name = "encoder.convs.1.kernel"
    wrong = replace(
        reference, gradients=reference.gradients | {name: reference.gradients[name] * 1.01}
    )
    (line,) = compare.missed({"argmin_jax": compare.differences(wrong, reference)})
    assert name in line
    assert "1.0e-02" in line


def test_a_wrong_w_and_a_nan_are_missed(passes):
    reference = passes["pytorch_reference"]
    for wrong in (reference.w + 1e-7, np.full_like(reference.w, np.nan)):
        lines = compare.missed({"x": compare.differences(replace(reference, w=wrong), reference)})
        assert len(lines) == 1
        assert "W*" in lines[0]


def test_both_sides_begin_at_the_same_random_w_and_warm_it():
    sides = build(["pytorch_tuned", "argmin_jax"], 3)
    ours = sides["argmin_jax"].split()[1]["predictor"]["argmin"]["y"][...]
    theirs = sides["pytorch_tuned"].model.predictor.w
    np.testing.assert_array_equal(ours, theirs)
    (batch,) = compare.load_batches(0, 8, 1)
    sides["pytorch_tuned"].train(*map(channels_first, batch))
    assert not np.allclose(ours, theirs)
    sides["pytorch_tuned"].restart()
    np.testing.assert_array_equal(ours, sides["pytorch_tuned"].model.predictor.w)


def test_rows_give_each_contender_against_the_reference_and_the_floor():
    seconds = {"pytorch_reference": [2.0, 3.0, 9.0], "argmin_jax": [0.02], "closed_form": [0.01]}
    parity = {"argmin_jax": {"loss": 1e-9, "W*": 1e-8}, "closed_form": {"loss": 0.0}}
    timings = dict.fromkeys(compare.WHAT, seconds)
    rows = compare.rows_of(timings, {"argmin_jax": 4000.0}, parity)
    assert [row["what"] for row in rows[::3]] == list(compare.WHAT)
    row = rows[-2]
    assert (row["contender"], row["what"]) == ("argmin_jax", "train_step")
    assert row["median_ms"] == pytest.approx(20)
    assert row["ratio"] == pytest.approx(150)
    assert row["to_closed_form"] == pytest.approx(2)
    assert row["compile_ms"] == 4000
    assert row["max_relative_error"] == 1e-8


def test_the_committed_results_have_the_promised_form_and_meet_the_parity_targets():
    results = json.loads(compare.RESULTS.read_text())
    assert {"machine", "versions", "rows"} <= set(results)
    found = {(row["contender"], row["what"]) for row in results["rows"]}
    assert found == {(c, w) for c in (*PYTORCH, *JAX) for w in compare.WHAT}
    for row in results["rows"]:
        assert {"contender", "what", "median_ms", "ratio", "max_relative_error"} <= set(row)
        assert row["max_relative_error"] <= 1e-6
    assert results["missed"] == []


def test_turns_interleave_rotate_and_repeat_the_fast():
    now, order = [0.0], []

    def contender(name, takes):
        def run():
            order.append(name)
            now[0] += takes

        return run

    runs = {"slow": contender("slow", 1.0), "fast": contender("fast", 0.02)}
    seconds = timing.interleave(runs, rounds=2, budget_s=0.05, clock=lambda: now[0])
    # The fast one is repeated while another run fits into its 50 ms; the order rotates.
    assert order == ["slow", "fast", "fast", "fast", "fast", "slow"]
    assert seconds["slow"] == pytest.approx([1.0, 1.0])
    assert timing.median_ms(seconds["fast"]) == pytest.approx(20)


def test_the_machine_is_named_without_its_host():
    import platform

    assert platform.node() not in timing.machine()
