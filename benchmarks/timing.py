"""Measuring contenders in turn in one process, on a machine that others may be using too."""

import importlib.metadata
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial

Clock = Callable[[], float]


def interleave(
    contenders: Mapping[str, Callable[[], object]],
    rounds: int,
    budget_s: float = 0.05,
    clock: Clock = time.perf_counter,
) -> dict[str, list[float]]:
    """Seconds of each run of each contender, whose calls end when their work is done."""
    return take_turns(
        {name: partial(turn, run, budget_s, clock) for name, run in contenders.items()}, rounds
    )


def take_turns(
    contenders: Mapping[str, Callable[[], list[float]]], rounds: int
) -> dict[str, list[float]]:
    """The seconds that the contenders' turns return.

    Every round gives each contender a turn, the order rotating, so that a slow spell of the
    machine strikes all alike.
    """
    names = list(contenders)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for k in range(rounds):
        for name in names[k % len(names) :] + names[: k % len(names)]:
            seconds[name] += contenders[name]()
    return seconds


def turn(
    run: Callable[[], object], budget_s: float, clock: Clock = time.perf_counter
) -> list[float]:
    """Seconds of each run; as long as another one fits into ``budget_s``, it is repeated."""
    seconds: list[float] = []
    while not seconds or sum(seconds) + seconds[-1] <= budget_s:
        start = clock()
        run()
        seconds.append(clock() - start)
    return seconds


def median_ms(seconds: Sequence[float]) -> float:
    return 1e3 * statistics.median(seconds)


def machine() -> str:
    """Processor, cores, system and Python; nothing that names the host."""
    model = platform.processor() or platform.machine()
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            lines = [line for line in file if line.startswith("model name")]
        model = lines[0].split(":", 1)[1].strip() if lines else model
    except OSError:
        pass
    return (
        f"{model}, {os.cpu_count()} cores, {platform.system()}, Python {platform.python_version()}"
    )


def versions(*packages: str) -> dict[str, str]:
    return {package: importlib.metadata.version(package) for package in packages}
