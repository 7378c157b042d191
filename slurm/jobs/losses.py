"""Collect the losses of trainings from their logs, as a file that figures are drawn from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.files import write_atomically
from harness.train.export import read_training
from results.replication.losses import FOLDER, Curve, Point, to_csv
from slurm.jobs import Progress
from slurm.jobs.curves import read_log
from slurm.jobs.train import TrainJob


@dataclass(frozen=True, kw_only=True)
class Training:
    """A finished training of a way, which has one for every seed."""

    way: str
    job: TrainJob


@dataclass(frozen=True, kw_only=True)
class LossesJob:
    """Leave ``losses/<name>.csv`` below ``runs`` and, as an accepted record, below ``out/records``.

    A training whose accepted checkpoint was taken as it is left no log, and has no curve. Raises ``InputError`` for
    any other without a log.
    """

    name: str
    trainings: Sequence[Training]
    runs: Path
    out: Path

    @property
    def title(self) -> str:
        return f"collect the losses of {len(self.trainings)} trainings"

    def run(self, progress: Progress | None = None) -> list[Curve]:
        own = [training for training in self.trainings if training.job.checkpoint.parent == training.job.folder]
        curves = [_curve(training) for training in own]
        if curves:
            for folder in (self.runs / FOLDER, self.out / "records" / FOLDER):
                folder.mkdir(parents=True, exist_ok=True)
                write_atomically(folder / f"{self.name}.csv", to_csv(curves))
        return curves

    def said(self, result: list[Curve]) -> str:
        return f"{len(result)} curves, {sum(len(curve.points) for curve in result)} logged steps"


def _curve(training: Training) -> Curve:
    job, log = training.job, read_log(training.job.folder / "log.jsonl")
    recipe: Any = job.recipe()
    return Curve(
        way=training.way,
        k=recipe.model.k,
        seed=recipe.stage.seed,
        training=job.name,
        commit=str(read_training(job.checkpoint)["provenance"]["commit"])[:12],
        points=[Point(step, log[step]["tokens"], log[step]["loss"]) for step in sorted(log)],
    )
