"""What runs on a node: one job of a sweep, under its claim, with the signals that a cluster sends.

    SIGUSR2    sent ahead of a time limit or a preemption (SLURM's --signal): the job keeps what it has, is requeued,
               and goes on later where it was
    SIGTERM    the end is seconds away: the same, without asking for the requeue, which is then SLURM's

A failure leaves its traceback beside the job and on standard error, and exit code 1, and so does a job that was started
again and again and got no further; an attempt that was overtaken
leaves nothing, and exit code 75.

A training over several processes is this in every one of them. The first claims, notes progress, publishes and
requeues; an interruption of any ends the training in all (``harness.train.loop``), and they wait to be ended.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.errors import Busy, InputError, Interrupted
from harness.record import RunRecord
from harness.train.ranks import here
from slurm.execution.attempt import LOOK_S, Attempt, Claim, Fenced
from slurm.execution.sweep import Sweep
from slurm.jobs import Progress

OVERTAKEN = 75  # EX_TEMPFAIL
REQUEUED_S = 60  # until SLURM has ended a job that asked for its requeue
BUSY_S = 300  # until an overtaken attempt has found out; it looks between two batches
MOST_STALLED = 5  # attempts in a row that kept nothing for the next


class Stalled(Exception):
    """A job that is requeued again and again gets no further."""


@dataclass(frozen=True, kw_only=True)
class Payload:
    """Job ``index`` of the sweep ``name``, submitted at ``launch``."""

    sweeps: Path
    name: str
    index: int
    launch: float

    def __call__(self) -> None:
        """Run the job, unless its result is there."""
        told = _listen()
        sweep = Sweep.open(self.sweeps / self.name)
        member = sweep.members()[self.index]
        if Path(__file__).resolve().parents[2] != sweep.code.resolve():
            raise InputError(f"sweep {self.name} runs {sweep.code}, but {__file__} was imported")
        claim = Claim(sweep.state(member), Attempt.here(self.name, self.launch), leads=here().rank == 0)
        try:
            claim.take()
            print(f"{member.title}: {claim.attempt}, {here()}", flush=True)
            if not sweep.done(member):
                _run(sweep, self.index, claim, told)
        except Fenced as error:
            print(f"overtaken: {error}", file=sys.stderr, flush=True)
            os._exit(OVERTAKEN)  # past submitit, which would keep this as the job's result


def _listen() -> list[int]:
    """The signals that came, from now on; in place of submitit's own handlers."""
    told: list[int] = []

    for number in (signal.SIGUSR2, signal.SIGTERM):
        signal.signal(number, lambda number, _: told.append(number))
    return told


def _run(sweep: Sweep, index: int, claim: Claim, told: list[int]) -> None:
    def progress(done: int, total: int, note: str = "") -> None:
        claim.progressed(done, total, note)
        if told:
            claim.check()
            raise Interrupted

    job, started = sweep.job(index), time.perf_counter()
    try:
        _give_up(claim)
        result = _when_free(job, progress)
        claim.finished(
            job.said(result), getattr(result, "n_errors", 0), _made(job, result), time.perf_counter() - started
        )
    except Interrupted:
        _give_way(claim, told)
    except Exception as error:
        claim.failed(error, traceback.format_exc())
        raise


def _give_up(claim: Claim) -> None:
    """Raises ``Stalled`` where too many attempts came to nothing: the next would, too, for ever."""
    if claim.stalled >= MOST_STALLED:
        raise Stalled(
            f"{claim.stalled} attempts in a row ended without a new checkpoint or answer; "
            "`refrag-bench sweep logs` has what they wrote, `refrag-bench sweep resume` tries again"
        )


def _when_free(job: Any, progress: Progress) -> Any:
    """Run the job as soon as no overtaken attempt writes its files any more."""
    until = time.monotonic() + BUSY_S
    while True:
        try:
            return job.run(progress)
        except Busy:
            if time.monotonic() > until:
                raise
            time.sleep(LOOK_S)


def _made(job: Any, result: Any) -> Path | None:
    """What a job leaves that is its own: a record or a checkpoint."""
    if isinstance(result, RunRecord):
        spec = result.spec
        folder: Path = job.runs / spec["suite"]["name"] / spec["system"]["name"] / result.run_id
        return folder / "record.json"
    return result if isinstance(result, Path) else None


def _give_way(claim: Claim, told: list[int]) -> None:
    """Ask for the requeue, and wait to be ended: an exit of its own accord would count as the end of the job."""
    if not claim.attempt.slurm_job:
        os._exit(OVERTAKEN)
    until = time.monotonic() + LOOK_S
    while not told and time.monotonic() < until:  # another process of the training was told first
        time.sleep(0.1)
    requeue = claim.leads and (signal.SIGUSR2 in told or not told)
    print(f"interrupted; {'requeueing' if requeue else 'waiting to be ended'}", flush=True)
    if requeue:
        subprocess.run(["scontrol", "requeue", claim.attempt.slurm_job], check=False)
    time.sleep(REQUEUED_S)
    os._exit(OVERTAKEN)
