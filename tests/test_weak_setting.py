"""The weak retriever of the paper's Tables 17 and 18, from retrieval to tables, at 0 to 100 passages."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from harness.cli.main import main
from harness.data.sources import DataRoot, load_questions
from harness.data.world.mirror import WorldConfig, write_world
from harness.record import RunRecord
from harness.retrieval.frozen import Setting, read_frozen
from results.experiments.accuracy import build_table
from results.experiments.popularity import by_popularity
from results.records import read_records
from slurm.jobs.data import RetrieveJob
from slurm.jobs.evaluate import EvaluateJob

CELLS = (("strong", 0), ("strong", 4), ("weak", 4), ("weak", 100))
N = 6


@dataclass(frozen=True)
class Evaluated:
    world: Path
    runs: Path
    frozen: dict[str, Path]
    records: dict[tuple[str, int], RunRecord]
    said: dict[tuple[str, int], str]


@pytest.fixture(scope="module")
def evaluated(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Evaluated:
    """PopQA of a world with more people than the 200 that weak draws from; the decoder is untrained."""
    folder = tmp_path_factory.mktemp("weak")
    world = write_world(WorldConfig(people=220, questions=12, documents=2), folder / "world")
    frozen: dict[str, Path] = {}
    for name in ("strong", "weak"):
        setting = Setting(name=name, k=100, seed=1)
        job = RetrieveJob(suite="popqa", retriever="bm25", data=world, runs=folder / "work", setting=setting)
        assert job.title == f"retrieve popqa with bm25, {name}"
        frozen[name] = job.run().path
    made = Evaluated(world=world, runs=folder / "runs", frozen=frozen, records={}, said={})
    for name, passages in CELLS:
        cell = EvaluateJob(
            system="standard_rag",
            suite="popqa",
            checkpoint=str(tiny_checkpoint),
            passages=passages,
            retrieval=frozen[name] if passages else None,
            data=world,
            options={"max_positions": 4096},
            runs=made.runs,
            limit=N,
            max_new_tokens=1,
            experiment="settings",
        )
        made.records[name, passages] = cell.run()
        made.said[name, passages] = cell.said(made.records[name, passages])
    return made


def test_every_passage_is_read_and_every_cell_says_where_it_came_from(evaluated: Evaluated) -> None:
    for (name, passages), record in evaluated.records.items():
        assert record.metrics["passages_read"]["mean"] == passages
        assert (f"bm25, {name}" in evaluated.said[name, passages]) == (passages > 0)


def test_weak_reads_other_passages_in_no_order_and_fewer_are_the_first_of_more(evaluated: Evaluated) -> None:
    strong, weak = (read_frozen(evaluated.frozen[name])[1] for name in ("strong", "weak"))
    for name, passages in weak.items():
        assert len(set(passages)) == 100
        assert set(passages) != set(strong[name])
        best = [strong[name].index(passage) for passage in passages if passage in strong[name]]
        assert best != sorted(best), "the order of the draw, not the ranking's"


def test_tables_name_the_setting(evaluated: Evaluated) -> None:
    table = build_table(read_records([evaluated.runs]), experiment="settings")
    assert [(row.name, row.passages) for row in table.rows] == [
        ("Standard RAG", 0),
        ("Standard RAG (retrieval.setting=strong)", 4),
        ("Standard RAG (retrieval.setting=weak)", 4),
        ("Standard RAG (retrieval.setting=weak)", 100),
    ]
    (note,) = [note for note in table.notes if note.startswith("Retrieval: ")]
    assert "bm25, strong" in note
    assert "bm25, weak" in note


def test_bins_of_popularity_add_up_to_the_record(
    evaluated: Evaluated, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    questions, _ = load_questions("popqa", DataRoot.open(evaluated.world))
    popularity = {question.id: question.meta["s_pop"] for question in questions}
    for record in read_records([evaluated.runs]):
        bins = by_popularity(record, popularity, "sub_em")
        assert bins is not None
        assert sum(score.n for score in bins.values()) == N
        total = sum(score.mean * score.n for score in bins.values())
        assert total / N == pytest.approx(record.metrics["sub_em"].mean)
    arguments = ["tables", "--records", str(evaluated.runs), "--out", str(tmp_path), "--only", "settings"]
    assert main([*arguments, "--popularity", str(evaluated.world)]) == 0
    text = (tmp_path / "tables" / "settings-popularity.md").read_text()
    assert text.count("| Standard RAG") == len(CELLS)
    assert capsys.readouterr().out.endswith(text), "and on standard output, as every table"
