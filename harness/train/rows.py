"""A training sequence before a system gives it its form: what may be compressed, and what is predicted from it.

Standard RAG lays the context out as tokens (``collate_tokens``); a system that compresses brings its own layout.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import chain, repeat

import numpy as np
import torch
from torch import Tensor

Batch = dict[str, Tensor]
IGNORED = -100


@dataclass(frozen=True, slots=True)
class Block:
    """A passage as tokens: its markup, which always stays, and its text, which may be compressed."""

    tag: list[int]
    text: list[int]


@dataclass(slots=True)
class Row:
    """``start``, then the ``context``, then the ``tail``; ``is_answer`` marks what the tail is asked for."""

    start: list[int]
    context: list[Block]
    tail: list[int] = field(default_factory=list)
    is_answer: list[bool] = field(default_factory=list)

    def say(self, tokens: Sequence[int], *, answer: bool = False) -> None:
        """Append ``tokens`` to the tail."""
        self.tail += tokens
        self.is_answer += [answer] * len(tokens)


Collate = Callable[[Sequence[Row], random.Random], Batch]


def collate_tokens(rows: Sequence[Row], pad_id: int) -> Batch:
    """Everything as tokens, (B, T), padded on the right: ``input_ids``, ``attention_mask``, ``labels``, ``is_answer``.

    Labels are the ids themselves; a loss shifts them by one.
    """
    contexts = [[*row.start, *chain.from_iterable((*block.tag, *block.text) for block in row.context)] for row in rows]
    lengths = torch.tensor([len(context) + len(row.tail) for context, row in zip(contexts, rows, strict=True)])
    real = torch.arange(int(lengths.max()))[None] < lengths[:, None]
    tokens = [token for context, row in zip(contexts, rows, strict=True) for token in chain(context, row.tail)]
    asked = [
        a
        for context, row in zip(contexts, rows, strict=True)
        for a in chain(repeat(False, len(context)), row.is_answer)
    ]
    ids = torch.full(real.shape, pad_id).masked_scatter_(real, torch.from_numpy(np.array(tokens, np.int64)))
    answers = torch.zeros_like(real).masked_scatter_(real, torch.from_numpy(np.array(asked, np.bool_)))
    mask = real.long()
    labels = ids.masked_fill(mask == 0, IGNORED)
    return {"input_ids": ids, "attention_mask": mask, "labels": labels, "is_answer": answers}
