"""Whose turn is it to write? The newest attempt's, and an older one finds out before it writes."""

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sweep_fakes import Clock

from slurm.execution import attempt
from slurm.execution.attempt import FAILED, LOOK_S, OWNER, PROGRESS, RESULT, Attempt, Claim, Fenced, done, read

SWEEP = "order-20260101-120000-beef"


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    fake = Clock()
    monkeypatch.setattr(attempt, "time", fake)
    return fake


def claim(folder: Path, launch: float = 1.0, restart: int = 0, sweep: str = SWEEP) -> Claim:
    return Claim(folder / "job", Attempt(sweep=sweep, launch=launch, restart=restart, slurm_job="7_1"))


def files(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in (folder / "job").iterdir()}


WRITES: dict[str, Callable[[Claim], None]] = {
    "check": lambda mine: mine.check(),
    "progressed": lambda mine: mine.progressed(3, 9),
    "finished": lambda mine: mine.finished("em 3", 0, None, 2.0),
    "failed": lambda mine: mine.failed(ValueError("no"), "trace"),
    "take": lambda mine: mine.take(),
}


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
@pytest.mark.parametrize(
    "newer", [(2.0, 0), (1.0, 1), (2.0, -1)], ids=["launched again", "requeued", "launch before restart"]
)
def test_an_older_attempt_stops_before_it_writes(
    tmp_path: Path, clock: Clock, newer: tuple[float, int], write: Callable[[Claim], None]
) -> None:
    old = claim(tmp_path)
    old.take()
    claim(tmp_path, *newer).take()
    before = files(tmp_path)
    clock.go(LOOK_S)
    with pytest.raises(Fenced, match=r"^job is now that of 7_1 on "):
        write(old)
    assert files(tmp_path) == before


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
@pytest.mark.parametrize(
    "other", [(1.0, 0), (0.5, 4), (1.0, -1)], ids=["itself", "an earlier launch", "an earlier start"]
)
def test_the_newest_attempt_goes_on(
    tmp_path: Path, clock: Clock, other: tuple[float, int], write: Callable[[Claim], None]
) -> None:
    claim(tmp_path, *other).take()
    mine = claim(tmp_path)
    mine.take()
    clock.go(LOOK_S)
    write(mine)
    assert read(mine.folder / OWNER)["launch"] == 1.0


def test_fenced_is_nothing_that_a_job_would_handle() -> None:
    assert not issubclass(Fenced, Exception)


def test_the_owner_is_on_disk(tmp_path: Path) -> None:
    claim(tmp_path, 1.5, 2).take()
    owner = read(tmp_path / "job" / OWNER)
    said = {name: owner[name] for name in ("sweep", "launch", "restart", "slurm_job", "pid", "started")}
    assert said == {
        "sweep": SWEEP,
        "launch": 1.5,
        "restart": 2,
        "slurm_job": "7_1",
        "pid": os.getpid(),
        "started": 1000.0,
    }


def test_a_takeover_gives_the_one_before_time_to_find_out(tmp_path: Path, clock: Clock) -> None:
    claim(tmp_path).take()
    assert clock.slept == 0, "nobody was there before"
    second = claim(tmp_path, restart=1)
    second.take()
    assert clock.slept > LOOK_S, "the first looks every LOOK_S"
    slept = clock.slept
    second.failed(ValueError("no"), "trace")
    third = claim(tmp_path, 2.0)
    third.take()
    third.finished("em 3", 0, None, 2.0)
    claim(tmp_path, 3.0).take()
    assert clock.slept == slept, "those before had ended"


def starts(folder: Path, *, reports: int | None, launch: float = 1.0, restart: int, leads: bool = True) -> int:
    """An attempt that reports once, or ends before it can; how many before it, in a row, kept nothing."""
    mine = replace(claim(folder, launch, restart), leads=leads)
    mine.take()
    if reports is not None:
        mine.progressed(reports, 99)
        mine.progressed(90, 99)  # how far it gets is not what it keeps
    return mine.stalled


def test_attempts_that_bring_a_job_no_further_are_counted(tmp_path: Path) -> None:
    reports = [10, 10, None, 10, 31, None, None, 32, 32]
    counted = [starts(tmp_path, reports=done, restart=restart) for restart, done in enumerate(reports)]
    assert counted == [0, 0, 1, 2, 3, 0, 1, 2, 0]


def test_what_other_processes_of_a_training_do_is_no_attempt(tmp_path: Path) -> None:
    for restart in range(3):
        assert starts(tmp_path, reports=None, restart=restart) == restart
        assert starts(tmp_path, reports=50, restart=restart, leads=False) == 0


def test_a_new_launch_counts_anew(tmp_path: Path) -> None:
    assert [starts(tmp_path, reports=None, restart=restart) for restart in range(3)] == [0, 1, 2]
    assert starts(tmp_path, reports=5, launch=2.0, restart=0) == 0
    assert starts(tmp_path, reports=5, launch=2.0, restart=1) == 0
    assert starts(tmp_path, reports=5, launch=2.0, restart=2) == 1


def test_a_new_claim_takes_the_old_failure_away(tmp_path: Path) -> None:
    mine = claim(tmp_path)
    mine.take()
    mine.failed(ValueError("line one\n  line two"), "Traceback ...")
    failure = read(mine.folder / FAILED)
    assert (failure["error"], failure["traceback"], failure["launch"]) == (
        "ValueError: line one line two",
        "Traceback ...",
        1.0,
    )
    claim(tmp_path, 2.0).take()
    assert read(mine.folder / FAILED) == {}


def test_success_takes_a_failure_away(tmp_path: Path) -> None:
    mine = claim(tmp_path)
    mine.take()
    mine.failed(ValueError("no"), "trace")
    mine.finished("em 3", 1, None, 2.0)
    assert not (mine.folder / FAILED).exists()
    result = read(mine.folder / RESULT)
    assert (result["said"], result["errors"], result["seconds"]) == ("em 3", 1, 2.0)


def test_progress_is_noted_and_the_owner_looked_at_every_two_seconds(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[float] = []
    monkeypatch.setattr(attempt, "read", lambda path: looks.append(clock.now) or read(path))
    mine = claim(tmp_path)
    mine.take()
    noted = []
    for step in range(1, 101):  # 10 s
        clock.go(0.1)
        mine.progressed(step, 100, f"loss {step}")
        if (mine.folder / PROGRESS).exists():
            noted.append(read(mine.folder / PROGRESS)["done"])
    assert len(set(noted)) in (4, 5)
    assert len(looks) == 3 + len(set(noted)), "two for taking it, one where it begins"
    last = read(mine.folder / PROGRESS)
    assert (last["total"], last["note"]) == (100, f"loss {last['done']}")
    assert (last["first_done"], last["first_at"]) == (1, pytest.approx(1000.1)), "the first that came, noted or not"
    assert last["at"] == pytest.approx(1000 + last["done"] / 10)


@pytest.mark.parametrize("made", [True, False])
def test_a_result_of_an_earlier_sweep_counts_while_what_it_made_is_there(tmp_path: Path, made: bool) -> None:
    mine = claim(tmp_path)
    assert done(mine.folder, SWEEP) == {}
    mine.take()
    product = tmp_path / "a checkpoint"
    product.touch()
    mine.finished("em 3", 0, product if made else None, 2.0)
    assert done(mine.folder, SWEEP)["said"] == "em 3"
    assert bool(done(mine.folder, "another")) == made, "a table is drawn in every sweep"
    product.unlink()
    assert done(mine.folder, "another") == {}
    assert bool(done(mine.folder, SWEEP)) != made, "what was made and is gone has to be made again, here too"


@pytest.mark.parametrize(
    ("environment", "restart", "name"),
    [
        ({}, 0, ""),
        ({"SLURM_JOB_ID": "12"}, 0, "12"),
        ({"SLURM_JOB_ID": "14", "SLURM_ARRAY_JOB_ID": "12", "SLURM_ARRAY_TASK_ID": "0"}, 0, "12_0"),
        ({"SLURM_JOB_ID": "12", "SLURM_RESTART_COUNT": "3"}, 3, "12"),
    ],
)
def test_an_attempt_knows_itself_by_slurms_environment(
    environment: dict[str, str], restart: int, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable in [variable for variable in os.environ if variable.startswith("SLURM_")]:
        monkeypatch.delenv(variable)
    for variable, value in environment.items():
        monkeypatch.setenv(variable, value)
    assert Attempt.here(SWEEP, 1.5) == Attempt(sweep=SWEEP, launch=1.5, restart=restart, slurm_job=name)


def test_what_an_attempt_writes_survives_json(tmp_path: Path) -> None:
    """Launches are compared as numbers, so a time must come back as the same one."""
    launch = 1767268800.1234567
    claim(tmp_path, launch).take()
    owner: dict[str, Any] = json.loads((tmp_path / "job" / OWNER).read_text())
    assert owner["launch"] == launch
    claim(tmp_path, launch).check()
