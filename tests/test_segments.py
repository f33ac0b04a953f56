"""Segments: cut within a stock, split with a seed or by date, scaled and back."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data import load_prices, make_segments


def prices_of(lengths, first="2010-01-04"):
    """Stocks A, B, ... of the given numbers of rows; a close tells its stock and its row."""
    frames = [
        pd.DataFrame(
            {
                "date": pd.bdate_range(first, periods=count),
                "name": chr(ord("A") + stock),
                "close": 1000.0 * (stock + 1) + np.arange(count),
            }
        )
        for stock, count in enumerate(lengths)
    ]
    return pd.concat(frames, ignore_index=True)


@settings(max_examples=40, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 150), min_size=1, max_size=4),
    base_days=st.integers(1, 12),
    target_days=st.integers(1, 6),
    scaling=st.sampled_from(["segment", "none"]),
    seed=st.integers(0, 100),
)
def test_every_segment_is_consecutive_rows_of_one_stock(
    lengths, base_days, target_days, scaling, seed
):
    days = base_days + target_days
    total = sum(count // days for count in lengths)
    options = dict(base_days=base_days, target_days=target_days, scaling=scaling, seed=seed)
    if round(0.7 * total) in (0, total):
        with pytest.raises(ValueError, match="rows"):
            make_segments(prices_of(lengths), **options)
        return
    train, test = make_segments(prices_of(lengths), **options)
    assert len(train) + len(test) == total
    seen = set()
    for part in (train, test):
        close = np.concatenate([part.to_dollars(part.base), part.to_dollars(part.target)], axis=1)
        np.testing.assert_allclose(np.diff(close[:, :, 0], axis=1), 1, rtol=1e-9)
        stocks = np.array([1000.0 * (ord(name) - ord("A") + 1) for name in part.name])
        first = close[:, 0, 0] - stocks
        np.testing.assert_allclose(first % days % days, (first % days).round(), atol=1e-8)
        seen |= {(name, round(row)) for name, row in zip(part.name, first, strict=True)}
    assert len(seen) == total


def test_the_same_seed_gives_the_same_segments_and_another_seed_others():
    prices = load_prices()
    (a, _), (b, _), (c, _) = (make_segments(prices, seed=seed) for seed in (3, 3, 4))
    np.testing.assert_array_equal(a.base, b.base)
    assert a.base.shape == (len(a), 30, 1) and a.target.shape == (len(a), 10, 1)
    assert not np.array_equal(a.start, c.start)


def test_seventy_per_cent_train_by_default():
    train, test = make_segments(load_prices())
    assert (len(train), len(test)) == (207, 89)


def test_a_chronological_test_begins_after_all_training_has_ended():
    train, test = make_segments(load_prices(), split="chronological")
    assert test.start.min() > train.end.max()
    assert len(train) >= 207 and len(test) >= 80


def test_a_chronological_split_drops_what_lies_across_the_date():
    late = prices_of([400]).assign(name="B")
    late["date"] = pd.bdate_range("2010-01-18", periods=400)
    prices = pd.concat([prices_of([400]), late], ignore_index=True)
    train, test = make_segments(prices, split="chronological")
    assert test.start.min() > train.end.max()
    assert len(train) + len(test) == 19


def test_scaling_uses_the_base_days_alone_and_goes_back_to_dollars():
    prices = load_prices()
    train, _ = make_segments(prices)
    dollars, _ = make_segments(prices, scaling="none")
    np.testing.assert_allclose(train.base.mean(axis=1), 0, atol=1e-12)
    np.testing.assert_allclose(train.base.std(axis=1), 1, rtol=1e-12)
    np.testing.assert_allclose(train.to_dollars(train.base), dollars.base, rtol=1e-13)
    np.testing.assert_allclose(train.to_dollars(train.target), dollars.target, rtol=1e-13)
    assert set(dollars.scale) == {1.0} and set(dollars.mean) == {0.0}


def test_a_constant_segment_has_scale_one():
    prices = prices_of([400]).assign(close=0.1)
    train, _ = make_segments(prices)
    assert set(train.scale) == {1.0}
    np.testing.assert_allclose(train.base, 0, atol=1e-12)
    np.testing.assert_allclose(train.to_dollars(train.target), 0.1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scaling": "minmax"}, "scaling must be one of segment, none; found 'minmax'"),
        ({"split": "random"}, "split must be one of shuffled, chronological; found 'random'"),
        ({"base_days": 0}, "base_days must be a whole number of at least 1; found 0"),
        ({"target_days": 2.5}, "target_days"),
        ({"train_fraction": 1.0}, "train_fraction must lie between 0 and 1; found 1.0"),
        ({"base_days": 500}, "too few rows for one segment of 500 . 10 days.*A, has 400"),
        ({"base_days": 390}, "1 segments of 400 days leave 1 to train and 0 to test"),
        ({"base_days": 190, "train_fraction": 0.01}, "leave 0 to train and 2 to test"),
    ],
)
def test_what_cannot_be_meant_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        make_segments(prices_of([400]), **options)


def test_prices_with_a_hole_are_refused():
    prices = prices_of([400])
    prices.loc[7, "close"] = np.nan
    with pytest.raises(ValueError, match="close of A on 2010-01-13 is missing"):
        make_segments(prices)
