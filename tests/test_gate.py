"""The door of the gate: which commits, what is refused in one line, a report that hides nothing and runs nothing."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import PROJECT
from test_checkout import git, root  # noqa: F401  (a fixture)
from test_gate_answers import answers
from test_gate_times import normal

from harness.cli.main import main
from harness.errors import InputError
from results.gate import answers as gate_answers
from results.gate import times as gate_times
from results.gate.report import Report, Times, speeds
from slurm import checkout
from slurm.gate import job
from slurm.gate.asking import Worker, WorkerFailed
from slurm.gate.sides import candidate_of, commit_of, worktree

COMMIT = {"commit": "a" * 40, "dirty": False, "files": [], "subject": "s", "date": "2026-01-01T00:00:00+00:00"}


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(["gate", *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == "" and len(err.splitlines()) == 1, err
    return err


def test_unknown_names_are_told_the_nearest(root: Path, capsys: pytest.CaptureFixture[str]) -> None:  # noqa: F811
    git(root, "branch", "release")
    commit = git(root, "rev-parse", "--short", "HEAD").strip()
    line = refused(capsys, "--base", "releese")
    assert "unknown revision 'releese' (did you mean 'release'?); valid choices: HEAD, " in line
    wrong = commit[:5] + ("0" if commit[5] != "0" else "1") + commit[6:]
    assert commit in refused(capsys, "--base", wrong)
    assert "unknown revision '--all'" in refused(capsys, "--base=--all")
    assert "unknown revision 'gone'" in refused(capsys, "--base", "HEAD", "--candidate", "gone")
    line = refused(capsys, "--base", "HEAD", "--suites", "smok")
    assert (
        "unknown suites 'smok' (did you mean 'smoke'?); valid choices: expansion, passkey, selection, smoke, tiny"
        in (line)
    )
    assert "expected at least 80 rounds, got 79" in refused(capsys, "--base", "HEAD", "--rounds", "79")
    assert "at least 1 question, got 0" in refused(capsys, "--base", "HEAD", "--only", "answers", "--limit", "0")
    assert "expected a margin of at least 0" in refused(capsys, "--base", "HEAD", "--margin", "-1")


def test_a_commit_of_something_else_is_told_before_anything_is_run(
    root: Path,  # noqa: F811
    capsys: pytest.CaptureFixture[str],
) -> None:
    other = git(root, "rev-parse", "--short=12", "HEAD").strip()
    (root / "slurm" / "jobs").mkdir(parents=True)
    (root / "slurm" / "jobs" / "evaluate.py").touch()
    git(root, "add", ".")
    git(root, "-c", "user.name=a", "-c", "user.email=a@example.org", "commit", "-qm", "second")
    named = f"{other} (HEAD~1): first is no commit of this project: it has no slurm/jobs"
    assert f"the base {named}" in refused(capsys, "--base", "HEAD~1", "--only", "answers", "--rounds", "1")
    assert f"the candidate {named}" in refused(capsys, "--base", "HEAD", "--candidate", "HEAD~1")


def test_what_a_shallow_clone_lacks_is_no_misspelt_name(
    root: Path,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    git(root, "-c", "user.name=a", "-c", "user.email=a@example.org", "commit", "-qm", "second", "--allow-empty")
    clone = tmp_path / "clone"
    git(tmp_path, "clone", "-q", "--depth=1", root.as_uri(), str(clone))
    monkeypatch.setattr(checkout, "ROOT", clone)
    with pytest.raises(InputError, match="'HEAD~1'; this clone is shallow, `git fetch --unshallow` brings"):
        commit_of("HEAD~1")
    git(clone, "fetch", "-q", "--unshallow")
    assert commit_of("HEAD~1").subject == "first"


def test_uncommitted_changes_are_the_candidate_only_where_they_were_asked_for(
    root: Path,  # noqa: F811
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    (root / "package" / "a.py").write_text("one = 2\n")
    assert "uncommitted changes" in refused(capsys, "--base", "HEAD")
    assert "leave --candidate HEAD out" in refused(capsys, "--base", "HEAD", "--candidate", "HEAD", "--dirty")
    base, candidate = commit_of("HEAD"), candidate_of(None, dirty=True)
    assert candidate.files == ("package/a.py",)
    assert "with uncommitted changes in package/a.py: first" in candidate.said
    assert base.identity == candidate.source.commit != candidate.identity
    with worktree(candidate, tmp_path / "code") as changed, worktree(base, tmp_path / "code") as clean:
        assert (changed / "package" / "a.py").read_text() == "one = 2\n"
        assert (clean / "package" / "a.py").read_text() == "one = 1\n"
    assert not list((tmp_path / "code").iterdir()), "worktrees are removed"
    assert len(git(root, "worktree", "list").splitlines()) == 1


def report(**changes: Any) -> Report:
    rng = np.random.default_rng(0)
    same, compared = normal(rng, 0.02), normal(rng, 0.02)
    ours = answers([1] * 60, said="<b>&")
    values: dict[str, Any] = {
        "suites": "smoke",
        "base": {**COMMIT, "said": "aaaa: s"},
        "candidate": {**COMMIT, "said": "bbbb: <script>"},
        "settings": {"margin": 0.02, "time_margin": 0.05, "rounds": 240, "limit": 60},
        "answers": gate_answers.judge({"cell": (ours, ours)}),
        "times": Times(verdicts=gate_times.judge(same, compared), problem="", speeds=speeds(compared.second)),
        "records": {"cell": {"run_id": "r"}},
        "provenance": {"cpu": "a CPU", "device": "cpu", "packages": {"numpy": "2"}, "created": "now"},
    }
    return Report(**{**values, **changes})


def test_the_report_says_pass_and_what_it_could_have_found() -> None:
    one = report()
    assert (one.verdict, one.exit_code, one.named) == ("pass", 0, [])
    text = one.text()
    assert text.startswith("gate smoke: PASS\n")
    assert "Detectable" in text and "A/A" in text
    assert all(verdict.detectable for verdict in [*one.times.verdicts, *(v for v in one.answers if v.figure == "em")])
    document = json.loads(json.dumps(one.as_json()))
    assert (document["verdict"], document["exit_code"]) == ("pass", 0)
    assert [v["figure"] for v in document["answers"]] == ["decoder_positions", "em"]


def test_the_report_names_what_failed_and_runs_nothing_of_what_it_shows() -> None:
    ours, worse = answers([1] * 60, said="yes"), answers([0] * 60, said="<script>alert(1)</script>")
    one = report(answers=gate_answers.judge({"cell": (ours, worse), "other": ("a crash", ours)}))
    assert (one.verdict, one.exit_code) == ("regression", 1)
    assert [verdict for verdict, _ in one.named] == ["regression", "not judged"]
    text = one.text()
    assert "regression: cell: EM: 100.0 to 0.0: 60 questions lost, 0 won" in text
    assert "not judged: other: base: a crash" in text
    assert "flips, cell: EM: 60" in text and "and 50 more" in text
    assert "  lost  question 0  base 'yes', candidate '<script>alert(1)</script>', gold 'yes'" in text
    page = one.html()
    assert "<script" not in page and page.count("&lt;script&gt;alert(1)&lt;/script&gt;") == 60
    assert "candidate bbbb: &lt;script&gt;" in page
    for part in ("regression: cell: EM", "not judged: other", "Detectable", "60 questions flipped"):
        assert part in page
    assert report(times=Times(verdicts=[], problem="candidate: ImportError", speeds={})).exit_code == 2


def test_when_no_time_can_be_judged_one_line_says_so() -> None:
    noisy = normal(np.random.default_rng(1), 0.9)
    one = report(times=Times(verdicts=gate_times.judge(noisy, None), problem="", speeds={}))
    assert one.exit_code == 2
    ((verdict, why),) = one.named
    assert verdict == "not judged" and why.startswith("times: none of 3; standard_rag: ") and "A/A too noisy" in why


def test_only_a_commit_that_passed_is_accepted(tmp_path: Path) -> None:
    path = job.accept(report(), tmp_path)
    assert path == tmp_path / "gate" / "smoke" / f"{'a' * 12}.json"
    golden = json.loads(path.read_text())
    assert (golden["commit"], golden["records"]) == ("a" * 40, {"cell": {"run_id": "r"}})
    with pytest.raises(InputError, match="only a gate that passed is accepted; this one: not judged"):
        job.accept(report(times=Times(verdicts=[], problem="?", speeds={})), tmp_path)
    with pytest.raises(InputError, match="only a commit is accepted"):
        job.accept(replace(report(), candidate={**COMMIT, "said": "", "dirty": True}), tmp_path)


@pytest.fixture
def commit(tmp_path: Path) -> Path:
    """A tree whose ``slurm`` and ``harness.metrics`` are not ours."""
    for name, text in {
        "slurm/__init__.py": "print('said by the commit')\n",
        "harness/__init__.py": "",
        "harness/metrics.py": "METRIC_VERSION = 7\ndef score_answer(said, golds):\n    return {'em': len(golds) / 0}\n",
    }.items():
        (tmp_path / "tree" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "tree" / name).write_text(text)
    return tmp_path / "tree"


def test_a_worker_runs_the_code_of_its_tree_and_says_what_went_wrong(commit: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    with Worker(commit, log) as worker:
        assert worker.ask("score", pairs=[]) == {"metric_version": 7, "scores": []}
        with pytest.raises(WorkerFailed, match=r"^ZeroDivisionError: division by zero \(metrics\.py:3\)$"):
            worker.ask("score", pairs=[["a", ["a"]]])
        assert worker.ask("score", pairs=[])["metric_version"] == 7, "it goes on"
    assert "said by the commit" in log.read_text() and "Traceback" in log.read_text()
    # No two texts of one length: within a second Python would take the bytecode of the one for the other's.
    (commit / "slurm" / "__init__.py").write_text("import os\n\nos._exit(3)\n")
    with pytest.raises(WorkerFailed, match="its process ended with code 3"), Worker(commit, log):
        pass
    (commit / "slurm" / "__init__.py").write_text("import no_such_module\n")
    with pytest.raises(WorkerFailed, match="ModuleNotFoundError: No module named 'no_such_module'"):
        Worker(commit, log).__enter__()
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(WorkerFailed, match=r"expected the code of .*empty|No module named 'slurm'"):
        Worker(empty, log).__enter__()


def test_a_worker_says_which_systems_its_commit_has(commit: Path, tmp_path: Path) -> None:
    for name, text in {
        "harness/cli/catalog.py": "SYSTEMS = {'short': 'mine:Config', 'moved': 'elsewhere:Config'}\n",
        "mine.py": "Config = 1\n",
        "broken.py": "1 / 0\n",
        "inside/mine.py": "Config = 2\n",
    }.items():
        (commit / name).parent.mkdir(parents=True, exist_ok=True)
        (commit / name).write_text(text)
    with Worker(commit, tmp_path / "log") as worker:
        for system, why in {
            "mine:Config": "",
            "short": "",
            "inside.mine:Config": "",
            "broken:Config": "",
            "moved": "it has no module 'elsewhere'",
            "mine:Other": "its mine has no 'Other'",
            "shorter": "its catalog has no 'shorter'",
            "gone:Config": "it has no module 'gone'",
            "gone.mine:Config": "it has no module 'gone.mine' (No module named 'gone')",
            ":Config": "it has no module ''",
        }.items():
            assert worker.ask("lacks", system=system) == why, system


def test_settings_without_a_system_are_refused(root: Path, capsys: pytest.CaptureFixture[str]) -> None:  # noqa: F811
    line = refused(capsys, "--base", "HEAD", "--set", "words=8")
    assert "settings (words) are those of --system" in line


def test_what_is_new_is_told_and_does_not_count() -> None:
    ours = answers([1] * 45 + [0] * 15)
    new = gate_answers.judge({"mine": (gate_answers.Absent(why="no module"), ours), "cell": (ours, ours)})
    untimed = Times(verdicts=[], problem="", speeds={}, untimed=[("new", "times of mine: nothing to compare with")])
    one = report(answers=new, times=untimed)
    assert (one.verdict, one.exit_code) == ("pass", 0)
    assert [what for _, what in one.named] == [
        "mine: nothing to compare with, no module",
        "times of mine: nothing to compare with",
    ], "once, not once a figure"
    text = one.text()
    assert "new: mine: nothing to compare with" in text
    (line,) = [line for line in text.splitlines() if "mine: EM" in line]
    assert [part.strip() for part in line.split("|")[1:-1]] == ["mine: EM", "-", "75.0", *"---", "60", "-", "new"]
    assert "<td>75.0</td>" in one.html()
    worse = gate_answers.judge({"mine": (gate_answers.Absent(why="w"), ours), "cell": (ours, answers([0] * 60))})
    assert [verdict for verdict, _ in report(answers=worse, times=untimed).named] == ["regression", "new", "new"]
    broken = Times(verdicts=[], problem="", speeds={}, untimed=[("not judged", "times of mine: candidate: an error")])
    assert report(answers=new, times=broken).exit_code == 2


PLANTED = {
    "chunk positions": (
        "harness/model/splice.py",
        "[(-1 - codes_BT).clamp(min=0)]",
        "[((-1 - codes_BT).clamp(min=0) + 1) % chunks_NE.shape[0]]",
        "regression: refrag_v2 k=8 policy, nq: EM: ",
    ),
    "EM normalisation": (
        "harness/metrics.py",
        '_ARTICLES_REGEX.sub(" ", text.lower().translate(_DELETE_PUNCTUATION))',
        '_ARTICLES_REGEX.sub(" ", text.translate(_DELETE_PUNCTUATION))',
        "regression: metric: ",
    ),
    "policy": (
        "refrag_v2/selectors.py",
        '"policy": by_policy',
        '"policy": in_order',
        "regression: refrag_v2 k=32 policy, same_relation: fact expanded: ",
    ),
}


def cloned(tmp_path: Path) -> Path:
    """A clone of the project, with what is being worked on as a commit."""
    clone = tmp_path / "clone"
    git(PROJECT, "clone", "--quiet", "--shared", str(PROJECT), str(clone))
    for setting, value in (("user.name", "somebody"), ("user.email", "somebody@example.org")):
        git(clone, "config", setting, value)
    if diff := checkout.source(dirty=True).diff:
        (tmp_path / "diff").write_bytes(diff)
        git(clone, "apply", "--index", "--whitespace=nowarn", str(tmp_path / "diff"))
        git(clone, "commit", "-qm", "what is being worked on")
    return clone


def command(clone: Path, *words: str) -> tuple[int, str]:
    """What ``refrag-bench WORDS`` says there, with the clone's own code."""
    done = subprocess.run(
        [sys.executable, "-m", "harness.cli.main", *words],
        cwd=clone,
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(clone), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
    )
    return done.returncode, done.stdout + done.stderr


@pytest.mark.slow
def test_planted_regressions_are_caught_and_named(tmp_path: Path) -> None:
    """Each as a commit on a clone; beside them a commit that changes nothing, and the worker's own timed answers."""
    clone = cloned(tmp_path)
    base = git(clone, "rev-parse", "HEAD").strip()

    def gate() -> tuple[int, str]:
        return command(clone, "gate", "--base", base, "--only", "answers", "--limit", "60")

    git(clone, "commit", "--quiet", "--allow-empty", "-m", "nothing")
    code, said = gate()
    assert code == 0, said
    assert "flips" not in said
    for what, (name, old, new, named) in PLANTED.items():
        git(clone, "checkout", "--quiet", base)
        path = clone / name
        assert path.read_text().count(old) == 1, what
        path.write_text(path.read_text().replace(old, new))
        git(clone, "commit", "--quiet", "-am", f"plant: {what}")
        code, said = gate()
        assert code == 1, said
        assert named in said, said
        assert "predictions are stored already" in said, "the base is not run again"
    with Worker(clone, tmp_path / "log") as worker:
        lanes = {"rag": {"system": "standard_rag", "checkpoint": "standard_rag/finetune-tiny"}}
        lanes["rag"] |= {"suite": "same_relation", "passages": 8}
        own = {"mine": {**lanes["rag"], "system": "standard_rag", "options": {"template": "no such"}}}
        where = {"runs": str(tmp_path / "runs"), "data": None, "device": "cpu"}
        opened = worker.ask("open", lanes=lanes, own=own, prompts=3, **where)
        assert list(opened["specs"]) == ["rag"]
        assert opened["untimed"]["mine"].startswith("InputError: unknown prompt template 'no such'")
        assert opened["prompts"] == 3 and opened["specs"]["rag"]["system"]["name"] == "standard_rag"
        timed = worker.ask("answer", lane="rag", prompt=2, tokens=9)
        assert len(timed["ttit_s"]) == 8 and 0 < timed["ttft_s"] < timed["ttft_with_encode_s"]
