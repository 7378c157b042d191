"""How is a sweep? A job is done when its result is there, whatever the queue says; the queue tells the rest."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness.errors import InputError
from slurm.clusters.queue import LOST_S, Entry
from slurm.execution import attempt
from slurm.execution.arrays import Member
from slurm.execution.sweep import Sweep

POLL_S = 10.0  # between two questions to the controller
LIVE = ("waiting", "pending", "running")  # waiting for an earlier phase, for a place, computing
WRONG = (
    "held",
    "failed",
    "cancelled",
    "lost",
    "not started",
)  # nothing more happens until ``refrag-bench sweep resume``
STATES = (*LIVE, "done", *WRONG)


@dataclass(frozen=True, kw_only=True)
class Row:
    """One job. ``said`` is its result, its progress, or what went wrong, in one line."""

    index: int
    phase: str
    title: str
    state: str
    said: str = ""
    slurm_job: str = ""
    node: str = ""
    errors: int = 0  # examples that raised one
    sure: bool = True  # False: the queue does not know it, or its result is late; wrong if that stays so


@dataclass(frozen=True, kw_only=True)
class Status:
    """A sweep at one moment; its field names are the keys of ``--json``. ``problem`` is the controller's silence."""

    id: str
    rows: Sequence[Row]
    problem: str = ""

    @property
    def counts(self) -> Mapping[str, int]:
        found = Counter(row.state for row in self.rows)
        return {state: found[state] for state in STATES if found[state]}

    @property
    def over(self) -> bool:
        """Will nothing more happen of its own accord?"""
        return not any(row.state in LIVE for row in self.rows)

    @property
    def code(self) -> int:
        """Exit code: 1 where something went wrong, 2 where the controller does not say."""
        if self.problem:
            return 2
        return 1 if any(row.state in WRONG or row.errors for row in self.rows) else 0


Look = Callable[[Sequence[str]], Mapping[str, Entry]]


@dataclass
class Watcher:
    """Reads a sweep again and again; what is done is not read twice. ``look`` asks the queue (``Queue.look``).

    ``driven``: is somebody there to start what nobody has submitted yet?
    """

    sweep: Sweep
    look: Look
    driven: Callable[[], bool] = lambda: False
    _done: dict[int, Row] = field(init=False, default_factory=dict)
    _silent_since: dict[int, float] = field(init=False, default_factory=dict)

    def status(self) -> Status:
        """Where every job stands now."""
        members = self.sweep.members()
        places = _places(self.sweep)
        waiting = [member for member in members if member.index not in self._done]
        entries: Mapping[str, Entry] = {}
        problem = ""
        try:
            entries = self.look([places[member.index].name for member in waiting if member.index in places])
        except InputError as error:
            problem = str(error)
        rows = []
        for member in members:
            place = places.get(member.index)
            row = self._done.get(member.index) or self._row(member, place, entries, silent=bool(problem))
            if row.state == "done":
                self._done[member.index] = row
            rows.append(row)
        return Status(id=self.sweep.header.id, rows=rows, problem=problem)

    def settled(self, *, every: float = 2.0) -> Status:
        """The status once it is sure of every job (within ``LOST_S``), or the controller does not answer."""
        while True:
            status = self.status()
            if status.problem or all(row.sure for row in status.rows):
                return status
            time.sleep(every)

    def _row(self, member: Member, place: _Place | None, entries: Mapping[str, Entry], *, silent: bool) -> Row:
        known: dict[str, Any] = dict(index=member.index, phase=member.phase, title=member.title)
        if result := self.sweep.done(member):
            return Row(state="done", said=_line(result["said"]), errors=result["errors"], **known)
        if place is None:
            return Row(state="waiting" if self.driven() else "not started", **known)
        folder = self.sweep.state(member)
        entry = entries.get(place.name, _SILENT) if silent else entries[place.name]
        known |= dict(slurm_job=place.name, node=entry.node)
        failure = attempt.read(folder / attempt.FAILED)
        if failure and failure["launch"] == place.at:
            return Row(state="failed", said=failure["error"], **known)
        if not silent and (entry.phase, entry.state) == ("running", "UNKNOWN"):
            return Row(state="running", said=entry.reason, sure=False, **known)
        started = attempt.read(folder / attempt.OWNER).get("launch") == place.at
        if entry.phase == "ended":
            result = attempt.read(folder / attempt.RESULT)
            finished = result.get("launch") == place.at or (result and entry.state == "COMPLETED")
            made = result["made"] if finished else None
            return Row(**known, **self._ended(member.index, entry, started=started, made=made))
        if entry.phase == "running" and started:
            return Row(state="running", said=_progress(folder, place.at), **known)
        if entry.phase == "pending":
            if entry.reason == "DependencyNeverSatisfied":
                return Row(state="not started", said="a job before it failed", **known)
            return Row(state="waiting" if entry.reason == "Dependency" else "pending", said=entry.reason, **known)
        return Row(state=entry.phase, said=entry.reason, **known)

    def _ended(self, index: int, entry: Entry, *, started: bool, made: str | None) -> dict[str, Any]:
        """What an end without a result means; ``made`` is what there was of one.

        A shared folder may show the result some seconds late.
        """
        if made is None and entry.state == "CANCELLED":
            return dict(state="cancelled" if started else "not started", said="" if started else "cancelled")
        first = self._silent_since.setdefault(index, time.monotonic())
        if entry.state == "COMPLETED" and time.monotonic() - first < LOST_S:
            return dict(state="running", said="ended; its result is not there yet", sure=False)
        if made is not None:
            return dict(state="failed", said=f"finished, but its result is gone or damaged: {made}")
        how = entry.reason if entry.state == "GONE" else f"ended as {entry.state} without a result"
        return dict(state="failed", said=f"{how}; see `refrag-bench sweep logs`")


_SILENT = Entry(phase="running", state="UNKNOWN", reason="the controller does not answer")


@dataclass(frozen=True)
class _Place:
    """Where a job was last submitted: its name in the queue, and when."""

    name: str
    at: float


def _places(sweep: Sweep) -> dict[int, _Place]:
    return {
        index: _Place(launch.task_id(place), launch.at)
        for launch in sweep.launches()
        for place, index in enumerate(launch.indices)
    }


def watch(watcher: Watcher, *, every: float = POLL_S) -> Iterator[Status]:
    """The status now and every ``every`` seconds, until nothing more happens."""
    while True:
        status = watcher.status()
        yield status
        if status.over:
            return
        time.sleep(every)


def _progress(folder: Path, launch: float) -> str:
    """How far, and by when at this pace."""
    noted = attempt.read(folder / attempt.PROGRESS)
    owner = attempt.read(folder / attempt.OWNER)
    if noted.get("launch") != launch or noted.get("restart") != owner.get("restart"):
        return "starting"
    note = f" {noted['note']}" if noted["note"] else ""
    return f"{noted['done']}/{noted['total']}{note}{_eta(noted)}"


def _eta(noted: Mapping[str, Any]) -> str:
    """From the mean pace since this attempt's first note of progress, which may have gone on from an earlier one's."""
    done, since = noted["done"] - noted["first_done"], noted["at"] - noted["first_at"]
    if done <= 0 or since <= 0:
        return ""
    left = (noted["total"] - noted["done"]) * since / done
    return f", {left / 60:.0f} min left" if left >= 90 else f", {left:.0f} s left"


def _line(said: str, longest: int = 120) -> str:
    text = " ".join(said.split())
    return text if len(text) <= longest else f"{text[: longest - 3]}..."
