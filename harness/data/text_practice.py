"""Endless training batches of long texts, in the rows of ``harness.data.world.practice``. The exercises:

- ``NextToken``: a window, every token of it predicted (pre-training).
- ``NextParagraph``: x_1:s as context, x_s+1:s+o to be predicted from it (arXiv:2509.01092v2, section 4).
- ``Repeating``: x_1:kL as context, and again as what is to be predicted (reconstruction).

A row is a window of one document, drawn evenly over all places where it fits; the sets of a text come equally often
(the paper: half books, half arXiv). A window starts after BOS wherever in a document it lies. The context is in
passages of ``PASSAGE`` tokens, for what reads passages apart; none has a tag, so to all others it is one text.

An exercise is written into a recipe without its text, so that a recipe says nothing of where data lie; ``over`` binds
it, and a training's identity has the text's name beside the recipe's.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from harness.data.text import Text, open_text
from harness.data.world.practice import Growing
from harness.model.chunking import split
from harness.train.rows import Block, Row

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from transformers import PreTrainedTokenizerFast

PASSAGE = 64  # tokens; a multiple of every k, so that chunks never know of it


@dataclass(frozen=True, kw_only=True)
class TextExercise:
    """What all exercises over a text share; ``folder`` is a prepared text."""

    folder: Path | None = None

    def over(self, folder: Path) -> Self:
        """The same exercise over the text in ``folder``."""
        return replace(self, folder=folder)

    @property
    def text(self) -> Text:
        assert self.folder is not None, "an exercise is bound to its text before it is drawn from"
        return open_text(self.folder)


@dataclass(frozen=True, kw_only=True)
class NextToken(TextExercise):
    """``rows`` windows of ``length`` tokens after BOS."""

    length: int = 384
    rows: int = 8

    def draw(self, rng: random.Random, position: int, tokenizer: PreTrainedTokenizerFast) -> list[Row]:  # noqa: ARG002
        rows = [Row(start=[tokenizer.bos_token_id], context=[]) for _ in range(self.rows)]
        for row in rows:
            row.say(draw_window(self.text, rng, self.length), answer=True)
        return rows


@dataclass(frozen=True, kw_only=True)
class NextParagraph(TextExercise):
    """``rows`` windows of ``context`` tokens and, to be predicted, the ``output`` that follow."""

    context: int = 256
    output: int = 128
    rows: int = 16

    def draw(self, rng: random.Random, position: int, tokenizer: PreTrainedTokenizerFast) -> list[Row]:  # noqa: ARG002
        rows = []
        for _ in range(self.rows):
            ids = draw_window(self.text, rng, self.context + self.output)
            rows.append(Row(start=[tokenizer.bos_token_id], context=passages(ids[: self.context])))
            rows[-1].say(ids[self.context :], answer=True)
        return rows


@dataclass(frozen=True, kw_only=True)
class Repeating(TextExercise):
    """Contexts as long as ``growing`` says, each followed by its own text."""

    growing: Growing

    def draw(self, rng: random.Random, position: int, tokenizer: PreTrainedTokenizerFast) -> list[Row]:
        length, n_rows = self.growing.draw(rng, position)
        rows = []
        for _ in range(n_rows):
            ids = draw_window(self.text, rng, length)
            rows.append(Row(start=[tokenizer.bos_token_id], context=passages(ids)))
            rows[-1].say(ids, answer=True)
        return rows


def passages(ids: list[int]) -> list[Block]:
    """A context as blocks of ``PASSAGE`` tokens without tags."""
    return [Block([], piece) for piece in split(ids, PASSAGE)]


def draw_window(text: Text, rng: random.Random, length: int) -> list[int]:
    """``length`` ids of the training split: a set at random, then any place in it where they lie in one document."""
    name = rng.choice(text.sets)
    ids, borders = text.ids("train", name)
    until = _places(text.folder, name, length)
    place = rng.randrange(int(until[-1]))
    document = int(np.searchsorted(until, place, side="right"))
    start = int(borders[document]) + place - (int(until[document - 1]) if document else 0)
    window: list[int] = ids[start : start + length].tolist()
    return window


@lru_cache
def _places(folder: Path, name: str, length: int) -> NDArray[Any]:
    """How many windows of ``length`` start in a set's documents up to and with each of them."""
    _, borders = open_text(folder).ids("train", name)
    return np.cumsum(np.maximum(0, np.diff(borders) - length + 1))
