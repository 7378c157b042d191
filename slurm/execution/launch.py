"""Give a sweep to SLURM: all of its phases at once, each held until the one before it has succeeded.

Submission itself is submitit's; what is asked for is in ``slurm.clusters.shapes`` and ``slurm.execution.arrays``.
Launching again is how a sweep is resumed: what is done or still in the queue is left alone, the rest is submitted anew.
"""

from __future__ import annotations

import os
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.cli.catalog import EXPERIMENTS, find
from harness.errors import InputError
from slurm.checkout import ROOT
from slurm.clusters import queue
from slurm.clusters.profiles import SlurmProfile, is_secret
from slurm.clusters.shapes import sbatch_parameters
from slurm.execution.arrays import Array, Member, arrays
from slurm.execution.payload import Payload
from slurm.execution.sweep import Launch, Sweep
from slurm.execution.watch import LIVE, Watcher

if TYPE_CHECKING:
    from submitit import SlurmExecutor

# A signal that comes while python still imports would end the job; ignored until the payload listens.
PYTHON = f"""/bin/sh -c 'trap "" USR2; exec "$0" "$@"' {shlex.quote(sys.executable)}"""


def plan(sweep: Sweep) -> list[Member]:
    """The jobs of the sweep, worked out when it is launched first; in its own code, as pickles name classes."""
    if (sweep.folder / "jobs.jsonl").exists():
        return sweep.members()
    experiment = find("experiment", EXPERIMENTS, sweep.header.experiment)
    return sweep.write_jobs(list(experiment(**read_asked(sweep.header.asked))))


def read_asked(asked: Mapping[str, Any]) -> dict[str, Any]:
    """An experiment's arguments, as a header keeps them."""
    paths = {name: Path(value) for name, value in asked.items() if name in ("data", "runs", "out") and value}
    return {**asked, **paths}


def launch(sweep: Sweep, profile: SlurmProfile) -> list[Launch]:
    """Submit what is neither done nor in the queue; what was submitted.

    Raises ``InputError`` where SLURM refuses a part; then nothing of this launch stays in the queue. Raises ``Busy``
    where another process launches or cancels the sweep.
    """
    with sweep.held():
        return _launch(sweep, profile)


def _launch(sweep: Sweep, profile: SlurmProfile) -> list[Launch]:
    os.environ.update(profile.environment)
    members = plan(sweep)
    _cancel_strays(sweep, profile)
    live = _live(sweep, profile, members)
    at, log = time.time(), log_folder(sweep)
    submitted: list[Launch] = []
    before: list[str] = []  # what the next phase waits for
    todo = [member for member in members if member.index not in live and not sweep.done(member)]
    waiting = {phase[0].phase: phase for phase in arrays(todo, longest=queue.longest_array(profile))}
    try:
        for phase in dict.fromkeys(member.phase for member in members):
            ids = [live[member.index] for member in members if member.phase == phase and member.index in live]
            throttled: list[str] = []
            for array in waiting.get(phase, []):
                # A throttle counts within one array, so the arrays of a phase then follow one another.
                one = _submit(sweep, profile, array, at, log, after_ok=before, after_any=throttled)
                sweep.launched(one)
                submitted.append(one)
                ids.append(one.slurm_id)
                throttled = [one.slurm_id] if sweep.header.parallel else []
            before = ids or before
    except InputError:
        queue.cancel(profile, [one.slurm_id for one in submitted])
        raise
    return submitted


def cancel(sweep: Sweep, profile: SlurmProfile) -> int:
    """End all jobs of the sweep that are in the queue; how many there were. Raises ``Busy`` while it is launched."""
    with sweep.held():
        _cancel_strays(sweep, profile)
        rows = Watcher(sweep, queue.Queue(profile).look).status()
        if rows.problem:
            raise InputError(rows.problem)
        ids = [row.slurm_job for row in rows.rows if row.state in (*LIVE, "held") and row.slurm_job]
        queue.cancel(profile, ids)
    return len(ids)


def _cancel_strays(sweep: Sweep, profile: SlurmProfile) -> None:
    """Arrays that reached the queue while the driver died before it could note them."""
    known = {one.slurm_id for one in sweep.launches()}
    strays = [name for name in queue.named(profile, sweep.header.id) if name not in known]
    queue.cancel(profile, strays)


def _live(sweep: Sweep, profile: SlurmProfile, members: Sequence[Member]) -> dict[int, str]:
    """The jobs that stay in the queue, by place.

    Held ones are released. Where a phase is to be submitted again in part, what waits for it in later phases would wait
    for the failed jobs, so that is cancelled, to be submitted again behind the new ones.
    """
    rows = Watcher(sweep, queue.Queue(profile).look).settled()
    if rows.problem:
        raise InputError(rows.problem)
    held = [row.slurm_job for row in rows.rows if row.state == "held"]
    queue.release(profile, held)
    stays = [row for row in rows.rows if row.state in (*LIVE, "held") and row.slurm_job]
    order = {phase: place for place, phase in enumerate(dict.fromkeys(member.phase for member in members))}
    again = [order[row.phase] for row in rows.rows if row.state != "done" and row not in stays]
    behind = [row for row in stays if again and order[row.phase] > min(again)]
    queue.cancel(profile, [row.slurm_job for row in behind])
    return {row.index: row.slurm_job for row in stays if row not in behind}


def _submit(
    sweep: Sweep,
    profile: SlurmProfile,
    array: Array,
    at: float,
    log: Path,
    *,
    after_ok: Sequence[str],
    after_any: Sequence[str],
) -> Launch:
    from submitit.core.utils import FailedJobError, FailedSubmissionError

    executor = build_executor(sweep, profile, array, log, after_ok=after_ok, after_any=after_any)
    payloads = [
        Payload(sweeps=sweep.folder.parent.resolve(), name=sweep.header.id, index=index, launch=at)
        for index in array.indices
    ]
    try:
        jobs = executor.map_array(Payload.__call__, payloads)
    except (FailedJobError, FailedSubmissionError) as error:
        lines = str(error).strip().splitlines() or ["sbatch failed"]
        raise InputError(lines[-1].removeprefix("sbatch: ").removeprefix("error: ")) from error
    return Launch(slurm_id=jobs[0].job_id.partition("_")[0], phase=array.phase, indices=array.indices, at=at)


def build_executor(
    sweep: Sweep,
    profile: SlurmProfile,
    array: Array,
    log: Path,
    *,
    after_ok: Sequence[str] = (),
    after_any: Sequence[str] = (),
) -> SlurmExecutor:
    """submitit's executor with all that an array asks of SLURM."""
    import submitit

    executor = submitit.SlurmExecutor(folder=log / "%A", python=PYTHON)
    dependencies = [f"{kind}:{':'.join(ids)}" for kind, ids in (("afterok", after_ok), ("afterany", after_any)) if ids]
    said = {name: value for name, value in profile.environment.items() if not is_secret(name, value)}
    exports = {"PYTHONPATH": str(sweep.code.resolve()), **said}
    executor.update_parameters(
        **sbatch_parameters(array.shape, profile, minutes=sweep.header.minutes),
        job_name=sweep.header.id,
        wckey=None,  # submitit's own word for it is refused where accounting knows its keys
        array_parallelism=sweep.header.parallel or len(array.indices),
        dependency=",".join(dependencies) or None,
        setup=[
            *(f"module load {shlex.quote(module)}" for module in profile.modules),
            *(f"export {name}={shlex.quote(value)}" for name, value in exports.items()),
        ],
        # One lost process ends the others; and from SLURM 22.05 on srun does not take sbatch's CPUs per task over.
        srun_args=["--kill-on-bad-exit=1", f"--cpus-per-task={profile.cpus_per_gpu}"],
        additional_parameters={"requeue": True, "kill-on-invalid-dep": "yes", "chdir": str(sweep.code.resolve())},
    )
    return executor


def log_folder(sweep: Sweep) -> Path:
    """Where the output of the next launch goes."""
    return sweep.folder.resolve() / "log" / f"launch-{len({one.at for one in sweep.launches()}) + 1}"


def in_own_code(sweep: Sweep) -> bool:
    """Is this process running the sweep's worktree?"""
    return sweep.code.resolve() == ROOT
