"""Documents out of one file: parquet or JSON lines (plain, gzip, zstd), near or far, whole or damaged.

Streamed: a row group or a line at a time, and no copy goes to a cache. Files are opened by fsspec and read by pyarrow,
which has both compressions. What cannot be read is counted and skipped (``tally``); rows of unwanted sets are skipped
before anything is done with their text.

``datasets`` finds the files of a Hub id (``shard_files``) but does not read them: one damaged row ends its stream.
"""

from __future__ import annotations

import io
import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import IO, Any

import fsspec
import pyarrow as pa

from harness.data.stream.tally import Tally
from harness.errors import InputError

SUFFIXES = (".parquet", ".jsonl", ".jsonl.gz", ".jsonl.zst")
COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}
ONE_SET = "text"  # what the set of a text without sets is called
ROWS_AT_ONCE = 64
READ_AT_ONCE = 1 << 16  # bytes; where a compressed file is cut, so much before the cut is lost at most
SHOWN = 80  # characters of column names in a message

Row = Mapping[str, Any] | str  # a row, or the kind of fault in its place


@dataclass(frozen=True, kw_only=True)
class Columns:
    """Where a row has its text and the name of its set; names with dots between lie inside one another.

    Without ``set`` a text has no sets, and all of it is called ``text``. The default is SlimPajama's.
    """

    text: str = "text"
    set: str | None = "meta.redpajama_set_name"


@dataclass(frozen=True, kw_only=True)
class Document:
    """A text and its set, as short as possible: ``RedPajamaBook`` is ``book``."""

    set: str
    text: str


@dataclass(frozen=True)
class OtherSet:
    """In place of a document of a set that is not wanted."""

    name: str


def short_name(name: str) -> str:
    return name.removeprefix("RedPajama").lower()


def documents(path: str, label: str, columns: Columns, sets: Collection[str], tally: Tally) -> Iterator[Document]:
    """The documents of a file in order, those of ``sets`` only (all where it is empty), by their short names.

    ``path`` may be a URL, ``label`` is what the tally calls the file. Raises ``InputError`` where a file far away
    cannot be reached: that is no fault of the data, and going on later loses nothing.
    """
    tally.shards += 1
    before = tally.rows
    try:
        for number, row in enumerate(_rows(path)):
            tally.rows += 1
            found = row if isinstance(row, str) else _document(row, columns, sets)
            if isinstance(found, Document):
                tally.documents += 1
                yield found
            elif isinstance(found, OtherSet):
                tally.leave(found.name)
            else:
                tally.drop(found, f"{label}, row {number}{_shown(row)}")
    except (OSError, ValueError, EOFError, pa.ArrowException) as error:
        if "://" in path and _is_of_the_way(error):
            raise InputError(f"{path} cannot be reached: {error}; the same command goes on from there") from error
        kind = "shard_truncated" if tally.rows > before else "shard_unreadable"
        tally.drop(kind, f"{label} after {tally.rows - before:,} rows: {' '.join(str(error).split())[:200]}")


def _is_of_the_way(error: BaseException) -> bool:
    """Is it the connection, not the file? pyarrow tells of a damaged file by a bare ``OSError``, or one of its own."""
    bare = type(error) is OSError and error.errno is None
    return isinstance(error, OSError) and not bare and not isinstance(error, pa.ArrowException)


def _rows(path: str) -> Iterator[Row]:
    with fsspec.open(path, "rb") as raw:
        yield from _parquet(raw) if path.endswith(".parquet") else _json_lines(raw, path)


def _json_lines(raw: IO[bytes], path: str) -> Iterator[Row]:
    compression = next((name for suffix, name in COMPRESSIONS.items() if path.endswith(suffix)), None)
    for line in io.BufferedReader(pa.input_stream(raw, compression=compression), READ_AT_ONCE):
        try:
            row: Any = json.loads(line.decode("utf-8"))
        except (ValueError, RecursionError) as error:
            if not line.endswith(b"\n"):
                raise EOFError("it ends within a line") from error
            yield "invalid_utf8" if isinstance(error, UnicodeDecodeError) else "not_json"
            continue
        yield row if isinstance(row, dict) else "not_json"


def _parquet(raw: IO[bytes]) -> Iterator[Row]:
    import pyarrow.parquet as pq

    for batch in pq.ParquetFile(raw).iter_batches(batch_size=ROWS_AT_ONCE, use_threads=False):
        try:
            yield from batch.to_pylist()
        except UnicodeDecodeError:  # one of them: find out which
            yield from (_parquet_row(batch.slice(i, 1)) for i in range(batch.num_rows))


def _parquet_row(batch: Any) -> Row:
    try:
        (row,) = batch.to_pylist()
    except UnicodeDecodeError:
        return "invalid_utf8"
    found: Row = row
    return found


def _document(row: Mapping[str, Any], columns: Columns, sets: Collection[str]) -> Document | OtherSet | str:
    """The document of a row, or why it is none."""
    name = ONE_SET if columns.set is None else _cell(row, columns.set)
    if not isinstance(name, str) or not name.strip():
        return "no_set"
    name = short_name(name)
    if sets and name not in sets:
        return OtherSet(name)
    text = _cell(row, columns.text)
    if not isinstance(text, str):
        return "no_text"
    try:
        text.encode()  # JSON can say half a surrogate pair, which no tokenizer takes
    except UnicodeEncodeError:
        return "invalid_utf8"
    return Document(set=name, text=text) if text.strip() else "empty"


def _cell(row: Mapping[str, Any], column: str) -> Any:
    found: Any = row
    for part in column.split("."):
        found = found.get(part) if isinstance(found, Mapping) else None
    return found


def _shown(row: Row) -> str:
    return "" if isinstance(row, str) else f", columns {', '.join(map(str, row))}"[:SHOWN]
