"""Losses of trainings as a record: what their logs say, and nothing of a checkpoint that was taken as it is."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from harness.errors import InputError
from results.replication.losses import Point, read
from slurm.jobs.losses import LossesJob, Training


@dataclass(frozen=True, kw_only=True)
class FakeTraining:
    """What of a ``TrainJob`` is asked."""

    folder: Path
    checkpoint: Path
    name: str = "refrag_v2/cpt-tiny-0"

    def recipe(self) -> Any:
        return SimpleNamespace(model=SimpleNamespace(k=8), stage=SimpleNamespace(seed=2))


def finished(folder: Path, rows: list[tuple[int, float]]) -> FakeTraining:
    final = folder / "final"
    final.mkdir(parents=True)
    (final / "training.json").write_text(json.dumps({"recipe": {}, "provenance": {"commit": "0123456789abcdef"}}))
    (folder / "log.jsonl").write_text(
        "".join(json.dumps({"step": step, "loss": loss, "tokens": 7 * step}) + "\n" for step, loss in rows)
    )
    return FakeTraining(folder=folder, checkpoint=final)


def collect(tmp_path: Path, *jobs: Any) -> LossesJob:
    trainings = [Training(way="k=8", job=job) for job in jobs]
    return LossesJob(name="k_ablation", trainings=trainings, runs=tmp_path / "runs", out=tmp_path / "out")


def test_a_repeated_step_counts_as_it_was_last_and_both_files_say_the_same(tmp_path: Path) -> None:
    job = collect(tmp_path, finished(tmp_path / "a", [(10, 2.0), (20, 1.5), (20, 1.25), (30, 1.0)]))
    (curve,) = job.run()
    assert (curve.k, curve.seed, curve.training, curve.commit) == (8, 2, "refrag_v2/cpt-tiny-0", "0123456789ab")
    assert curve.points == [Point(10, 70, 2.0), Point(20, 140, 1.25), Point(30, 210, 1.0)]
    assert job.said([curve]) == "1 curves, 3 logged steps"
    for folder in (tmp_path / "runs" / "losses", tmp_path / "out" / "records" / "losses"):
        assert read(folder / "k_ablation.csv").curves == [curve]


def test_an_accepted_checkpoint_has_no_curve_and_no_file(tmp_path: Path) -> None:
    taken = FakeTraining(folder=tmp_path / "runs" / "a", checkpoint=tmp_path / "accepted" / "a")
    assert collect(tmp_path, taken).run() == []
    assert not (tmp_path / "out").exists()


def test_a_training_without_its_log_is_named(tmp_path: Path) -> None:
    job = finished(tmp_path / "a", [(10, 1.0)])
    (job.folder / "log.jsonl").unlink()
    with pytest.raises(InputError, match=r"no log of a training in .*log\.jsonl"):
        collect(tmp_path, job).run()
