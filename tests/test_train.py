"""Training from the command line: what a run leaves, how it is taken up again, how it refuses."""

import csv
import io
import itertools
import json
import pkgutil
import runpy
import shlex
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pandas as pd
import pytest
from rich.console import Console

from models import plots, train, training
from models.checkpoints import Checkpoints
from models.output import UserError
from models.run import Config, run

ROOT = Path(__file__).parents[1]
EPOCHS = 4  # with a checkpoint after the second and the last
WRITTEN = {
    "config.json", "metrics.csv", "results.json", "loss.png", "forecast.png", "checkpoints",
}  # fmt: skip


def write_prices(path, seed=0, change=lambda close: close, days=400):
    """Two stocks that swing about 100 dollars, in segments of 40 days: 14 to train, 6 to test."""
    noise = np.random.default_rng(seed)
    day = np.arange(days)
    frames = [
        pd.DataFrame(
            {
                "Date": pd.bdate_range("2010-01-04", periods=days).strftime("%Y-%m-%d"),
                "Close": change(100 + 10 * np.sin(day / 4 + phase) + noise.normal(size=days) / 2),
                "Name": name,
            }
        )
        for phase, name in enumerate(("AAA", "BBB"))
    ]
    pd.concat(frames).to_csv(path, index=False)
    return path


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    path = write_prices(tmp_path_factory.mktemp("prices") / "prices.csv")
    return Config(
        path=str(path), epochs=EPOCHS, batch_size=2, learning_rate=1e-2, checkpoint_every=2
    )


@pytest.fixture(scope="module")
def finished(config, tmp_path_factory):
    """A run that nothing interrupted."""
    return run(config, tmp_path_factory.mktemp("run") / "finished")


@pytest.fixture
def copy(finished, tmp_path):
    """A folder to spoil, as the finished run left it."""
    return Path(shutil.copytree(finished.output, tmp_path / "copy"))


@pytest.fixture
def without_pictures(monkeypatch):
    """For runs of which the pictures, half of their time, say nothing new."""
    monkeypatch.setattr("models.plots.save_figure", lambda figure, path: path.touch())


def arguments(config, output, *more):
    """The command line of a configuration."""
    return [
        "--path", config.path, "--epochs", str(config.epochs),
        "--batch-size", str(config.batch_size), "--learning-rate", str(config.learning_rate),
        "--checkpoint-every", str(config.checkpoint_every), "--output", str(output), *more,
    ]  # fmt: skip


def bits(progress):
    leaves = jax.tree.leaves((progress.state, progress.opt_state))
    return [(leaf.dtype, leaf.shape, np.asarray(leaf).tobytes()) for leaf in leaves]


def progress_in(output, like):
    with Checkpoints(output / "checkpoints") as checkpoints:
        progress, warnings = checkpoints.load_latest(like)
    assert warnings == []
    return progress


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def rows_of(output):
    with open(output / "metrics.csv", newline="") as file:
        return list(csv.DictReader(file))


def error_of(capsys, command):
    """The one line on stderr, without "error: ", of a command that ends with exit code 2."""
    capsys.readouterr()
    assert train.main(command) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    return line.removeprefix("error: ")


# What a run leaves.


def test_a_run_leaves_its_metrics_results_pictures_and_checkpoints(finished):
    output = finished.output
    assert {path.name for path in output.iterdir()} == WRITTEN
    assert {path.name for path in (output / "checkpoints").iterdir()} == {"2", "4"}
    for picture in ("loss.png", "forecast.png"):
        content = (output / picture).read_bytes()
        assert content.startswith(b"\x89PNG") and len(content) > 10_000
    errors = json.loads((output / "results.json").read_text())
    assert list(errors) == ["model", "persistence", "ridge"]
    for name, values in errors.items():
        assert values == vars(finished.errors[name])


def test_metrics_csv_has_a_row_per_epoch_with_every_digit(finished):
    rows = rows_of(finished.output)
    assert [row["epoch"] for row in rows] == ["1", "2", "3", "4"]
    for row, expected in zip(rows, finished.progress.history, strict=True):
        assert {name: float(value) for name, value in row.items()} == vars(expected)


def test_config_json_says_what_the_numbers_depend_on(finished, config):
    saved = json.loads((finished.output / "config.json").read_text())
    assert len(saved.pop("prices_sha256")) == 64
    assert Config(**saved) == config


def test_the_loss_falls_and_the_last_test_loss_is_that_of_the_results(finished):
    first, *_, last = finished.progress.history
    assert last.train_loss < 0.8 * first.train_loss
    assert last.test_loss < 0.8 * first.test_loss
    np.testing.assert_allclose(
        finished.errors["model"].rmse_scaled ** 2, last.test_loss, rtol=1e-12
    )


def test_the_learning_rate_decays_by_epoch_and_lambda_is_learned(finished):
    rates = [row.learning_rate for row in finished.progress.history]
    np.testing.assert_allclose(rates, [1e-2, 0.9e-2, 0.81e-2, 0.729e-2], rtol=1e-12)
    assert len({row.ridge_lambda for row in finished.progress.history} | {1.0}) == EPOCHS + 1


def test_the_same_seed_gives_the_same_files_and_another_seed_other_numbers(
    finished, config, tmp_path
):
    again = run(config, tmp_path / "again")
    assert bits(again.progress) == bits(finished.progress)
    for name in ("metrics.csv", "results.json", "config.json", "loss.png", "forecast.png"):
        assert (again.output / name).read_bytes() == (finished.output / name).read_bytes()
    other = run(replace(config, seed=1, epochs=1), tmp_path / "other")
    assert other.progress.history[0].train_loss != finished.progress.history[0].train_loss


@pytest.mark.usefixtures("without_pictures")
def test_the_command_line_shows_the_table_and_does_what_run_does(
    finished, config, tmp_path, capsys
):
    assert train.main(arguments(config, tmp_path / "[/a]")) == 0
    shown = capsys.readouterr()
    assert shown.err == ""
    for text in ("14 training and 6 test segments", "Error on 6 test segments", "forecaster"):
        assert text in shown.out
    assert "[/a]" in shown.out.replace("\n", "")
    metrics = (tmp_path / "[/a]" / "metrics.csv").read_bytes()
    assert metrics == (finished.output / "metrics.csv").read_bytes()


@pytest.mark.usefixtures("without_pictures")
def test_prices_that_never_move_are_no_error(config, tmp_path, capsys):
    flat = write_prices(tmp_path / "flat.csv", change=lambda close: np.full_like(close, 5.0))
    command = arguments(replace(config, path=str(flat), epochs=1), tmp_path / "run")
    assert train.main(command) == 0
    assert "these prices leave nothing to learn" in capsys.readouterr().out


def test_a_float32_run_computes_and_saves_in_float32(finished, config, tmp_path):
    """In a process of its own: only there is float64 off as it is for a user."""
    output = tmp_path / "run"
    command = arguments(replace(config, epochs=2), output, "--dtype", "float32")
    done = subprocess.run(
        [sys.executable, "-m", "models.train", *command], cwd=ROOT, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")
    first, second = (float(row["train_loss"]) for row in rows_of(output))
    assert second < first
    state, opt_state = jax.tree.map(
        lambda leaf: leaf.astype(np.float32) if leaf.dtype == np.float64 else leaf,
        (finished.progress.state, finished.progress.opt_state),
    )
    saved = progress_in(output, replace(finished.progress, state=state, opt_state=opt_state))
    dtypes = {dtype for dtype, _, _ in bits(saved)}
    assert np.dtype("float32") in dtypes and np.dtype("float64") not in dtypes


# A batch that cannot be learned from.


def poison(monkeypatch, call):
    """Puts NaN into the prices of the given call of the training step."""
    original = training.make_train_step

    def make_train_step(*args):
        step, calls = original(*args), itertools.count(1)

        def poisoned(state, opt_state, x, y):
            return step(state, opt_state, np.nan * x if next(calls) == call else x, y)

        return poisoned

    monkeypatch.setattr("models.training.make_train_step", make_train_step)


@pytest.mark.usefixtures("without_pictures")
def test_a_poisoned_batch_is_skipped_counted_and_logged_and_the_run_goes_on(
    finished, config, tmp_path, monkeypatch
):
    """Of 7 steps an epoch, the 10th is the third of the second epoch."""
    shown = io.StringIO()
    with monkeypatch.context() as patched:
        poison(patched, 10)
        result = run(config, tmp_path / "run", console=Console(file=shown, width=300))
    assert [row["skipped"] for row in rows_of(tmp_path / "run")] == ["0", "1", "0", "0"]
    assert rows_of(tmp_path / "run")[0] == rows_of(finished.output)[0]
    (line,) = [line for line in shown.getvalue().splitlines() if "skipped" in line]
    assert "epoch 2, step 3 skipped" in line and "argmin NOT_FINITE" in line
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(result.progress.opt_state))
    first, *_, last = result.progress.history
    assert last.train_loss < 0.8 * first.train_loss


@pytest.mark.usefixtures("without_pictures")
def test_a_run_with_a_poisoned_batch_is_taken_up_again_to_the_same_end(
    config, tmp_path, monkeypatch
):
    def stop(row):
        if row.epoch == 3:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        poison(patched, 10)
        whole = run(config, tmp_path / "whole")
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        poison(patched, 10)
        run(config, tmp_path / "run", on_epoch=stop)
    assert_resumes_to_the_same_end(config, tmp_path / "run", whole, saved=2)


# Interruptions.


def interrupt(monkeypatch, target, call):
    """Makes the given call of a function raise KeyboardInterrupt in its place."""
    original = pkgutil.resolve_name(target)
    calls = 0

    def function(*args, **kwargs):
        nonlocal calls
        calls += 1
        if calls == call:
            raise KeyboardInterrupt
        return original(*args, **kwargs)

    monkeypatch.setattr(target, function)


def assert_resumes_to_the_same_end(config, output, finished, saved):
    seen = []
    resumed = run(config, output, resume=True, on_epoch=lambda row: seen.append(row.epoch))
    assert seen == list(range(saved + 1, EPOCHS + 1))
    assert bits(resumed.progress) == bits(finished.progress)
    assert {path.name for path in output.iterdir()} == WRITTEN
    for name in ("metrics.csv", "results.json"):
        assert (output / name).read_bytes() == (finished.output / name).read_bytes()


@pytest.mark.usefixtures("without_pictures")
@pytest.mark.parametrize(("epoch", "saved"), [(1, 0), (2, 2), (3, 2), (4, 4)])
def test_a_run_interrupted_after_an_epoch_ends_as_if_it_had_not_been(
    finished, config, tmp_path, epoch, saved
):
    def stop(row):
        if row.epoch == epoch:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(config, tmp_path / "run", on_epoch=stop)
    assert len(rows_of(tmp_path / "run")) == epoch
    assert_resumes_to_the_same_end(config, tmp_path / "run", finished, saved)


@pytest.mark.usefixtures("without_pictures")
@pytest.mark.parametrize(
    ("target", "call", "saved"),
    [
        ("os.replace", 1, 0),  # config.json
        ("models.training.evaluate", 3, 2),  # within the third epoch
        ("models.run.Checkpoints.save", 2, 2),
        ("models.run._write_metrics", 3, 2),  # saved, but the row is not written
        ("models.plots.save_figure", 2, 4),
    ],
)
def test_a_run_interrupted_within_an_epoch_or_a_file_ends_as_if_it_had_not_been(
    finished, config, tmp_path, monkeypatch, target, call, saved
):
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        interrupt(patched, target, call)
        run(config, tmp_path / "run")
    assert_resumes_to_the_same_end(config, tmp_path / "run", finished, saved)


@pytest.mark.usefixtures("without_pictures")
def test_a_killed_process_is_taken_up_again_with_more_epochs_and_a_moved_file(
    finished, config, tmp_path
):
    """And ends as a run of as many epochs does, of whose weights this process has no part."""
    output = tmp_path / "run"
    endless = replace(config, epochs=100_000, checkpoint_every=1)
    process = subprocess.Popen(
        [sys.executable, "-m", "models.train", *arguments(endless, output)],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        while not (output / "metrics.csv").exists() or len(rows_of(output)) < 2:
            try:
                _, error = process.communicate(timeout=0.02)
                pytest.fail(f"ended before it was killed: {error}")
            except subprocess.TimeoutExpired:
                pass
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == -9
    epochs = len(rows_of(output)) + 2
    moved = shutil.copy(config.path, tmp_path / "moved.csv")
    last = replace(config, path=str(moved), epochs=epochs)
    assert train.main(arguments(last, output, "--resume")) == 0
    assert train.main(arguments(last, tmp_path / "at_once")) == 0
    first, second = (progress_in(tmp_path / name, finished.progress) for name in ("run", "at_once"))
    assert len(first.history) == epochs and bits(first) == bits(second)
    metrics = (tmp_path / "at_once" / "metrics.csv").read_bytes()
    assert (output / "metrics.csv").read_bytes() == metrics


def test_an_interrupt_at_the_keyboard_ends_with_the_remedy(
    finished, config, tmp_path, monkeypatch, capsys
):
    interrupt(monkeypatch, "models.training.evaluate", 1)
    assert train.main(arguments(config, tmp_path / "run")) == 130
    assert "the same command with --resume" in capsys.readouterr().err


@pytest.mark.usefixtures("without_pictures")
def test_a_damaged_newest_checkpoint_is_passed_over_with_a_warning(finished, config, copy, capsys):
    shutil.rmtree(copy / "checkpoints" / "4" / "arrays")
    assert train.main(arguments(config, copy, "--resume")) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "warning: checkpoint" in shown and "going on from an earlier one" in shown
    assert bits(progress_in(copy, finished.progress)) == bits(finished.progress)
    assert (copy / "metrics.csv").read_bytes() == (finished.output / "metrics.csv").read_bytes()


def test_when_every_checkpoint_is_damaged_the_error_is_one_line_with_the_remedy(
    config, copy, capsys
):
    for name in ("2", "4"):
        shutil.rmtree(copy / "checkpoints" / name / "arrays")
    error = error_of(capsys, arguments(config, copy, "--resume"))
    assert f"no checkpoint in {copy / 'checkpoints'} can be read" in error
    assert "use --overwrite" in error


# The output folder.


@pytest.mark.parametrize(
    "option",
    [
        "--names AAA", "--scaling none", "--split chronological", "--train-fraction 0.5",
        "--batch-size 3", "--learning-rate 0.1", "--decay 0.5", "--last-activation",
        "--dtype float32", "--seed 1",
    ],
)  # fmt: skip
def test_a_run_does_not_go_on_with_another_option(config, copy, capsys, option):
    before = contents(copy)
    error = error_of(capsys, arguments(config, copy, "--resume", *option.split()))
    name, *value = option.split()
    assert f"--resume: {name} is {value[0] if value else True} now, but was " in error
    assert contents(copy) == before


def test_a_run_does_not_go_on_with_other_prices_or_to_fewer_epochs(config, copy, tmp_path, capsys):
    before = contents(copy)
    other = replace(config, path=str(write_prices(tmp_path / "other.csv", seed=1)))
    error = error_of(capsys, arguments(other, copy, "--resume"))
    assert "the prices are not those" in error
    error = error_of(capsys, arguments(replace(config, epochs=3), copy, "--resume"))
    assert "--epochs 3" in error and "has 4 epochs behind it" in error
    assert contents(copy) == before


def test_a_folder_with_a_run_is_refused_with_both_remedies(config, copy, capsys):
    before = contents(copy)
    error = error_of(capsys, arguments(config, copy))
    assert f"{copy} holds another run" in error
    assert "by --resume" in error and "by --overwrite" in error
    assert contents(copy) == before


@pytest.mark.usefixtures("without_pictures")
def test_overwrite_replaces_the_run_and_nothing_else(finished, config, copy):
    (copy / "notes.txt").write_text("mine")
    (copy / "drafts").mkdir()
    (copy / "drafts" / "loss.png").write_text("mine too")
    fewer = replace(config, epochs=1)
    assert train.main(arguments(fewer, copy, "--overwrite")) == 0
    assert {path.name for path in copy.iterdir()} == {*WRITTEN, "notes.txt", "drafts"}
    assert (copy / "notes.txt").read_text() == "mine"
    assert (copy / "drafts" / "loss.png").read_text() == "mine too"
    assert [path.name for path in (copy / "checkpoints").iterdir()] == ["1"]
    assert rows_of(copy) == rows_of(finished.output)[:1]


def test_what_is_left_of_a_run_before_it_wrote_again_is_not_its_result(config, copy, monkeypatch):
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        interrupt(patched, "models.training.evaluate", 1)
        run(config, copy, overwrite=True)
    assert {path.name for path in copy.iterdir()} == {"config.json", "metrics.csv", "checkpoints"}
    assert rows_of(copy) == []


@pytest.mark.parametrize("option", [[], ["--overwrite"], ["--resume"]])
@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("thesis.tex", "years of work"),
        ("config.json", '{"architectures": ["a model of another maker"]}'),
        ("config.json", "[]"),
        ("config.json", '{"prices_sha2'),
    ],
)
def test_a_folder_of_other_things_is_left_alone(config, tmp_path, capsys, option, name, content):
    folder = tmp_path / "precious"
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "checkpoints" / "weights.bin").write_bytes(b"1234")
    (folder / name).write_text(content)
    before = contents(folder)
    error = error_of(capsys, arguments(config, folder, *option))
    assert "holds no run" in error and "Choose another folder" in error
    assert contents(folder) == before


def test_a_file_is_no_folder_and_resume_excludes_overwrite(config, tmp_path, capsys):
    (tmp_path / "file").write_text("mine")
    assert "file is a file" in error_of(capsys, arguments(config, tmp_path / "file", "--overwrite"))
    assert (tmp_path / "file").read_text() == "mine"
    both = arguments(config, tmp_path / "run", "--resume", "--overwrite")
    assert "--resume and --overwrite exclude each other" in error_of(capsys, both)


def test_the_next_free_number_is_the_folder_and_resume_takes_the_last(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    runs = Path("runs")
    assert train.choose_output(None, resume=False) == runs / "001"
    assert train.choose_output(None, resume=True) == runs / "001"
    for name in ("007", "mine", "8 old"):
        (runs / name).mkdir(parents=True)
    assert train.choose_output(None, resume=False) == runs / "008"
    assert train.choose_output(None, resume=True) == runs / "007"
    for name in ("999", "1000"):
        (runs / name).mkdir()
    assert train.choose_output(None, resume=False) == runs / "1001"
    assert train.choose_output("here", resume=True) == Path("here")


# What is refused.


@pytest.mark.parametrize(
    ("option", "finding"),
    [
        ("--epochs 0", "--epochs must be at least 1; found 0."),
        ("--epochs -3", "--epochs must be at least 1; found -3."),
        ("--batch-size 0", "--batch-size must be at least 1; found 0."),
        ("--checkpoint-every 0", "--checkpoint-every must be at least 1; found 0."),
        ("--learning-rate -1", "--learning-rate must be positive and finite; found -1.0."),
        ("--learning-rate nan", "--learning-rate must be positive and finite; found nan."),
        ("--learning-rate inf", "--learning-rate must be positive and finite; found inf."),
        ("--decay 0", "--decay must be above 0 and at most 1; found 0.0."),
        ("--decay 1.5", "--decay must be above 0 and at most 1; found 1.5."),
        ("--seed -1", "--seed must be at least 0 and below 2**63; found -1."),
        (f"--seed {2**63}", f"--seed must be at least 0 and below 2**63; found {2**63}."),
        ("--train-fraction 1", "train_fraction must lie between 0 and 1; found 1.0."),
        ("--train-fraction 0.01", "leave 0 to train and 20 to test"),
        ("--batch-size 15", "batch_size 15 is more than the 14 training segments. Lower it"),
        ("--names AAA XYZ", "names: XYZ not in "),
        ("--path nowhere.csv", "path 'nowhere.csv' does not exist. Give a .csv"),
    ],
)
def test_a_value_that_cannot_be_meant_is_named_and_no_folder_made(
    config, tmp_path, capsys, option, finding
):
    assert finding in error_of(capsys, arguments(config, tmp_path / "run", *option.split()))
    assert not (tmp_path / "run").exists()


def test_the_configuration_refuses_a_dtype_that_it_does_not_know():
    with pytest.raises(UserError, match="--dtype must be one of float64, float32; found 'int8'"):
        Config(dtype="int8")


@pytest.mark.parametrize(
    ("text", "finding"),
    [
        ("Date,Open,Name\n2010-01-04,1,A\n", "must have the columns Date, Close and Name; Close"),
        ("", "is not a CSV file"),
        ("Date,Close,Name\n2010-01-04,1,A\n", "too few rows for one segment of 30 + 10 days"),
        ("Date,Close,Name\n2010-01-04,ten,A\n", "the close 'ten' of A"),
    ],
)
def test_a_file_that_is_no_table_of_prices_gives_one_line(config, tmp_path, capsys, text, finding):
    path = tmp_path / "bad.csv"
    path.write_text(text)
    command = arguments(replace(config, path=str(path)), tmp_path / "run")
    assert finding in error_of(capsys, command)


def test_the_module_runs_as_a_script_whose_exit_code_is_that_of_main(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["train", "--path", "nowhere.csv"])
    monkeypatch.delitem(sys.modules, "models.train")
    with pytest.raises(SystemExit) as ended:
        runpy.run_module("models.train", run_name="__main__")
    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith("error: path 'nowhere.csv' does not exist.")


@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_an_inner_problem_that_diverges_gives_one_line_and_no_log(config, tmp_path, capsys, caplog):
    """Prices whose squares overflow: no point is finite for the predictor's objective."""
    huge = write_prices(tmp_path / "huge.csv", change=lambda close: close * 1e160)
    command = arguments(replace(config, path=str(huge)), tmp_path / "run")
    error = error_of(capsys, [*command, "--scaling", "none", "--no-last-activation"])
    assert error.startswith("the inner problem was not solved; lower --learning-rate? argmin: NOT_")
    assert caplog.records == []


@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_a_loss_that_is_not_finite_ends_the_run_with_the_remedy(config, tmp_path, capsys):
    """Targets whose squares overflow, of which the base days know nothing."""
    jump = np.where(np.arange(400) % 40 < 30, 1, 1e160)
    path = write_prices(tmp_path / "jump.csv", change=lambda close: close * jump)
    error = error_of(capsys, arguments(replace(config, path=str(path)), tmp_path / "run"))
    assert error.startswith("the loss is not finite in epoch 1. Lower --learning-rate (0.01)")


def test_an_error_of_ours_keeps_its_traceback(config, tmp_path, monkeypatch):
    def fail(*_):
        raise ValueError("a mistake in the code")

    monkeypatch.setattr("models.training.train_epoch", fail)
    with pytest.raises(ValueError, match="a mistake in the code"):
        train.main(arguments(config, tmp_path / "run"))


def test_the_help_shows_examples_that_are_commands(capsys):
    with pytest.raises(SystemExit) as ended:
        train.main(["--help"])
    assert ended.value.code == 0
    assert train.EXAMPLES in capsys.readouterr().out
    lines = [
        line.split("models.train")[1] for line in train.EXAMPLES.splitlines() if " -m " in line
    ]
    assert len(lines) == 6
    for line in lines:
        train.make_parser().parse_args(shlex.split(line))


# The pictures.


def test_the_picture_of_the_loss_draws_the_history(finished):
    (axes,) = plots.loss_figure(finished.progress.history, 0.25).axes
    training, test, persistence = axes.get_lines()
    history = finished.progress.history
    assert list(training.get_ydata()) == [row.train_loss for row in history]
    assert list(test.get_ydata()) == [row.test_loss for row in history]
    assert set(persistence.get_ydata()) == {0.25}
    assert list(training.get_xdata()) == [1, 2, 3, 4]
