"""Which examples of a run does the page show, and what had they to read?

Records say how often a system was right; the journal beside a record says on what. The passages of an example are not
in the journal: they come from the frozen retrieval, or from the file of the suite, whose digest the record names.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from harness.config import file_digest
from harness.data.world import is_world
from harness.errors import InputError
from harness.protocol import Example, Passage
from harness.retrieval.rows import read_rows
from results.experiments.text_ablation import question_of
from results.records import Record

JOURNAL = "predictions.jsonl"
SHOWN = 3  # examples of each kind: answered wrongly, answered rightly
PASSAGES, LETTERS = 8, 280  # of an example, and of a passage
SCORES = ("em", "f1", "chance")
MANIFEST = ".manifest.json"


@dataclass(frozen=True, kw_only=True)
class Examples:
    """Those of a journal that are shown, and the sentence that says which, or why none."""

    said: str
    shown: Sequence[Mapping[str, Any]] = ()


@dataclass(frozen=True)
class Journals:
    """The journals beside records, and below ``folders`` the passages that were read.

    ``texts`` are the passages of all examples shown so far, each once: systems share questions.
    """

    folders: Sequence[Path]
    texts: dict[tuple[str, str], int] = field(default_factory=dict)
    _read: dict[Path, Mapping[str, Example]] = field(default_factory=dict)

    def of(self, record: Record) -> Examples:
        """The first examples answered wrongly and rightly. Raises ``InputError`` for a journal of another run."""
        path = record.path.with_name(JOURNAL)
        if not path.is_file():
            return Examples(
                said="No journal lies beside this record, so there are no examples: accepted records come without. "
                f"`{command(record)}` writes one below runs/, and `refrag-bench report` then shows them."
            )
        rows = list(read_journal(path, record.run_id))
        wrong = [row for row in rows if not _right(row)]
        right = [row for row in rows if _right(row)]
        chosen = sorted([*wrong[:SHOWN], *right[:SHOWN]], key=lambda row: int(row["i"]))
        asked = self._passages(record) if chosen else {}
        return Examples(
            said=f"{len(chosen)} of {len(rows)}: at most the first {SHOWN} of {len(wrong)} answered wrongly and the "
            f"first {SHOWN} of {len(right)} answered rightly; of each at most {PASSAGES} passages, "
            f"and {LETTERS} letters of a passage.",
            shown=[self._shown(row, record, asked.get(str(row.get("id")))) for row in chosen],
        )

    def _shown(self, row: Mapping[str, Any], record: Record, asked: Example | None) -> Mapping[str, Any]:
        usage, scores = row.get("usage", {}), row.get("scores", {})
        names = [name for name in SCORES if name in scores] or list(scores)
        return {
            "question": str(row["question"]),
            "golds": [str(answer) for answer in row.get("answers", [])],
            "answer": row.get("prediction"),
            "error": row.get("error"),
            "right": _right(row),
            "scores": [[name, f"{scores[name]:.4g}"] for name in names],
            "usage": [[name.replace("_", " "), f"{value:,.6g}"] for name, value in usage.items()],
            "passages": None
            if asked is None
            else [self._text(passage) for passage in asked.passages[: record.passages][:PASSAGES]],
        }

    def _text(self, passage: Passage) -> int:
        short = passage.text if len(passage.text) <= LETTERS else passage.text[:LETTERS] + " …"
        return self.texts.setdefault((passage.title, short), len(self.texts))

    def _passages(self, record: Record) -> Mapping[str, Example]:
        retrieval = record.spec.get("retrieval")
        path = self._frozen.get(retrieval["digest"]) if retrieval else None
        if path is None:
            return {}
        if path not in self._read:
            self._read[path] = {example.id: example for example in read_rows(path)[0]}
        return self._read[path]

    @cached_property
    def _frozen(self) -> Mapping[str, Path]:
        """Every file of passages below the folders, by the digest that a record names it by."""
        found: dict[str, Path] = {}
        for folder in self.folders:
            for manifest in sorted(folder.rglob(f"*{MANIFEST}")):
                try:
                    digest = json.loads(manifest.read_bytes()).get("digest")
                except (ValueError, AttributeError) as error:
                    raise InputError(f"{manifest} is damaged ({error}); delete it and freeze again") from None
                found.setdefault(str(digest), manifest.with_name(manifest.name.removesuffix(MANIFEST)))
            for path in sorted(folder.rglob("ctxs/*.jsonl.gz")):
                found.setdefault(file_digest(path), path)
        return found


def read_journal(path: Path, run_id: str) -> Iterator[dict[str, Any]]:
    """The whole rows of a journal; a torn last line is left out. Raises ``InputError`` on any other damage."""
    for number, line in enumerate(path.read_bytes().split(b"\n")[:-1], start=1):
        try:
            row = json.loads(line)
        except ValueError as error:
            raise InputError(f"{path} line {number}: expected one JSON object ({error})") from None
        if not isinstance(row, dict) or row.get("run_id") != run_id or "question" not in row or "i" not in row:
            raise InputError(f"{path} line {number}: expected an example of the run {run_id}")
        yield row


def command(record: Record) -> str:
    """What runs ``record`` again: a sweep is called by the first word of its experiments, and on text by its size."""
    experiment = next(iter(record.experiments), "adhoc")
    name, _, size = experiment.partition("-")
    if name == "adhoc":
        return f"refrag-bench evaluate --system {record.system} --suite {record.suite}"
    if question_of(experiment):
        name = "text_ablation"
    scale = " --scale mini" if size == "mini" else ""
    return f"refrag-bench run {name}{scale}" + ("" if is_world(record.root) else " --data DIR")


def _right(row: Mapping[str, Any]) -> bool:
    """By exact match, or by the first score of a suite that has none; an error is not right."""
    scores: Mapping[str, float] = row.get("scores", {})
    return "error" not in row and bool(scores.get("em", next(iter(scores.values()), 0)))
