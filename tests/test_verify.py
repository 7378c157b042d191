"""``tables --verify``: an untouched run passes, and nothing that was touched does."""

import json
import math
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import PROJECT
from fakes import EchoSystem, ListSuite, questions, spec

from harness.cli.main import main
from harness.metrics import METRIC_VERSION
from harness.protocol import Example
from harness.run import evaluate
from harness.summary import summarise
from results.records import read_records

COMMIT = "0123456789abcdef"
N = 12


class PartedSuite(ListSuite):
    """Two of the questions have a score of their own."""

    def score(self, example: Example, text: str) -> dict[str, float]:
        scores = super().score(example, text)
        return scores | ({"em@4": scores["em"]} if example.id in ("q4", "q5") else {})


def evaluate_into(folder: Path, *, seed: int, experiment: str = "test") -> Path:
    """A run of questions some of which are answered in part and one of which fails; its record is of a clean commit."""
    asked = questions(N)
    asked[1] = replace(asked[1], answers=("word1 junior", "The The"))
    asked[2] = replace(asked[2], answers=("the word2 of words",))
    asked[N - 1] = replace(asked[N - 1], question="explode ?")
    of_run = spec(seed=seed)
    cpu = torch.device("cpu")
    evaluate(of_run, PartedSuite(asked), EchoSystem(), folder, experiment=experiment, device=cpu)
    edit(of_run.folder(folder) / "record.json", "provenance.commit", COMMIT)
    edit(of_run.folder(folder) / "record.json", "provenance.dirty", False)
    return of_run.folder(folder)


def edit(path: Path, key: str, value: Any, line: int = 0) -> None:
    """Set a value by dotted key in one line of a journal, or in a record."""
    lines = path.read_text().splitlines() if path.suffix == ".jsonl" else [path.read_text()]
    document = json.loads(lines[line])
    *parents, last = key.split(".")
    place = document
    for parent in parents:
        place = place[parent]
    place[last] = value
    lines[line] = json.dumps(document, ensure_ascii=False)
    path.write_text("\n".join(lines) + "\n")


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("evaluated")
    evaluate_into(folder, seed=0)
    evaluate_into(folder, seed=1)
    return folder


@pytest.fixture
def runs(evaluated: Path, tmp_path: Path) -> Path:
    """Two runs, to be spoilt."""
    return shutil.copytree(evaluated, tmp_path / "runs")


@pytest.fixture
def run(runs: Path) -> Path:
    """One of the two."""
    return spec(seed=0).folder(runs)


Verify = Callable[..., tuple[int, list[str]]]


@pytest.fixture
def verify(runs: Path, capsys: pytest.CaptureFixture[str]) -> Verify:
    """The exit code, and the lines on both streams."""

    def verify(*arguments: object) -> tuple[int, list[str]]:
        capsys.readouterr()
        code = main(["tables", "--verify", "--records", str(runs), *map(str, arguments)])
        captured = capsys.readouterr()
        return code, (captured.out + captured.err).splitlines()

    return verify


def test_an_untouched_run_verifies_and_stays_as_it_is(runs: Path, verify: Verify) -> None:
    before = {path: path.read_bytes() for path in runs.rglob("*") if path.is_file()}
    code, lines = verify()
    assert code == 0
    assert lines == [
        "averaged as the rows have them, not scored again: decoder_positions, passages_read, stored_bytes",
        f"2 of 2 records verified, {2 * N} rows; 0 differences, 0 mixtures",
    ]
    assert {path: path.read_bytes() for path in runs.rglob("*") if path.is_file()} == before
    assert json.loads(before[spec(seed=0).folder(runs) / "record.json"])["metrics"]["f1"]["n"] == 8, (
        "errors were left out"
    )


def test_several_processes_find_what_one_does(run: Path, verify: Verify, monkeypatch: pytest.MonkeyPatch) -> None:
    from results import verify as module

    edit(run / "predictions.jsonl", "prediction", "other")
    alone = verify("--json")
    monkeypatch.setattr(module, "_RUNS_AT_ONCE", 1)
    assert len(list(module._batches(read_records([run.parent])))) == 2
    assert verify("--json") == alone and alone[0] == 1


def test_a_damaged_record_is_a_difference_and_the_others_are_verified(runs: Path, run: Path, verify: Verify) -> None:
    edit(spec(seed=1).folder(runs) / "record.json", "n_errors", 0)
    (run / "record.json").write_text((run / "record.json").read_text()[:99])
    code, lines = verify()
    assert code == 1
    assert [line.partition(": ")[0] for line in lines[:2]] == sorted(
        str(spec(seed=seed).folder(runs) / "record.json") for seed in (0, 1)
    )
    (said,) = (line for line in lines if line.startswith(f"{run / 'record.json'}: "))
    assert "the record: recorded nothing that can be read (not a record, the JSON is damaged (" in said
    assert lines[-1] == f"0 of 2 records verified, {N} rows; 2 differences, 0 mixtures"
    (run / "record.json").write_text("{}")
    code, lines = verify("--only", "test")
    assert code == 1 and "expected schema_version 1, got None" in "".join(lines), "it may be of that experiment"


def test_a_damaged_record_is_said_where_no_journal_is(runs: Path, run: Path, verify: Verify) -> None:
    for journal in runs.rglob("predictions.jsonl"):
        journal.unlink()
    (run / "record.json").write_text("{")
    code, lines = verify()
    assert code == 1 and lines[0].startswith(f"{run / 'record.json'}: the record: ")


def test_json_holds_the_verdict_and_the_counts(run: Path, verify: Verify) -> None:
    edit(run / "record.json", "n_errors", 0)
    code, lines = verify("--json")
    found = json.loads("\n".join(lines))
    assert (code, found["passed"], found["records"], found["verified"], found["rows"]) == (1, False, 2, 1, 2 * N)
    (difference,) = found["differences"]
    assert difference == {"record": str(run / "record.json"), "what": "n_errors", "recorded": 0, "recomputed": 4}


@pytest.mark.parametrize(
    ("file", "key", "value", "expected"),
    [
        # A score in the journal: its row is not what the answer scores, and the record's mean is not the rows'.
        (
            "predictions.jsonl",
            "scores.em",
            1.0,
            ["em of row 0: recorded 1.0, recomputed 0.0", ": em: recorded 0.375 ["],
        ),
        ("predictions.jsonl", "scores.em", 0.3, ["em of row 0: recorded 0.3", "journal: recorded 12 examples"]),
        ("predictions.jsonl", "scores.f1", "0", ["f1 of row 0: recorded 0, recomputed 0.0"]),
        ("predictions.jsonl", "scores.f1", float("nan"), ["f1 of row 0: recorded nan", "expected finite values"]),
        # An answer: every dialect that takes it for another.
        ("predictions.jsonl", "prediction", "other", [": em of row 0: recorded 0.0, recomputed 1.0", ": f1 of row 0:"]),
        ("predictions.jsonl", "scores", [1.0], ["journal: recorded 12 examples, recomputed nothing"]),
        ("predictions.jsonl", "usage.decoder_positions", "many", ["could not convert string to float"]),
        ("predictions.jsonl", "usage.decoder_positions", 70, ["decoder_positions: recorded 7.0 ["]),
        ("predictions.jsonl", "answers", ["a"], ["n_empty_golds: recorded 1, recomputed 2"]),
        # The record.
        ("record.json", "metrics.f1.low", 0.1, ["f1: recorded 0."]),
        ("record.json", "metrics.em.n", 9, [": em: recorded 0.375 ["]),
        ("record.json", "metrics.new", dict(mean=1.0, low=1.0, high=1.0, n=8, method="wilson"), ["recomputed nothing"]),
        ("record.json", "n_examples", 11, ["n_examples: recorded 11, recomputed 12"]),
        ("record.json", "n_empty_golds", 0, ["n_empty_golds: recorded 0, recomputed 1"]),
        ("record.json", "spec.passages", 5, [f"run_id: recorded {spec(seed=0).run_id}, recomputed "]),
    ],
)
def test_a_change_by_hand_is_a_line(
    run: Path, verify: Verify, file: str, key: str, value: Any, expected: list[str]
) -> None:
    edit(run / file, key, value)
    code, lines = verify()
    assert code == 1
    for text in expected:
        (_,) = [line for line in lines if text in line and line.startswith(f"{run}/record.json: ")]
    assert lines[-1].startswith("1 of 2 records verified")


def test_a_score_of_some_examples_is_recomputed_too(run: Path, verify: Verify) -> None:
    assert json.loads((run / "record.json").read_text())["metrics"]["em@4"]["n"] == 2
    edit(run / "predictions.jsonl", "scores.em@4", 0.0, line=4)
    code, lines = verify()
    assert code == 1
    assert f"{run}/record.json: em@4 of row 4: recorded 0.0, recomputed 1.0" in lines
    assert any("em@4: recorded 1.0 [" in line and "recomputed 0.5 [" in line for line in lines)


def test_rows_without_an_answer_are_averaged_as_they_stand(run: Path, verify: Verify) -> None:
    path = run / "predictions.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    kept = [{key: row[key] for key in ("run_id", "i", "error", "usage") if key in row} for row in rows]
    rows = [row if "error" in row else row | {"scores": {"log_perplexity": row["i"] / 7}} for row in kept]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    edit(run / "record.json", "metrics", summarise(rows))
    edit(run / "record.json", "n_empty_golds", 0)
    code, lines = verify()
    assert code == 0
    assert "decoder_positions, log_perplexity, passages_read" in lines[0]
    edit(path, "scores.log_perplexity", 9.0)
    assert verify()[0] == 1


def test_the_last_bit_counts(run: Path, verify: Verify) -> None:
    mean = json.loads((run / "record.json").read_text())["metrics"]["f1"]["mean"]
    edit(run / "record.json", "metrics.f1.mean", math.nextafter(mean, 1))
    code, lines = verify()
    assert code == 1
    assert f"f1: recorded {math.nextafter(mean, 1)!r} [" in lines[0] and f"recomputed {mean!r} [" in lines[0]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: data.replace(spec(seed=0).run_id.encode(), b"f" * 16), "line 1 belongs to another run"),
        (lambda data: data[:-5], "line 12 is torn: no newline at its end"),
        (lambda data: data + b'{"run_id"', "line 13 is torn"),
        (lambda data: data.replace(b'"i": 3', b'"i": 4'), "line 4: expected example 3, got 4"),
        (lambda data: data.replace(b'"usage"', b'"usages"'), "a row without 'usage'"),
        (lambda data: data[: data.index(b"\n") + 1], "n_examples: recorded 12, recomputed 1"),
        (lambda data: b"", "n_examples: recorded 12, recomputed 0"),
    ],
)
def test_a_damaged_journal_is_a_line(run: Path, verify: Verify, damage: Callable[[bytes], bytes], message: str) -> None:
    path = run / "predictions.jsonl"
    path.write_bytes(damage(path.read_bytes()))
    code, lines = verify()
    assert code == 1
    (_,) = [line for line in lines if line.startswith(f"{run}/record.json: ") and message in line]
    assert lines[-1].startswith("1 of 2 records verified")


def test_mixed_commits_are_listed_by_experiment(run: Path, runs: Path, verify: Verify) -> None:
    evaluate_into(runs, seed=2, experiment="other")
    edit(run / "record.json", "provenance.commit", "fedcba9876543210")
    code, lines = verify()
    assert code == 1
    assert "experiment test: more than one commit: 0123456789ab (1 runs), fedcba987654 (1 runs)" in lines
    assert not any("experiment other" in line for line in lines)
    assert lines[-1] == f"3 of 3 records verified, {3 * N} rows; 0 differences, 1 mixtures"
    assert verify("--only", "other")[0] == 0


def made_again(runs: Path, elsewhere: Path, seed: int, commit: str) -> Path:
    """A copy of that run with its journal, of another commit."""
    again = spec(seed=seed).folder(elsewhere)
    shutil.copytree(spec(seed=seed).folder(runs), again)
    edit(again / "record.json", "provenance.commit", commit)
    return again


def test_a_run_that_was_made_again_with_the_others_is_no_mixture(runs: Path, verify: Verify, tmp_path: Path) -> None:
    other = "fedcba9876543210"
    edit(spec(seed=1).folder(runs) / "record.json", "provenance.commit", other)
    assert verify()[0] == 1
    elsewhere = tmp_path / "again"
    again = made_again(runs, elsewhere, 0, "0" * 16)
    code, lines = verify(elsewhere)  # a third commit is none that they have in common
    assert code == 1
    mixture = "experiment test: more than one commit: 000000000000 and 0123456789ab (1 runs), fedcba987654 (1 runs)"
    assert mixture in lines
    edit(again / "record.json", "provenance.commit", other)
    code, lines = verify(elsewhere)
    assert (code, lines[-1]) == (0, f"3 of 3 records verified, {3 * N} rows; 0 differences, 0 mixtures")


def test_a_record_without_a_journal_is_held_against_the_run_made_again(
    run: Path, runs: Path, verify: Verify, tmp_path: Path
) -> None:
    again = made_again(runs, tmp_path / "again", 0, COMMIT)
    for path in runs.rglob("predictions.jsonl"):
        path.unlink()
    code, lines = verify(tmp_path / "again")
    assert (code, lines[-1]) == (0, f"2 of 3 records verified, {N} rows; 0 differences, 0 mixtures")
    assert [line for line in lines if "not verifiable, no" in line] == [
        f"{spec(seed=1).folder(runs)}/record.json: not verifiable, no predictions.jsonl beside it"
    ]
    mean = json.loads((run / "record.json").read_text())["metrics"]["f1"]["mean"]
    edit(run / "record.json", "metrics.f1.mean", math.nextafter(mean, 1))
    code, lines = verify(tmp_path / "again")
    assert code == 1
    (line,) = [line for line in lines if line.startswith(f"{run}/record.json: f1 (the same run: {again}/record.json)")]
    assert f"recorded {math.nextafter(mean, 1)!r} [" in line and f"recomputed {mean!r} [" in line
    assert lines[-1].startswith("1 of 3 records verified")


def test_a_dirty_tree_is_named_and_is_not_its_commit(run: Path, runs: Path, verify: Verify) -> None:
    edit(run / "record.json", "provenance.dirty", True)
    code, lines = verify()
    assert code == 1
    assert "experiment test: more than one commit: 0123456789ab (1 runs), 0123456789ab, dirty (1 runs)" in lines
    named = [line for line in lines if "the tree was dirty" in line]
    assert [line.partition(":")[0] for line in named] == [f"{run}/record.json"]
    edit(spec(seed=1).folder(runs) / "record.json", "provenance.dirty", True)
    code, lines = verify()
    assert code == 0
    assert sum("the tree was dirty" in line for line in lines) == 2


def test_mixed_metric_versions_are_listed(run: Path, verify: Verify) -> None:
    edit(run / "record.json", "spec.metric_version", METRIC_VERSION + 1)
    code, lines = verify()
    assert code == 1
    assert f"{run}/record.json: metric_version: recorded 2, recomputed 1" in lines
    assert "experiment test: more than one metric version: 1 (1 runs), 2 (1 runs)" in lines


def test_a_new_metric_shows_in_every_run(runs: Path, verify: Verify, monkeypatch: pytest.MonkeyPatch) -> None:
    from results import verify as module

    def stricter(prediction: str, golds: Any) -> dict[str, float]:
        return dict.fromkeys(module.DIALECTS, 0.0)

    monkeypatch.setattr(module, "score_answer", stricter)
    module._scores.cache_clear()
    try:
        code, lines = verify()
    finally:
        module._scores.cache_clear()
    assert code == 1
    assert sum(": em of row 4 and 2 more: recorded 1.0, recomputed 0.0" in line for line in lines) == 2
    assert lines[-1].startswith("0 of 2 records verified")


def test_records_without_a_journal_are_named_and_no_error_beside_others(run: Path, verify: Verify) -> None:
    (run / "predictions.jsonl").unlink()
    code, lines = verify()
    assert code == 0
    assert f"{run}/record.json: not verifiable, no predictions.jsonl beside it" in lines
    assert lines[-1].startswith(f"1 of 2 records verified, {N} rows")


def test_a_folder_without_any_journal_is_bad_input(runs: Path, verify: Verify) -> None:
    for path in runs.rglob("predictions.jsonl"):
        path.unlink()
    code, (line,) = verify()
    assert code == 2
    assert str(runs) in line
    assert "accepted records carry no journal; run the experiment into another folder" in line


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--only", "tset"], "unknown experiment 'tset' (did you mean 'test'?)"),
        (["--pages", "README.md"], "give --pages without it"),
        (["--metric", "f1"], "give --metric without it"),
        (["--out", "elsewhere"], "give --out without it"),
        (["--records", "nowhere"], "no folder nowhere"),
    ],
)
def test_bad_input_is_one_line(verify: Verify, arguments: list[str], message: str) -> None:
    code, (line,) = verify(*arguments)
    assert code == 2
    assert message in line


def test_verifying_needs_no_torch(runs: Path) -> None:
    command = (
        "import sys; from harness.cli.main import main; "
        f"code = main(['tables', '--verify', '--records', {str(runs)!r}]); "
        "sys.exit(code or 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", command], cwd=PROJECT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
