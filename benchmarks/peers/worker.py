"""A contender in a process of its own: does what it is asked for on standard input.

One line of JSON is an order, one line on what was standard output the answer. Whatever goes wrong
ends the process, and its last words on standard error are the reason.
"""

import json
import os
import sys
from typing import Any

import jax
import numpy as np

from ..timing import turn
from .families import FAMILIES
from .programs import Program


class Worker:
    """A contender of a family and the case that it is at."""

    def __init__(self, family: str, contender: str):
        self.family = FAMILIES[family]
        self.contender = self.family.contenders()[contender]
        self.case: Any = None
        self.case_name = ""
        self.probe = None
        self.program: Program | None = None

    def do(self, order: dict[str, Any]) -> Any:
        return getattr(self, order.pop("do"))(**order)

    def point(self, case: str, tolerance: float, save: str) -> None:
        """Where the solver ends with this tolerance."""
        self._turn_to(case)
        if self.probe is None and self.contender.probe is not None:
            self.probe = self.contender.probe(self.case)
        if self.probe is not None:
            np.savez(save, y=self.probe(tolerance))

    def prepare(self, case: str, tolerance: float, save: str) -> dict[str, Any]:
        """Compiles, runs once, and keeps what came out."""
        self._turn_to(case)
        self.probe = None
        self.program = program = self.contender.prepare(self.case, tolerance)
        program.forward()
        y, gradients = program.forward_backward()
        np.savez(save, y, *gradients)
        return {"compile_s": program.compile_s, "memory_mb": program.memory_mb}

    def turn(self, what: str, budget_s: float) -> list[float]:
        """Seconds of each run of one turn."""
        return turn(getattr(self.program, what), budget_s)

    def _turn_to(self, case: str) -> None:
        if case != self.case_name:
            self.program = self.probe = None
            self.case, self.case_name = self.family.cases()[case](), case


def main() -> None:
    jax.config.update("jax_enable_x64", True)
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints is no answer
    worker = Worker(*sys.argv[1:3])
    for line in sys.stdin:
        print(json.dumps(worker.do(json.loads(line))), file=answers, flush=True)


if __name__ == "__main__":
    main()
