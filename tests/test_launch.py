"""What a launch submits, and what it leaves alone: sbatch, squeue and the others are scripts here."""

import os
import re
import threading
import time
from pathlib import Path

import pytest
from conftest import PROJECT
from sweep_fakes import Tiny, bin_folder, calls, command, sweep_of

from harness.errors import Busy, InputError
from slurm.clusters.profiles import SlurmProfile
from slurm.execution.attempt import Attempt, Claim
from slurm.execution.launch import cancel, launch
from slurm.execution.sweep import Launch, Sweep
from slurm.phases import Phase

PROFILE = SlurmProfile(name="h100", partition="h100", gpus_per_node=8, cpus_per_gpu=12)


class Controller:
    """A controller whose jobs stay as a test says; every script that it was given is kept."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in ("srun", "sacct", "scancel"):
            command(folder, name, "")
        command(folder, "scontrol", "echo 'MaxArraySize = 10'")
        self.queue()
        self.refuse_after(1000)

    def refuse_after(self, accepted: int) -> None:
        """Take so many submissions; they are 101, 102, ..."""
        command(
            self.folder,
            "sbatch",
            f"""n=$((100 + $(grep -c '' {self.folder}/sbatch.calls)))
            if [ $n -gt {100 + accepted} ]; then
              echo "sbatch: error: AssocMaxSubmitJobLimit" >&2
              echo "sbatch: error: Batch job submission failed: Job violates accounting/QOS policy" >&2
              exit 1
            fi
            cat "$1" > {self.folder}/$n.sbatch
            echo "Submitted batch job $n\"""",
        )

    def queue(self, *lines: str, named: str = "") -> None:
        """What squeue says of ids, and of the sweep's name."""
        rows = "\n".join(lines)
        command(
            self.folder,
            "squeue",
            f"case \"$*\" in *' -n '*) echo '{named}' ;; *) cat <<'END'\n{rows}\nEND\n;; esac"
            if lines
            else f"case \"$*\" in *' -n '*) echo '{named}' ;; esac",
        )

    def asked(self, option: str) -> dict[int, str]:
        """What every submission asked for by that option."""
        found = {}
        for path in sorted(self.folder.glob("*.sbatch")):
            match = re.search(rf"^#SBATCH --{option}=(.*)$", path.read_text(), re.MULTILINE)
            found[int(path.stem)] = match[1] if match else ""
        return found


@pytest.fixture
def controller(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Controller:
    folder = bin_folder(tmp_path, monkeypatch)
    return Controller(folder)


def make(folder: Path, *sizes: int, parallel: int | None = None) -> Sweep:
    """A sweep with so many jobs in its phases a, b, ..."""
    phases = [
        Phase(title=title, jobs=[Tiny(name=f"{title}{n}", folder=folder) for n in range(size)])
        for title, size in zip("abc", sizes, strict=False)
    ]
    return sweep_of(folder, phases, PROJECT, cluster="h100", parallel=parallel)


def claim(sweep: Sweep, index: int) -> Claim:
    at = {index: one.at for one in sweep.launches() for index in one.indices}[index]
    mine = Claim(
        sweep.state(sweep.members()[index]),
        Attempt(sweep=sweep.header.id, launch=at, restart=0, slurm_job="x"),
    )
    mine.take()
    return mine


def test_a_phase_waits_for_every_array_of_the_one_before(tmp_path: Path, controller: Controller) -> None:
    sweep = make(tmp_path, 25, 1, 2)
    submitted = launch(sweep, PROFILE)
    assert [(one.slurm_id, one.phase, len(one.indices)) for one in submitted] == [
        ("101", "a", 10),
        ("102", "a", 10),
        ("103", "a", 5),
        ("104", "b", 1),
        ("105", "c", 2),
    ]
    assert [index for one in submitted for index in one.indices] == list(range(28))
    assert len({one.at for one in submitted}) == 1
    assert sweep.launches() == submitted
    assert controller.asked("array") == {101: "0-9%10", 102: "0-9%10", 103: "0-4%5", 104: "", 105: "0-1%2"}
    assert controller.asked("dependency") == {
        101: "",
        102: "",
        103: "",
        104: "afterok:101:102:103",
        105: "afterok:104",
    }
    assert set(controller.asked("job-name").values()) == {sweep.header.id}


def test_a_throttle_holds_over_the_arrays_of_a_phase(tmp_path: Path, controller: Controller) -> None:
    launch(make(tmp_path, 25, 1, parallel=4), PROFILE)
    assert controller.asked("array") == {101: "0-9%4", 102: "0-9%4", 103: "0-4%4", 104: ""}
    assert controller.asked("dependency") == {
        101: "",
        102: "afterany:101",
        103: "afterany:102",
        104: "afterok:101:102:103",
    }


def test_what_slurm_refuses_leaves_nothing_in_the_queue(tmp_path: Path, controller: Controller) -> None:
    controller.refuse_after(2)
    with pytest.raises(InputError, match=r"^Batch job submission failed: Job violates accounting/QOS policy$"):
        launch(make(tmp_path, 25), PROFILE)
    assert calls(controller.folder, "scancel") == ["101 102"]


def test_resuming_submits_what_failed_and_again_what_waits_for_it(tmp_path: Path, controller: Controller) -> None:
    """b1 failed, b2 still runs: c waits for b1's first submission, which will never succeed."""
    sweep = make(tmp_path, 1, 3, 2)
    launch(sweep, PROFILE)
    claim(sweep, 0).finished("made", 0, None, 1.0)
    claim(sweep, 1).finished("made", 0, None, 1.0)
    claim(sweep, 2).failed(ValueError("no"), "trace")
    claim(sweep, 3)
    running, waiting = "102_2|RUNNING|n1|None", ["103_0|PENDING||Dependency", "103_1|PENDING||Dependency"]
    controller.queue("102_1|FAILED|n1|None", running, *waiting)
    again = launch(sweep, PROFILE)
    assert [(one.slurm_id, one.indices) for one in again] == [("104", (2,)), ("105", (4, 5))]
    assert calls(controller.folder, "scancel") == ["103_0 103_1"]
    assert {n: asked for n, asked in controller.asked("dependency").items() if n > 103} == {
        104: "",
        105: "afterok:102_2:104",
    }


def test_resuming_leaves_what_is_done_or_queued_alone(tmp_path: Path, controller: Controller) -> None:
    sweep = make(tmp_path, 2, 1)
    launch(sweep, PROFILE)
    claim(sweep, 0).finished("made", 0, None, 1.0)
    controller.queue("101_1|PENDING||Resources", "102|PENDING||Dependency")
    assert launch(sweep, PROFILE) == []
    assert not calls(controller.folder, "scancel")
    claim(sweep, 1).finished("made", 0, None, 1.0)
    claim(sweep, 2).finished("made", 0, None, 1.0)
    assert launch(sweep, PROFILE) == []
    assert len(calls(controller.folder, "sbatch")) == 2


def test_resuming_lets_held_jobs_go(tmp_path: Path, controller: Controller) -> None:
    sweep = make(tmp_path, 2, 1)
    launch(sweep, PROFILE)
    controller.queue(
        "101_0|PENDING||launch failed requeued held", "101_1|PENDING||JobHeldUser", "102|PENDING||Dependency"
    )
    assert launch(sweep, PROFILE) == []
    assert "release 101_0,101_1" in calls(controller.folder, "scontrol")


def test_an_array_that_nobody_noted_is_cancelled(tmp_path: Path, controller: Controller) -> None:
    """The process that submitted it died before it wrote that down."""
    sweep = make(tmp_path, 2)
    sweep.launched(Launch(slurm_id="7", phase="a", indices=(0, 1), at=5.0))
    controller.queue("7_0|RUNNING|n1|None", "7_1|RUNNING|n1|None", named="7 7 99")
    assert launch(sweep, PROFILE) == []
    assert calls(controller.folder, "scancel") == ["99"]


def test_cancelling_ends_what_waits_and_runs(tmp_path: Path, controller: Controller) -> None:
    sweep = make(tmp_path, 3, 1)
    launch(sweep, PROFILE)
    claim(sweep, 0).finished("made", 0, None, 1.0)
    controller.queue("101_1|RUNNING|n1|None", "101_2|PENDING||JobHeldUser", "102|PENDING||Dependency")
    assert cancel(sweep, PROFILE) == 3
    assert calls(controller.folder, "scancel") == ["101_1 101_2 102"]


def test_one_process_at_a_time_launches_or_cancels(tmp_path: Path, controller: Controller) -> None:
    sweep = make(tmp_path, 2)
    told = f"sweep {sweep.header.id} is being submitted, cancelled or run by process {os.getpid()} on "
    with sweep.held():
        for act in (launch, cancel):
            with pytest.raises(Busy, match=re.escape(told)):
                act(sweep, PROFILE)
    assert not calls(controller.folder, "sbatch") and not calls(controller.folder, "scancel")
    assert len(launch(sweep, PROFILE)) == 1, "and the next may"


def test_two_processes_that_resume_at_once_submit_once(tmp_path: Path, controller: Controller) -> None:
    """The first is slow: sbatch takes its time."""
    sweep = make(tmp_path, 2)
    script = (controller.folder / "sbatch").read_text()
    (controller.folder / "sbatch").write_text(script.replace("n=$((", f": > {tmp_path}/in; sleep 1; n=$((", 1))
    first = threading.Thread(target=launch, args=(sweep, PROFILE))
    first.start()
    while first.is_alive() and not (tmp_path / "in").exists():
        time.sleep(0.01)
    with pytest.raises(Busy):
        launch(Sweep.open(sweep.folder), PROFILE)
    first.join()
    assert len(sweep.launches()) == len(calls(controller.folder, "sbatch")) == 1


def test_nothing_is_submitted_while_the_controller_is_silent(tmp_path: Path, controller: Controller) -> None:
    sweep = make(tmp_path, 2)
    launch(sweep, PROFILE)
    command(
        controller.folder, "squeue", 'case "$*" in *" -n "*) ;; *) echo "squeue: error: no answer" >&2; exit 1; esac'
    )
    for act in (launch, cancel):
        with pytest.raises(InputError, match="error: no answer"):
            act(sweep, PROFILE)
    assert len(calls(controller.folder, "sbatch")) == 1
    assert not calls(controller.folder, "scancel")


def test_a_phase_that_an_earlier_sweep_has_done_is_waited_through(tmp_path: Path, controller: Controller) -> None:
    sweep = make(tmp_path, 1, 1, 1)
    product = tmp_path / "b0.made"
    product.touch()
    other = Claim(sweep.state(sweep.members()[1]), Attempt(sweep="another", launch=1.0, restart=0, slurm_job="x"))
    other.take()
    other.finished("made", 0, product, 1.0)
    assert [one.phase for one in launch(sweep, PROFILE)] == ["a", "c"]
    assert controller.asked("dependency") == {101: "", 102: "afterok:101"}
