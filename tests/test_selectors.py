"""Chunks scored by the decoder, few at a time, as if all at once."""

from __future__ import annotations

import random
from types import SimpleNamespace

import pytest
import torch
from tiny_refrag import tiny_refrag
from torch.nn.utils.rnn import pad_sequence

from harness.model.decode import AT_ONCE
from refrag_v2.model import Refrag
from refrag_v2.selectors import Candidates, Scores, best, easiest_first, hardest_first

pytestmark = pytest.mark.usefixtures("one_thread")

Chunks = list[list[list[list[int]]]]  # by question and passage


@pytest.fixture(scope="module")
def model() -> Refrag:
    model = tiny_refrag()
    with torch.no_grad():
        for parameter in model.decoder.parameters():
            parameter.mul_(3)  # at its random start all chunks look alike
    return model


def candidates(passages: Chunks, bos: int | None = 1) -> Candidates:
    n = len(passages)
    return Candidates(
        questions=["who"] * n,
        question_ids=[[5]] * n,
        passages=passages,
        embeddings=[torch.zeros(0, 0)] * n,
        tokenizer=SimpleNamespace(bos_token_id=bos),
    )


def random_passages(*passages: int) -> Chunks:
    """For each question as many passages, of 1 to 5 chunks of 8 tokens; the last may be shorter."""
    rng = random.Random(0)
    return [
        [
            [
                [rng.randrange(1, 900) for _ in range(8 if more else rng.randint(1, 8))]
                for more in range(rng.randrange(5), -1, -1)
            ]
            for _ in range(n)
        ]
        for n in passages
    ]


def at_once(model: Refrag, given: Candidates) -> Scores:
    """All chunks in one pass."""
    start = [] if given.tokenizer.bos_token_id is None else [given.tokenizer.bos_token_id]
    rows = [torch.tensor([*start, *chunk]) for row in given.chunks for chunk in row]
    log_p = model.decoder(input_ids=pad_sequence(rows, batch_first=True)).logits.log_softmax(-1)
    means = iter(
        [
            float(-own[: len(row) - 1].gather(1, row[1:, None]).mean()) if len(row) > 1 else 0.0
            for own, row in zip(log_p, rows, strict=True)
        ]
    )
    return [[next(means) for _ in row] for row in given.chunks]


@torch.inference_mode()
@pytest.mark.parametrize("bos", [1, None])
def test_few_at_a_time_chunks_have_the_scores_and_the_order_of_all_at_once(model: Refrag, bos: int | None) -> None:
    given = candidates(random_passages(80, 3, 0, 9), bos)
    assert sum(map(len, given.chunks)) > 3 * AT_ONCE
    expected, found = at_once(model, given), hardest_first(model, given)
    assert [len(row) for row in found] == [len(row) for row in given.chunks] and found[2] == []
    for ours, theirs in zip(found, expected, strict=True):
        assert ours == pytest.approx(theirs, abs=1e-5)
        # Where chunks of one token have nothing before them they are equals, and stay in their order.
        assert [best(ours, n) for n in range(len(ours))] == [best(theirs, n) for n in range(len(theirs))]
    assert max(expected[0]) - min(expected[0]) > 1, "chunks that look alike prove nothing"
    assert easiest_first(model, given) == [[-score for score in row] for row in found]


@pytest.fixture
def read(model: Refrag, monkeypatch: pytest.MonkeyPatch) -> list[torch.Tensor]:
    """The ids of every pass of the decoder."""
    read, forward = [], model.decoder.forward

    def spied(input_ids: torch.Tensor, **settings: object) -> object:
        read.append(input_ids)
        return forward(input_ids=input_ids, **settings)

    monkeypatch.setattr(model.decoder, "forward", spied)
    return read


@torch.inference_mode()
def test_the_decoder_never_reads_more_chunks_in_one_pass_than_elsewhere(
    model: Refrag, read: list[torch.Tensor]
) -> None:
    """80 passages a question were one pass, and its logits the whole memory."""
    given = candidates(random_passages(80))
    hardest_first(model, given)
    assert max(map(len, read)) == AT_ONCE and sum(map(len, read)) == len(given.chunks[0])
    lengths = sorted(1 + len(chunk) for chunk in given.chunks[0])
    assert [ids.shape[1] for ids in read] == [max(lengths[at : at + AT_ONCE]) for at in range(0, len(lengths), AT_ONCE)]


@torch.inference_mode()
def test_equal_chunks_have_one_score_wherever_they_stand(model: Refrag, read: list[torch.Tensor]) -> None:
    """Among equals the earlier one is taken; the last bits of two batches must not decide instead."""
    passages = random_passages(40, 40)
    passages[1] = [*passages[0][::-1], *passages[1]]
    found, given = hardest_first(model, candidates(passages)), candidates(passages)
    by_chunk: dict[tuple[int, ...], set[float]] = {}
    for chunks, scores in zip(given.chunks, found, strict=True):
        for chunk, score in zip(chunks, scores, strict=True):
            by_chunk.setdefault(tuple(chunk), set()).add(score)
    assert all(len(scores) == 1 for scores in by_chunk.values())
    assert sum(map(len, read)) == len(by_chunk) < sum(map(len, given.chunks)), "read once"


def test_nothing_to_choose_from_has_no_score(model: Refrag) -> None:
    assert hardest_first(model, candidates([[], []])) == [[], []]
