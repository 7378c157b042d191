"""The same sweep undisturbed and under twenty interruptions, on a real SLURM: the same bytes. `make cluster-test`.

What happens to it, in an order drawn from a fixed seed: a job is signalled, a job is preempted by the partition above,
a node dies while its jobs go on computing, the controller is started anew, the driver is killed.
"""

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from clusters import PROJECT, Cluster, until
from test_sweep_cluster import Sweep

from slurm.local_cluster.conf import GPUS, NODES

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("watched")]
INTERRUPTIONS = 20
LIVE = {"waiting", "pending", "running"}
MADE = ("predictions.jsonl", "model.safetensors")  # answers, and the weights they came from


def made(work: Path) -> dict[str, bytes]:
    """What a sweep made that must not depend on how it was run, by place: journals, weights, tables.

    Without the line that names the commit: the checkout may have moved on since the first of two sweeps.
    """
    runs = {path for name in MADE for path in (work / "runs").rglob(name) if "step-" not in str(path)}
    tables = {path for kind in ("md", "csv") for path in work.glob(f"sweeps/*/results/tables/*.{kind}")}
    found = {str(path.relative_to(work)): path.read_bytes() for path in runs}
    return found | {path.name: re.sub(rb"(?m)^- Code: commit .*$", b"", path.read_bytes()) for path in tables}


def metrics(work: Path) -> dict[str, object]:
    records = {path.parent.name: json.loads(path.read_text()) for path in (work / "runs").rglob("record.json")}
    return {run: [record["metrics"], record["n_errors"], record["spec"]] for run, record in records.items()}


@pytest.fixture(scope="module")
def undisturbed(cluster: Cluster) -> Path:
    """The sweep as processes of this machine."""
    work = cluster.folder / "undisturbed"
    command = ["submit", "k_ablation", "--cluster", "local", "--scale", "smoke", "--dirty", "--parallel", "2"]
    done = cluster.bench("sweep", *command, "--runs", str(work / "runs"))
    assert done.returncode == 0, done.stderr
    return work


@pytest.mark.limit_s(1200)
def test_slurm_and_this_machine_make_the_same(cluster: Cluster, undisturbed: Path) -> None:
    sweep = Sweep(cluster, "k_ablation", "--scale", "smoke", "--watch")
    assert sweep.submitted.returncode == 0, sweep.submitted.stderr
    assert made(cluster.work) == made(undisturbed)
    assert metrics(cluster.work) == metrics(undisturbed) and len(metrics(undisturbed)) == 4


class Trouble:
    """What may happen to a sweep."""

    def __init__(self, cluster: Cluster, sweep: Sweep, dice: random.Random) -> None:
        self.cluster, self.sweep, self.dice = cluster, sweep, dice
        self.driver = self.drive()

    def drive(self) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "harness.cli.main", "sweep", "resume", self.sweep.id, "--watch"]
        runs = ["--runs", str(self.cluster.work / "runs")]
        quiet = dict(stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        return subprocess.Popen([*command, *runs], env=self.cluster.environment, cwd=PROJECT, **quiet)  # type: ignore[call-overload, no-any-return]

    def signal_a_job(self) -> None:
        running = self.cluster.call("squeue", "-h", "-r", "-t", "R", "-o", "%i").split()
        if running:
            subprocess.run(
                ["scancel", "--signal=USR2", self.dice.choice(running)], env=self.cluster.environment, check=False
            )

    def preempt(self) -> None:
        everything = (f"--nodes={len(NODES)}", f"--gres=gpu:h100:{GPUS}", "--mem=0", "--exclusive")
        self.cluster.submit("sleep 1", "--partition=h100-high", *everything)

    def lose_a_node(self) -> None:
        node = self.dice.choice(NODES)
        if pid := self.cluster.pids()[node]:
            os.kill(pid, signal.SIGKILL)
            time.sleep(20)  # the controller gives a node up after 15 s
            self.cluster.up()

    def restart_the_controller(self) -> None:
        if pid := self.cluster.pids()["slurmctld"]:
            os.kill(pid, signal.SIGTERM)
            until(lambda: self.cluster.pids()["slurmctld"] is None)
            self.cluster.up()

    def kill_the_driver(self) -> None:
        self.driver.kill()
        self.driver.wait()
        self.driver = self.drive()


@pytest.mark.limit_s(2400)
def test_twenty_interruptions_change_no_byte(cluster: Cluster, undisturbed: Path) -> None:
    cluster.call("mv", "runs", "sweeps", str(cluster.folder))  # those of the test before
    dice = random.Random(0)
    sweep = Sweep(cluster, "k_ablation", "--scale", "smoke")
    trouble = Trouble(cluster, sweep, dice)
    kinds = [
        trouble.signal_a_job,
        trouble.preempt,
        trouble.lose_a_node,
        trouble.restart_the_controller,
        trouble.kill_the_driver,
    ]
    happened = 0
    for kind in dice.sample(kinds * 4, INTERRUPTIONS):
        time.sleep(dice.uniform(2, 6))
        if not set(sweep.states()) & LIVE:
            sweep.bench("resume", sweep.id)
        kind()
        happened += "done" not in set(sweep.states()) or bool(set(sweep.states()) & LIVE)
    trouble.driver.kill()
    trouble.driver.wait()
    while set(sweep.states()) != {"done"}:
        until(lambda: not set(sweep.states()) & LIVE)
        sweep.bench("resume", sweep.id)
    print(f"\n{happened} of {INTERRUPTIONS} came while jobs were left")
    assert happened == INTERRUPTIONS
    assert made(cluster.work) == made(undisturbed)
    assert metrics(cluster.work) == metrics(undisturbed)
