"""REPLUG: each passage stands before the question in a prompt of its own, and the next-token probabilities are mixed.

    p(y_t | x, y_<t) = sum over passages d of lambda(d, x) p(y_t | d, x, y_<t)

REPLUG, arXiv:2301.12652, section 3.2: inference only, the decoder is frozen and so is the retriever. The most likely
token of the mixture is appended to all prompts of its question. What the paper has otherwise, or leaves open:

1. The weights are uniform, lambda = 1 / n; in the paper they are a softmax of the retriever's similarities. Frozen
   passages come without scores, and BM25's would be no log-probabilities.
2. A passage that does not fit into the context together with the question and its answer is left out, whatever its
   rank; each of the others has a context to itself.
3. Without a passage that fits, the one prompt is the closed-book prompt.

Legend: B questions, R prompts of all of them (those of a question side by side), T positions, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from harness.model.decode import Reader, greedy, log_probabilities, token_prompts
from harness.model.llama import Llama
from harness.model.load import Decoder
from harness.model.prompting import Prompting, whole
from harness.protocol import Passage, TokenBlock, Usage
from harness.train.export import own_template, read_training

Block = list[int]


@dataclass(frozen=True, kw_only=True)
class ReplugConfig:
    """``template`` is the prompt template that the decoder knows.

    ``max_positions`` bounds each prompt and the answer together; None means the decoder's own window.
    """

    template: str = "text"
    max_positions: int | None = None

    @classmethod
    def defaults(cls, checkpoint: str) -> dict[str, Any]:
        """What a checkpoint says of itself."""
        return {"template": own_template(read_training(Path(checkpoint)))}

    def build(self, decoder: Decoder, cache: Path | None = None) -> Replug:  # noqa: ARG002
        """The system. Tokens are not worth keeping: ``cache`` is left alone."""
        return Replug(self, decoder)


class Replug:
    """``encode`` only tokenises: each passage becomes a block of token ids."""

    def __init__(self, config: ReplugConfig, decoder: Decoder) -> None:
        self.prompting = Prompting(config.template, config.max_positions, decoder)
        self.pad_id = self.prompting.pad_id
        self.llama = Llama(decoder.model)

    def check(self, questions: Sequence[str], *, max_new_tokens: int) -> None:
        self.prompting.check(questions, max_new_tokens)

    def encode(self, passages: Sequence[Sequence[Passage]]) -> list[list[Block]]:
        return self.encode_tokens(self.prompting.passages(passages))

    def encode_tokens(self, blocks: Sequence[Sequence[TokenBlock]]) -> list[list[Block]]:
        return whole(blocks)

    def generate(
        self, questions: Sequence[str], context: list[list[Block]], *, max_new_tokens: int
    ) -> Iterator[Tensor]:
        return greedy(
            self.reader(questions, context, max_new_tokens),
            max_new_tokens=max_new_tokens,
            stop_ids=self.prompting.stop_ids,
            pad_id=self.pad_id,
        )

    def log_probabilities(
        self, questions: Sequence[str], continuations: Sequence[Sequence[int]], context: list[list[Block]]
    ) -> list[Tensor]:
        reader = self.reader(questions, context, max(map(len, continuations)))
        return log_probabilities(reader, continuations, pad_id=self.pad_id)

    def usage(self, questions: Sequence[str], context: list[list[Block]], *, max_new_tokens: int) -> list[Usage]:
        """``decoder_positions`` are those of all prompts of a question together: the decoder reads each of them."""
        prompts, read = self._prompts(questions, context, max_new_tokens)
        return [
            Usage(decoder_positions=sum(map(len, of_one)), passages_read=n)
            for of_one, n in zip(prompts, read, strict=True)
        ]

    def text(self, columns: Sequence[Tensor]) -> list[str]:
        return self.prompting.text(columns)

    def reader(self, questions: Sequence[str], context: list[list[Block]], max_new_tokens: int) -> Mixture:
        """What answers are decoded from, and continuations scored by: all prompts of all questions in one batch."""
        prompts, _ = self._prompts(questions, context, max_new_tokens)
        rows = [prompt for of_one in prompts for prompt in of_one]
        ordinary = token_prompts(self.llama, rows, max_new_tokens=max_new_tokens, pad_id=self.pad_id)
        return Mixture(ordinary, list(map(len, prompts)), self.llama.embedding.device)

    def _prompts(
        self, questions: Sequence[str], context: list[list[Block]], max_new_tokens: int
    ) -> tuple[list[list[list[int]]], list[int]]:
        """Token ids of the prompts of each question (at least one), and how many passages found room in one."""
        prompts, read = [], []
        for question, blocks in zip(self.prompting.questions(questions), context, strict=True):
            fitting = [block for block in blocks if self.prompting.fitting([len(block)], question, max_new_tokens)]
            prompts.append([[*self.prompting.start, *block, *question] for block in fitting or [[]]])
            read.append(len(fitting))
        return prompts, read


class Mixture:
    """B questions over a reader of R prompts, ``counts`` of which belong to each question: they sum to R."""

    def __init__(self, reader: Reader, counts: Sequence[int], device: torch.device) -> None:
        self.reader, self.counts = reader, list(counts)
        self.question_R = torch.tensor([row for row, n in enumerate(counts) for _ in range(n)], device=device)

    def first(self) -> Tensor:
        return mixed(self.reader.first(), self.counts)

    def then(self, token_B: Tensor) -> Tensor:
        return mixed(self.reader.then(token_B[self.question_R]), self.counts)

    def along(self, token_BO: Tensor) -> Tensor:
        return mixed(self.reader.along(token_BO.to(self.question_R.device)[self.question_R]), self.counts)


def mixed(logits_R: Tensor, counts: Sequence[int]) -> Tensor:
    """The log of each question's mean next-token probability, (R, ..., V) to (B, ..., V) in float32:

    log(1/n sum_d p_d) = logsumexp_d(log p_d) - log n, with p_d the softmax of a prompt's logits, n = ``counts``.
    """
    log_p_R = F.log_softmax(logits_R, dim=-1, dtype=torch.float32)
    return torch.stack([log_p_n.logsumexp(0) - math.log(len(log_p_n)) for log_p_n in log_p_R.split(list(counts))])
