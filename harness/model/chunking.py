"""Passages cut into chunks of k decoder tokens, laid out for an encoder.

Chunks are counted in tokens of the *decoder*, because they stand for decoder positions; a chunk never crosses the
border of what is given as one, a passage as a rule, so that a passage is prepared once for all questions; the last
chunk of it may be shorter. (The paper leaves all three open.) Markup such as a passage tag is not part of any chunk.

An encoder with a tokenizer of its own reads the text of the chunks (``chunk_texts``): no text is lost, and every
character belongs to exactly one chunk. Every chunk keeps at least one encoder position, even where it has no text.

Legend: N encoder rows, S encoder positions, M chunks of all passages together.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, pairwise, takewhile
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from torch import Tensor

from harness import prompts

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Window = Literal["chunk", "passage"]
WINDOWS: tuple[Window, ...] = ("chunk", "passage")
UTF8_LONGEST = 4  # bytes of a character


def split(ids: Sequence[int], k: int) -> list[list[int]]:
    """``ids`` in pieces of ``k``; the last one may be shorter."""
    return [list(ids[start : start + k]) for start in range(0, len(ids), k)]


def expanded_count(p: float, n_chunks: int) -> int:
    """How many of ``n_chunks`` a share of ``p`` is: round(p L), halves up."""
    share = round(p * n_chunks, 9)  # 0.7 * 45 is 31.499999999999996
    return min(n_chunks, math.floor(share + 0.5))


def context_positions(tags: int, lengths: Sequence[int], expand: float) -> int:
    """The most decoder positions of chunks of these ``lengths`` beside ``tags`` tokens: the longest are expanded."""
    longest = sorted(lengths, reverse=True)[: expanded_count(expand, len(lengths))]
    return tags + len(lengths) + sum(length - 1 for length in longest)


def effective_rate(k: int, expanded: int, n_chunks: int) -> float:
    """k / (1 - p + k p) at the share p that was really expanded (p. 5); 1 where there is nothing to compress."""
    p = expanded / n_chunks if n_chunks else 1.0
    return k / (1 - p + k * p)


@dataclass(frozen=True)
class EncoderInputs:
    """What an encoder reads. ``chunk_NS`` is the chunk (0..M-1) of every position, -1 where it belongs to none."""

    ids_NS: Tensor
    mask_NS: Tensor
    chunk_NS: Tensor

    def to(self, device: torch.device) -> EncoderInputs:
        """The same on ``device``."""
        return EncoderInputs(self.ids_NS.to(device), self.mask_NS.to(device), self.chunk_NS.to(device))


def encoder_inputs(passages: Sequence[Sequence[int]], k: int, window: Window, pad_id: int) -> EncoderInputs:
    """Decoder tokens of the passages for an encoder that shares the decoder's vocabulary, padded on the right.

    Chunks are numbered passage by passage. With ``window="chunk"`` every chunk is a row of its own (the paper);
    with ``"passage"`` every passage is one row, and its chunks see one another.
    """
    lengths = [min(k, len(passage) - start) for passage in passages for start in range(0, len(passage), k)]
    tokens = torch.from_numpy(np.fromiter(chain.from_iterable(passages), np.int64))
    numbers = torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths, dtype=torch.long))
    of_rows = lengths if window == "chunk" else [len(passage) for passage in passages if passage]
    return _padded(tokens, numbers, of_rows, pad_id)


def retokenised_inputs(
    passages: Sequence[Sequence[int]],
    k: int,
    window: Window,
    decoder_tokenizer: PreTrainedTokenizerBase,
    encoder_tokenizer: PreTrainedTokenizerBase,
) -> EncoderInputs:
    """The same for an encoder with another tokenizer: each window's text, tokenised anew between its special tokens.

    Every chunk is tokenised on its own in both windows, so that every encoder token lies in one chunk. The special
    tokens of a row belong to its chunk where that is the whole row (``window="chunk"``), else to none. A chunk that
    gives no tokens (its bytes belong to a character that a later one completes) is one unknown token.
    """
    encode = encoder_tokenizer
    before, after = _specials(encode)
    padding = prompts.pad_id(encode)
    blank = padding if encode.unk_token_id is None else encode.unk_token_id
    rows, number = [], 0
    for passage in passages:
        texts = chunk_texts(decoder_tokenizer, passage, k)
        tokens = encode(texts, add_special_tokens=False, split_special_tokens=True)["input_ids"] if texts else []
        numbered = [[(token, number + i) for token in ids or [blank]] for i, ids in enumerate(tokens)]
        number += len(texts)
        if window == "chunk":
            rows += [
                [(t, own) for t in before] + ids + [(t, own) for t in after]
                for own, ids in enumerate(numbered, start=number - len(texts))
            ]
        elif numbered:
            rows.append(
                [(t, -1) for t in before] + [pair for ids in numbered for pair in ids] + [(t, -1) for t in after]
            )
    pairs = torch.tensor([pair for row in rows for pair in row], dtype=torch.long).view(-1, 2)
    return _padded(pairs[:, 0], pairs[:, 1], [len(row) for row in rows], padding)


def chunk_texts(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], k: int) -> list[str]:
    """The text of each chunk of ``ids``; joined they are the text of all of them.

    A token's text depends on its neighbours (spaces, characters spread over several byte tokens), so a chunk's text
    is what its tokens add to the text of all tokens before it. A character cut in two by a border goes to the chunk
    that completes it.
    """
    whole = _said(tokenizer, ids)
    borders = [0]
    for end in range(k, len(ids), k):
        borders.append(max(borders[-1], _border(tokenizer, ids[:end], whole)))
    borders.append(len(whole))
    return [whole[start:stop] for start, stop in pairwise(borders)] if ids else []


def _said(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    text: str = tokenizer.decode(list(ids), clean_up_tokenization_spaces=False)
    return text


def _border(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], whole: str) -> int:
    """How many characters of ``whole`` are complete with ``ids``, its first tokens.

    A character cut in two spoils the text of all byte tokens beside it, so the (at most three) that belong to it are
    left out.
    """
    said = [_said(tokenizer, ids)]
    while not whole.startswith(said[-1]) and len(said) < min(UTF8_LONGEST, len(ids) + 1):
        said.append(_said(tokenizer, ids[: -len(said)]))
    return max(_common_prefix(text, whole) for text in said)


def _common_prefix(left: str, right: str) -> int:
    same = takewhile(lambda pair: pair[0] == pair[1], zip(left, right, strict=False))
    return sum(1 for _ in same)


def _specials(tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    """The special tokens that the tokenizer puts before and after a text (``<s>``, ``</s>`` for RoBERTa)."""
    with_text = tokenizer("a")["input_ids"]
    text = tokenizer("a", add_special_tokens=False)["input_ids"]
    start = next(i for i in range(len(with_text)) if with_text[i : i + len(text)] == text)
    return with_text[:start], with_text[start + len(text) :]


def _padded(tokens: Tensor, chunks: Tensor, lengths: Sequence[int], pad_id: int) -> EncoderInputs:
    """Rows of so many of the ``tokens``, one after the other, each with the chunk that it belongs to."""
    mask_NS = torch.arange(max(lengths, default=0))[None] < torch.tensor(lengths, dtype=torch.long)[:, None]
    ids_NS = torch.full(mask_NS.shape, pad_id).masked_scatter_(mask_NS, tokens)
    chunk_NS = torch.full(mask_NS.shape, -1).masked_scatter_(mask_NS, chunks)
    return EncoderInputs(ids_NS=ids_NS, mask_NS=mask_NS, chunk_NS=chunk_NS)
