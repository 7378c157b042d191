"""Training batches that ask for what stood far back in the context: pass keys, and look-ups of one step and of two.

Beside ``practice``, whose vocabulary this is (``Exercise``, ``Row``). Training keys and people are never test ones.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

from harness import prompts
from harness.data.haystack import Hidden, Ruler, filled
from harness.data.passkey import FILLER, draw_key, draw_owner, question, statement
from harness.data.world.links import draw_chain
from harness.protocol import Passage
from harness.train.rows import Block, Row

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
        texts = filled(
            _ruler(tokenizer), FILLER, hidden, length=length, piece=self.piece, phase=rng.randrange(len(FILLER))
        )
        row = _over(texts, tokenizer)
        asked = list(zip(owners, numbers, strict=True))
        _ask(row, [(question(owner), key) for owner, key in rng.sample(asked, keys)], tokenizer)
        return row


@dataclass(frozen=True, kw_only=True)
class Following:
    """Chains of ``links``, at one of ``distances`` tokens: both steps asked for, and the far one alone."""

    distances: tuple[int, ...]
    tokens: int
    piece: int = 32

    def draw(self, rng: random.Random, position: int, tokenizer: PreTrainedTokenizerFast) -> list[Row]:  # noqa: ARG002
        distance = rng.choice(self.distances)
        return [self._row(rng, distance, tokenizer) for _ in range(max(1, self.tokens // distance))]

    def _row(self, rng: random.Random, distance: int, tokenizer: PreTrainedTokenizerFast) -> Row:
        chain = draw_chain(rng, _ruler(tokenizer), "train", distance=distance, piece=self.piece)
        row = _over(chain.passages, tokenizer)
        _ask(row, [(chain.two_steps, chain.far), (chain.one_step, chain.far)], tokenizer)
        return row


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
