"""A system whose whole method is which tokens stand before the question. All else is the same for every one of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

from harness.model.decode import Prompts, greedy, log_probabilities, token_prompts
from harness.model.llama import Llama
from harness.protocol import Usage

if TYPE_CHECKING:
    from torch import Tensor

    from harness.model.load import Decoder
    from harness.model.prompting import Prompting
    from harness.protocol import Passage, TokenBlock

ContextT = TypeVar("ContextT")


class Layout(Protocol[ContextT]):
    """The method."""

    def encode(self, passages: Sequence[Sequence[Passage]]) -> ContextT:
        """What can be prepared of the passages before the question is known: nothing that is worth keeping."""

    def encode_tokens(self, blocks: Sequence[Sequence[TokenBlock]]) -> ContextT:
        """The same of passages that are token ids already."""

    def prompts(
        self, questions: Sequence[str], context: ContextT, max_new_tokens: int
    ) -> tuple[list[list[int]], list[int]]:
        """Token ids of each question's prompt, and of how many passages there are tokens in it."""


class Prompted(Generic[ContextT]):
    """``harness.protocol.System`` and ``LogLikelihood`` around a ``Layout``."""

    def __init__(self, layout: Layout[ContextT], prompting: Prompting, decoder: Decoder) -> None:
        self.layout, self.prompting = layout, prompting
        self.pad_id = prompting.pad_id
        self.llama = Llama(decoder.model)

    def check(self, questions: Sequence[str], *, max_new_tokens: int) -> None:
        self.prompting.check(questions, max_new_tokens)

    def encode(self, passages: Sequence[Sequence[Passage]]) -> ContextT:
        return self.layout.encode(passages)

    def encode_tokens(self, blocks: Sequence[Sequence[TokenBlock]]) -> ContextT:
        return self.layout.encode_tokens(blocks)

    def reader(self, questions: Sequence[str], context: ContextT, max_new_tokens: int) -> Prompts:
        """What answers are decoded from, and continuations scored by."""
        prompts, _ = self.layout.prompts(questions, context, max_new_tokens)
        return token_prompts(self.llama, prompts, max_new_tokens=max_new_tokens, pad_id=self.pad_id)

    def generate(self, questions: Sequence[str], context: ContextT, *, max_new_tokens: int) -> Iterator[Tensor]:
        return greedy(
            self.reader(questions, context, max_new_tokens),
            max_new_tokens=max_new_tokens,
            stop_ids=self.prompting.stop_ids,
            pad_id=self.pad_id,
        )

    def log_probabilities(
        self, questions: Sequence[str], continuations: Sequence[Sequence[int]], context: ContextT
    ) -> list[Tensor]:
        reader = self.reader(questions, context, max(map(len, continuations)))
        return log_probabilities(reader, continuations, pad_id=self.pad_id)

    def usage(self, questions: Sequence[str], context: ContextT, *, max_new_tokens: int) -> list[Usage]:
        prompts, read = self.layout.prompts(questions, context, max_new_tokens)
        return [Usage(decoder_positions=len(p), passages_read=n) for p, n in zip(prompts, read, strict=True)]

    def text(self, columns: Sequence[Tensor]) -> list[str]:
        return self.prompting.text(columns)
