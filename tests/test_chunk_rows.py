"""Rows with chunks in them equal rows that were written down chunk by chunk, for any choice of chunks."""

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.model.chunking import WINDOWS, EncoderInputs, Window, encoder_inputs, expanded_count, split
from harness.model.load import random_decoder
from harness.model.splice import chunk_code, embed_codes
from harness.train.chunk_rows import condense, expand_at_random, lay_out
from harness.train.losses import token_losses
from harness.train.rows import IGNORED, Batch, Block, Row, collate_tokens

PAD = 0
PATIENT = settings(deadline=None)  # a busy machine is no failure
KEYS = ("input_ids", "attention_mask", "labels", "is_answer")
TOKENS = st.integers(1, 900)


@st.composite
def rows(draw: st.DrawFn) -> list[Row]:
    """Rows with any number of passages, empty and untagged ones among them, and a tail of at least one token."""
    block = st.builds(Block, st.lists(TOKENS, max_size=2), st.lists(TOKENS, max_size=11))
    tail = st.lists(st.tuples(TOKENS, st.booleans()), min_size=1, max_size=9)
    drawn = draw(
        st.lists(st.tuples(st.lists(TOKENS, max_size=2), st.lists(block, max_size=4), tail), min_size=1, max_size=4)
    )
    return [Row(start, context, [t for t, _ in said], [a for _, a in said]) for start, context, said in drawn]


def laid_out(given: Sequence[Row], k: int, window: Window = "chunk", pad_id: int = PAD) -> Batch:
    return lay_out(given, k, lambda texts: encoder_inputs(texts, k, window, pad_id), pad_id)


def choices(batch: Batch, seed: int) -> torch.Tensor:
    """Any choice; beyond a row's chunks too, where it must not matter."""
    width = max(1, int(batch["n_chunks"].max()))
    return torch.rand(len(batch["n_chunks"]), width, generator=torch.Generator().manual_seed(seed)) < 0.5


def everything(batch: Batch, expanded: bool) -> torch.Tensor:
    return torch.full_like(choices(batch, 0), expanded)


@dataclass
class Written:
    """A row written down by hand: each position's code, label and whether it is an answer."""

    codes: list[int]
    labels: list[int]
    answers: list[bool]


def written(row: Row, k: int, first: int, expanded: Sequence[bool]) -> Written:
    out = Written([], [], [])

    def say(codes: Sequence[int], labels: Sequence[int], answers: Sequence[bool]) -> None:
        out.codes += codes
        out.labels += labels
        out.answers += answers

    def tokens(ids: Sequence[int]) -> None:
        say(ids, ids, [False] * len(ids))

    tokens(row.start)
    number = 0
    for block in row.context:
        tokens(block.tag)
        for start in range(0, len(block.text), k):
            if expanded[number]:
                tokens(block.text[start : start + k])
            else:
                say([-1 - (first + number)], [IGNORED], [False])
            number += 1
    say(row.tail, row.tail, row.is_answer)
    return out


def all_written(given: Sequence[Row], k: int, expanded_BL: torch.Tensor) -> list[Written]:
    out, first = [], 0
    for row, expanded in zip(given, expanded_BL.tolist(), strict=True):
        out.append(written(row, k, first, expanded))
        first += sum(len(split(block.text, k)) for block in row.context)
    return out


def assert_is(batch: Batch, expected: Sequence[Written]) -> None:
    width = max(len(row.codes) for row in expected)
    assert batch["input_ids"].shape == (len(expected), width)
    for index, row in enumerate(expected):
        padding = width - len(row.codes)
        assert batch["input_ids"][index].tolist() == row.codes + [PAD] * padding
        assert batch["attention_mask"][index].tolist() == [1] * len(row.codes) + [0] * padding
        assert batch["labels"][index].tolist() == row.labels + [IGNORED] * padding
        assert batch["is_answer"][index].tolist() == row.answers + [False] * padding


@PATIENT
@given(given_rows=rows())
def test_tokens_alone_are_start_context_tail(given_rows: list[Row]) -> None:
    everything_expanded = torch.ones(len(given_rows), 44, dtype=torch.bool)
    assert_is(collate_tokens(given_rows, PAD), all_written(given_rows, 1, everything_expanded))


@PATIENT
@given(given_rows=rows(), k=st.integers(1, 5))
def test_all_expanded_changes_nothing(given_rows: list[Row], k: int) -> None:
    batch = laid_out(given_rows, k)
    condensed = condense(batch, everything(batch, True))
    plain = collate_tokens(given_rows, PAD)
    for key in KEYS:
        assert torch.equal(condensed[key], plain[key]), key
        assert condensed[key].dtype == plain[key].dtype, key


@PATIENT
@given(given_rows=rows(), k=st.integers(1, 5))
def test_none_expanded_is_one_code_per_chunk(given_rows: list[Row], k: int) -> None:
    batch = laid_out(given_rows, k)
    condensed = condense(batch, everything(batch, False))
    expected = [
        len(row.start) + sum(len(b.tag) + -(-len(b.text) // k) for b in row.context) + len(row.tail)
        for row in given_rows
    ]
    assert condensed["attention_mask"].sum(1).tolist() == expected
    codes = condensed["input_ids"][condensed["input_ids"] < 0]
    assert codes.tolist() == [chunk_code(i) for i in range(int(batch["n_chunks"].sum()))]
    assert_is(condensed, all_written(given_rows, k, everything(batch, False)))


@settings(PATIENT, max_examples=300)
@given(given_rows=rows(), k=st.integers(1, 5), seed=st.integers(0, 10**6))
def test_any_choice_equals_lists_joined_in_python(given_rows: list[Row], k: int, seed: int) -> None:
    batch = laid_out(given_rows, k)
    expanded = choices(batch, seed)
    assert_is(condense(batch, expanded), all_written(given_rows, k, expanded))


@PATIENT
@given(given_rows=rows(), k=st.integers(1, 5), seed=st.integers(0, 10**6))
def test_what_is_supervised(given_rows: list[Row], k: int, seed: int) -> None:
    """Never a code; always the whole tail, to its last token."""
    batch = laid_out(given_rows, k)
    condensed = condense(batch, choices(batch, seed))
    assert (condensed["labels"][condensed["input_ids"] < 0] == IGNORED).all()
    assert not condensed["is_answer"][condensed["input_ids"] < 0].any()
    for index, row in enumerate(given_rows):
        end = int(condensed["attention_mask"][index].sum())
        assert condensed["labels"][index, end - len(row.tail) : end].tolist() == row.tail
        assert condensed["is_answer"][index, :end].sum() == sum(row.is_answer)
        assert bool(condensed["is_answer"][index, end - 1]) == row.is_answer[-1]


@PATIENT
@given(given_rows=rows(), k=st.integers(1, 5), seed=st.integers(0, 10**6))
def test_one_layout_serves_any_number_of_choices(given_rows: list[Row], k: int, seed: int) -> None:
    batch = laid_out(given_rows, k)
    before = {name: tensor.clone() for name, tensor in batch.items()}
    condense(batch, choices(batch, seed))
    assert all(torch.equal(tensor, before[name]) for name, tensor in batch.items())


@PATIENT
@given(given_rows=rows(), k=st.integers(1, 5), window=st.sampled_from(WINDOWS))
def test_the_layout_says_where_everything_stands(given_rows: list[Row], k: int, window: Window) -> None:
    batch = laid_out(given_rows, k, window)
    first = 0
    for index, row in enumerate(given_rows):
        chunk, start, tail = [-1] * len(row.start), [False] * len(row.start), [False] * len(row.start)
        count = 0
        for block in row.context:
            chunk += [-1] * len(block.tag)
            start += [False] * len(block.tag)
            for piece in split(block.text, k):
                chunk += [count] * len(piece)
                start += [True] + [False] * (len(piece) - 1)
                count += 1
        tail = [False] * len(chunk) + [True] * len(row.tail)
        padding = batch["input_ids"].shape[1] - len(tail)
        assert batch["chunk"][index].tolist() == chunk + [-1] * (len(row.tail) + padding)
        assert batch["chunk_start"][index].tolist() == start + [False] * (len(row.tail) + padding)
        assert batch["tail"][index].tolist() == tail + [False] * padding
        assert (int(batch["n_chunks"][index]), int(batch["first_chunk"][index])) == (count, first)
        first += count


@PATIENT
@given(given_rows=rows(), k=st.integers(1, 5), window=st.sampled_from(WINDOWS))
def test_the_encoder_reads_what_the_codes_stand_for(given_rows: list[Row], k: int, window: Window) -> None:
    batch = laid_out(given_rows, k, window)
    for index in range(len(given_rows)):
        for chunk in range(int(batch["n_chunks"][index])):
            replaced = batch["input_ids"][index][batch["chunk"][index] == chunk]
            read = batch["encoder_ids"][batch["encoder_chunk"] == int(batch["first_chunk"][index]) + chunk]
            assert read.tolist() == replaced.tolist()


def some_rows() -> list[Row]:
    """Of different lengths, with a different number of chunks each."""
    rng = random.Random(5)
    ids = [rng.randrange(6, 900) for _ in range(200)]
    context = [[Block([4], ids[:9]), Block([4], ids[9:15])], [], [Block([4], ids[20:23])]]
    tails = [ids[30:33], ids[40:50], ids[60:61]]
    return [Row([1], blocks, tail, [True] * len(tail)) for blocks, tail in zip(context, tails, strict=True)]


@pytest.mark.parametrize("pad_id", [0, 7])
@torch.no_grad()
def test_padding_is_harmless(pad_id: int) -> None:
    """Each row's loss is what it has alone."""
    model = random_decoder("tiny", seed=0)
    given_rows, k = some_rows(), 4
    together = laid_out(given_rows, k, pad_id=pad_id)
    expanded = choices(together, 3)
    embeddings = torch.randn(int(together["n_chunks"].sum()), 128, generator=torch.Generator().manual_seed(0))

    def losses(batch: Batch, chunks_NE: torch.Tensor) -> torch.Tensor:
        inputs = embed_codes(batch["input_ids"], chunks_NE, model.model.embed_tokens)
        logits = model(inputs_embeds=inputs, use_cache=False).logits
        return token_losses(logits, batch["labels"]).sum(1)

    batched = losses(condense(together, expanded), embeddings)
    assert (batched > 1).all()
    for index, row in enumerate(given_rows):
        alone = laid_out([row], k, pad_id=pad_id)
        first, count = int(together["first_chunk"][index]), int(together["n_chunks"][index])
        choice = expanded[index : index + 1, : max(1, count)]
        loss = losses(condense(alone, choice), embeddings[first : first + count])
        assert torch.allclose(loss[0], batched[index], atol=1e-5, rtol=1e-6)


def test_the_last_token_of_the_tail_is_predicted() -> None:
    """Labels shifted by one still hold it: perfect logits everywhere else leave exactly its loss."""
    batch = condense(laid_out(some_rows(), 4), everything(laid_out(some_rows(), 4), False))
    for index in range(3):
        end = int(batch["attention_mask"][index].sum())
        logits = 50.0 * torch.nn.functional.one_hot(batch["labels"][index, 1:].clamp(min=0), 900).float()
        logits = torch.cat([logits, torch.zeros(1, 900)])
        assert token_losses(logits[None], batch["labels"][index][None]).sum() < 1e-3
        logits[end - 2] = 0.0  # where the last token is predicted
        losses = token_losses(logits[None], batch["labels"][index][None])
        assert losses.sum().item() == pytest.approx(torch.tensor(900.0).log().item(), abs=1e-3)


@pytest.mark.parametrize("p", [0.0, 0.1, 0.25, 0.5, 1.0])
def test_a_share_of_each_rows_own_chunks_is_expanded(p: float) -> None:
    counts = [0, 1, 4, 5, 15, 32]
    expanded = expand_at_random(torch.tensor(counts), [p], random.Random(0))
    assert expanded.shape == (len(counts), max(counts))
    assert expanded.sum(1).tolist() == [expanded_count(p, n) for n in counts]
    beyond = torch.arange(max(counts))[None] >= torch.tensor(counts)[:, None]
    assert not (expanded & beyond).any()


def test_rows_without_chunks_have_a_choice_all_the_same() -> None:
    batch = laid_out([Row([1], [], [5], [True])], 4)
    expanded = expand_at_random(batch["n_chunks"], [1.0], random.Random(0))
    assert expanded.tolist() == [[False]]
    assert condense(batch, expanded)["input_ids"].tolist() == [[1, 5]]


def test_every_chunk_is_expanded_equally_often_and_every_row_draws_its_own_share() -> None:
    n, draws = 10, 4000
    expanded = expand_at_random(torch.full((draws,), n), [0.0, 0.1, 0.5], random.Random(1))
    shares = Counter(expanded.sum(1).tolist())
    assert set(shares) == {0, 1, 5}
    assert min(shares.values()) > 0.9 * draws / 3
    expected = draws / 3 * (0.1 + 0.5)
    assert (expanded.sum(0) - expected).abs().max() < 5 * expected**0.5
    assert expanded.unique(dim=0).shape[0] > 200, "not always the same five"


def test_the_choice_depends_on_the_generator_alone() -> None:
    n_chunks = torch.tensor([3, 17, 8])
    one, two, other = (expand_at_random(n_chunks, [0.1, 0.5], random.Random(seed)) for seed in (1, 1, 2))
    assert torch.equal(one, two)
    assert not torch.equal(one, other)


def test_reading_is_given_the_texts_without_their_markup() -> None:
    asked: list[list[list[int]]] = []

    def read(texts: list[list[int]]) -> EncoderInputs:
        asked.append(texts)
        return encoder_inputs(texts, 4, "chunk", PAD)

    given_rows = some_rows()
    lay_out(given_rows, 4, read, PAD)
    assert asked == [[block.text for row in given_rows for block in row.context]]
