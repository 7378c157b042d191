"""Summarisation: the abstract of a long article, from as many decoder positions as a system may have.

Protocol (arXiv:2509.01092v2, Table 21: arXiv and PubMed articles of arXiv:1804.05685, validation split). An article is
cut at word borders into passages of ``words`` words, and a system is given the first ``passages`` of them, without
titles; one that has room for fewer reads fewer, from the start. So systems are compared at equal decoder tokens, the
table's 128, 512 and 1,024: with the same ``max_positions`` (prompt and summary together) and more passages than any of
them has room for, each reads as much of the article as its method fits there. The longest summary is
``--max-new-tokens``; the table states no length, nor whether its tokens count the summary.

Scores: ``rouge1``, ``rouge2`` and ``rougeL``, the F-measure of ROUGE as the package ``rouge-score`` computes it, with
Porter stemming; ``rougeL`` is over the whole text (not ``rougeLsum``). The paper states neither. The prompt template
``text`` ends an answer at the end of its line, so a summary is one paragraph there.

Rows are {"article", "abstract"}; one in which either is blank is left out. In the synthetic world an article
(hub/ccdv/arxiv-summarization) tells of eight people, four statements each; its abstract is the first statement of each.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from harness.data.sources import DataRoot, HubSplit, load_rows
from harness.errors import InputError
from harness.protocol import Example, Passage
from harness.record import MadeSuiteSpec, RetrievalSpec
from harness.retrieval.cut import Spans, cut_documents

if TYPE_CHECKING:
    from rouge_score.rouge_scorer import RougeScorer

QUESTION = "What is the summary of this article"
ROUGE = ("rouge1", "rouge2", "rougeL")
COLUMNS = ("article", "abstract")

SUMMARY_SETS: Mapping[str, HubSplit] = {
    "arxiv_summary": HubSplit(
        hub_id="ccdv/arxiv-summarization", config="document", split="validation", hub_rows=None, columns=COLUMNS
    ),
    "pubmed_summary": HubSplit(
        hub_id="ccdv/pubmed-summarization", config="document", split="validation", hub_rows=None, columns=COLUMNS
    ),
}


@dataclass(frozen=True, kw_only=True)
class SummarisationConfig:
    """``words`` of the article in each passage."""

    words: int = 100

    def __post_init__(self) -> None:
        if self.words < 1:
            raise InputError(f"expected passages of at least 1 word, got {self.words}")

    def build(
        self, name: str, root: DataRoot, *, passages: int, frozen: Path | None, limit: int | None, shots: int = 0
    ) -> SummarisationSuite:
        """The articles ``name``, of each the first ``passages`` passages.

        Raises ``InputError`` for a row that holds no text, and where none is left.
        """
        if shots:
            raise InputError(f"suite {name} is asked without demonstrations; got {shots} shots")
        if frozen is not None:
            raise InputError(f"suite {name} brings its own passages; it takes no retrieval file ({frozen})")
        if passages < 1:
            raise InputError(f"suite {name} needs at least 1 passage of the article, got {passages}")
        wanted = SUMMARY_SETS[name]
        rows, source = load_rows(wanted, root, limit=limit)
        questions = [
            Example(
                id=f"{name}_{number}",
                question=QUESTION,
                answers=(row["abstract"],),
                passages=tuple(self._passages(str(number), row["article"], passages)),
            )
            for number, row in enumerate(rows)
            if _is_whole(row, f"{wanted.hub_id}, row {number}")
        ]
        if not questions:
            raise InputError(f"{wanted.hub_id}: none of {len(rows)} rows has an article and an abstract")
        return SummarisationSuite(
            name=name,
            spec=MadeSuiteSpec(
                name=name,
                dataset=source.dataset,
                split=source.split,
                limit=limit,
                root=source.root,
                revision=source.revision,
                settings=asdict(self),
            ),
            retrieval=RetrievalSpec(retriever="given", setting="the article from its start", digest=source.revision),
            questions=tuple(questions),
            scorer=_scorer(),
        )

    def _passages(self, name: str, article: str, n: int) -> Iterable[Passage]:
        pieces = cut_documents([Passage(id=name, title="", text=article.strip())], self.words, tokenize=_words)
        return (replace(piece, text=piece.text.rstrip()) for piece in islice(pieces, n))


@dataclass(frozen=True, kw_only=True)
class SummarisationSuite:
    """Articles with their passages, and the two parts of the spec that identify them."""

    name: str
    spec: MadeSuiteSpec
    retrieval: RetrievalSpec
    questions: tuple[Example, ...]
    scorer: RougeScorer
    demonstrations: tuple[()] = ()

    def examples(self) -> Iterable[Example]:
        return self.questions

    def score(self, example: Example, text: str) -> dict[str, float]:
        (abstract,) = example.answers
        return {name: float(score.fmeasure) for name, score in self.scorer.score(abstract, text).items()}


def _scorer() -> RougeScorer:
    try:
        from rouge_score.rouge_scorer import RougeScorer
    except ImportError as error:
        raise InputError("ROUGE needs the package rouge-score; install refrag-bench with the extra rouge") from error
    return RougeScorer(list(ROUGE), use_stemmer=True)


def _is_whole(row: Mapping[str, object], where: str) -> bool:
    """Whether the row has an article and an abstract that are not blank. Raises ``InputError`` for what is no text."""
    for column in COLUMNS:
        text = row[column]
        if not isinstance(text, str):
            raise InputError(f"{where}: expected {column} to be text, got {text!r:.60}")
        if not text.strip():
            return False
    return True


def _words(text: str) -> Spans:
    return [match.span() for match in re.finditer(r"\S+", text)]
