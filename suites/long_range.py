"""Long-range dependency: is a fact found so many tokens away, named in the question or to be found first?

Protocol. Contexts are ``harness.data.world.links``: what is true of B, ``distance`` tokens of other people's facts, and
at the end a passage that links A to B (and somebody else to D, whose facts are told in between). With ``steps`` = 2 the
question names A, so both statements are needed, and the second is looked up ``distance`` tokens before the first. With
``steps`` = 1, the control, it names B: the same passages, the same answer at the same distance, one look-up. All people
are test people. Passages have exactly ``piece`` decoder tokens each, and every system gets the same.

Scores: every dialect of ``harness.metrics``, and beside them ``chance``, the expected exact match of a reader that
finds a value of the asked relation but ignores whose (``harness.data.world.facts.chance``), and ``other_link``, how
often the answer is D's: a reader that follows either link has both at one half.
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from harness.data.haystack import Ruler, check_lengths
from harness.data.world.facts import chance
from harness.data.world.links import draw_chain
from harness.errors import InputError
from harness.metrics import exact_match, score_answer
from harness.protocol import Example, Passage
from harness.record import MadeSuiteSpec, RetrievalSpec
from suites.made import identify

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

STEPS = (1, 2)


@dataclass(frozen=True, kw_only=True)
class LongRangeConfig:
    """``distance`` and ``piece`` in decoder tokens; ``n`` questions."""

    distance: int
    steps: int = 2
    n: int = 200
    piece: int = 32
    seed: int = 0

    def __post_init__(self) -> None:
        if self.steps not in STEPS:
            raise InputError(f"expected {' or '.join(map(str, STEPS))} steps, got {self.steps}")
        if self.n < 1:
            raise InputError(f"expected at least 1 question, got {self.n}")

    def build(self, name: str, tokenizer: PreTrainedTokenizerBase, limit: int | None) -> LongRangeSuite:
        """The suite in tokens of ``tokenizer``. Raises ``InputError`` where a passage has no room for its facts."""
        ruler = Ruler(tokenizer)
        questions = tuple(self._example(ruler, number) for number in range(self.n)[:limit])
        check_lengths(ruler, [p.text for example in questions for p in example.passages], self.piece)
        spec, retrieval = identify(name, asdict(self), questions, limit)
        return LongRangeSuite(
            name=name,
            spec=spec,
            retrieval=retrieval,
            passages=max(len(example.passages) for example in questions),
            questions=questions,
        )

    def _example(self, ruler: Ruler, number: int) -> Example:
        # Not of the steps: both ask about the same contexts.
        rng = random.Random(f"long-range-{self.seed}-{self.distance}-{number}")
        chain = draw_chain(rng, ruler, "test", distance=self.distance, piece=self.piece)
        return Example(
            id=f"{self.distance}-{number}",
            question=chain.far.two_steps if self.steps == 2 else chain.far.one_step,
            answers=(chain.far.answer,),
            passages=tuple(Passage(id=str(place), title="", text=text) for place, text in enumerate(chain.passages)),
            meta={"other": chain.other.answer},
        )


@dataclass(frozen=True, kw_only=True)
class LongRangeSuite:
    """Questions with their contexts, and what identifies them. ``passages`` are those of the longest context."""

    name: str
    spec: MadeSuiteSpec
    retrieval: RetrievalSpec
    passages: int
    questions: tuple[Example, ...]
    demonstrations: tuple[()] = ()

    def examples(self) -> Iterable[Example]:
        return self.questions

    def score(self, example: Example, text: str) -> dict[str, float]:
        return score_answer(text, example.answers) | {
            "chance": chance(example.passages, example.question, example.answers),
            "other_link": float(exact_match(text, [example.meta["other"]])),
        }
