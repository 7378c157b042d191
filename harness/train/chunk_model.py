"""What training and alignment verification need of a model that reads chunks, whatever its method."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol, cast

from harness.model.chunking import EncoderInputs
from harness.prompts import pad_id
from harness.train.chunk_rows import condense, lay_out
from harness.train.losses import token_losses

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import LlamaForCausalLM

    from harness.train.rows import Batch, Row


class ChunkConfig(Protocol):
    @property
    def k(self) -> int: ...


class ChunkModel(Protocol):
    """A decoder that reads chunk embeddings. ``encode`` makes them, calling the model reads them among tokens."""

    decoder: LlamaForCausalLM

    @property
    def config(self) -> ChunkConfig: ...

    def inputs(self, passages: Sequence[Sequence[int]], tokenizer: Any) -> EncoderInputs:
        """What the encoder reads for passages of decoder tokens; chunks are numbered passage by passage."""

    def encode(self, inputs: EncoderInputs) -> Tensor:
        """All chunks at once to chunk embeddings (M, E), in the decoder's input space."""

    def __call__(self, codes_BT: Tensor, chunks_ME: Tensor) -> Tensor:
        """Logits (B, T, V) over tokens (codes >= 0) and chunks (``chunk_code``), right-padded."""


def lay_out_for(model: ChunkModel, rows: Sequence[Row], tokenizer: Any) -> Batch:
    """A batch with all chunks expanded, and what the encoder reads for them."""
    return lay_out(rows, model.config.k, lambda texts: model.inputs(texts, tokenizer), pad_id(tokenizer))


def read_chunks(model: nn.Module, batch: Batch) -> Tensor:
    """Logits (B, T, V) over the spliced input of a batch that ``condense`` made."""
    chunked = cast("ChunkModel", model)
    inputs = EncoderInputs(batch["encoder_ids"], batch["encoder_mask"], batch["encoder_chunk"])
    return chunked(batch["input_ids"], chunked.encode(inputs))


def answer_log_likelihood(model: ChunkModel, batch: Batch, chunks_ME: Tensor, expanded_BL: Tensor) -> Tensor:
    """Mean log-likelihood (B,) of each row's answer tokens with the chunks of ``expanded_BL`` as tokens."""
    tried = condense(batch, expanded_BL)
    losses = token_losses(model(tried["input_ids"], chunks_ME), tried["labels"])
    answers = tried["is_answer"][:, 1:]
    return -(losses * answers).sum(1) / answers.sum(1)
