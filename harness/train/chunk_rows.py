"""Training sequences with chunks in them: first everything as tokens, then any choice of chunks as embeddings.

``lay_out`` writes a batch down with all chunks expanded and says which positions belong to which chunk; ``condense``
replaces the chunks that are not expanded by one code each and closes the gaps. So one layout serves any number of
choices (a policy tries many), and with everything expanded nothing changes.

Legend: B rows, F positions with all chunks expanded, T positions after the choice, L chunks of the longest row.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from harness.model.chunking import EncoderInputs, expanded_count
from harness.model.splice import chunk_code
from harness.train.rows import IGNORED, Batch, Row, collate_tokens

Read = Callable[[list[list[int]]], EncoderInputs]


def lay_out(rows: Sequence[Row], k: int, read: Read, pad_id: int) -> Batch:
    """``collate_tokens`` and, beside it:

    - ``chunk`` (B, F): the chunk of each position, counted within its row; -1 where it belongs to none.
    - ``chunk_start`` (B, F): whether the position is its chunk's first.
    - ``tail`` (B, F): whether the position comes after the context.
    - ``n_chunks`` and ``first_chunk`` (B,): how many a row has, and the number of its first among all of the batch.
    - ``encoder_ids``, ``encoder_mask``, ``encoder_chunk`` (N, S): what the encoder reads. Every chunk is encoded,
      expanded or not.
    """
    batch = collate_tokens(rows, pad_id)
    values: list[int] = []  # runs of positions: their chunk, or -1, and how many they are
    lengths: list[int] = []
    counts = []
    for row in rows:
        values.append(-1)
        lengths.append(len(row.start))
        number = 0
        for block in row.context:
            pieces = [min(k, len(block.text) - start) for start in range(0, len(block.text), k)]
            values += [-1, *range(number, number + len(pieces))]
            lengths += [len(block.tag), *pieces]
            number += len(pieces)
        values.append(-1)
        lengths.append(len(row.tail))
        counts.append(number)
    real = batch["attention_mask"].bool()
    runs = torch.tensor(values).repeat_interleave(torch.tensor(lengths))
    chunk = torch.full_like(batch["input_ids"], -1).masked_scatter_(real, runs)
    before = F.pad(chunk[:, :-1], (1, 0), value=-1)
    ends, tails = real.sum(1, keepdim=True), torch.tensor([[len(row.tail)] for row in rows])
    place = torch.arange(chunk.shape[1])[None]
    n_chunks = torch.tensor(counts)
    inputs = read([block.text for row in rows for block in row.context])
    return batch | {
        "chunk": chunk,
        "chunk_start": (chunk >= 0) & (chunk != before),
        "tail": (place < ends) & (place >= ends - tails),
        "n_chunks": n_chunks,
        "first_chunk": n_chunks.cumsum(0) - n_chunks,
        "encoder_ids": inputs.ids_NS,
        "encoder_mask": inputs.mask_NS,
        "encoder_chunk": inputs.chunk_NS,
    }


def condense(batch: Batch, expanded_BL: Tensor) -> Batch:
    """The batch with the chunks of ``expanded_BL`` as tokens and all others as one code each, in place.

    ``input_ids`` (B, T) then holds tokens and chunk codes; ``labels`` are ignored at codes.
    """
    chunk_BF, real_BF = batch["chunk"], batch["attention_mask"].bool()
    compressed_BF = (chunk_BF >= 0) & ~expanded_BL.gather(1, chunk_BF.clamp(min=0))
    keep_BF = real_BF & (~compressed_BF | batch["chunk_start"])
    codes_BF = torch.where(compressed_BF, chunk_code(batch["first_chunk"][:, None] + chunk_BF), batch["input_ids"])
    labels_BF = batch["labels"].masked_fill(compressed_BF, IGNORED)

    lengths_B = keep_BF.sum(1)
    T = int(lengths_B.max())
    order_BT = (~keep_BF).to(torch.int8).argsort(dim=1, stable=True)[:, :T]
    mask_BT = torch.arange(T, device=order_BT.device)[None] < lengths_B[:, None]
    # Beyond a row's length stand padding and dropped positions: no labels, no answers, and codes that are blanked.
    return batch | {
        "input_ids": codes_BF.gather(1, order_BT).masked_fill(~mask_BT, 0),
        "attention_mask": mask_BT.long(),
        "labels": labels_BF.gather(1, order_BT),
        "is_answer": batch["is_answer"].gather(1, order_BT),
    }


def expand_at_random(n_chunks: Tensor, shares: Sequence[float], rng: random.Random) -> Tensor:
    """(B, L): each row draws its p from ``shares`` and expands round(p L) of its L chunks (the paper's mixed input)."""
    return expand_each(n_chunks, shares, [rng] * len(n_chunks))


def expand_each(n_chunks: Tensor, shares: Sequence[float], rngs: Sequence[random.Random]) -> Tensor:
    """The same, every row by a generator of its own: what it draws does not depend on the rows beside it."""
    counts: list[int] = n_chunks.tolist()
    expanded = torch.zeros((len(counts), max(1, *counts)), dtype=torch.bool)
    for row, (count, rng) in enumerate(zip(counts, rngs, strict=True)):
        picked = rng.sample(range(count), expanded_count(rng.choice(list(shares)), count))
        expanded[row, picked] = True
    return expanded
