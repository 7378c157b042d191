"""Where every job of a sweep stands: files say what is done, the queue says the rest."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import PROJECT
from sweep_fakes import Clock, Tiny, sweep_of

from harness.errors import InputError
from slurm.clusters.queue import LOST_S, Entry
from slurm.execution import attempt, watch
from slurm.execution.attempt import Attempt, Claim
from slurm.execution.sweep import Launch, Sweep
from slurm.execution.watch import LIVE, STATES, WRONG, Row, Status, Watcher
from slurm.phases import Phase

AT = 50.0  # the launch
RUNNING = Entry(phase="running", state="RUNNING", node="n1")
UNKNOWN = Entry(phase="running", state="UNKNOWN", reason="neither in the queue nor ended")


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    fake = Clock()
    monkeypatch.setattr(attempt, "time", fake)
    monkeypatch.setattr(watch, "time", fake)
    return fake


def make(folder: Path, jobs: int = 1, *, launched: bool = True) -> Sweep:
    """A sweep of one phase, submitted at ``AT`` as array 7."""
    tiny = [Tiny(name=f"{index}", folder=folder) for index in range(jobs)]
    sweep = sweep_of(folder, [Phase(title="tiny", jobs=tiny)], PROJECT)
    if launched:
        sweep.launched(Launch(slurm_id="7", phase="tiny", indices=tuple(range(jobs)), at=AT))
    return sweep


def claim(sweep: Sweep, index: int = 0, launch: float = AT, restart: int = 0) -> Claim:
    mine = Claim(
        sweep.state(sweep.members()[index]),
        Attempt(sweep=sweep.header.id, launch=launch, restart=restart, slurm_job="7"),
    )
    mine.take()
    return mine


def finish(sweep: Sweep, index: int = 0, errors: int = 0) -> None:
    claim(sweep, index).finished("em 3\nof 9", errors, None, 1.0)


def seen(entry: Entry | None) -> watch.Look:
    """A controller that says the same of every job."""
    return lambda ids: dict.fromkeys(ids, entry) if entry else {}


def row(sweep: Sweep, entry: Entry | None = None, *, driven: bool = False) -> Row:
    (found,) = Watcher(sweep, seen(entry), driven=lambda: driven).status().rows
    return found


def ended(state: str) -> Entry:
    return Entry(phase="ended", state=state, node="n1")


def pending(reason: str) -> Entry:
    return Entry(phase="pending", state="PENDING", reason=reason)


def failed(sweep: Sweep, launch: float = AT) -> None:
    claim(sweep, launch=launch).failed(ValueError("no"), "trace")


def nothing(sweep: Sweep) -> None:
    """The job has not begun."""


REACHED: list[tuple[Callable[[Sweep], object], Entry, str, str]] = [
    (nothing, pending("Dependency"), "waiting", "Dependency"),
    (nothing, pending("Resources"), "pending", "Resources"),
    (claim, pending("BeginTime"), "pending", "BeginTime"),
    (nothing, RUNNING, "running", ""),
    (claim, RUNNING, "running", "starting"),
    (finish, RUNNING, "done", "em 3 of 9"),
    (finish, ended("FAILED"), "done", "em 3 of 9"),
    (nothing, Entry(phase="held", state="PENDING", reason="JobHeldUser"), "held", "JobHeldUser"),
    (failed, RUNNING, "failed", "ValueError: no"),
    (failed, ended("FAILED"), "failed", "ValueError: no"),
    (failed, UNKNOWN, "failed", "ValueError: no"),
    (finish, UNKNOWN, "done", "em 3 of 9"),
    (claim, UNKNOWN, "running", "neither in the queue nor ended"),
    (claim, ended("TIMEOUT"), "failed", "ended as TIMEOUT without a result; see `refrag-bench sweep logs`"),
    (claim, ended("CANCELLED"), "cancelled", ""),
    (claim, Entry(phase="lost", state="UNKNOWN", reason="gone"), "lost", "gone"),
    (nothing, ended("CANCELLED"), "not started", "cancelled"),
    (nothing, pending("DependencyNeverSatisfied"), "not started", "a job before it failed"),
    # What an earlier launch left says nothing of this one.
    (lambda sweep: failed(sweep, AT - 1), RUNNING, "running", ""),
    (lambda sweep: claim(sweep, launch=AT - 1), ended("CANCELLED"), "not started", "cancelled"),
]


@pytest.mark.parametrize(("happened", "entry", "state", "said"), REACHED)
def test_every_state_is_reached(
    happened: Callable[[Sweep], object], entry: Entry, state: str, said: str, tmp_path: Path
) -> None:
    sweep = make(tmp_path)
    happened(sweep)
    found = row(sweep, entry)
    assert (found.state, found.said) == (state, said)
    if state != "done":
        assert (found.slurm_job, found.node) == ("7", entry.node)


def test_the_cases_above_are_all_the_states() -> None:
    assert {state for *_, state, _ in REACHED} == set(STATES)
    assert set(LIVE) | set(WRONG) | {"done"} == set(STATES)


@pytest.mark.parametrize("entry", [ended("COMPLETED"), ended("GONE"), ended("FAILED")])
@pytest.mark.parametrize("made", ["a checkpoint", "record.json", "record.json, cut off"])
def test_a_result_that_is_gone_is_named(entry: Entry, made: str, tmp_path: Path, clock: Clock) -> None:
    sweep = make(tmp_path)
    folder = tmp_path / made.partition(",")[0]
    claim(sweep).finished("em 3", 0, folder, 1.0)
    if "cut off" in made:
        folder.write_text('{"run_id": "a')
    watcher = Watcher(sweep, seen(entry))
    if entry.state == "COMPLETED":
        assert not watcher.status().rows[0].sure, "a shared folder may show it late"
        clock.go(LOST_S)
    (found,) = watcher.status().rows
    assert (found.state, found.said) == ("failed", f"finished, but its result is gone or damaged: {folder}")
    if made == "a checkpoint":
        folder.mkdir()
        assert row(sweep, entry).state == "done"


def test_the_result_of_an_earlier_launch_says_nothing_of_one_that_was_killed(tmp_path: Path) -> None:
    sweep = make(tmp_path)
    claim(sweep, launch=AT - 1).finished("em 3", 0, tmp_path / "gone", 1.0)
    claim(sweep)
    assert row(sweep, ended("FAILED")).said.startswith("ended as FAILED without a result")


@pytest.mark.parametrize(("driven", "state"), [(True, "waiting"), (False, "not started")])
def test_what_nobody_has_submitted_waits_where_somebody_will(driven: bool, state: str, tmp_path: Path) -> None:
    found = row(make(tmp_path, launched=False), driven=driven)
    assert (found.state, found.slurm_job) == (state, "")


def test_a_job_is_where_it_was_submitted_last(tmp_path: Path) -> None:
    sweep = make(tmp_path, jobs=3)
    sweep.launched(Launch(slurm_id="9", phase="tiny", indices=(2,), at=AT + 1))
    sweep.launched(Launch(slurm_id="11", phase="tiny", indices=(1, 0), at=AT + 2))
    asked: list[str] = []

    def look(ids: Sequence[str]) -> Mapping[str, Entry]:
        asked.extend(ids)
        return dict.fromkeys(ids, RUNNING)

    rows = Watcher(sweep, look).status().rows
    assert [found.slurm_job for found in rows] == asked == ["11_1", "11_0", "9"]


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("errors", [0, 2])
def test_the_exit_code(state: str, errors: int) -> None:
    other = Row(index=0, phase="p", title="t", state="done")
    status = Status(id="s", rows=[other, replace(other, index=1, state=state, errors=errors)])
    assert status.code == (1 if errors or state in WRONG else 0)
    assert status.over == (state not in LIVE)
    assert status.counts == ({"done": 2} if state == "done" else {state: 1, "done": 1})
    assert list(status.counts) == sorted(status.counts, key=STATES.index)


def test_errors_of_a_result_are_in_the_exit_code(tmp_path: Path) -> None:
    sweep = make(tmp_path)
    finish(sweep, errors=4)
    status = Watcher(sweep, seen(None)).status()
    assert (status.rows[0].state, status.rows[0].errors, status.code) == ("done", 4, 1)


def test_how_far_a_job_is_and_by_when_it_ends(tmp_path: Path, clock: Clock) -> None:
    """20 in 60 s leave 60 for 180 s; an attempt that went on from 20 has not done those in its time."""
    sweep = make(tmp_path)
    mine = claim(sweep)
    clock.go(3)
    mine.progressed(20, 100, "loss 2")
    assert row(sweep, RUNNING).said == "20/100 loss 2", "no pace yet"
    clock.go(60)
    mine.progressed(40, 100, "loss 1")
    assert row(sweep, RUNNING).said == "40/100 loss 1, 3 min left"
    clock.go(60)
    mine.progressed(97, 100)
    assert row(sweep, RUNNING).said == "97/100, 5 s left"
    claim(sweep, restart=1)
    assert row(sweep, RUNNING).said == "starting", "that was the attempt before"


def test_what_is_done_is_not_read_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sweep = make(tmp_path, jobs=3)
    read: list[str] = []
    asked: list[list[str]] = []
    done = attempt.done
    monkeypatch.setattr(attempt, "done", lambda folder, name: read.append(folder.name) or done(folder, name))

    def look(ids: Sequence[str]) -> Mapping[str, Entry]:
        asked.append(list(ids))
        return dict.fromkeys(ids, RUNNING)

    watcher = Watcher(sweep, look)
    finish(sweep, 1)
    first, second = watcher.status(), watcher.status()
    assert first == second and first.counts == {"running": 2, "done": 1}
    digests = [member.digest for member in sweep.members()]
    assert [read.count(digest) for digest in digests] == [2, 1, 2]
    assert asked == [["7_0", "7_1", "7_2"], ["7_0", "7_2"]]


def test_an_end_without_a_result_is_a_failure_after_a_while(tmp_path: Path, clock: Clock) -> None:
    sweep = make(tmp_path)
    claim(sweep)
    watcher = Watcher(sweep, seen(ended("COMPLETED")))
    (found,) = watcher.status().rows
    assert (found.state, found.said, found.sure) == ("running", "ended; its result is not there yet", False)
    clock.go(LOST_S - 1)
    assert watcher.status().rows[0].state == "running"
    clock.go(2)
    (found,) = watcher.status().rows
    assert (found.state, found.sure) == ("failed", True)
    assert found.said.startswith("ended as COMPLETED without a result")
    finish(sweep)
    assert watcher.status().rows[0].state == "done", "it came after all"


def test_a_silent_controller_hides_nothing_that_files_say(tmp_path: Path, clock: Clock) -> None:
    sweep = make(tmp_path, jobs=4)
    finish(sweep, 0)
    claim(sweep, 1).failed(ValueError("no"), "trace")
    mine = claim(sweep, 2)
    clock.go(3)
    mine.progressed(1, 2)

    def look(ids: Sequence[str]) -> Mapping[str, Entry]:
        raise InputError("squeue does not answer within 30 s")

    watcher = Watcher(sweep, look)
    status = watcher.status()
    assert status.problem == "squeue does not answer within 30 s"
    assert [found.state for found in status.rows] == ["done", "failed", "running", "running"]
    assert [found.said for found in status.rows[2:]] == ["1/2", "the controller does not answer"]
    assert all(found.sure for found in status.rows)
    assert not status.over, "watching goes on"
    assert watcher.settled() == status, "nothing to wait for"


def test_watching_ends_when_nothing_more_happens(tmp_path: Path, clock: Clock) -> None:
    sweep = make(tmp_path)
    states = []
    for look in (shown := watch.watch(Watcher(sweep, seen(RUNNING)), every=5.0)):
        states.append(look.rows[0].state)
        assert len(states) <= 3
        if len(states) == 2:
            finish(sweep)
    assert states == ["running", "running", "done"]
    assert clock.slept == 10.0
    assert next(shown, None) is None


@pytest.mark.parametrize(
    ("unsure", "sure", "state"),
    [
        (UNKNOWN, replace(UNKNOWN, phase="lost"), "lost"),
        (UNKNOWN, RUNNING, "running"),
        (ended("COMPLETED"), ended("COMPLETED"), "failed"),
    ],
)
def test_resuming_waits_until_it_is_sure(unsure: Entry, sure: Entry, state: str, tmp_path: Path, clock: Clock) -> None:
    """A new process has never heard of a job's silence: what is lost looks like what is late at the first look."""
    sweep = make(tmp_path)
    claim(sweep)
    began = clock.now

    def look(ids: Sequence[str]) -> Mapping[str, Entry]:
        return dict.fromkeys(ids, unsure if clock.now - began < LOST_S else sure)

    watcher = Watcher(sweep, look)
    assert watcher.status().rows[0].state == "running"
    settled = watcher.settled()
    assert settled.rows[0].state == state
    assert settled.rows[0].sure
    assert clock.now - began < LOST_S + 5
