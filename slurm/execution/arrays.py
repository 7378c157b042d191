"""Which job arrays does a sweep become? Pure arithmetic over its phases: nothing is submitted here.

The jobs of a phase need nothing of one another, so each shape among them is an array; what is more than the controller
takes in one (MaxArraySize) is several. The arrays of a phase wait for all of the phase before.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from harness.errors import InputError
from slurm.clusters.profiles import SlurmProfile
from slurm.clusters.shapes import Shape


@dataclass(frozen=True, kw_only=True)
class Member:
    """One job of a sweep, by its place in it."""

    index: int
    phase: str
    title: str
    digest: str
    shape: Shape


@dataclass(frozen=True, kw_only=True)
class Array:
    """Jobs that are submitted as one."""

    phase: str
    shape: Shape
    indices: tuple[int, ...]


def arrays(members: Sequence[Member], *, longest: int) -> list[list[Array]]:
    """The arrays of every phase, in order; phases without a job are left out.

    ``longest`` is what one array may hold: MaxArraySize itself, as its indices begin with 0.
    Raises ``InputError`` for a ``longest`` below 1.
    """
    if longest < 1:
        raise InputError(f"this cluster takes no job arrays (MaxArraySize {longest})")
    phases = []
    for phase, jobs in groupby(members, key=lambda member: member.phase):
        by_shape: dict[Shape, list[int]] = {}
        for job in jobs:
            by_shape.setdefault(job.shape, []).append(job.index)
        phases.append(
            [
                Array(phase=phase, shape=shape, indices=tuple(indices[start : start + longest]))
                for shape, indices in by_shape.items()
                for start in range(0, len(indices), longest)
            ]
        )
    return phases


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What a sweep takes if every job takes its whole time limit, once. ``price`` is None where the site gives none.

    A job that finishes earlier takes less, one that is requeued at its limit more.
    """

    jobs: int
    gpu_hours: float
    price: float | None


def cost(members: Sequence[Member], profile: SlurmProfile, *, minutes: int | None = None) -> Cost:
    """That of ``members``."""
    hours = sum(member.shape.gpus for member in members) * (minutes or profile.time_min) / 60
    price = hours * profile.gpu_hour_price if profile.gpu_hour_price else None
    return Cost(jobs=len(members), gpu_hours=hours, price=price)
