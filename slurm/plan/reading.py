"""How many positions does one example of a stage take?

With a context of s tokens in L = s / k chunks, E of them expanded, and a target of o tokens:

    encoder     L windows of k + 2 positions
    projector   L positions
    decoder     (L - E) + k E + o positions
    policy      L positions
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from harness.model.chunking import expanded_count

if TYPE_CHECKING:
    from refrag_v2.paper_scale import PlannedStage

SPECIAL_TOKENS = 2  # <s> and </s>


@dataclass(frozen=True, kw_only=True)
class Reading:
    """Positions of one example."""

    chunks: int
    window: int
    decoder: int

    @property
    def encoder(self) -> int:
        return self.chunks * self.window


def read(stage: PlannedStage, k: int, chunks: int | None = None) -> Reading:
    """One example of ``stage``: the longest, or one of the curriculum's with ``chunks`` chunks."""
    n = math.ceil(stage.context / k) if chunks is None else chunks
    expanded = expanded_count(stage.expand, n)
    target = n * k if stage.target is None else stage.target
    return Reading(chunks=n, window=k + SPECIAL_TOKENS, decoder=(n - expanded) + k * expanded + target)


def curriculum_shares(chunks: int) -> dict[int, float]:
    """Table 8's share of examples of each number of chunks up to ``chunks``, over all nine stages."""
    from harness.train.curriculum import build_curriculum

    curriculum = build_curriculum("paper", chunks)
    counts = [sum(column) for column in zip(*curriculum.mixtures, strict=True)]
    return {n: count / sum(counts) for n, count in zip(curriculum.multipliers, counts, strict=True)}
