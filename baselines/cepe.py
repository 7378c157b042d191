"""CEPE as a system: passages go through a small encoder, side by side, and the decoder attends to them.

``encode`` runs the encoder over every passage alone and, with cached keys and values, projects what cross-attention
reads of it in every layer: both depend on the passage only. ``generate`` reads the question, and with ``in_decoder``
the passages ranked first as tokens before it. The released code keeps the encoder's states and projects keys and values
anew at every step (``cross_kv="recomputed"``), which costs time and saves memory; the answers are the same.

Protocols. All passages in the encoder is ``in_decoder=0``; the released protocol of question answering has the ten best
in the decoder and the others in the encoder, ``in_decoder=10``, after two demonstrations (``evaluate --shots 2``). One
of the ten that finds no room is left out; it does not move to the encoder.

Legend: B questions, N passages of all of them, S positions per passage, P positions of a question's passages side by
side, W encoder width, G key/value heads, D head width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from baselines.cepe_checkpoint import load_cepe, read_config
from baselines.cepe_model import Cepe, Context, KeysValues
from harness.errors import InputError, unknown
from harness.model.decode import Prompts, greedy, left_pad, log_probabilities, of_like_length
from harness.model.llama import Llama
from harness.model.load import Decoder
from harness.model.prompting import Prompting, whole
from harness.protocol import Passage, TokenBlock, Usage
from harness.train.export import own_template, read_training

if TYPE_CHECKING:
    from baselines.cepe_model import CrossAttention
    from harness.model.llama import Between

CROSS_KV = ("cached", "recomputed")


@dataclass(frozen=True, kw_only=True)
class CepeSystemConfig:
    """``in_decoder`` passages, the best, stand in the decoder as tokens, the others in the encoder.

    ``cross_kv`` says what is kept of those: a name of ``CROSS_KV``. ``max_positions`` bounds the decoder's prompt and
    answer together; None means the decoder's own window.
    """

    template: str = "text"
    in_decoder: int = 0
    cross_kv: str = "cached"
    max_positions: int | None = None

    def __post_init__(self) -> None:
        if self.in_decoder < 0:
            raise InputError(f"expected at least 0 passages in the decoder, got {self.in_decoder}")
        if self.cross_kv not in CROSS_KV:
            raise unknown("cross-attention cache", self.cross_kv, CROSS_KV)

    @classmethod
    def defaults(cls, checkpoint: str) -> dict[str, Any]:
        """What a checkpoint says of itself. Raises ``InputError`` where it is not CEPE's."""
        read_config(Path(checkpoint))
        return {"template": own_template(read_training(Path(checkpoint)))}

    def build(self, decoder: Decoder, cache: Path | None = None) -> CepeSystem:  # noqa: ARG002
        """The system. It keeps encoder states in memory: ``cache`` is left alone."""
        return CepeSystem(self, decoder, load_cepe(Path(decoder.source), decoder.model))


@dataclass(frozen=True)
class EncodedPassage:
    """A passage in the encoder: per block of cross-attention its keys and values (1, G, S, D), or the encoder's states
    (S, W), one for all blocks or one per block."""

    keys_values: list[KeysValues]
    states: list[Tensor]
    length: int

    @property
    def nbytes(self) -> int:
        """What a store would keep of it."""
        return sum(k.nbytes + v.nbytes for k, v in self.keys_values) + sum(state.nbytes for state in self.states)


@dataclass(frozen=True)
class Encoded:
    """What ``encode`` prepares, per question: the passages that go into the decoder as tokens, and the others."""

    tokens: list[list[list[int]]]
    passages: list[list[EncodedPassage]]


class CepeSystem:
    """CEPE around its ``decoder``; ``model`` is what ``train cepe`` made."""

    def __init__(self, config: CepeSystemConfig, decoder: Decoder, model: Cepe) -> None:
        self.config = config
        self.model = model
        self.prompting = Prompting(config.template, config.max_positions, decoder)
        self.pad_id = self.prompting.pad_id
        self.llama = Llama(decoder.model)

    def check(self, questions: Sequence[str], *, max_new_tokens: int) -> None:
        self.prompting.check(questions, max_new_tokens)

    def encode(self, passages: Sequence[Sequence[Passage]]) -> Encoded:
        return self.encode_tokens(self.prompting.passages(passages))

    def encode_tokens(self, blocks: Sequence[Sequence[TokenBlock]]) -> Encoded:
        rows = whole(blocks)
        n = self.config.in_decoder
        encoded = iter(self._encode([block for row in rows for block in row[n:]]))
        return Encoded([row[:n] for row in rows], [[next(encoded) for _ in row[n:]] for row in rows])

    def reader(self, questions: Sequence[str], context: Encoded, max_new_tokens: int) -> Prompts:
        """What answers are decoded from, and continuations scored by."""
        prompts, _ = self.prompting.whole_prompts(questions, context.tokens, max_new_tokens)
        ids_BT, mask_BT = left_pad(prompts, self.pad_id, self.llama.embedding.device)
        between = self._between(context.passages)
        return Prompts(self.llama, self.llama.embed(ids_BT), mask_BT, max_new_tokens, between=between)

    def log_probabilities(
        self, questions: Sequence[str], continuations: Sequence[Sequence[int]], context: Encoded
    ) -> list[Tensor]:
        reader = self.reader(questions, context, max(map(len, continuations)))
        return log_probabilities(reader, continuations, pad_id=self.pad_id)

    def generate(self, questions: Sequence[str], context: Encoded, *, max_new_tokens: int) -> Iterator[Tensor]:
        return greedy(
            self.reader(questions, context, max_new_tokens),
            max_new_tokens=max_new_tokens,
            stop_ids=self.prompting.stop_ids,
            pad_id=self.pad_id,
        )

    def usage(self, questions: Sequence[str], context: Encoded, *, max_new_tokens: int) -> list[Usage]:
        """``decoder_positions`` are those of self-attention; passages in the encoder take none of them."""
        prompts, read = self.prompting.whole_prompts(questions, context.tokens, max_new_tokens)
        return [
            Usage(
                decoder_positions=len(prompt),
                passages_read=n + len(encoded),
                stored_bytes=sum(passage.nbytes for passage in encoded),
            )
            for prompt, n, encoded in zip(prompts, read, context.passages, strict=True)
        ]

    def text(self, columns: Sequence[Tensor]) -> list[str]:
        return self.prompting.text(columns)

    @torch.inference_mode()
    def _encode(self, blocks: Sequence[Sequence[int]]) -> list[EncodedPassage]:
        """Each block of token ids alone; blocks of similar length share a batch."""
        encoded: dict[int, EncodedPassage] = {}
        for batch in of_like_length(blocks):
            ids_NS, mask_NS = left_pad([blocks[index] for index in batch], self.pad_id, self.llama.embedding.device)
            states = self.model.encode(ids_NS, mask_NS)
            cached = self.config.cross_kv == "cached"
            keys_values = self.model.keys_values(states) if cached else []
            for row, index in enumerate(batch):
                n = len(blocks[index])
                real = slice(ids_NS.shape[1] - n, None)
                encoded[index] = EncodedPassage(
                    [(k[row : row + 1, :, real], v[row : row + 1, :, real]) for k, v in keys_values],
                    [] if cached else [state[row, real] for state in states],
                    n,
                )
        return [encoded[index] for index in range(len(blocks))]

    @torch.inference_mode()
    def _between(self, passages: Sequence[Sequence[EncodedPassage]]) -> Between | None:
        """What every layer does between self-attention and MLP; None where no question has a passage to read."""
        lengths = [sum(passage.length for passage in row) for row in passages]
        if not any(lengths):
            return None
        P, device = max(lengths), self.llama.embedding.device
        visible_BP = torch.arange(P, device=device)[None] < torch.tensor(lengths, device=device)[:, None]
        if self.config.cross_kv == "cached":
            keys_values = [self._side_by_side(passages, number, P) for number in range(len(self.model.cross))]
            return partial(self.model.cross_attend, context=Context.of(keys_values, visible_BP))
        states = [
            _padded([[passage.states[number] for passage in row] for row in passages], P, self.llama.embedding)
            for number in range(self.model.n_states)
        ]
        return _Recomputed(self.model, states, visible_BP)

    def _side_by_side(self, passages: Sequence[Sequence[EncodedPassage]], number: int, P: int) -> KeysValues:
        """Keys and values (B, G, P, D) of block ``number``, each question's passages one after the other."""
        block = cast("CrossAttention", self.model.cross[number])
        nothing = self.llama.embedding.new_zeros((1, block.n_kv_heads, 0, block.head_width))

        def joined(which: int) -> Tensor:
            rows = [torch.cat([nothing, *(p.keys_values[number][which] for p in row)], dim=2) for row in passages]
            padded = [F.pad(row, (0, 0, 0, P - row.shape[2])) if row.shape[2] < P else row for row in rows]
            return torch.cat(padded) if len(padded) > 1 else padded[0]  # one row is copied once

        return joined(0), joined(1)


class _Recomputed:
    """Cross-attention that projects keys and values from the encoder's states (B, P, W) whenever it is asked."""

    def __init__(self, model: Cepe, states: Sequence[Tensor], visible_BP: Tensor) -> None:
        self.model, self.states, self.context = model, states, Context.of([], visible_BP)

    def __call__(self, index: int, x_BTE: Tensor) -> Tensor:
        number = index - self.model.first
        if number < 0:
            return x_BTE
        block = cast("CrossAttention", self.model.cross[number])
        states_BPW = self.states[number if len(self.states) > 1 else 0]
        out: Tensor = block(x_BTE, block.keys_values(states_BPW), self.context)
        return out


def _padded(rows: Sequence[Sequence[Tensor]], P: int, like: Tensor) -> Tensor:
    """Rows of states (S, W) side by side, (B, P, W), zeros behind."""
    width = next(state.shape[-1] for row in rows for state in row)
    out = like.new_zeros((len(rows), P, width))
    for index, row in enumerate(rows):
        if row:
            joined = torch.cat(list(row))
            out[index, : len(joined)] = joined
    return out
