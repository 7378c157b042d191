"""Training the policy: GRPO on the likelihood of the true next tokens (arXiv:2509.01092v2, Eq. 1 and appendix A.1).

Everything but the policy is frozen. Each step draws G sequences of picks per question from the *sampler*, an older
copy of the policy, rewards every sequence by the log-likelihood of the true answer under the mixed input that it makes,
and moves the policy by the clipped ratio to the sampler. The sampler is refreshed every few steps (left open by the
paper), so that the clip has something to clip; it is part of the checkpoint, so that training resumes exactly.

The reward never comes from text that the model generated.

Before it, ``warm_up`` gives the policy a start (not in the paper): a fresh network picks at random, and G samples in a
group then say little about which of many chunks was the one. Labels are what the reward itself says of every chunk
expanded alone.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from harness.errors import InputError
from harness.model.chunking import EncoderInputs, expanded_count
from harness.train.chunk_model import answer_log_likelihood
from harness.train.distributed import alone
from harness.train.rows import Batch
from refrag_v2.model import Refrag
from refrag_v2.policy import Policy, advantages, grpo_loss, picks_log_probability, sample_picks


@dataclass(frozen=True, kw_only=True)
class GrpoConfig:
    """``groups`` is G; ``clip`` is epsilon; ``expand`` is p; the sampler is refreshed every ``refresh`` steps."""

    groups: int = 8
    clip: float = 0.2
    expand: float = 0.1
    refresh: int = 4

    def __post_init__(self) -> None:
        if self.groups < 2:
            raise InputError(
                f"expected at least 2 samples to a group, or none is better than another; got {self.groups}"
            )


@dataclass(frozen=True, kw_only=True)
class WarmUpConfig:
    """``temperature`` of the labels, in standard deviations of a row's rewards."""

    temperature: float = 0.5


class PolicyTraining(nn.Module):
    """The model, and the policy that drew the samples."""

    def __init__(self, refrag: Refrag) -> None:
        super().__init__()
        assert refrag.policy is not None
        self.refrag = refrag
        self.sampler: Policy = copy.deepcopy(refrag.policy)
        self.register_buffer("updates", torch.zeros((), dtype=torch.long))
        self.updates: Tensor

    def train(self, mode: bool = True) -> PolicyTraining:
        """The policy alone: a frozen model that drops out would be another one than the one that answers."""
        super().train(mode)
        self.refrag.eval()
        self.sampler.eval()
        assert self.refrag.policy is not None
        self.refrag.policy.train(mode)
        return self


def warm_up(training: PolicyTraining, batch: Batch, config: WarmUpConfig) -> Tensor:
    """Cross-entropy of the policy against the softmax of the advantage of each chunk's expansion alone.

    The advantage and not the reward: where the model is right anyway, rewards differ by a hundredth of a nat, and still
    tell which chunk it was.
    """
    alone("the warm-up of the policy")
    model = training.refrag
    assert model.policy is not None
    _picks(1.0, batch["n_chunks"])
    with torch.no_grad():
        chunks_ME = model.encode(EncoderInputs(batch["encoder_ids"], batch["encoder_mask"], batch["encoder_chunk"]))
        seen = policy_inputs(model, batch, chunks_ME)
        B, L = seen[3].shape
        each_BL1 = torch.arange(L, device=chunks_ME.device).expand(B, L)[..., None]
        worth_BL = likelihood_of_picks(model, batch, chunks_ME, each_BL1)
        labels_BL = (advantages(worth_BL) / config.temperature).softmax(-1)
    loss: Tensor = -(labels_BL * model.policy(*seen).log_softmax(-1)).sum(-1).mean()
    return loss


def grpo(training: PolicyTraining, batch: Batch, config: GrpoConfig) -> Tensor:
    """The loss of one step. Rows of the batch have equally many chunks and one question each."""
    alone("GRPO")
    model = training.refrag
    assert model.policy is not None
    with torch.no_grad():
        if int(training.updates) % config.refresh == 0:
            training.sampler.load_state_dict(model.policy.state_dict())
        training.updates += 1
        chunks_ME = model.encode(EncoderInputs(batch["encoder_ids"], batch["encoder_mask"], batch["encoder_chunk"]))
        seen = policy_inputs(model, batch, chunks_ME)
        count = _picks(config.expand, batch["n_chunks"])
        old_logits_BL = training.sampler(*seen)
        picks_BGT = sample_picks(old_logits_BL, count, config.groups)
        old_BGT = picks_log_probability(old_logits_BL, picks_BGT)
        advantage_BG = advantages(likelihood_of_picks(model, batch, chunks_ME, picks_BGT))
    new_BGT = picks_log_probability(model.policy(*seen), picks_BGT)
    return grpo_loss(new_BGT, old_BGT, advantage_BG, config.clip)


def _picks(expand: float, n_chunks_B: Tensor) -> int:
    """How many chunks are picked of each row. Raises ``InputError`` where that differs, or where it is none."""
    counts = {expanded_count(expand, n) for n in n_chunks_B.tolist()}
    if len(counts) > 1 or counts == {0}:
        raise InputError(
            f"expected rows with equally many chunks to pick, at least 1; a share of {expand} of "
            f"{', '.join(map(str, sorted(set(n_chunks_B.tolist()))))} chunks is {', '.join(map(str, sorted(counts)))}"
        )
    return counts.pop()


def policy_inputs(model: Refrag, batch: Batch, chunks_ME: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What the policy sees: the question's token embeddings and the row's chunk embeddings, each with its mask."""
    n_chunks_B = batch["n_chunks"]
    place_L = torch.arange(int(n_chunks_B.max()), device=n_chunks_B.device)
    chunk_mask_BL = place_L[None] < n_chunks_B[:, None]
    rows_BL = (batch["first_chunk"][:, None] + place_L[None]).clamp(max=chunks_ME.shape[0] - 1)
    is_question = batch["tail"] & ~batch["is_answer"]
    Q = int(is_question.sum(1).max())
    order_BQ = (~is_question).to(torch.int8).argsort(dim=1, stable=True)[:, :Q]
    question_mask_BQ = is_question.gather(1, order_BQ)
    question_BQE = model.decoder.model.embed_tokens(batch["input_ids"].gather(1, order_BQ))
    return question_BQE, question_mask_BQ, chunks_ME[rows_BL], chunk_mask_BL


def likelihood_of_picks(model: Refrag, batch: Batch, chunks_ME: Tensor, picks_BGT: Tensor) -> Tensor:
    """Mean log-likelihood (B, G) of each row's answer tokens with the picked chunks expanded."""
    B, G, _ = picks_BGT.shape
    L = max(1, int(batch["n_chunks"].max()))
    expanded = torch.zeros((B * G, L), dtype=torch.bool, device=picks_BGT.device)
    expanded = expanded.scatter(1, picks_BGT.flatten(0, 1), True)
    laid_out = {name: batch[name].repeat_interleave(G, 0) for name in _PER_ROW}
    return answer_log_likelihood(model, laid_out, chunks_ME, expanded).view(B, G)


_PER_ROW = ("input_ids", "attention_mask", "labels", "is_answer", "chunk", "chunk_start", "n_chunks", "first_chunk")
