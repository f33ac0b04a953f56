"""Runs each library in a process of its own, with a limit on the time of each problem."""

import json
import queue
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO

from .worker import Outcome

ROOT = Path(__file__).parents[2]
START_S = 120.0  # of the process itself, on top of the first problem's limit


def outcomes(
    contender: str,
    dtype: str,
    problems: Sequence[str],
    limit_s: float,
    started: Callable[[str], None] = lambda problem: None,
) -> dict[str, Outcome]:
    """What the library did on each problem. A process that hangs or dies is replaced by another
    for the problems after the one that it fell over."""
    found: dict[str, Outcome] = {}
    while len(found) < len(problems):
        left = [problem for problem in problems if problem not in found]
        _run(contender, dtype, left, limit_s, found, started)
    return found


def _run(contender, dtype, problems, limit_s, found, started) -> None:
    command = [sys.executable, "-m", f"{__package__}.worker", contender, dtype, *problems]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, cwd=ROOT
    )
    assert process.stdout is not None
    lines: queue.Queue[str] = queue.Queue()
    threading.Thread(target=_forward, args=(process.stdout, lines), daemon=True).start()
    for k, problem in enumerate(problems):
        started(problem)
        try:
            line = lines.get(timeout=limit_s + (START_S if k == 0 else 0))
        except queue.Empty:
            found[problem] = {"hung": f"no answer within {limit_s:.0f} s"}
            break
        if not line:
            found[problem] = {"raised": f"the process died (exit {process.wait()})"}
            break
        outcome = json.loads(line)
        found[outcome.pop("problem")] = outcome
    process.kill()
    process.wait()


def _forward(stream: IO[str], lines: queue.Queue[str]) -> None:
    """Lines as they come, and an empty one at the end."""
    for line in stream:
        lines.put(line)
    lines.put("")
