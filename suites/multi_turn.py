"""Conversations: the question needs what was said before.

Protocol (arXiv:2509.01092v2, Tables 4 and 5; its history format, metric and training set are not stated). Every turn of
TopiOCQA's validation set, of QReCC's and ORConvQA's test sets is a question, in the form of
``harness.data.conversations``: at most ``history`` earlier turns, the latest, with their gold answers, stand in the
question itself; none of them is ever compressed. An older turn is forgotten, so a question that needs it cannot be
answered. Passages come from a frozen retrieval, which searched for the question after all its earlier turns.

Scores: every dialect of ``harness.metrics`` over all turns (Table 5), and ``em@T`` and ``f1@T`` over the turns T and
later, T = 2, 4, 6 (Table 4): the first turn is the first, so a turn T has T - 1 before it.

In the synthetic world a conversation (hub/McGill-NLP/TopiOCQA) asks about two people, four questions each. Only the
first of four names the person ("what is the birthplace of Mirel Tovan", "what is the rival"): 3 of 4 turns need the
history, and turn 5 changes the subject, as TopiOCQA's conversations do. ``chance`` is the world's chance line.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from harness.data.conversations import as_question
from harness.data.sources import DataRoot
from harness.data.world import is_world
from harness.data.world.facts import chance
from harness.errors import InputError
from harness.metrics import CONTAINING, score_answer
from harness.protocol import Example
from harness.record import MadeSuiteSpec, RetrievalSpec
from suites import qa

THRESHOLDS = (2, 4, 6)
BY_TURN = ("em", "f1")


@dataclass(frozen=True, kw_only=True)
class MultiTurnConfig:
    """``history``: how many earlier turns stand in a question, the latest; 0 asks every question alone."""

    history: int = 10

    def __post_init__(self) -> None:
        if self.history < 0:
            raise InputError(f"expected a history of at least 0 turns, got {self.history}")

    def build(
        self, name: str, root: DataRoot, *, passages: int, frozen: Path | None, limit: int | None, shots: int = 0
    ) -> MultiTurnSuite:
        """The conversations ``name`` with the first ``passages`` of ``frozen`` (None: closed-book) at every turn."""
        if shots:
            raise InputError(f"suite {name} is asked without demonstrations; got {shots} shots")
        asked = qa.build(name, root, passages=passages, frozen=frozen, limit=limit)
        return MultiTurnSuite(
            name=name,
            spec=MadeSuiteSpec(**asdict(asked.spec), settings=asdict(self)),
            retrieval=asked.retrieval,
            questions=tuple(
                replace(turn, question=as_question(turn.meta["asked"], turn.meta["earlier"], self.history))
                for turn in asked.questions
            ),
        )


@dataclass(frozen=True, kw_only=True)
class MultiTurnSuite:
    """Turns with their passages, and the two parts of the spec that identify them."""

    name: str
    spec: MadeSuiteSpec
    retrieval: RetrievalSpec | None
    questions: tuple[Example, ...]
    demonstrations: tuple[()] = ()

    def examples(self) -> Iterable[Example]:
        return self.questions

    def score(self, example: Example, text: str) -> dict[str, float]:
        scores = score_answer(text, example.answers)
        if not any(answer.strip() for answer in example.answers):  # QReCC has such; they stand in every answer
            scores = {name: score for name, score in scores.items() if name not in CONTAINING}
        late = {
            f"{name}@{turn}": scores[name] for turn in THRESHOLDS if example.meta["turn"] >= turn for name in BY_TURN
        }
        if is_world(self.spec.root):
            late["chance"] = chance(example.passages, example.meta["rewrite"], example.answers)
        return scores | late
