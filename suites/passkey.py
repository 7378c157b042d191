"""Passkey retrieval: is a number remembered, however long the context and wherever in it the number stands?

Protocol. The words are Landmark Attention's (arXiv:2305.16300; ``harness.data.passkey``). A context has exactly
``length`` decoder tokens, in passages of ``piece`` tokens each; every system gets the same passages, without the
question. Lengths count the passages' text, instructions included; the template's markup (a tag per passage, the
question) comes on top and is in a record's ``decoder_positions``. At each of ``depths`` (percent: 0 stands first, 100
last) ``n`` contexts are asked about, with a key of ``digits`` digits each, drawn from the test keys. The statement of a
key is never cut in two: a passage is all that some systems see at once. With ``keys`` above 1 each has an owner, the
one asked for stands at the depth and the others in passages drawn at random.

Scores: ``em``, the whole number and nothing else; ``em@D``, the same at depth D alone; ``digits``, the share of digits
that are right at their place. A guess is right in one of 9 x 10^(digits - 1); with several keys one of them is, for a
reader that ignores whose it is: ``chance``.

Departures from the published test:

1. The question goes through the prompt template that all suites share ("What is the pass key?" and the answer), where
   the original ends in "The pass key is".
2. All keys have as many digits (there: 1 to 50,000).
3. ``instructions`` may be left out: a tokenizer that spells their words in bytes would make them longer than a short
   context.

The suite needs the tokenizer of the decoder. The other way, a vocabulary laid out so that words are tokens, would tie
the suite to one tokenizer.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from harness.data.haystack import Hidden, Ruler, Words, check_lengths, filled, piece_at
from harness.data.passkey import FILLER, INSTRUCTIONS, draw_key, draw_owner, question, statement
from harness.errors import InputError
from harness.metrics import exact_match
from harness.protocol import Example, Passage
from harness.record import MadeSuiteSpec, RetrievalSpec
from suites.made import identify

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, kw_only=True)
class PasskeyConfig:
    """``length`` and ``piece`` in decoder tokens, ``depths`` in percent, ``n`` contexts at each of them."""

    length: int
    depths: tuple[int, ...] = (0, 25, 50, 75, 100)
    n: int = 50
    keys: int = 1
    digits: int = 5
    piece: int = 64
    instructions: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.n, self.keys, self.digits, self.piece) < 1:
            raise InputError(
                f"expected at least 1 context, key, digit and token of a piece, got {self.n}, {self.keys}, "
                f"{self.digits} and {self.piece}"
            )
        if self.keys > (most := 9 * 10 ** (self.digits - 1) // 5):
            raise InputError(f"there are {most} test keys of {self.digits} digits, expected no more, got {self.keys}")
        if not self.depths or not all(0 <= depth <= 100 for depth in self.depths):
            raise InputError(f"expected depths from 0 to 100 percent, got {self.depths}")
        if len(set(self.depths)) < len(self.depths):
            raise InputError(f"expected every depth once, got {self.depths}")

    def build(self, name: str, tokenizer: PreTrainedTokenizerBase, limit: int | None) -> PasskeySuite:
        """The suite in tokens of ``tokenizer``; depths take turns, so the first ``limit`` questions have them all.

        Raises ``InputError`` where a context has no room for what belongs in it.
        """
        ruler = Ruler(tokenizer)
        places = [(number, depth) for number in range(self.n) for depth in self.depths][:limit]
        questions = tuple(self._example(ruler, number, depth) for number, depth in places)
        check_lengths(ruler, [p.text for example in questions for p in example.passages], self.piece)
        spec, retrieval = identify(name, asdict(self), questions, limit)
        return PasskeySuite(
            name=name,
            spec=spec,
            retrieval=retrieval,
            passages=self.length // self.piece,
            questions=questions,
        )

    def _example(self, ruler: Ruler, number: int, depth: int) -> Example:
        rng = random.Random(f"passkey-{self.seed}-{self.length}-{depth}-{number}")
        before = INSTRUCTIONS.split() if self.instructions else []
        words = Words(FILLER, phase=rng.randrange(len(FILLER)), before=before)
        # Whole pieces in front, so that depth 0 is where the instructions end.
        head = self.piece * -(-sum(map(ruler.cost, before)) // self.piece)
        if self.length < head + self.keys * self.piece:
            raise InputError(
                f"a context of {self.length} tokens has no room for {head} tokens of instructions and {self.keys} "
                f"keys in pieces of {self.piece}; expected {head + self.keys * self.piece} at least"
            )
        front = filled(ruler, words, [], length=head, piece=self.piece) if head else []
        n = (self.length - head) // self.piece
        owners: list[str | None] = (
            [None] if self.keys == 1 else [*_different(self.keys, lambda: draw_owner(rng, "test"))]
        )
        keys = _different(self.keys, lambda: draw_key(rng, self.digits, "test"))
        free = [place for place in range(n) if place != piece_at(depth / 100, n)]
        depths = [depth / 100, *((place + rng.random()) / n for place in rng.sample(free, self.keys - 1))]
        hidden = [
            Hidden(text=statement(key, owner), depth=at) for key, owner, at in zip(keys, owners, depths, strict=True)
        ]
        texts = [*front, *filled(ruler, words, hidden, length=self.length - head, piece=self.piece)]
        return Example(
            id=f"{self.length}-{depth}-{number}",
            question=question(owners[0]),
            answers=(keys[0],),
            passages=tuple(Passage(id=str(place), title="", text=text) for place, text in enumerate(texts)),
            meta={"depth": depth},
        )


@dataclass(frozen=True, kw_only=True)
class PasskeySuite:
    """Questions with their contexts, and what identifies them. ``passages`` are those of a context."""

    name: str
    spec: MadeSuiteSpec
    retrieval: RetrievalSpec
    passages: int
    questions: tuple[Example, ...]
    demonstrations: tuple[()] = ()

    def examples(self) -> Iterable[Example]:
        return self.questions

    def score(self, example: Example, text: str) -> dict[str, float]:
        (key,) = example.answers
        em = float(exact_match(text, example.answers))
        right = sum(said == digit for said, digit in zip(text.strip(), key, strict=False))
        scores = {"em": em, f"em@{example.meta['depth']}": em, "digits": right / len(key)}
        if (keys := self.spec.settings["keys"]) > 1:
            scores["chance"] = 1 / keys
        return scores


def _different(n: int, draw: Callable[[], str]) -> list[str]:
    found: dict[str, None] = {}
    while len(found) < n:
        found[draw()] = None
    return list(found)
