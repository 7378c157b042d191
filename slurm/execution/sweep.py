"""A sweep on disk: an experiment whose jobs were given to a cluster, and all that is known of them.

    <sweeps>/<id>/sweep.json       what was asked, of which commit, for which cluster
    <sweeps>/<id>/code/            the worktree that its jobs run
    <sweeps>/<id>/changes.diff     what that worktree has beside its commit, where it was launched dirty
    <sweeps>/<id>/jobs.jsonl       a line per job: place, phase, title, digest, shape
    <sweeps>/<id>/jobs.pickle      the jobs
    <sweeps>/<id>/launches.jsonl   a line per array that was submitted: SLURM's id, phase, the jobs in it, when
    <sweeps>/<id>/ends.jsonl       a line per process of this machine that was told to end or killed: SLURM's id, how
    <sweeps>/<id>/lock             held, and who holds it, while somebody submits, cancels or drives it
    <sweeps>/<id>/log/             the jobs' output, one folder per launch and array
    <sweeps>/jobs/<digest>/        a job's attempts, progress and result (attempt.py), whatever sweep it is in

``sweeps`` stands beside the folder of runs, not in it: a worktree holds accepted records, which are nobody's runs.
"""

from __future__ import annotations

import fcntl
import json
import os
import pickle
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.config import canonical_json, digest, plain
from harness.errors import Busy, InputError, unknown
from harness.files import write_atomically
from slurm.checkout import ROOT
from slurm.clusters.shapes import Shape, shape_of
from slurm.execution import attempt
from slurm.execution.arrays import Member
from slurm.phases import Job, Phase

FOLDER, LOCK = "sweeps", "lock"


@dataclass(frozen=True, kw_only=True)
class Header:
    """``asked`` are the arguments of the experiment; ``parallel`` jobs run at most at once, ``minutes`` each."""

    id: str
    experiment: str
    cluster: str
    commit: str
    dirty: bool
    created: float
    asked: Mapping[str, Any]
    parallel: int | None
    minutes: int | None
    online: bool = False  # may its jobs ask the model and dataset hub?


@dataclass(frozen=True, kw_only=True)
class Launch:
    """One array that was submitted. ``indices`` are the jobs of its tasks 0, 1, ..."""

    slurm_id: str
    phase: str
    indices: tuple[int, ...]
    at: float
    gpus: tuple[int, ...] = ()  # of this machine, where no SLURM gives them

    def task_id(self, place: int) -> str:
        """What the queue calls the job of task ``place``; an array of one job is no array to submitit."""
        return f"{self.slurm_id}_{place}" if len(self.indices) > 1 else self.slurm_id


@dataclass(frozen=True)
class Sweep:
    """The sweep in ``folder``."""

    folder: Path
    header: Header

    @classmethod
    def create(cls, sweeps: Path, header: Header) -> Sweep:
        folder = sweeps / header.id
        folder.mkdir(parents=True)
        write_atomically(folder / "sweep.json", json.dumps(plain(header), indent=1) + "\n")
        return cls(folder, header)

    @classmethod
    def open(cls, folder: Path) -> Sweep:
        return cls(folder, Header(**json.loads((folder / "sweep.json").read_text())))

    @property
    def code(self) -> Path:
        return self.folder / "code"

    @contextmanager
    def held(self) -> Iterator[None]:
        """Be the only one that submits, cancels or drives it. Raises ``Busy`` where another process is."""
        with (self.folder / LOCK).open("a+") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                file.seek(0)
                who = file.read() or "another process"
                raise Busy(
                    f"sweep {self.header.id} is being submitted, cancelled or run by {who}; try again when it has ended"
                ) from error
            file.truncate(0)
            file.write(f"process {os.getpid()} on {socket.gethostname()}")
            file.flush()
            yield

    def write_jobs(self, phases: Sequence[Phase]) -> list[Member]:
        """Number the jobs of all phases and keep them, each once."""
        jobs = _numbered(phases)
        members = members_of(phases)
        write_atomically(self.folder / "jobs.pickle", pickle.dumps([job for _, job in jobs]))
        lines = "".join(json.dumps(plain(member), ensure_ascii=False) + "\n" for member in members)
        write_atomically(self.folder / "jobs.jsonl", lines)
        return members

    def members(self) -> list[Member]:
        """Raises ``InputError`` where the sweep was cut off before its jobs were written."""
        try:
            lines = (self.folder / "jobs.jsonl").read_text(encoding="utf-8").splitlines()
        except FileNotFoundError as error:
            raise InputError(f"sweep {self.header.id} was cut off before it was submitted; submit it again") from error
        rows = [json.loads(line) for line in lines]
        return [Member(**row | {"shape": Shape(**row["shape"])}) for row in rows]

    def job(self, index: int) -> Job:
        """One job. Only to be called in the sweep's own code, as pickles name classes."""
        job: Job = pickle.loads((self.folder / "jobs.pickle").read_bytes())[index]
        return job

    def state(self, member: Member) -> Path:
        """Where a job's attempts and result lie."""
        return self.folder.parent / "jobs" / member.digest

    def done(self, member: Member) -> dict[str, Any]:
        """Its result; empty where it has none."""
        return attempt.done(self.state(member), self.header.id)

    def launched(self, launch: Launch) -> None:
        with (self.folder / "launches.jsonl").open("a") as file:
            file.write(json.dumps(plain(launch)) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def launches(self) -> list[Launch]:
        """Oldest first."""
        try:
            lines = (self.folder / "launches.jsonl").read_text().splitlines()
        except FileNotFoundError:
            return []
        rows = [json.loads(line) for line in lines]
        return [Launch(**row | {name: tuple(row[name]) for name in ("indices", "gpus") if name in row}) for row in rows]

    def ended(self, slurm_id: str, how: str) -> None:
        """Note how a process of this machine was ended."""
        with (self.folder / "ends.jsonl").open("a") as file:
            file.write(json.dumps({"slurm_id": slurm_id, "at": time.time(), "how": how}) + "\n")

    def ends(self) -> dict[str, str]:
        """How the processes of this machine that were ended were, by their ids as of their last launch.

        What was noted first says why: a process that is told to end may be killed on its way.
        """
        try:
            lines = (self.folder / "ends.jsonl").read_text().splitlines()
        except FileNotFoundError:
            return {}
        began = {one.slurm_id: one.at for one in self.launches()}
        rows = [json.loads(line) for line in lines]
        return {row["slurm_id"]: row["how"] for row in reversed(rows) if row["at"] >= began.get(row["slurm_id"], 0.0)}


def members_of(phases: Sequence[Phase]) -> list[Member]:
    """The jobs of all phases, numbered, each once."""
    return [
        Member(index=index, phase=phase, title=job.title, digest=job_digest(job), shape=shape_of(job))
        for index, (phase, job) in enumerate(_numbered(phases))
    ]


def _numbered(phases: Sequence[Phase]) -> list[tuple[str, Job]]:
    steps = [step for phase in phases for step in _steps(phase)]
    once: dict[str, tuple[str, Job]] = {}
    for step in steps:
        for job in step.jobs:
            if not getattr(job, "finished", False):  # an accepted checkpoint
                once.setdefault(job_digest(job), (step.title, job))
    return list(once.values())


def _steps(phase: Phase) -> list[Phase]:
    """A phase of trainings that start from one another, as phases whose jobs do not."""
    depth: dict[str, int] = {}
    for job in phase.jobs:  # in an order that can run
        before = getattr(job, "before", None)
        depth[job_digest(job)] = 1 + depth.get(job_digest(before), -1) if before else 0
    deepest = max(depth.values(), default=0)
    if not deepest:
        return [phase]
    return [
        Phase(
            title=f"{phase.title} {step + 1}/{deepest + 1}",
            jobs=[job for job in phase.jobs if depth[job_digest(job)] == step],
        )
        for step in range(deepest + 1)
    ]


def sweeps_beside(runs: Path) -> Path:
    """Where the sweeps over ``runs`` lie."""
    return runs.absolute().parent / FOLDER


def find(runs: Sequence[Path], name: str | None) -> Sweep:
    """The sweep of that id over one of the folders of ``runs``, or the newest one.

    Raises ``InputError`` where there is none.
    """
    found = [Sweep.open(path.parent) for each in runs for path in sweeps_beside(each).glob("*/sweep.json")]
    by_id = {sweep.header.id: sweep for sweep in sorted(found, key=lambda sweep: sweep.header.created)}
    if not by_id:
        where = " or ".join(map(str, runs))
        raise InputError(
            f"no sweep for --runs {where}; submit one with `refrag-bench sweep submit`, or name another --runs"
        )
    if name is not None and name not in by_id:
        raise unknown("sweep", name, by_id)
    return by_id[name or list(by_id)[-1]]


def new_id(experiment: str) -> str:
    """Readable, in order of time, never used before."""
    return f"{experiment}-{time.strftime('%Y%m%d-%H%M%S')}-{os.urandom(2).hex()}"


def job_digest(job: Job) -> str:
    """What a job is, wherever the code lies that runs it."""
    return digest([type(job).__name__, canonical_json(job).replace(f"{ROOT}/", "")])
