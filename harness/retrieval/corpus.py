"""What is searched: the passages of a corpus and the digest that names them.

Read from JSON lines (``{"id", "title", "text"}``), from DPR's tab-separated form (its header: ``id  text  title``), or
from a folder of such files, each plain or gzipped, in UTF-8 with or without a byte-order mark. Rows are passages as
they stand; where they are whole documents, the caller says how to cut them (``harness.retrieval.cut``).
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import json
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, TextIO, cast

from harness.config import RUN_ID_LENGTH
from harness.errors import InputError
from harness.protocol import Passage

SUFFIXES = (".jsonl", ".jsonl.gz", ".tsv", ".tsv.gz")
LONGEST_FIELD = 1 << 24  # csv's own limit of 128 KiB is shorter than a long document
ENCODING = "utf-8-sig"  # UTF-8, past the byte-order mark that some write before it
TSV_HEADER = "the tab-separated names of the columns (id, text, title, of which text is needed)"
GZIP = b"\x1f\x8b"

Records = Iterator[tuple[int, dict[str, object]]]
"""The records of a file, each with the line on which it starts, from 1."""


class RepeatedId(InputError):
    """Two passages of a corpus share an id."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Corpus:
    """Passages in file order; ``digest`` names their ids, titles and texts, not the files that held them."""

    passages: Sequence[Passage]
    digest: str

    @classmethod
    def of(cls, passages: Iterable[Passage]) -> Corpus:
        """The corpus of ``passages``. Raises ``InputError`` when there is none, ``RepeatedId`` when two share an id."""
        listed = list(passages)
        if not listed:
            raise InputError("expected at least one passage in the corpus, found none")
        seen: set[str] = set()
        sha = hashlib.sha256()
        for passage in listed:
            if passage.id in seen:
                raise RepeatedId(f"expected unique passage ids in the corpus, got {passage.id!r} twice")
            seen.add(passage.id)
            sha.update(f"{passage.id}\0{passage.title}\0{passage.text}\0".encode())
        return cls(passages=listed, digest=sha.hexdigest()[:RUN_ID_LENGTH])


def passage_text(passage: Passage) -> str:
    """What a retriever sees of a passage: title and text."""
    return f"{passage.title} {passage.text}" if passage.title else passage.text


def corpus_files(path: Path) -> list[Path]:
    """``path`` itself, or the corpus files of a folder in order of name. Raises ``InputError`` when there is none."""
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if file.name.endswith(SUFFIXES))
        if not files:
            raise InputError(f"expected a file ending in {', '.join(SUFFIXES)} in {path}, found none")
        return files
    if not path.exists():
        raise InputError(f"no corpus at {path}; expected a file ending in {', '.join(SUFFIXES)} or a folder of them")
    if not path.name.endswith(SUFFIXES):
        raise InputError(f"cannot read a corpus from {path.name}; expected a file ending in {', '.join(SUFFIXES)}")
    return [path]


def read_corpus(
    path: Path, cut: Callable[[Iterable[Passage]], Iterable[Passage]] | None = None, *, blank: bool = False
) -> Corpus:
    """The corpus at ``path`` (a file or a folder of files), each row passed through ``cut`` if it is given.

    A row without an id is named by its place, in a folder of several files with its file's name before it. ``blank``
    allows passages of white space alone, which cutting a document may leave. Raises ``InputError`` naming the file and
    line of a row without text, of broken JSON or quoting, of what is not UTF-8, of a header without a text, or of a
    repeated id.
    """
    files = corpus_files(path)
    rows = (passage for _, _, passage in _rows(files, blank))
    try:
        return Corpus.of(rows if cut is None else cut(rows))
    except RepeatedId as error:  # where, is read once more: lines are not kept for millions of passages
        raise InputError(_repeated(files, blank)) from error


def write_corpus(corpus: Corpus, path: Path) -> None:
    """Write ``corpus`` as JSON lines, in a form that ``read_corpus`` reads back to the same digest."""
    with path.open("w", encoding="utf-8") as file:
        for passage in corpus.passages:
            row = {"id": passage.id, "title": passage.title, "text": passage.text}
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def _repeated(files: Sequence[Path], blank: bool) -> str:
    """The first id that comes again, and both its places."""
    places: dict[str, str] = {}
    for file, line, passage in _rows(files, blank):
        place = f"{file.name}, line {line}"
        if passage.id in places:
            return f"{place}: expected unique passage ids, got {passage.id!r} again (first at {places[passage.id]})"
        places[passage.id] = place
    raise AssertionError("cutting unique documents gives unique passages")


def _rows(files: Sequence[Path], blank: bool) -> Iterator[tuple[Path, int, Passage]]:
    """The passages of all files, each with its file and the line on which it starts."""
    for file in files:
        try:
            for line, passage in _passages(file, f"{file.name}:" if len(files) > 1 else "", blank):
                yield file, line, passage
        except UnicodeDecodeError as error:
            raise InputError(_undecodable(file)) from error
        except (gzip.BadGzipFile, EOFError, zlib.error, csv.Error) as error:
            raise InputError(f"cannot read a corpus from {file}: {error}") from error


def _passages(path: Path, prefix: str, blank: bool) -> Iterator[tuple[int, Passage]]:
    with io.TextIOWrapper(_open(path), encoding=ENCODING, newline="") as file:
        records = _tsv(file, path) if ".tsv" in path.suffixes else _jsonl(file, path)
        for number, (line, record) in enumerate(records, start=1):
            text = record.get("text")
            if not isinstance(text, str) or not (text.strip() or (blank and text)):
                raise InputError(
                    f"{path.name}, line {line}: expected a text, got {text!r}; columns: {', '.join(map(str, record))}"
                )
            # Documents of a language-model corpus have no id: the place in the file is one.
            name = record.get("id")
            passage = Passage(
                id=f"{prefix}{number}" if name is None else str(name), title=str(record.get("title") or ""), text=text
            )
            try:
                f"{passage.id}{passage.title}{passage.text}".encode()
            except UnicodeEncodeError as error:  # JSON can escape half a character
                raise InputError(f"{path.name}, line {line}: expected Unicode text, got {error}") from error
            yield line, passage


def _open(path: Path) -> BinaryIO:
    return cast("BinaryIO", gzip.open(path, "rb")) if path.suffix == ".gz" else path.open("rb")


def _undecodable(path: Path) -> str:
    """The first line of ``path`` that is not UTF-8, and what it is."""
    with _open(path) as file:
        for number, line in enumerate(file, start=1):
            try:
                line.decode(ENCODING if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                what = "gzip (its name ends in .gz then)" if number == 1 and line.startswith(GZIP) else str(error)
                return f"{path.name}, line {number}: expected UTF-8, got {what}"
    raise AssertionError("a file that is not UTF-8 has a line that is not")


def _jsonl(file: TextIO, path: Path) -> Records:
    for number, line in enumerate(file, start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise InputError(
                f"{path.name}, line {number}: expected a JSON object, got broken JSON ({error})"
            ) from error
        if not isinstance(record, dict):
            raise InputError(f"{path.name}, line {number}: expected a JSON object, got {line.strip()[:60]}")
        yield number, record


def _tsv(file: TextIO, path: Path) -> Records:
    csv.field_size_limit(LONGEST_FIELD)
    reader = csv.reader(file, delimiter="\t", strict=True)
    header: list[str] = []
    line = 0
    try:
        for fields in reader:
            start, line = line + 1, reader.line_num
            if not fields:
                continue
            if header:
                yield start, dict.fromkeys(header) | dict(zip(header, fields, strict=False))
                continue
            header = fields
            if "text" not in header:
                shown = "\t".join(fields)[:60]
                raise InputError(f"{path.name}, line {start}: expected a header, {TSV_HEADER}, got {shown!r}")
    except csv.Error as error:
        raise InputError(
            f"{path.name}, line {line + 1}: expected a field that starts with a quote to end with one, "
            f"and the quotes inside it to be doubled ({error})"
        ) from error
