"""Whose turn is it to write? SLURM gives at least one attempt at a job, and at times two at once.

A node that the controller has lost goes on computing while the job is started again elsewhere. So each job has a folder
with one file that names the attempt which owns it; a newer attempt takes it over, an older one finds that out before it
writes and stops (``Fenced``). Between the look and the write there is a gap: what a job writes must be the same from
any attempt and appear by rename, which records, journals and checkpoints do.

    <folder>/attempt.json    the owner
    <folder>/progress.json   how far it is, at most every two seconds
    <folder>/result.json     there once the job is done, by whichever attempt
    <folder>/failed.json     the last failure, with its traceback
    <folder>/stalled.json    how many attempts in a row brought it no further

Times are seconds since 1970, of the machine that wrote them.
"""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness.config import plain
from harness.errors import InputError
from harness.files import write_atomically
from harness.record import RunRecord

OWNER, PROGRESS, RESULT, FAILED = "attempt.json", "progress.json", "result.json", "failed.json"
STALLED = "stalled.json"
LOOK_S = 2.0  # between two looks at the owner, and two notes of progress


class Fenced(BaseException):
    """A newer attempt owns the job: this one must write nothing more. Not an ``Exception``: nobody is to handle it."""


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """One start of one job. ``launch`` is when its sweep submitted it, ``restart`` how often SLURM has requeued it."""

    sweep: str
    launch: float
    restart: int
    slurm_job: str  # empty where no SLURM runs it

    @property
    def order(self) -> tuple[float, int]:
        return self.launch, self.restart

    @classmethod
    def here(cls, sweep: str, launch: float) -> Attempt:
        """The attempt that this process is, by SLURM's environment."""
        environment = os.environ
        array, task = environment.get("SLURM_ARRAY_JOB_ID"), environment.get("SLURM_ARRAY_TASK_ID")
        return cls(
            sweep=sweep,
            launch=launch,
            restart=int(environment.get("SLURM_RESTART_COUNT", "0")),
            slurm_job=f"{array}_{task}" if array else environment.get("SLURM_JOB_ID", ""),
        )


@dataclass
class Claim:
    """A job's folder, owned by ``attempt`` until a newer one takes it over.

    Of an attempt's processes the one that ``leads`` writes for all; the others look whose turn it is, and say why they
    failed.
    """

    folder: Path
    attempt: Attempt
    leads: bool = True
    stalled: int = 0  # attempts of this launch before this one, in a row, that kept nothing for the next
    _reached: int = field(default=0, repr=False)  # the furthest that an attempt of this launch began at
    _looked: float = field(default=0.0, repr=False)
    _first: dict[str, Any] = field(default_factory=dict, repr=False)  # where this attempt's progress began

    def take(self) -> None:
        """Become the owner, and give an older one the time to find out. Raises ``Fenced`` where a newer one owns it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self.check()
        if not self.leads:
            return
        earlier = (self.folder / OWNER).exists() and not any((self.folder / end).exists() for end in (RESULT, FAILED))
        self._write(OWNER, {"host": socket.gethostname(), "pid": os.getpid(), "started": time.time()})
        (self.folder / FAILED).unlink(missing_ok=True)
        self._count()
        if earlier:
            time.sleep(1.5 * LOOK_S)

    def check(self) -> None:
        """Raises ``Fenced`` where a newer attempt owns the job."""
        self._owned()
        self._looked = time.monotonic()

    def _owned(self) -> None:
        owner = read(self.folder / OWNER)
        if owner and (owner["launch"], owner["restart"]) > self.attempt.order:
            raise Fenced(f"{self.folder.name} is now that of {owner['slurm_job'] or owner['pid']} on {owner['host']}")

    def progressed(self, done: int, total: int, note: str = "") -> None:
        """Note how far the job is, and look whether it is still ours; at most every ``LOOK_S``."""
        now = {"done": done, "at": time.time()}
        if not self._first:
            self._first = {f"first_{name}": value for name, value in now.items()}
            self._began(done)
        if time.monotonic() - self._looked < LOOK_S:
            return
        self.check()
        if self.leads:
            self._write(PROGRESS, {**now, "total": total, "note": note, **self._first})

    def finished(self, said: str, errors: int, made: Path | None, seconds: float) -> None:
        """Publish the result. ``made`` is what must be there for the job never to run again (None: it would)."""
        if not self.leads:
            return
        self.check()
        self._write(RESULT, {"said": said, "errors": errors, "made": made, "seconds": seconds, "at": time.time()})
        (self.folder / FAILED).unlink(missing_ok=True)

    def failed(self, error: BaseException, traceback: str) -> None:
        """Keep why; the last line tells a table what happened.

        The first failure of an attempt stays: those of its other processes follow from it.
        """
        self.check()
        if (self.folder / FAILED).exists():
            return
        line = f"{type(error).__name__}: {' '.join(str(error).split())}"
        self._write(FAILED, {"error": line, "traceback": traceback, "at": time.time()})

    def _count(self) -> None:
        """One more attempt of this launch, which has not brought the job further yet."""
        before = read(self.folder / STALLED)
        if before.get("launch") == self.attempt.launch:
            self.stalled, self._reached = before["attempts"], before["reached"]
        self._write(STALLED, {"attempts": self.stalled + 1, "reached": self._reached})

    def _began(self, done: int) -> None:
        """Where an attempt goes on tells what those before it kept: a checkpoint, answers in a journal."""
        if self.leads and done > self._reached:
            self._owned()
            self._write(STALLED, {"attempts": 0, "reached": done})

    def _write(self, name: str, document: Mapping[str, Any]) -> None:
        text = json.dumps(plain({**plain(self.attempt), **document}), indent=1, ensure_ascii=False)
        write_atomically(self.folder / name, text + "\n")


def read(path: Path) -> dict[str, Any]:
    """The document at ``path``; empty where there is none."""
    try:
        document: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    return document


def done(folder: Path, sweep: str) -> dict[str, Any]:
    """The result of the job in ``folder`` where it need not run again in ``sweep``; empty where it must.

    A result counts while what it made is still there and, of a record, whole; a table, which makes nothing of its own,
    is drawn once in every sweep.
    """
    result = read(folder / RESULT)
    if not result:
        return {}
    made = result["made"]
    there = _whole(Path(made)) if made else result["sweep"] == sweep
    return result if there else {}


def _whole(made: Path) -> bool:
    """Is a checkpoint there, or a record that can be read?"""
    if made.name != "record.json" or not made.exists():
        return made.exists()
    try:
        RunRecord.read(made.parent)
    except InputError:
        return False
    return True
