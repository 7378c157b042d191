"""REFRAG v1 as a system: all passages run together, cut into chunks of k, and what the coins say is expanded.

The expansion mask is drawn at inference (``refrag_v1.policy``), one of the method's faults: the n-th call for a
question has its own coins, so equal calls give different answers. The coins of a call depend on the setting ``seed``,
the question and n alone, so that an evaluation is repeatable all the same (one that was interrupted, unless a question
occurs in it twice).
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from harness.errors import InputError
from harness.model.chunked import ChunkedPassage, Chunks, ChunkUsage, in_chunks, rows_of
from harness.model.chunking import context_positions, effective_rate
from harness.model.decode import Prompts, greedy
from harness.model.llama import Llama
from harness.model.load import Decoder
from harness.model.prompting import Prompting
from harness.model.splice import splice
from harness.prompts import text_ids
from harness.protocol import Passage, Usage
from harness.train.export import own_template, read_training
from refrag_v1.checkpoint import load, read_config
from refrag_v1.model import RefragV1
from refrag_v1.policy import toss


@dataclass(frozen=True, kw_only=True)
class RefragV1SystemConfig:
    """``k`` is the checkpoint's chunk length; ``expand`` is p, the most that is expanded; ``seed`` is the coins'.

    ``template`` gives the question its form; passages have none. ``max_positions`` bounds prompt and answer together;
    None means the decoder's own window.
    """

    k: int
    template: str = "text"
    expand: float = 0.0
    seed: int = 0
    max_positions: int | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.expand <= 1:
            raise InputError(f"expected a share of expanded chunks from 0 to 1, got {self.expand}")

    @classmethod
    def defaults(cls, checkpoint: str) -> dict[str, Any]:
        """What a checkpoint says of itself. Raises ``InputError`` where it is not v1's."""
        model, _ = read_config(Path(checkpoint))
        return {"k": model.k, "template": own_template(read_training(Path(checkpoint)))}

    def build(self, decoder: Decoder, cache: Path | None = None) -> RefragV1System:  # noqa: ARG002
        """The system. Chunks cross the borders of passages, so no passage has any to keep: ``cache`` is left alone."""
        return RefragV1System(self, decoder, load(Path(decoder.source), decoder.model))


@dataclass(frozen=True)
class Choice:
    """One question's prompt, and what was expanded in it."""

    rows: range
    expanded: frozenset[int]
    codes: list[int]


@dataclass(frozen=True)
class Tossed(Chunks):
    """Chunks, how long each passage was, and the choices of the last call that decoded from them."""

    lengths: list[list[int]]
    choices: list[Choice] = field(default_factory=list)


class RefragV1System:
    """REFRAG v1 around its ``decoder``; ``model`` is what ``train refrag_v1`` made."""

    def __init__(self, config: RefragV1SystemConfig, decoder: Decoder, model: RefragV1) -> None:
        self.config = config
        self.model = model
        if self.model.config.k != config.k:
            raise InputError(f"the checkpoint has chunks of {self.model.config.k} tokens; k={config.k} is not its k")
        if config.expand and self.model.policy is None:
            raise InputError("this checkpoint has no policy; run `train refrag_v1 train_policy`, or set expand=0")
        self.prompting = Prompting(config.template, config.max_positions, decoder)
        self.pad_id = self.prompting.pad_id
        self.llama = Llama(decoder.model)
        self.calls: Counter[str] = Counter()

    def check(self, questions: Sequence[str], *, max_new_tokens: int) -> None:
        self.prompting.check(questions, max_new_tokens)

    @torch.inference_mode()
    def encode(self, passages: Sequence[Sequence[Passage]]) -> Tossed:
        ids = iter(text_ids(self.prompting.tokenizer, [passage.text for row in passages for passage in row]))
        apart = [list(islice(ids, len(row))) for row in passages]
        texts = [[token for text in row for token in text] for row in apart]
        rows = in_chunks([[([], text)] for text in texts], self.config.k)
        inputs = self.model.inputs(texts, self.prompting.tokenizer)
        embeddings = self.model.encode(inputs.to(self.llama.embedding.device))
        return Tossed(rows, embeddings, [[len(text) for text in row] for row in apart])

    def generate(self, questions: Sequence[str], context: Tossed, *, max_new_tokens: int) -> Iterator[Tensor]:
        context.choices[:] = self._choose(questions, context, max_new_tokens)
        with torch.inference_mode():
            inputs_BTE, mask_BT = splice(
                [choice.codes for choice in context.choices], context.embeddings_ME, self.llama.embed, self.pad_id
            )
        return greedy(
            Prompts(self.llama, inputs_BTE, mask_BT, max_new_tokens),
            max_new_tokens=max_new_tokens,
            stop_ids=self.prompting.stop_ids,
            pad_id=self.pad_id,
        )

    def usage(self, questions: Sequence[str], context: Tossed, *, max_new_tokens: int) -> list[Usage]:
        """Of the call that decoded from ``context`` last; where there was none, coins are thrown for it."""
        choices = context.choices or self._choose(questions, context, max_new_tokens)
        return [
            self._usage(choice, lengths, row[0])
            for choice, lengths, row in zip(choices, context.lengths, context.passages, strict=True)
        ]

    def text(self, columns: Sequence[Tensor]) -> list[str]:
        return self.prompting.text(columns)

    @torch.inference_mode()
    def _choose(self, questions: Sequence[str], context: Tossed, max_new_tokens: int) -> list[Choice]:
        asked = self.prompting.questions(questions)
        texts = [
            self._fitting(row[0], question, max_new_tokens)
            for row, question in zip(context.passages, asked, strict=True)
        ]
        rows = [rows_of([text]) for text in texts]
        picked = self._toss(questions, rows, context.embeddings_ME)
        choices = []
        for text, row, expanded, question in zip(texts, rows, picked, asked, strict=True):
            codes = [*self.prompting.start, *text.codes(expanded), *question]
            choices.append(Choice(row, expanded, codes))
        return choices

    def _toss(self, questions: Sequence[str], rows: Sequence[range], embeddings_ME: Tensor) -> list[frozenset[int]]:
        """The rows of ``embeddings_ME`` that each question has expanded."""
        if self.model.policy is None or not self.config.expand or not any(map(len, rows)):
            return [frozenset() for _ in rows]
        logits = [self.model.policy(embeddings_ME[row.start : row.stop]) for row in rows]
        coins = []
        for question, row in zip(questions, rows, strict=True):
            rng = random.Random(f"{self.config.seed}-{self.calls[question]}-{question}")
            self.calls[question] += 1
            coins.append(torch.tensor([rng.random() for _ in row], device=embeddings_ME.device))
        _, expanded_BL = toss(
            pad_sequence(logits, batch_first=True),
            pad_sequence(coins, batch_first=True, padding_value=1.0),
            [len(row) for row in rows],
            self.config.expand,
        )
        return [
            frozenset(number for number, expanded in zip(row, mask, strict=False) if expanded)
            for row, mask in zip(rows, expanded_BL.tolist(), strict=True)
        ]

    def _fitting(self, text: ChunkedPassage, question: list[int], max_new_tokens: int) -> ChunkedPassage:
        """The text as far as it finds room even if its expanded chunks are its longest."""
        n = len(text.chunks)
        while n:
            positions = context_positions(0, list(map(len, text.chunks[:n])), self.config.expand)
            if self.prompting.fitting([positions], question, max_new_tokens):
                break
            n -= 1
        return ChunkedPassage(text.tag, text.chunks[:n], text.first)

    def _usage(self, choice: Choice, lengths: Sequence[int], text: ChunkedPassage) -> Usage:
        n = len(choice.rows)
        read = sum(map(len, text.chunks[:n]))
        starts = accumulate(lengths, initial=0)
        return ChunkUsage(
            decoder_positions=len(choice.codes),
            passages_read=sum(start < read for start in islice(starts, len(lengths))),
            chunks=n,
            chunks_expanded=len(choice.expanded),
            effective_rate=effective_rate(self.config.k, len(choice.expanded), n),
        )
