"""How a stage of v1 is carried out: its model, batches, loss, and what it leaves. Its numbers: ``stages``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, cast

import torch
import torch.nn.functional as F

from harness.data.world.practice import Exercise, Practice
from harness.model.chunking import EncoderInputs
from harness.train.chunk_model import lay_out_for, read_chunks
from harness.train.chunk_rows import condense
from harness.train.distributed import mean
from harness.train.losses import answer_loss
from harness.train.rows import IGNORED, Batch, Block, Row
from harness.train.stage import Stage
from refrag_v1.model import RefragV1Config
from refrag_v1.policy import Policy, PolicyConfig, PolicyTraining, ReinforceConfig, reinforce

if TYPE_CHECKING:
    import random
    from collections.abc import Sequence

    from torch import Tensor, nn

    from harness.train.loop import Loss
    from refrag_v1.model import RefragV1

Start = tuple[str, str, str]
ENCODING = ("encoder", "projector")


@dataclass(frozen=True, kw_only=True)
class RefragV1Recipe:
    """``cpt_recon`` (``repeat``) or ``cpt_next``. No stage requires another: v1 enforces no order."""

    stage: Stage
    after: Start
    model: RefragV1Config
    data: Exercise
    repeat: bool = False
    language_weight: float = 0.0
    requires: tuple[str, ...] = ()
    init: None = None
    template: str = "tagged"
    stored_as: str = "bfloat16"

    def open(self, start: Path | None) -> tuple[RefragV1, Any]:
        return open_model(self.model, start, seed=self.stage.seed)

    def batches(self, model: RefragV1, tokenizer: Any) -> Practice:
        def collate(rows: Sequence[Row], rng: random.Random) -> Batch:  # noqa: ARG001
            batch = lay_out_for(model, run_together(rows), tokenizer)
            if self.repeat:  # the decoder reads each chunk's embedding k times, and nothing else
                return batch | {"attention_mask": (batch["chunk"] >= 0).long()}
            return condense(batch, torch.zeros((len(rows), int(batch["n_chunks"].max())), dtype=torch.bool))

        return Practice(self.data, tokenizer, collate, seed=self.stage.seed)

    def loss(self) -> Loss:
        return repetition_loss if self.repeat else answer_loss(read_chunks, self.language_weight)

    def export(self, model: RefragV1, tokenizer: Any, training: dict[str, Any], folder: Path) -> Path:
        from refrag_v1.checkpoint import save

        return save(model, tokenizer, training, folder)


@dataclass(frozen=True, kw_only=True)
class PolicyRecipe:
    """``train_policy``: REINFORCE on a frozen model. Without a policy in the start it is fresh."""

    stage: Stage
    after: Start
    model: RefragV1Config
    data: Exercise
    policy: PolicyConfig = PolicyConfig()
    objective: ReinforceConfig = ReinforceConfig()
    for_one: ClassVar[str] = "a policy's training"
    requires: tuple[str, ...] = ()
    init: None = None
    template: str = "tagged"
    stored_as: str = "bfloat16"

    def open(self, start: Path | None) -> tuple[PolicyTraining, Any]:
        model, tokenizer = open_model(self.model, start, seed=self.stage.seed)
        if model.policy is None:
            torch.manual_seed(self.stage.seed)
            model.policy = Policy(self.policy, model.decoder.config.hidden_size)
        return PolicyTraining(model), tokenizer

    def batches(self, model: PolicyTraining, tokenizer: Any) -> Practice:
        def collate(rows: Sequence[Row], rng: random.Random) -> Batch:  # noqa: ARG001
            return lay_out_for(model.model, run_together(rows), tokenizer)

        return Practice(self.data, tokenizer, collate, seed=self.stage.seed)

    def loss(self) -> Loss:
        return lambda model, batch: reinforce(cast("PolicyTraining", model), batch, self.objective)

    def export(self, model: PolicyTraining, tokenizer: Any, training: dict[str, Any], folder: Path) -> Path:
        from refrag_v1.checkpoint import save

        return save(model.model, tokenizer, training, folder)


def run_together(rows: Sequence[Row]) -> list[Row]:
    """The rows with their passages as one text, without markup: v1 has no prompt template."""
    return [
        Row(row.start, [Block([], [t for b in row.context for t in b.text])], row.tail, row.is_answer) for row in rows
    ]


def repetition_loss(model: nn.Module, batch: Batch) -> Tensor:
    """Cross-entropy of every token of every chunk under its embedding repeated: position i against token i."""
    v1 = cast("RefragV1", model)
    chunks_ME = v1.encode(EncoderInputs(batch["encoder_ids"], batch["encoder_mask"], batch["encoder_chunk"]))
    logits_MkV = v1.repeated(chunks_ME)
    labels_Mk = chunk_tokens(batch, v1.config.k)
    logits, labels = logits_MkV.float().flatten(0, 1), labels_Mk.flatten()
    total = F.cross_entropy(logits, labels, ignore_index=IGNORED, reduction="sum")
    return mean(total, int((labels != IGNORED).sum()))


def chunk_tokens(batch: Batch, k: int) -> Tensor:
    """The decoder tokens (M, k) of every chunk of a batch of ``lay_out``, ignored where a chunk is shorter."""
    inside_BF = batch["chunk"] >= 0
    number_P = (batch["first_chunk"][:, None] + batch["chunk"])[inside_BF]  # in reading order
    counts_M = torch.bincount(number_P)
    starts_M = counts_M.cumsum(0) - counts_M
    place_P = torch.arange(len(number_P), device=number_P.device) - starts_M[number_P]
    tokens = torch.full((len(counts_M), k), IGNORED, device=number_P.device)
    tokens[number_P, place_P] = batch["input_ids"][inside_BF]
    return tokens


def open_model(config: RefragV1Config, start: Path | None, *, seed: int) -> tuple[RefragV1, Any]:
    """The model in ``start``; around a plain decoder a fresh encoder and projector as ``config`` says.

    Raises ``InputError`` where ``start`` was built otherwise.
    """
    from harness.errors import InputError
    from harness.model.encoders import encoder_tokenizer
    from harness.model.load import load_decoder
    from refrag_v1.checkpoint import FILES, load
    from refrag_v1.model import RefragV1

    if start is None:
        raise InputError("REFRAG v1 starts from a decoder; none was given")
    decoder = load_decoder(str(start))
    if not FILES.there(start):
        torch.manual_seed(seed)
        return RefragV1(config, decoder.model, encoder_tokenizer(config.encoder)), decoder.tokenizer
    model = load(start, decoder.model)
    if model.config != config:
        raise InputError(f"{start} was built as {model.config}; this stage expects {config}")
    return model, decoder.tokenizer
