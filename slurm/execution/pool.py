"""Run a sweep on this machine: submitit's local executor behind a queue of our own, a few jobs at a time.

The processes are of the one that started them: it has to stay, and ending it ends them (each keeps what it has). After
a crash the same sweep goes on with ``refrag-bench sweep resume``; what still runs from before is waited for.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from harness.errors import InputError
from harness.files import write_atomically
from slurm.clusters.profiles import LocalProfile, gpus_here
from slurm.clusters.queue import Entry
from slurm.execution.arrays import Member
from slurm.execution.controller import KILLED, in_place_of_submitits
from slurm.execution.launch import log_folder, plan
from slurm.execution.payload import Payload
from slurm.execution.sweep import Launch, Sweep
from slurm.execution.watch import Look

TICK_S = 0.2
DRIVER = "driver.pid"
GONE, CANCELLED = "GONE", "CANCELLED"
TIMEOUT_MIN = 60 * 24 * 365  # there is no time limit here


def run(sweep: Sweep, profile: LocalProfile, tick: Callable[[], None]) -> None:
    """Run what is not done, phase by phase, as many jobs at once as the sweep says; ``tick`` is called all the time.

    A failed job does not stop the others of its phase, but no later phase begins. Interrupted, it ends its jobs first.
    Raises ``InputError`` where another process runs the sweep.
    """
    os.environ.update(profile.environment)
    os.environ["PYTHONPATH"] = str(sweep.code.resolve())
    if driven(sweep):
        raise InputError(f"sweep {sweep.header.id} is being run already, by process {_driver(sweep)}")
    with sweep.held():
        _run(sweep, profile, tick)


def _run(sweep: Sweep, profile: LocalProfile, tick: Callable[[], None]) -> None:
    members = plan(sweep)
    write_atomically(sweep.folder / DRIVER, str(os.getpid()))
    places = Places(
        slots=sweep.header.parallel or max(1, profile.gpus_per_node),
        gpus=gpus_here(profile) if any(member.shape.gpus for member in members) else 0,
        running={one.indices[0]: one for one in sweep.launches() if alive(int(one.slurm_id), sweep)},
    )
    log = log_folder(sweep)
    try:
        _check_room(sweep, members, places)
        for _, phase in groupby(members, key=lambda member: member.phase):
            if not _run_phase(sweep, list(phase), places, log, tick):
                return
    finally:
        _end(sweep, [int(one.slurm_id) for one in places.running.values()])
        (sweep.folder / DRIVER).unlink(missing_ok=True)


def _check_room(sweep: Sweep, members: Sequence[Member], places: Places) -> None:
    """Raise ``InputError`` for a job that would wait for ever: it asks for more GPUs than there are now."""
    asked = max((member.shape.gpus for member in members if not sweep.done(member)), default=0)
    if asked > places.gpus:
        raise InputError(f"a job asks for {asked} GPUs; this machine has {places.gpus} for the sweep")


@dataclass
class Places:
    """Room for ``slots`` jobs at once, and ``gpus`` GPUs, of which a job has its own; ``running`` by job."""

    slots: int
    gpus: int
    running: dict[int, Launch]

    def free(self, asked: int) -> tuple[int, ...] | None:
        """The GPUs for one more job that asks for so many; None where there is no room for it now."""
        lent = {gpu for one in self.running.values() for gpu in one.gpus}
        left = [gpu for gpu in range(self.gpus) if gpu not in lent]
        if len(self.running) >= self.slots or len(left) < asked:
            return None
        return tuple(left[:asked])


def _run_phase(sweep: Sweep, phase: Sequence[Member], places: Places, log: Path, tick: Callable[[], None]) -> bool:
    """Did every job of the phase succeed?"""
    running = places.running
    waiting = [member for member in phase if member.index not in running and not sweep.done(member)]
    while waiting or running:
        for index in [index for index, one in running.items() if not alive(int(one.slurm_id), sweep)]:
            del running[index]
        while waiting and (gpus := places.free(waiting[0].shape.gpus)) is not None:
            member = waiting.pop(0)
            running[member.index] = _start(sweep, member, log, gpus)
        tick()
        time.sleep(TICK_S)
    return all(sweep.done(member) for member in phase)


def _start(sweep: Sweep, member: Member, log: Path, gpus: tuple[int, ...]) -> Launch:
    """Start a job; its process is the one that controls it."""
    import submitit

    folder = log / f"{member.index:04d}"
    executor = submitit.LocalExecutor(folder=folder)
    on = {"gpus_per_node": len(gpus), "visible_gpus": gpus} if gpus else {}
    executor.update_parameters(timeout_min=TIMEOUT_MIN, tasks_per_node=member.shape.tasks_per_node, **on)
    executor.update_parameters(setup=[in_place_of_submitits(folder)])
    at = time.time()
    payload = Payload(sweeps=sweep.folder.parent.resolve(), name=sweep.header.id, index=member.index, launch=at)
    # The terminal's Ctrl-C goes to every process; a job is to hear of it from its driver alone, which gives it time.
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        job = executor.submit(payload)
    finally:
        signal.signal(signal.SIGINT, before)
    launch = Launch(slurm_id=job.job_id, phase=member.phase, indices=(member.index,), at=at, gpus=gpus)
    sweep.launched(launch)
    return launch


def looker(sweep: Sweep) -> Look:
    """What is known of a sweep's processes, as ``slurm.clusters.queue`` says it of jobs."""
    here = Entry(phase="running", state="RUNNING")

    def look(ids: Sequence[str]) -> dict[str, Entry]:
        there = {name: alive(int(name), sweep) for name in ids}  # which may note an end
        ends = sweep.ends()
        return {name: here if there[name] else _end_of(name, ends) for name in ids}

    return look


def _end_of(name: str, ends: Mapping[str, str]) -> Entry:
    how = ends.get(name, "its process ended without a result")
    return Entry(phase="ended", state=CANCELLED if how == CANCELLED else GONE, reason=how)


def driven(sweep: Sweep) -> bool:
    """Is a process there that starts what is waiting?"""
    driver = _driver(sweep)
    return driver is not None and alive(driver, sweep)


def _driver(sweep: Sweep) -> int | None:
    try:
        return int((sweep.folder / DRIVER).read_text())
    except FileNotFoundError:
        return None


def alive(pid: int, sweep: Sweep) -> bool:
    """Is this process there, no corpse, and the sweep's, whose id its command names?

    Reaps a child of this one, and notes the signal that killed it.
    """
    try:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended == pid:
            code = os.waitstatus_to_exitcode(status)
            if number := -code if code < 0 else max(code - KILLED, 0):
                sweep.ended(str(pid), f"killed by signal {number}")
            return False
    except ChildProcessError:
        pass
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z" and sweep.header.id.encode() in command


def stop(sweep: Sweep) -> list[int]:
    """End the driver and all jobs of a sweep; the processes that were told."""
    pids = [pid for pid in (_driver(sweep), *(int(one.slurm_id) for one in sweep.launches())) if pid]
    pids = [pid for pid in pids if alive(pid, sweep)]
    _tell(sweep, pids)
    return pids


def _tell(sweep: Sweep, pids: Sequence[int]) -> None:
    """Tell processes to end, having noted that they were told."""
    for pid in pids:
        sweep.ended(str(pid), CANCELLED)
        os.kill(pid, signal.SIGTERM)


def _end(sweep: Sweep, pids: Sequence[int]) -> None:
    _tell(sweep, [pid for pid in pids if alive(pid, sweep)])
    until = time.monotonic() + 30
    while any(alive(pid, sweep) for pid in pids) and time.monotonic() < until:
        time.sleep(TICK_S)
