"""The ledger keeps every published number, and keeps apart who said it."""

import csv
from collections import Counter
from pathlib import Path

import pytest
from conftest import shared_path

from harness.errors import InputError
from results.ledger import entries as ledger
from results.ledger.entries import REFERENCE, SOURCE_CLASSES, Entry, read_ledger

HEADER = "table,row/method,column/metric,value,unit,source\n"


@pytest.fixture(scope="module")
def entries() -> list[Entry]:
    return read_ledger()


def raw_rows(path: Path) -> list[list[str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.reader(file))[1:]


def test_every_data_row_of_every_file_is_an_entry_and_none_is_lost(entries: list[Entry]) -> None:
    read = [[e.file, e.table, e.row, e.column, e.printed, e.unit, e.source] for e in entries if e.column != "verdict"]
    files = sorted(REFERENCE.glob("*.csv"))
    numbers = [[path.name, *row] for path in files if path.name != "discrepancies.csv" for row in raw_rows(path)]
    assert read == numbers

    verdicts = [e for e in entries if e.column == "verdict"]
    compared = raw_rows(REFERENCE / "discrepancies.csv")
    assert len(verdicts) == len(compared)
    for entry, (item, seed, paper, verdict, where) in zip(verdicts, compared, strict=True):
        assert (entry.row, entry.value) == (item, verdict)
        assert all(text in entry.source for text in (seed, paper, where))

    assert len(entries) == len(numbers) + len(compared) == 2829


def test_reference_files_are_those_of_the_external_data() -> None:
    theirs = {path.name: path.read_bytes() for path in shared_path("reference").glob("*.csv")}
    assert {path.name: path.read_bytes() for path in REFERENCE.glob("*.csv")} == theirs


def test_the_seed_is_never_the_paper(entries: list[Entry]) -> None:
    claims = ledger.filter(entries, source_class="seed-claim")
    assert {e.file for e in claims} == {"seed_claims.csv"}
    assert {e.source_class for e in entries if e.file == "seed_claims.csv"} == {"seed-claim"}
    # The seed's Table 1 bears the number of a table of the paper that holds something else.
    nq = [e for e in ledger.filter(entries, table="Table 1", source_class="seed-claim") if e.column == "NQ (EM)"]
    assert [e.value for e in nq] == [42.1, 39.8, 41.8, 40.2]
    assert all("log-perplexity" in e.unit for e in ledger.filter(entries, table="Table 1", source_class="paper"))


def test_entries_of_each_class_are_attributed_to_who_said_them(entries: list[Entry]) -> None:
    known = {
        ("Table 3", "LLaMA_FT + 10 passages", "NQ"): (26.08, "paper", "9"),
        ("Figure 2", "REFRAG (Cached) k=16", "TTFT acceleration vs LLaMA @ 2048 input tokens"): (
            3.741,
            "paper-figure",
            "3",
        ),
        ("Table 2", "REFRAG (k=16)", "Memory"): (8.6, "seed-claim", ""),
        ("CEPE", "CEPED", "KL coefficient"): (2.0, "cepe-repo", ""),
        ("CEPE", "open-domain QA", "CEPE NQ, 60 passages"): (34.07, "third-party", ""),
        ("CEPE", "encoder", "parameters"): (435.4, "derived", ""),
    }
    found = {(e.table, e.row, e.column): (e.value, e.source_class, e.page) for e in entries}
    assert {key: found[key] for key in known} == known
    assert Counter(e.source_class for e in entries).keys() == SOURCE_CLASSES.keys()


def test_values_are_numbers_where_they_are_and_text_where_not(entries: list[Entry]) -> None:
    texts = Counter(e.value for e in entries if isinstance(e.value, str))
    assert texts["OOM"] == 24
    assert {"256-500", "<2.0", "45.2 (diverged)", "50:50", "4*d*l*b*(s+o)"} <= texts.keys()
    for entry in entries:
        if isinstance(entry.value, float):
            assert entry.value == float(entry.printed)
        else:
            assert entry.value == entry.printed
            with pytest.raises(ValueError, match="could not convert"):
                float(entry.printed)


def test_printed_keeps_the_rounding_that_a_float_forgets(entries: list[Entry]) -> None:
    (entry,) = (e for e in entries if (e.table, e.row, e.column) == ("Table 15", "0 passages", "FEVER"))
    assert (entry.value, entry.printed) == (65.8, "65.80")


def test_filter_splits_the_ledger_without_rest(entries: list[Entry]) -> None:
    by_class = [ledger.filter(entries, source_class=name) for name in SOURCE_CLASSES]
    by_table = [ledger.filter(entries, table=name) for name in {e.table for e in entries}]
    assert sum(map(len, by_class)) == sum(map(len, by_table)) == len(entries) == len(ledger.filter(entries))
    assert all(by_class)


def test_filter_names_the_valid_choices(entries: list[Entry]) -> None:
    with pytest.raises(InputError, match=r"unknown source class 'papers' \(did you mean 'paper'\?\).*seed-claim"):
        ledger.filter(entries, source_class="papers")
    with pytest.raises(InputError, match=r"unknown table 'Table 33' \(did you mean 'Table 3'\?\)"):
        ledger.filter(entries, table="Table 33")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (HEADER + "T,r,c,1,x,my notebook\n", "'my notebook' belongs to no source class"),
        (HEADER + "T,r,c,1,seed\n", "line 2: expected 6 cells, got 5"),
        ("table,row,value\nT,r,1\n", "expected the columns table,row/method"),
        ("", "expected the columns table,row/method"),
    ],
)
def test_a_number_of_unknown_origin_is_refused(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "odd.csv").write_text(content)
    with pytest.raises(InputError, match=message) as caught:
        read_ledger(tmp_path)
    assert "odd.csv" in str(caught.value)


def test_an_empty_ledger_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no CSV file"):
        read_ledger(tmp_path)
