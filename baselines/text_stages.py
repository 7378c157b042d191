"""How the decoder of the text scales comes about, and how full context (standard RAG) goes on from it.

Unlike the world's reader it starts from random weights: real text teaches a decoder to quote its context by itself.
``finetune`` is more of the same at a lower rate, on as many decoder tokens as REFRAG and CEPE read after the decoder
was made, so that reading everything as tokens is not undertrained beside them.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.data.text_practice import NextToken
from harness.data.world.practice import Practice
from harness.train.losses import answer_loss, read_tokens
from harness.train.rows import collate_tokens
from harness.train.stage import Muon, Schedule, Stage

if TYPE_CHECKING:
    from harness.train.loop import Loss

SHAPE = "text-tiny"


@dataclass(frozen=True, kw_only=True)
class TextDecoderRecipe:
    """A stage that trains a plain decoder to predict every token of windows of text."""

    stage: Stage
    data: NextToken
    after: tuple[str, str, str] | None = None
    requires: tuple[str, ...] = ()
    shape: str = SHAPE
    init: str = "random"
    template: str = "bare"
    stored_as: str = "float32"

    def open(self, start: Path | None) -> tuple[Any, Any]:
        from harness.model.load import load_decoder, random_decoder

        if start is not None:
            decoder = load_decoder(str(start))
            return decoder.model, decoder.tokenizer
        return random_decoder(self.shape, seed=self.stage.seed), self.data.text.tokenizer()

    def batches(self, model: Any, tokenizer: Any) -> Practice:
        return Practice(
            self.data, tokenizer, lambda rows, rng: collate_tokens(rows, tokenizer.pad_token_id), seed=self.stage.seed
        )

    def loss(self) -> Loss:
        return answer_loss(read_tokens, 0.0)

    def export(self, model: Any, tokenizer: Any, training: dict[str, Any], folder: Path) -> Path:
        from harness.train.export import export

        return export(model, tokenizer, training, folder)


def _stage(name: str, steps: int, lr: float, adamw_lr: float, seed: int = 0) -> Stage:
    return Stage(
        name=name,
        steps=steps,
        optimizer=Muon(lr=lr, adamw_lr=adamw_lr),
        schedule=Schedule(warmup=0.04, decay="cosine", floor=0.05),
        seed=seed,
    )


def pretrain(steps: int) -> TextDecoderRecipe:
    return TextDecoderRecipe(stage=_stage("pretrain", steps, 3e-3, 2e-3), data=NextToken())


def finetune(steps: int, scale: str) -> TextDecoderRecipe:
    return TextDecoderRecipe(
        after=("decoder", "pretrain", scale),
        # Another seed, or the batches of the stage before would come again.
        stage=_stage("finetune", steps, 1e-3, 7e-4, seed=1),
        data=NextToken(),
    )
