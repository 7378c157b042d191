"""One unit of work: some files of text become one shard of token windows per set, and a report of what was dropped.

A window is ``length`` tokens of one document, counted from its start: a document of n tokens gives n // length of them,
and the rest is dropped and counted. So no window crosses documents, and a shard is a plain array (windows, length).

    <out>/shards/00012-book.npy    (windows, length), uint16 or uint32: any numpy opens it, mapped or not
    <out>/shards/00012.json        the unit's report; written last, so that its presence says that the unit is done

The bytes of both depend on the files, the tokenizer and the settings alone.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from harness.config import digest, file_digest
from harness.data.stream.reading import Columns, Document, documents
from harness.data.stream.shard_files import ShardFile
from harness.data.stream.tally import SHORT, Tally
from harness.errors import InputError
from harness.files import write_atomically
from harness.prompts import text_ids

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CHARACTERS_AT_ONCE = 1 << 20
MOST_SETS = 64  # each is an open file
COUNTED = ("documents", "characters", "tokens", "windows", "rest")


@dataclass(frozen=True, kw_only=True)
class Packing:
    """What a unit's bytes depend on, beside its files and the tokenizer. Without ``sets``, all of them."""

    length: int
    dtype: str
    columns: Columns
    sets: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Unit:
    """Some files, by their number in the whole."""

    number: int
    files: tuple[ShardFile, ...]

    @property
    def name(self) -> str:
        return f"{self.number:05d}"


def pack(unit: Unit, packing: Packing, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Write the shards and the report of ``unit`` into ``folder``.

    The report has the ``files`` with their digests where they are near, the ``tally``, the ``shards`` (file, windows,
    SHA-256), and per set how many documents, characters and tokens of documents that are in, windows, and tokens of
    their rests.
    """
    tally, sets = Tally(), dict[str, Counter[str]]()
    with ExitStack() as open_shards:
        shards: dict[str, Shard] = {}
        for some in _in_batches(_of_files(unit, packing, tally)):
            for (label, document), ids in zip(some, text_ids(tokenizer, [d.text for _, d in some]), strict=True):
                n = len(ids) // packing.length
                if not n:
                    tally.drop(SHORT, f"{label}: {len(ids):,} of {packing.length:,} tokens")
                    continue
                if document.set not in shards:
                    if len(shards) == MOST_SETS:
                        raise InputError(f"{label}: more than {MOST_SETS} sets; is {packing.columns.set} their names?")
                    path = folder / f"{unit.name}-{_as_file_name(document.set)}.npy"
                    shards[document.set] = open_shards.enter_context(Shard(path, packing.length, packing.dtype))
                windows = np.array(ids[: n * packing.length], dtype=packing.dtype).reshape(n, packing.length)
                shards[document.set].write(windows)
                values = 1, len(document.text), len(ids), n, len(ids) % packing.length
                sets.setdefault(document.set, Counter()).update(dict(zip(COUNTED, values, strict=True)))
    report = {
        "files": [_file_report(file) for file in unit.files],
        "tally": tally.to_json(),
        "shards": {name: shards[name].report() for name in sorted(shards)},
        "sets": {name: {key: counts[key] for key in COUNTED} for name, counts in sorted(sets.items())},
    }
    write_atomically(folder / f"{unit.name}.json", json.dumps(report, indent=1, ensure_ascii=False) + "\n")


def finished(unit: Unit, folder: Path) -> dict[str, Any] | None:
    """The report of a unit that is done, its shards in place and of full size; None where it is to be done."""
    try:
        report: dict[str, Any] = json.loads((folder / f"{unit.name}.json").read_text(encoding="utf-8"))
        whole = all((folder / s["file"]).stat().st_size == s["bytes"] for s in report["shards"].values())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return report if whole else None


def _of_files(unit: Unit, packing: Packing, tally: Tally) -> Iterator[tuple[str, Document]]:
    for file in unit.files:
        for document in documents(file.path, file.label, packing.columns, packing.sets, tally):
            yield file.label, document


def _in_batches(found: Iterator[tuple[str, Document]]) -> Iterator[list[tuple[str, Document]]]:
    """As many at once as make work for the tokenizer, and no more than memory is for."""
    batch, size = list[tuple[str, Document]](), 0
    for each in found:
        batch.append(each)
        size += len(each[1].text)
        if size >= CHARACTERS_AT_ONCE:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _as_file_name(name: str) -> str:
    plain = re.sub(r"[^a-z0-9_]", "-", name)
    return plain if plain == name else f"{plain[:40]}-{digest(name)}"


def _file_report(file: ShardFile) -> dict[str, Any]:
    near = "://" not in file.path
    return {"file": file.label, "bytes": file.size, "digest": file_digest(Path(file.path)) if near else None}


class Shard:
    """A .npy file that grows by rows; it takes its name when it is closed in peace, and is gone otherwise.

    numpy leaves room in the header of an array for its first axis to grow, so the number of rows is put there at the
    end, in place.
    """

    def __init__(self, path: Path, length: int, dtype: str) -> None:
        self.path, self.length, self.dtype = path, length, dtype
        self.windows = 0
        self._partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
        self._file = self._partial.open("w+b")
        self._header()

    def _header(self) -> None:
        about = {"descr": self.dtype, "fortran_order": False, "shape": (self.windows, self.length)}
        self._file.seek(0)
        np.lib.format.write_array_header_1_0(self._file, about)

    def write(self, windows: NDArray[Any]) -> None:
        self._file.write(windows.tobytes())
        self.windows += len(windows)

    def __enter__(self) -> Shard:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                self._header()
                self._file.seek(0)
                self.sha256 = hashlib.file_digest(self._file, "sha256").hexdigest()
                os.fsync(self._file.fileno())
        finally:
            self._file.close()
            if kind is not None:
                self._partial.unlink(missing_ok=True)
        if kind is None:
            self._partial.replace(self.path)

    def report(self) -> dict[str, Any]:
        return {
            "file": self.path.name,
            "windows": self.windows,
            "bytes": self.path.stat().st_size,
            "sha256": self.sha256,
        }


def into_units(files: Sequence[ShardFile], most_bytes: int) -> list[Unit]:
    """Files in order, cut into units of at most ``most_bytes``, or of one file."""
    units, some, size = list[Unit](), list[ShardFile](), 0
    for file in files:
        if some and size + file.size > most_bytes:
            units.append(Unit(number=len(units), files=tuple(some)))
            some, size = [], 0
        some.append(file)
        size += file.size
    if some:
        units.append(Unit(number=len(units), files=tuple(some)))
    return units
