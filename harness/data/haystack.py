"""Long contexts of an exact length: filler in pieces of so many decoder tokens, with sentences hidden at set depths.

Lengths only compare if they are exact, and only the decoder's own tokenizer knows them: so texts are measured by it, in
whole words, and a piece that ends with room for no further word is filled up with a word of one token. Nothing is cut
inside a word and tokenised again, where borders would drift. What is hidden is never cut at all: a piece is a passage,
and some systems read every passage apart.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from harness.errors import InputError
from harness.prompts import text_ids

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PADDING = ("is", "the", "and", "a")  # one of them is one token in any tokenizer that was seen


class Ruler:
    """Measures words in tokens of ``tokenizer``. Raises ``InputError`` where no word of ``PADDING`` is one token."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        self._known: dict[tuple[str, bool], int] = {}
        found = [word for word in PADDING if self.cost(word) == self.cost(word, first=True) == 1]
        if not found:
            raise InputError(
                f"expected a tokenizer to which one of {', '.join(PADDING)} is one token; this one has no such word, "
                "so contexts cannot be made of an exact length"
            )
        self.padding = found[0]

    def length(self, text: str) -> int:
        """The tokens of ``text`` alone."""
        return self.lengths([text])[0]

    def lengths(self, texts: Sequence[str]) -> list[int]:
        """The tokens of each text alone; many in one call cost little more than one."""
        return [len(ids) for ids in text_ids(self.tokenizer, texts)]

    def cost(self, word: str, *, first: bool = False) -> int:
        """What ``word`` adds to a text: as its first word, or after others."""
        if (word, first) not in self._known:
            alone = self.length(word)
            self._known[word, first] = alone if first else self.length(f"the {word}") - self.length("the")
        return self._known[word, first]

    def fill(self, words: Words, room: int, *, first: bool) -> list[str]:
        """The next of ``words`` that have room, and padding: ``room`` tokens together."""
        said: list[str] = []
        while (cost := self.cost(words.next, first=first and not said)) <= room:
            said.append(words.take())
            room -= cost
        return said + [self.padding] * room


class Words:
    """``before`` once, then ``filler`` over and over from word ``phase``; the next one can be looked at."""

    def __init__(self, filler: Sequence[str], phase: int, before: Sequence[str] = ()) -> None:
        self._words = itertools.chain(before, itertools.islice(itertools.cycle(filler), phase % len(filler), None))
        self.next = next(self._words)

    def take(self) -> str:
        word, self.next = self.next, next(self._words)
        return word


@dataclass(frozen=True, kw_only=True)
class Hidden:
    """A text, and how deep it stands: 0 is the start of the context, 1 its end."""

    text: str
    depth: float


def filled(ruler: Ruler, words: Words, hidden: Sequence[Hidden], *, length: int, piece: int) -> list[str]:
    """``length`` tokens of ``words`` in texts of ``piece`` tokens each, with ``hidden`` in them, at most one in each.

    At depth d of n pieces the position is d n: its whole part names the piece (the last one at most), the rest how
    deep in the piece. Raises ``InputError`` for lengths that are no multiple of ``piece``, for texts that find no room
    in one, and for two that would share one.
    """
    if piece < 1 or length < 1 or length % piece:
        raise InputError(f"expected a length that is a multiple of {piece}, the tokens of a piece; got {length}")
    n = length // piece
    placed: dict[int, Hidden] = {}
    for needle in hidden:
        if (number := piece_at(needle.depth, n)) in placed:
            raise InputError(f"two hidden texts in piece {number + 1} of {n}; expected one at most")
        placed[number] = needle
    return [_piece(ruler, words, placed.get(number), number, n, piece) for number in range(n)]


def piece_at(depth: float, n: int) -> int:
    """Which of ``n`` pieces lies at ``depth``."""
    if not 0 <= depth <= 1:
        raise InputError(f"expected a depth from 0 to 1, got {depth}")
    return min(int(depth * n), n - 1)


def _piece(ruler: Ruler, words: Words, needle: Hidden | None, number: int, n: int, piece: int) -> str:
    if needle is None:
        return " ".join(ruler.fill(words, piece, first=True))
    # Rounded down first: as the first word of a piece a text may take another number of tokens than after others.
    within = needle.depth * n - number
    before = int(within * max(0, piece - ruler.length(needle.text)))
    front = ruler.fill(words, before, first=True)
    room = piece - before - ruler.cost(needle.text, first=not front)
    if room < 0:
        raise InputError(f"{needle.text!r} takes {piece - before - room} tokens; a piece has {piece}")
    return " ".join([*front, needle.text, *ruler.fill(words, room, first=False)])


def check_lengths(ruler: Ruler, pieces: Sequence[str], piece: int) -> None:
    """Raise ``InputError`` for a piece that is not ``piece`` tokens: a tokenizer that merges across words."""
    distinct = list(dict.fromkeys(pieces))
    for text, tokens in zip(distinct, ruler.lengths(distinct), strict=True):
        if tokens != piece:
            raise InputError(
                f"expected {piece} tokens, got {tokens} for {text[:60]!r}: this tokenizer merges across words, so "
                "contexts cannot be made of an exact length"
            )
