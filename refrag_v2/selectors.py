"""Which chunks are expanded back to tokens: the policy and its competitors. Each gives a score per chunk.

The number expanded is exactly round(p L) of a row's L chunks whatever the selector, so that selectors are compared
at one effective compression rate, k / (1 - p + k p) (arXiv:2509.01092v2, p. 5). Nothing is drawn at inference: two
equal calls choose alike.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from harness.data.world.facts import answering_span, is_question
from harness.errors import InputError, unknown
from harness.model.chunking import chunk_texts
from harness.model.decode import of_like_length
from harness.train.losses import token_losses
from harness.train.rows import IGNORED

if TYPE_CHECKING:
    from refrag_v2.model import Refrag

Scores = list[list[float]]


@dataclass(frozen=True, kw_only=True)
class Candidates:
    """What there is to choose from, per question: its chunks as decoder tokens and as embeddings (L, E)."""

    questions: Sequence[str]
    question_ids: Sequence[Sequence[int]]
    passages: Sequence[Sequence[Sequence[Sequence[int]]]]
    embeddings: Sequence[Tensor]
    tokenizer: Any

    @property
    def chunks(self) -> list[list[Sequence[int]]]:
        """Each question's chunks in one row."""
        return [[chunk for passage in row for chunk in passage] for row in self.passages]


def best(scores: Sequence[float], count: int) -> frozenset[int]:
    """The ``count`` highest scores; among equals the earlier one."""
    return frozenset(sorted(range(len(scores)), key=lambda i: (-scores[i], i))[:count])


def in_order(model: Refrag, given: Candidates) -> Scores:
    """Earlier chunks first: what nothing (``none``), everything (``all``) and the baseline ``first`` need."""
    return [[-float(i) for i in range(len(row))] for row in given.chunks]


def at_random(model: Refrag, given: Candidates) -> Scores:
    """Drawn afresh for every question, but the same for the same question."""
    scores = []
    for question, row in zip(given.questions, given.chunks, strict=True):
        rng = random.Random(question)
        scores.append([rng.random() for _ in row])
    return scores


def hardest_first(model: Refrag, given: Candidates) -> Scores:
    """The decoder's perplexity of each chunk on its own, after the start token (the paper's Perplexity-desc).

    As the mean cross-entropy of its tokens, nats in float32, which orders alike. Equal chunks are read once: those of
    several batches would differ in their last bits.
    """
    chunks = [[tuple(chunk) for chunk in row] for row in given.chunks]
    distinct = list(dict.fromkeys(chunk for row in chunks for chunk in row))
    start = [] if given.tokenizer.bos_token_id is None else [given.tokenizer.bos_token_id]
    scores: dict[tuple[int, ...], float] = {}
    for batch in of_like_length(distinct):
        own = [distinct[index] for index in batch]
        scores |= zip(own, _mean_losses(model, [[*start, *chunk] for chunk in own]), strict=True)
    return [[scores[chunk] for chunk in row] for row in chunks]


def _mean_losses(model: Refrag, rows: Sequence[Sequence[int]]) -> list[float]:
    """The decoder's mean cross-entropy of each row's tokens after its first; 0 where there is no other."""
    device = model.decoder.device
    ids_BT = pad_sequence([torch.tensor(row, device=device) for row in rows], batch_first=True)
    lengths_B = torch.tensor([len(row) for row in rows], device=device)
    labels_BT = ids_BT.masked_fill(torch.arange(ids_BT.shape[1], device=device)[None] >= lengths_B[:, None], IGNORED)
    losses_BT = token_losses(model.decoder(input_ids=ids_BT, use_cache=False).logits, labels_BT)
    means: list[float] = (losses_BT.sum(-1) / (lengths_B - 1).clamp(min=1)).tolist()
    return means


def easiest_first(model: Refrag, given: Candidates) -> Scores:
    """The other way round (the paper's Perplexity-asc)."""
    return [[-score for score in row] for row in hardest_first(model, given)]


def oracle(model: Refrag, given: Candidates) -> Scores:
    """The chunks that hold a part of the asked fact, known only in the synthetic world: the ceiling of selection."""
    check("oracle", given.questions)
    return [
        [float(states) for states in states_fact(given.tokenizer, row, question)]
        for question, row in zip(given.questions, given.passages, strict=True)
    ]


def states_fact(tokenizer: Any, passages: Sequence[Sequence[Sequence[int]]], question: str) -> list[bool]:
    """For every chunk of the passages whether it shares a character with the sentence that answers ``question``.

    Raises ``ValueError`` for a question that is not of the synthetic world.
    """
    return [states for chunks in passages for states in _states_fact(tokenizer, chunks, question)]


def _states_fact(tokenizer: Any, chunks: Sequence[Sequence[int]], question: str) -> list[bool]:
    if not chunks:
        return []
    ids = [token for chunk in chunks for token in chunk]
    k = len(chunks[0])
    texts = chunk_texts(tokenizer, ids, k)
    span = answering_span("".join(texts), question)
    found, end = [], 0
    for text in texts:
        begin, end = end, end + len(text)
        found.append(span is not None and begin < span[1] and span[0] < end)
    return found


def by_policy(model: Refrag, given: Candidates) -> Scores:
    """The trained policy's logits."""
    assert model.policy is not None
    device = model.decoder.device
    lengths = [len(row) for row in given.chunks]
    if not any(lengths):
        return [[] for _ in lengths]
    embed = model.decoder.model.embed_tokens
    asked = [embed(torch.tensor(list(ids), dtype=torch.long, device=device)) for ids in given.question_ids]
    logits = model.policy(
        pad_sequence(asked, batch_first=True),
        _mask([len(ids) for ids in given.question_ids], device),
        pad_sequence(list(given.embeddings), batch_first=True),
        _mask(lengths, device),
    )
    return [row[:length].tolist() for row, length in zip(logits, lengths, strict=True)]


def _mask(lengths: Sequence[int], device: torch.device) -> Tensor:
    return torch.arange(max(lengths), device=device)[None] < torch.tensor(lengths, device=device)[:, None]


SELECTORS: Mapping[str, Callable[[Refrag, Candidates], Scores]] = {
    "none": in_order,
    "all": in_order,
    "first": in_order,
    "random": at_random,
    "perplexity-desc": hardest_first,
    "perplexity-asc": easiest_first,
    "oracle": oracle,
    "policy": by_policy,
}


def check(name: str, questions: Sequence[str]) -> None:
    """Raise ``InputError`` naming the first question that the selector of that name cannot choose for."""
    if name != "oracle":
        return
    for question in questions:
        if not is_question(question):
            raise InputError(f"the selector 'oracle' expects questions of the synthetic world, got {question!r}")


def selector(name: str) -> Callable[[Refrag, Candidates], Scores]:
    """The selector of that name. Raises ``InputError`` with the valid names."""
    if name not in SELECTORS:
        raise unknown("selector", name, SELECTORS)
    return SELECTORS[name]
