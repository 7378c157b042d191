"""What does the controller say of jobs? One ``squeue`` for all of them; ``sacct`` for those that it has forgotten.

submitit's own answer is not used: it takes NODE_FAIL for an end though SLURM starts the job again, waits for ever for a
job that nobody knows, and asks once per job.
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from harness.errors import InputError
from slurm.clusters.profiles import SlurmProfile

ANSWER_S = 30
LOST_S = 20.0  # unknown for longer than this: accounting lags by some seconds
ENDED = ("BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "OUT_OF_MEMORY", "TIMEOUT")
# These are ends only where SLURM does not start the job again, which the queue tells.
AGAIN = ("NODE_FAIL", "PREEMPTED")
HELD = ("REQUEUE_HOLD", "RESV_DEL_HOLD", "SPECIAL_EXIT")
WAITING = ("PENDING", "CONFIGURING", "REQUEUED", "SUSPENDED", "STOPPED")


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A job as the controller sees it. ``phase`` is pending, running, held, ended or lost; ``reason`` why."""

    phase: str
    state: str
    node: str = ""
    reason: str = ""


@dataclass
class Queue:
    """The jobs of one cluster. Remembers since when it has heard nothing of a job."""

    profile: SlurmProfile
    silent_since: dict[str, float] = field(default_factory=dict)

    def look(self, ids: Sequence[str]) -> dict[str, Entry]:
        """What is known of each id (``123`` or ``123_4``). Asks the controller once, whatever their number.

        Raises ``InputError`` where it does not answer.
        """
        if not ids:
            return {}
        known = _squeue(self.profile, sorted({name.partition("_")[0] for name in ids}, key=int))
        known = {name: entry for name, entry in known.items() if entry.phase != "again"}
        if missing := [name for name in ids if not _of(name, known)]:
            known |= {name: entry for name, entry in _sacct(self.profile, missing).items() if entry.phase == "ended"}
        now = time.monotonic()
        found: dict[str, Entry] = {}
        for name in ids:
            if entry := _of(name, known):
                self.silent_since.pop(name, None)
                found[name] = entry
            else:
                silent = now - self.silent_since.setdefault(name, now)
                phase = "lost" if silent > LOST_S else "running"
                found[name] = Entry(phase=phase, state="UNKNOWN", reason="neither in the queue nor ended")
        return found


def named(profile: SlurmProfile, name: str) -> list[str]:
    """The arrays in the queue with that job name."""
    return sorted(
        {line.strip() for line in ask(profile, "squeue", "-h", "-r", "-t", "all", "-n", name, "-o", "%F").split()}
    )


def cancel(profile: SlurmProfile, ids: Sequence[str]) -> None:
    """End these jobs, waiting or running; those that have ended are left alone."""
    for start in range(0, len(ids), 200):
        ask(profile, "scancel", *ids[start : start + 200])


def release(profile: SlurmProfile, ids: Sequence[str]) -> None:
    """Let held jobs start."""
    for start in range(0, len(ids), 200):
        ask(profile, "scontrol", "release", ",".join(ids[start : start + 200]))


def longest_array(profile: SlurmProfile) -> int:
    """MaxArraySize, the number of tasks that one array may have."""
    for line in ask(profile, "scontrol", "show", "config").splitlines():
        key, _, value = line.partition("=")
        if key.strip() == "MaxArraySize":
            return int(value)
    raise InputError("scontrol show config names no MaxArraySize")


def ask(profile: SlurmProfile, *command: str) -> str:
    """Standard output of one of SLURM's commands. Raises ``InputError`` with its last line where it fails."""
    try:
        done = subprocess.run(
            command, env={**os.environ, **profile.environment}, capture_output=True, text=True, timeout=ANSWER_S
        )
    except FileNotFoundError as error:
        raise InputError(f"no {command[0]} on PATH: is this a login node? (`refrag-bench doctor --cluster`)") from error
    except subprocess.TimeoutExpired as error:
        raise InputError(f"{command[0]} does not answer within {ANSWER_S} s") from error
    if done.returncode:
        lines = (done.stderr.strip() or done.stdout.strip() or f"exit code {done.returncode}").splitlines()
        raise InputError(f"{command[0]}: {lines[-1].removeprefix(f'{command[0]}: ')}")
    return done.stdout


def _squeue(profile: SlurmProfile, arrays: Sequence[str]) -> dict[str, Entry]:
    """By id, every task of the arrays that the queue knows. None of them known is no error of squeue's to us."""
    try:
        said = ask(profile, "squeue", "-h", "-r", "-t", "all", "-o", "%i|%T|%N|%r", "-j", ",".join(arrays))
    except InputError as error:
        if "Invalid job id" in str(error):
            return {}
        raise
    entries: dict[str, Entry] = {}
    for line in said.splitlines():
        name, state, node, reason = line.strip().split("|", 3)
        entries |= dict.fromkeys(_tasks(name), _entry(state, node, reason))
    return entries


def _of(name: str, known: Mapping[str, Entry]) -> Entry | None:
    """What is known of a job. An array that was cancelled before any of its tasks started is one row without them."""
    if name in known:
        return known[name]
    whole = known.get(name.partition("_")[0])
    return whole if whole and whole.phase == "ended" else None


def _tasks(name: str) -> list[str]:
    """The ids that a row stands for: tasks that never started share one, as in ``7_[0-2,5%4]``."""
    array, bracket, tasks = name.partition("_[")
    if not bracket:
        return [name]
    found = []
    for part in tasks.partition("]")[0].partition("%")[0].split(","):
        first, _, last = part.partition("-")
        found += [f"{array}_{task}" for task in range(int(first), int(last or first) + 1)]
    return found


def _sacct(profile: SlurmProfile, ids: Sequence[str]) -> dict[str, Entry]:
    """What accounting says; nothing where there is no accounting."""
    arrays = ",".join(sorted({name.partition("_")[0] for name in ids}))
    try:
        said = ask(profile, "sacct", "-X", "-n", "-P", "-D", "-o", "JobID,State,NodeList", "-j", arrays)
    except InputError:
        return {}
    entries: dict[str, Entry] = {}
    for line in said.splitlines():  # oldest first: the last row of a job that was requeued counts
        name, state, node = line.split("|")
        entries |= dict.fromkeys(_tasks(name), _entry(state.split()[0] if state else "UNKNOWN", node, ""))
    return entries


def _entry(state: str, node: str, reason: str) -> Entry:
    if state in ENDED:
        phase = "ended"
    elif state in AGAIN:
        phase = "again"
    elif state in HELD or (state in WAITING and "held" in reason.lower()):
        phase = "held"
    elif state in WAITING:
        phase = "pending"
    else:
        phase = "running"
    return Entry(phase=phase, state=state, node=node, reason="" if reason in ("None", "") else reason)
