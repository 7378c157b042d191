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

    Both are means over their own tokens in the batch (``mean_losses``). ``forward`` gives the logits (B, T, V) of a
    batch. Labels are the inputs shifted by one; the last token of every answer is supervised.
    """

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        return mean_losses(token_losses(forward(model, batch), batch["labels"]), batch, language_weight)

    return loss


def mean_losses(losses_BT: Tensor, batch: Batch, language_weight: float) -> Tensor:
    """The mean of ``token_losses`` over the answers, plus ``language_weight`` times that over all other labels.

    A batch may have no other labels: nothing is added then. One without answers gives NaN.
    """
    is_answer = batch["is_answer"][:, 1:]
    answers = losses_BT[is_answer]
    total = mean(answers.sum(), len(answers))
    if language_weight:
        others = losses_BT[(batch["labels"][:, 1:] != IGNORED) & ~is_answer]
        total = total + language_weight * mean(others.sum(), len(others), least=1)
    return total


def read_tokens(model: nn.Module, batch: Batch) -> Tensor:
    """Logits of an ordinary decoder. Right padding needs no mask: no real token looks at what follows it."""
    logits: Tensor = model(input_ids=batch["input_ids"], use_cache=False).logits
    return logits
