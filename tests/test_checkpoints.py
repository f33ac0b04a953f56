"""Checkpoints: what was saved comes back to the bit, and what was damaged is recognised."""

import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models.checkpoints import KEPT, Checkpoints, CorruptCheckpointError
from models.training import EpochMetrics, Progress


def progress_after(epochs, dtype=jnp.float64):
    history = tuple(EpochMetrics(n, 0.1 / n, 1 / (3 * n), 0.7**n, np.pi) for n in range(1, epochs))
    state = {"w": jnp.arange(6.0, dtype=dtype).reshape(2, 3) / 7 + epochs, "b": jnp.array([0.1])}
    last = EpochMetrics(epochs, 0.1, 5e-324, 1.7976931348623157e308, 0.1)
    return Progress(state, (jnp.array(epochs), {"m": jnp.array(-0.0)}), (*history, last))


def save(folder, *epochs):
    with Checkpoints(folder) as checkpoints:
        for epoch in epochs:
            checkpoints.save(progress_after(epoch))


def load(folder, like=None):
    with Checkpoints(folder) as checkpoints:
        return checkpoints.load_latest(like or progress_after(1))


def bits(progress):
    leaves = jax.tree.leaves((progress.state, progress.opt_state))
    return [(leaf.dtype, leaf.shape, np.asarray(leaf).tobytes()) for leaf in leaves]


def flip_a_bit_of_the_arrays(checkpoint):
    """In the middle of each file that holds values."""
    for path in (checkpoint / "arrays").rglob("d/*"):
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)


def change_a_number_of_the_history(checkpoint):
    """Which leaves a file that orbax itself finds nothing wrong with."""
    file = checkpoint / "history" / "metadata"
    text = file.read_text()
    assert "0.7" in text
    file.write_text(text.replace("0.7", "0.8"))


def cut_every_file(checkpoint):
    for path in checkpoint.rglob("*"):
        if path.is_file():
            path.write_bytes(path.read_bytes()[:10])


def remove_the_arrays(checkpoint):
    shutil.rmtree(checkpoint / "arrays")


def exchange_it_for_an_older_one(checkpoint):
    older = checkpoint.with_name("2")
    shutil.rmtree(checkpoint)
    shutil.copytree(older, checkpoint)


DAMAGES = (
    flip_a_bit_of_the_arrays,
    change_a_number_of_the_history,
    cut_every_file,
    remove_the_arrays,
    exchange_it_for_an_older_one,
)


def test_the_newest_progress_comes_back_to_the_bit(tmp_path):
    save(tmp_path, 1, 2, 3)
    progress, warnings = load(tmp_path)
    assert warnings == []
    assert progress.history == progress_after(3).history
    assert bits(progress) == bits(progress_after(3))


def test_only_the_last_few_are_kept(tmp_path):
    save(tmp_path, 1, 2, 3, 4)
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.isdecimal()) == ["3", "4"]
    assert KEPT == 2


def test_an_empty_folder_has_no_progress_and_no_warning(tmp_path):
    assert load(tmp_path) == (None, [])


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_newest_checkpoint_gives_way_to_the_one_before_with_a_warning(tmp_path, damage):
    save(tmp_path, 2, 3)
    damage(tmp_path / "3")
    progress, warnings = load(tmp_path)
    assert progress.history == progress_after(2).history
    assert bits(progress) == bits(progress_after(2))
    assert len(warnings) == 1 and f"checkpoint {tmp_path / '3'} is damaged" in warnings[0]


def test_a_damaged_checkpoint_is_removed_so_that_its_epoch_can_be_saved_again(tmp_path):
    save(tmp_path, 2, 3)
    flip_a_bit_of_the_arrays(tmp_path / "3")
    load(tmp_path)
    assert not (tmp_path / "3").exists()
    save(tmp_path, 3)
    progress, warnings = load(tmp_path)
    assert warnings == [] and bits(progress) == bits(progress_after(3))


def test_when_all_are_damaged_the_error_names_each_and_the_remedy_and_nothing_is_removed(tmp_path):
    save(tmp_path, 2, 3)
    for name in ("2", "3"):
        flip_a_bit_of_the_arrays(tmp_path / name)
    with pytest.raises(CorruptCheckpointError, match="--overwrite") as caught:
        load(tmp_path)
    assert str(tmp_path / "2") in str(caught.value) and str(tmp_path / "3") in str(caught.value)
    assert (tmp_path / "2").is_dir() and (tmp_path / "3").is_dir()


def test_a_checkpoint_of_another_precision_is_not_converted_in_silence(tmp_path):
    save(tmp_path, 1)
    with pytest.raises(CorruptCheckpointError, match="damaged"):
        load(tmp_path, progress_after(1, jnp.float32))


def test_a_relative_folder_will_do(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save(Path("here"), 1)
    assert bits(load(tmp_path / "here")[0]) == bits(progress_after(1))


def test_late_reads_of_a_damaged_checkpoint_are_not_shown_and_all_else_is(tmp_path, monkeypatch):
    """Orbax's reads that end after the first has failed; whether there are any is chance."""
    shown = []
    monkeypatch.setattr(sys, "unraisablehook", shown.append)
    late, other = (
        SimpleNamespace(exc_value=RuntimeError(text)) for text in ("Event loop is closed", "else")
    )
    before = sys.unraisablehook
    with Checkpoints(tmp_path):
        sys.unraisablehook(late)
        sys.unraisablehook(other)
    assert shown == [other]
    assert sys.unraisablehook == before
