"""Measuring contenders in turn in one process, on a machine that others may be using too."""

import importlib.metadata
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence


def interleave(
    contenders: Mapping[str, Callable[[], object]],
    rounds: int,
    budget_s: float = 0.05,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Seconds of each run of each contender, whose calls end when their work is done.

    Every round gives each contender a turn, the order rotating, so that a slow spell of the
    machine strikes all alike. A turn repeats fast contenders until ``budget_s`` is used up.
    """
    names = list(contenders)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for k in range(rounds):
        for name in names[k % len(names) :] + names[: k % len(names)]:
            used = 0.0
            while True:
                start = clock()
                contenders[name]()
                took = clock() - start
                seconds[name].append(took)
                used += took
                if used + took > budget_s:
                    break
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
