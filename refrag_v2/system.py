"""REFRAG v2 as a system: passages become chunk embeddings, a few chunks are expanded, the decoder reads the rest.

``encode`` turns every passage into chunk embeddings without seeing the question, so they can be kept
(``harness.model.chunk_cache``). ``generate`` chooses which chunks to expand, splices chunk embeddings and tokens into
one input and decodes on the loop that every system shares. With everything expanded the input is standard RAG's, token
for token.

Legend: M chunks of the whole batch, E decoder width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from harness.config import digest
from harness.data.world.facts import is_question
from harness.errors import InputError
from harness.model.chunk_cache import ChunkCache
from harness.model.chunked import ChunkedPassage, Chunks, ChunkUsage, in_chunks, rows_of
from harness.model.chunking import context_positions, effective_rate, expanded_count, split
from harness.model.decode import Prompts, greedy, log_probabilities
from harness.model.llama import Llama
from harness.model.load import Decoder
from harness.model.prompting import Prompting
from harness.model.splice import splice
from harness.protocol import Passage, TokenBlock, Usage
from harness.train.export import own_template, read_training
from refrag_v2 import selectors
from refrag_v2.checkpoint import load_refrag, read_config
from refrag_v2.model import Refrag
from refrag_v2.selectors import Candidates, best, selector, states_fact


@dataclass(frozen=True, kw_only=True)
class RefragV2Config:
    """``k`` is the checkpoint's chunk length; ``expand`` is p, the share of chunks left as tokens; ``select`` picks.

    ``max_positions`` bounds prompt and answer together; None means the decoder's own window.
    """

    k: int
    template: str = "text"
    expand: float = 0.0
    select: str = "none"
    max_positions: int | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.expand <= 1:
            raise InputError(f"expected a share of expanded chunks from 0 to 1, got {self.expand}")
        selector(self.select)
        if (self.select == "none") != (self.expand == 0) or (self.select == "all") != (self.expand == 1):
            raise InputError(
                f"expand={self.expand} does not go with select={self.select!r}: 0 is 'none', 1 is 'all', and what lies "
                "between needs a selector"
            )

    @classmethod
    def defaults(cls, checkpoint: str) -> dict[str, Any]:
        """What a checkpoint says of itself. Raises ``InputError`` where it is not REFRAG's."""
        model, _ = read_config(Path(checkpoint))
        return {"k": model.k, "template": own_template(read_training(Path(checkpoint)))}

    def build(self, decoder: Decoder, cache: Path | None = None) -> RefragV2:
        return RefragV2(self, decoder, load_refrag(Path(decoder.source), decoder.model), cache)


@dataclass(frozen=True, kw_only=True, slots=True)
class WorldUsage(ChunkUsage):
    """Of a question of the synthetic world: ``oracle_hit`` is 1 if a chunk that states the asked fact was expanded."""

    oracle_hit: float


@dataclass(frozen=True)
class Choice:
    """One question's prompt: the passages that found room, what was expanded in them, and by what scores."""

    passages: list[ChunkedPassage]
    rows: range
    scores: list[float]
    expanded: frozenset[int]
    codes: list[int]


class RefragV2:
    """REFRAG around its ``decoder``; ``model`` is what ``train refrag_v2`` made."""

    def __init__(self, config: RefragV2Config, decoder: Decoder, model: Refrag, cache: Path | None = None) -> None:
        self.config = config
        self.model = model
        if self.model.config.k != config.k:
            raise InputError(f"the checkpoint has chunks of {self.model.config.k} tokens; k={config.k} is not its k")
        self.select = selector(config.select)
        if config.select == "policy" and self.model.policy is None:
            raise InputError("this checkpoint has no policy; run `train refrag_v2 policy`, or choose another selector")
        self.prompting = Prompting(config.template, config.max_positions, decoder)
        self.pad_id = self.prompting.pad_id
        self.llama = Llama(decoder.model)
        identity = digest([decoder.checkpoint, str(decoder.model.dtype), asdict(self.model.config)])
        self.cache = ChunkCache(cache, identity) if cache else None

    def check(self, questions: Sequence[str], *, max_new_tokens: int) -> None:
        selectors.check(self.config.select, questions)
        self.prompting.check(questions, max_new_tokens)

    def encode(self, passages: Sequence[Sequence[Passage]]) -> Chunks:
        return self.encode_tokens(self.prompting.passages(passages))

    @torch.inference_mode()
    def encode_tokens(self, blocks: Sequence[Sequence[TokenBlock]]) -> Chunks:
        texts = [text for row in blocks for _, text in row]
        rows = in_chunks(blocks, self.config.k)
        if self.cache:
            embeddings = self.cache.embed(texts, self._encode_apart).to(self.llama.embedding.device)
        else:
            embeddings = self._encode(texts)
        return Chunks(rows, embeddings)

    @torch.inference_mode()
    def reader(self, questions: Sequence[str], context: Chunks, max_new_tokens: int) -> Prompts:
        """What answers are decoded from, and continuations scored by."""
        rows = [choice.codes for choice in self.choose(questions, context, max_new_tokens)]
        inputs_BTE, mask_BT = splice(rows, context.embeddings_ME, self.llama.embed, self.pad_id)
        return Prompts(self.llama, inputs_BTE, mask_BT, max_new_tokens)

    def log_probabilities(
        self, questions: Sequence[str], continuations: Sequence[Sequence[int]], context: Chunks
    ) -> list[Tensor]:
        reader = self.reader(questions, context, max(map(len, continuations)))
        return log_probabilities(reader, continuations, pad_id=self.pad_id)

    def generate(self, questions: Sequence[str], context: Chunks, *, max_new_tokens: int) -> Iterator[Tensor]:
        return greedy(
            self.reader(questions, context, max_new_tokens),
            max_new_tokens=max_new_tokens,
            stop_ids=self.prompting.stop_ids,
            pad_id=self.pad_id,
        )

    def usage(self, questions: Sequence[str], context: Chunks, *, max_new_tokens: int) -> list[Usage]:
        choices = self.choose(questions, context, max_new_tokens)
        chunk_bytes = context.embeddings_ME[:1].nbytes
        return [self._usage(q, choice, chunk_bytes) for q, choice in zip(questions, choices, strict=True)]

    def text(self, columns: Sequence[Tensor]) -> list[str]:
        return self.prompting.text(columns)

    @torch.inference_mode()
    def choose(self, questions: Sequence[str], context: Chunks, max_new_tokens: int) -> list[Choice]:
        """Which chunks each question has expanded, and its prompt. The same every time it is asked."""
        asked = self.prompting.questions(questions)
        read = [
            self._fitting(row, question, max_new_tokens) for row, question in zip(context.passages, asked, strict=True)
        ]
        given = Candidates(
            questions=questions,
            question_ids=asked,
            passages=[[passage.chunks for passage in row] for row in read],
            embeddings=[context.embeddings_ME[rows_of(row).start : rows_of(row).stop] for row in read],
            tokenizer=self.prompting.tokenizer,
        )
        scores = self.select(self.model, given)
        choices = []
        for row, question, score in zip(read, asked, scores, strict=True):
            rows = rows_of(row)
            picked = best(score, expanded_count(self.config.expand, len(rows)))
            expanded = frozenset(rows[i] for i in picked)
            codes = [*self.prompting.start, *(code for p in row for code in p.codes(expanded)), *question]
            choices.append(Choice(row, rows, score, expanded, codes))
        return choices

    def _usage(self, question: str, choice: Choice, chunk_bytes: int) -> Usage:
        usage = ChunkUsage(
            decoder_positions=len(choice.codes),
            passages_read=len(choice.passages),
            stored_bytes=len(choice.rows) * chunk_bytes,
            chunks=len(choice.rows),
            chunks_expanded=len(choice.expanded),
            effective_rate=effective_rate(self.config.k, len(choice.expanded), len(choice.rows)),
        )
        if not is_question(question):
            return usage
        stating = states_fact(self.prompting.tokenizer, [p.chunks for p in choice.passages], question)
        hit = any(states and row in choice.expanded for row, states in zip(choice.rows, stating, strict=True))
        return WorldUsage(**asdict(usage), oracle_hit=float(hit))

    def _fitting(
        self, passages: list[ChunkedPassage], question: list[int], max_new_tokens: int
    ) -> list[ChunkedPassage]:
        """The passages that find room even if the chunks that are expanded are the longest of each."""
        n = len(passages)
        while n:
            tags = sum(len(passage.tag) for passage in passages[:n])
            lengths = [len(chunk) for passage in passages[:n] for chunk in passage.chunks]
            positions = context_positions(tags, lengths, self.config.expand)
            if self.prompting.fitting([positions], question, max_new_tokens):
                break
            n -= 1
        return passages[:n]

    def _encode(self, texts: Sequence[Sequence[int]]) -> Tensor:
        return self.model.encode(self.model.inputs(texts, self.prompting.tokenizer).to(self.llama.embedding.device))

    def _encode_apart(self, texts: Sequence[Sequence[int]]) -> list[Tensor]:
        return list(self._encode(texts).split([len(split(text, self.config.k)) for text in texts]))
