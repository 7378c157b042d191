"""Encoder states laid out by the chunk that they belong to: what every pooling but the first token's starts from."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from harness.model.chunking import EncoderInputs


def by_chunk(states_NSD: Tensor, inputs: EncoderInputs, width: int | None) -> tuple[Tensor, Tensor]:
    """States laid out by chunk (M, width, D), zeros where there is none, and where there is one (M, width).

    ``width`` None takes the longest chunk's. Positions of no chunk are left out.
    """
    inside_NS = inputs.chunk_NS >= 0
    chunk_P = inputs.chunk_NS[inside_NS]  # P positions, chunk after chunk: chunks are numbered in reading order
    counts_M = torch.bincount(chunk_P)
    starts_M = counts_M.cumsum(0) - counts_M
    place_P = torch.arange(len(chunk_P), device=chunk_P.device) - starts_M[chunk_P]
    M, width = len(counts_M), width or int(counts_M.max())
    slots = states_NSD.new_zeros((M, width, states_NSD.shape[-1]))
    slots = slots.index_put((chunk_P, place_P), states_NSD[inside_NS])
    filled = torch.arange(width, device=chunk_P.device)[None] < counts_M[:, None]
    return slots, filled
