"""CEPE's training, stage by stage, as data. What was released (princeton-nlp/CEPE) and ours:

    stage     task                                           trained                    released: LR, tokens    here
    warmup    the same tokens in encoder and decoder         encoder + cross-attention  5e-4, 262 M             below
    cpt       the decoder goes on from what the encoder read the same                   3e-4, 21 B              below

Common: AdamW, 4 % warm-up, cosine, no weight decay; the decoder stays frozen. Cross-attention starts as a copy of
self-attention (``Cepe.initialise_from_self_attention``); the encoder here is the decoder's own first layers, made
bidirectional, in place of one that was pretrained by masked tokens. ``distilled`` is CEPED's loss: beside
cross-entropy, twice the KL divergence from the decoder that reads everything as tokens.

At the tiny scale what follows the passages is questions with their answers, as for every other system here; the
released CEPE never trains on the task. Matrices are trained by Muon, as everywhere in this project at that scale.

Shapes: B rows, T decoder positions, N passages, S positions per passage, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from baselines.cepe_model import CepeConfig
from harness.data.world import memory_practice
from harness.data.world.practice import Exercise, Practice, Reading
from harness.model.chunking import split
from harness.prompts import pad_id
from harness.train.distributed import mean
from harness.train.losses import mean_losses, token_losses
from harness.train.rows import Batch, Row, collate_tokens
from harness.train.stage import Muon, Schedule, Stage
from harness.train.text_scales import TEXT_SCALES, TextScale

if TYPE_CHECKING:
    from torch import nn

    from baselines.cepe_model import Cepe
    from harness.train.loop import Loss

TRAINED = ("encoder.", "cross.")
WINDOW = 64  # tokens of an encoder row in the warm-up, as released


@dataclass(frozen=True, kw_only=True)
class CepeRecipe:
    """A stage of CEPE.

    ``duplicate`` gives the decoder everything and the encoder the same tokens again, in windows; else the passages go
    to the encoder alone. ``kl_weight`` is that of the divergence from the decoder that reads all as tokens.
    """

    stage: Stage
    after: tuple[str, str, str]
    model: CepeConfig
    data: Exercise
    requires: tuple[str, ...] = ()
    duplicate: bool = False
    language_weight: float = 0.0
    kl_weight: float = 0.0
    init: None = None
    template: str = "tagged"
    stored_as: str = "bfloat16"

    def open(self, start: Path | None) -> tuple[Cepe, Any]:
        """The model in ``start``; around a plain decoder a fresh one as ``model`` says.

        Raises ``InputError`` where there is none, or where it was built otherwise.
        """
        from baselines.cepe_checkpoint import FILES, load_cepe, read_config
        from baselines.cepe_model import build_cepe
        from harness.errors import InputError
        from harness.model.load import load_decoder

        if start is None:
            raise InputError("CEPE starts from a decoder; none was given")
        decoder = load_decoder(str(start))
        if not FILES.there(start):
            torch.manual_seed(self.stage.seed)
            return build_cepe(self.model, decoder.model), decoder.tokenizer
        if (found := read_config(start)) != self.model:
            raise InputError(f"{start} was built as {found}; this stage expects {self.model}")
        return load_cepe(start, decoder.model), decoder.tokenizer

    def batches(self, model: Cepe, tokenizer: Any) -> Practice:  # noqa: ARG002
        collate = collate_duplicate if self.duplicate else collate_passages
        return Practice(self.data, tokenizer, lambda rows, _: collate(rows, pad_id(tokenizer)), seed=self.stage.seed)

    def loss(self) -> Loss:
        def loss(model: nn.Module, batch: Batch) -> Tensor:
            cepe = cast("Cepe", model)
            logits = read_passages(cepe, batch)
            total = mean_losses(token_losses(logits, batch["labels"]), batch, self.language_weight)
            if self.kl_weight:
                total = total + self.kl_weight * divergence_from_tokens(cepe, batch, logits)
            return total

        return loss

    def export(self, model: Cepe, tokenizer: Any, training: dict[str, Any], folder: Path) -> Path:
        from baselines.cepe_checkpoint import save_cepe

        return save_cepe(self.model, model, tokenizer, training, folder)


def collate_passages(rows: Sequence[Row], pad_id: int) -> Batch:
    """Start and tail of each row for the decoder, its passages for the encoder, and everything as tokens beside it.

    ``collate_tokens``' keys for the decoder, ``encoder_ids`` and ``encoder_mask`` (B, N, S), and ``whole_ids`` (B, F)
    with ``whole_tail`` (B, F), which marks the tail and the token before it (a passage's last, in the decoder's row the
    start's): what predicts the tail in the one predicts it in the other.
    """
    bare = [Row(row.start, [], row.tail, row.is_answer) for row in rows]
    passages = [[[*block.tag, *block.text] for block in row.context] for row in rows]
    whole = collate_tokens(rows, pad_id)
    tail = torch.zeros_like(whole["is_answer"])
    for index, row in enumerate(rows):
        end = int(whole["attention_mask"][index].sum())
        tail[index, end - len(row.tail) - 1 : end] = True
    return (
        collate_tokens(bare, pad_id)
        | _encoder_rows(passages, pad_id)
        | {
            "whole_ids": whole["input_ids"],
            "whole_tail": tail,
        }
    )


def collate_duplicate(rows: Sequence[Row], pad_id: int) -> Batch:
    """Everything for the decoder, and the same tokens in windows for the encoder; every token is to be predicted."""
    texts = [[*(t for block in row.context for t in (*block.tag, *block.text)), *row.tail] for row in rows]
    bare = [Row(row.start, [], text, [True] * len(text)) for row, text in zip(rows, texts, strict=True)]
    return collate_tokens(bare, pad_id) | _encoder_rows([split(text, WINDOW) for text in texts], pad_id)


def _encoder_rows(passages: Sequence[Sequence[Sequence[int]]], pad_id: int) -> Batch:
    N = max([1, *map(len, passages)])
    S = max([1, *(len(passage) for row in passages for passage in row)])
    ids = torch.full((len(passages), N, S), pad_id)
    mask = torch.zeros((len(passages), N, S), dtype=torch.bool)
    for index, row in enumerate(passages):
        for number, passage in enumerate(row):
            ids[index, number, : len(passage)] = torch.tensor(passage)
            mask[index, number, : len(passage)] = True
    return {"encoder_ids": ids, "encoder_mask": mask}


def read_passages(model: Cepe, batch: Batch) -> Tensor:
    """Logits (B, T, V) of the decoder's tokens over the passages in the encoder."""
    ids = batch["input_ids"]
    # Right padding needs no mask: no real token looks at what follows it.
    everything = torch.ones_like(ids)
    positions = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
    logits: Tensor = model(ids, everything, positions, batch["encoder_ids"], batch["encoder_mask"]).logits
    return logits


def divergence_from_tokens(model: Cepe, batch: Batch, logits_BTV: Tensor) -> Tensor:
    """Mean KL(decoder over tokens || CEPE) over the tail's predictions, in nats (CEPED; its teacher is the decoder)."""
    with torch.no_grad():
        teacher = model.decoder(input_ids=batch["whole_ids"], use_cache=False).logits[batch["whole_tail"]]
    counts_B = batch["whole_tail"].sum(1, keepdim=True)
    lengths_B = batch["attention_mask"].sum(1, keepdim=True)
    place_T = torch.arange(logits_BTV.shape[1], device=logits_BTV.device)[None]
    student = logits_BTV[(place_T >= lengths_B - counts_B) & (place_T < lengths_B)]
    total = F.kl_div(student.log_softmax(-1), teacher.log_softmax(-1), log_target=True, reduction="sum")
    return mean(total, len(student))


def _stage(name: str, steps: int, lr: float) -> Stage:
    return Stage(
        name=name,
        steps=steps,
        optimizer=Muon(lr=lr, adamw_lr=0.7 * lr),
        schedule=Schedule(warmup=0.04, decay="cosine", floor=0.05),
        trained=TRAINED,
    )


MODEL = CepeConfig(cross_layers=4, encoder="decoder:1")


def _warmup(steps: int, decoder: str) -> CepeRecipe:
    return CepeRecipe(
        stage=_stage("warmup", steps, 1e-3),
        after=("decoder", "pretrain", decoder),
        model=MODEL,
        data=Reading(),
        duplicate=True,
    )


def _cpt(steps: int, scale: str, kl_weight: float = 0.0) -> CepeRecipe:
    return CepeRecipe(
        stage=_stage("cpt", steps, 1e-3),
        after=("cepe", "warmup", scale),
        requires=("cepe/warmup",),
        model=MODEL,
        data=Reading(),
        language_weight=0.02,
        kl_weight=kl_weight,
    )


def _on_text(scale: TextScale, name: str, steps: int) -> CepeRecipe:
    """A stage on real text, where the next paragraph is what follows the passages."""
    size, lr = scale.size, scale.size.rates.cepe
    warmup = name == "warmup"
    return CepeRecipe(
        stage=scale.stage(name, steps, (lr, 0.7 * lr), trained=TRAINED),
        after=("decoder", "pretrain", scale.name) if warmup else ("cepe", "warmup", scale.name),
        requires=() if warmup else ("cepe/warmup",),
        model=CepeConfig(cross_layers=size.cross_layers, encoder=size.encoder),
        data=size.plain if warmup else size.paragraph,
        duplicate=warmup,
        template="bare",
        stored_as="float32",
    )


WARMUP = {
    "tiny": _warmup(100, "tiny"),
    "tiny-short": _warmup(30, "tiny-short"),
    **{scale.name: _on_text(scale, "warmup", scale.steps.warmup) for scale in TEXT_SCALES.values()},
}
CPT = {
    "tiny": _cpt(800, "tiny"),
    "tiny-short": _cpt(200, "tiny-short"),
    "tiny-distilled": _cpt(800, "tiny", kl_weight=2.0),
    **{scale.name: _on_text(scale, "cpt", scale.steps.cpt) for scale in TEXT_SCALES.values()},
}
# Passkeys and look-ups on top of that (slurm/sweeps/passkey.py); the decoder stays frozen, as in CEPE's other stages.
MEMORY = {
    "tiny": CepeRecipe(
        stage=memory_practice.stage(TRAINED),
        after=("cepe", "cpt", "tiny"),
        requires=("cepe/warmup", "cepe/cpt"),
        model=MODEL,
        data=memory_practice.PRACTICE,
        language_weight=memory_practice.LANGUAGE_WEIGHT,
    )
}
