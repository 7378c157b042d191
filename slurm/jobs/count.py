"""A job that only counts: it tries a cluster out, and its life is easy to follow."""

from __future__ import annotations

import json
import os
import socket
import time
from dataclasses import dataclass
from pathlib import Path

from harness.files import write_atomically
from slurm.jobs import Progress


@dataclass(frozen=True, kw_only=True)
class CountJob:
    """Count to ``to``, one number every ``pause_s`` seconds, going on after an interruption.

    ``folder``/<number>.log gets a line per number, with the process that wrote it, and <number>.json at the end, with
    what the job saw. Where ``mended`` is given, the job fails until that file is there.
    """

    number: int
    to: int
    pause_s: float
    folder: Path
    device: str = "cpu"
    mended: Path | None = None

    @property
    def title(self) -> str:
        return f"count {self.number}"

    def run(self, progress: Progress | None = None) -> Path:
        """Returns the file that says it is done. Raises ``RuntimeError`` where it is to fail."""
        made = self.folder / f"{self.number}.json"
        if made.exists():
            return made
        if self.mended and not self.mended.exists():
            raise RuntimeError(f"job {self.number} fails by design, until {self.mended} is there")
        self.folder.mkdir(parents=True, exist_ok=True)
        log = self.folder / f"{self.number}.log"
        counted = len(log.read_text().splitlines()) if log.exists() else 0
        for n in range(counted, self.to):
            time.sleep(self.pause_s)
            with log.open("a") as file:
                file.write(f"{n} {os.getpid()}\n")
            if progress:
                progress(n + 1, self.to)
        seen = {"host": socket.gethostname(), "gpus": os.environ.get("CUDA_VISIBLE_DEVICES", "")}
        write_atomically(made, json.dumps(seen) + "\n")
        return made

    def said(self, result: Path) -> str:
        seen = json.loads(result.read_text())
        return f"on {seen['host']}, GPUs {seen['gpus'] or 'none'}"
