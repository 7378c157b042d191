"""Answer one question."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.cli.catalog import SYSTEMS, find
from harness.device import open_device
from harness.train.export import own_template, read_training
from slurm.jobs.evaluate import check_counts


@dataclass(frozen=True, kw_only=True)
class GenerateJob:
    """Answer one question, over an index or closed-book."""

    question: str
    system: str
    checkpoint: str
    index: Path | None
    passages: int
    max_new_tokens: int
    template: str | None
    dtype: str
    device: str

    def run(self) -> dict[str, Any]:
        """The passages, the answer and its times."""
        check_counts(passages=self.passages, max_new_tokens=self.max_new_tokens)
        config_type = find("system", SYSTEMS, self.system)
        from harness.model.load import load_decoder
        from harness.retrieval import open_index
        from harness.timing import timed_batch

        hits = open_index(self.index).search([self.question], self.passages)[0] if self.index else []
        passages = [hit.passage for hit in hits]
        decoder = load_decoder(self.checkpoint, dtype=self.dtype, device=self.device)
        template = self.template or own_template(read_training(Path(self.checkpoint)))
        system = config_type(template=template).build(decoder)
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
