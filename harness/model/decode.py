"""The only decode loop, greedy and batched, and beside it the only way to score a given continuation.

Every system does both through its own ``Reader``, so that the prompt that it answers from is the one that it scores
under. ``greedy`` is a generator with the clock outside: it yields one token column (B,) per step and never measures
itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from harness.errors import InputError
from harness.model.llama import Between, KVCache, Llama

AT_ONCE = 64  # rows that a model reads ahead of any question in one batch


class Reader(Protocol):
    """A decoder that stands before the prompts of B rows. What the loop needs of a method, and all that it sees."""

    def first(self) -> Tensor:
        """Read the prompts; logits (B, V) of the token after each."""

    def then(self, token_B: Tensor) -> Tensor:
        """Append one token to each row; logits (B, V) of the one after it."""

    def along(self, token_BO: Tensor) -> Tensor:
        """Read the prompts and the given tokens after them in one pass; logits (B, O, V) of each of these tokens."""


class Prompts:
    """The ordinary reader: prompts as input embeddings, so that tokens and compressed chunks go the same way.

    ``cache`` may hold what stands before them, and has to have room for prompts and answers. ``between`` is what a
    method inserts in every layer (``Llama``).
    """

    def __init__(
        self,
        llama: Llama,
        inputs_BTE: Tensor,
        mask_BT: Tensor,
        max_new_tokens: int,
        *,
        cache: KVCache | None = None,
        between: Between | None = None,
    ) -> None:
        B, T, _ = inputs_BTE.shape
        self.llama, self.inputs_BTE, self.mask_BT, self.between = llama, inputs_BTE, mask_BT, between
        self.cache = cache or llama.new_cache(B, T + max_new_tokens - 1)

    def first(self) -> Tensor:
        return self.llama.prefill(self.inputs_BTE, self.mask_BT, self.cache, self.between)

    def then(self, token_B: Tensor) -> Tensor:
        return self.llama.decode_one_token(token_B, self.cache, self.between)

    def along(self, token_BO: Tensor) -> Tensor:
        read_BT = token_BO[:, :-1].to(self.inputs_BTE.device)  # nothing follows the last one
        inputs_BTE = torch.cat([self.inputs_BTE, self.llama.embed(read_BT)], dim=1)
        mask_BT = torch.cat([self.mask_BT, torch.ones_like(read_BT, dtype=torch.bool)], dim=1)
        return self.llama.prefill_along(inputs_BTE, mask_BT, self.cache, token_BO.shape[1], self.between)


@torch.inference_mode()
def greedy(reader: Reader, *, max_new_tokens: int, stop_ids: Sequence[int], pad_id: int) -> Iterator[Tensor]:
    """Yield up to ``max_new_tokens`` columns (B,) of the most likely next tokens.

    A row that produced a token of ``stop_ids`` yields ``pad_id`` from then on; the loop ends when all rows have.
    """
    logits_BV = reader.first()
    B, V = logits_BV.shape
    stop = torch.zeros(V, dtype=torch.bool, device=logits_BV.device)
    stop[torch.tensor(list(stop_ids), dtype=torch.long, device=stop.device)] = True
    finished_B = torch.zeros(B, dtype=torch.bool, device=logits_BV.device)
    for left in reversed(range(max_new_tokens)):
        token_B = logits_BV.argmax(-1).masked_fill(finished_B, pad_id)
        if not left:
            yield token_B
            return
        finished_B = finished_B | stop[token_B]
        over = _on_its_way(finished_B.all())  # asked before the token is handed out, so that nobody waits for both
        yield token_B
        if over():
            return
        logits_BV = reader.then(token_B)


def _on_its_way(flag: Tensor) -> Callable[[], bool]:
    """Start to move ``flag`` to the host; what comes back waits until it is there.

    On a GPU that is not for longer than for what was asked of it before, such as the token's own way to the host.
    """
    if not flag.is_cuda:
        return lambda: bool(flag)
    there = flag.to("cpu", non_blocking=True)
    arrived = torch.cuda.current_stream(flag.device).record_event()

    def read() -> bool:
        arrived.synchronize()
        return bool(there)

    return read


@torch.inference_mode()
def log_probabilities(reader: Reader, continuations: Sequence[Sequence[int]], *, pad_id: int) -> list[Tensor]:
    """Of every token of each row's continuation, given the prompt and the tokens before it: nats, in float32.

    log p(y_t | prompt, y_<t), the softmax over the whole vocabulary. Raises ``InputError`` for an empty continuation.
    """
    if not all(continuations):
        raise InputError("expected at least one token in every continuation that is scored")
    width = max(map(len, continuations))
    # What stands behind a shorter continuation is read and never looked at.
    rows = [[*row, *[pad_id] * (width - len(row))] for row in continuations]
    token_BO = torch.tensor(rows)
    logits_BOV = reader.along(token_BO)
    token_BO = token_BO.to(logits_BOV.device)
    log_p_BO = F.log_softmax(logits_BOV, dim=-1, dtype=torch.float32).gather(2, token_BO[..., None])[..., 0]
    return [log_p_O[: len(row)] for log_p_O, row in zip(log_p_BO, continuations, strict=True)]


def token_prompts(llama: Llama, rows: Sequence[Sequence[int]], *, max_new_tokens: int, pad_id: int) -> Prompts:
    """The ordinary reader, of prompts of token ids."""
    ids_BT, mask_BT = left_pad(rows, pad_id, llama.embedding.device)
    return Prompts(llama, llama.embed(ids_BT), mask_BT, max_new_tokens)


def left_pad(rows: Sequence[Sequence[int]], pad_id: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Ragged token ids as ids (B, T) padded on the left, and the mask (B, T) that is True at tokens."""
    width = max(map(len, rows))
    ids = torch.tensor([[pad_id] * (width - len(row)) + list(row) for row in rows], device=device)
    lengths = torch.tensor([len(row) for row in rows], device=device)
    mask = torch.arange(width, device=device)[None] >= (width - lengths)[:, None]
    return ids, mask


def of_like_length(rows: Sequence[Sequence[int]]) -> Iterator[list[int]]:
    """The indices of all rows, shortest first, ``AT_ONCE`` at a time: batches with little padding."""
    by_length = sorted(range(len(rows)), key=lambda index: len(rows[index]))
    for start in range(0, len(rows), AT_ONCE):
        yield by_length[start : start + AT_ONCE]
