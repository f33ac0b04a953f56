"""Checkpoints by orbax: all of a run's `Progress`, so that going on equals never having stopped.

A checkpoint carries the SHA-256 of what it holds: one that was damaged, or only half deleted
when the process was killed, is recognised and passed over.
"""

import hashlib
import json
import logging
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from .training import EpochMetrics, Progress

KEPT = 2


class CorruptCheckpointError(RuntimeError):
    """Not one of the checkpoints of a run can be read."""


class Checkpoints:
    """The checkpoints in a folder, each numbered by the epochs that it has behind it.

    A context manager. Saving is synchronous: what `save` returned from is on the disk. It goes
    to a temporary folder that is renamed at the end, so a kill leaves no half checkpoint.
    """

    def __init__(self, folder: Path):
        # Orbax tells the root logger of every event that it could not measure.
        logging.getLogger("absl").setLevel(logging.ERROR)
        options = ocp.CheckpointManagerOptions(
            max_to_keep=KEPT, cleanup_tmp_directories=True, enable_async_checkpointing=False
        )
        self.folder = folder
        self._manager = ocp.CheckpointManager(folder.absolute(), options=options)

    def __enter__(self) -> "Checkpoints":
        # Orbax reads all arrays at once. When one is damaged it closes the event loop under the
        # others, each of which then would show a traceback that nothing can catch.
        self._hook = sys.unraisablehook
        sys.unraisablehook = self._drop_late_reads
        return self

    def __exit__(self, *_: object) -> None:
        self._manager.close()
        sys.unraisablehook = self._hook

    def _drop_late_reads(self, unraisable: Any) -> None:
        if str(unraisable.exc_value) != "Event loop is closed":
            self._hook(unraisable)

    def save(self, progress: Progress) -> None:
        arrays = _arrays(progress)
        history = [asdict(row) for row in progress.history]
        self._manager.save(
            len(progress.history),
            args=ocp.args.Composite(
                arrays=ocp.args.StandardSave(arrays),
                history=ocp.args.JsonSave({"rows": history, "sha256": _digest(arrays, history)}),
            ),
            force=True,
        )

    def load_latest(self, like: Progress) -> tuple[Progress | None, list[str]]:
        """The newest checkpoint that is whole, and a warning for each newer one, now deleted.

        Args:
            like: a progress of the same structure, shapes and dtypes, for instance the initial.

        Returns:
            None if there is no checkpoint.

        Raises:
            CorruptCheckpointError: there are checkpoints, and none is whole.
        """
        warnings: list[str] = []
        damaged: list[int] = []
        for epoch in sorted(self._manager.all_steps(), reverse=True):
            # A damaged file may fail in any way inside orbax; whichever it is, the answer is the
            # next older checkpoint, and the finding is passed on.
            try:
                progress = self._load(epoch, like)
            except Exception as error:
                finding = (str(error).strip() or type(error).__name__).splitlines()[0][:160]
                warnings.append(f"checkpoint {self.folder / str(epoch)} is damaged ({finding})")
                damaged.append(epoch)
                continue
            for bad in damaged:
                self._manager.delete(bad)
            return progress, warnings
        if damaged:
            raise CorruptCheckpointError(
                f"no checkpoint in {self.folder} can be read: {'; '.join(warnings)}. Delete "
                f"{self.folder} to train from the beginning with --resume, or use --overwrite."
            )
        return None, []

    def _load(self, epoch: int, like: Progress) -> Progress:
        template = _arrays(like)
        restored = self._manager.restore(
            epoch,
            args=ocp.args.Composite(
                arrays=ocp.args.StandardRestore(template), history=ocp.args.JsonRestore()
            ),
        )
        arrays, history = restored["arrays"], restored["history"]
        if _digest(arrays, history["rows"]) != history["sha256"]:
            raise ValueError("its contents do not match their checksum")
        if len(history["rows"]) != epoch:
            raise ValueError(f"it holds {len(history['rows'])} epochs")
        structure = jax.tree.structure((like.state, like.opt_state))
        state, opt_state = jax.tree.unflatten(
            structure, [jax.numpy.asarray(arrays[name]) for name in template]
        )
        return Progress(state, opt_state, tuple(EpochMetrics(**row) for row in history["rows"]))


def _arrays(progress: Progress) -> dict[str, np.ndarray]:
    """Every array of the state and of the optimizer's by its place, in the order of the tree."""
    leaves, _ = jax.tree.flatten_with_path((progress.state, progress.opt_state))
    return {
        jax.tree_util.keystr(path, simple=True, separator="."): np.asarray(leaf)
        for path, leaf in leaves
    }


def _digest(arrays: dict[str, np.ndarray], history: list[dict[str, Any]]) -> str:
    sha = hashlib.sha256(json.dumps(history, sort_keys=True).encode())
    for name in sorted(arrays):
        array = np.asarray(arrays[name])
        sha.update(f"{name} {array.dtype} {array.shape}".encode())
        sha.update(array.tobytes())
    return sha.hexdigest()
