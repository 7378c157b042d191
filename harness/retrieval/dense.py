"""Dense search, whatever holds the vectors: encode the questions, find the nearest passages, order them.

Equal scores are ordered by place in the corpus, so that two indexes of the same vectors give the same list.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from harness.protocol import Hit
from harness.retrieval.corpus import Corpus
from harness.retrieval.embed import Encoder, EncoderConfig

if TYPE_CHECKING:
    import numpy as np


class Vectors(Protocol):
    """The vectors of a corpus, searchable exactly."""

    def nearest(self, queries_QD: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Inner products (Q, k) and corpus rows (Q, k) of each query's ``k`` best passages; k ≤ corpus size."""


class DenseRetriever:
    """A retriever over ``vectors``. The encoder is loaded by the first search."""

    def __init__(self, corpus: Corpus, encoder: EncoderConfig, vectors: Vectors) -> None:
        self._corpus, self._config, self._vectors = corpus, encoder, vectors
        self._encoder: Encoder | None = None

    def search(self, questions: Sequence[str], k: int) -> list[list[Hit]]:
        """The ``k`` passages of highest cosine per question (all, where the corpus has fewer), best first."""
        if self._encoder is None:
            self._encoder = self._config.build()
        queries_QD = self._encoder.encode_questions(questions)
        scores_QK, rows_QK = self._vectors.nearest(queries_QD, min(k, len(self._corpus.passages)))
        return [self._hits(scores, rows) for scores, rows in zip(scores_QK.tolist(), rows_QK.tolist(), strict=True)]

    def _hits(self, scores: list[float], rows: list[int]) -> list[Hit]:
        ordered = sorted(zip(scores, rows, strict=True), key=lambda pair: (-pair[0], pair[1]))
        return [Hit(passage=self._corpus.passages[row], score=score) for score, row in ordered]
