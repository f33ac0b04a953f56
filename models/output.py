"""The output folder of a run: what it holds, what may be replaced, and writing whole files."""

import hashlib
import json
import os
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from . import plots

OUTPUTS = ("metrics.csv", "results.json", "loss.png", "forecast.png", "portfolio.png")

# Options that may change when a run is taken up again.
FREE_ON_RESUME = ("epochs", "checkpoint_every", "path")


class UserError(ValueError):
    """Something that the person at the command line can put right; its text says how."""


def one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def require(condition: bool, name: str, wanted: str, found: object) -> None:
    """Refuses the value of an option; ``name`` is that of the configuration's field."""
    if not condition:
        raise UserError(f"--{name.replace('_', '-')} must be {wanted}; found {found!r}.")


def record_of(config: Any, prices: pd.DataFrame) -> dict:
    """The contents of config.json: a configuration's options, and a fingerprint of the prices."""
    rows = prices.to_csv(index=False)
    return asdict(config) | {"prices_sha256": hashlib.sha256(rows.encode()).hexdigest()}


def prepare_output(output: Path, record: dict, resume: bool | None, overwrite: bool) -> None:
    """Makes sure that the folder holds nothing, or what is to be resumed, and config.json.

    ``resume`` is None for a command whose runs cannot be taken up again.
    """
    if resume and overwrite:
        raise UserError("--resume and --overwrite exclude each other. Choose one.")
    if output.exists() and not output.is_dir():
        raise UserError(f"--output {output} is a file. Choose a folder.")
    saved = output / "config.json"
    if saved.exists():
        before = _read_record(saved)
        if overwrite:
            _remove_run(output)
        elif resume:
            _check_same(output, before, record)
        else:
            go_on = "" if resume is None else "go on with it by --resume, "
            raise UserError(
                f"--output {output} holds another run. Replace it by --overwrite, {go_on}or choose "
                "another folder."
            )
    elif output.exists():
        others = [path.name for path in output.iterdir() if not path.name.endswith(".partial")]
        if others:
            raise UserError(
                f"--output {output} is not empty and holds no run (it has {sorted(others)[0]} but "
                "no config.json). Choose another folder."
            )
    output.mkdir(parents=True, exist_ok=True)
    if not saved.exists():
        write(saved, json.dumps(record, indent=2) + "\n")


def _read_record(saved: Path) -> dict:
    """What a run wrote to its config.json. Models of other makers have a config.json too, and
    nothing of theirs is to be replaced."""
    try:
        record = json.loads(saved.read_text(encoding="utf-8"))
    except ValueError:
        record = None
    if not isinstance(record, dict) or "prices_sha256" not in record:
        raise UserError(
            f"--output {saved.parent} holds no run: its config.json is damaged, or something "
            "else wrote it. Choose another folder."
        )
    return record


def _check_same(output: Path, before: dict, record: dict) -> None:
    now = json.loads(json.dumps(record))
    for name in now:
        if name in FREE_ON_RESUME or before.get(name) == now[name]:
            continue
        if name == "prices_sha256":
            raise UserError(
                f"--resume: the prices are not those that the run in {output} began with. "
                "Give the same ones, or choose another --output."
            )
        option = "--" + name.replace("_", "-")
        raise UserError(
            f"--resume: {option} is {_shown(now[name])} now, but was {_shown(before.get(name))} "
            f"when the run in {output} began. Give it as then, or choose another --output."
        )


def _shown(value: object) -> str:
    """The value of an option; a list as one gives it at the command line."""
    if value is None:
        return "left out"
    return " ".join(value) if isinstance(value, list) else str(value)


def _remove_run(output: Path) -> None:
    """Deletes what a run writes and nothing else; config.json, which marks it as a run, last."""
    checkpoints = output / "checkpoints"
    if checkpoints.exists():
        shutil.rmtree(checkpoints)
    for name in (*OUTPUTS, "config.json"):
        (output / name).unlink(missing_ok=True)


def write(path: Path, text: str) -> None:
    """Writes a file whole or not at all."""
    partial = path.with_name(path.name + ".partial")
    with open(partial, "w", encoding="utf-8", newline="") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


def save(figure: Figure, path: Path) -> None:
    partial = path.with_name(path.name + ".partial")
    plots.save_figure(figure, partial)
    os.replace(partial, path)
