"""Text in SlimPajama's schema, of which every document says which one it is; and windows prepared from it."""

from __future__ import annotations

import gzip
import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

SETS = ("RedPajamaArXiv", "RedPajamaBook", "RedPajamaC4")


def document(number: int, characters: int) -> str:
    rng = random.Random(number)
    return f"{number} " + "".join(rng.choices("abcdefgh ", k=characters))


def rows(numbers: Sequence[int], characters: int = 150) -> list[dict[str, Any]]:
    """Documents of ``characters`` to three times as many, the sets in turn."""
    return [
        {"text": document(i, characters * (1 + i % 3)), "meta": {"redpajama_set_name": SETS[i % len(SETS)]}}
        for i in numbers
    ]


def lines(rows: Sequence[Mapping[str, Any]]) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def write(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    """By the path's suffix: parquet in small row groups, or JSON lines, compressed or not."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(list(rows)), path, row_group_size=4, compression="zstd")
    elif path.suffix == ".gz":
        path.write_bytes(gzip.compress(lines(rows), mtime=0))
    elif path.suffix == ".zst":
        path.write_bytes(pa.compress(lines(rows), codec="zstd", asbytes=True))
    else:
        path.write_bytes(lines(rows))
    return path


def write_text(folder: Path, files: int = 4, documents: int = 9) -> Path:
    """Training files of every kind, and one of validation."""
    kinds = (".parquet", ".jsonl", ".jsonl.gz", ".jsonl.zst")
    for file in range(files):
        first = file * documents
        write(folder / f"train-{file:02d}{kinds[file % len(kinds)]}", rows(range(first, first + documents)))
    write(folder / "validation" / "0.jsonl", rows(range(10_000, 10_003)))
    return folder
