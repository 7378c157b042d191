"""Extraction: the best chunks as tokens, in no more positions than REFRAG has, and all of them at expand = 1."""

from __future__ import annotations

import math
import random
import re
from collections import Counter
from pathlib import Path
from typing import Any

import bm25s
import pytest
from byte_level import byte_level_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st
from loud import answer, loud_decoder, passages
from tiny_refrag import write_tiny_refrag

from baselines.extract import (
    K1,
    B,
    CutPassage,
    Extract,
    ExtractConfig,
    bm25,
    fitting,
    ids,
    refrag_positions,
    take,
    words,
)
from baselines.standard_rag import StandardRAGConfig
from harness import prompts
from harness.data.world.facts import draw_biography, draw_person, draw_relations, state
from harness.data.world.tokenizer import build_tokenizer
from harness.errors import InputError
from harness.model.load import Decoder, load_decoder
from harness.protocol import Passage, System
from refrag_v2.system import RefragV2Config

pytestmark = pytest.mark.usefixtures("one_thread")

TOKENIZER = build_tokenizer()
QUESTION, NEW = "what is the rival", 4  # 6 tokens with "?" and the answer tag, and the start token before
AROUND = 1 + 6
WORDS = ("The", "rival", "of", "is", "was", "what", "Name")
K = 4


@pytest.fixture(scope="module")
def decoder() -> Decoder:
    return loud_decoder()


def opened(decoder: Decoder, **settings: Any) -> Extract:
    return ExtractConfig(**{"k": K, "template": "tagged"} | settings).build(decoder)


def of_lengths(lengths: list[int]) -> list[Passage]:
    """Passages of so many tokens, tags apart."""
    return passages(*(" ".join(WORDS[(row + i) % len(WORDS)] for i in range(n)) for row, n in enumerate(lengths)))


def read(system: Extract, row: list[Passage], question: str = QUESTION) -> str:
    """What stands in the prompt between the start token and the question, as text with its tags."""
    ((row_ids,), _) = system.layout.prompts([question], system.encode([row]), NEW)
    asked = prompts.TAGGED.question_ids(TOKENIZER, [question])[0]
    assert row_ids[0] == TOKENIZER.bos_token_id and row_ids[-len(asked) :] == asked
    return TOKENIZER.decode(row_ids[1 : -len(asked)])


def cut(*lengths: int, tag: int = 1) -> CutPassage:
    """A passage of chunks of these lengths."""
    return CutPassage([9] * tag, [[20 + n] * length for n, length in enumerate(lengths)], [Counter() for _ in lengths])


# How many positions


@pytest.fixture(scope="module")
def systems(decoder: Decoder) -> dict[tuple[int, float], Extract]:
    return {(k, p): opened(decoder, k=k, expand=p) for k in (1, 3, 8) for p in (0.0, 0.25, 0.5, 1.0)}


@settings(deadline=None, max_examples=80)
@given(
    lengths=st.lists(st.integers(0, 20), max_size=5), k=st.sampled_from([1, 3, 8]), p=st.sampled_from([0, 0.25, 0.5, 1])
)
def test_no_more_positions_than_refrag_has(
    systems: dict[tuple[int, float], Extract], lengths: list[int], k: int, p: float
) -> None:
    """Or one chunk with its tag, where even that is more."""
    system = systems[k, p]
    context = system.encode([of_lengths(lengths)])
    (usage,) = system.usage([QUESTION], context, max_new_tokens=NEW)
    allowed = refrag_positions(context[0], p)
    used = usage.decoder_positions - AROUND
    if used > allowed:
        ((row,), _) = system.layout.prompts([QUESTION], context, NEW)
        assert row[2:-6] in [chunk for passage in context[0] for chunk in passage.chunks]
    assert (usage.passages_read > 0) == any(lengths), "the best chunk is always taken"
    assert usage.stored_bytes == 0


@pytest.fixture(scope="module")
def refrag_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_refrag(tmp_path_factory.mktemp("refrag") / "final", k=K)


@pytest.mark.parametrize(("p", "select"), [(0.0, "none"), (0.25, "first"), (0.5, "first"), (1.0, "all")])
def test_the_budget_is_what_refrag_occupies(refrag_checkpoint: Path, p: float, select: str) -> None:
    """Where all chunks are of one length, whichever are expanded."""
    loaded = load_decoder(str(refrag_checkpoint))
    refrag = RefragV2Config(k=K, template="tagged", expand=p, select=select).build(loaded)
    row = of_lengths([3 * K, K, 2 * K])
    (usage,) = refrag.usage([QUESTION], refrag.encode([row]), max_new_tokens=NEW)
    (context,) = opened(loaded, expand=p).encode([row])
    assert AROUND + refrag_positions(context, p) == usage.decoder_positions


@pytest.mark.parametrize(("p", "select"), [(0.0, "none"), (0.25, "first"), (0.5, "first"), (1.0, "all")])
def test_passages_find_room_where_refrags_do(refrag_checkpoint: Path, p: float, select: str) -> None:
    loaded = load_decoder(str(refrag_checkpoint))
    row = of_lengths([2 * K + 1, K, 3 * K, 1])
    for window in range(11, 50):
        refrag = RefragV2Config(k=K, template="tagged", expand=p, select=select, max_positions=window).build(loaded)
        (usage,) = refrag.usage([QUESTION], refrag.encode([row]), max_new_tokens=NEW)
        (context,) = opened(loaded, expand=p).encode([row])
        assert len(fitting(context, p, window - AROUND - NEW)) == usage.passages_read


def test_a_short_chunk_that_is_expanded_counts_as_it_is() -> None:
    row = [cut(4, 4, 1), cut(2)]
    assert [refrag_positions(row, p) for p in (0.0, 0.25, 0.5, 0.75, 1.0)] == [6, 9, 12, 13, 13]
    assert refrag_positions([], 0.5) == 0


# At the ends


def test_with_room_for_everything_it_is_standard_rag(decoder: Decoder) -> None:
    reference = StandardRAGConfig(template="tagged").build(decoder)
    rng = random.Random(0)
    questions = [QUESTION, "Name the", "what", "what is the"]
    rows = [of_lengths([rng.randint(1, 20) for _ in range(n)]) for n in (3, 0, 1, 5)]
    for k in (1, 3, 8, 100):
        system = opened(decoder, k=k, expand=1.0)
        got = answer(system, questions, rows)
        assert got == answer(reference, questions, rows)
        assert system.usage(questions, system.encode(rows), max_new_tokens=NEW) == reference.usage(
            questions, reference.encode(rows), max_new_tokens=NEW
        )
    assert len({token for row in got for token in row}) > 5, "a model that repeats one token proves nothing"


@pytest.mark.parametrize("window", range(11, 40))
def test_at_expand_1_it_drops_what_standard_rag_drops(decoder: Decoder, window: int) -> None:
    row = [of_lengths([K + 1, 1, K + 2, 3 * K])]
    ours = opened(decoder, expand=1.0, max_positions=window)
    theirs = StandardRAGConfig(template="tagged", max_positions=window).build(decoder)
    assert ours.usage([QUESTION], ours.encode(row), max_new_tokens=NEW) == theirs.usage(
        [QUESTION], theirs.encode(row), max_new_tokens=NEW
    )


@pytest.mark.parametrize("window", range(11, 40))
@pytest.mark.parametrize("p", [0.0, 0.25, 0.5])
def test_the_window_is_never_exceeded(decoder: Decoder, window: int, p: float) -> None:
    """Not by the chunk that may exceed the budget either."""
    system = opened(decoder, k=12, expand=p, max_positions=window)
    row = [of_lengths([12, 13, 20])]
    (usage,) = system.usage([QUESTION], system.encode(row), max_new_tokens=NEW)
    assert usage.decoder_positions + NEW <= window
    assert len(answer(system, [QUESTION], row, NEW)) == 1


def test_closed_book_is_standard_rags(decoder: Decoder) -> None:
    reference = StandardRAGConfig(template="tagged").build(decoder)
    system = opened(decoder)
    assert answer(system, [QUESTION, "what"], [[], []]) == answer(reference, [QUESTION, "what"], [[], []])
    assert system.usage([QUESTION], system.encode([[]]), max_new_tokens=NEW) == reference.usage(
        [QUESTION], reference.encode([[]]), max_new_tokens=NEW
    )


# Which chunks


def test_the_chunk_with_the_questions_words_is_taken_first(decoder: Decoder) -> None:
    """A budget of four chunk slots and two tags holds one chunk of four tokens and its tag."""
    row = passages("was was was was is is is is", "of of of of what is The rival")
    assert read(opened(decoder), row) == "<passage> what is The rival"
    assert read(opened(decoder), row, "Name was") == "<passage> was was was was"


def test_chunks_stand_in_their_order_under_their_passages_tag(decoder: Decoder) -> None:
    """The best is the last here, and of the passage between nothing is read, so its tag is not either."""
    row = passages("The rival of is was was was was", "Name Name Name Name", "was was was was what is The rival")
    system = opened(decoder, expand=0.2)  # 3 tags, 5 slots, 1 chunk of 3 more: 11 positions
    assert read(system, row) == "<passage> The rival of is<passage> what is The rival"
    (usage,) = system.usage([QUESTION], system.encode([row]), max_new_tokens=NEW)
    assert (usage.passages_read, usage.decoder_positions) == (2, AROUND + 10)


def test_where_no_word_matches_chunks_keep_their_order(decoder: Decoder) -> None:
    row = passages("was was was was of of of of", "of of of of")
    assert read(opened(decoder), row, "Name") == "<passage> was was was was"


@pytest.mark.parametrize("seed", range(5))
def test_a_fact_of_the_world_is_found_by_the_words_that_state_it(decoder: Decoder, seed: int) -> None:
    """Among four facts of each of three people, at the positions that 12 chunk embeddings take."""
    rng = random.Random(seed)
    lives = [draw_biography(rng, draw_person(rng, "train"), draw_relations(rng)) for _ in range(3)]
    said = [state(rng, life) for life in lives]
    asked = rng.choice(rng.choice(said).split(". "))  # "Known rival of Mirel Tovan was Pavo"
    noun, name = re.search(r"(\w+) of (\w+ \w+)", asked).groups()
    got = read(opened(decoder, k=8), passages(*said), f"What is the {noun} of {name}")
    assert got == f"<passage> {asked.rstrip('.')}."


def test_words_match_though_a_bpe_spells_them_otherwise(decoder: Decoder) -> None:
    """A "Tovan" within a text and "TOVAN" in a question have no token in common; characters may be cut."""
    spelled = Decoder(model=decoder.model, tokenizer=byte_level_tokenizer(), checkpoint="none", source="none")
    row = passages("日本語 naïve 日本語 naïve " * 3, "The birthplace of Mirel Tovan is Grell.")
    system = opened(spelled, template="text", k=8)
    best = [bm25(words("TOVAN?"), of_one.words) for of_one in system.encode([row])[0]]
    assert not any(best[0]) and any(best[1])
    everything, reference = opened(spelled, template="text", k=8, expand=1.0), StandardRAGConfig().build(spelled)
    assert answer(everything, ["TOVAN"], [row]) == answer(reference, ["TOVAN"], [row])


def test_a_chunk_that_does_not_fit_is_passed_over_for_a_smaller_one() -> None:
    row = [cut(4, 4, 2)]
    assert take(row, [3.0, 2.0, 1.0], 7, 100) == [{0, 2}]
    assert take(row, [3.0, 2.0, 1.0], 6, 100) == [{0}]
    assert take(row, [3.0, 2.0, 1.0], 9, 100) == [{0, 1}]


def test_a_tag_is_paid_for_once() -> None:
    row = [cut(2, 2, tag=3), cut(2, tag=3)]
    assert take(row, [1.0, 1.0, 1.0], 7, 100) == [{0, 1}, set()]
    assert take(row, [3.0, 1.0, 2.0], 9, 100) == [{0, 1}, set()], "5 + 5 for one of each passage is too much"
    assert take(row, [3.0, 1.0, 2.0], 10, 100) == [{0}, {0}]
    assert [ids(cp, {1, 0} if n == 0 else set()) for n, cp in enumerate(row)] == [[9, 9, 9, 20, 20, 21, 21], []]


def test_the_best_chunk_may_exceed_the_budget_but_not_the_room() -> None:
    row = [cut(8, 8), cut(3)]
    assert take(row, [1.0, 2.0, 0.0], 5, 100) == [{1}, set()]
    assert take(row, [1.0, 2.0, 0.0], 5, 8) == [set(), {0}]
    assert take(row, [1.0, 2.0, 0.0], 3, 3) == [set(), set()]


def test_among_equals_the_earlier_is_taken() -> None:
    assert take([cut(2, 2, 2)], [0.0, 0.0, 0.0], 5, 100) == [{0, 1}]
    assert take([cut(2, 2, 2)], [1.0, 2.0, 2.0], 3, 100) == [{1}]


def test_two_equal_calls_choose_alike(decoder: Decoder) -> None:
    system, row = opened(decoder, expand=0.5), of_lengths([9, 14, 3])
    assert read(system, row) == read(opened(decoder, expand=0.5), row) == read(system, row)


def test_a_batch_answers_as_its_rows_do(decoder: Decoder) -> None:
    system = opened(decoder, expand=0.25)
    questions = [QUESTION, "Name the", "what", "what is the"]
    rows = [of_lengths([9, 14, 3]), [], of_lengths([5]), of_lengths([4, 20])]
    together = answer(system, questions, rows)
    for question, row, got in zip(questions, rows, together, strict=True):
        (alone,) = answer(system, [question], [row])
        assert got == alone + [system.pad_id] * (len(got) - len(alone))
    assert len(set(map(tuple, together))) == len(together)


# By what score


def indexed(query: list[str], chunks: list[list[str]]) -> list[float]:
    index = bm25s.BM25(k1=K1, b=B, method="lucene")
    index.index(chunks, show_progress=False)
    return index.get_scores_from_ids(index.get_tokens_ids(query)).tolist()


@pytest.mark.parametrize("seed", range(10))
def test_scores_are_those_of_bm25s(seed: int) -> None:
    rng = random.Random(seed)
    chunks = [[rng.choice("abcdefghijklmnop") for _ in range(rng.randint(0, 12))] for _ in range(rng.randint(1, 40))]
    chunks.append(["a"])
    query = [rng.choice("abcdefz") for _ in range(rng.randint(1, 8))]
    expected = indexed(query, chunks)
    assert bm25(query, list(map(Counter, chunks))) == pytest.approx(expected, rel=1e-5, abs=1e-6)


def test_nothing_matches_nothing() -> None:
    assert bm25(["a"], []) == []
    assert bm25([], [Counter("ab"), Counter()]) == [0, 0]
    assert bm25(["a"], [Counter(), Counter()]) == [0, 0]


def test_a_word_of_every_chunk_weighs_less_than_a_rare_one() -> None:
    chunks = [
        Counter({"what": 2, "is": 2}),
        *[Counter({"what": 1, "is": 1, "was": 2})] * 6,
        Counter({"rival": 1, "x": 3}),
    ]
    scores = bm25(["what", "is", "rival"], chunks)
    assert max(range(len(scores)), key=scores.__getitem__) == 7


def test_words_are_letters_and_digits_in_lower_case() -> None:
    assert words("Who's the Naïve_one of 1984, in Łódź?") == [
        "who",
        "s",
        "the",
        "naïve",
        "one",
        "of",
        "1984",
        "in",
        "łódź",
    ]
    assert words(" ?!_ ") == []


# What a user can get wrong


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"k": 0}, "expected chunks of k tokens, 1 or more, got 0"),
        ({"k": -2}, "1 or more, got -2"),
        ({"expand": -0.1}, "from 0 to 1, got -0.1"),
        ({"expand": 1.5}, "from 0 to 1, got 1.5"),
        ({"expand": math.nan}, "from 0 to 1, got nan"),
    ],
)
def test_settings_that_cannot_be_say_what_could(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        ExtractConfig(**settings)


def test_a_question_that_never_fits_is_named(decoder: Decoder) -> None:
    bounded = opened(decoder, max_positions=11)
    bounded.check([QUESTION], max_new_tokens=NEW)
    with pytest.raises(InputError, match=r"'what is the rival of' needs 12 positions .* holds 11"):
        bounded.check([QUESTION, "what is the rival of"], max_new_tokens=NEW)


def test_a_checkpoint_says_its_template(tiny_checkpoint: Path) -> None:
    config = ExtractConfig(**ExtractConfig.defaults(str(tiny_checkpoint)))
    assert config == ExtractConfig(k=8, expand=0.0, template="tagged")
    system: System = config.build(load_decoder(str(tiny_checkpoint)), None)
    assert len(answer(system, ["what is"], [of_lengths([9])], 3)) == 1
