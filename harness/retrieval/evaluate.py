"""How good a list of passages is: hit@k by DPR's answer test, and recall@k where the gold passages are known."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from harness.metrics import DPRTokens, contains_any, dpr_tokens
from harness.protocol import Passage

HIT_AT = (1, 5, 20)


class AnswerTest:
    """DPR's answer test on the text of passages, each tokenised once however often it is retrieved."""

    def __init__(self) -> None:
        self._tokens: dict[Passage, DPRTokens] = {}

    def __call__(self, passages: Sequence[Passage], answers: Sequence[str]) -> list[bool]:
        """Whether each passage's text holds one of ``answers``; an empty one (QReCC has some) stands in none."""
        golds = [dpr_tokens(answer) for answer in answers if answer.strip()]
        return [contains_any(self._of(passage), golds) for passage in passages]

    def _of(self, passage: Passage) -> DPRTokens:
        if passage not in self._tokens:
            self._tokens[passage] = dpr_tokens(passage.text)
        return self._tokens[passage]


def hit_at(k: int, has_answer: Sequence[Sequence[bool]]) -> float | None:
    """The share of questions with an answer in their first ``k`` passages; None where a list is shorter than ``k``.

    ``has_answer`` has one list per question, best passage first. Source: Karpukhin et al. 2020,
    arXiv:2004.04906, table 2 ("top-k retrieval accuracy").
    """
    if not has_answer or any(len(flags) < k for flags in has_answer):
        return None
    return sum(any(flags[:k]) for flags in has_answer) / len(has_answer)


def recall_at(k: int, retrieved: Mapping[str, Sequence[str]], gold: Mapping[str, Collection[str]]) -> float | None:
    """The mean share of a question's gold passages in its first ``k``; None where a list is shorter or none has gold.

    ``retrieved`` and ``gold`` are passage ids by question id; questions without gold passages are left out.
    """
    judged = [name for name in retrieved if gold.get(name)]
    if not judged or any(len(retrieved[name]) < k for name in judged):
        return None
    shares = (len(set(retrieved[name][:k]) & set(gold[name])) / len(gold[name]) for name in judged)
    return sum(shares) / len(judged)
