"""One decoder input out of tokens and chunk embeddings: each chunk stands where its tokens would.

A row is a list of codes: a token id (>= 0), or ``chunk_code(i)`` for row i of the chunk embeddings. Compressed and
expanded chunks therefore differ only in which codes stand for them, and positions and mask follow from the row's
length alone (arXiv:2509.01092, section 2: the input is [e_1 ... e_q, e^cnk_1 ... e^cnk_L]).

Legend: B rows, T positions, N chunks of all rows together, E hidden size of the decoder.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from harness.model.decode import left_pad

Index = TypeVar("Index", int, Tensor)


def chunk_code(index: Index) -> Index:
    """The code of row ``index`` of the chunk embeddings."""
    return -1 - index


def splice(
    rows: Sequence[Sequence[int]], chunks_NE: Tensor, embed: Callable[[Tensor], Tensor], pad_id: int
) -> tuple[Tensor, Tensor]:
    """Input embeddings (B, T, E), padded on the left, and the mask (B, T) that is True at tokens and chunks.

    ``embed`` maps token ids (B, T) to their input embeddings. Gradients reach both ``embed`` and ``chunks_NE``.
    """
    codes_BT, mask_BT = left_pad(rows, pad_id, chunks_NE.device)
    return embed_codes(codes_BT, chunks_NE, embed), mask_BT


def embed_codes(codes_BT: Tensor, chunks_NE: Tensor, embed: Callable[[Tensor], Tensor]) -> Tensor:
    """The input embeddings (B, T, E) of codes that are already one tensor."""
    inputs_BTE = embed(codes_BT.clamp(min=0))
    if chunks_NE.shape[0] == 0:
        return inputs_BTE
    compressed_BT = codes_BT < 0
    chosen_BTE = chunks_NE.to(inputs_BTE.dtype)[(-1 - codes_BT).clamp(min=0)]
    return torch.where(compressed_BT[..., None], chosen_BTE, inputs_BTE)
