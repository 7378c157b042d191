"""Any two runs compared: the figures are the references', and those of an experiment's own comparison of the two."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats
import torch
from fakes import ListSuite, spec
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests

from harness.cli.main import main
from harness.record import Journal, RunRecord, RunSpec, SystemSpec
from results.comparing import compare
from slurm.jobs.compare import CompareJob, Way
from slurm.jobs.evaluate import Cell

N = 80
RNG = np.random.default_rng(5)
FIRST = [float(RNG.random() < 0.7) for _ in range(N)]
SECOND = [float(RNG.random() < (0.9 if em else 0.1)) for em in FIRST]
THIRD = [float(RNG.random() < 0.5) for _ in range(N)]
PART = [float(RNG.integers(0, 5)) / 8 for _ in range(N)]  # F1 of who is not right


def of(name: str, **changes: Any) -> RunSpec:
    return spec(passages=8, system=SystemSpec(name=name, config={}, checkpoint=f"weights of {name}"), **changes)


def rows_of(em: Sequence[float]) -> list[dict[str, Any]]:
    return [
        {"id": f"q{i}", "question": f"who is {i}?", "answers": [f"gold {i}"]}
        | {"prediction": f"gold {i}" if right else f"wrong {i}", "usage": {"decoder_positions": 9}}
        | {"scores": {"em": right, "f1": 1.0 if right else part}}
        for i, (right, part) in enumerate(zip(em, PART, strict=True))
    ]


def finished(runs: Path, of_run: RunSpec, rows: list[dict[str, Any]]) -> Path:
    """The folder of a run with this journal."""
    folder = of_run.folder(runs)
    with Journal(folder / "predictions.jsonl", of_run.run_id) as journal:
        journal.append(rows)
    record = RunRecord(
        run_id=of_run.run_id,
        experiments=["adhoc"],
        notes=[],
        spec=json.loads(json.dumps(of_run, default=vars)),
        metrics={},
        n_examples=len(rows),
        n_errors=0,
        n_empty_golds=0,
        timings={},
        provenance={},
    )
    record.write(folder)
    return folder


@pytest.fixture
def three(tmp_path: Path) -> list[Path]:
    every = (("first", FIRST), ("second", SECOND), ("third", THIRD))
    return [finished(tmp_path / "runs", of(name), rows_of(em)) for name, em in every]


def found(folders: Sequence[Path], capsys: pytest.CaptureFixture[str], *more: str) -> dict[str, Any]:
    capsys.readouterr()
    assert main(["compare", *map(str, folders), "--json", *more]) == 0
    document: dict[str, Any] = json.loads(capsys.readouterr().out)
    return document


def f1_of(em: Sequence[float]) -> np.ndarray[Any, Any]:
    return np.array([row["scores"]["f1"] for row in rows_of(em)])


def test_tests_are_those_of_the_references(three: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    tests = found(three, capsys)["tests"]
    assert [(one["figure"], one["run"]) for one in tests] == [
        (figure, folder.name) for folder in three[1:] for figure in ("em", "f1")
    ]
    for em, (exact, resampled) in zip((SECOND, THIRD), (tests[:2], tests[2:]), strict=True):
        flips = [sum((one, other) == pair for one, other in zip(em, FIRST, strict=True)) for pair in ((1, 0), (0, 1))]
        assert min(flips) > 2
        assert (exact["a_higher"], exact["b_higher"]) == tuple(flips)
        assert exact["p_value"] == pytest.approx(mcnemar([[0, flips[0]], [flips[1], 0]], exact=True).pvalue)
        assert exact["method"] == "mcnemar"
        assert exact["difference"] == pytest.approx((flips[0] - flips[1]) / N)
        assert exact["means"] == pytest.approx([np.mean(FIRST), np.mean(em)])
        differences = f1_of(em) - f1_of(FIRST)
        reference = scipy.stats.bootstrap(
            (differences,), np.mean, n_resamples=10_000, method="percentile", rng=np.random.default_rng(0)
        )
        interval = reference.confidence_interval
        assert (resampled["low"], resampled["high"]) == pytest.approx((interval.low, interval.high))
        assert resampled["difference"] == pytest.approx(differences.mean())
        tail = min((reference.bootstrap_distribution <= 0).sum(), (reference.bootstrap_distribution >= 0).sum())
        assert resampled["p_value"] == pytest.approx(min(1, 2 * (tail + 1) / 10_001))
        assert exact["n"] == resampled["n"] == N
    assert [one["p_holm"] for one in tests] == pytest.approx(
        multipletests([one["p_value"] for one in tests], method="holm")[1]
    )
    assert any(one["p_holm"] > one["p_value"] for one in tests)


@dataclass
class FakeCell:
    """What ``CompareJob`` takes of an ``EvaluateJob``."""

    spec: RunSpec
    runs: Path

    def open(self) -> Cell:
        cpu = torch.device("cpu")
        return Cell(spec=self.spec, suite=ListSuite([]), system=None, config=None, decoder=None, notes=(), device=cpu)


def test_figures_are_those_of_the_experiments_own_comparison(
    three: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = (Way(name=name, cells=[FakeCell(of(name), tmp_path / "runs")]) for name in ("first", "second"))  # type: ignore[list-item]
    job = CompareJob(
        name="c", contrasts=[(second, first)], figures=("em", "f1"), runs=tmp_path / "runs", out=tmp_path / "out"
    )
    (em, f1), theirs = found(three[:2], capsys)["tests"], job.run()
    their_em, their_f1 = theirs["tests"]
    for key in ("difference", "n", "a_higher", "b_higher"):  # of EM theirs is a bootstrap, as where there are seeds
        assert em[key] == pytest.approx(their_em[key])
    for key in ("difference", "low", "high", "p_value", "n", "a_higher", "b_higher", "detectable", "method"):
        assert f1[key] == their_f1[key]
    for one in (em, f1):
        assert one["means"] == [theirs["means"][name][one["figure"]][0] for name in ("first", "second")]


def test_who_alone_was_right_is_counted_and_listed(three: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    flipped = [i for i in range(N) if FIRST[i] != SECOND[i]]
    assert main(["compare", *map(str, three[:2]), "--flips", "3"]) == 0
    said = capsys.readouterr().out
    lost = sum(FIRST[i] for i in flipped)
    assert f"right in [1] alone: {lost:.0f}; in [2] alone: {len(flipped) - lost:.0f}" in said
    listed = [line for line in said.splitlines() if "who is" in line]
    assert listed == [f"  q{i}  who is {i}?" for i in flipped[:3]]
    i = flipped[0]
    right, wrong = f"gold {i}", f"wrong {i}"
    one, other = (right, wrong) if FIRST[i] else (wrong, right)
    for line in (
        f"    gold {right!r}",
        f"    [1]  {one!r}: {100 * FIRST[i]:.1f}",
        f"    [2]  {other!r}: {100 * SECOND[i]:.1f}",
    ):
        assert line in said.splitlines()
    assert main(["compare", *map(str, three[:2])]) == 0
    assert "who is" not in capsys.readouterr().out
    (em, _) = found(three[:2], capsys, "--flips", "1000")["tests"]
    assert [flip["id"] for flip in em["flips"]] == [f"q{i}" for i in flipped]


def test_what_differs_between_the_systems_is_said(three: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", *map(str, three[:2])]) == 0
    said = capsys.readouterr().out
    assert f"[2] second {three[1].name}: system.name first and second; " in said
    assert f"list (fake), 8 passages, {N} questions" in said


def test_a_run_may_be_named_by_its_id(
    three: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    by_folder = found(three[:2], capsys)
    monkeypatch.chdir(tmp_path)
    assert found([Path(folder.name) for folder in three[:2]], capsys) == by_folder
    assert main(["compare", three[0].name, "f" * 16]) == 2
    assert "expected a run's folder or the id of a run below runs, got 'ffffffffffffffff'" in capsys.readouterr().err


def test_summaries_are_compared_by_rouge_l(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folders = []
    for name, em in (("first", FIRST), ("second", SECOND)):
        rows = [row | {"scores": {"rougeL": row["scores"]["f1"], "rouge1": 0.5}} for row in rows_of(em)]
        folders.append(finished(tmp_path, of(name), rows))
    (test,) = found(folders, capsys)["tests"]
    assert (test["figure"], test["method"]) == ("rougeL", "paired bootstrap")
    assert test["difference"] == pytest.approx((f1_of(SECOND) - f1_of(FIRST)).mean())
    assert test["p_holm"] == test["p_value"]
    assert main(["compare", *map(str, folders)]) == 0
    assert "higher ROUGE-L in [1] alone: " in capsys.readouterr().out


OTHER = of("other")
Damage = Callable[[Path], None]


def erred(row: dict[str, Any]) -> dict[str, Any]:
    return {key: row[key] for key in ("id", "question", "answers")} | {"error": "boom"}


@pytest.mark.parametrize(
    ("of_run", "rows", "message"),
    [
        (replace(OTHER, suite=replace(OTHER.suite, revision="1")), rows_of(THIRD), "suite.revision 0 and 1"),
        (replace(OTHER, passages=2), rows_of(THIRD), "passages 8 and 2"),
        (replace(OTHER, metric_version=2), rows_of(THIRD), "metric_version 1 and 2"),
        (OTHER, rows_of(THIRD)[:-2], "2 questions of the one alone, 0 of the other"),
        (OTHER, [rows_of(THIRD)[0], erred(rows_of(THIRD)[1])], "1 examples in error, the first of them q1"),
        (OTHER, [*rows_of(THIRD), rows_of(THIRD)[3]], "1 questions twice, the first of them q3"),
        (OTHER, [row | {"scores": {"nll@4": 1.5}} for row in rows_of(THIRD)], "answers no questions"),
        (OTHER, [row | {"scores": {"em": 1.0}} for row in rows_of(THIRD)[:1]] + rows_of(THIRD)[1:], "f1 of other"),
    ],
    ids=["questions", "passages", "metric", "fewer", "errors", "twice", "perplexity", "figures"],
)
def test_what_cannot_be_compared_is_refused_by_name(
    three: list[Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    of_run: RunSpec,
    rows: list[dict[str, Any]],
    message: str,
) -> None:
    other = finished(tmp_path / "runs", of_run, rows)
    assert refused([*three, other], capsys, message).count(of_run.run_id) == 1


def refused(folders: Sequence[Path], capsys: pytest.CaptureFixture[str], message: str) -> str:
    assert main(["compare", *map(str, folders)]) == 2
    out, err = capsys.readouterr()
    assert out == "" and message in err and len(err.splitlines()) == 1, err
    return err


def test_runs_that_are_none_are_refused(three: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    refused(three[:1], capsys, "expected at least two runs to compare, got 1")
    refused([*three, three[1]], capsys, f"run {three[1].name} is given twice")
    refused([three[0], three[1].parent], capsys, f"the folder of a run is {three[1]}, say")
    (three[1] / "predictions.jsonl").unlink()
    refused(three, capsys, "accepted records have none")
    (three[2] / "record.json").unlink()
    refused([three[0], three[2]], capsys, "holds no finished run")


def test_nothing_is_written_and_torch_is_not_imported(three: list[Path], tmp_path: Path) -> None:
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    code = (
        "import sys; from harness.cli.main import main; assert main(['compare', *sys.argv[1:]]) == 0;"
        "assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code, *map(str, three)], check=True, capture_output=True)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_the_function_takes_folders_and_ids_alike(three: list[Path], tmp_path: Path) -> None:
    compared = compare([str(three[0]), three[1].name], tmp_path / "runs")
    assert [run.run_id for run in compared.runs] == [folder.name for folder in three[:2]]
