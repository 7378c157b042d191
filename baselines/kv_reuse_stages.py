"""How a decoder learns to read passages that never saw each other: question answering under the block mask.

Block-Attention (arXiv:2409.15355) reports the accuracy of full attention after fine-tuning under this mask.
``finetune`` is standard RAG's own fine-tuning (same start, steps, optimizer, data, loss) with the mask that
``kv_reuse`` serves: nothing but attention differs between the two.

Blocks: the start token is one, each passage is one, and what follows the passages (the tail: questions and answers)
sees everything before it. Positions are those of the whole sequence.

Shapes: B rows, T positions (query before key where there are two), V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from baselines import stages
from harness.data.world.practice import Exercise, Practice
from harness.prompts import pad_id
from harness.train.losses import answer_loss
from harness.train.rows import Batch, Row, collate_tokens
from harness.train.stage import Stage

if TYPE_CHECKING:
    from torch import nn

    from harness.train.loop import Loss

TAIL = -1  # the block that sees everything


@dataclass(frozen=True, kw_only=True)
class BlockRecipe:
    """A stage that trains a plain decoder under the block mask."""

    stage: Stage
    after: tuple[str, str, str]
    data: Exercise
    language_weight: float
    requires: tuple[str, ...] = ()
    init: None = None
    template: str = "tagged"
    stored_as: str = "bfloat16"

    def open(self, start: Path | None) -> tuple[Any, Any]:
        """The decoder in ``start``. Raises ``InputError`` where there is none."""
        from harness.errors import InputError
        from harness.model.load import load_decoder

        if start is None:
            raise InputError("kv_reuse starts from a decoder; none was given")
        decoder = load_decoder(str(start))
        return decoder.model, decoder.tokenizer

    def batches(self, model: Any, tokenizer: Any) -> Practice:  # noqa: ARG002
        return Practice(
            self.data, tokenizer, lambda rows, _: collate_blocks(rows, pad_id(tokenizer)), seed=self.stage.seed
        )

    def loss(self) -> Loss:
        return answer_loss(read_blocks, self.language_weight)

    def export(self, model: Any, tokenizer: Any, training: dict[str, Any], folder: Path) -> Path:
        from harness.train.export import export

        return export(model, tokenizer, training, folder)


def collate_blocks(rows: Sequence[Row], pad_id: int) -> Batch:
    """``collate_tokens`` and ``block`` (B, T): 0 at the start token, i at passage i (from 1), ``TAIL`` after them.

    Padding, on the right, is ``TAIL`` too: it sees something, so that its softmax is over something, and nothing real
    sees what follows it.
    """
    batch = collate_tokens(rows, pad_id)
    block_BT = torch.full_like(batch["input_ids"], TAIL)
    for index, row in enumerate(rows):
        lengths = [len(row.start), *(len(block.tag) + len(block.text) for block in row.context)]
        blocks = torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths))
        block_BT[index, : len(blocks)] = blocks
    return batch | {"block": block_BT}


def block_mask(block_BT: Tensor) -> Tensor:
    """What each position sees (B, T, T): of itself and what is before it, its own block; the tail, all."""
    T = block_BT.shape[1]
    causal = torch.ones((T, T), dtype=torch.bool, device=block_BT.device).tril()
    same = block_BT[:, :, None] == block_BT[:, None, :]
    tail = (block_BT == TAIL)[:, :, None]
    return causal & (same | tail)


def read_blocks(model: nn.Module, batch: Batch) -> Tensor:
    """Logits (B, T, V) of an ordinary decoder under the block mask.

    ``transformers`` hands a mask of four dimensions on as it is. SDPA reads a boolean one as what is seen; eager
    attention would add it to the scores, and flash attention ignore it.
    """
    config: Any = model.config
    assert config._attn_implementation == "sdpa"
    mask_B1TT = block_mask(batch["block"])[:, None]
    logits: Tensor = model(input_ids=batch["input_ids"], attention_mask=mask_B1TT, use_cache=False).logits
    return logits


def _matched(standard: stages.DecoderRecipe, after: tuple[str, str, str] | None = None) -> BlockRecipe:
    """Standard RAG's stage, under the block mask; ``after`` is another start than its own."""
    start = after or standard.after
    assert start is not None
    return BlockRecipe(
        stage=standard.stage,
        after=start,
        data=standard.data,
        language_weight=standard.language_weight,
    )


FINETUNE = {
    scale: _matched(standard)
    for scale, standard in stages.FINETUNE.items()
    if isinstance(standard, stages.DecoderRecipe)  # the text scales have no passages to keep apart
}
MEMORY = {scale: _matched(standard, after=("kv_reuse", "finetune", scale)) for scale, standard in stages.MEMORY.items()}
