"""Sweeps of jobs that do next to nothing, and SLURM's commands as scripts."""

import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from harness.errors import Interrupted
from slurm.clusters.shapes import Shape
from slurm.execution.arrays import Member
from slurm.execution.sweep import Header, Sweep
from slurm.phases import Phase

ONE_GPU = Shape(gpus_per_task=1)


@dataclass(frozen=True, kw_only=True)
class Tiny:
    """Appends its process to ``folder``/<name>.runs and makes <name>.made; fails until ``mended`` is there.

    With ``gate``, it waits for that file, telling its progress; interrupted, it writes <name>.kept.
    """

    name: str
    folder: Path
    device: str = "cpu"
    mended: Path | None = None
    gate: Path | None = None

    @property
    def title(self) -> str:
        return f"tiny {self.name}"

    def run(self, progress: Callable[..., None] | None = None) -> Path:
        made = self.folder / f"{self.name}.made"
        if made.exists():
            return made
        with (self.folder / f"{self.name}.runs").open("a") as file:
            file.write(f"{os.getpid()}\n")
        if self.mended and not self.mended.exists():
            raise RuntimeError(f"{self.name} is\nbroken [/here]")
        try:
            while self.gate and not self.gate.exists():
                time.sleep(0.02)
                if progress:
                    progress(1, 2)
        except Interrupted:
            (self.folder / f"{self.name}.kept").touch()
            raise
        made.touch()
        return made

    def said(self, result: Path) -> str:
        return f"made {result.name}"


class Clock:
    """In place of ``time`` in a module: only sleeping and ``go`` move it."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.slept = 0.0

    def monotonic(self) -> float:
        return self.now

    time = monotonic

    def sleep(self, seconds: float) -> None:
        self.slept += seconds
        self.now += seconds

    def go(self, seconds: float) -> None:
        self.now += seconds


def member(index: int, phase: str = "one", shape: Shape = ONE_GPU) -> Member:
    return Member(index=index, phase=phase, title=f"job {index}", digest=f"{index:016x}", shape=shape)


def header(**changes: Any) -> Header:
    fields: dict[str, Any] = dict(
        id="tiny-20260101-120000-beef",
        experiment="tiny",
        cluster="local",
        commit="c0ffee",
        dirty=False,
        created=1.0,
        asked={},
        parallel=None,
        minutes=None,
    )
    return Header(**fields | changes)


def sweep_of(folder: Path, phases: Sequence[Phase], code: Path, **changes: Any) -> Sweep:
    """A sweep in ``folder``/sweeps that runs ``code``."""
    sweep = Sweep.create(folder / "sweeps", header(**changes))
    sweep.code.symlink_to(code)
    sweep.write_jobs(phases)
    return sweep


def bin_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """``folder``/bin as all of PATH: this machine may have a SLURM of its own. Holds what scripts and git need."""
    path = folder / "bin"
    path.mkdir()
    for name in ("cat", "grep", "sleep", "git"):
        found = shutil.which(name)
        assert found, name
        (path / name).symlink_to(found)
    monkeypatch.setenv("PATH", str(path))
    return path


def command(folder: Path, name: str, script: str) -> None:
    """The command ``name`` in ``folder``: notes its arguments in <name>.calls, then is ``script``."""
    path = folder / name
    path.write_text(f'#!/bin/sh\necho "$*" >> {folder}/{name}.calls\n{script}\n')
    path.chmod(0o755)


def calls(folder: Path, name: str) -> list[str]:
    """How the command was called."""
    try:
        return (folder / f"{name}.calls").read_text().splitlines()
    except FileNotFoundError:
        return []


def drive(folder: str, parallel: int = 2) -> None:
    """Run the sweep in ``folder`` in this process, as ``refrag-bench sweep resume`` does."""
    from slurm.clusters.profiles import LocalProfile
    from slurm.execution import pool

    sweep = Sweep.open(Path(folder))
    pool.run(sweep, LocalProfile(name="local", gpus_per_node=parallel), lambda: None)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as the command does
    signal.signal(signal.SIGINT, signal.default_int_handler)  # as in a terminal: what a shell put behind ignores Ctrl-C
    drive(sys.argv[1])
