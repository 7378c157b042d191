"""The one evaluation loop: batches through a system, rows into the journal, and at the end one record.

Batches are cut from the example order once and for all, so a run that goes on after an interruption sees the same
batches, and its journal ends up byte-equal to that of an unbroken run. Times are measured, but kept out of the
journal (``timings.jsonl`` beside it).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness import metrics, provenance, timing
from harness.config import plain
from harness.errors import InputError, headline
from harness.files import append, write_atomically
from harness.protocol import Example, Suite, System
from harness.record import Journal, RunRecord, RunSpec, join, publish
from harness.summary import summarise

if TYPE_CHECKING:
    import torch

Progress = Callable[[int, int], None]


def evaluate(
    spec: RunSpec,
    suite: Suite,
    system: System[Any],
    runs: Path,
    *,
    experiment: str,
    notes: tuple[str, ...] = (),
    device: torch.device,
    progress: Progress | None = None,
) -> RunRecord:
    """Run ``spec`` from where its journal ends and write its record; a record that is there already is returned.

    Raises ``InputError`` for input that can never work (before anything is written, where that can be known), and
    ``OSError`` where the folder cannot be written. A batch that fails on the device is an error in its rows, never
    a wrong answer scored 0.
    """
    folder = spec.folder(runs)
    if (folder / "record.json").exists():
        return join(folder, (experiment,))
    examples = list(suite.examples())
    if not examples:
        raise InputError(f"suite {suite.name} has no examples (limit {spec.suite.limit})")
    for example in examples:
        if not example.answers:
            raise InputError(f"example {example.id!r} of {suite.name} has no gold answers: {example.question!r}")
    system.check([example.question for example in examples], max_new_tokens=spec.decode.max_new_tokens)

    folder.mkdir(parents=True, exist_ok=True)
    header = {"n_examples": len(examples), "spec": plain(spec)}
    write_atomically(folder / "spec.json", json.dumps(header, indent=1, ensure_ascii=False) + "\n")
    with (
        Journal(folder / "predictions.jsonl", spec.run_id) as journal,
        (folder / "timings.jsonl").open("ab", buffering=0) as times,
    ):
        warm = False  # the first batch of every start pays for warming up and is not timed
        for start in range(0, len(examples), spec.decode.batch_size):
            batch = examples[start : start + spec.decode.batch_size]
            if start + len(batch) <= len(journal.rows):
                continue
            rows, timed = _run_batch(system, suite, batch, spec.decode.max_new_tokens, device)
            journal.append(rows[max(0, len(journal.rows) - start) :])
            if timed and warm:
                # The newline in front closes a line that a killed writer may have torn.
                append(times, ("\n" + json.dumps(_times(timed)) + "\n").encode())
            warm = True
            if progress:
                progress(len(journal.rows), len(examples))
        rows = journal.rows

    record = RunRecord(
        run_id=spec.run_id,
        experiments=[experiment],
        notes=notes,
        spec=plain(spec),
        metrics=summarise(rows),
        n_examples=len(examples),
        n_errors=sum("error" in row for row in rows),
        n_empty_golds=sum(any(map(metrics.normalises_to_nothing, example.answers)) for example in examples),
        timings=_summarise_times(folder / "timings.jsonl") | {"peak_bytes": timing.peak_bytes(device)},
        provenance=provenance.collect(str(device)),
    )
    return publish(record, folder)


def _run_batch(
    system: System[Any], suite: Suite, batch: Sequence[Example], max_new_tokens: int, device: torch.device
) -> tuple[list[dict[str, Any]], timing.Timed[Any] | None]:
    known = [{"id": example.id, "question": example.question, "answers": list(example.answers)} for example in batch]
    questions = [example.question for example in batch]
    try:
        timed = timing.timed_batch(
            lambda: system.encode([example.passages for example in batch]),
            lambda context: system.generate(questions, context, max_new_tokens=max_new_tokens),
            device,
            system.pad_id,
        )
    except (RuntimeError, MemoryError) as error:  # what torch raises when the device fails or is full
        return [{**row, "error": headline(error)} for row in known], None
    usages = system.usage(questions, timed.context, max_new_tokens=max_new_tokens)
    texts = system.text(timed.columns)
    return [
        {**row, "prediction": text, "scores": suite.score(example, text), "usage": plain(usage)}
        for row, example, text, usage in zip(known, batch, texts, usages, strict=True)
    ], timed


def _times(timed: timing.Timed[Any]) -> dict[str, Any]:
    return {
        "ttft_s": timed.ttft_s,
        "ttft_with_encode_s": timed.ttft_with_encode_s,
        "ttit_s": timed.ttit_s,
        "throughput_tokens_per_s": timed.generated_tokens / timed.total_s,
    }


def _summarise_times(path: Path) -> dict[str, Any]:
    """Over all timed batches; a torn line is passed over."""
    batches = []
    for line in path.read_text().splitlines():
        try:
            batches.append(json.loads(line))
        except ValueError:
            continue
    return {
        "ttft_s": timing.summary([b["ttft_s"] for b in batches]),
        "ttft_with_encode_s": timing.summary([b["ttft_with_encode_s"] for b in batches]),
        "ttit_s": timing.summary([t for b in batches for t in b["ttit_s"]]),
        "throughput_tokens_per_s": timing.summary([b["throughput_tokens_per_s"] for b in batches]),
    }
