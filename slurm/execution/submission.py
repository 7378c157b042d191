"""From what was asked on the command line to a sweep that can be launched: checked first, then put on disk."""

from __future__ import annotations

import shutil
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.cli.catalog import EXPERIMENTS, find
from harness.cli.plan import PRICE_USD
from harness.config import plain
from harness.errors import InputError
from slurm import checkout
from slurm.clusters import queue
from slurm.clusters.checks import check_before_submission
from slurm.clusters.profiles import LocalProfile, Profile, SlurmProfile, gpus_here
from slurm.clusters.shapes import sbatch_parameters
from slurm.execution.arrays import Member, arrays, cost
from slurm.execution.launch import read_asked
from slurm.execution.sweep import Header, Sweep, members_of, new_id, sweeps_beside
from slurm.phases import Phase


@dataclass(frozen=True, kw_only=True)
class Asked:
    """An experiment and its arguments. Without ``out``, tables go into the sweep's own folder."""

    experiment: str
    data: Path | None
    checkpoint: str | None
    limit: int | None
    device: str
    scale: str | None
    from_scratch: bool
    runs: Path
    out: Path | None

    def arguments(self, results: Path) -> dict[str, Any]:
        """What the experiment takes, as plain values; ``results`` where no ``out`` was given. Paths are absolute."""
        return {
            "data": _absolute(self.data),
            "checkpoint": _absolute(self.checkpoint),
            "limit": self.limit,
            "device": self.device,
            "budget": self.scale,
            "from_scratch": self.from_scratch,
            "runs": self.runs.absolute().as_posix(),
            "out": (self.out or results).absolute().as_posix(),
        }

    def phases(self) -> Sequence[Phase]:
        """The experiment, worked out. Raises ``InputError`` for whatever it does not accept."""
        experiment = find("experiment", EXPERIMENTS, self.experiment)
        return list(experiment(**read_asked(self.arguments(Path("results")))))


def _absolute(name: Path | str | None) -> str | None:
    """The path of what is there; the name of what is not (it may be on a hub)."""
    return None if name is None else str(Path(name).absolute()) if Path(name).exists() else str(name)


def describe(asked: Asked, profile: Profile, *, parallel: int | None, minutes: int | None) -> str:
    """What would be submitted: jobs by phase, arrays, GPU-hours and cost, and what stands in the way of some jobs."""
    _check_numbers(asked, profile, parallel, minutes)
    phases = asked.phases()
    members = members_of(phases)
    if isinstance(profile, LocalProfile):
        counts = Counter(member.phase for member in members)
        lines = [f"{asked.experiment} on {profile.name}: {counted(len(members), 'job')}, runs in {asked.runs}"]
        lines += [f"  {phase}: {counted(n, 'job')}" for phase, n in counts.items()]
    else:
        for member in members:
            sbatch_parameters(member.shape, profile, minutes=minutes)
        lines = _described(asked, phases, members, profile, minutes)
    return "\n".join([*lines, *(f"  cannot run: {line}" for line in obstacles(asked, phases))])


def obstacles(asked: Asked, phases: Sequence[Phase]) -> list[str]:
    """What jobs say that they cannot run for, each once, after the first of them that says it; and paths asked for of
    which none says that they are not there."""
    found: dict[str, str] = {}
    for job in (job for phase in phases for job in phase.jobs):
        for why in getattr(job, "obstacles", ()):
            found.setdefault(why, job.title)
    lines = [f"{title}: {why}" for why, title in found.items()]
    for option, name in (("--data", asked.data), ("--checkpoint", asked.checkpoint)):
        path = str(name or "")
        if path.startswith(("/", ".", "~")) and not Path(path).exists() and not any(path in line for line in lines):
            lines.append(f"{option}: there is no {path}")
    return lines


def _described(
    asked: Asked, planned: Sequence[Phase], members: Sequence[Member], profile: SlurmProfile, minutes: int | None
) -> list[str]:
    try:
        longest, note = queue.longest_array(profile), ""
    except InputError as error:  # a plan can be made where no SLURM is
        longest, note = len(members), f"  ({error}; arrays are shown whole)"
    in_arrays = arrays(members, longest=longest)
    there = counted(sum(map(len, in_arrays)), "array")
    lines = [f"{asked.experiment} on {profile.name}: {counted(len(members), 'job')} in {there}{note}"]
    lines.append(f"  {_where(profile)}, runs in {asked.runs}")
    lines += [
        f"  {array.phase}: {counted(len(array.indices), 'job')} of {array.shape.said}"
        for phase in in_arrays
        for array in phase
    ]
    if not any(member.shape.gpus for member in members):
        lines.append("  everything runs on CPUs; --device cuda asks for GPUs")
    lines += _planned([phase for phase in planned if phase.gpu_hours is not None], profile)
    by_plan = {phase.title for phase in planned if phase.gpu_hours is not None}
    bound = cost([member for member in members if member.phase not in by_plan], profile, minutes=minutes)
    price = "no price in the profile (gpu_hour_price)" if bound.price is None else f"{bound.price:,.2f}"
    rest = "the rest, " if by_plan else ""
    limit = minutes or profile.time_min
    return [
        *lines,
        f"  {rest}{bound.gpu_hours:,.1f} GPU-hours if every job takes its {limit} minutes, once; cost: {price}",
    ]


def _where(profile: SlurmProfile) -> str:
    cpu = f" (of jobs without a GPU: {profile.cpu_partition})" if profile.cpu_partition else ""
    account = f", account {profile.account}" if profile.account else ""
    memory = f"{profile.memory_gb} GB" if profile.memory_gb else "all memory"
    return f"partition {profile.partition}{cpu}{account}, {memory} of a node"


def counted(n: int, thing: str) -> str:
    """``1 job``, ``2 jobs``."""
    return f"{n} {thing}{'' if n == 1 else 's'}"


def _planned(phases: Sequence[Phase], profile: SlurmProfile) -> list[str]:
    """What a plan says of phases that are far longer than one time limit: each, and all."""
    if not phases:
        return []
    hours = sum(phase.gpu_hours or 0 for phase in phases)
    each = ", ".join(f"{phase.title} {phase.gpu_hours:,.0f}" for phase in phases)
    rate, whose = (profile.gpu_hour_price, "") if profile.gpu_hour_price else (PRICE_USD, ", an assumed price in USD")
    return [
        f"  computed by `refrag-bench plan`: {each}: {hours:,.0f} GPU-hours; "
        f"cost: {hours * rate:,.2f} at {rate:.2f} each{whose}"
    ]


def create(
    asked: Asked,
    profile: Profile,
    *,
    dirty: bool,
    parallel: int | None,
    minutes: int | None,
    online: bool = False,
) -> Sweep:
    """A sweep on disk, with its worktree; nothing is submitted yet.

    Raises ``InputError``, and leaves nothing behind, where the experiment, the cluster or the checkout is not right.
    """
    _check_numbers(asked, profile, parallel, minutes)
    phases = asked.phases()
    if standing := obstacles(asked, phases):
        raise InputError(f"experiment {asked.experiment!r} cannot run: {'; '.join(standing)}")
    members = members_of(phases)
    for member in members:
        if isinstance(profile, SlurmProfile):
            sbatch_parameters(member.shape, profile, minutes=minutes)
        elif member.shape.nodes > 1:
            raise InputError(f"{member.title} asks for {member.shape.nodes} nodes; cluster {profile.name!r} has one")
    if isinstance(profile, LocalProfile):
        _check_gpus(profile, members, parallel)
    source = checkout.source(dirty=dirty)
    check_before_submission(profile, asked.runs)
    sweeps, name = sweeps_beside(asked.runs), new_id(asked.experiment)
    header = Header(
        id=name,
        experiment=asked.experiment,
        cluster=profile.name,
        commit=source.commit,
        dirty=bool(source.diff),
        created=time.time(),
        asked=plain(asked.arguments(sweeps / name / "results")),
        parallel=parallel,
        minutes=minutes,
        online=online,
    )
    sweep = Sweep.create(sweeps, header)
    try:
        checkout.check_out(source, sweep.folder)
    except BaseException:
        shutil.rmtree(sweep.folder)
        raise
    return sweep


def _check_gpus(profile: LocalProfile, members: Sequence[Member], parallel: int | None) -> None:
    """Jobs of this machine share no GPU. Raises ``InputError`` for more at once than there are."""
    each = max((member.shape.gpus for member in members), default=0)
    if not each:
        return
    there, at_once = gpus_here(profile), parallel or 1
    if each * at_once > there:
        raise InputError(
            f"{at_once} jobs at once (--parallel) ask for {each * at_once} GPUs; cluster {profile.name!r} has {there}"
        )


def _check_numbers(asked: Asked, profile: Profile, parallel: int | None, minutes: int | None) -> None:
    if minutes is not None and isinstance(profile, LocalProfile):
        raise InputError(f"cluster {profile.name!r} has no time limit; leave --minutes out")
    for name, value in (("--parallel", parallel), ("--minutes", minutes), ("--limit", asked.limit)):
        if value is not None and value < 1:
            raise InputError(f"expected at least 1 as {name}, got {value}")
