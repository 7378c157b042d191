"""Standard RAG: the retrieved passages stand in the prompt as tokens and the decoder reads them all.

The strong baseline of every comparison. With no passages it is the closed-book row. A prompt that does not fit the
context loses whole passages from the end of the ranking; the question is never cut.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor

from harness import prompts
from harness.errors import InputError
from harness.model.decode import greedy, left_pad
from harness.model.llama import Llama
from harness.model.load import Decoder
from harness.protocol import Passage, Usage

Block = list[int]


@dataclass(frozen=True, kw_only=True)
class StandardRAGConfig:
    """``template`` is the prompt template that the decoder knows.

    ``max_positions`` bounds prompt and answer together; None means the decoder's own window.
    """

    template: str = "text"
    max_positions: int | None = None

    def build(self, decoder: Decoder) -> StandardRAG:
        return StandardRAG(self, decoder)


class StandardRAG:
    """``encode`` only tokenises: each passage becomes a block of token ids."""

    def __init__(self, config: StandardRAGConfig, decoder: Decoder) -> None:
        self.tokenizer = decoder.tokenizer
        self.template = prompts.template(config.template)
        self.window = config.max_positions or decoder.model.config.max_position_embeddings
        self.llama = Llama(decoder.model)
        self.stop_ids = self.template.stop_ids(self.tokenizer)
        pad = self.tokenizer.pad_token_id
        self.pad_id: int = self.stop_ids[0] if pad is None else pad

    def check(self, questions: Sequence[str], *, max_new_tokens: int) -> None:
        start = len(self.template.start_ids(self.tokenizer))
        for question, block in zip(questions, self.template.question_ids(self.tokenizer, questions), strict=True):
            needed = start + len(block) + max_new_tokens
            if needed > self.window:
                raise InputError(
                    f"question {question[:60]!r} needs {needed} positions with its answer; "
                    f"the decoder's context holds {self.window}"
                )

    def encode(self, passages: Sequence[Sequence[Passage]]) -> list[list[Block]]:
        blocks = iter(self.template.passage_ids(self.tokenizer, [passage for row in passages for passage in row]))
        return [list(islice(blocks, len(row))) for row in passages]

    def generate(
        self, questions: Sequence[str], context: list[list[Block]], *, max_new_tokens: int
    ) -> Iterator[Tensor]:
        prompts_, _ = self._prompts(questions, context, max_new_tokens)
        ids_BT, mask_BT = left_pad(prompts_, self.pad_id, self.llama.embedding.device)
        return greedy(
            self.llama,
            self.llama.embed(ids_BT),
            mask_BT,
            max_new_tokens=max_new_tokens,
            stop_ids=self.stop_ids,
            pad_id=self.pad_id,
        )

    def usage(self, questions: Sequence[str], context: list[list[Block]], *, max_new_tokens: int) -> list[Usage]:
        prompts_, read = self._prompts(questions, context, max_new_tokens)
        return [Usage(decoder_positions=len(p), passages_read=n) for p, n in zip(prompts_, read, strict=True)]

    def text(self, columns: Sequence[Tensor]) -> list[str]:
        texts = self.tokenizer.batch_decode(torch.stack(list(columns), dim=1), skip_special_tokens=True)
        return [self.template.answer(text) for text in texts]

    def _prompts(
        self, questions: Sequence[str], context: list[list[Block]], max_new_tokens: int
    ) -> tuple[list[list[int]], list[int]]:
        """Token ids of each prompt, and how many passages found room in it."""
        start = self.template.start_ids(self.tokenizer)
        question_blocks = self.template.question_ids(self.tokenizer, questions)
        rows, read = [], []
        for question, passages in zip(question_blocks, context, strict=True):
            room = self.window - max_new_tokens - len(start) - len(question)
            fitting = _leading_blocks_within(passages, room)
            rows.append([*start, *(token for block in fitting for token in block), *question])
            read.append(len(fitting))
        return rows, read


def _leading_blocks_within(blocks: list[Block], room: int) -> list[Block]:
    """The longest run of blocks from the front whose lengths sum to at most ``room``."""
    total = 0
    for index, block in enumerate(blocks):
        total += len(block)
        if total > room:
            return blocks[:index]
    return blocks
