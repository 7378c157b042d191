"""Sweeps on a real SLURM: what the launcher promises, with jobs that only count. Run with ``make cluster-test``."""

import json
import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from clusters import PROJECT, Cluster, until

from slurm.local_cluster.conf import GPUS

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("watched")]


class Sweep:
    """One sweep, by its command line alone."""

    def __init__(self, cluster: Cluster, experiment: str, *options: str) -> None:
        self.cluster = cluster
        before = set(self.ids())
        self.submitted = self.bench("submit", experiment, "--cluster", "slurm-local", "--dirty", *options)
        (self.id,) = set(self.ids()) - before
        self.folder = cluster.work / "sweeps" / self.id

    def ids(self) -> list[str]:
        return [path.parent.name for path in (self.cluster.work / "sweeps").glob("*/sweep.json")]

    def bench(self, action: str, *options: str) -> subprocess.CompletedProcess[str]:
        return self.cluster.bench("sweep", action, *options, "--runs", str(self.cluster.work / "runs"))

    def status(self) -> dict[str, Any]:
        status: dict[str, Any] = json.loads(self.bench("status", self.id, "--json").stdout)
        return status

    def states(self) -> list[str]:
        return [row["state"] for row in self.status()["rows"]]

    def counted(self) -> dict[int, int]:
        """Numbers that each job wrote."""
        logs = (self.folder / "results" / "smoke").glob("*.log")
        return {int(log.stem): len(log.read_text().splitlines()) for log in logs}


def over(sweep: Sweep) -> bool:
    return not set(sweep.states()) & {"waiting", "pending", "running"}


@pytest.mark.short
def test_twenty_jobs_and_one_that_needs_them_all(cluster: Cluster) -> None:
    sweep = Sweep(cluster, "smoke", "--watch")
    assert sweep.submitted.returncode == 0, sweep.submitted.stderr
    assert sweep.states() == ["done"] * 21
    assert sweep.counted() == dict.fromkeys(range(21), 1)
    code = [Path(f"{sweep.folder}/code").resolve()]
    assert all(str(code[0]) in path.read_text() for path in (sweep.folder / "log").rglob("*.sh"))


def test_a_job_on_a_device_has_a_gpu_of_its_own(cluster: Cluster) -> None:
    sweep = Sweep(cluster, "smoke", "--watch", "--device", "cuda", "--limit", str(2 * GPUS))
    said = [row["said"] for row in sweep.status()["rows"][:-1]]
    assert all(line.partition("GPUs ")[2] in map(str, range(GPUS)) for line in said), said


@pytest.mark.short
def test_one_fails_by_design_and_resume_runs_only_what_is_missing(cluster: Cluster) -> None:
    sweep = Sweep(cluster, "smoke", "--scale", "failing", "--watch")
    assert sweep.submitted.returncode == 1
    status = sweep.status()
    assert status["counts"] == {"done": 19, "failed": 1, "not started": 1}, sweep.bench("logs", sweep.id).stdout
    failed = next(row for row in status["rows"] if row["state"] == "failed")
    assert failed["said"].startswith("RuntimeError: job 7 fails by design")
    logs = sweep.bench("logs", sweep.id).stdout
    assert "Traceback (most recent call last)" in logs and "fails by design" in logs
    assert sweep.bench("status", sweep.id).returncode == 1

    (sweep.folder / "results" / "mended").touch()
    resumed = sweep.bench("resume", sweep.id, "--watch")
    assert resumed.returncode == 0, resumed.stderr
    assert "2 jobs in 2 arrays" in resumed.stdout
    assert sweep.states() == ["done"] * 21
    assert sweep.counted() == dict.fromkeys(range(21), 1)
    assert "0 jobs in 0 arrays" in sweep.bench("resume", sweep.id).stdout


def test_throttled(cluster: Cluster) -> None:
    sweep = Sweep(cluster, "smoke", "--parallel", "2")
    seen = []
    while not over(sweep):
        seen.append(sweep.states().count("running"))
    assert max(seen) <= 2 and sweep.states() == ["done"] * 21


@pytest.mark.limit_s(300)
def test_cancel_then_resume(cluster: Cluster) -> None:
    sweep = Sweep(cluster, "smoke", "--scale", "slow", "--limit", "4")
    until(lambda: len(sweep.counted()) == 4)
    assert "5 jobs cancelled" in sweep.bench("cancel", sweep.id).stdout
    until(lambda: over(sweep))
    assert sweep.states() == ["cancelled"] * 4 + ["not started"]
    before = sweep.counted()
    assert sweep.bench("resume", sweep.id, "--watch").returncode == 0
    assert all(0 < before[number] < 60 for number in range(4))
    assert sweep.counted() == dict.fromkeys(range(4), 60) | {4: 1}


def test_the_driver_died_before_it_could_note_what_it_submitted(cluster: Cluster) -> None:
    sweep = Sweep(cluster, "smoke", "--scale", "slow", "--limit", "3")
    (sweep.folder / "launches.jsonl").write_text("")
    resumed = sweep.bench("resume", sweep.id, "--watch")
    assert resumed.returncode == 0, resumed.stderr
    assert sweep.counted() == {0: 60, 1: 60, 2: 60, 3: 1}, "no number was counted twice"


@pytest.mark.limit_s(240)
def test_two_that_resume_at_once_submit_once_and_the_code_goes_when_all_is_done(cluster: Cluster) -> None:
    sweep = Sweep(cluster, "smoke", "--scale", "slow", "--limit", "2")
    sweep.bench("cancel", sweep.id)
    until(lambda: over(sweep))
    launched = len((sweep.folder / "launches.jsonl").read_text().splitlines())
    command = [sys.executable, "-m", "harness.cli.main", "sweep", "resume", sweep.id]
    runs = ["--runs", str(cluster.work / "runs")]
    both = [subprocess.Popen([*command, *runs], env=cluster.environment, cwd=PROJECT) for _ in range(2)]
    assert sorted(each.wait() for each in both) in ([0, 0], [0, 2]), "the second was refused, or found nothing to do"
    assert len((sweep.folder / "launches.jsonl").read_text().splitlines()) == launched + 2
    refused = sweep.bench("clean", sweep.id)
    assert refused.returncode == 2 and "3 jobs of sweep" in refused.stderr
    assert sweep.bench("watch", sweep.id).returncode == 0
    assert sweep.counted() == {0: 60, 1: 60, 2: 1}
    assert sweep.bench("clean", sweep.id).returncode == 0 and not (sweep.folder / "code").exists()


@pytest.mark.limit_s(240)
def test_a_signal_ahead_of_the_end_requeues_and_the_job_goes_on(cluster: Cluster) -> None:
    sweep = Sweep(cluster, "smoke", "--scale", "slow", "--limit", "2")
    until(lambda: len(sweep.counted()) == 2)
    job = sweep.status()["rows"][0]["slurm_job"]
    cluster.call("scancel", "--signal=USR2", job)
    assert sweep.bench("watch", sweep.id).returncode == 0
    log = (sweep.folder / "results" / "smoke" / "0.log").read_text().splitlines()
    numbers, processes = zip(*(line.split() for line in log), strict=True)
    assert list(map(int, numbers)) == list(range(60)), "nothing lost, nothing twice"
    assert len(set(processes)) == 2
    assert "interrupted; requeueing" in sweep.bench("logs", sweep.id, "0").stdout


@pytest.fixture
def short_arrays(cluster: Cluster) -> Iterator[None]:
    """The same cluster with MaxArraySize 10."""
    conf = cluster.folder / "etc" / "slurm.conf"
    before = conf.read_text()
    for text in (before.replace("MaxArraySize=1001", "MaxArraySize=10"), before):
        conf.write_text(text)
        pid = cluster.pids()["slurmctld"]
        assert pid
        os.kill(pid, signal.SIGTERM)
        until(lambda: cluster.pids()["slurmctld"] is None)
        cluster.up()
        if text != before:
            assert text.count("MaxArraySize=10\n") == 1
            yield


@pytest.mark.usefixtures("short_arrays")
@pytest.mark.short
def test_more_jobs_than_an_array_takes(cluster: Cluster) -> None:
    sweep = Sweep(cluster, "smoke", "--limit", "35", "--watch")
    assert "36 jobs in 5 arrays" in sweep.submitted.stdout
    assert sweep.states() == ["done"] * 36


@pytest.mark.limit_s(240)
def test_a_thousand_jobs_in_one_go_and_one_question_in_ten_seconds(cluster: Cluster, tmp_path: Path) -> None:
    start = time.monotonic()
    sweep = Sweep(cluster, "smoke", "--limit", "1000")
    print(f"\n1,001 jobs submitted in {time.monotonic() - start:.1f} s")
    assert "1001 jobs in 2 arrays" in sweep.submitted.stdout
    asked = tmp_path / "asked"
    for name in ("squeue", "sacct"):
        real = cluster.call("which", name).strip()
        shim = tmp_path / "bin" / name
        shim.parent.mkdir(exist_ok=True)
        shim.write_text(f'#!/bin/sh\ndate +%s >> {asked}-{name}\nexec {real} "$@"\n')
        shim.chmod(shim.stat().st_mode | stat.S_IXUSR)
    command = [sys.executable, "-m", "harness.cli.main", "sweep", "watch", sweep.id]
    environment = cluster.environment | {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"}
    runs = ["--runs", str(cluster.work / "runs")]
    watching = subprocess.Popen([*command, *runs], env=environment, cwd=PROJECT, stderr=subprocess.DEVNULL)
    time.sleep(45)
    watching.kill()
    watching.wait()
    assert 4 <= len(asked.with_name("asked-squeue").read_text().split()) <= 5
    sweep.bench("cancel", sweep.id)
    until(lambda: over(sweep))


@pytest.mark.limit_s(900)
def test_two_nodes_of_two_ranks_train_what_one_process_trains(cluster: Cluster) -> None:
    """The losses of 30 steps differ by at most 1e-4, although the four were requeued on their way."""
    sweep = Sweep(cluster, "fsdp")
    several, _, comparison = sweep.status()["rows"]
    (log,) = [cluster.work / "runs" / "fsdp" / "several"]
    until(lambda: any(path.stat().st_size for path in log.rglob("log.jsonl")))
    cluster.call("scancel", "--signal=USR2", several["slurm_job"])
    assert sweep.bench("watch", sweep.id).returncode == 0
    rows = sweep.status()["rows"]
    assert [row["state"] for row in rows] == ["done"] * 3
    print(f"\n{rows[comparison['index']]['said']}")
    output = sweep.bench("logs", sweep.id, str(several["index"])).stdout
    assert output.count("rank=0, world=4") == 2, "two attempts"
    assert len(list(log.rglob("final/config.json"))) == 1


@pytest.mark.short
def test_a_partition_that_is_not_there_submits_nothing(cluster: Cluster) -> None:
    cluster.environment["REFRAG_SLURM_LOCAL_PARTITION"] = "nowhere"
    try:
        done = cluster.bench("sweep", "submit", "smoke", "--cluster", "slurm-local", "--dirty")
    finally:
        del cluster.environment["REFRAG_SLURM_LOCAL_PARTITION"]
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1 and "this cluster has h100, h100-high" in done.stderr
