"""Look into one question: what became of each chunk of its passages, and what that cost the decoder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from harness.errors import InputError
from harness.protocol import Hit
from results.inspection import InspectedChunk, InspectedPassage, Inspection
from slurm.jobs import Progress
from slurm.jobs.evaluate import check_counts
from slurm.jobs.system import open_system

if TYPE_CHECKING:
    from harness.model.chunked import ChunkedPassage
    from refrag_v2.system import Choice, RefragV2

RETRIEVED = 4


@dataclass(frozen=True, kw_only=True)
class InspectJob:
    """Answer ``question`` with REFRAG v2 and keep all that it saw.

    The passages are the best of ``index``, or those of ``passages_file`` (a corpus file); ``passages`` is how many,
    None being 4 of an index and all of a file.
    """

    question: str
    checkpoint: str
    index: Path | None = None
    passages_file: Path | None = None
    passages: int | None = None
    max_new_tokens: int = 16
    options: Mapping[str, Any] = field(default_factory=dict)
    chunk_cache: Path | None = None
    dtype: str = "float32"
    device: str = "cpu"

    @property
    def title(self) -> str:
        return f"inspect {self.question!r}"

    def run(self, progress: Progress | None = None) -> Inspection:
        """Raises ``InputError`` for a checkpoint that is not REFRAG's, and where there is no passage to be had."""
        check_counts(passages=self.passages or 0, max_new_tokens=self.max_new_tokens)
        if self.passages == 0:
            raise InputError("expected at least 1 passage to inspect, got 0")
        found = self._found()
        opened = open_system(
            "refrag_v2", self.checkpoint, self.options, dtype=self.dtype, device=self.device, cache=self.chunk_cache
        )
        system = cast("RefragV2", opened.system)
        config = system.config
        system.check([self.question], max_new_tokens=self.max_new_tokens)

        context = system.encode([[hit.passage for hit in found]])
        columns = list(system.generate([self.question], context, max_new_tokens=self.max_new_tokens))
        (choice,) = system.choose([self.question], context, self.max_new_tokens)
        read = [_read(system, choice, passage) for passage in choice.passages]
        passages = [
            InspectedPassage(
                id=hit.passage.id,
                title=hit.passage.title,
                score=hit.score if self.index else None,
                read=place < len(read),
                chunks=read[place] if place < len(read) else (),
            )
            for place, hit in enumerate(found)
        ]
        saved = sum(chunk.tokens - 1 for chunks in read for chunk in chunks if not chunk.expanded)
        positions = len(choice.codes)

        from harness.model.chunking import effective_rate

        return Inspection(
            question=self.question,
            answer=system.text(columns)[0],
            checkpoint=opened.checkpoint,
            source=self.checkpoint,
            k=config.k,
            select=config.select,
            expand=config.expand,
            passages=tuple(passages),
            chunks=len(choice.rows),
            chunks_expanded=len(choice.expanded),
            decoder_positions=positions,
            token_positions=positions + saved,
            position_ratio=positions / (positions + saved),
            effective_rate=effective_rate(config.k, len(choice.expanded), len(choice.rows)),
        )

    def said(self, result: Inspection) -> str:
        """How much was expanded, and the answer."""
        return f"{result.chunks_expanded} of {result.chunks} chunks expanded; {result.answer}"

    def _found(self) -> list[Hit]:
        """The passages, those given without a score of their own."""
        if self.index:
            from harness.retrieval import open_index

            return open_index(self.index).search([self.question], self.passages or RETRIEVED)[0]
        from harness.retrieval.corpus import read_corpus

        if self.passages_file is None:
            raise InputError("expected an index or a passages file to inspect, got neither")
        return [
            Hit(passage=passage, score=0.0) for passage in read_corpus(self.passages_file).passages[: self.passages]
        ]


def _read(system: RefragV2, choice: Choice, passage: ChunkedPassage) -> tuple[InspectedChunk, ...]:
    """The chunks of a passage with their texts; the scores of a question's chunks lie in the order of its rows."""
    from harness.model.chunking import chunk_texts

    ids = [token for chunk in passage.chunks for token in chunk]
    texts = chunk_texts(system.prompting.tokenizer, ids, system.config.k)
    chosen = system.config.select not in ("none", "all")
    return tuple(
        InspectedChunk(
            text=text,
            tokens=len(chunk),
            expanded=row in choice.expanded,
            score=choice.scores[row - choice.rows.start] if chosen else None,
        )
        for row, (text, chunk) in enumerate(zip(texts, passage.chunks, strict=True), start=passage.first)
    )
