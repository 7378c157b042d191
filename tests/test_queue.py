"""What the controller says of jobs, read from squeue, sacct, scontrol and scancel that are scripts here."""

from pathlib import Path
from types import SimpleNamespace

import pytest
from sweep_fakes import bin_folder, calls, command

from harness.errors import InputError
from slurm.clusters import queue
from slurm.clusters.profiles import SlurmProfile
from slurm.clusters.queue import LOST_S, Entry, Queue

PROFILE = SlurmProfile(name="h100", partition="h100", gpus_per_node=8, cpus_per_gpu=12, environment={"SLURM_CONF": "c"})
NO_ACCOUNTING = 'echo "Slurm accounting storage is disabled" >&2; exit 1'


@pytest.fixture(autouse=True)
def commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """SLURM's commands; squeue and sacct know nothing."""
    folder = bin_folder(tmp_path, monkeypatch)
    says(folder, "squeue")
    says(folder, "sacct")
    return folder


def says(folder: Path, name: str, *lines: str) -> None:
    text = "\n".join(lines)
    command(folder, name, f"cat <<'END'\n{text}\nEND" if lines else "")


@pytest.mark.parametrize(
    ("line", "entry"),
    [
        ("7_0|PENDING||Resources", Entry(phase="pending", state="PENDING", reason="Resources")),
        ("7_0|PENDING||Dependency", Entry(phase="pending", state="PENDING", reason="Dependency")),
        ("7_0|PENDING||BeginTime", Entry(phase="pending", state="PENDING", reason="BeginTime")),
        ("7_0|PENDING||JobHeldUser", Entry(phase="held", state="PENDING", reason="JobHeldUser")),
        (
            "7_0|PENDING||launch failed requeued held",
            Entry(phase="held", state="PENDING", reason="launch failed requeued held"),
        ),
        ("7_0|PENDING||None", Entry(phase="pending", state="PENDING")),
        ("7_0|REQUEUED||None", Entry(phase="pending", state="REQUEUED")),
        ("7_0|REQUEUE_HOLD||None", Entry(phase="held", state="REQUEUE_HOLD")),
        ("7_0|SPECIAL_EXIT||None", Entry(phase="held", state="SPECIAL_EXIT")),
        ("7_0|CONFIGURING|n1|None", Entry(phase="pending", state="CONFIGURING", node="n1")),
        ("7_0|SUSPENDED|n1|None", Entry(phase="pending", state="SUSPENDED", node="n1")),
        ("7_0|RUNNING|n1|None", Entry(phase="running", state="RUNNING", node="n1")),
        ("7_0|COMPLETING|n[1-2]|None", Entry(phase="running", state="COMPLETING", node="n[1-2]")),
        ("7_0|COMPLETED|n1|None", Entry(phase="ended", state="COMPLETED", node="n1")),
        ("7_0|FAILED|n1|NonZeroExitCode", Entry(phase="ended", state="FAILED", node="n1", reason="NonZeroExitCode")),
        ("7_0|TIMEOUT|n1|a|b", Entry(phase="ended", state="TIMEOUT", node="n1", reason="a|b")),
        ("7_0|OUT_OF_MEMORY|n1|None", Entry(phase="ended", state="OUT_OF_MEMORY", node="n1")),
        ("7_0|CANCELLED||None", Entry(phase="ended", state="CANCELLED")),
        ("7_0|DEADLINE||None", Entry(phase="ended", state="DEADLINE")),
        ("7_0|BOOT_FAIL||None", Entry(phase="ended", state="BOOT_FAIL")),
    ],
)
def test_a_state_is_a_phase(commands: Path, line: str, entry: Entry) -> None:
    says(commands, "squeue", line)
    assert Queue(PROFILE).look(["7_0"]) == {"7_0": entry}
    assert not calls(commands, "sacct"), "asked only about what squeue does not know"


@pytest.mark.parametrize("state", ["NODE_FAIL", "PREEMPTED"])
def test_what_slurm_may_start_again_has_not_ended(commands: Path, state: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """submitit takes NODE_FAIL for an end, and a job that ran again is a failure to it."""
    now = at(monkeypatch, 0.0)
    jobs = Queue(PROFILE)
    for source in ("squeue", "sacct"):
        says(commands, "squeue", *([f"7|{state}|n1|None"] if source == "squeue" else []))
        says(commands, "sacct", f"7|{state}|n1")
        assert jobs.look(["7"])["7"].phase == "running"
    says(commands, "squeue", "7|PENDING||BeginTime")
    assert jobs.look(["7"])["7"].phase == "pending"
    says(commands, "squeue", f"7|{state}|n1|None")
    now.append(100.0)
    assert jobs.look(["7"])["7"].phase == "running", "seen in the queue since, so the silence begins again"
    now.append(100.0 + LOST_S + 1)
    assert jobs.look(["7"])["7"].phase == "lost", "nobody started it again"


def test_what_squeue_has_forgotten_accounting_knows(commands: Path) -> None:
    """A job that was requeued has several rows there, oldest first; steps and other tasks of the array do not count."""
    says(commands, "squeue", "7_1|RUNNING|n2|None")
    says(
        commands,
        "sacct",
        "7_0|NODE_FAIL|n1",
        "7_0|COMPLETED|n2",
        "7_2|CANCELLED by 1000|None assigned",
        "7_3|FAILED|n1",
    )
    assert Queue(PROFILE).look(["7_0", "7_1", "7_2"]) == {
        "7_0": Entry(phase="ended", state="COMPLETED", node="n2"),
        "7_1": Entry(phase="running", state="RUNNING", node="n2"),
        "7_2": Entry(phase="ended", state="CANCELLED", node="None assigned"),
    }


@pytest.mark.parametrize(
    ("row", "tasks"),
    [
        ("7_[0-2]", ["7_0", "7_1", "7_2"]),
        ("7_[1,3-4%2]", ["7_1", "7_3", "7_4"]),
        ("7_[0,2]", ["7_0", "7_2"]),
        ("7_[5%1000]", ["7_5"]),
    ],
)
@pytest.mark.parametrize("name", ["squeue", "sacct"])
def test_tasks_that_never_started_share_a_row(commands: Path, name: str, row: str, tasks: list[str]) -> None:
    says(commands, name, f"{row}|CANCELLED||None" if name == "squeue" else f"{row}|CANCELLED by 0|None assigned")
    found = Queue(PROFILE).look([f"7_{task}" for task in range(6)])
    assert [task for task, entry in found.items() if entry.state == "CANCELLED"] == tasks


@pytest.mark.parametrize("asked", ["squeue", "sacct"])
def test_an_array_cancelled_before_any_task_began_is_one_row_without_tasks(commands: Path, asked: str) -> None:
    says(commands, asked, "7|CANCELLED||None" if asked == "squeue" else "7|CANCELLED by 0|")
    assert [entry.state for entry in Queue(PROFILE).look(["7_0", "7_1"]).values()] == ["CANCELLED"] * 2
    says(commands, asked, *(["7|PENDING||None"] if asked == "squeue" else ["7|PENDING|"]))
    assert [entry.state for entry in Queue(PROFILE).look(["7_0", "7_1"]).values()] == ["UNKNOWN"] * 2, "not ended"


def test_accounting_lags_so_only_its_ends_count(commands: Path) -> None:
    says(commands, "sacct", "7|RUNNING|n1")
    assert Queue(PROFILE).look(["7"]) == {
        "7": Entry(phase="running", state="UNKNOWN", reason="neither in the queue nor ended")
    }


@pytest.mark.parametrize("accounting", ["", NO_ACCOUNTING])
def test_a_job_that_nobody_knows_is_lost_after_a_while(
    commands: Path, accounting: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    command(commands, "sacct", accounting)
    now = at(monkeypatch, 1000.0)
    jobs = Queue(PROFILE)
    assert jobs.look(["7"])["7"].phase == "running"
    now.append(1000.0 + LOST_S)
    assert jobs.look(["7"])["7"].phase == "running"
    now.append(1000.0 + LOST_S + 0.1)
    assert jobs.look(["7"])["7"] == Entry(phase="lost", state="UNKNOWN", reason="neither in the queue nor ended")
    says(commands, "squeue", "7|RUNNING|n1|None")
    assert jobs.look(["7"])["7"].phase == "running", "it came back"
    says(commands, "squeue")
    assert jobs.look(["7"])["7"].phase == "running", "and may be late again"


def test_ids_that_slurm_has_never_heard_of(commands: Path) -> None:
    command(commands, "squeue", 'echo "slurm_load_jobs error: Invalid job id specified" >&2; exit 1')
    says(commands, "sacct", "7|COMPLETED|n1")
    found = Queue(PROFILE).look(["7", "8"])
    assert (found["7"].phase, found["8"].state) == ("ended", "UNKNOWN")


def test_one_call_for_any_number_of_ids(commands: Path) -> None:
    ids = [f"{array}_{task}" for array in (11, 9, 10) for task in range(100)]
    says(commands, "squeue", *(f"{name}|RUNNING|n1|None" for name in ids[:-1]))
    found = Queue(PROFILE).look(ids)
    assert list(found) == ids
    (asked,) = calls(commands, "squeue")
    assert asked.endswith("-j 9,10,11"), "arrays, not their tasks"
    (asked,) = calls(commands, "sacct")
    assert asked.endswith("-j 10")
    assert Queue(PROFILE).look([]) == {}
    assert len(calls(commands, "squeue")) == 1, "nothing to ask about"


def test_the_profiles_environment_reaches_slurm(commands: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_CONF", "another")
    command(commands, "squeue", 'echo "7|RUNNING|$SLURM_CONF|None"')
    assert Queue(PROFILE).look(["7"])["7"].node == "c"


def test_a_controller_that_does_not_answer(commands: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command(commands, "squeue", 'echo x >&2; echo "squeue: error: Unable to contact slurm controller" >&2; exit 1')
    with pytest.raises(InputError, match=r"^squeue: error: Unable to contact slurm controller$"):
        Queue(PROFILE).look(["7"])
    command(commands, "squeue", "exec sleep 60")
    monkeypatch.setattr(queue, "ANSWER_S", 0.1)
    with pytest.raises(InputError, match=r"^squeue does not answer within 0\.1 s$"):
        Queue(PROFILE).look(["7"])
    (commands / "squeue").unlink()
    with pytest.raises(InputError, match=r"^no squeue on PATH: is this a login node\?"):
        Queue(PROFILE).look(["7"])


def test_the_arrays_of_a_sweep_by_name(commands: Path) -> None:
    says(commands, "squeue", "7", "7", "12")
    assert queue.named(PROFILE, "tiny-1") == ["12", "7"]
    assert "-n tiny-1" in calls(commands, "squeue")[0]


def test_many_jobs_are_cancelled_and_released_in_a_few_calls(commands: Path) -> None:
    command(commands, "scancel", "")
    command(commands, "scontrol", "")
    ids = [f"7_{task}" for task in range(450)]
    queue.cancel(PROFILE, ids)
    queue.release(PROFILE, ids)
    assert " ".join(calls(commands, "scancel")).split() == ids
    released = [call.removeprefix("release ") for call in calls(commands, "scontrol")]
    assert ",".join(released).split(",") == ids
    assert len(calls(commands, "scancel")) == len(released) == 3
    queue.cancel(PROFILE, [])
    queue.release(PROFILE, [])
    assert len(calls(commands, "scancel")) == len(calls(commands, "scontrol")) == 3, "scancel of nothing is an error"


def test_the_longest_array(commands: Path) -> None:
    says(commands, "scontrol", "MaxArrayTasks           = 9", "MaxArraySize            = 1001", "X = 1")
    assert queue.longest_array(PROFILE) == 1001
    says(commands, "scontrol", "MaxJobCount = 3")
    with pytest.raises(InputError, match="names no MaxArraySize"):
        queue.longest_array(PROFILE)


def at(monkeypatch: pytest.MonkeyPatch, start: float) -> list[float]:
    """The last number of the list is the time."""
    now = [start]
    monkeypatch.setattr(queue, "time", SimpleNamespace(monotonic=lambda: now[-1]))
    return now
