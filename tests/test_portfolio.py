"""The learned portfolio: its constraints, its slopes, and that it never looks ahead."""

import json
import shlex
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
from rich.console import Console

from data import adjust_for_splits
from models import allocation, backtest, portfolio
from models.output import UserError
from models.portfolio import EQUAL, LEARNED, TWO_STAGE, Config, run, walk_forward

NAMES = ("AAA", "BBB", "CCC")
DAYS = 216


def write_prices(path, days=DAYS):
    """Three stocks whose logarithms wander, one of them wilder than the others."""
    steps = np.random.default_rng(0).normal(0.001, [0.01, 0.012, 0.03], (days, 3))
    closes = 50 * np.exp(np.cumsum(steps, axis=0))
    dates = pd.bdate_range("2010-01-04", periods=days).strftime("%Y-%m-%d")
    frames = [
        pd.DataFrame({"Date": dates, "Close": closes[:, i], "Name": name})
        for i, name in enumerate(NAMES)
    ]
    pd.concat(frames).to_csv(path, index=False)
    return path


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """Ten decisions in two blocks, the first after 40 days of which to learn."""
    path = write_prices(tmp_path_factory.mktemp("prices") / "prices.csv")
    return Config(
        path=str(path), epochs=2, first_train=40, block=25, batch_size=16, learning_rate=0.03
    )


@pytest.fixture(scope="module")
def closes(config):
    return backtest.closes_of(portfolio.load_prices(config.path))


@pytest.fixture(scope="module")
def finished(config, tmp_path_factory):
    return run(config, tmp_path_factory.mktemp("run") / "finished")


@pytest.fixture(scope="module")
def market(config, closes):
    return backtest.make_market(closes.to_numpy(), config.hold)


def walked(config, closes, tmp_path):
    return walk_forward(config, closes, tmp_path, Console(quiet=True))


def days_of(config):
    blocks = backtest.decision_days(DAYS, config.hold, config.first_train, config.block)
    return np.concatenate(list(blocks))


def test_the_weights_satisfy_every_constraint(finished, config, market):
    days = days_of(config)
    for name in (LEARNED, TWO_STAGE):
        weights = finished.paths[name].weights
        assert weights.shape == (10, 3) and finished.paths[name].failed == 0
        np.testing.assert_allclose(weights.sum(axis=1), 1, atol=1e-6)
        assert weights.min() >= -1e-6 and weights.max() <= config.cap + 1e-6
        for day, w in zip(days, weights, strict=True):
            covariance = np.asarray(market.covariance[day])
            equal = np.full(3, 1 / 3)
            limit = config.volatility**2 * equal @ covariance @ equal
            assert w @ covariance @ w <= limit * (1 + 1e-6)
    assert np.ptp(finished.paths[LEARNED].weights, axis=0).max() > 0.01  # it does choose


def test_the_slope_of_the_realised_utility_is_that_of_central_differences(config, market):
    """In every lane of one call: of the forecasts themselves, and of each moved up and down. The
    first days leave the volatility limit idle, others are held by it and by the cap."""
    step = 1e-6
    moves = jnp.concatenate([jnp.zeros((1, 3)), step * jnp.eye(3), -step * jnp.eye(3)])
    before = jnp.array([0.5, 0.3, 0.2])
    rules = config.rules
    lanes = jax.jit(
        jax.vmap(
            jax.value_and_grad(partial(allocation.earned, rules=rules), has_aux=True),
            in_axes=(0, None, None, None),
        )
    )
    kinds = set()
    for forecast in ([0.0, 0.0, 0.0], [0.001, 0.002, 0.001], [0.0, 0.0, 0.03], [0.03, 0.01, 0.0]):
        covariance, returns = market.covariance[150], market.future[150]
        (values, (weights, solved)), slopes = lanes(
            jnp.array(forecast)[None] + moves, covariance, before, returns
        )
        assert solved.all()
        expected = (values[1:4] - values[4:]) / (2 * step)
        # The solutions are right to 1e-12, so that the differences are to 1e-12 / step.
        np.testing.assert_allclose(slopes[0], expected, rtol=1e-6, atol=1e-6)
        w, equal = weights[0], jnp.full(3, 1 / 3)
        limit = rules.volatility**2 * equal @ covariance @ equal
        kinds.add((bool(w @ covariance @ w > 0.9999 * limit), bool(w.max() > 0.9999 * rules.cap)))
    assert len(kinds) >= 2


def test_no_portfolio_depends_on_prices_that_come_after_it(finished, config, closes, tmp_path):
    """From the middle of the second block on all prices change; each portfolio up to the day
    before stays as it was to the bit, and the next does not."""
    days = days_of(config)
    day = days[7]
    changed = closes.copy()
    changed.iloc[day:] *= np.linspace(1.05, 1.4, len(changed) - day)[:, None] * [1, 0.9, 1.3]
    other = walked(config, changed, tmp_path)
    for name in (LEARNED, TWO_STAGE, EQUAL):
        before, after = finished.paths[name].weights, other.paths[name].weights
        assert np.array_equal(before[:7], after[:7])
        assert name == EQUAL or not np.array_equal(before[7], after[7])


def test_the_same_seed_gives_the_same_numbers_and_another_seed_others(
    finished, config, closes, tmp_path
):
    again = walked(config, closes, tmp_path)
    other = walked(replace(config, seed=1), closes, tmp_path)
    for name in (LEARNED, TWO_STAGE):
        assert np.array_equal(again.paths[name].weights, finished.paths[name].weights)
        assert not np.array_equal(other.paths[name].weights, finished.paths[name].weights)
    assert again.performances == finished.performances
    assert np.array_equal(other.paths[EQUAL].net, finished.paths[EQUAL].net)


def test_a_day_that_cannot_be_solved_for_is_left_out_and_counted(config, market):
    """The rest of the batch moves the network as it does alone."""
    optimizer = allocation.make_optimizer(config.learning_rate)
    graphdef, learner = allocation.new_learner(market, optimizer, config.seed)
    step = allocation.make_utility_step(graphdef, optimizer, config.rules, config.hold)
    days = np.arange(130, 146)
    poisoned = replace(learner, memory=learner.memory.at[days[3] - config.hold].set(jnp.nan))
    after, utility = step(poisoned, market, days)
    assert int(after.failed) == 1 and np.isfinite(utility)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(after.weights))
    assert np.array_equal(after.memory[days[3]], learner.memory[days[3]])
    # Of the same mean is a batch in which another of its days stands in for the poisoned one ...
    whole, _ = step(learner, market, days)
    others = np.delete(np.arange(16), 3)
    np.testing.assert_allclose(after.memory[days[others]], whole.memory[days[others]], rtol=1e-9)
    # ... and returns that are missing are left out no less than solutions.
    blind = replace(market, future=market.future.at[days[3]].set(jnp.nan))
    found, _ = step(learner, blind, days)
    assert int(found.failed) == 1
    for a, b in zip(jax.tree.leaves(found.weights), jax.tree.leaves(after.weights), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12)


def test_equal_weights_are_as_plain_arithmetic_has_them(finished, config, closes):
    wealth, shares, nets, traded = 1.0, None, [], []
    for day in days_of(config):
        price = closes.to_numpy()[day]
        held = np.full(3, wealth / 3) if shares is None else shares * price
        bought = held.sum() / 3 - held
        traded.append(np.abs(bought).sum() / held.sum())
        left = held.sum() - 1e-4 * config.cost * np.abs(bought).sum()
        shares = np.full(3, left / 3) / price
        wealth, before = shares @ closes.to_numpy()[day + config.hold], held.sum()
        nets.append(wealth / before - 1)
    nets, years = np.array(nets), len(nets) * config.hold / 252
    found = finished.performances[EQUAL]
    np.testing.assert_allclose(finished.paths[EQUAL].net, nets, rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(found.annual_return, wealth ** (1 / years) - 1, rtol=1e-10)
    np.testing.assert_allclose(found.volatility, nets.std() * np.sqrt(252 / 5), rtol=1e-12)
    np.testing.assert_allclose(found.sharpe.value, nets.mean() * 252 / 5 / found.volatility)
    np.testing.assert_allclose(found.utility, np.mean(nets - 2.5 * nets**2) * 252 / 5)
    np.testing.assert_allclose(found.turnover, np.sum(traded) / years, rtol=1e-12)
    curve = np.concatenate([[1.0], np.cumprod(1 + nets)])
    worst = max(1 - curve[j] / curve[i] for i in range(len(curve)) for j in range(i, len(curve)))
    np.testing.assert_allclose(found.drawdown, worst, rtol=1e-12)


def test_resampled_histories_keep_blocks_together_and_cover_every_period_alike():
    chosen = backtest.resampled(50, seed=0)
    assert chosen.shape == (backtest.RESAMPLES, 50)
    steps = np.diff(chosen, axis=1) % 50
    assert (steps[:, np.arange(49) % backtest.BLOCK != backtest.BLOCK - 1] == 1).all()
    counts = np.bincount(chosen.ravel(), minlength=50) / backtest.RESAMPLES
    np.testing.assert_allclose(counts, 1, atol=0.1)  # 2000 draws: a deviation of 0.02 or so


def test_a_split_changes_no_return_and_an_adjusted_file_is_left_alone():
    date = pd.to_datetime(["2005-02-24", "2005-02-25", "2005-02-28", "2005-03-01"])
    prices = pd.DataFrame({"date": date, "name": "AAPL", "close": [88.0, 89.0, 44.9, 44.5]})
    adjusted = adjust_for_splits(prices)
    assert list(adjusted["close"]) == [44.0, 44.5, 44.9, 44.5]
    assert adjust_for_splits(adjusted).equals(adjusted)


# The command.


def test_a_run_leaves_its_numbers_and_picture(finished):
    assert {p.name for p in finished.output.iterdir()} == {
        "config.json", "results.json", "portfolio.png",
    }  # fmt: skip
    assert (finished.output / "portfolio.png").read_bytes().startswith(b"\x89PNG")
    saved = json.loads((finished.output / "results.json").read_text())
    assert saved["periods"] == 10 and saved["training_solves_failed"] == 0
    for name, found in finished.performances.items():
        assert saved["strategies"][name]["utility"] == found.utility
    gain = saved["learned_utility_over"][EQUAL]
    learned, equal = (finished.performances[name].utility for name in (LEARNED, EQUAL))
    np.testing.assert_allclose(gain["value"], learned - equal, rtol=1e-9)
    assert gain["low"] < gain["value"] < gain["high"]


@pytest.mark.parametrize(
    ("option", "finding"),
    [
        ("--epochs 0", "--epochs must be at least 1; found 0."),
        ("--seed -1", "--seed must be at least 0 and below 2**63; found -1."),
        ("--cap 1.5", "--cap must be above 0 and at most 1; found 1.5."),
        ("--cap 0.2", "--cap must be above 1/3, for 3 stocks; found 0.2."),
        ("--volatility 1", "--volatility must be above 1 and below 100; found 1.0."),
        ("--cost nan", "--cost must be at least 0 and below 10000; found nan."),
        ("--risk-aversion 0", "--risk-aversion must be positive and finite; found 0.0."),
        ("--names AAA", "--names must be two stocks or more; found AAA."),
        ("--names AAA XYZ", "names: XYZ not in "),
        ("--path nowhere.csv", "path 'nowhere.csv' does not exist."),
        ("", "the stocks have 216 days in common; 639 are needed"),
    ],
)
def test_what_cannot_be_meant_is_named_in_one_line_and_no_folder_made(
    config, tmp_path, capsys, option, finding
):
    command = ["--path", config.path, "--output", str(tmp_path / "run"), *shlex.split(option)]
    assert portfolio.main(command) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {finding}") or finding in line
    assert not (tmp_path / "run").exists()


def test_a_folder_that_holds_a_run_is_refused_with_the_remedy(finished, config):
    with pytest.raises(UserError, match=r"another run\. Replace it by --overwrite, or choose"):
        run(config, finished.output)


def test_the_help_shows_examples_that_are_commands(capsys):
    with pytest.raises(SystemExit) as ended:
        portfolio.main(["--help"])
    assert ended.value.code == 0
    assert portfolio.EXAMPLES in capsys.readouterr().out
    for line in portfolio.EXAMPLES.splitlines():
        if " -m " in line:
            portfolio.make_parser().parse_args(shlex.split(line.split("models.portfolio")[1]))
