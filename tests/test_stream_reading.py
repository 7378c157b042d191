"""Text files as documents: every format gives the same, everything bad is counted by its kind, and nothing is fatal."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from stream_text import lines, rows, write, write_text

from harness.data.stream.reading import Columns, documents
from harness.data.stream.shard_files import find_files, on_hub
from harness.data.stream.tally import KINDS, ROWS, SHARDS, Tally
from harness.errors import InputError

SUFFIXES = (".parquet", ".jsonl", ".jsonl.gz", ".jsonl.zst")


def read(path: Path | str, *, sets: tuple[str, ...] = (), columns: Columns | None = None) -> tuple[list[str], Tally]:
    tally = Tally()
    found = documents(str(path), Path(path).name, columns or Columns(), sets, tally)
    return [f"{each.set}: {each.text}" for each in found], tally


def said(rows: list[dict[str, Any]]) -> list[str]:
    return [f"{r['meta']['redpajama_set_name'].removeprefix('RedPajama').lower()}: {r['text']}" for r in rows]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_every_format_gives_the_documents_in_order(tmp_path: Path, suffix: str) -> None:
    found, tally = read(write(tmp_path / f"train{suffix}", rows(range(150))))
    assert found == said(rows(range(150)))
    assert (tally.shards, tally.rows, tally.documents, tally.other_sets) == (1, 150, 150, {})
    assert not tally.dropped


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_other_sets_are_left_out(tmp_path: Path, suffix: str) -> None:
    found, tally = read(write(tmp_path / f"train{suffix}", rows(range(30))), sets=("book",))
    assert found == said(rows(range(1, 30, 3)))
    assert (tally.rows, tally.documents, tally.other_sets) == (30, 10, {"arxiv": 10, "c4": 10})
    assert not tally.dropped


def test_a_text_without_sets_is_one_set(tmp_path: Path) -> None:
    found, tally = read(write(tmp_path / "t.jsonl", [{"body": {"t": "one"}}]), columns=Columns(text="body.t", set=None))
    assert found == ["text: one"]
    assert not tally.dropped


GOOD = lines(rows(range(1)))
BAD_LINES = {
    "not_json": [b"{\n", b"[1]\n", b"3\n", b"\n", b"[" * 100_000 + b"\n"],
    "invalid_utf8": [GOOD.replace(b"0 ", b"\xff\xfe", 1), GOOD.replace(b"0 ", b"\\ud800", 1)],
    "no_text": [
        b'{"meta": {"redpajama_set_name": "Book"}}\n',
        b'{"text": 3, "meta": {"redpajama_set_name": "Book"}}\n',
    ],
    "no_set": [
        b'{"text": "x"}\n',
        b'{"text": "x", "meta": "Book"}\n',
        b'{"text": "x", "meta": {"redpajama_set_name": ""}}\n',
    ],
    "empty": [b'{"text": " \\n\\t", "meta": {"redpajama_set_name": "Book"}}\n'],
}


@pytest.mark.parametrize("kind", BAD_LINES)
def test_bad_lines_are_counted_by_kind_and_cost_no_others(tmp_path: Path, kind: str) -> None:
    bad = BAD_LINES[kind]
    (tmp_path / "t.jsonl").write_bytes(b"".join(GOOD + line for line in bad) + GOOD)
    found, tally = read(tmp_path / "t.jsonl")
    assert found == said(rows(range(1))) * (len(bad) + 1)
    assert tally.dropped == {kind: len(bad)}
    assert tally.rows == 2 * len(bad) + 1
    assert tally.first[kind].startswith("t.jsonl, row 1")


def test_every_kind_of_bad_row_has_a_test() -> None:
    assert BAD_LINES.keys() == ROWS.keys()


def test_invalid_utf8_in_parquet_costs_its_row_alone(tmp_path: Path) -> None:
    table = pa.Table.from_pylist(rows(range(6)))
    texts = [row["text"].encode() for row in rows(range(6))]
    texts[2] = b"\xff\xfe"
    broken = pa.array(texts, pa.binary()).cast(pa.string(), safe=False)
    pq.write_table(table.set_column(table.column_names.index("text"), "text", broken), tmp_path / "t.parquet")
    found, tally = read(tmp_path / "t.parquet")
    assert found == said([row for i, row in enumerate(rows(range(6))) if i != 2])
    assert tally.dropped == {"invalid_utf8": 1}


def test_parquet_of_other_columns_is_rows_without_text(tmp_path: Path) -> None:
    found, tally = read(write(tmp_path / "t.parquet", [{"content": "x"}] * 3))
    assert (found, tally.dropped) == ([], {"no_set": 3})
    assert "columns content" in tally.first["no_set"]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_cut_file_keeps_what_came_before(tmp_path: Path, suffix: str) -> None:
    path = write(tmp_path / f"train{suffix}", rows(range(2000)))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    found, tally = read(path)
    # A parquet file has its table of contents at the end: without it nothing can be read.
    assert tally.dropped == {"shard_unreadable" if suffix == ".parquet" else "shard_truncated": 1}
    assert found == said(rows(range(len(found))))
    assert bool(found) == (suffix != ".parquet")
    assert tally.rows == tally.documents == len(found)


def test_a_row_group_that_is_broken_keeps_those_before(tmp_path: Path) -> None:
    path = write(tmp_path / "t.parquet", rows(range(400)))
    data = bytearray(path.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 200] = bytes(200)
    path.write_bytes(data)
    found, tally = read(path)
    assert tally.dropped == {"shard_truncated": 1}
    assert 0 < len(found) < 400
    assert found == said(rows(range(len(found))))


@pytest.mark.parametrize("suffix", [".parquet", ".jsonl.gz", ".jsonl.zst"])
def test_a_file_of_anything_else_is_unreadable(tmp_path: Path, suffix: str) -> None:
    (tmp_path / f"t{suffix}").write_bytes(b"no such thing" * 10)
    found, tally = read(tmp_path / f"t{suffix}")
    assert (found, tally.dropped, tally.shards) == ([], {"shard_unreadable": 1}, 1)


def test_two_gzip_members_are_one_file(tmp_path: Path) -> None:
    (tmp_path / "t.jsonl.gz").write_bytes(gzip.compress(GOOD) + gzip.compress(GOOD))
    assert read(tmp_path / "t.jsonl.gz")[0] == said(rows(range(1))) * 2


def test_a_place_that_cannot_be_reached_is_no_bad_file() -> None:
    """An interrupted network must not make a corpus with holes in it."""
    tally = Tally()
    with pytest.raises(InputError, match="cannot be reached"):
        list(documents("http://127.0.0.1:9/t.jsonl", "t.jsonl", Columns(), (), tally))
    assert not tally.dropped


# --- is it too much?


def test_bad_shares_are_judged_by_files_and_by_rows() -> None:
    tally = Tally(shards=10, rows=100, documents=40)
    tally.check(0.0, 0.0)
    for kind in SHARDS:
        tally.drop(kind, "a file")
    with pytest.raises(InputError, match=r"2 bad files of 10, more than the share of 0.1 that --most-bad .* a file"):
        tally.check(0.1, 1.0)
    tally.check(0.2, 1.0)
    for number in range(21):
        tally.drop("empty", f"row {number}")
    with pytest.raises(InputError, match="21 bad rows of 100, .* most are empty, the first of them row 0"):
        tally.check(0.2, 1.0)
    for _ in range(10):
        tally.drop("too_short", "a document")
    tally.check(0.21, 0.25)
    with pytest.raises(InputError, match="10 documents too short for a window of 40, .*--most-short"):
        tally.check(0.21, 0.24)


def test_tallies_add_up_and_come_back_from_json() -> None:
    one, two = Tally(shards=1, rows=5, documents=3), Tally(shards=2, rows=7, documents=6)
    two.leave("c4")
    one.drop("empty", "first")
    two.drop("empty", "second")
    two.drop("not_json", "third")
    one.add(Tally.of_json(two.to_json()))
    assert (one.shards, one.rows, one.documents, one.other_sets) == (3, 12, 9, {"c4": 1})
    assert one.dropped == {"empty": 2, "not_json": 1}
    assert one.first == {"empty": "first", "not_json": "third"}
    assert Tally.of_json(one.to_json()) == one
    assert list(one.to_json()["dropped"]) == [kind for kind in KINDS if kind in one.dropped]


# --- which files?


def test_a_split_is_the_files_or_folders_of_its_name(tmp_path: Path) -> None:
    folder = write_text(tmp_path / "text")
    names = [f"train-{i:02d}{suffix}" for i, suffix in enumerate(SUFFIXES)]
    assert [file.label for file in find_files(str(folder), "train").files] == names
    assert [file.label for file in find_files(str(folder), "validation").files] == ["validation/0.jsonl"]
    everything = find_files(str(folder), "all")
    assert [file.label for file in everything.files] == [*names, "validation/0.jsonl"]
    assert [file.size for file in everything.files] == [Path(file.path).stat().st_size for file in everything.files]
    (alone,) = find_files(str(folder / names[1]), "train").files
    assert alone.label == names[1]


def test_what_is_no_text_is_told_in_one_line(tmp_path: Path) -> None:
    folder = write_text(tmp_path / "text")
    with pytest.raises(InputError, match=r"files .*\.jsonl.zst of split 'test'; found train-00.parquet, .*--split all"):
        find_files(str(folder), "test")
    (tmp_path / "t.csv").write_text("")
    with pytest.raises(InputError, match=r"expected a file .parquet, .*, got .*t.csv"):
        find_files(str(tmp_path / "t.csv"), "train")
    with pytest.raises(InputError, match=r"no text 'some/where'.*--allow-download"):
        find_files("some/where", "train")


def test_a_hub_id_is_the_files_that_datasets_finds(tmp_path: Path) -> None:
    """``datasets`` takes a folder as it takes a Hub id: the same files by the same rules."""
    folder = tmp_path / "owner"
    write(folder / "data" / "train-00000-of-00002.parquet", rows(range(5)))
    write(folder / "data" / "train-00001-of-00002.parquet", rows(range(5, 9)))
    write(folder / "data" / "validation-00000-of-00001.parquet", rows(range(100, 103)))
    found = on_hub(str(folder), "train")
    assert [Path(file.path).name for file in found.files] == [f"train-0000{i}-of-00002.parquet" for i in range(2)]
    assert [file.size for file in found.files] == [Path(file.path).stat().st_size for file in found.files]
    assert found.revision
    assert [text for file in found.files for text in read(file.path)[0]] == said(rows(range(9)))
    with pytest.raises(InputError, match="valid choices: train, validation"):
        on_hub(str(folder), "test")
