"""What is searched: the passages of a corpus and the digest that names them.

Read from JSON lines (``{"id", "title", "text"}``), from DPR's tab-separated form (``id  text  title``), or from a
folder of such files, each plain or gzipped. Rows are passages as they stand; where they are whole documents, the
caller says how to cut them (``harness.retrieval.cut``).
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
from typing import TextIO

from harness.config import RUN_ID_LENGTH
from harness.errors import InputError
from harness.protocol import Passage

SUFFIXES = (".jsonl", ".jsonl.gz", ".tsv", ".tsv.gz")
LONGEST_FIELD = 1 << 24  # csv's own limit of 128 KiB is shorter than a long document


@dataclass(frozen=True, kw_only=True, slots=True)
class Corpus:
    """Passages in file order; ``digest`` names their ids, titles and texts, not the files that held them."""

    passages: Sequence[Passage]
    digest: str

    @classmethod
    def of(cls, passages: Iterable[Passage]) -> Corpus:
        """The corpus of ``passages``. Raises ``InputError`` when there is none or two share an id."""
        listed = list(passages)
        if not listed:
            raise InputError("expected at least one passage in the corpus, found none")
        seen: set[str] = set()
        sha = hashlib.sha256()
        for passage in listed:
            if passage.id in seen:
                raise InputError(f"expected unique passage ids in the corpus, got {passage.id!r} twice")
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
    line of a row without text or of broken JSON or quoting, or a repeated id.
    """
    files = corpus_files(path)
    rows = (row for file in files for row in _rows(file, f"{file.name}:" if len(files) > 1 else "", blank))
    return Corpus.of(rows if cut is None else cut(rows))


def write_corpus(corpus: Corpus, path: Path) -> None:
    """Write ``corpus`` as JSON lines, in a form that ``read_corpus`` reads back to the same digest."""
    with path.open("w", encoding="utf-8") as file:
        for passage in corpus.passages:
            row = {"id": passage.id, "title": passage.title, "text": passage.text}
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def _rows(path: Path, prefix: str, blank: bool) -> Iterator[Passage]:
    try:
        yield from _passages(path, prefix, blank)
    except (gzip.BadGzipFile, EOFError, zlib.error, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"cannot read a corpus from {path}: {error}") from error


def _passages(path: Path, prefix: str, blank: bool) -> Iterator[Passage]:
    with _open(path) as file:
        records = _tsv(file, path) if ".tsv" in path.suffixes else _jsonl(file, path)
        for number, record in enumerate(records, start=1):
            text = record.get("text")
            if not isinstance(text, str) or not (text.strip() or (blank and text)):
                raise InputError(
                    f"{path.name}, row {number}: expected a text, got {text!r}; columns: {', '.join(map(str, record))}"
                )
            # Documents of a language-model corpus have no id: the place in the file is one.
            name = record.get("id")
            passage = Passage(
                id=f"{prefix}{number}" if name is None else str(name), title=str(record.get("title") or ""), text=text
            )
            try:
                f"{passage.id}{passage.title}{passage.text}".encode()
            except UnicodeEncodeError as error:  # JSON can escape half a character
                raise InputError(f"{path.name}, row {number}: expected Unicode text, got {error}") from error
            yield passage


def _open(path: Path) -> TextIO:
    if path.suffix == ".gz":
        return io.TextIOWrapper(gzip.open(path, "rb"), encoding="utf-8", newline="")
    return path.open(encoding="utf-8", newline="")


def _jsonl(file: TextIO, path: Path) -> Iterator[dict[str, object]]:
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
        yield record


def _tsv(file: TextIO, path: Path) -> Iterator[dict[str, object]]:
    csv.field_size_limit(LONGEST_FIELD)
    reader = csv.DictReader(file, delimiter="\t", strict=True)
    line = 0
    try:
        while True:
            yield next(reader)
            line = reader.line_num
    except StopIteration:
        return
    except csv.Error as error:
        raise InputError(
            f"{path.name}, line {line + 1}: expected a field that starts with a quote to end with one, "
            f"and the quotes inside it to be doubled ({error})"
        ) from error
