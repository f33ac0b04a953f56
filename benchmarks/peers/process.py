"""The parent's side of a contender's process, with a limit on every answer."""

import json
import os
import selectors
import subprocess
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
# Otherwise JAX's last words are about the traceback, and not about the error.
ENVIRONMENT = {"JAX_TRACEBACK_FILTERING": "off"}


class Lost(Exception):
    """The process did not answer: it took too long, or it ended."""


class Process:
    """One contender, started when it is first asked, with so many ``threads`` for XLA, or as many
    as it takes by itself."""

    def __init__(self, python: str, family: str, contender: str, threads: int | None = None):
        self.command = [python, "-m", "benchmarks.peers.worker", family, contender]
        self.environment = ENVIRONMENT | ({} if threads is None else {"NPROC": str(threads)})
        self.process: subprocess.Popen[bytes] | None = None
        self.resources = ExitStack()
        self.words = Path()

    def ask(self, limit_s: float, do: str, **order: Any) -> Any:
        """The answer to an order.

        Raises:
            Lost: there was none within ``limit_s``; the process is gone then.
        """
        process = self._running()
        assert process.stdin is not None and process.stdout is not None
        try:
            process.stdin.write((json.dumps({"do": do} | order) + "\n").encode())
            process.stdin.flush()
        except BrokenPipeError:
            raise Lost(self._last_words()) from None
        with selectors.DefaultSelector() as selector:
            selector.register(process.stdout, selectors.EVENT_READ)
            if not selector.select(limit_s):
                self.stop()
                raise Lost(f"no answer within {limit_s:.0f} s")
        line = process.stdout.readline()
        if not line:
            raise Lost(self._last_words())
        return json.loads(line)

    def stop(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.resources.close()
        self.process = None

    def _running(self) -> subprocess.Popen[bytes]:
        if self.process is None:
            folder = self.resources.enter_context(tempfile.TemporaryDirectory())
            self.words = Path(folder) / "stderr"
            with self.words.open("wb") as words:
                process = subprocess.Popen(
                    self.command,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=words,
                    cwd=ROOT,
                    env=os.environ | self.environment,
                )
            self.process = self.resources.enter_context(process)
        return self.process

    def _last_words(self) -> str:
        """The last line of its standard error that says something."""
        assert self.process is not None
        self.process.wait()
        said = self.words.read_text(errors="replace").strip() or "ended without a word"
        self.stop()
        return said.splitlines()[-1].strip()[:200]
