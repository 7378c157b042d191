"""The one scoring loop: windows of a text through a system's likelihood, rows into the journal, at the end one record.

As ``harness.run`` for answers: batches are cut once and for all, a run that is cut off goes on where its journal ends,
and the journal holds nothing that differs between two equal runs. It holds no text either: ids and sums.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from harness import provenance
from harness.config import plain
from harness.errors import headline
from harness.files import write_atomically
from harness.model.chunking import split
from harness.protocol import LogLikelihood, TokenBlock
from harness.record import Journal, RunRecord, RunSpec, WindowSpec, join, publish
from harness.summary import summarise

if TYPE_CHECKING:
    import torch

Progress = Callable[[int, int], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class Window:
    """``context`` tokens and the ``continuation`` right after them, of one document."""

    id: str
    document: str
    context: list[int]
    continuation: list[int]


class Windows(Protocol):
    """What a suite of windows is to this loop."""

    @property
    def spec(self) -> WindowSpec: ...

    @property
    def windows(self) -> Sequence[Window]: ...

    def score(self, log_p: Sequence[float]) -> dict[str, float]:
        """Figures of one window from log p of its continuation's tokens."""


def measure(
    spec: RunSpec,
    suite: Windows,
    system: LogLikelihood[Any],
    runs: Path,
    *,
    experiment: str,
    notes: tuple[str, ...] = (),
    device: torch.device,
    progress: Progress | None = None,
) -> RunRecord:
    """Run ``spec`` from where its journal ends and write its record; a record that is there already is returned.

    A batch that fails on the device is an error in its rows, which no mean counts.
    """
    folder = spec.folder(runs)
    if (folder / "record.json").exists():
        return join(folder, (experiment,))
    windows = suite.windows
    folder.mkdir(parents=True, exist_ok=True)
    header = {"n_examples": len(windows), "spec": plain(spec)}
    write_atomically(folder / "spec.json", json.dumps(header, indent=1, ensure_ascii=False) + "\n")
    with Journal(folder / "predictions.jsonl", spec.run_id) as journal:
        for start in range(0, len(windows), spec.decode.batch_size):
            batch = windows[start : start + spec.decode.batch_size]
            if start + len(batch) <= len(journal.rows):
                continue
            rows = _score_batch(system, suite, batch)
            journal.append(rows[max(0, len(journal.rows) - start) :])
            if progress:
                progress(len(journal.rows), len(windows))
        rows = journal.rows
    record = RunRecord(
        run_id=spec.run_id,
        experiments=[experiment],
        notes=notes,
        spec=plain(spec),
        metrics=summarise(rows),
        n_examples=len(windows),
        n_errors=sum("error" in row for row in rows),
        n_empty_golds=0,
        timings={},
        provenance=provenance.collect(str(device)),
    )
    return publish(record, folder)


def _score_batch(system: LogLikelihood[Any], suite: Windows, batch: Sequence[Window]) -> list[dict[str, Any]]:
    known = [{"id": window.id, "document": window.document, "tokens": len(window.continuation)} for window in batch]
    continuations = [window.continuation for window in batch]
    questions = [""] * len(batch)
    try:
        context = system.encode_tokens([_passages(window.context, suite.spec.passage) for window in batch])
        log_p = [row.tolist() for row in system.log_probabilities(questions, continuations, context)]
    except (RuntimeError, MemoryError) as error:  # what torch raises when the device fails or is full
        return [{**row, "error": headline(error)} for row in known]
    usages = system.usage(questions, context, max_new_tokens=max(map(len, continuations)))
    return [
        {**row, "nll": -sum(of_one), "scores": suite.score(of_one), "usage": plain(usage)}
        for row, of_one, usage in zip(known, log_p, usages, strict=True)
    ]


def _passages(context: list[int], length: int) -> list[TokenBlock]:
    """A context as untagged passages of ``length`` tokens."""
    return [([], piece) for piece in split(context, length)]
