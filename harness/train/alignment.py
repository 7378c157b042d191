"""Does the decoder understand the chunk embeddings? Reconstruction measured per number of chunks, before CPT.

The decoder is given L chunk embeddings and, teacher-forced, the text they stand for (arXiv:2509.01092v2, section 4).
All tokens together flatter: after a few tokens of context half of them are plain grammar. So tokens are also counted by
kind (in the synthetic world names, which come back in every sentence, and values, which only the chunks can tell), and
everything beside the floor: the same with every embedding zero, what the decoder makes of the text without the chunks.

Perplexity is exp of the mean cross-entropy per token, accumulated in fp64 over all batches; accuracy is the share of
tokens that are the decoder's first choice. The thresholds are the seed document's; the paper states none.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from harness.errors import InputError
from harness.train.loop import NonFiniteLoss
from harness.train.losses import token_losses
from harness.train.rows import IGNORED, Batch

Forward = Callable[[nn.Module, Batch, bool], Tensor]  # the third: with every chunk embedding zero
ALL = "all"
LARGEST_EXPONENT = 700.0  # beyond it exp overflows; no gate tells 1e304 from more


@dataclass(frozen=True, kw_only=True)
class Reconstruction:
    """Perplexity and token accuracy (a fraction) over ``tokens`` tokens."""

    perplexity: float
    accuracy: float
    tokens: int


@dataclass(frozen=True, kw_only=True)
class Alignment:
    """How well ``chunks`` chunk embeddings are read back, and the floor: ``all`` tokens and each kind that occurred."""

    chunks: int
    read: Mapping[str, Reconstruction]
    floor: Mapping[str, Reconstruction]


@dataclass(frozen=True, kw_only=True)
class Gate:
    """What alignment has to reach on all tokens, at every number of chunks. Reaching a bound is enough."""

    max_perplexity: float = 2.0
    min_accuracy: float = 0.95

    def __post_init__(self) -> None:
        if not self.max_perplexity >= 1:
            raise InputError(f"expected a largest perplexity of at least 1, got {self.max_perplexity}")
        if not 0 <= self.min_accuracy <= 1:
            raise InputError(
                f"expected a least accuracy from 0 to 1, a fraction of the tokens, got {self.min_accuracy}"
            )

    def __str__(self) -> str:
        return f"perplexity at most {self.max_perplexity:g}, token accuracy at least {100 * self.min_accuracy:g} %"

    def failures(self, measured: Iterable[Alignment]) -> list[str]:
        """One line per number of chunks that misses the gate."""
        return [
            f"{row.chunks} chunk{'s' if row.chunks > 1 else ''}: perplexity {row.read[ALL].perplexity:.4g} (at most "
            f"{self.max_perplexity:g}), token accuracy {100 * row.read[ALL].accuracy:.2f} % (at least "
            f"{100 * self.min_accuracy:g})"
            for row in measured
            if row.read[ALL].perplexity > self.max_perplexity or row.read[ALL].accuracy < self.min_accuracy
        ]


@torch.inference_mode()
def measure(
    model: nn.Module, forward: Forward, batches: Mapping[int, Iterable[Batch]], kinds: Mapping[str, frozenset[int]]
) -> list[Alignment]:
    """Read back ``batches[L]``, contexts of L chunks each, on the device they are on. ``kinds`` are sets of token ids.

    Raises ``NonFiniteLoss`` where the decoder gives no probabilities.
    """
    measured = []
    for chunks, drawn in batches.items():
        read, floor = ({kind: _Tally() for kind in (ALL, *kinds)} for _ in range(2))
        for batch in drawn:
            labels = batch["labels"].masked_fill(~batch["is_answer"], IGNORED)
            asked = {ALL: labels[:, 1:] != IGNORED} | {
                kind: torch.isin(labels[:, 1:], torch.tensor(sorted(ids), device=labels.device))
                for kind, ids in kinds.items()
            }
            for zeroed, tallies in ((False, read), (True, floor)):
                logits = forward(model, batch, zeroed)
                losses, right = token_losses(logits, labels), logits[:, :-1].argmax(-1) == labels[:, 1:]
                if not torch.isfinite(losses).all():
                    raise NonFiniteLoss(f"reading {chunks} chunks back: the loss of a token is not finite")
                for kind, where in asked.items():
                    tallies[kind].add(losses[where], right[where])
        measured.append(Alignment(chunks=chunks, read=_means(read), floor=_means(floor)))
    return measured


class _Tally:
    def __init__(self) -> None:
        self.loss, self.right, self.tokens = 0.0, 0, 0

    def add(self, losses: Tensor, right: Tensor) -> None:
        self.loss += float(losses.double().sum())
        self.right += int(right.sum())
        self.tokens += losses.numel()


def _means(tallies: Mapping[str, _Tally]) -> dict[str, Reconstruction]:
    """Of the kinds that occurred: a chunk of one token may hold neither name nor value."""
    return {
        kind: Reconstruction(
            perplexity=math.exp(min(tally.loss / tally.tokens, LARGEST_EXPONENT)),
            accuracy=tally.right / tally.tokens,
            tokens=tally.tokens,
        )
        for kind, tally in tallies.items()
        if tally.tokens
    }
