"""What a stage minimises. A loss is a function of the model and a batch; it returns a scalar mean."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch.nn.functional as F
from torch import Tensor

from harness.train.loop import Batch, Loss

if TYPE_CHECKING:
    from torch import nn


def answer_loss(language_weight: float) -> Loss:
    """Cross-entropy of the answer tokens, plus ``language_weight`` times that of all other tokens.

    Both are means over their own tokens in the batch, in fp32. Labels are the inputs shifted by one; the last
    token of every answer (its EOS) is supervised.
    """

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        # Right padding needs no mask under causal attention: no real token looks at what follows it.
        logits_BTV = model(input_ids=batch["input_ids"], use_cache=False).logits[:, :-1].float()
        labels_BT = batch["labels"][:, 1:]
        losses_BT = F.cross_entropy(
            logits_BTV.flatten(0, 1), labels_BT.flatten(), ignore_index=-100, reduction="none"
        ).view_as(labels_BT)
        answers_BT = batch["is_answer"][:, 1:]
        others_BT = (labels_BT != -100) & ~answers_BT
        return losses_BT[answers_BT].mean() + language_weight * losses_BT[others_BT].mean()

    return loss
