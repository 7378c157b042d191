"""How the decoder that all systems share comes about at the tiny scale, and how standard RAG fine-tunes it.

A published decoder has read text before anybody fine-tunes it: it can quote its context and go on about what stands
there. ``pretrain`` is the stand-in for that: one decoder, from which standard RAG (LLaMA_FT in the paper) and every
compressing system start. ``finetune`` is question answering over passages as tokens. The numbers were measured on
2 CPU cores; results/LOG.md has what was tried.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from baselines import text_stages
from baselines.text_stages import TextDecoderRecipe
from harness.data.world import memory_practice
from harness.data.world.practice import Copying, Exercise, Growing, Mixture, Practice, Reading, Retelling
from harness.prompts import pad_id
from harness.train.losses import answer_loss, read_tokens
from harness.train.rows import collate_tokens
from harness.train.stage import Muon, Schedule, Stage

if TYPE_CHECKING:
    from harness.train.loop import Loss


@dataclass(frozen=True, kw_only=True)
class DecoderRecipe:
    """A stage that trains a plain decoder on world text as tokens.

    ``init`` is ``circuit`` (hand-built) or ``random``, for a stage that starts from nothing.
    """

    stage: Stage
    data: Exercise
    language_weight: float
    after: tuple[str, str, str] | None = None
    requires: tuple[str, ...] = ()
    shape: str = "tiny"
    init: str = "circuit"
    template: str = "tagged"
    stored_as: str = "bfloat16"

    def open(self, start: Path | None) -> tuple[Any, Any]:
        from harness.data.world.tokenizer import ANSWER, build_tokenizer
        from harness.model.circuit_init import circuit_init
        from harness.model.load import load_decoder, random_decoder

        if start is not None:
            decoder = load_decoder(str(start))
            return decoder.model, decoder.tokenizer
        tokenizer = build_tokenizer()
        model = random_decoder(self.shape, seed=self.stage.seed)
        if self.init == "circuit":
            circuit_init(model, tokenizer.convert_tokens_to_ids(ANSWER), self.stage.seed)
        return model, tokenizer

    def batches(self, model: Any, tokenizer: Any) -> Practice:
        return Practice(
            self.data, tokenizer, lambda rows, rng: collate_tokens(rows, pad_id(tokenizer)), seed=self.stage.seed
        )

    def loss(self) -> Loss:
        return answer_loss(read_tokens, self.language_weight)

    def export(self, model: Any, tokenizer: Any, training: dict[str, Any], folder: Path) -> Path:
        from harness.train.export import export

        return export(model, tokenizer, training, folder)


def _whole(tokens: int) -> Growing:
    """Contexts of ``tokens`` tokens from the first step on."""
    return Growing(k=8, steps=1, max_chunks=tokens // 8, tokens=1024, curriculum="none")


def _stage(name: str, steps: int, lr: float, adamw_lr: float) -> Stage:
    return Stage(
        name=name,
        steps=steps,
        optimizer=Muon(lr=lr, adamw_lr=adamw_lr),
        schedule=Schedule(warmup=0.04, decay="cosine", floor=0.05),
    )


def _pretrain(steps: int) -> DecoderRecipe:
    return DecoderRecipe(
        stage=_stage("pretrain", steps, 3e-3, 2e-3),
        data=Mixture(
            exercises=(
                Reading(),
                Reading(),
                Retelling(growing=_whole(128)),
                Copying(growing=_whole(64)),
            )
        ),
        language_weight=0.05,
    )


def _finetune(steps: int, scale: str) -> DecoderRecipe:
    return DecoderRecipe(
        after=("decoder", "pretrain", scale),
        stage=_stage("finetune", steps, 1e-3, 7e-4),
        data=Reading(),
        language_weight=0.02,
    )


PRETRAIN: dict[str, DecoderRecipe | TextDecoderRecipe] = {
    "tiny": _pretrain(2000),
    "tiny-short": _pretrain(600),
    **text_stages.PRETRAIN,
}
FINETUNE: dict[str, DecoderRecipe | TextDecoderRecipe] = {
    "tiny": _finetune(600, "tiny"),
    "tiny-short": _finetune(150, "tiny-short"),
    **text_stages.FINETUNE,
}
# Passkeys and look-ups on top of that (slurm/sweeps/passkey.py).
MEMORY = {
    "tiny": DecoderRecipe(
        after=("standard_rag", "finetune", "tiny"),
        stage=memory_practice.stage(),
        data=memory_practice.PRACTICE,
        language_weight=memory_practice.LANGUAGE_WEIGHT,
    )
}
