"""Does the decoder understand the chunk embeddings? Reconstruction measured per number of chunks, before CPT.

The decoder is given L chunk embeddings and, teacher-forced, the text they stand for (arXiv:2509.01092v2, section 4).
All tokens together flatter: after a few tokens of context half of them are plain grammar. So content tokens (in the
synthetic world names and values) are counted apart, beside the floor: the same with every embedding zero, which is
what the decoder makes of the text without the chunks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from harness.train.losses import token_losses
from harness.train.rows import IGNORED, Batch

Forward = Callable[[nn.Module, Batch, bool], Tensor]  # the third: with every chunk embedding zero


@dataclass(frozen=True, kw_only=True)
class Reconstruction:
    """Perplexity and token accuracy (a fraction) over ``tokens`` tokens."""

    perplexity: float
    accuracy: float
    tokens: int


@dataclass(frozen=True, kw_only=True)
class Alignment:
    """How well ``chunks`` chunk embeddings are read back: all tokens, content tokens, and the floor of the latter."""

    chunks: int
    all: Reconstruction
    content: Reconstruction
    content_floor: Reconstruction


@dataclass(frozen=True, kw_only=True)
class Gate:
    """What alignment has to reach on all tokens, at every number of chunks. The defaults are the seed document's."""

    max_perplexity: float = 2.0
    min_accuracy: float = 0.95

    def failures(self, measured: Iterable[Alignment]) -> list[str]:
        """One line per number of chunks that misses the gate."""
        return [
            f"{row.chunks} chunks: perplexity {row.all.perplexity:.2f} (at most {self.max_perplexity}), "
            f"token accuracy {100 * row.all.accuracy:.1f} % (at least {100 * self.min_accuracy:.1f})"
            for row in measured
            if row.all.perplexity > self.max_perplexity or row.all.accuracy < self.min_accuracy
        ]


@torch.inference_mode()
def measure(
    model: nn.Module, forward: Forward, batches: Mapping[int, Iterable[Batch]], content: frozenset[int]
) -> list[Alignment]:
    """Read back ``batches[L]``, contexts of L chunks each. ``content`` are the tokens that only the chunks can tell."""
    known = torch.tensor(sorted(content))
    rows = []
    for chunks, some in batches.items():
        everything, contents, floors = _Tally(), _Tally(), _Tally()
        for batch in some:
            labels = batch["labels"].masked_fill(~batch["is_answer"], IGNORED)
            of_content = labels.masked_fill(~torch.isin(labels, known), IGNORED)
            logits = forward(model, batch, False)
            everything.add(logits, labels)
            contents.add(logits, of_content)
            floors.add(forward(model, batch, True), of_content)
        rows.append(
            Alignment(chunks=chunks, all=everything.mean(), content=contents.mean(), content_floor=floors.mean())
        )
    return rows


class _Tally:
    def __init__(self) -> None:
        self.loss, self.right, self.tokens = 0.0, 0, 0

    def add(self, logits_BTV: Tensor, labels_BT: Tensor) -> None:
        asked = labels_BT[:, 1:] != IGNORED
        self.loss += float(token_losses(logits_BTV, labels_BT).sum())
        self.right += int(((logits_BTV[:, :-1].argmax(-1) == labels_BT[:, 1:]) & asked).sum())
        self.tokens += int(asked.sum())

    def mean(self) -> Reconstruction:
        n = max(1, self.tokens)
        return Reconstruction(perplexity=math.exp(self.loss / n), accuracy=self.right / n, tokens=self.tokens)
