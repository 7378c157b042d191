"""Questions with their passages as documents of an lm-eval task.

A document is ``{"id", "question", "answer": [...], "passages": [{"id", "title", "text"}, ...]}``, a line of a JSON file
per task. lm-eval finds ``load`` and ``text`` by the YAML files beside this one; the folder of the documents comes with
``TaskManager(metadata={"documents": DIR})``, or ``lm_eval run --metadata '{"documents": "DIR"}'``: an absolute path.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from harness.errors import InputError
from harness.files import write_atomically
from harness.prompts import TEXT
from harness.protocol import Example, Passage


def document(example: Example) -> dict[str, Any]:
    """``example`` as a document."""
    return {
        "id": example.id,
        "question": example.question,
        "answer": list(example.answers),
        "passages": [{"id": p.id, "title": p.title, "text": p.text} for p in example.passages],
    }


def passages(document: Mapping[str, Any]) -> tuple[Passage, ...]:
    """The passages that ride in ``document``. Raises ``InputError`` where they are none."""
    try:
        return tuple(Passage(id=str(p["id"]), title=p["title"], text=p["text"]) for p in document["passages"])
    except (KeyError, TypeError) as error:
        raise InputError(
            f"document {document.get('id')!r}: expected passages with id, title and text ({error!r})"
        ) from error


def write(examples: Iterable[Example], folder: Path, name: str) -> Path:
    """Put the documents of the task ``name`` into ``folder``, whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(document(example), ensure_ascii=False) for example in examples]
    path = folder / f"{name}.jsonl"
    write_atomically(path, "\n".join(lines) + "\n")
    return path


def load(*, documents: str, name: str, **metadata: Any) -> dict[str, Any]:  # noqa: ARG001
    """What lm-eval asks of a task's data: the documents of the task ``name`` as the split ``test``."""
    from datasets import Dataset

    lines = (Path(documents) / f"{name}.jsonl").read_text(encoding="utf-8").split("\n")
    return {"test": Dataset.from_list([json.loads(line) for line in lines if line])}


def text(document: Mapping[str, Any]) -> str:
    """The prompt as text, for lm-eval's own models: what standard RAG reads under the template ``text``.

    Our systems do not read it: they take passages and question from the document (``suites.lm_eval.answering``).
    """
    before = "".join(TEXT.passage.format(title=p.title, text=p.text) for p in passages(document))
    return before + TEXT.question_text(document["question"])
