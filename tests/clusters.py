"""A cluster for tests marked ``cluster``: brought up by the command, taken down after the module, under an alarm.

Nothing is skipped where packages are missing: who asks for these tests wants to know. Every test stands under an alarm
that prints the queue.
"""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from slurm.local_cluster import daemons
from slurm.local_cluster.cluster import environment

LIMIT_S = 150
PROJECT = Path(__file__).resolve().parent.parent


class Cluster:
    """One cluster in a folder of its own, by its command line alone."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "c"
        self.work = folder / "work"
        self.work.mkdir()
        own = {"REFRAG_CLUSTER": str(self.folder), "REFRAG_SLURM_LOCAL_SHARED": str(self.work / "runs")}
        self.environment = os.environ | environment(self.folder) | own

    def bench(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "harness.cli.main", *arguments]
        return subprocess.run(command, env=self.environment, capture_output=True, text=True)

    def up(self) -> str:
        done = self.bench("cluster", "up")
        assert done.returncode == 0, done.stderr
        return done.stdout

    def pids(self) -> dict[str, int | None]:
        pids: dict[str, int | None] = json.loads(self.bench("cluster", "status", "--json").stdout)["daemons"]
        return pids

    def call(self, *command: str) -> str:
        done = subprocess.run(command, env=self.environment, cwd=self.work, capture_output=True, text=True)
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return done.stdout

    def submit(self, script: str, *options: str) -> str:
        path = self.work / f"job-{time.monotonic_ns()}.sh"
        path.write_text(f"#!/bin/sh\n{script}\n")
        return self.call("sbatch", "--parsable", "--output=/dev/null", *options, str(path)).strip()

    def state(self, job: str) -> str:
        return self.call("squeue", "-h", "-t", "all", "-o", "%T", "-j", job).strip()

    def written(self, name: str) -> list[str]:
        path = self.work / name
        return path.read_text().split() if path.exists() else []

    def processes(self) -> list[int]:
        """Daemons and whatever a job left behind. Tests give their commands this environment too, but end them."""
        return daemons.with_environment(f"SLURM_CONF={self.environment['SLURM_CONF']}")


def until(ready: Callable[[], bool]) -> None:
    """The alarm ends it."""
    while not ready():
        time.sleep(0.2)


@contextlib.contextmanager
def alarm(cluster: Cluster, limit_s: int = LIMIT_S) -> Iterator[None]:
    def ring(*_: object) -> None:
        for command in (["squeue", "-t", "all"], ["sinfo", "-N", "-o", "%N %T %E"]):
            done = subprocess.run(command, env=cluster.environment, capture_output=True, text=True, timeout=30)
            print(done.stdout, done.stderr, file=sys.stderr)
        raise TimeoutError(f"not done after {limit_s} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(limit_s)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    folder = Path(tempfile.mkdtemp(prefix="refrag-"))  # tmp_path is too long for a socket
    folder.chmod(0o755)
    cluster = Cluster(folder)
    try:
        with alarm(cluster):
            start = time.monotonic()
            cluster.up()
            print(f"\nup after {time.monotonic() - start:.1f} s")
        yield cluster
    finally:
        cluster.bench("cluster", "down")
    shutil.rmtree(folder)
    subprocess.run(["git", "worktree", "prune"], cwd=PROJECT)  # those of sweeps in that folder


@pytest.fixture
def watched(cluster: Cluster, request: pytest.FixtureRequest) -> Iterator[None]:
    """The alarm, after LIMIT_S or what ``pytest.mark.limit_s`` says."""
    marker = request.node.get_closest_marker("limit_s")
    with alarm(cluster, marker.args[0] if marker else LIMIT_S):
        yield
