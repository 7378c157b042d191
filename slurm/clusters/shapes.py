"""What does a job ask of a cluster? Jobs of one shape share an array.

A job on ``cuda`` asks for a GPU per process, one on a CPU for none; it may say otherwise with ``nodes`` and
``tasks_per_node`` (a training over several processes).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from harness.errors import InputError
from slurm.clusters.profiles import SlurmProfile

# Before SLURM ends a job or gives its place away: time to write a checkpoint.
SIGNAL_S = 120
MIN_MINUTES = 5  # SLURM looks at limits every half minute: below, the signal could come before the job has begun


@dataclass(frozen=True, kw_only=True)
class Shape:
    """Processes and GPUs of one job."""

    nodes: int = 1
    tasks_per_node: int = 1
    gpus_per_task: int = 0

    @property
    def gpus_per_node(self) -> int:
        return self.tasks_per_node * self.gpus_per_task

    @property
    def gpus(self) -> int:
        return self.nodes * self.gpus_per_node

    @property
    def said(self) -> str:
        processes = self.nodes * self.tasks_per_node
        on = (
            f"{self.nodes} node{'' if self.nodes == 1 else 's'} x {self.tasks_per_node} processes"
            if processes > 1
            else "1 process"
        )
        return f"{on}, {self.gpus} GPU{'' if self.gpus == 1 else 's'}"


def shape_of(job: Any) -> Shape:
    """The shape that a job of an experiment has."""
    return Shape(
        nodes=getattr(job, "nodes", 1),
        tasks_per_node=getattr(job, "tasks_per_node", 1),
        gpus_per_task=1 if str(getattr(job, "device", "cpu")).startswith("cuda") else 0,
    )


def sbatch_parameters(shape: Shape, profile: SlurmProfile, *, minutes: int | None = None) -> dict[str, Any]:
    """The part of a profile that a job of ``shape`` asks for, as submitit's SLURM executor takes it.

    A job without a GPU goes to the profile's partition for such, if there is one; a constraint is on nodes with GPUs.
    A job that fills a node asks for all of its memory, any other for its share: by GPUs, or by what the partition
    gives a CPU. Raises ``InputError`` for more GPUs than a node has and for a time limit too short to be warned of.
    """
    limit = profile.time_min if minutes is None else minutes
    if limit < MIN_MINUTES:
        raise InputError(f"expected a time limit of at least {MIN_MINUTES} minutes, got {limit}")
    if shape.gpus_per_node > profile.gpus_per_node:
        raise InputError(
            f"a job asks for {shape.gpus_per_node} GPUs of a node; those of {profile.name} have {profile.gpus_per_node}"
        )
    elsewhere = bool(profile.cpu_partition) and not shape.gpus
    asked: dict[str, Any] = {
        "partition": profile.cpu_partition if elsewhere else profile.partition,
        "account": profile.account,
        "qos": profile.qos,
        "constraint": "" if elsewhere else profile.constraint,
        "time": limit,
        "nodes": shape.nodes,
        "ntasks_per_node": shape.tasks_per_node,
        "cpus_per_task": profile.cpus_per_gpu,
        "signal_delay_s": SIGNAL_S,
    }
    if shape.gpus_per_node:
        asked["gres"] = profile.gres_of(shape.gpus_per_node)
        share = shape.gpus_per_node / profile.gpus_per_node
        if profile.memory_gb:
            asked["mem"] = f"{max(1, int(profile.memory_gb * share))}G"  # 0 would be all of it
        elif share == 1:
            asked["mem"] = "0"  # all that the node has
    return {name: value for name, value in asked.items() if value != ""}
