"""v1's policy: every chunk by itself, expanded by the toss of a coin, also at inference; trained by REINFORCE.

Kept on purpose: a two-layer MLP sees one chunk embedding and neither the question nor the other chunks, so what it can
learn is which *kind* of chunk is worth its tokens; and the mask is drawn wherever it is used, so that equal calls give
different answers. Two accidents of public code are not kept: p = 0 expands nothing (there it lifted the cap, and half
of the chunks were expanded), and the reward is the likelihood of the true answer, not of the model's own.

REINFORCE: (reward - baseline) * log-probability of the coins as they fell; the baseline is a moving average of rewards.
Of more heads than round(p L) the likeliest are kept. That cap is part of what happens after the coins, like the reward,
so the log-probability is that of the uncapped coins, and the estimate stays unbiased.

Legend: B contexts, L chunks, E decoder width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from harness.model.chunking import EncoderInputs, expanded_count
from harness.train.chunk_model import answer_log_likelihood
from harness.train.distributed import alone

if TYPE_CHECKING:
    from harness.train.rows import Batch
    from refrag_v1.model import RefragV1


@dataclass(frozen=True, kw_only=True)
class PolicyConfig:
    """``width`` of the hidden layer. The seed says about 100 thousand parameters, of a 3 B decoder."""

    width: int = 32


@dataclass(frozen=True, kw_only=True)
class ReinforceConfig:
    """``expand`` is p; ``momentum`` is that of the moving baseline."""

    expand: float = 0.1
    momentum: float = 0.9


class Policy(nn.Module):
    """Chunk embeddings (..., E) to one logit each: linear, ReLU, linear."""

    def __init__(self, config: PolicyConfig, decoder_width: int) -> None:
        super().__init__()
        self.config = config
        self.hidden = nn.Linear(decoder_width, config.width)
        self.out = nn.Linear(config.width, 1)

    def forward(self, chunks: Tensor) -> Tensor:
        """A logit (...) of each of ``chunks`` (..., E): how much speaks for expanding it. RMS-normalised first."""
        length = chunks.shape[-1]
        logits: Tensor = self.out(F.relu(self.hidden(F.rms_norm(chunks, (length,)))))[..., 0]
        return logits


def toss(logits_BL: Tensor, uniform_BL: Tensor, n_chunks: list[int], expand: float) -> tuple[Tensor, Tensor]:
    """The coins (B, L) as they fell, and the mask (B, L) after the cap of round(p L) chunks; ``uniform_BL`` in [0, 1).

    Chunks beyond a row's ``n_chunks`` are never heads.
    """
    L = logits_BL.shape[1]
    counts_B = torch.tensor(n_chunks, device=logits_BL.device)
    real_BL = torch.arange(L, device=logits_BL.device)[None] < counts_B[:, None]
    coins_BL = (uniform_BL < logits_BL.sigmoid()) & real_BL
    rank_BL = logits_BL.masked_fill(~coins_BL, -torch.inf).argsort(dim=-1, descending=True, stable=True).argsort(dim=-1)
    most_B = torch.tensor([expanded_count(expand, n) for n in n_chunks], device=logits_BL.device)
    return coins_BL, coins_BL & (rank_BL < most_B[:, None])


class PolicyTraining(nn.Module):
    """The model, and the moving average of rewards that its policy is measured against."""

    def __init__(self, model: RefragV1) -> None:
        super().__init__()
        assert model.policy is not None
        self.model = model
        self.register_buffer("baseline", torch.zeros(()))
        self.register_buffer("updates", torch.zeros((), dtype=torch.long))
        self.baseline: Tensor
        self.updates: Tensor

    def train(self, mode: bool = True) -> PolicyTraining:
        """The policy alone: a frozen model that drops out would be another one than the one that answers."""
        super().train(mode)
        self.model.eval()
        cast("Policy", self.model.policy).train(mode)
        return self


def reinforce(training: PolicyTraining, batch: Batch, config: ReinforceConfig) -> Tensor:
    """The loss of one step."""
    alone("REINFORCE")
    model = training.model
    assert model.policy is not None
    n_chunks_B = batch["n_chunks"]
    with torch.no_grad():
        chunks_ME = model.encode(EncoderInputs(batch["encoder_ids"], batch["encoder_mask"], batch["encoder_chunk"]))
        place_L = torch.arange(int(n_chunks_B.max()), device=n_chunks_B.device)
        rows_BL = (batch["first_chunk"][:, None] + place_L[None]).clamp(max=chunks_ME.shape[0] - 1)
    logits_BL = model.policy(chunks_ME[rows_BL])
    # On the CPU whatever the device: its generator is the one that a checkpoint keeps.
    uniform_BL = torch.rand(logits_BL.shape).to(logits_BL.device)
    coins_BL, expanded_BL = toss(logits_BL.detach(), uniform_BL, n_chunks_B.tolist(), config.expand)
    with torch.no_grad():
        reward_B = answer_log_likelihood(model, batch, chunks_ME, expanded_BL)
        if int(training.updates) == 0:
            training.baseline.copy_(reward_B.mean())
        gain_B = reward_B - training.baseline
        training.baseline.lerp_(reward_B.mean(), 1 - config.momentum)
        training.updates += 1
    fell_BL = -F.binary_cross_entropy_with_logits(logits_BL, coins_BL.to(logits_BL.dtype), reduction="none")
    real_BL = place_L[None] < n_chunks_B[:, None]
    loss: Tensor = -(gain_B[:, None] * fell_BL * real_BL).sum(1).mean()
    return loss
