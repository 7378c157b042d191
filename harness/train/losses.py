"""What a stage minimises. A loss is a function of the model and a batch; it returns a scalar, a sum of means.

Every mean is one of ``distributed.mean``: a batch may lie in shares on several processes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch.nn.functional as F
from torch import Tensor

from harness.train.distributed import mean
from harness.train.loop import Loss
from harness.train.rows import IGNORED, Batch

if TYPE_CHECKING:
    from torch import nn

Forward = Callable[["nn.Module", Batch], Tensor]


def token_losses(logits_BTV: Tensor, labels_BT: Tensor) -> Tensor:
    """Cross-entropy in fp32 of every label under the position before it, (B, T - 1); 0 where it is ignored."""
    return F.cross_entropy(
        logits_BTV[:, :-1].float().flatten(0, 1),
        labels_BT[:, 1:].flatten(),
        ignore_index=IGNORED,
        reduction="none",
    ).view(labels_BT.shape[0], -1)


def answer_loss(forward: Forward, language_weight: float) -> Loss:
    """Cross-entropy of the answer tokens, plus ``language_weight`` times that of all other tokens.

    Both are means over their own tokens in the batch. ``forward`` gives the logits (B, T, V) of a batch. Labels are
    the inputs shifted by one; the last token of every answer is supervised.
    """

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        losses = token_losses(forward(model, batch), batch["labels"])
        answers = batch["is_answer"][:, 1:]
        total = mean_of(losses[answers])
        if language_weight:
            others = (batch["labels"][:, 1:] != IGNORED) & ~answers
            total = total + language_weight * mean_of(losses[others])
        return total

    return loss


def mean_of(losses_N: Tensor) -> Tensor:
    """The mean over the tokens of all processes; NaN where there is none."""
    return mean(losses_N.sum(), len(losses_N))


def read_tokens(model: nn.Module, batch: Batch) -> Tensor:
    """Logits of an ordinary decoder. Right padding needs no mask: no real token looks at what follows it."""
    logits: Tensor = model(input_ids=batch["input_ids"], use_cache=False).logits
    return logits
