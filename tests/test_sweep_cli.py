"""``refrag-bench sweep`` at the door: bad input is one line and exit code 2; nothing is on disk, nothing submitted."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import PROJECT
from rich.console import Console
from sweep_fakes import Tiny, bin_folder, calls, command, sweep_of

from harness.cli import sweep_view
from harness.cli.main import main
from slurm import checkout
from slurm.execution.attempt import Attempt, Claim
from slurm.execution.sweep import Launch, Sweep
from slurm.execution.watch import Row, Status
from slurm.phases import Phase
from slurm.plan.plan import make_plan

NAME = "tiny-20260101-120000-beef"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory, no site file, a project with nothing to commit, and no SLURM."""
    for variable in [v for v in os.environ if v.startswith(("REFRAG_", "SLURM_", "GIT_"))]:
        monkeypatch.delenv(variable)
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")
    bin_folder(tmp_path, monkeypatch)
    project = tmp_path / "project"
    project.mkdir()
    (project / "code.py").write_text("one = 1\n")
    git = ["git", "-c", "user.name=somebody", "-c", "user.email=somebody@example.org", "-C", str(project)]
    subprocess.run([*git, "init", "-q"], check=True)
    subprocess.run([*git, "add", "."], check=True)
    subprocess.run([*git, "commit", "-qm", "first"], check=True)
    monkeypatch.setattr(checkout, "ROOT", project)
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    return here


@pytest.fixture
def slurm(here: Path) -> Path:
    """SLURM's commands: a controller with two partitions that has seen no job, and accounting."""
    folder = here.parent / "bin"
    command(folder, "sinfo", "printf 'debug\\nh100\\n'")
    command(folder, "scontrol", "echo 'MaxArraySize = 10'")
    for name in ("sacct", "squeue", "sbatch", "srun", "scancel"):
        command(folder, name, "")
    return folder


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Exit code 2 and one line on standard error, which is returned."""
    try:
        code = main(["sweep", *arguments])
    except SystemExit as exit_:  # argparse's own errors
        code = exit_.code
    out, err = capsys.readouterr()
    assert (code, out) == (2, ""), err
    assert len(err.splitlines()) == 1, err
    return err


SUBMIT = ("submit", "smoke", "--cluster", "h100")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("submit", "smoke", "--cluster", "h10"),
            "unknown cluster 'h10' (did you mean 'h100'?); valid choices: h100",
        ),
        (
            ("submit", "pooing", "--cluster", "h100"),
            "unknown experiment 'pooing' (did you mean 'pooling'?); valid",
        ),
        (("submit", "smoke"), "the following arguments are required: --cluster"),
        (
            ("submit", "smoke", "--cluster", "h100", "--scale", "slw"),
            "unknown scale of experiment 'smoke' 'slw'",
        ),
        (
            ("submit", "smoke", "--cluster", "h100", "--checkpoint", "x"),
            "leave --data, --checkpoint and --from-",
        ),
        ((*SUBMIT, "--parallel", "0"), "expected at least 1 as --parallel, got 0"),
        ((*SUBMIT, "--parallel", "-3", "--dry-run"), "expected at least 1 as --parallel, got -3"),
        ((*SUBMIT, "--minutes", "0"), "expected at least 1 as --minutes, got 0"),
        ((*SUBMIT, "--limit", "0", "--dry-run"), "expected at least 1 as --limit, got 0"),
        ((*SUBMIT, "--limit", "-1"), "expected at least 1 as --limit, got -1"),
        ((*SUBMIT, "--minutes", "1"), "expected a time limit of at least 5 minutes, got 1"),
        ((*SUBMIT, "--minutes", "1", "--dry-run"), "expected a time limit of at least 5 minutes, got 1"),
        ((*SUBMIT, "--minutes", "two"), "invalid int value: 'two'"),
        (
            ("submit", "smoke", "--cluster", "local", "--minutes", "9"),
            "cluster 'local' has no time limit; leave --",
        ),
        (("fly",), "invalid choice: 'fly'"),
        ((), "required: ACTION"),
    ],
)
def test_a_wrong_word(
    slurm: Path, here: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], message: str
) -> None:
    assert message in refused(capsys, *arguments)
    untouched(slurm, here)


def untouched(slurm: Path, here: Path) -> None:
    assert not list(here.iterdir())
    assert not calls(slurm, "sbatch")
    assert not (here.parent / "project" / ".git" / "worktrees").exists()


def test_a_partition_that_is_not_there(slurm: Path, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command(slurm, "sinfo", "printf 'debug\\ngpu\\ndebug\\n'")
    assert "cluster 'h100', partition: no 'h100'; this cluster has debug, gpu" in refused(capsys, *SUBMIT)
    untouched(slurm, here)


@pytest.mark.parametrize("name", ["sinfo", "sacct"])
def test_no_slurm(slurm: Path, here: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    (slurm / name).unlink()
    assert f"cluster 'h100', {name}: no {name} on PATH: is this a login node?" in refused(capsys, *SUBMIT)
    untouched(slurm, here)


def test_no_accounting(slurm: Path, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command(slurm, "sacct", 'echo "Slurm accounting storage is disabled" >&2; exit 1')
    assert "cluster 'h100', sacct: sacct: Slurm accounting storage is disabled" in refused(capsys, *SUBMIT)
    untouched(slurm, here)


@pytest.mark.parametrize("cluster", ["h100", "local"])
def test_a_runs_folder_that_cannot_be_one(
    slurm: Path, here: Path, cluster: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (here.parent / "file").touch()
    said = refused(capsys, "submit", "smoke", "--cluster", cluster, "--runs", str(here.parent / "file" / "runs"))
    file = here.parent / "file"
    assert f"cluster '{cluster}', folder: {file / 'runs'}: {file} cannot be written: Not a directory" in said
    said = refused(capsys, "submit", "smoke", "--cluster", cluster, "--runs", str(here.parent / "file"))
    assert f"cluster '{cluster}', folder: {file}: {file} cannot be written: Not a directory" in said
    untouched(slurm, here)


@pytest.mark.parametrize("cluster", ["h100", "local"])
def test_a_dirty_tree(slurm: Path, here: Path, cluster: str, capsys: pytest.CaptureFixture[str]) -> None:
    (here.parent / "project" / "more.py").touch()
    said = refused(capsys, "submit", "smoke", "--cluster", cluster)
    assert "uncommitted changes in" in said and "(more.py): commit them, or give --dirty" in said
    untouched(slurm, here)


def test_a_checkout_that_fails_leaves_no_sweep(
    slurm: Path, here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would be the newest, which every other command takes where none is named."""
    monkeypatch.setattr(checkout, "source", lambda dirty: checkout.Source(commit="0" * 40, diff=b""))
    assert "git worktree at" in refused(capsys, *SUBMIT)
    assert not list(here.rglob("sweep.json"))
    assert "no sweep for" in refused(capsys, "status")


@pytest.mark.parametrize("action", ["status", "watch", "cancel", "resume", "logs"])
def test_no_sweep_yet(slurm: Path, here: Path, action: str, capsys: pytest.CaptureFixture[str]) -> None:
    said = refused(capsys, action)
    assert "no sweep for --runs runs; submit one with `refrag-bench sweep submit`, or name another --runs" in said
    said = refused(capsys, action, "--runs", "wrong")
    assert "no sweep for --runs wrong; submit" in said
    untouched(slurm, here)


@pytest.mark.parametrize("action", ["status", "watch", "cancel", "resume", "logs", "clean"])
def test_an_unknown_sweep(slurm: Path, here: Path, action: str, capsys: pytest.CaptureFixture[str]) -> None:
    made(here)
    said = refused(capsys, action, NAME.replace("beef", "bee"))
    assert f"unknown sweep '{NAME[:-1]}' (did you mean '{NAME}'?); valid choices: {NAME}" in said
    assert not calls(slurm, "squeue")


def test_a_sweep_that_was_cut_off(slurm: Path, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (made(here).folder / "jobs.jsonl").unlink()
    assert f"sweep {NAME} was cut off before it was submitted; submit it again" in refused(capsys, "status")


def test_a_dry_run_needs_no_slurm_and_leaves_nothing(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REFRAG_H100_GPU_HOUR_PRICE", "2.5")
    asked = [*SUBMIT, "--device", "cuda", "--minutes", "30", "--dry-run"]
    assert main(["sweep", *asked]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert out.splitlines() == [
        "smoke on h100: 21 jobs in 2 arrays  (no scontrol on PATH: is this a login node? (`refrag-bench doctor "
        "--cluster`); arrays are shown whole)",
        f"  partition h100, all memory of a node, runs in {here / 'runs'}",
        "  count: 20 jobs of 1 process, 1 GPU",
        "  last: 1 job of 1 process, 0 GPUs",
        "  10.0 GPU-hours if every job takes its 30 minutes, once; cost: 25.00",
    ]
    assert not list(here.iterdir())


def test_a_dry_run_splits_as_the_controller_wants(slurm: Path, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sweep", *SUBMIT, "--limit", "25", "--dry-run"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "smoke on h100: 26 jobs in 4 arrays"
    assert lines[2:5] == [f"  count: {n} jobs of 1 process, 0 GPUs" for n in (10, 10, 5)]
    assert lines[6] == "  everything runs on CPUs; --device cuda asks for GPUs"
    assert lines[7] == (
        "  0.0 GPU-hours if every job takes its 60 minutes, once; cost: no price in the profile (gpu_hour_price)"
    )
    untouched(slurm, here)


def test_a_dry_run_here(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sweep", "submit", "smoke", "--cluster", "local", "--dry-run"]) == 0
    assert capsys.readouterr().out == (
        f"smoke on local: 21 jobs, runs in {here / 'runs'}\n  count: 20 jobs\n  last: 1 job\n"
    )
    assert not list(here.iterdir())


def made(here: Path) -> Sweep:
    """A sweep of array 7 on h100: the first job done, the second failed, the third running."""
    jobs = [Tiny(name=f"{n}", folder=here) for n in range(3)]
    sweep = sweep_of(here, [Phase(title="tiny", jobs=jobs)], PROJECT, cluster="h100")
    sweep.launched(Launch(slurm_id="7", phase="tiny", indices=(0, 1, 2), at=5.0))
    claims = [
        Claim(sweep.state(member), Attempt(sweep=NAME, launch=5.0, restart=0, slurm_job=f"7_{member.index}"))
        for member in sweep.members()
    ]
    for claim in claims:
        claim.take()
    claims[0].finished("em 3 [of 9]", 0, None, 1.0)
    claims[1].failed(ValueError("expected [h100] or [/x]"), "Traceback (most recent call last):\n  at line 3\n")
    return sweep


def test_status_is_one_json_object(slurm: Path, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made(here)
    command(slurm, "squeue", "echo '7_2|RUNNING|n1|None'")
    assert main(["sweep", "status", "--json"]) == 1
    out, err = capsys.readouterr()
    assert err == "" and len(out.splitlines()) == 1
    status = json.loads(out)
    assert (status["id"], status["problem"]) == (NAME, "")
    assert status["counts"] == {"running": 1, "done": 1, "failed": 1}
    assert [row["state"] for row in status["rows"]] == ["done", "failed", "running"]
    assert set(status["rows"][0]) == set(Row.__dataclass_fields__)


def test_status_for_eyes(slurm: Path, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What is done is counted; every other job has its row, whatever its message holds."""
    made(here)
    command(slurm, "squeue", 'echo "squeue: error: [/no] contact" >&2; exit 1')
    assert main(["sweep", "status"]) == 2, "what cannot be judged is no success and no failure"
    out = " ".join(capsys.readouterr().out.split())
    assert "ValueError: expected [h100] or [/x]" in out
    assert f"{NAME}: 1 running, 1 done, 1 failed of 3; controller: squeue: error: [/no] contact" in out
    assert "em 3" not in out
    assert main(["sweep", "status", "--all"]) == 2
    assert "em 3 [of 9]" in " ".join(capsys.readouterr().out.split())


def test_the_logs_of_a_job(slurm: Path, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sweep = made(here)
    log = sweep.folder / "log" / "launch-1" / "7"
    log.mkdir(parents=True)
    for name in ("7_1_0_log.out", "7_1_0_log.err", "7_10_0_log.out"):
        (log / name).write_text(f"in {name}\n")
    assert main(["sweep", "logs", NAME, "1"]) == 0
    failed = capsys.readouterr().out
    assert failed == (
        "=== 1 tiny 1\n"
        "--- log/launch-1/7/7_1_0_log.err\nin 7_1_0_log.err\n"
        "--- log/launch-1/7/7_1_0_log.out\nin 7_1_0_log.out\n"
        "--- traceback\nTraceback (most recent call last):\n  at line 3\n"
    )
    assert main(["sweep", "logs"]) == 0
    assert capsys.readouterr().out == failed, "all that failed"
    assert main(["sweep", "logs", NAME, "2"]) == 0
    assert capsys.readouterr().out == "=== 2 tiny 2\n--- nothing was written\n"


@pytest.mark.parametrize("job", ["3", "-1", "99"])
def test_the_logs_of_an_unknown_job(slurm: Path, here: Path, job: str, capsys: pytest.CaptureFixture[str]) -> None:
    made(here)
    assert f"{NAME} has no job {job}; it has 0 to 2" in refused(capsys, "logs", NAME, "--", job)


Became = list[tuple[list[str], dict[str, str]]]


@pytest.fixture
def became(monkeypatch: pytest.MonkeyPatch) -> Became:
    """The commands and environments that this process would have gone on as."""
    found: Became = []
    monkeypatch.setattr("os.chdir", lambda _: None)
    monkeypatch.setattr("os.execve", lambda _, command, environment: found.append((command, environment)))
    return found


def test_what_is_launched_in_the_sweeps_code_may_use_the_hub_where_that_was_allowed(
    slurm: Path, here: Path, became: Became
) -> None:
    main(["sweep", *SUBMIT])
    main(["sweep", "--allow-download", "resume", "--watch"])
    (sweep,) = (path.parent for path in here.glob("sweeps/*/sweep.json"))
    python = [sys.executable, "-m", "harness.cli.main", "sweep"]
    assert [command for command, _ in became] == [
        [*python, "resume", sweep.name, "--runs", str(here / "runs")],
        [*python, "--allow-download", "resume", sweep.name, "--runs", str(here / "runs"), "--watch"],
    ]
    assert (sweep / "code" / "code.py").read_text() == "one = 1\n"


def test_a_signal_to_who_submits_reaches_who_drives(here: Path) -> None:
    """The sweep's own code says what it heard; nobody else is left who could."""
    sweep = sweep_of(here, [Phase(title="tiny", jobs=[])], PROJECT, asked={"runs": str(here / "runs")})
    sweep.code.unlink()
    (sweep.code / "harness" / "cli").mkdir(parents=True)
    (sweep.code / "harness" / "__init__.py").touch()
    (sweep.code / "harness" / "cli" / "main.py").write_text(
        "import signal, sys\n"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(f'told {sys.argv[1:3]}'))\n"
        "print('there', flush=True)\n"
        "signal.pause()\n"
    )
    submit = f"from harness.cli.main import main; raise SystemExit(main({['sweep', 'resume', NAME]}))"
    environment = {**os.environ, "PYTHONPATH": str(PROJECT)}
    with subprocess.Popen(
        [sys.executable, "-c", submit], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        line = process.stdout and process.stdout.readline()
        assert line == "there\n", process.stderr and process.stderr.read()
        process.terminate()
        _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (1, "told ['sweep', 'resume']\n")


def test_resuming_remembers_that_the_hub_may_be_asked(
    slurm: Path, here: Path, became: Became, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "")  # to have it back as it was
    for allowed in ([], ["--allow-download"]):
        monkeypatch.delenv("HF_HUB_OFFLINE")
        main(["sweep", *allowed, *SUBMIT])
        main(["sweep", "resume"])
    started = [(command[4:-3], environment.get("HF_HUB_OFFLINE")) for command, environment in became]
    assert started == [(["resume"], "1")] * 2 + [(["--allow-download", "resume"], None)] * 2


def test_a_sweep_is_cleaned_when_nothing_of_it_lives(
    slurm: Path, here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("harness.cli.sweep._in_its_code", lambda *_: 0)
    assert main(["sweep", *SUBMIT]) == 0
    (folder,) = (path.parent for path in here.glob("sweeps/*/sweep.json"))
    sweep = Sweep.open(folder)
    sweep.write_jobs([Phase(title="tiny", jobs=[Tiny(name=f"{n}", folder=here) for n in range(2)])])
    sweep.launched(Launch(slurm_id="7", phase="tiny", indices=(0, 1), at=5.0))
    Claim(sweep.state(sweep.members()[0]), Attempt(sweep=folder.name, launch=5.0, restart=0, slurm_job="7_0")).take()

    def left() -> list[str]:
        return [path.name for path in (here.parent / "project" / ".git" / "worktrees").glob("*")]

    for said in ("7_1|PENDING||Resources", "7_1|PENDING||JobHeldUser"):
        command(slurm, "squeue", f"printf '7_0|FAILED|n1|None\n{said}\n'")
        assert f"1 jobs of sweep {folder.name} wait or run; `refrag-bench sweep cancel` ends them" in refused(
            capsys, "clean", folder.name
        )
    command(slurm, "squeue", "exit 1")
    assert "squeue: exit code 1" in refused(capsys, "clean", folder.name)
    command(slurm, "squeue", "printf '7_0|FAILED|n1|None\n7_1|CANCELLED|n1|None\n'")
    with sweep.held():
        assert f"sweep {folder.name} is being submitted, cancelled or run by process {os.getpid()}" in refused(
            capsys, "clean", folder.name
        )
    assert sweep.code.exists() and left() == ["code"]

    assert main(["sweep", "clean", folder.name]) == 0
    assert capsys.readouterr().out == f"{folder.name}: code removed\n"
    assert not sweep.code.exists() and left() == []
    assert main(["sweep", "clean", folder.name]) == 0, "once more is no error"
    capsys.readouterr()
    assert f"sweep {folder.name} was cleaned, its code is gone; submit the experiment again" in refused(
        capsys, "resume"
    )
    assert main(["sweep", "status"]) == 1, "what became of its jobs stays"


def test_clean_takes_no_sweep_for_granted(slurm: Path, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made(here)
    assert "the following arguments are required: ID" in refused(capsys, "clean")


def test_what_cannot_run_is_refused_and_still_planned(
    slurm: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ("submit", "paper", "--cluster", "h100", "--device", "cuda")
    said = refused(capsys, *asked)
    assert said.startswith("refrag-bench: error: experiment 'paper' cannot run: train refrag_v2 reconstruction (paper")
    for why in (
        "at least 4,096 tokens",
        "1.1 M instruction",
        "no decoder to start from",
        "a policy's training is for one process",
    ):
        assert said.count(why) == 1
    untouched(slurm, here)

    assert main(["sweep", *asked, "--dry-run"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "paper on h100: 39 jobs in 11 arrays"
    assert lines[2:7] == [
        f"  {stage}: 1 job of 8 nodes x 8 processes, 64 GPUs"
        for stage in ("reconstruction", "cpt", "mixed", "finetune", "policy")
    ]
    total = make_plan("7b", k=16, mfu=0.4, price_usd=2.5).total
    (planned,) = (line for line in lines if "refrag-bench plan" in line)
    assert planned.endswith(
        f": {total.gpu_hours:,.0f} GPU-hours; cost: {total.cost_usd:,.2f} at 2.50 each, an assumed price in USD"
    )
    assert "  the rest, 27.0 GPU-hours if every job takes its 60 minutes, once" in lines[lines.index(planned) + 1]
    assert sum(line.startswith("  cannot run: ") for line in lines) == 6
    untouched(slurm, here)


@pytest.mark.parametrize(
    ("experiment", "option", "why"),
    [
        ("real", "--data", "retrieve nq with bm25, strong: expected a data folder with hub/ inside at "),
        ("expansion", "--data", "--data: there is no "),
        ("real", "--checkpoint", "--checkpoint: there is no "),
    ],
)
def test_a_path_that_is_not_there_is_said_before_anything_waits_in_a_queue(
    slurm: Path,
    here: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    experiment: str,
    option: str,
    why: str,
) -> None:
    data = here.parent / "data"
    (data / "hub").mkdir(parents=True)
    (data / "corpus").mkdir()
    monkeypatch.setenv("REFRAG_DATA", str(data))
    asked = ("submit", experiment, "--cluster", "h100", option, str(here / "typo"))
    said = refused(capsys, *asked)
    assert f"cannot run: {why}{here / 'typo'}" in said and said.count(str(here / "typo")) == 1
    untouched(slurm, here)
    assert main(["sweep", *asked, "--dry-run"]) == 0
    (line,) = (line for line in capsys.readouterr().out.splitlines() if "cannot run" in line)
    assert line.startswith(f"  cannot run: {why}{here / 'typo'}")


def test_a_data_root_is_opened_before_anything_waits_in_a_queue(
    slurm: Path, here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = ("submit", "real", "--cluster", "h100")
    root = here.parent / "mirror"
    monkeypatch.setenv("REFRAG_DATA", str(root))
    assert "there is no such folder" in refused(capsys, *asked)
    (root / "hub").mkdir(parents=True)
    assert "the data root 'mirror' has no corpus/ to retrieve from" in refused(capsys, *asked)
    untouched(slurm, here)
    assert main(["sweep", "submit", "tiny", "--cluster", "h100", "--dry-run"]) == 0
    assert "cannot run" not in capsys.readouterr().out, "its root is yet to be made, by its first job"


def test_the_profile_of_a_dry_run(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"CPU_PARTITION": "cpu", "ACCOUNT": "nlp", "MEMORY_GB": "900"}.items():
        monkeypatch.setenv(f"REFRAG_H100_{name}", value)
    assert main(["sweep", *SUBMIT, "--device", "cuda", "--runs", "there", "--dry-run"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1] == (
        f"  partition h100 (of jobs without a GPU: cpu), account nlp, 900 GB of a node, runs in {here / 'there'}"
    )
    assert not any("everything runs on CPUs" in line for line in lines)


def test_more_gpus_at_once_than_this_machine_has(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = ("submit", "smoke", "--cluster", "local", "--device", "cuda", "--parallel")
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    said = refused(capsys, *asked, "3")
    assert "3 jobs at once (--parallel) ask for 3 GPUs; cluster 'local' has 2" in said
    monkeypatch.setenv("REFRAG_LOCAL_GPUS_PER_NODE", "1")
    assert "ask for 2 GPUs; cluster 'local' has 1" in refused(capsys, *asked, "2")
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    assert "1 jobs at once (--parallel) ask for 1 GPUs; cluster 'local' has 0" in refused(capsys, *asked[:-1])
    assert not list(here.iterdir())
    monkeypatch.setattr("harness.cli.sweep._in_its_code", lambda *_: 0)
    assert main(["sweep", "submit", "smoke", "--cluster", "local", "--parallel", "9"]) == 0, "a CPU is shared"


def test_a_long_table_shows_some_of_each_state() -> None:
    rows = [Row(index=n, phase="p", title="t", state="pending" if n % 2 else "failed") for n in range(60)]
    status = Status(id=NAME, rows=[*rows, Row(index=60, phase="p", title="t", state="done")])
    console = Console(width=100, record=True, file=Path(os.devnull).open("w"))  # noqa: SIM115
    console.print(sweep_view._table(status, everything=False))
    text = console.export_text()
    assert text.count("failed") == text.count("pending") == sweep_view.SHOWN + 1
    assert "10 more failed" in text and "10 more pending" in text and "done" not in text
