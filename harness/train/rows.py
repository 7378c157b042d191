"""A training sequence before a system gives it its form: what may be compressed, and what is predicted from it.

Standard RAG lays the context out as tokens (``collate_tokens``); a system that compresses brings its own layout.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

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
    contexts = [[*row.start, *(t for block in row.context for t in (*block.tag, *block.text))] for row in rows]
    width = max(len(context) + len(row.tail) for context, row in zip(contexts, rows, strict=True))
    ids = torch.full((len(rows), width), pad_id)
    answers = torch.zeros((len(rows), width), dtype=torch.bool)
    mask = torch.zeros((len(rows), width), dtype=torch.long)
    for index, (context, row) in enumerate(zip(contexts, rows, strict=True)):
        end = len(context) + len(row.tail)
        ids[index, :end] = torch.tensor([*context, *row.tail])
        answers[index, len(context) : end] = torch.tensor(row.is_answer, dtype=torch.bool)
        mask[index, :end] = 1
    labels = ids.masked_fill(mask == 0, IGNORED)
    return {"input_ids": ids, "attention_mask": mask, "labels": labels, "is_answer": answers}
