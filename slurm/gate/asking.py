"""The gate's end of the pipe to a commit at work."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

HERE = Path(__file__).resolve().parent
WORKER = HERE / "worker.py"
TIMING = HERE.parents[1] / "harness" / "timing.py"
ENDING_S = 20  # how long a worker that was told to end may take


class WorkerFailed(Exception):
    """What was asked of a commit raised an error there, or its process ended; one line."""


class Worker:
    """A process with the code of ``root`` alone; what it prints goes to ``log``. Idle while nothing is asked of it.

    One thread: the answers do not depend on the machine's cores, and no thread of one process spins while another one
    is timed. Raises ``WorkerFailed`` where that code cannot even be imported.
    """

    def __init__(self, root: Path, log: Path) -> None:
        self.root, self.log = root, log

    def __enter__(self) -> Self:
        self.log.parent.mkdir(parents=True, exist_ok=True)
        self._log = self.log.open("ab")
        environment = {**os.environ, "PYTHONPATH": str(self.root), "OMP_NUM_THREADS": "1", "PYTHONSAFEPATH": "1"}
        self._process = subprocess.Popen(
            [sys.executable, "-P", str(WORKER), str(self.root), str(TIMING)],
            cwd=self.root,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
        )
        try:
            self._answer(None)
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    def ask(self, what: str, progress: Callable[..., None] | None = None, **given: Any) -> Any:
        """What the commit says to it. Raises ``WorkerFailed``."""
        assert self._process.stdin
        try:
            self._process.stdin.write(json.dumps({"ask": what, **given}) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise self._gone() from None
        return self._answer(progress)

    def _answer(self, progress: Callable[..., None] | None) -> Any:
        assert self._process.stdout
        for line in self._process.stdout:
            answer = json.loads(line)
            if "progress" in answer:
                if progress:
                    progress(*answer["progress"])
            elif "error" in answer:
                raise WorkerFailed(answer["error"])
            else:
                return answer["said"]
        raise self._gone()

    def _gone(self) -> WorkerFailed:
        code = self._process.wait()
        last = (self.log.read_text(errors="replace").strip().splitlines() or ["nothing was printed"])[-1]
        return WorkerFailed(f"its process ended with code {code}: {last} (all of it in {self.log})")

    def _end(self) -> None:
        assert self._process.stdin and self._process.stdout
        self._process.stdout.close()
        with suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            self._process.wait(ENDING_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._log.close()
