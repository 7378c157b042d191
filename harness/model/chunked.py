"""Passages as a chunk-reading system keeps them: tokens by chunk, and one embedding each.

Legend: M chunks of the whole batch, E decoder width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from harness.model.chunking import split
from harness.model.splice import chunk_code
from harness.protocol import TokenBlock, Usage


@dataclass(frozen=True)
class ChunkedPassage:
    """A passage as its tag, its chunks as decoder tokens, and the row of the first in the batch's embeddings."""

    tag: list[int]
    chunks: list[list[int]]
    first: int

    def codes(self, expanded: frozenset[int]) -> list[int]:
        """The tag, then every chunk: its tokens where its row is in ``expanded``, else the code of its embedding."""
        out = list(self.tag)
        for row, chunk in enumerate(self.chunks, start=self.first):
            out += chunk if row in expanded else [chunk_code(row)]
        return out


@dataclass(frozen=True)
class Chunks:
    """What ``encode`` prepares: per question its passages, and all chunk embeddings (M, E)."""

    passages: list[list[ChunkedPassage]]
    embeddings_ME: Tensor


def in_chunks(blocks: Sequence[Sequence[TokenBlock]], k: int) -> list[list[ChunkedPassage]]:
    """The passages of each question in chunks of ``k`` tokens, rows counted through the whole batch."""
    first = 0
    rows: list[list[ChunkedPassage]] = []
    for row in blocks:
        rows.append([])
        for tag, text in row:
            chunks = split(text, k)
            rows[-1].append(ChunkedPassage(tag, chunks, first))
            first += len(chunks)
    return rows


def rows_of(passages: Sequence[ChunkedPassage]) -> range:
    """The rows of a question's chunks in the batch's embeddings: its passages stand side by side."""
    if not passages:
        return range(0)
    return range(passages[0].first, passages[-1].first + len(passages[-1].chunks))


@dataclass(frozen=True, kw_only=True, slots=True)
class ChunkUsage(Usage):
    """``effective_rate`` is k / (1 - p + k p) at the share of chunks that was really expanded."""

    chunks: int
    chunks_expanded: int
    effective_rate: float
