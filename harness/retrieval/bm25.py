"""BM25 over title and text: the retriever that needs no weights.

k1 = 0.9, b = 0.4 (Anserini's defaults for Wikipedia passages) with Lucene's IDF. Words are runs of letters, digits
and underscores, lower case, without diacritics, without English stop words (question words among them, which matters:
every question has one), stemmed by Snowball's English stemmer. Equal scores are ordered by place in the corpus, so
that a search gives the same list everywhere.

Source: Robertson and Zaragoza 2009; the scores are those of bm25s (Lù 2024, arXiv:2407.03618), method "lucene".
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.errors import InputError
from harness.protocol import Hit
from harness.retrieval.corpus import Corpus, passage_text

if TYPE_CHECKING:
    import bm25s
    import numpy as np

_WORD = re.compile(r"\w+")


@dataclass(frozen=True, kw_only=True)
class BM25Config:
    """Term-frequency saturation ``k1`` and length normalisation ``b``."""

    k1: float = 0.9
    b: float = 0.4

    retriever = "bm25"

    def identity(self) -> dict[str, Any]:
        return asdict(self) | {
            "method": "lucene",
            "words": "lower, no diacritics, english_plus stop words, snowball english",
        }

    def choice(self) -> dict[str, str]:
        return {"retriever": self.retriever}

    def versions(self) -> dict[str, str]:
        return {package: version(package) for package in ("bm25s", "PyStemmer")}

    def write(self, corpus: Corpus, folder: Path, _work: Path) -> None:
        import bm25s

        words = analyser()
        index = bm25s.BM25(k1=self.k1, b=self.b, method="lucene")
        terms = [words(passage_text(passage)) for passage in corpus.passages]
        if not any(terms):
            raise InputError("expected words to index in the corpus, found only English stop words")
        index.index(terms, show_progress=False)
        index.save(folder, show_progress=False)

    def open(self, corpus: Corpus, folder: Path) -> BM25:
        import bm25s

        return BM25(corpus, bm25s.BM25.load(folder), analyser())


class BM25:
    """A retriever over a loaded index."""

    def __init__(self, corpus: Corpus, index: bm25s.BM25, words: Callable[[str], list[str]]) -> None:
        self._corpus, self._index, self._words = corpus, index, words

    def search(self, questions: Sequence[str], k: int) -> list[list[Hit]]:
        """The ``k`` best passages per question (all, where the corpus has fewer), best first."""
        return [self._search_one(question, k) for question in questions]

    def _search_one(self, question: str, k: int) -> list[Hit]:
        scores_N = self._index.get_scores_from_ids(self._index.get_tokens_ids(self._words(question)))
        return [Hit(passage=self._corpus.passages[row], score=float(scores_N[row])) for row in _best(scores_N, k)]


def _best(scores_N: np.ndarray, k: int) -> list[int]:
    """The rows of the ``k`` highest scores, highest first, equal scores by row."""
    import numpy as np

    k = min(k, len(scores_N))
    threshold = np.partition(scores_N, -k)[-k]
    candidates = np.flatnonzero(scores_N >= threshold)
    rows: list[int] = candidates[np.argsort(-scores_N[candidates], kind="stable")][:k].tolist()
    return rows


def analyser() -> Callable[[str], list[str]]:
    """The function from a text to the terms that are indexed and searched."""
    import Stemmer
    from bm25s.stopwords import STOPWORDS_EN_PLUS

    stop_words = frozenset(STOPWORDS_EN_PLUS)
    stem = Stemmer.Stemmer("english").stemWords

    def words(text: str) -> list[str]:
        decomposed = unicodedata.normalize("NFD", text.lower())
        bare = "".join(character for character in decomposed if not unicodedata.combining(character))
        terms: list[str] = stem([word for word in _WORD.findall(bare) if word not in stop_words])
        return terms

    return words
