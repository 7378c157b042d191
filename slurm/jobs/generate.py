"""Answer one question."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.cli.catalog import find_system
from harness.device import open_device
from slurm.jobs.evaluate import check_counts
from slurm.jobs.system import open_system


@dataclass(frozen=True, kw_only=True)
class GenerateJob:
    """Answer one question, over an index or closed-book."""

    question: str
    system: str
    checkpoint: str
    index: Path | None
    passages: int
    max_new_tokens: int
    options: Mapping[str, Any]
    dtype: str
    device: str
    chunk_cache: Path | None = None

    def run(self) -> dict[str, Any]:
        """The passages, the answer and its times."""
        check_counts(passages=self.passages, max_new_tokens=self.max_new_tokens)
        find_system(self.system)
        from harness.retrieval import open_index
        from harness.timing import timed_batch

        hits = open_index(self.index).search([self.question], self.passages)[0] if self.index else []
        passages = [hit.passage for hit in hits]
        system = open_system(
            self.system,
            self.checkpoint,
            self.options,
            dtype=self.dtype,
            device=self.device,
            cache=self.chunk_cache,
        ).system
        system.check([self.question], max_new_tokens=self.max_new_tokens)
        timed = timed_batch(
            lambda: system.encode([passages]),
            lambda context: system.generate([self.question], context, max_new_tokens=self.max_new_tokens),
            open_device(self.device),
            system.pad_id,
        )
        return {
            "question": self.question,
            "passages": [{"title": hit.passage.title, "text": hit.passage.text, "score": hit.score} for hit in hits],
            "answer": system.text(timed.columns)[0],
            "ttft_s": timed.ttft_s,
            "total_s": timed.total_s,
        }
