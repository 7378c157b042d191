"""Questions with their passages in DPR/FiD form, ours or from elsewhere.

One object per question: ``{"id", "question", "answers", "ctxs": [{"id", "title", "text", "score", "hasanswer"}]}``, as
JSON lines or as one JSON list, plain or gzipped. ``question``, ``answers`` and the passages' ``text`` must be there.

A row may mark its annotated gold passage: as a passage of its own under ``gold_ctx``, or by ``isgold`` on the first
passage that is it (lost-in-the-middle's files). It is the example's ``meta["gold"]``.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from harness.config import RUN_ID_LENGTH, digest
from harness.data.sources import question_id
from harness.errors import InputError
from harness.files import write_atomically
from harness.protocol import Example, Hit, Passage

SCORE_DECIMALS = 6  # beyond them, the same search differs between machines


def make_row(example: Example, hits: Sequence[Hit], has_answer: Sequence[bool]) -> dict[str, Any]:
    """The row of one question; ``has_answer`` goes with ``hits``."""
    ctxs = [
        {
            "id": hit.passage.id,
            "title": hit.passage.title,
            "text": hit.passage.text,
            "score": round(hit.score, SCORE_DECIMALS),
            "hasanswer": flag,
        }
        for hit, flag in zip(hits, has_answer, strict=True)
    ]
    return {"id": example.id, "question": example.question, "answers": list(example.answers), "ctxs": ctxs}


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> str:
    """Write ``rows`` as gzipped JSON lines; returns their digest. Equal rows give equal bytes."""
    content = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, gzip.compress(content, mtime=0))
    return _digest(content)


def read_rows(path: Path) -> tuple[list[Example], str]:
    """The rows of a file as examples with passages, and the digest of its uncompressed bytes.

    Raises ``InputError`` when the file is absent or has no row, or naming the line that is broken or the row that
    lacks something.
    """
    content = _read(path)
    rows = list(_parse(content, path))
    if not rows:
        raise InputError(f"{path}: expected at least one row in DPR/FiD form, found none")
    return rows, _digest(content)


def _read(path: Path) -> bytes:
    if not path.is_file():
        raise InputError(f"expected a retrieval file in DPR/FiD form at {path}, found no such file")
    try:
        return gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise InputError(f"{path}: expected a whole gzip file, got a broken one ({error})") from error


def _parse(content: bytes, path: Path) -> Iterator[Example]:
    # One JSON list is as good as one long line. Each is decoded alone, so that an error is on a known line.
    parts = [content] if content.lstrip().startswith(b"[") else content.splitlines()
    for number, part in enumerate(parts, start=1):
        try:
            value = json.loads(part.decode())
        except json.JSONDecodeError as error:
            line, reason = number - 1 + error.lineno, f"broken JSON ({error})"
        except UnicodeDecodeError as error:
            line, reason = number + part.count(b"\n", 0, error.start), f"bytes that are not UTF-8 ({error.reason})"
        else:
            rows = enumerate(value, start=1) if isinstance(value, list) else [(number, value)]
            yield from (_example(row, path, place) for place, row in rows)
            continue
        raise InputError(f"{path}, line {line}: expected JSON lines or one JSON list, got {reason}")


def _example(row: Any, path: Path, number: int) -> Example:
    try:
        question, answers = _text(row["question"]), row["answers"]
        if not isinstance(answers, list):
            raise TypeError(f"expected a list of answers, got {answers!r}")
        answers = tuple(_text(answer) for answer in answers)
        passages = tuple(_passage(ctx) for ctx in row["ctxs"])
        marked = [row["gold_ctx"]] if row.get("gold_ctx") else [ctx for ctx in row["ctxs"] if ctx.get("isgold")]
        meta = {"gold": _passage(marked[0])} if marked else {}
    except (TypeError, KeyError, UnicodeEncodeError) as error:
        raise InputError(
            f"{path}, row {number}: expected question, answers and ctxs with text, missing or malformed: {error}"
        ) from error
    name = question_id(question) if row.get("id") is None else str(row["id"])
    return Example(id=name, question=question, answers=answers, passages=passages, meta=meta)


def _passage(ctx: Mapping[str, Any]) -> Passage:
    """A passage of a row; FiD's have no id, so their text gives one."""
    text, title = _text(ctx["text"]), _text(ctx.get("title") or "")
    name = digest([title, text]) if ctx.get("id") is None else str(ctx["id"])
    return Passage(id=name, title=title, text=text)


def _text(value: Any) -> str:
    """``value`` itself, if it is text that can be written: JSON can escape half a character."""
    if not isinstance(value, str):
        raise TypeError(f"expected text, got {value!r}")
    value.encode()
    return value


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:RUN_ID_LENGTH]
