"""The only decode loop: greedy, batched, left-padded, over input embeddings. Every system generates through it.

A generator with the clock outside: it yields one token column (B,) per step and never measures itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from harness.model.llama import Llama


@torch.inference_mode()
def greedy(
    llama: Llama, inputs_BTE: Tensor, mask_BT: Tensor, *, max_new_tokens: int, stop_ids: Sequence[int], pad_id: int
) -> Iterator[Tensor]:
    """Yield up to ``max_new_tokens`` columns (B,) of the most likely next tokens.

    A row that produced a token of ``stop_ids`` yields ``pad_id`` from then on; the loop ends when all rows have.
    Inputs are embeddings so that tokens and compressed chunks go the same way.
    """
    B, T, _ = inputs_BTE.shape
    cache = llama.new_cache(B, T + max_new_tokens - 1)
    stop = torch.zeros(llama.embedding.shape[0], dtype=torch.bool, device=inputs_BTE.device)
    stop[torch.tensor(list(stop_ids), dtype=torch.long, device=stop.device)] = True
    finished_B = torch.zeros(B, dtype=torch.bool, device=inputs_BTE.device)
    position_B = mask_BT.sum(-1)

    logits_BV = llama.prefill(inputs_BTE, mask_BT, cache)
    for step in range(max_new_tokens):
        token_B = logits_BV.argmax(-1).masked_fill(finished_B, pad_id)
        yield token_B
        finished_B = finished_B | stop[token_B]
        if step + 1 == max_new_tokens or bool(finished_B.all()):
            return
        logits_BV = llama.decode_one_token(token_B, position_B + step, cache)


def left_pad(rows: Sequence[Sequence[int]], pad_id: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Ragged token ids as ids (B, T) padded on the left, and the mask (B, T) that is True at tokens."""
    width = max(map(len, rows))
    ids = torch.tensor([[pad_id] * (width - len(row)) + list(row) for row in rows], device=device)
    lengths = torch.tensor([len(row) for row in rows], device=device)
    mask = torch.arange(width, device=device)[None] >= (width - lengths)[:, None]
    return ids, mask
