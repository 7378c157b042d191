"""The selection policy: which chunks are worth their tokens (arXiv:2509.01092v2, section 4 and appendix A.1).

A 2-layer transformer over the chunk embeddings gives one logit per chunk. Chunks are picked one after another without
replacement: pi(l_t = i) is the softmax over the logits of those not yet picked, the logits computed once. Training is
GRPO: G sampled sequences per context, the advantage is the reward normalised within the group, the same for every
pick, and the PPO clip against the policy that drew them. At inference the highest logits win: nothing is drawn.

Left open by the paper and decided here:

- The question is part of the input. The paper's policy sees the context alone; over a question's passages nothing
  could then tell a useful chunk from another. The tokens of the question stand before the chunks, as embeddings of
  the decoder.
- The logit is a bilinear match of the chunk with the question (both as the transformer leaves them) plus a linear
  term; inputs are normalised, width and heads are config.
- Reward: the mean log-likelihood of the true next tokens (the answer) under the mixed input, which is minus their
  log-perplexity.

Legend: B contexts, L chunks, Q question tokens, T picks, G sampled sequences, E decoder width, W policy width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class PolicyConfig:
    """Width and depth of the policy network. The paper says two layers and nothing of the rest."""

    width: int = 128
    layers: int = 2
    heads: int = 4


class Policy(nn.Module):
    """Question embeddings and chunk embeddings to one logit per chunk."""

    def __init__(self, config: PolicyConfig, decoder_width: int) -> None:
        super().__init__()
        self.config = config
        W = config.width
        self.project = nn.Linear(decoder_width, W, bias=False)
        self.kind = nn.Embedding(2, W)
        layer = nn.TransformerEncoderLayer(
            W, config.heads, 4 * W, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.transformer = nn.TransformerEncoder(layer, config.layers, enable_nested_tensor=False)
        self.norm = nn.LayerNorm(W)
        self.match = nn.Linear(W, W, bias=False)
        self.merit = nn.Linear(W, 1)
        # At first the logit is the similarity of question and chunk, as far as the transformer leaves it.
        nn.init.orthogonal_(self.project.weight)
        nn.init.eye_(self.match.weight)

    def forward(
        self, question_BQE: Tensor, question_mask_BQ: Tensor, chunks_BLE: Tensor, chunk_mask_BL: Tensor
    ) -> Tensor:
        """Logits (B, L); -inf where there is no chunk."""
        Q = question_BQE.shape[1]
        x = torch.cat([question_BQE, chunks_BLE], 1)
        x_BSW = self.project(F.rms_norm(x, (x.shape[-1],)))
        mask_BS = torch.cat([question_mask_BQ, chunk_mask_BL], 1)
        kinds = (torch.arange(x.shape[1], device=x.device) >= Q).long()
        x_BSW = self.norm(self.transformer(x_BSW + self.kind(kinds), src_key_padding_mask=~mask_BS))
        asked_BQW, offered_BLW = x_BSW[:, :Q], x_BSW[:, Q:]
        weight_BQ1 = question_mask_BQ[..., None].to(x.dtype)
        asked_BW = (asked_BQW * weight_BQ1).sum(1) / weight_BQ1.sum(1).clamp(min=1)
        logits_BL = (self.match(offered_BLW) @ asked_BW[..., None])[..., 0] / self.config.width**0.5
        logits_BL = logits_BL + self.merit(offered_BLW)[..., 0]
        out: Tensor = logits_BL.masked_fill(~chunk_mask_BL, -torch.inf)
        return out


def sample_picks(logits_BL: Tensor, count: int, groups: int, generator: torch.Generator | None = None) -> Tensor:
    """``groups`` sequences of ``count`` different chunks each, (B, G, T), drawn one after another from the policy.

    Adding Gumbel noise to the logits and taking the largest is the same as drawing without replacement (Plackett-Luce).
    """
    B, L = logits_BL.shape
    # On the CPU whatever the device: its generator is the one that a checkpoint keeps.
    uniform = torch.rand((B, groups, L), generator=generator).clamp(1e-20, 1 - 1e-7)
    gumbel = -torch.log(-torch.log(uniform)).to(logits_BL.device)
    return (logits_BL[:, None] + gumbel).topk(count, dim=-1).indices


def picks_log_probability(logits_BL: Tensor, picks_BGT: Tensor) -> Tensor:
    """log pi(l_t) of every pick given those before it, (B, G, T)."""
    B, G, T = picks_BGT.shape
    logits_BGL = logits_BL[:, None].expand(B, G, -1)
    taken = torch.zeros_like(logits_BGL, dtype=torch.bool)
    steps = []
    for t in range(T):
        pick_BG1 = picks_BGT[..., t : t + 1]
        left = logits_BGL.masked_fill(taken, -torch.inf)
        steps.append(left.gather(-1, pick_BG1)[..., 0] - left.logsumexp(-1))
        taken = taken.scatter(-1, pick_BG1, True)
    return torch.stack(steps, -1)


def advantages(rewards_BG: Tensor) -> Tensor:
    """(r - mean) / std within each group; zero where all rewards are equal, up to the rounding of their mean."""
    mean_B1 = rewards_BG.mean(-1, keepdim=True)
    spread_B1 = rewards_BG.amax(-1, keepdim=True) - rewards_BG.amin(-1, keepdim=True)
    advantage_BG = (rewards_BG - mean_B1) / (rewards_BG.std(-1, keepdim=True) + 1e-6)
    return advantage_BG.masked_fill(spread_B1 <= 1e-6 * (1 + mean_B1.abs()), 0.0)


def grpo_loss(log_probability_BGT: Tensor, old_BGT: Tensor, advantage_BG: Tensor, clip: float) -> Tensor:
    """Minus the clipped surrogate, the mean over G sequences and T picks (Eq. 1, which has no KL term)."""
    ratio = (log_probability_BGT - old_BGT).exp()
    advantage = advantage_BG[..., None]
    loss: Tensor = -torch.minimum(ratio * advantage, ratio.clamp(1 - clip, 1 + clip) * advantage).mean()
    return loss
