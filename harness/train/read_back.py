"""What alignment verification needs of a model that reads chunks: new text as chunks, and its reading of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

import torch

from harness.data.world.practice import Copying, Growing, Practice
from harness.errors import InputError
from harness.train.chunk_model import lay_out_for, read_chunks
from harness.train.chunk_rows import condense

if TYPE_CHECKING:
    import random

    from torch import Tensor, nn

    from harness.train.chunk_model import ChunkModel
    from harness.train.rows import Batch, Row

CONTEXT_TOKENS = 1024  # of a batch: many short rows or a few long ones
HELD_OUT = 1 << 40  # seeds from here on draw what no stage is trained on


def held_out(model: ChunkModel, tokenizer: Any, chunks: int, seed: int) -> Practice:
    """Rows of exactly ``chunks`` chunks, none of them expanded, followed by their text.

    Raises ``InputError`` where the decoder has no room for both.
    """
    k, window = model.config.k, model.decoder.config.max_position_embeddings
    if 1 + chunks * (1 + k) > window:
        raise InputError(
            f"{chunks} chunks of {k} tokens and their text need {1 + chunks * (1 + k)} positions; the decoder's "
            f"context holds {window}"
        )
    growing = Growing(k=k, steps=1, max_chunks=chunks, tokens=CONTEXT_TOKENS, curriculum="none")

    def collate(rows: Sequence[Row], rng: random.Random) -> Batch:  # noqa: ARG001
        batch = lay_out_for(model, rows, tokenizer)
        return condense(batch, torch.zeros((len(rows), chunks), dtype=torch.bool))

    return Practice(Copying(growing=growing), tokenizer, collate, seed=HELD_OUT + seed)


def read_back(model: nn.Module, batch: Batch, zeroed: bool) -> Tensor:
    """Logits (B, T, V) over chunks and text; ``zeroed`` leaves the chunks their positions and takes their content."""
    if not zeroed:
        return read_chunks(model, batch)
    chunked = cast("ChunkModel", model)
    nothing_ME = torch.zeros((int(batch["n_chunks"].sum()), chunked.decoder.config.hidden_size))
    return chunked(batch["input_ids"], nothing_ME.to(batch["input_ids"].device))
