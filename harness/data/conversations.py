"""Conversations as single questions: what was said before stands in the question, as plain text.

A row is one turn, in the columns that TopiOCQA (arXiv:2110.00768) and QReCC (arXiv:2010.04898) share:

    Conversation_no, Turn_no    numbers; together they name the turn
    Question, Answer            text; an answer may be empty (QReCC's unanswerable questions)
    Context                     the earlier questions and answers in turn, oldest first; empty at the first turn
    Additional_answers          may be absent: a list of {"Answer": text}, other people's answers (TopiOCQA)
    Rewrite                     may be absent: the question with all that it needs from before (QReCC, the world)

TopiOCQA's files have one line per turn in these names. Its Hub repository has been a loading script, which ``datasets``
no longer runs; then a mirror of the files with a card serves. ORConvQA (arXiv:2005.11364) names its columns otherwise: a
mirror of it has to be brought into these.

How a turn is asked, with the last n of the earlier turns ("history"):

    question one? answer one. question two? answer two. question three

This is a choice of ours: arXiv:2509.01092 does not state its format.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from harness.errors import InputError

COLUMNS = ("Conversation_no", "Turn_no", "Question", "Context", "Answer")
OPTIONAL_COLUMNS = ("Additional_answers", "Rewrite")

Turn = tuple[str, str]
"""An earlier question and its answer."""


def as_question(asked: str, earlier: Sequence[Turn], history: int | None = None) -> str:
    """``asked`` after the last ``history`` of the ``earlier`` turns (None: all of them), on one line."""
    kept = list(earlier) if history is None else list(earlier)[max(0, len(earlier) - history) :]
    said = [f"{_line(question).rstrip('?').rstrip()}? {_line(answer).rstrip('.')}." for question, answer in kept]
    return " ".join([*said, _line(asked)])


def whole_question(row: Mapping[str, Any]) -> Any:
    """The row's question after everything that was said before. Raises ``InputError`` for a malformed ``Context``."""
    asked = row["Question"]
    return as_question(asked, earlier_turns(row)) if isinstance(asked, str) and asked.strip() else asked


def earlier_turns(row: Mapping[str, Any]) -> list[Turn]:
    """The turns before the row's. Raises ``InputError`` for a malformed ``Context``."""
    context = row["Context"]
    if not isinstance(context, list) or not all(isinstance(text, str) for text in context) or len(context) % 2:
        raise InputError(f"expected Context to be questions and answers in turn, all of them text, got {context!r:.80}")
    return list(zip(context[::2], context[1::2], strict=True))


def read_turn(prefix: str, row: Mapping[str, Any]) -> tuple[str, Any, dict[str, Any]]:
    """A row's id, its answers and its meta, for ``QuestionSet.read``.

    The meta has the question ``asked``, the ``earlier`` turns, which ``turn`` it is (from 1), and the ``rewrite``, None
    where the row has none. Raises ``InputError`` for malformed columns.
    """
    earlier = earlier_turns(row)
    more = row.get("Additional_answers") or []
    if not isinstance(more, list) or not all(isinstance(answer, Mapping) and "Answer" in answer for answer in more):
        raise InputError(f'expected Additional_answers to be a list of {{"Answer": text}}, got {more!r:.80}')
    answers = list(dict.fromkeys([row["Answer"], *(answer["Answer"] for answer in more)]))
    meta = {"asked": row["Question"], "earlier": earlier, "turn": len(earlier) + 1, "rewrite": row.get("Rewrite")}
    return f"{prefix}_{row['Conversation_no']}_{row['Turn_no']}", answers, meta


def _line(text: str) -> str:
    return " ".join(text.split())
