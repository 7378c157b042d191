"""Training batches that ask for what stood far back in the context: pass keys, and look-ups of one step and of two.

Beside ``practice``, whose vocabulary this is (``Exercise``, ``Row``). Training keys and people are never test ones.

One recipe for all systems (``PRACTICE``, ``stage``): each starts from its trained checkpoint and sees the same rows, so
the same tokens, in whatever form its method gives them. The tiny decoders know neither digits nor most of the template's
words (they are spelled in bytes), so this teaches to copy digit by digit, not only to look far back; ``Spelling`` is
there for that alone, and without it REFRAG learned no digit at all (results/LOG.md).
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

from harness import prompts
from harness.data.haystack import Hidden, Ruler, Words, filled
from harness.data.passkey import TRAINED_LENGTH, FILLER, draw_key, draw_owner, question, statement
from harness.data.world.links import TRAINED_DISTANCE, draw_chain
from harness.data.world.practice import Mixture
from harness.protocol import Passage
from harness.train.rows import Block, Row
from harness.train.stage import Muon, Schedule, Stage

if TYPE_CHECKING:
    from collections.abc import Sequence

    from transformers import PreTrainedTokenizerFast


@dataclass(frozen=True, kw_only=True)
class KeyFinding:
    """Rows of ``lengths`` tokens, ``tokens`` of context in a batch; ``keys`` are how many a context has, one drawn.

    Every key of a context is asked for, in random order, so that a forward pass gives more than one answer.
    """

    lengths: tuple[int, ...]
    tokens: int
    piece: int = 64
    keys: tuple[int, ...] = (1, 1, 2, 4)
    digits: int = 5

    def draw(self, rng: random.Random, position: int, tokenizer: PreTrainedTokenizerFast) -> list[Row]:  # noqa: ARG002
        length = rng.choice(self.lengths)
        return [self._row(rng, length, tokenizer) for _ in range(max(1, self.tokens // length))]

    def _row(self, rng: random.Random, length: int, tokenizer: PreTrainedTokenizerFast) -> Row:
        n = length // self.piece
        keys = min(rng.choice(self.keys), n)
        owners = [None] if keys == 1 else [draw_owner(rng, "train") for _ in range(keys)]
        numbers = [draw_key(rng, self.digits, "train") for _ in owners]
        hidden = [
            Hidden(text=statement(key, owner), depth=(place + rng.random()) / n)
            for place, key, owner in zip(rng.sample(range(n), keys), numbers, owners, strict=True)
        ]
        words = Words(FILLER, phase=rng.randrange(len(FILLER)))
        texts = filled(_ruler(tokenizer), words, hidden, length=length, piece=self.piece)
        row = _over(texts, tokenizer)
        asked = list(zip(owners, numbers, strict=True))
        _ask(row, [(question(owner), key) for owner, key in rng.sample(asked, keys)], tokenizer)
        return row


@dataclass(frozen=True, kw_only=True)
class Spelling:
    """Contexts of one of ``numbers`` numbers, to be said again: every digit an answer, where a key gives five."""

    numbers: tuple[int, ...] = (1, 2, 4, 8)
    tokens: int = 1024
    digits: int = 5

    def draw(self, rng: random.Random, position: int, tokenizer: PreTrainedTokenizerFast) -> list[Row]:  # noqa: ARG002
        count = rng.choice(self.numbers)
        return [self._row(rng, count, tokenizer) for _ in range(max(1, self.tokens // (count * (self.digits + 1))))]

    def _row(self, rng: random.Random, count: int, tokenizer: PreTrainedTokenizerFast) -> Row:
        row = _over([" ".join(draw_key(rng, self.digits, "train") for _ in range(count))], tokenizer)
        row.say(row.context[0].text, answer=True)
        return row


@dataclass(frozen=True, kw_only=True)
class Following:
    """Chains of ``links``, at one of ``distances`` tokens, in one step or in two: both look-ups of a context.

    Never one look-up in both ways: the second answer would be copied from the first.
    """

    distances: tuple[int, ...]
    tokens: int
    piece: int = 32

    def draw(self, rng: random.Random, position: int, tokenizer: PreTrainedTokenizerFast) -> list[Row]:  # noqa: ARG002
        distance = rng.choice(self.distances)
        return [self._row(rng, distance, tokenizer) for _ in range(max(1, self.tokens // distance))]

    def _row(self, rng: random.Random, distance: int, tokenizer: PreTrainedTokenizerFast) -> Row:
        chain = draw_chain(rng, _ruler(tokenizer), "train", distance=distance, piece=self.piece)
        row = _over(chain.passages, tokenizer)
        asked = rng.sample([chain.far, chain.other], 2)
        two_steps = rng.random() < 0.5
        _ask(row, [(each.two_steps if two_steps else each.one_step, each.answer) for each in asked], tokenizer)
        return row


PRACTICE = Mixture(
    exercises=(
        Spelling(),
        KeyFinding(lengths=(64, 128, 256, TRAINED_LENGTH), tokens=3072),
        KeyFinding(lengths=(64, 128, 256, TRAINED_LENGTH), tokens=3072),
        Following(distances=(32, 64, 128, 256, TRAINED_DISTANCE), tokens=2048),
    )
)
LANGUAGE_WEIGHT = 0.02


def stage(trained: tuple[str, ...] = ("",), boosted: tuple[str, ...] = (), boost: float = 1.0) -> Stage:
    """How long and at what rates; ``trained`` is what a system's method trains, ``boosted`` what it takes faster."""
    return Stage(
        name="memory",
        steps=800,
        optimizer=Muon(lr=1e-3, adamw_lr=7e-4),
        schedule=Schedule(warmup=0.04, decay="cosine", floor=0.05),
        trained=trained,
        boosted=boosted,
        boost=boost,
    )


@lru_cache(maxsize=1)
def _ruler(tokenizer: PreTrainedTokenizerFast) -> Ruler:
    """One for all rows: it remembers what words cost."""
    return Ruler(tokenizer)


def _over(texts: Sequence[str], tokenizer: PreTrainedTokenizerFast) -> Row:
    template = prompts.TAGGED
    passages = [Passage(id="", title="", text=text) for text in texts]
    blocks = [Block(*block) for block in template.passage_blocks(tokenizer, passages)]
    return Row(start=template.start_ids(tokenizer), context=blocks)


def _ask(row: Row, asked: Sequence[tuple[str, str]], tokenizer: PreTrainedTokenizerFast) -> None:
    """Append each question and its answer."""
    questions = prompts.TAGGED.question_ids(tokenizer, [text for text, _ in asked])
    answers = prompts.text_ids(tokenizer, [answer for _, answer in asked])
    for ids, answer in zip(questions, answers, strict=True):
        row.say(ids)
        row.say([*answer, tokenizer.eos_token_id], answer=True)
