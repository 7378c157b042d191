"""Key/value reuse: every passage is read on its own, once, and its keys and values stand ready for any prompt.

Block-Attention (arXiv:2409.15355) and TurboRAG (arXiv:2410.07590): the prompt is standard RAG's, token for token and
position for position, but attention goes by blocks. The start token is a block and so is each passage: a block's
tokens see their own block alone, question and answer see everything. So a passage's keys and values depend on nothing
but the passage, and at use it costs a copy, not a forward pass. How a decoder learns to read so: ``kv_reuse_stages``.

``encode`` reads the blocks at positions from 0, without the start token before them. To move a block to position o,
its keys are rotated once more, since rotary angles add: R(o θ) R(s θ) k = R((o + s) θ) k (RoFormer, arXiv:2104.09864).
Departures from Block-Attention's published code, none of which changes what is computed:

1. Keys are stored as the decoder leaves them, rotated from 0, and moved by the difference alone. There, they are
   rotated back to 0 before they are stored.
2. Rows are batched: a context stands left of its question, padded on its own left, and in shorter questions padding
   stands between the two as well. Positions count real tokens, so neither shifts anything.

Shapes: L layers, B rows, G key/value heads, S cached positions, D head width, T tokens of a question.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from harness.errors import InputError
from harness.model.decode import Prompts, greedy, left_pad, of_like_length
from harness.model.llama import KVCache, Llama, rotate
from harness.model.load import Decoder
from harness.model.prompting import Prompting, whole
from harness.protocol import Passage, Usage
from harness.train.export import own_template, read_training

# Frequencies that depend on nothing and a scale of 1: the rotary embeddings whose angles add.
FIXED_ROTARY = ("default", "linear", "llama3")


@dataclass(frozen=True, kw_only=True)
class KvReuseConfig:
    """``template`` is the prompt template that the decoder knows.

    ``max_positions`` bounds prompt and answer together; None means the decoder's own window.
    """

    template: str = "text"
    max_positions: int | None = None

    @classmethod
    def defaults(cls, checkpoint: str) -> dict[str, Any]:
        """What a checkpoint says of itself."""
        return {"template": own_template(read_training(Path(checkpoint)))}

    def build(self, decoder: Decoder, cache: Path | None = None) -> KvReuse:  # noqa: ARG002
        """The system. It keeps its keys and values in memory: ``cache`` is left alone."""
        return KvReuse(self, decoder)


@dataclass(frozen=True)
class CachedBlock:
    """Keys and values (L, G, S, D) of a block that was read on its own, keys rotated from position 0."""

    keys_LGSD: Tensor
    values_LGSD: Tensor

    @property
    def length(self) -> int:
        """Its tokens."""
        return self.keys_LGSD.shape[2]

    @property
    def nbytes(self) -> int:
        """What a store would keep of it."""
        return self.keys_LGSD.nbytes + self.values_LGSD.nbytes


@dataclass(frozen=True)
class CachedPassages:
    """What ``encode`` prepares: the start token's block (none where there is no such token), per question its passages.

    The start token's does not depend on the passages; it is made here so that one pass makes all.
    """

    start: list[CachedBlock]
    passages: list[list[CachedBlock]]


class KvReuse:
    """``encode`` runs the decoder over every passage on its own; ``generate`` runs it over the question alone.

    Raises ``InputError`` for a decoder whose keys cannot be moved.
    """

    def __init__(self, config: KvReuseConfig, decoder: Decoder) -> None:
        _check_rotary(decoder)
        self.prompting = Prompting(config.template, config.max_positions, decoder)
        self.pad_id = self.prompting.pad_id
        self.llama = Llama(decoder.model)

    def check(self, questions: Sequence[str], *, max_new_tokens: int) -> None:
        self.prompting.check(questions, max_new_tokens)

    def encode(self, passages: Sequence[Sequence[Passage]]) -> CachedPassages:
        start = [self.prompting.start] if self.prompting.start else []
        rows = whole(self.prompting.passages(passages))
        blocks = iter(read_apart(self.llama, [*start, *(block for row in rows for block in row)], self.pad_id))
        return CachedPassages([next(blocks) for _ in start], [[next(blocks) for _ in row] for row in rows])

    def generate(self, questions: Sequence[str], context: CachedPassages, *, max_new_tokens: int) -> Iterator[Tensor]:
        return greedy(
            self._reader(questions, context, max_new_tokens),
            max_new_tokens=max_new_tokens,
            stop_ids=self.prompting.stop_ids,
            pad_id=self.pad_id,
        )

    def usage(self, questions: Sequence[str], context: CachedPassages, *, max_new_tokens: int) -> list[Usage]:
        """``decoder_positions`` are those that the decoder attends over, whether they are computed at use or not."""
        asked = self.prompting.questions(questions)
        return [
            Usage(
                decoder_positions=sum(block.length for block in [*context.start, *read]) + len(question),
                passages_read=len(read),
                stored_bytes=sum(block.nbytes for block in read),
            )
            for question, read in zip(asked, self._read(asked, context, max_new_tokens), strict=True)
        ]

    def text(self, columns: Sequence[Tensor]) -> list[str]:
        return self.prompting.text(columns)

    def _reader(self, questions: Sequence[str], context: CachedPassages, max_new_tokens: int) -> Prompts:
        asked = self.prompting.questions(questions)
        rows = [[*context.start, *read] for read in self._read(asked, context, max_new_tokens)]
        ids_BT, mask_BT = left_pad(asked, self.pad_id, self.llama.embedding.device)
        cache = assemble(self.llama, rows, room=ids_BT.shape[1] + max_new_tokens - 1)
        return Prompts(self.llama, self.llama.embed(ids_BT), mask_BT, max_new_tokens, cache=cache)

    def _read(
        self, asked: Sequence[Sequence[int]], context: CachedPassages, max_new_tokens: int
    ) -> list[list[CachedBlock]]:
        """The passages of each question that find room."""
        return [
            row[: self.prompting.fitting([block.length for block in row], question, max_new_tokens)]
            for question, row in zip(asked, context.passages, strict=True)
        ]


@torch.inference_mode()
def read_apart(llama: Llama, blocks: Sequence[Sequence[int]], pad_id: int) -> list[CachedBlock]:
    """The keys and values of each block of token ids, which sees itself alone, at positions from 0.

    Blocks of similar length share a batch, so that little is padding. ``prefill`` leaves out the last layer's output
    at all positions but one, never its keys and values.
    """
    read: dict[int, CachedBlock] = {}
    for batch in of_like_length(blocks):
        ids_BS, mask_BS = left_pad([blocks[index] for index in batch], pad_id, llama.embedding.device)
        cache = llama.new_cache(*ids_BS.shape)
        llama.prefill(llama.embed(ids_BS), mask_BS, cache)
        for row, index in enumerate(batch):
            real = slice(cache.length - len(blocks[index]), cache.length)
            read[index] = CachedBlock(cache.keys[:, row, :, real], cache.values[:, row, :, real])
    return [read[index] for index in range(len(blocks))]


@torch.inference_mode()
def assemble(llama: Llama, rows: Sequence[Sequence[CachedBlock]], *, room: int) -> KVCache:
    """One cache in which each row's blocks stand one after the other, with ``room`` more positions behind them.

    Shorter rows are padded on the left. The blocks are copied once and stay as they are.
    """
    lengths = [sum(block.length for block in row) for row in rows]
    width = max(lengths)
    cache = llama.new_cache(len(rows), width + room)
    offset_BS = torch.zeros((len(rows), width), dtype=torch.long)
    for index, (row, length) in enumerate(zip(rows, lengths, strict=True)):
        start = at = width - length
        cache.visible_BS[index, :start] = False
        # Masked is not enough: what was in that memory may be NaN, and NaN times 0 is NaN.
        cache.keys[:, index, :, :start] = 0
        cache.values[:, index, :, :start] = 0
        for block in row:
            end = at + block.length
            cache.keys[:, index, :, at:end] = block.keys_LGSD
            cache.values[:, index, :, at:end] = block.values_LGSD
            offset_BS[index, at:end] = at - start
            at = end
    move(llama, cache.keys[..., :width, :], offset_BS)
    cache.padded = min(lengths) < width
    cache.length = width
    return cache


def move(llama: Llama, keys_LBGSD: Tensor, offset_BS: Tensor) -> None:
    """Rotate keys on, in place, by so many positions: k' = k cos(o θ) + half(k) sin(o θ), half as RoFormer, Eq. 34.

    In fp32 whatever the keys are, so that a 16-bit key is rounded once more and no angle is; layer by layer, so that
    the fp32 copy stays small.
    """
    cos_BSD, sin_BSD = llama.rotary(keys_LBGSD.new_empty(0, dtype=torch.float32), offset_BS.to(keys_LBGSD.device))
    cos, sin = cos_BSD[:, None], sin_BSD[:, None]
    for keys_BGSD in keys_LBGSD:
        keys_BGSD.copy_(rotate(keys_BGSD.float(), cos, sin))


def _check_rotary(decoder: Decoder) -> None:
    kind = decoder.model.model.rotary_emb.rope_type
    if kind not in FIXED_ROTARY:
        raise InputError(
            f"decoder {decoder.source} has rotary embeddings of type {kind!r}, whose angles do not add, so its keys "
            f"cannot be moved; expected one of: {', '.join(FIXED_ROTARY)}"
        )
