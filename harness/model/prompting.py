"""A prompt template bound to a decoder: what every system does before its own method starts and after it ends."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from harness import prompts
from harness.errors import InputError
from harness.protocol import Passage, TokenBlock

if TYPE_CHECKING:
    from harness.model.load import Decoder


class Prompting:
    """Token ids of questions and passages, what ends an answer, and how much fits.

    ``max_positions`` bounds prompt and answer together; None means the decoder's own window.
    """

    def __init__(self, template: str, max_positions: int | None, decoder: Decoder) -> None:
        self.tokenizer = decoder.tokenizer
        self.template = prompts.template(template)
        self.window: int = max_positions or decoder.model.config.max_position_embeddings
        shown = self.template.demonstration_ids(self.tokenizer, decoder.demonstrations)
        self.start = [*self.template.start_ids(self.tokenizer), *shown]
        self.stop_ids = self.template.stop_ids(self.tokenizer)
        self.pad_id = prompts.pad_id(self.tokenizer)

    def check(self, questions: Sequence[str], max_new_tokens: int) -> None:
        """Raise ``InputError`` naming the first question that is too long even without passages."""
        for question, block in zip(questions, self.questions(questions), strict=True):
            needed = len(self.start) + len(block) + max_new_tokens
            if needed > self.window:
                raise InputError(
                    f"question {question[:60]!r} needs {needed} positions with its answer; "
                    f"the decoder's context holds {self.window}"
                )

    def questions(self, questions: Sequence[str]) -> list[list[int]]:
        """One block of token ids per question."""
        return self.template.question_ids(self.tokenizer, questions)

    def passages(self, passages: Sequence[Sequence[Passage]]) -> list[list[TokenBlock]]:
        """One block per passage, all tokenised in one call."""
        blocks = iter(self.template.passage_blocks(self.tokenizer, [p for row in passages for p in row]))
        return [list(islice(blocks, len(row))) for row in passages]

    def whole_prompts(
        self, questions: Sequence[str], passages: Sequence[Sequence[Sequence[int]]], max_new_tokens: int
    ) -> tuple[list[list[int]], list[int]]:
        """Token ids of each prompt over passages as tokens, and how many passages found room in it."""
        rows, read = [], []
        for question, blocks in zip(self.questions(questions), passages, strict=True):
            n = self.fitting(list(map(len, blocks)), question, max_new_tokens)
            rows.append([*self.start, *(token for block in blocks[:n] for token in block), *question])
            read.append(n)
        return rows, read

    def fitting(self, lengths: Sequence[int], question: Sequence[int], max_new_tokens: int) -> int:
        """How many passages of these lengths, from the front, find room before the question and its answer."""
        room = self.window - max_new_tokens - len(self.start) - len(question)
        for index, length in enumerate(lengths):
            room -= length
            if room < 0:
                return index
        return len(lengths)

    def text(self, columns: Sequence[Tensor]) -> list[str]:
        """The answers that token columns (B,) spell."""
        texts = self.tokenizer.batch_decode(torch.stack(list(columns), dim=1), skip_special_tokens=True)
        return [self.template.answer(text) for text in texts]


def whole(blocks: Sequence[Sequence[TokenBlock]]) -> list[list[list[int]]]:
    """Tag and text of each passage in one list: for a system that reads passages as tokens."""
    return [[tag + text for tag, text in row] for row in blocks]
