"""Conditions are what the source says of its number: all of it, and nothing more."""

from collections import Counter
from dataclasses import replace

import pytest

from harness.errors import InputError
from results.ledger.conditions import KEYS, NOT_STATED, READINGS, Cell, conditions, matched
from results.ledger.entries import REFERENCE, Entry, read_ledger


@pytest.fixture(scope="module")
def entries() -> list[Entry]:
    return read_ledger()


def of(entries: list[Entry], table: str, row: str, column: str, source_class: str = "paper") -> dict[str, object]:
    (found,) = (e for e in entries if (e.table, e.row, e.column, e.source_class) == (table, row, column, source_class))
    return dict(found.conditions)


def test_every_file_has_a_reading_and_every_condition_a_meaning(entries: list[Entry]) -> None:
    assert READINGS.keys() == {path.name for path in REFERENCE.glob("*.csv")}
    used = {key for entry in entries for key in entry.conditions}
    assert used == KEYS.keys()


def test_only_where_the_source_states_none_are_there_none(entries: list[Entry]) -> None:
    """Our comparison of texts, and the seed's settings: they are of no system, stage, data or machine that it names."""
    assert Counter(e.file for e in entries if not e.conditions) == {"discrepancies.csv": 62, "seed_claims.csv": 22}
    settings = {"Hyperparameters (Paper column)", "Other paper claims"}
    assert {e.table for e in entries if not e.conditions and e.file == "seed_claims.csv"} == settings


MAIN = {"model": "LLaMA-2-7B", "encoder": "RoBERTa-large"}
LOG = {"metric": "log-perplexity", "log": NOT_STATED}
A100 = {"model": "LLaMA-2-7B", "hardware": "1 x A100", "batch": 1, "baseline": "LLaMA"}


@pytest.mark.parametrize(
    ("cell", "expected"),
    [
        (
            ("Table 1", "REFRAG_16", "PG19 P512 (s=2048)"),
            {"system": "REFRAG", "k": 16, "context": 2048, "output": 512, "dataset": "PG19"} | MAIN | LOG,
        ),
        (
            ("Table 2", "LLaMA-32K", "Book s=8192 o=2048"),
            {"system": "LLaMA-32K", "model": NOT_STATED, "context": 8192, "output": 2048, "dataset": "Book"} | LOG,
        ),
        (
            ("Table 3", "REFRAG_8 + 80 passages", "NQ"),
            {"system": "REFRAG", "k": 8, "passages": 80, "retriever": "DRAGON+", "setting": "strong"}
            | {"dataset": "NQ", "metric": "strict EM"}
            | MAIN,
        ),
        (
            ("Table 17", "CEPED + 80 passages", "PIQA"),
            {"system": "CEPED", "model": "LLaMA-2-7B", "passages": 80, "retriever": "DRAGON+", "setting": "weak"}
            | {"dataset": "PIQA", "metric": "accuracy"},
        ),
        (
            ("Table 4", "LLaMA_FT turns>=4", "QReCC (10 passages)"),
            {"system": "LLaMA_FT", "model": "LLaMA-2-7B", "passages": 10, "retriever": "DRAGON+", "dataset": "QReCC"}
            | {"turns": 4, "metric": NOT_STATED},
        ),
        (
            ("Table 12", "REFRAG w/o reconstruction", "P128"),
            {"system": "REFRAG", "k": NOT_STATED, "context": NOT_STATED, "output": 128, "stage": "w/o reconstruction"}
            | {"dataset": "Arxiv and Book, mean", "task": "next-paragraph prediction"}
            | MAIN
            | LOG,
        ),
        (
            ("Table 13", "REFRAG_16+RL s=4096", "Arxiv P512"),
            {"system": "REFRAG", "k": 16, "policy": "RL", "rate": 8.0157, "context": 4096, "output": 512}
            | {"dataset": "Arxiv"}
            | MAIN
            | LOG,
        ),
        (
            ("Table 14", "Roberta-Base s=4096", "LLaMA-3.2-3B P1024"),
            {"system": "REFRAG", "model": "LLaMA-3.2-3B", "encoder": "Roberta-Base", "k": NOT_STATED}
            | {"context": 4096, "output": 1024, "dataset": "Arxiv"}
            | LOG,
        ),
        (("Table 8", "32 x 8", "Stage 5"), {"k": 8, "chunks": 32, "stage": 5, "metric": "count"}),
        (
            ("section 4", "REFRAG k=32 cached @16384", "TTFT acceleration vs CEPE"),
            A100 | {"system": "REFRAG", "k": 32, "boundary": "cached", "context": 16384, "metric": "TTFT"}
            | {"baseline": "CEPE"},
        ),
        (
            ("abstract", "REFRAG", "TTFT acceleration"),
            A100 | {"system": "REFRAG", "k": 32, "context": 16384, "metric": "TTFT"},
        ),
    ],
)  # fmt: skip
def test_conditions_of_the_paper(entries: list[Entry], cell: tuple[str, str, str], expected: dict[str, object]) -> None:
    assert of(entries, *cell) == expected


def test_conditions_of_a_curve(entries: list[Entry]) -> None:
    column = "TTIT acceleration vs LLaMA @ 2048 input tokens"
    found = of(entries, "Figure 8", "REFRAG (Cached) k=32", column, "paper-figure")
    assert found == A100 | {"system": "REFRAG", "k": 32, "context": 2048, "metric": "TTIT", "boundary": "cached"}


def test_the_one_not_cached_curve_has_the_k_that_the_text_gives_it_once(entries: list[Entry]) -> None:
    """It is the same in three figures of three k, so in two of them the k is not that of what was measured."""
    curve = [e for e in entries if e.file == "fig02_08_09_latency.csv" and "Not Cached" in e.row]
    assert {(e.table, e.conditions["k"]) for e in curve} == {
        ("Figure 2", 16), ("Figure 8", NOT_STATED), ("Figure 9", NOT_STATED)
    }  # fmt: skip
    values = {table: [e.value for e in curve if e.table == table] for table in ("Figure 2", "Figure 8", "Figure 9")}
    assert values["Figure 2"] == pytest.approx(values["Figure 8"], abs=2e-2)
    assert values["Figure 2"] == pytest.approx(values["Figure 9"], abs=2e-2)


def test_table_15_says_two_things_of_its_k(entries: list[Entry]) -> None:
    """Its caption says 16, and its rows of 8 and 80 passages are Table 3's of k = 8."""
    eight = {e.column: e.value for e in entries if e.table == "Table 3" and e.row == "REFRAG_8 + 8 passages"}
    fifteen = [e for e in entries if e.table == "Table 15"]
    assert all(e.value == eight[e.column] for e in fifteen if e.row == "8 passages")
    assert {e.conditions["k"] for e in fifteen} == {"16 by the caption, 8 by its numbers"}


def test_what_was_inferred_is_not_stated(entries: list[Entry]) -> None:
    for table in ("Figure 11-left", "Figure 12", "Table 11", "Table 14"):
        assert {e.conditions.get("k", NOT_STATED) for e in entries if e.table == table} <= {NOT_STATED}, table
    with_retriever = [e for e in entries if e.file == "table16_rag_5chunks.csv"]
    assert {e.conditions["setting"] for e in with_retriever} == {NOT_STATED}


def test_the_seed_states_no_model_data_size_or_machine(entries: list[Entry]) -> None:
    stated = {key for e in entries if e.source_class == "seed-claim" for key in e.conditions}
    assert not stated & {
        "model",
        "encoder",
        "passages",
        "retriever",
        "setting",
        "context",
        "output",
        "hardware",
        "batch",
    }
    assert of(entries, "Table 1", "REFRAG (k=16)", "PopQA (F1)", "seed-claim") == {
        "system": "REFRAG", "k": 16, "dataset": "PopQA", "metric": "F1"
    }  # fmt: skip


def cell(**changes: str) -> Cell:
    known = Cell(
        file="table03_rag_strong_retriever.csv",
        table="Table 3",
        row="REFRAG_8 + 8 passages",
        column="NQ",
        unit="EM %",
        source="arXiv:2509.01092v2 PDF p.9",
    )
    return replace(known, **changes)


def test_unknown_words_are_refused() -> None:
    assert conditions(cell())["k"] == 8
    with pytest.raises(InputError, match="'REFRAG-8'"):
        conditions(cell(row="REFRAG-8 + 8 passages"))
    with pytest.raises(InputError, match="'REFRAG_8, 8 passages'"):
        conditions(cell(row="REFRAG_8, 8 passages"))
    with pytest.raises(InputError, match=r"unknown file of published numbers 'table33.csv'"):
        conditions(cell(file="table33.csv"))


def test_named_groups_are_numbers_where_they_are() -> None:
    assert matched("k=8 at 3.5x in x2", (r"k=(?P<k>\d+) at (?P<rate>[\d.]+)x in (?P<part>\w+)", {"batch": 1})) == {
        "k": 8, "rate": 3.5, "part": "x2", "batch": 1
    }  # fmt: skip
    assert matched("b", (r"a(?P<k>\d)", {"part": "first"}), (r"b(?P<k>\d)?", {"part": "second"})) == {"part": "second"}
