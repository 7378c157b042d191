"""What an answer scores against its golds, in every dialect that published work uses.

Papers write "EM" and mean different things: they differ in the regular-expression module, in what punctuation becomes,
in whether a substring is enough. All dialects are computed on the same prediction, so that a table can name the one it
shows. They reproduce their published code with its quirks, because their only use is to be comparable with it:

1. a gold that normalises to nothing makes an empty generation score 1 (``normalises_to_nothing`` finds such golds);
2. F1 is 0 when both sides normalise to nothing, although EM is then 1;
3. on decomposed accents ``regex`` sees a letter where ``re`` sees a letter, a word boundary and a mark, so the
   dialects whose code uses ``re`` delete the bare "a" of a decomposed "à" as an article and the others do not.

Predictions are scored as they come: where to cut a generation is the stop rule's business, not the metric's.
"""

from __future__ import annotations

import re
import string
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import NewType

import regex

from harness.errors import InputError

METRIC_VERSION: int = 1
"""Raised whenever any score of any dialect can change: a record says which version scored it."""

DPRTokens = NewType("DPRTokens", str)
"""The DPR tokens of a text as one string, each token followed by a space and the first preceded by one."""

_DELETE_PUNCTUATION = str.maketrans("", "", string.punctuation)
_PUNCTUATION_AND_QUOTES_TO_SPACE = str.maketrans(dict.fromkeys(string.punctuation + "‘’´`", " "))
_ARTICLES_REGEX = regex.compile(r"\b(a|an|the)\b")
_ARTICLES_RE = re.compile(r"\b(a|an|the)\b")
_ARTICLES_LMEVAL_NQ = re.compile(r"\b(?:The |the |An |A |a |an )")
# A prediction is normalised by several dialects, a gold once for every system that is asked.
_KEPT = 1 << 14
_DPR_TOKEN = regex.compile(r"[\p{L}\p{N}\p{M}]+|[^\p{Z}\p{C}]")


@lru_cache(_KEPT)
def normalise_squad(text: str) -> str:
    """SQuAD's normaliser as DPR and FiD run it: lower, delete ASCII punctuation, articles to spaces, collapse spaces.

    With the ``regex`` module. Source: facebookresearch/DPR, dpr/data/qa_validation.py, ``_normalize_answer``.
    """
    return " ".join(_ARTICLES_REGEX.sub(" ", text.lower().translate(_DELETE_PUNCTUATION)).split())


@lru_cache(_KEPT)
def normalise_squad_re(text: str) -> str:
    """The same four steps with the standard ``re`` module.

    Source: the SQuAD v1.1 evaluation script and princeton-nlp/CEPE, utils.py, both ``normalize_answer``.
    """
    return " ".join(_ARTICLES_RE.sub(" ", text.lower().translate(_DELETE_PUNCTUATION)).split())


@lru_cache(_KEPT)
def normalise_triviaqa(text: str) -> str:
    """TriviaQA's normaliser: punctuation and typographic quotes become spaces instead of nothing; then articles.

    Its separate step for ``_`` is contained in the punctuation step. Source: mandarjoshi90/triviaqa,
    evaluation/triviaqa_evaluation.py, ``normalize_answer``.
    """
    return " ".join(_ARTICLES_RE.sub(" ", text.lower().translate(_PUNCTUATION_AND_QUOTES_TO_SPACE)).split())


def normalises_to_nothing(gold: str) -> bool:
    """Whether ``em`` takes an empty generation for this gold ("The The", "---", "A+"): a run counts such examples."""
    return not normalise_squad(gold)


def dpr_tokens(text: str) -> DPRTokens:
    """DPR's tokens of ``text``: NFD, then runs of letters, numbers and marks or single other visible characters, lower.

    One string instead of a list makes "is a token subsequence" a substring search in C. It is the same test, because
    no token can hold a space and every token has one on both sides; a text without tokens is " ", found everywhere.

    Source: facebookresearch/DPR, dpr/utils/tokenizers.py, ``SimpleTokenizer`` and ``words(uncased=True)``.
    """
    tokens = _DPR_TOKEN.findall(unicodedata.normalize("NFD", text))
    return DPRTokens(f" {' '.join(tokens).lower()} " if tokens else " ")


def contains_any(passage: DPRTokens, golds: Sequence[DPRTokens]) -> bool:
    """Whether any of ``golds`` is a contiguous token subsequence of ``passage``.

    For retrieval, where each passage and each gold is tokenised once and compared often.
    """
    return any(gold in passage for gold in golds)


def has_answer_dpr(text: str, golds: Sequence[str]) -> bool:
    """DPR's retrieval test: a gold's tokens are a contiguous subsequence of the text's tokens, uncased.

    Raises ``InputError`` when there is no gold. Source: facebookresearch/DPR, dpr/data/qa_validation.py,
    ``has_answer`` with match type "string".
    """
    _require_golds(golds)
    return contains_any(dpr_tokens(text), [dpr_tokens(gold) for gold in golds])


def exact_match(prediction: str, golds: Sequence[str]) -> bool:
    """``em``: equal to a gold after ``normalise_squad``. Source: as there, ``exact_match_score``; also FiD's."""
    return normalise_squad(prediction) in map(normalise_squad, golds)


def exact_match_re(prediction: str, golds: Sequence[str]) -> bool:
    """``em_re``: equal to a gold after ``normalise_squad_re``. Source: CEPE, utils.py, ``drqa_exact_match_score``."""
    return normalise_squad_re(prediction) in map(normalise_squad_re, golds)


def substring_exact_match(prediction: str, golds: Sequence[str]) -> bool:
    """``sub_em``: a gold is inside the prediction, both after ``normalise_squad``; "Iran" holds "Ira".

    Source: CEPE (utils.py, ``substring_exact_match_score``), HELMET and lost-in-the-middle. The last imports ``regex``,
    CEPE imports ``re``; the project's vectors fix ``regex``, so on decomposed accents it goes with ``em``.
    """
    normalised = normalise_squad(prediction)
    return any(normalise_squad(gold) in normalised for gold in golds)


def exact_match_triviaqa(prediction: str, golds: Sequence[str]) -> bool:
    """``em_triviaqa``: equal to a gold after ``normalise_triviaqa``. Source: as there, ``exact_match_score``."""
    return normalise_triviaqa(prediction) in map(normalise_triviaqa, golds)


def accuracy_popqa(prediction: str, golds: Sequence[str]) -> bool:
    """``acc_popqa``: gold, gold.lower() or gold.capitalize() is a raw substring of the prediction.

    Source: AlexTMallen/adaptive-retrieval, run_model.py ("compute accuracy"); Mallen et al. 2023, arXiv:2212.10511.
    """
    return any(form in prediction for gold in golds for form in (gold, gold.lower(), gold.capitalize()))


def match_selfrag(prediction: str, golds: Sequence[str]) -> bool:
    """``match_selfrag``: a gold is a raw, case-sensitive substring of the prediction.

    Source: AkariAsai/self-rag, retrieval_lm/metrics.py, ``match``; Asai et al. 2024, arXiv:2310.11511.
    """
    return any(gold in prediction for gold in golds)


def exact_match_lmeval_nq(prediction: str, golds: Sequence[str]) -> bool:
    """``em_lmeval_nq``: lm-eval's exact match, after deleting articles that a space follows.

    Source: lm-eval 0.4.13, tasks/nq_open/nq_open.yaml (``regexes_to_ignore``). Its stop strings are not applied here.
    """
    return _exact_match_lmeval(
        _ARTICLES_LMEVAL_NQ.sub("", prediction.strip()), [_ARTICLES_LMEVAL_NQ.sub("", gold) for gold in golds]
    )


def exact_match_lmeval_triviaqa(prediction: str, golds: Sequence[str]) -> bool:
    """``em_lmeval_triviaqa``: lm-eval's exact match, articles kept.

    Source: lm-eval 0.4.13, tasks/triviaqa/default.yaml. Its stop strings are not applied here.
    """
    return _exact_match_lmeval(prediction.strip(), golds)


def f1_squad(prediction: str, golds: Sequence[str]) -> float:
    """``f1``: token F1 after ``normalise_squad_re``, the best over golds. Source: SQuAD v1.1, ``f1_score``."""
    return _best_token_f1(prediction, golds, normalise_squad_re)


def f1_yesno0(prediction: str, golds: Sequence[str]) -> float:
    """``f1_yesno0``: as ``f1``, but yes, no and noanswer on either side match whole or score 0.

    Source: princeton-nlp/CEPE, utils.py, ``f1_score`` (after HotpotQA's); Yen et al. 2024, arXiv:2402.16617.
    """
    return max(_token_f1_yesno0(normalise_squad_re(prediction), normalise_squad_re(gold)) for gold in golds)


def f1_triviaqa(prediction: str, golds: Sequence[str]) -> float:
    """``f1_triviaqa``: token F1 after ``normalise_triviaqa``, the best over golds. Source: as there, ``f1_score``."""
    return _best_token_f1(prediction, golds, normalise_triviaqa)


_ZERO_OR_ONE: dict[str, Callable[[str, Sequence[str]], bool]] = {
    "em": exact_match,
    "em_re": exact_match_re,
    "sub_em": substring_exact_match,
    "em_triviaqa": exact_match_triviaqa,
    "acc_popqa": accuracy_popqa,
    "match_selfrag": match_selfrag,
    "em_lmeval_nq": exact_match_lmeval_nq,
    "em_lmeval_triviaqa": exact_match_lmeval_triviaqa,
    "has_answer_dpr": has_answer_dpr,
}
_F1: dict[str, Callable[[str, Sequence[str]], float]] = {
    "f1": f1_squad,
    "f1_yesno0": f1_yesno0,
    "f1_triviaqa": f1_triviaqa,
}

_DIALECTS: dict[str, Callable[[str, Sequence[str]], float]] = {**_ZERO_OR_ONE, **_F1}

DIALECTS: frozenset[str] = frozenset(_DIALECTS)
"""The names that ``score_answer`` gives."""

BINARY: frozenset[str] = frozenset(_ZERO_OR_ONE)
"""The dialects whose scores are 0 or 1: their mean is a proportion. The others lie between."""


CONTAINING: frozenset[str] = frozenset({"sub_em", "acc_popqa", "match_selfrag", "has_answer_dpr"})
"""The dialects that look for a gold inside the prediction: an empty gold stands in all."""


def score_answer(prediction: str, golds: Sequence[str]) -> dict[str, float]:
    """The score of ``prediction`` in every dialect, each in [0, 1] and each the best over ``golds``.

    Raises ``InputError`` when there is no gold; the caller knows the example's name and adds it.
    """
    _require_golds(golds)
    return {name: float(score(prediction, golds)) for name, score in _DIALECTS.items()}


def _require_golds(golds: Sequence[str]) -> None:
    if isinstance(golds, str):
        raise InputError(f"expected a list of gold answers, got the text {golds[:60]!r}; parse it first if it is JSON")
    if not golds:
        raise InputError("expected at least one gold answer, got none")


def _token_f1(prediction: str, gold: str) -> float:
    """2PR / (P + R) over the multisets of whitespace tokens; 0 when they share none. Both are normalised already."""
    prediction_tokens, gold_tokens = prediction.split(), gold.split()
    if set(prediction_tokens).isdisjoint(gold_tokens):  # most wrong answers: no need to count
        return 0.0
    shared = (Counter(prediction_tokens) & Counter(gold_tokens)).total()
    precision, recall = shared / len(prediction_tokens), shared / len(gold_tokens)
    return 2 * precision * recall / (precision + recall)


def _token_f1_yesno0(prediction: str, gold: str) -> float:
    if prediction != gold and not {prediction, gold}.isdisjoint({"yes", "no", "noanswer"}):
        return 0.0
    return _token_f1(prediction, gold)


def _best_token_f1(prediction: str, golds: Sequence[str], normalise: Callable[[str], str]) -> float:
    normalised = normalise(prediction)
    return max(_token_f1(normalised, normalise(gold)) for gold in golds)


def _exact_match_lmeval(prediction: str, golds: Sequence[str]) -> bool:
    """Equal to a gold after lower-casing and deleting punctuation. Source: lm-eval 0.4.13, api/metrics.py.

    lm-eval lower-cases in numpy arrays, whose elements cannot grow: "İ" becomes two characters, so the prediction is
    cut at its own former length and the golds at that of the longest one. Nothing else is affected.
    """
    gold_width = max(map(len, golds))
    return _normalise_lmeval(prediction, len(prediction)) in (_normalise_lmeval(gold, gold_width) for gold in golds)


def _normalise_lmeval(text: str, width: int) -> str:
    return text.lower()[:width].translate(_DELETE_PUNCTUATION)
