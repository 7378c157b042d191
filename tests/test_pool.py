"""A sweep as processes of this machine: what fails, what waits for it, and a driver that is killed or stopped."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import sweep_fakes
from conftest import PROJECT
from sweep_fakes import Tiny, drive, sweep_of

from harness.errors import Busy, InputError
from slurm.execution import attempt, payload, pool
from slurm.execution.attempt import Attempt, Claim
from slurm.execution.payload import Payload
from slurm.execution.sweep import Launch, Sweep
from slurm.execution.watch import Status, Watcher
from slurm.phases import Phase

TESTS = PROJECT / "tests"


@pytest.fixture(autouse=True)
def at_tests(monkeypatch: pytest.MonkeyPatch) -> None:
    """Jobs are started here, so that they can import the class of these jobs; and the environment comes back."""
    monkeypatch.chdir(TESTS)
    monkeypatch.setenv("PYTHONPATH", str(PROJECT))


def status(sweep: Sweep) -> Status:
    return Watcher(sweep, pool.looker(sweep), driven=lambda: pool.driven(sweep)).status()


def runs(folder: Path) -> dict[str, int]:
    """How often each job has run."""
    return {path.stem: len(path.read_text().splitlines()) for path in sorted(folder.glob("*.runs"))}


def wait_for(happened: Callable[[], object]) -> None:
    until = time.monotonic() + 300
    while not happened():
        assert time.monotonic() < until
        time.sleep(0.05)


@pytest.fixture
def driver(tmp_path: Path) -> Iterator[Callable[[Sweep], subprocess.Popen[bytes]]]:
    """Starts a driver in a process and a group of its own; nothing of it is left after the test."""
    started: list[subprocess.Popen[bytes]] = []

    def start(sweep: Sweep) -> subprocess.Popen[bytes]:
        command = [sys.executable, sweep_fakes.__file__, str(sweep.folder)]
        with (tmp_path / "driver.err").open("ab") as err:
            process = subprocess.Popen(command, cwd=TESTS, stderr=err, start_new_session=True)
        started.append(process)
        wait_for(lambda: pool.driven(sweep) or process.poll() is not None)
        return process

    yield start
    for process in started:
        if process.poll() is None:
            process.kill()
        process.wait()
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            continue


def test_a_failed_job_stops_the_next_phase_and_no_job_of_its_own(tmp_path: Path) -> None:
    mended = tmp_path / "mended"
    jobs = [Tiny(name=f"{n}", folder=tmp_path, mended=mended if n == 1 else None) for n in range(5)]
    last = Tiny(name="last", folder=tmp_path)
    sweep = sweep_of(tmp_path, [Phase(title="count", jobs=jobs), Phase(title="last", jobs=[last])], PROJECT)
    assert status(sweep).counts == {"not started": 6}

    drive(str(sweep.folder))
    first = status(sweep)
    assert first.counts == {"done": 4, "failed": 1, "not started": 1}
    assert (first.code, first.over) == (1, True)
    assert [row.said for row in first.rows] == [
        "made 0.made",
        "RuntimeError: 1 is broken [/here]",
        "made 2.made",
        "made 3.made",
        "made 4.made",
        "",
    ]
    assert runs(tmp_path) == {"0": 1, "1": 1, "2": 1, "3": 1, "4": 1}
    assert not pool.driven(sweep) and not (sweep.folder / pool.DRIVER).exists()

    mended.touch()
    drive(str(sweep.folder))
    assert status(sweep).counts == {"done": 6}
    assert status(sweep).code == 0
    assert runs(tmp_path) == {"0": 1, "1": 2, "2": 1, "3": 1, "4": 1, "last": 1}


def test_a_driver_that_was_killed_is_resumed_and_nothing_runs_twice(
    tmp_path: Path, driver: Callable[[Sweep], subprocess.Popen[bytes]]
) -> None:
    gate = tmp_path / "gate"
    jobs = [Tiny(name=f"{n}", folder=tmp_path, gate=gate) for n in range(3)]
    sweep = sweep_of(tmp_path, [Phase(title="count", jobs=jobs)], PROJECT)
    first = driver(sweep)
    wait_for(lambda: runs(tmp_path) == {"0": 1, "1": 1} and len(sweep.launches()) == 2)
    first.kill()
    first.wait()
    now = status(sweep)
    assert now.counts == {"running": 2, "not started": 1}, "its jobs go on, and nobody starts the third"
    assert now.code == 1

    second = driver(sweep)
    assert status(sweep).counts == {"waiting": 1, "running": 2}
    with pytest.raises(InputError, match=f"is being run already, by process {second.pid}"):
        drive(str(sweep.folder))
    gate.touch()
    assert second.wait(300) == 0, (tmp_path / "driver.err").read_text()
    assert status(sweep).counts == {"done": 3}
    assert runs(tmp_path) == {"0": 1, "1": 1, "2": 1}
    assert [one.indices for one in sweep.launches()] == [(0,), (1,), (2,)], "none was even started again"


@pytest.mark.parametrize("how", ["Ctrl-C", "cancel"])
def test_jobs_of_a_driver_that_is_stopped_keep_what_they_have(
    how: str, tmp_path: Path, driver: Callable[[Sweep], subprocess.Popen[bytes]]
) -> None:
    """A terminal's Ctrl-C reaches every process; submitit, hearing it, would kill the jobs a second later."""
    gate = tmp_path / "gate"
    job = Tiny(name="0", folder=tmp_path, gate=gate)
    sweep = sweep_of(tmp_path, [Phase(title="count", jobs=[job])], PROJECT)
    process = driver(sweep)
    wait_for(lambda: runs(tmp_path) == {"0": 1} and bool(sweep.launches()))  # while it starts a job it hears no Ctrl-C
    if how == "Ctrl-C":
        os.killpg(process.pid, signal.SIGINT)
    else:
        assert process.pid in pool.stop(sweep)
    assert process.wait(300) != 0
    assert (tmp_path / "0.kept").exists()
    (row,) = status(sweep).rows
    assert (row.state, row.said) == ("cancelled", "")
    gate.touch()
    drive(str(sweep.folder))
    assert status(sweep).counts == {"done": 1}
    assert runs(tmp_path) == {"0": 2}


@pytest.mark.parametrize("whom", ["the job", "its controller"])
def test_a_job_that_is_killed_is_said_to_be(
    whom: str, tmp_path: Path, driver: Callable[[Sweep], subprocess.Popen[bytes]]
) -> None:
    """The first, as where memory runs out, is no child of the driver; submitit ends with 0 whatever became of it."""
    job = Tiny(name="0", folder=tmp_path, gate=tmp_path / "gate")
    sweep = sweep_of(tmp_path, [Phase(title="count", jobs=[job])], PROJECT)
    process = driver(sweep)
    wait_for(lambda: runs(tmp_path) == {"0": 1} and bool(sweep.launches()))
    pids = {"the job": int((tmp_path / "0.runs").read_text()), "its controller": int(sweep.launches()[0].slurm_id)}
    assert len(set(pids.values())) == 2
    os.kill(pids[whom], signal.SIGKILL)
    assert process.wait(300) == 0, (tmp_path / "driver.err").read_text()
    (row,) = status(sweep).rows
    assert (row.state, row.said) == ("failed", "killed by signal 9; see `refrag-bench sweep logs`")
    pool.stop(sweep)
    assert status(sweep).rows == [row], "nothing of it is left to be cancelled"


def test_an_end_is_of_the_process_that_had_the_number_last(tmp_path: Path) -> None:
    sweep = sweep_of(tmp_path, [Phase(title="count", jobs=[Tiny(name="0", folder=tmp_path)])], PROJECT)
    number = str(2**22 + 1)  # no process has it
    sweep.launched(Launch(slurm_id=number, phase="count", indices=(0,), at=1.0))
    assert status(sweep).rows[0].said.startswith("its process ended without a result; ")
    sweep.ended(number, pool.CANCELLED)
    sweep.ended(number, "killed by signal 15")
    (row,) = status(sweep).rows
    assert (row.state, row.said) == ("not started", "cancelled"), "it was told to end before it began"
    sweep.launched(Launch(slurm_id=number, phase="count", indices=(0,), at=time.time() + 60))
    assert status(sweep).rows[0].said.startswith("its process ended without a result; ")


def test_a_job_that_is_started_again_and_again_and_gets_no_further_fails_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(payload, "_listen", list)
    monkeypatch.setattr(attempt, "LOOK_S", 0.0)
    sweep = sweep_of(tmp_path, [Phase(title="count", jobs=[Tiny(name="0", folder=tmp_path)])], PROJECT, cluster="h100")
    job = Payload(sweeps=sweep.folder.parent, name=sweep.header.id, index=0, launch=1.0)
    sweep.launched(Launch(slurm_id="7", phase="count", indices=(0,), at=1.0))
    (member,) = sweep.members()
    for restart in range(payload.MOST_STALLED):  # each ends before it has done anything, as where a node goes down
        Claim(sweep.state(member), Attempt(sweep=sweep.header.id, launch=1.0, restart=restart, slurm_job="7")).take()
    monkeypatch.setenv("SLURM_RESTART_COUNT", f"{payload.MOST_STALLED}")
    with pytest.raises(payload.Stalled):
        job()
    assert runs(tmp_path) == {}
    (row,) = status(sweep).rows
    assert (row.state, row.said.partition(";")[0]) == (
        "failed",
        "Stalled: 5 attempts in a row ended without a new checkpoint or answer",
    )

    again = replace(job, launch=2.0)  # as resume launches it
    monkeypatch.setenv("SLURM_RESTART_COUNT", "0")
    again()
    assert runs(tmp_path) == {"0": 1} and status(sweep).counts == {"done": 1}


def test_jobs_take_a_gpu_each_and_wait_for_one(tmp_path: Path) -> None:
    """Those of jobs that an earlier driver started are theirs."""
    earlier = Launch(slurm_id="1", phase="p", indices=(0,), at=1.0, gpus=(1,))
    places = pool.Places(slots=3, gpus=3, running={0: earlier})
    assert places.free(1) == (0,) and places.free(2) == (0, 2)
    assert places.free(3) is None and places.free(0) == ()
    places.running[1] = replace(earlier, gpus=(0, 2))
    assert places.free(1) is None and places.free(0) == ()
    places.running[2] = replace(earlier, gpus=())
    assert places.free(0) is None, "no slot"
    sweep = sweep_of(tmp_path, [Phase(title="count", jobs=[])], PROJECT)
    sweep.launched(earlier)
    assert sweep.launches() == [earlier]


def test_two_drivers_of_one_sweep(tmp_path: Path) -> None:
    """The second comes before the first has said that it drives."""
    sweep = sweep_of(tmp_path, [Phase(title="count", jobs=[Tiny(name="0", folder=tmp_path)])], PROJECT)
    with sweep.held(), pytest.raises(Busy, match="is being submitted, cancelled or run by process"):
        drive(str(sweep.folder))
    assert runs(tmp_path) == {} and not sweep.launches()


def test_a_process_is_the_sweeps_only_by_its_command(tmp_path: Path) -> None:
    """A number may be another process's by now, or a corpse's."""
    sweep = sweep_of(tmp_path, [Phase(title="count", jobs=[Tiny(name="0", folder=tmp_path)])], PROJECT)
    assert not pool.alive(os.getpid(), sweep)
    assert not pool.alive(2**22 + 1, sweep), "no such process"
    ours = subprocess.Popen([sys.executable, "-c", "input()", sweep.header.id], stdin=subprocess.PIPE)
    try:
        wait_for(lambda: pool.alive(ours.pid, sweep))  # the kernel shows its command a moment after it began
        corpse = subprocess.Popen(["sh", "-c", "exit 0", sweep.header.id])
        wait_for(lambda: not pool.alive(corpse.pid, sweep))
    finally:
        ours.communicate(b"\n")
    assert not pool.alive(ours.pid, sweep)


def test_a_job_that_asks_for_more_gpus_than_there_are_does_not_wait_for_ever(tmp_path: Path) -> None:
    sweep = sweep_of(tmp_path, [Phase(title="one", jobs=[Tiny(name="a", folder=tmp_path)])], PROJECT)
    members = [sweep_fakes.member(0)]
    with pytest.raises(InputError, match="a job asks for 1 GPUs; this machine has 0"):
        pool._check_room(sweep, members, pool.Places(slots=1, gpus=0, running={}))
    pool._check_room(sweep, members, pool.Places(slots=1, gpus=1, running={}))
