"""LLaMA_K: the last 1/k of standard RAG's context, and at k = 1 all of it."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from loud import answer, loud_decoder, passages

from baselines.llama_k import LlamaK, LlamaKConfig
from baselines.standard_rag import StandardRAGConfig
from harness import prompts
from harness.data.world.tokenizer import build_tokenizer
from harness.errors import InputError
from harness.model.load import Decoder, load_decoder
from harness.protocol import Passage, System

pytestmark = pytest.mark.usefixtures("one_thread")

TOKENIZER = build_tokenizer()
QUESTION, NEW = "what is the rival", 4  # 6 tokens with "?" and the answer tag, and the start token before
THREE = ("The rival of", "is The was was was", "was of is The rival The")  # 4, 6 and 7 tokens with their tags

WORDS = ("The", "rival", "of", "is", "was", "what", "Name")


@pytest.fixture(scope="module")
def decoder() -> Decoder:
    return loud_decoder()


def opened(decoder: Decoder, k: int, **settings: int) -> LlamaK:
    return LlamaKConfig(k=k, template="tagged", **settings).build(decoder)


def context_ids(row: list[Passage]) -> list[int]:
    return [token for block in prompts.TAGGED.passage_ids(TOKENIZER, row) for token in block]


def read(system: LlamaK, row: list[Passage]) -> list[int]:
    """The tokens between the start token and the question."""
    ((ids,), _) = system.layout.prompts([QUESTION], system.encode([row]), NEW)
    asked = prompts.TAGGED.question_ids(TOKENIZER, [QUESTION])[0]
    assert ids[0] == TOKENIZER.bos_token_id and ids[-len(asked) :] == asked
    return ids[1 : -len(asked)]


def test_at_k_1_it_is_standard_rag(decoder: Decoder) -> None:
    questions = [QUESTION, "Name the", "what"]
    rows = [passages(*THREE), [], passages(THREE[1])]
    got = answer(opened(decoder, 1), questions, rows)
    assert got == answer(StandardRAGConfig(template="tagged").build(decoder), questions, rows)
    assert len({token for row in got for token in row}) > 5, "a model that repeats one token proves nothing"


@pytest.mark.parametrize("room", range(11, 32))
def test_at_k_1_it_drops_what_standard_rag_drops(decoder: Decoder, room: int) -> None:
    ours, theirs = opened(decoder, 1, max_positions=room), StandardRAGConfig(template="tagged", max_positions=room)
    reference = theirs.build(decoder)
    row = [passages(*THREE)]
    assert ours.usage([QUESTION], ours.encode(row), max_new_tokens=NEW) == reference.usage(
        [QUESTION], reference.encode(row), max_new_tokens=NEW
    )
    assert answer(ours, [QUESTION], row, NEW) == answer(reference, [QUESTION], row, NEW)


@pytest.fixture(scope="module")
def systems(decoder: Decoder) -> dict[int, LlamaK]:
    return {k: opened(decoder, k) for k in (1, 2, 3, 8, 100)}


@settings(deadline=None, max_examples=60)
@given(lengths=st.lists(st.integers(0, 12), max_size=5), k=st.sampled_from([1, 2, 3, 8, 100]))
def test_exactly_the_last_tokens_are_read(systems: dict[int, LlamaK], lengths: list[int], k: int) -> None:
    row = passages(*(" ".join(WORDS[(number + i) % len(WORDS)] for i in range(n)) for number, n in enumerate(lengths)))
    whole = context_ids(row)
    kept = math.ceil(len(whole) / k)
    got = read(systems[k], row)
    assert len(got) == kept
    assert got == whole[len(whole) - kept :]
    (usage,) = systems[k].usage([QUESTION], systems[k].encode([row]), max_new_tokens=NEW)
    assert usage.decoder_positions == 1 + kept + 6
    assert usage.stored_bytes == 0


@pytest.mark.parametrize(
    ("k", "kept", "passages_read"),
    [(1, 17, 3), (2, 9, 2), (3, 6, 1), (4, 5, 1), (8, 3, 1), (16, 2, 1), (17, 1, 1), (1000, 1, 1)],
)
def test_a_passage_is_read_if_one_token_of_it_is(decoder: Decoder, k: int, kept: int, passages_read: int) -> None:
    """Of 4, 6 and 7 tokens."""
    system = opened(decoder, k)
    (usage,) = system.usage([QUESTION], system.encode([passages(*THREE)]), max_new_tokens=NEW)
    assert usage.decoder_positions == 1 + kept + 6
    assert usage.passages_read == passages_read


@pytest.mark.parametrize(("k", "passages_read"), [(10, 1), (7, 1), (2, 2), (1, 3)])
def test_a_border_between_passages_belongs_to_neither(decoder: Decoder, k: int, passages_read: int) -> None:
    """Of 5, 1 and 4 tokens, every k-th: 1, 2, 5 and 10. The last five are exactly the last two passages."""
    system = opened(decoder, k)
    row = passages("The rival of is", "", "was was was")
    (usage,) = system.usage([QUESTION], system.encode([row]), max_new_tokens=NEW)
    assert usage.passages_read == passages_read


@pytest.mark.parametrize("room", range(11, 24))
def test_what_must_fit_is_the_shortened_context(decoder: Decoder, room: int) -> None:
    """Passages are dropped whole, from the end, only where k-th parts of them do not fit either."""
    k, cumulated = 3, (4, 10, 17)
    bounded = opened(decoder, k, max_positions=room)
    row = passages(*THREE)
    taken = max((n for n, s in enumerate(cumulated, 1) if 1 + math.ceil(s / k) + 6 + NEW <= room), default=0)
    assert read(bounded, row) == read(opened(decoder, k), row[:taken])
    (usage,) = bounded.usage([QUESTION], bounded.encode([row]), max_new_tokens=NEW)
    assert usage.decoder_positions + NEW <= room
    assert answer(bounded, [QUESTION], [row], NEW) == answer(opened(decoder, k), [QUESTION], [row[:taken]], NEW)


def test_a_batch_answers_as_its_rows_do(decoder: Decoder) -> None:
    system = opened(decoder, 2)
    questions = [QUESTION, "Name the", "what", "what is the"]
    rows = [passages(*THREE), [], passages(THREE[1]), passages(THREE[2], "was was was was was was was was")]
    together = answer(system, questions, rows)
    for question, row, got in zip(questions, rows, together, strict=True):
        (alone,) = answer(system, [question], [row])
        assert got == alone + [system.pad_id] * (len(got) - len(alone))
    assert len(set(map(tuple, together))) == len(together)


@pytest.mark.parametrize("k", [0, -3])
def test_a_rate_below_1_is_refused(k: int) -> None:
    with pytest.raises(InputError, match=rf"expected a rate k of 1 \(all of the context\) or more, got {k}"):
        LlamaKConfig(k=k)


def test_a_question_that_never_fits_is_named(decoder: Decoder) -> None:
    bounded = opened(decoder, 8, max_positions=11)
    bounded.check([QUESTION], max_new_tokens=NEW)
    with pytest.raises(InputError, match=r"'what is the rival of' needs 12 positions .* holds 11"):
        bounded.check([QUESTION, "what is the rival of"], max_new_tokens=NEW)


def test_a_checkpoint_says_its_template(tiny_checkpoint: Path) -> None:
    config = LlamaKConfig(**LlamaKConfig.defaults(str(tiny_checkpoint)))
    assert config == LlamaKConfig(k=8, template="tagged")
    system: System = config.build(load_decoder(str(tiny_checkpoint)), None)
    assert len(answer(system, ["what is"], [passages(*THREE)], 3)) == 1
