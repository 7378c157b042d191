"""Dense search, whatever holds the vectors: encode the questions, find the nearest passages, order them.

Equal scores are ordered by place in the corpus, also where they straddle rank k: the search goes deeper until it has
seen all of them. So two indexes give the same list wherever they compute the same scores, which they do for a passage
that is repeated, unless more than ``DEEPEST`` passages are at or above the k-th score. Scores that differ by rounding
alone may be ordered differently.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from harness.protocol import Hit
from harness.retrieval.corpus import Corpus
from harness.retrieval.embed import Encoder, EncoderConfig

if TYPE_CHECKING:
    import numpy as np


DEEPEST = 2048  # FAISS searches no deeper on a GPU


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
        k = min(k, len(self._corpus.passages))
        found = zip(*self._nearest_with_ties(queries_QD, k), strict=True)
        return [self._hits(scores.tolist(), rows.tolist())[:k] for scores, rows in found]

    def _nearest_with_ties(self, queries_QD: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """At least the ``k`` nearest, and every other of the k-th score: seen to be all when a lower score follows."""
        deepest = min(len(self._corpus.passages), max(k, DEEPEST))
        depth = min(k + 1, deepest)
        while True:
            scores_QK, rows_QK = self._vectors.nearest(queries_QD, depth)
            if depth == deepest or (scores_QK[:, -1] < scores_QK[:, k - 1]).all():
                return scores_QK, rows_QK
            depth = min(2 * depth, deepest)

    def _hits(self, scores: list[float], rows: list[int]) -> list[Hit]:
        ordered = sorted(zip(scores, rows, strict=True), key=lambda pair: (-pair[0], pair[1]))
        return [Hit(passage=self._corpus.passages[row], score=score) for score, row in ordered]
