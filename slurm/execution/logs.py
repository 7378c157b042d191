"""What a job of a sweep wrote, whichever attempt it was."""

from __future__ import annotations

from pathlib import Path

from harness.errors import InputError
from slurm.execution import attempt
from slurm.execution.arrays import Member
from slurm.execution.sweep import Sweep
from slurm.execution.watch import Watcher


def read(sweep: Sweep, watcher: Watcher, index: int | None) -> str:
    """Output and errors of job ``index``, oldest attempt first, and its traceback; of all that failed where None.

    Raises ``InputError`` for a job that the sweep does not have.
    """
    members = sweep.members()
    if index is not None:
        if not 0 <= index < len(members):
            raise InputError(f"{sweep.header.id} has no job {index}; it has 0 to {len(members) - 1}")
        return _of(sweep, members[index])
    failed = [row.index for row in watcher.status().rows if row.state == "failed"]
    return "\n".join(_of(sweep, members[index]) for index in failed) or f"{sweep.header.id}: no job failed\n"


def _of(sweep: Sweep, member: Member) -> str:
    parts = [f"=== {member.index} {member.title}\n"]
    for file in files(sweep, member.index):
        parts.append(f"--- {file.relative_to(sweep.folder)}\n{file.read_text(errors='replace').rstrip()}\n")
    if failure := attempt.read(sweep.state(member) / attempt.FAILED):
        parts.append(f"--- traceback\n{failure['traceback'].rstrip()}\n")
    return "".join(parts) if len(parts) > 1 else f"{parts[0]}--- nothing was written\n"


def files(sweep: Sweep, index: int) -> list[Path]:
    """The log files of a job, oldest launch first."""
    found: list[Path] = []
    for launch in sweep.launches():
        for place, launched in enumerate(launch.indices):
            if launched == index:
                found += sorted((sweep.folder / "log").glob(f"*/*/{launch.task_id(place)}_*_log.*"))
    return found
