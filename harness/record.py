"""What a run leaves behind: its spec, a journal with one row per example, and the record.

    runs/<suite>/<system>/<run_id>/spec.json          written first
    runs/<suite>/<system>/<run_id>/predictions.jsonl  append-only journal, handed over per batch
    runs/<suite>/<system>/<run_id>/record.json        written last, by rename: its presence is what "done" means
    runs/<suite>/<system>/<run_id>/.record.lock       held while a record is read and written anew; empty

Everything that can move a number is in the spec, and ``run_id`` is its digest. The journal holds nothing that
differs between two equal runs (no times, no dates), so it can be compared byte by byte. Every row carries the
``run_id``: a journal of another spec is never read. A run that is cut off goes on where its journal ends.
"""

from __future__ import annotations

import fcntl
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from harness.config import digest, plain
from harness.errors import Busy, InputError
from harness.files import append, is_file_name, locked, write_atomically

SCHEMA_VERSION = 1
_LOCK = ".record.lock"


@dataclass(frozen=True, kw_only=True)
class SuiteSpec:
    """Which questions. ``revision`` is the Hub commit or the digest of the files they came from."""

    name: str
    dataset: str
    split: str
    limit: int | None
    root: str
    revision: str


@dataclass(frozen=True, kw_only=True)
class WindowSpec:
    """Which windows of a text. ``root`` is the prepared text, its tokenizer included; ``revision`` is its source's.

    Lengths are in tokens; ``outputs`` are what means are taken over, and ``passage`` is how the context is cut.
    """

    name: str
    dataset: str
    split: str
    limit: int | None
    root: str
    revision: str
    set: str
    context: int
    output: int
    outputs: Sequence[int]
    longest: int
    passage: int


@dataclass(frozen=True, kw_only=True)
class MadeSuiteSpec(SuiteSpec):
    """Which questions, of a suite that makes or arranges them by ``settings``.

    ``revision`` is that of what they came from, or the digest of what was made.

    A class of its own, and no more fields in ``SuiteSpec``: that would rename every run of the other suites.
    """

    settings: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class RetrievalSpec:
    """Which passages: the frozen file, by the digest of its content."""

    retriever: str
    setting: str
    digest: str


@dataclass(frozen=True, kw_only=True)
class SystemSpec:
    """Which system, with what settings, on which weights (their content hash or Hub commit)."""

    name: str
    config: Mapping[str, Any]
    checkpoint: str


@dataclass(frozen=True, kw_only=True)
class DecodeSpec:
    """Batch size, device and dtype are here because padding and kernels move the last bits of a logit."""

    max_new_tokens: int
    batch_size: int
    device: str
    dtype: str


@dataclass(frozen=True, kw_only=True)
class RunSpec:
    """One cell of a table: everything that can move its number, and nothing else."""

    suite: SuiteSpec | WindowSpec
    retrieval: RetrievalSpec | None
    passages: int
    system: SystemSpec
    decode: DecodeSpec
    seed: int
    prompt_version: int
    metric_version: int
    schema_version: int = SCHEMA_VERSION

    @property
    def run_id(self) -> str:
        """The digest of everything above."""
        return digest(self)

    def folder(self, runs: Path) -> Path:
        """Where this run lies below ``runs``. Raises ``InputError`` where a name would lead out of there."""
        for name in (self.suite.name, self.system.name):
            if not is_file_name(name):
                raise InputError(f"expected names of suite and system that a folder can have, got {name!r}")
        return runs / self.suite.name / self.system.name / self.run_id


def experiment_name(name: str) -> str:
    """``name`` if tables and figures can be named after it. Raises ``InputError`` otherwise."""
    if not re.fullmatch(r"\w[\w.-]*", name):
        raise InputError(f"expected an experiment name of letters, digits, dot, hyphen and underscore, got {name!r}")
    return name


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """The result of a run.

    ``experiments`` are the tables that it belongs to and ``notes`` what their readers must know; neither is part of
    the run's identity.
    """

    run_id: str
    experiments: Sequence[str]
    notes: Sequence[str]
    spec: Mapping[str, Any]
    metrics: Mapping[str, Any]
    n_examples: int
    n_errors: int
    n_empty_golds: int
    timings: Mapping[str, Any]
    provenance: Mapping[str, Any]
    schema_version: int = SCHEMA_VERSION

    @classmethod
    def read(cls, folder: Path) -> Self:
        """The record in ``folder``. Raises ``InputError`` where it is of another schema."""
        path = folder / "record.json"
        try:
            document = json.loads(path.read_text(encoding="utf-8"))
            version = document["schema_version"]
            record = cls(**document)
        except (ValueError, TypeError, KeyError, IsADirectoryError) as error:
            raise InputError(f"{path} is damaged; move its folder away to run again") from error
        if version != SCHEMA_VERSION:
            raise InputError(f"{path}: expected schema_version {SCHEMA_VERSION}, got {version!r}")
        return record

    def write(self, folder: Path) -> None:
        """Put ``record.json`` into ``folder``, whole or not at all."""
        write_atomically(folder / "record.json", json.dumps(plain(self), indent=1, ensure_ascii=False) + "\n")


def join(folder: Path, experiments: Sequence[str]) -> RunRecord:
    """The finished run in ``folder``, as a member of ``experiments`` too.

    Of several processes that do so at once every one has its way. Nothing is written where nothing is new.
    """
    record = RunRecord.read(folder)
    if set(experiments) <= set(record.experiments):
        return record
    with locked(folder / _LOCK):
        record = _member(RunRecord.read(folder), experiments)
        record.write(folder)
    return record


def publish(record: RunRecord, folder: Path) -> RunRecord:
    """Write the record of a run that has just ended, and return it as written.

    Where another process has published the same run since, the new record has the experiments of both. Other notes
    mean another measurement (a race notes what it was against), which is replaced.
    """
    with locked(folder / _LOCK):
        if (folder / "record.json").exists() and list((there := RunRecord.read(folder)).notes) == list(record.notes):
            record = _member(replace(record, experiments=there.experiments), record.experiments)
        record.write(folder)
    return record


def _member(record: RunRecord, experiments: Sequence[str]) -> RunRecord:
    """``record`` with ``experiments`` behind its own, each once."""
    return replace(record, experiments=list(dict.fromkeys([*record.experiments, *experiments])))


def read_rows(path: Path, run_id: str) -> list[dict[str, Any]]:
    """The rows of the finished journal ``path``, which stays as it is: unlike ``Journal``, a torn line is an error too.

    Raises ``InputError`` that names the line.
    """
    data = path.read_bytes()
    rows = _parse(path, run_id, data)
    if data and not data.endswith(b"\n"):
        raise InputError(f"{path} line {len(rows) + 1} is torn: no newline at its end")
    return rows


def _parse(path: Path, run_id: str, data: bytes) -> list[dict[str, Any]]:
    """The rows of a journal up to its last newline."""
    rows = []
    for number, line in enumerate(data[: data.rfind(b"\n") + 1].splitlines()):
        where = f"{path} line {number + 1}"
        try:
            row: dict[str, Any] = json.loads(line.decode())
        except ValueError as error:
            raise InputError(
                f"{where} is corrupt (expected one JSON object); move the folder away to run again from the start"
            ) from error
        if not isinstance(row, dict) or row.get("run_id") != run_id:
            raise InputError(f"{where} belongs to another run; expected run_id {run_id}")
        if row.get("i") != number:
            raise InputError(f"{where}: expected example {number}, got {row.get('i')}: rows were lost or doubled")
        rows.append(row)
    return rows


@dataclass
class Journal:
    """The rows of one run, in order, on disk.

    Opening it reads what is there. A last line without its newline is what a killed writer leaves: it is cut off.
    Any other line that cannot be read, is out of order or belongs to another run is an ``InputError`` that names
    it: nothing is skipped in silence.
    """

    path: Path
    run_id: str
    rows: list[dict[str, Any]] = field(default_factory=list)

    def __enter__(self) -> Self:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self.path.open("a+b", buffering=0)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self._file.close()
            raise Busy(f"{self.path} is being written by another process") from error
        self._file.seek(0)
        data = self._file.read()
        whole = data.rfind(b"\n") + 1
        self.rows = _parse(self.path, self.run_id, data)
        if whole < len(data):
            self._file.truncate(whole)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def append(self, rows: list[dict[str, Any]]) -> None:
        """Add the rows of one batch and hand them to the operating system.

        A write that fails half-way (a full disk) leaves a torn line, which the next start cuts off. No rows, no line.
        """
        if not rows:
            return
        lines = []
        for row in rows:
            row = {"run_id": self.run_id, "i": len(self.rows), **row}
            self.rows.append(row)
            lines.append(json.dumps(row, ensure_ascii=False))
        append(self._file, ("\n".join(lines) + "\n").encode())
