"""Who a process is and where it meets the others; what of an attempt only its first process writes; the experiment."""

from __future__ import annotations

import json
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from harness.errors import GateMissed, InputError
from harness.train import ranks
from harness.train.ranks import Rank, first_host, here, meeting_point
from slurm.clusters.shapes import Shape, shape_of
from slurm.execution import payload
from slurm.execution.attempt import Attempt, Claim, Fenced, read
from slurm.jobs.curves import CurvesJob
from slurm.jobs.train import TrainJob
from slurm.sweeps.fsdp import fsdp

TORCHRUN = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "29500"}
SRUN = {
    "SLURM_PROCID": "2",
    "SLURM_NTASKS": "4",
    "SLURM_LOCALID": "0",
    "SLURM_JOB_NODELIST": "localhost,other",
    "SLURM_JOB_ID": "15000007",
}
LOCAL = {
    "SUBMITIT_LOCAL_GLOBALID": "1",
    "SUBMITIT_LOCAL_NTASKS": "2",
    "SUBMITIT_LOCAL_LOCALID": "1",
    "SUBMITIT_LOCAL_JOB_ID": "41",
}


@pytest.mark.parametrize(
    ("environment", "rank", "point"),
    [
        (TORCHRUN, Rank(rank=3, world=4, local=1), ("10.0.0.1", 29500)),
        (SRUN, Rank(rank=2, world=4, local=0), ("localhost", 15007)),
        (LOCAL, Rank(rank=1, world=2, local=1), ("127.0.0.1", 15041)),
        (SRUN | TORCHRUN, Rank(rank=3, world=4, local=1), ("10.0.0.1", 29500)),
        (SRUN | LOCAL, Rank(rank=1, world=2, local=1), ("127.0.0.1", 15041)),
    ],
)
def test_the_launcher_says_who_a_process_is(environment: dict[str, str], rank: Rank, point: tuple[str, int]) -> None:
    assert here(environment) == rank
    assert meeting_point(environment) == point


def test_without_a_launcher_a_process_is_alone() -> None:
    assert here({"SLURM_NTASKS": "4"}) == Rank(rank=0, world=1, local=0)  # an allocation, but nothing started in it
    with pytest.raises(InputError, match="neither srun nor torchrun"):
        meeting_point({})


def test_jobs_beside_one_another_have_other_ports_below_the_ephemeral_ones() -> None:
    found = [ranks.port(str(job)) for job in range(2_999_990, 3_000_010)]
    assert len(set(found)) == 20 and all(15000 <= port < 30000 for port in found)


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("h100-01", "h100-01"),
        ("h100-[01-02]", "h100-01"),
        ("gpu-[03,05-11],login", "gpu-03"),
        ("a,b-[1-2]", "a"),
        ("rack[2-3]n[07-08]-ib", "rack2n07-ib"),
    ],
)
def test_the_first_of_a_list_of_nodes(nodes: str, first: str) -> None:
    assert first_host(nodes) == first


def test_a_node_that_does_not_resolve_is_asked_of_slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scontrol = tmp_path / "scontrol"
    scontrol.write_text('#!/bin/sh\n[ "$4" = virtual.invalid ] && echo "NodeName=$4 NodeAddr=127.0.0.9 Port=7"\n')
    scontrol.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert ranks.address("virtual.invalid") == "127.0.0.9"
    assert ranks.address("localhost") == "localhost"
    with pytest.raises(InputError, match="'strange.invalid' does not resolve, and scontrol does not know it"):
        ranks.address("strange.invalid")


# A job's attempt


def claim(folder: Path, *, leads: bool, restart: int = 0, slurm_job: str = "7") -> Claim:
    return Claim(folder, Attempt(sweep="s", launch=1.0, restart=restart, slurm_job=slurm_job), leads=leads)


def test_the_other_processes_write_nothing_but_why_they_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("slurm.execution.attempt.LOOK_S", 0.0)
    other = claim(tmp_path, leads=False)
    other.take()
    other.progressed(1, 2)
    other.finished("done", 0, None, 1.0)
    assert list(tmp_path.iterdir()) == []
    first = claim(tmp_path, leads=True)
    first.take()
    other.failed(ValueError("the cause"), "Traceback of the cause")
    first.failed(RuntimeError("peer closed"), "Traceback")
    assert read(tmp_path / "failed.json")["error"] == "ValueError: the cause"
    again = claim(tmp_path, leads=True, restart=1)
    again.take()
    assert not (tmp_path / "failed.json").exists()
    with pytest.raises(Fenced):
        other.progressed(2, 2)


class Ended(BaseException):
    pass


@pytest.mark.parametrize(
    ("leads", "told", "asked"),
    [
        (True, [signal.SIGUSR2], True),
        (True, [signal.SIGTERM], False),
        (True, [], True),
        (False, [signal.SIGUSR2], False),
        (False, [], False),
    ],
)
def test_the_first_process_alone_asks_for_the_requeue(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, leads: bool, told: list[int], asked: bool
) -> None:
    """Also where only another process of the training was told to give way."""
    commands: list[list[str]] = []

    def end(code: int) -> None:
        raise Ended

    monkeypatch.setattr(payload.subprocess, "run", lambda command, check: commands.append(command))
    monkeypatch.setattr(payload, "LOOK_S", 0.0)
    monkeypatch.setattr(payload, "REQUEUED_S", 0)
    monkeypatch.setattr(payload.os, "_exit", end)
    with pytest.raises(Ended):
        payload._give_way(claim(tmp_path, leads=leads), list(told))
    assert commands == ([["scontrol", "requeue", "7"]] if asked else [])


# The experiment


def phases(**asked: Any) -> dict[str, list[Any]]:
    plain: dict[str, Any] = dict(
        data=None, checkpoint=None, limit=None, device="cpu", runs=Path("runs"), out=Path("results")
    )
    return {phase.title: list(phase.jobs) for phase in fsdp(**plain | asked)}


def test_one_recipe_is_trained_in_two_shapes_and_then_compared() -> None:
    several, one = phases()["train"]
    assert (shape_of(one), shape_of(several)) == (Shape(), Shape(nodes=2, tasks_per_node=2))
    assert one.identity == several.identity and one.folder != several.folder
    assert one.before.finished, "the accepted decoder"
    (compare,) = phases()["compare"]
    assert (compare.of, compare.against, compare.most) == (one, several, 1e-4)
    assert shape_of(phases(device="cuda")["train"][0]).gpus == 4


@pytest.mark.parametrize("asked", [{"data": Path("x")}, {"limit": 3}, {"budget": "long"}, {"from_scratch": True}])
def test_there_is_one_form_of_it(asked: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="is one training from one start; leave --"):
        phases(**asked)


@pytest.fixture
def curves(tmp_path: Path) -> CurvesJob:
    _, one = phases(runs=tmp_path)["train"]
    write(one, {10: 2.0, 20: 1.5})
    (compare,) = phases(runs=tmp_path)["compare"]
    return compare


def write(job: TrainJob, losses: dict[int, float], again: dict[int, float] | None = None) -> None:
    job.folder.mkdir(parents=True, exist_ok=True)
    rows = [*losses.items(), *(again or {}).items()]
    lines = [json.dumps({"step": step, "loss": loss}) + "\n" for step, loss in rows]
    (job.folder / "log.jsonl").write_text("".join(lines))


def test_equal_curves_pass_and_leave_their_steps(curves: CurvesJob) -> None:
    write(curves.against, {10: 9.0}, again={10: 2.00005, 20: 1.5})  # interrupted after step 10, which came again
    found = curves.run()
    assert found["largest_difference"] == pytest.approx(5e-5)
    assert "at most 5e-05 nats over 2 logged steps" in curves.said(found)
    (path,) = curves.runs.rglob("curves.json")
    assert [row["step"] for row in json.loads(path.read_text())["steps"]] == [10, 20]


@pytest.mark.parametrize("loss", [1.5002, 1.4998, float("nan")])
def test_other_curves_miss_the_gate(curves: CurvesJob, loss: float) -> None:
    write(curves.against, {10: 2.0, 20: loss})
    with pytest.raises(GateMissed, match="at most 0.0001 is allowed"):
        curves.run()


def test_curves_of_other_steps_and_no_curve_are_input_errors(curves: CurvesJob) -> None:
    with pytest.raises(InputError, match="no log of a training"):
        curves.run()
    write(curves.against, {10: 2.0})
    with pytest.raises(InputError, match=r"got \[10, 20\] and \[10\]"):
        curves.run()
    write(curves.against, {})
    with pytest.raises(InputError, match="it is empty"):
        curves.run()


def test_the_shape_of_a_training_is_no_part_of_what_it_is() -> None:
    _, one = phases()["train"]
    assert replace(one, nodes=8, tasks_per_node=8).identity == one.identity
