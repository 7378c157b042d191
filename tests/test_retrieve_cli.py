"""The two verbs end to end, on the synthetic world."""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from tiny_encoder import write_tiny_encoder

from harness.cli import index, retrieve
from harness.errors import InputError
from harness.retrieval import open_index
from harness.retrieval.frozen import read_frozen


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REFRAG_CACHE", str(tmp_path / "cache"))


def call(verb: Any, *arguments: object) -> int:
    parser = argparse.ArgumentParser()
    verb.add_arguments(parser)
    code: int = verb.run(parser.parse_args([str(argument) for argument in arguments]))
    return code


def test_index_says_what_it_did_and_does_it_once(
    world_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ("--data", world_root, "--retriever", "bm25", "--work", tmp_path)
    assert call(index, *arguments) == 0
    first = capsys.readouterr().out
    assert call(index, *arguments) == 0
    assert first.startswith("indexed: 120 passages, bm25, ")
    assert capsys.readouterr().out == f"already {first}"
    folder = Path(first.strip().split(", ")[-1])
    assert len(open_index(folder).search(["who"], 3)[0]) == 3


@pytest.mark.parametrize("retriever", ["bm25", "faiss", "qdrant"])
def test_retrieve_prints_one_json_document_and_freezes_what_it_says(
    world_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], retriever: str
) -> None:
    encoder = write_tiny_encoder(tmp_path / "encoder")
    code = call(
        retrieve, "--suite", "nq", "--retriever", retriever, "--data", world_root, "--work", tmp_path, "--json",
        "--limit", 10, "--encoder", encoder,
    )  # fmt: skip
    found = json.loads(capsys.readouterr().out)
    assert code == 0
    manifest, passages = read_frozen(Path(found["frozen"]))
    assert (found["n"], found["k"], found["retriever"], found["root"]) == (10, 20, retriever, "world-0")
    assert found["digest"] == manifest.digest
    assert {len(listed) for listed in passages.values()} == {20}
    assert 0 <= found["hit@1"] <= found["hit@5"] <= found["hit@20"] <= 1


def test_bm25_answers_the_world(world_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every question names a person and every passage is about one: the right passage shares the most rare words."""
    call(retrieve, "--suite", "nq", "--retriever", "bm25", "--data", world_root, "--work", tmp_path, "--json")
    found = json.loads(capsys.readouterr().out)
    assert found["hit@5"] > 0.9
    assert found["new"]
    assert (found["recall@1"], found["recall_n"], found["gold_unmatched"]) == (found["hit@1"], found["n"], 0)


def test_text_output_is_in_percent_and_says_when_nothing_was_done(
    world_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ("--suite", "popqa", "--retriever", "bm25", "--data", world_root, "--work", tmp_path, "--k", 5)
    call(retrieve, *arguments)
    first = capsys.readouterr().out
    call(retrieve, *arguments)
    assert "popqa (world-0): bm25, strong, k=5, n=30\n" in first
    assert "hit@20 -\nrecall@1 " in first
    assert "\nfrozen: " in first
    assert capsys.readouterr().out == first.replace("\nfrozen: ", "\nalready frozen: ")


def test_gold_of_other_questions_is_counted_over_the_whole_suite(
    world_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = Path(shutil.copytree(world_root, tmp_path / "root"))
    gold = root / "qrels" / "nq.gold.tsv"
    lines = gold.read_text().splitlines()
    gold.write_text("\n".join([*lines, "else_1\t0\tp1\t1", "else_1\t0\tp2\t1", "else_2\t0\tp1\t0"]) + "\n")
    said = "; 2 question ids of qrels/nq.gold.tsv match none of the whole suite"
    for limit, n in ((30, 30), (4, 4)):
        where = ("--suite", "nq", "--retriever", "bm25", "--data", root, "--work", tmp_path, "--limit", limit)
        call(retrieve, *where)
        assert f"  over {n} questions with gold passages{said}\n" in capsys.readouterr().out
        call(retrieve, *where, "--json")
        found = json.loads(capsys.readouterr().out)
        assert (found["recall_n"], found["gold_unmatched"]) == (n, 2)


def test_documents_are_cut_before_they_are_indexed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    encoder = write_tiny_encoder(tmp_path / "encoder")
    (tmp_path / "books.jsonl").write_text(json.dumps({"text": "the cat sleeps. " * 40}) + "\n")
    arguments = (
        "--corpus",
        tmp_path / "books.jsonl",
        "--retriever",
        "bm25",
        "--work",
        tmp_path,
        "--tokenizer",
        encoder,
    )
    call(index, *arguments, "--documents", 16)
    assert capsys.readouterr().out.startswith("indexed: 10 passages, bm25, ")
    call(index, *arguments, "--documents")
    assert capsys.readouterr().out.startswith("indexed: 1 passages, bm25, "), "160 tokens fit one passage of 256"


def test_bad_input_is_an_input_error(world_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    common = ("--data", world_root, "--work", tmp_path)
    with pytest.raises(InputError, match="unknown suite 'nqq'"):
        call(retrieve, *common, "--suite", "nqq", "--retriever", "bm25")
    with pytest.raises(InputError, match="unknown retriever 'bm26'"):
        call(retrieve, *common, "--suite", "nq", "--retriever", "bm26")
    with pytest.raises(InputError, match="unknown retrieval setting 'middling'"):
        call(retrieve, *common, "--suite", "nq", "--retriever", "bm25", "--setting", "middling")
    with pytest.raises(InputError, match="weak with k=20 needs a corpus of at least 200 passages, got 120"):
        call(retrieve, *common, "--suite", "nq", "--retriever", "bm25", "--setting", "weak")
    monkeypatch.delenv("REFRAG_DATA", raising=False)
    with pytest.raises(InputError, match="the data root 'hub' has no corpus/; give one with --corpus"):
        call(index, "--retriever", "bm25", "--work", tmp_path)
