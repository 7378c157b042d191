"""1,000 runs of 1,000 questions: how long verifying them against their journals takes, and drawing them.

The runs are made up, in the form of real ones. Half of the answers are right; the others differ from run to run, so
that few are scored twice. Seconds of processors stand beside those of the wall: this process's and its children's, once
they have ended. No time is asserted; that all runs agree is.
"""

import itertools
import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

import pytest

from harness.config import plain
from harness.metrics import METRIC_VERSION, score_answer
from harness.record import DecodeSpec, RunRecord, RunSpec, SuiteSpec, SystemSpec
from harness.summary import columns, summarise_all
from results.experiments.accuracy import QA_SUITES, SYSTEMS
from results.replication import configurations, paper_figures
from results.replication import draw as replication
from results.verify import JOURNAL, verify

ROWS = 1_000
EXPERIMENTS, KINDS, RATES, PASSAGES = range(5), list(SYSTEMS)[:5], (8, 16), (1, 2, 4, 6, 8)
SUITES = list(QA_SUITES)[:4]
RUNS = len(EXPERIMENTS) * len(SUITES) * len(KINDS) * len(RATES) * len(PASSAGES)
AT_ONCE = 50  # runs summarised together
PROJECT = Path(__file__).resolve().parents[2]

Result = TypeVar("Result")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Records and journals as ``harness.run.evaluate`` would have written them, without a model."""
    folder, rng = tmp_path_factory.mktemp("runs"), random.Random(0)
    name = namer(rng)
    asked = {
        suite: [(f"Who founded {name()}?", [name() for _ in range(rng.choice((1, 1, 2)))]) for _ in range(ROWS)]
        for suite in SUITES
    }
    cells = itertools.product(EXPERIMENTS, SUITES, KINDS, RATES, PASSAGES)
    while some := list(itertools.islice(cells, AT_ONCE)):
        specs = [spec(*cell) for cell in some]
        figures = [write_journal(folder, each, answers(each, asked[each.suite.name], name, rng)) for each in specs]
        for (experiment, *_), each, metrics in zip(some, specs, summarise_all(figures), strict=True):
            write_record(folder, each, f"made-up-{experiment}", metrics)
    return folder


def namer(rng: random.Random) -> Callable[[], str]:
    """Names of one to three words out of 5,000."""
    syllables = [consonant + vowel for consonant in "bdfgklmnprst" for vowel in "aeiou"]
    words = ["".join(rng.choices(syllables, k=rng.choice((2, 3)))).title() for _ in range(5_000)]
    return lambda: " ".join(rng.choices(words, k=rng.choice((1, 2, 3))))


def spec(experiment: int, suite: str, system: str, k: int, passages: int) -> RunSpec:
    return RunSpec(
        suite=SuiteSpec(name=suite, dataset=suite, split="test", limit=None, root="made-up", revision="0"),
        retrieval=None,
        passages=passages,
        system=SystemSpec(name=system, config={"k": k}, checkpoint="none"),
        decode=DecodeSpec(max_new_tokens=8, batch_size=8, device="cpu", dtype="float32"),
        seed=experiment,
        prompt_version=1,
        metric_version=METRIC_VERSION,
    )


def answers(
    of: RunSpec, asked: list[tuple[str, list[str]]], name: Callable[[], str], rng: random.Random
) -> Iterable[dict[str, Any]]:
    for i, (question, golds) in enumerate(asked):
        prediction = rng.choice(golds) if rng.random() < 0.5 else name()
        yield {
            "run_id": of.run_id,
            "i": i,
            "id": str(i),
            "question": question,
            "answers": golds,
            "prediction": prediction,
            "scores": score_answer(prediction, golds) | {"chance": rng.choice((0.125, 0.25))},
            "usage": {"decoder_positions": rng.randint(200, 300), "passages_read": of.passages, "stored_bytes": 2048},
        }


def write_journal(folder: Path, of: RunSpec, rows: Iterable[dict[str, Any]]) -> dict[str, list[float]]:
    """The columns of the rows that were written."""
    written = list(rows)
    of.folder(folder).mkdir(parents=True)
    lines = [json.dumps(row, ensure_ascii=False) for row in written]
    (of.folder(folder) / JOURNAL).write_text("\n".join(lines) + "\n", encoding="utf-8")
    return columns(written)


def write_record(folder: Path, of: RunSpec, experiment: str, metrics: dict[str, Any]) -> None:
    RunRecord(
        run_id=of.run_id,
        experiments=[experiment],
        notes=[],
        spec=plain(of),
        metrics=metrics,
        n_examples=ROWS,
        n_errors=0,
        n_empty_golds=0,
        timings={},
        provenance={"commit": "0" * 40, "dirty": False},
    ).write(of.folder(folder))


def clocked(what: str, work: Callable[[], Result]) -> tuple[Result, float]:
    """What ``work`` returns, and its seconds on the wall; prints both clocks."""
    wall_s, cpu_s = time.perf_counter(), sum(os.times()[:4])
    result = work()
    wall_s, cpu_s = time.perf_counter() - wall_s, sum(os.times()[:4]) - cpu_s
    print(f"  {what:44} {wall_s:7.1f} s   ({cpu_s:.1f} s of processors)")
    return result, wall_s


def test_verifying_a_million_rows(runs: Path) -> None:
    print(f"\nverifying {RUNS:,} records of {ROWS:,} rows")
    found, wall_s = clocked("every row scored, every interval drawn again", lambda: verify([runs]))
    print(f"  {found.rows / wall_s:,.0f} rows/s")
    assert found.passed
    assert (found.verified, found.rows) == (RUNS, RUNS * ROWS)


def test_drawing_everything(runs: Path, tmp_path: Path) -> None:
    """The command itself, beside the accepted records: its start, imports, fonts and writing are inside."""
    out = tmp_path / "results"
    shutil.copytree(PROJECT / "results" / "records", out / "records")
    command = [sys.executable, "-m", "harness.cli.main", "tables", "--records", str(runs), "--out", str(out), "--json"]
    print(f"\ndrawing {RUNS:,} records")
    done, _ = clocked("all tables and figures", lambda: subprocess.run(command, capture_output=True, text=True))
    assert done.returncode == 0, done.stderr
    cells = [cell for cell in json.loads(done.stdout) if str(cell.get("experiment")).startswith("made-up-")]
    assert len(cells) == RUNS
    for folder, kinds, names in (
        ("tables", ("md", "csv", "tex"), [*configurations.TABLES, *replication.RESULTS]),
        ("figures", ("png", "svg"), [*paper_figures.FIGURES]),
    ):
        experiments = [f"made-up-{number}" for number in EXPERIMENTS]
        wanted = {f"{name}.{kind}" for name in (*names, *experiments) for kind in kinds}
        assert {path.name for path in (out / folder).iterdir()} == wanted
        print(f"  {len(wanted)} files of {folder}")
