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
from harness.prompts import pad_id
from harness.train.losses import answer_loss, read_tokens
from harness.train.rows import collate_tokens
from harness.train.stage import Stage
from harness.train.text_scales import TEXT_SCALES, TextScale

if TYPE_CHECKING:
    from harness.train.loop import Loss


@dataclass(frozen=True, kw_only=True)
class TextDecoderRecipe:
    """A stage that trains a plain decoder to predict every token of windows of text."""

    stage: Stage
    data: NextToken
    shape: str
    after: tuple[str, str, str] | None = None
    requires: tuple[str, ...] = ()
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
            self.data, tokenizer, lambda rows, rng: collate_tokens(rows, pad_id(tokenizer)), seed=self.stage.seed
        )

    def loss(self) -> Loss:
        return answer_loss(read_tokens, 0.0)

    def export(self, model: Any, tokenizer: Any, training: dict[str, Any], folder: Path) -> Path:
        from harness.train.export import export

        return export(model, tokenizer, training, folder)


def pretrain(scale: TextScale) -> TextDecoderRecipe:
    size = scale.size
    return TextDecoderRecipe(
        stage=scale.stage("pretrain", scale.steps.pretrain, size.rates.pretrain), data=size.plain, shape=size.shape
    )


def finetune(scale: TextScale) -> TextDecoderRecipe:
    size = scale.size
    return TextDecoderRecipe(
        after=("decoder", "pretrain", scale.name),
        # Another seed, or the batches of the stage before would come again.
        stage=scale.stage("finetune", scale.steps.finetune, size.rates.finetune, seed=1),
        data=size.plain,
        shape=size.shape,
    )


PRETRAIN = {scale.name: pretrain(scale) for scale in TEXT_SCALES.values()}
FINETUNE = {scale.name: finetune(scale) for scale in TEXT_SCALES.values()}
