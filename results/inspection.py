"""One question looked into chunk by chunk: what the decoder read as embeddings, what as tokens, and by what scores.

The data is plain, so that it draws without a model. The HTML is one file: no script, nothing fetched, and every text
escaped, because passages come from anywhere. Expanded chunks are told apart by word and shape, not by colour alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from results.pages import page

TEMPLATE = Path(__file__).parent / "inspection.html.jinja"

# What a selector's scores are, for the legend.
SCORES: Mapping[str, str] = {
    "first": "minus the chunk's place: earlier chunks first",
    "random": "a random number, the same for the same question",
    "perplexity-desc": "mean cross-entropy of the chunk's tokens under the decoder, in nats: hardest first",
    "perplexity-asc": "minus the mean cross-entropy of the chunk's tokens under the decoder, in nats: easiest first",
    "oracle": "1 where the chunk holds a part of the asked fact (known in the synthetic world only)",
    "policy": "logit of the trained policy",
}


@dataclass(frozen=True, kw_only=True)
class InspectedChunk:
    """``score`` is the selector's; None where nothing was chosen, because no chunk or every chunk is expanded."""

    text: str
    tokens: int
    expanded: bool
    score: float | None


@dataclass(frozen=True, kw_only=True)
class InspectedPassage:
    """``score`` is the retriever's, None where the passage was given. ``chunks`` is empty where it was not ``read``."""

    id: str
    title: str
    score: float | None
    read: bool
    chunks: tuple[InspectedChunk, ...]


@dataclass(frozen=True, kw_only=True)
class Inspection:
    """A question, its passages as the decoder read them, and the answer.

    ``decoder_positions`` is the length of the prompt, ``token_positions`` what it is with every chunk expanded, and
    ``position_ratio`` the first over the second. ``effective_rate`` is k / (1 - p + k p) at the share p of chunks that
    was really expanded; it counts chunks alone, neither markup nor question.
    """

    question: str
    answer: str
    checkpoint: str
    source: str
    k: int
    select: str
    expand: float
    passages: tuple[InspectedPassage, ...]
    chunks: int
    chunks_expanded: int
    decoder_positions: int
    token_positions: int
    position_ratio: float
    effective_rate: float

    @property
    def score_meaning(self) -> str:
        """What the scores are, in words; empty where there are none."""
        if self.select in ("none", "all"):
            return ""
        return SCORES.get(self.select, f"given by the selector {self.select}")

    def share(self, score: float) -> float:
        """Where ``score`` lies between the lowest (0) and the highest (1) of all chunks: the length of its bar."""
        scores = [c.score for passage in self.passages for c in passage.chunks if c.score is not None]
        low, high = min(scores), max(scores)
        return (score - low) / (high - low) if high > low else 1.0


def to_html(inspection: Inspection) -> str:
    """The page."""
    return page(TEMPLATE, it=inspection)
