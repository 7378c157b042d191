"""PopQA by popularity: every question in one bin, each bin with Wilson's interval, nothing guessed."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from harness import statistics
from harness.errors import InputError
from results.experiments.popularity import by_popularity, decade, popularity_grid
from results.records import Record

POPULARITY = {"a": 0, "b": 9, "c": 10, "d": 99, "e": 1000, "f": 12}


def record(folder: Path, scores: dict[str, float | None], **changes: Any) -> Record:
    """A PopQA record with its journal; a score of None is an example that raised an error."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = [
        {"run_id": "0" * 16, "i": i, "id": name}
        | ({"error": "RuntimeError"} if score is None else {"scores": {"em": score, "f1": score}})
        for i, (name, score) in enumerate(scores.items())
    ]
    (folder / "predictions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = {
        "path": folder / "record.json",
        "run_id": "0" * 16,
        "experiments": ("e",),
        "notes": (),
        "suite": "popqa",
        "root": "mirror",
        "system": "standard_rag",
        "passages": 3,
        "metric_version": 1,
        "spec": {"suite": {"name": "popqa", "revision": "r"}, "passages": 3},
        "metrics": {},
        "n_examples": len(rows),
        "n_errors": 0,
        "n_empty_golds": 0,
        "timings": {},
        "provenance": {},
    }
    return Record(**settings | changes)


@pytest.mark.parametrize(
    ("popularity", "bin_"), [(0, None), (1, 0), (9, 0), (10, 1), (999, 2), (1000, 3), (10**15, 15), (10**15 - 1, 14)]
)
def test_a_bin_is_a_power_of_ten_exactly(popularity: int, bin_: int | None) -> None:
    assert decade(popularity) == bin_


def test_every_question_is_in_one_bin(tmp_path: Path) -> None:
    made = record(tmp_path, {"a": 1, "b": 0, "c": 1, "d": 0, "e": None, "f": 1})
    bins = by_popularity(made, POPULARITY, "em")
    assert bins == {None: statistics.wilson(1, 1), 0: statistics.wilson(0, 1), 1: statistics.wilson(2, 3)}
    assert list(bins) == [None, 0, 1], "the least popular first"
    f1 = by_popularity(made, POPULARITY, "f1")
    assert f1 is not None
    assert {score.method for score in f1.values()} == {"bootstrap"}


def test_the_table_shows_bins_and_holes(tmp_path: Path) -> None:
    one = record(tmp_path / "one", {"b": 1, "c": 0})
    two = replace(record(tmp_path / "two", {"c": 1, "e": 1}), passages=5)
    left = replace(record(tmp_path / "three", {}), passages=8)
    (tmp_path / "three" / "predictions.jsonl").unlink()
    grid = popularity_grid([two, one, left], POPULARITY, "r", experiment="e", metric="em", folder=tmp_path)
    assert grid is not None
    assert grid.head == ["System", "Passages", "1 to 9", "10 to 99", "1,000 to 9,999"]
    assert grid.lines == [
        ["Standard RAG", "[3](one/record.json)", "100.0 [20.7, 100.0] (n 1)", "0.0 [0.0, 79.3] (n 1)", "no question"],
        ["Standard RAG", "[5](two/record.json)", "no question", *["100.0 [20.7, 100.0] (n 1)"] * 2],
    ]
    assert grid.notes[-1] == "Left out: 1 records without their predictions.jsonl."


def test_what_does_not_belong_together_is_refused(tmp_path: Path) -> None:
    settings: dict[str, Any] = dict(experiment="e", metric="em", folder=tmp_path)
    made = record(tmp_path, {"a": 1})
    journal = tmp_path / "predictions.jsonl"
    with pytest.raises(InputError, match="asked PopQA of revision r; the data root has s"):
        popularity_grid([made], POPULARITY, "s", **settings)
    with pytest.raises(InputError, match="line 1: the data root has no question a"):
        popularity_grid([made], {}, "r", **settings)
    with pytest.raises(InputError, match="line 1: expected a row of run 1111"):
        popularity_grid([replace(made, run_id="1" * 16)], POPULARITY, "r", **settings)
    for damage in ("{", "[]", '{"id": "a"}', '{"run_id": "0", "id": "a", "scores": {}}'):
        journal.write_text(damage + "\n")
        with pytest.raises(InputError, match="line 1: expected a row with run_id, id and em"):
            popularity_grid([made], POPULARITY, "r", **settings)
    journal.unlink()
    with pytest.raises(InputError, match=r"none of the 1 PopQA records of 'e' has its predictions\.jsonl"):
        popularity_grid([made], POPULARITY, "r", **settings)
    assert popularity_grid([replace(made, suite="nq")], POPULARITY, "r", **settings) is None
