"""Training batches of the world: repeatable, about nobody of the test split, and answerable from their context."""

import itertools
import random
import re
from collections import Counter
from collections.abc import Sequence

import pytest
import torch

from harness.data.world import facts
from harness.data.world.lexicon import lexicon
from harness.data.world.practice import (
    Copying,
    Exercise,
    Growing,
    Mixture,
    Pairs,
    People,
    Practice,
    Quizzing,
    Reading,
    Retelling,
)
from harness.data.world.tokenizer import build_tokenizer
from harness.errors import InputError
from harness.train.curriculum import build_curriculum
from harness.train.rows import Batch, Row, collate_tokens

TOKENIZER = build_tokenizer()


def growing(**changes: object) -> Growing:
    return Growing(**{"k": 8, "steps": 10, "max_chunks": 16, "tokens": 256} | changes)


EXERCISES: dict[str, Exercise] = {
    "reading": Reading(sizes=((1, 3), (4, 2))),
    "quizzing": Quizzing(growing=growing()),
    "retelling": Retelling(growing=growing()),
    "copying": Copying(growing=growing()),
    "mixture": Mixture(exercises=(Reading(sizes=((2, 3),)), Retelling(growing=growing()), Copying(growing=growing()))),
}
EACH = pytest.mark.parametrize("exercise", EXERCISES.values(), ids=EXERCISES)


def practice(exercise: Exercise, seed: int = 0) -> Practice:
    return Practice(exercise, TOKENIZER, lambda rows, rng: collate_tokens(rows, TOKENIZER.pad_token_id), seed=seed)


def equal(left: Batch, right: Batch) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def draw(exercise: Exercise, seed: int = 0, position: int = 0) -> list[Row]:
    return exercise.draw(random.Random(seed), position, TOKENIZER)


def text(ids: Sequence[int]) -> str:
    said: str = TOKENIZER.decode(ids)
    return said


def context_text(row: Row) -> str:
    return text([token for block in row.context for token in block.text])


def answers(row: Row) -> list[str]:
    """The tokens that are asked for, each as a word."""
    return [text([token]) for token, asked in zip(row.tail, row.is_answer, strict=True) if asked]


# Which batch comes when


@EACH
def test_a_batch_depends_on_seed_and_position_alone(exercise: Exercise) -> None:
    stream = practice(exercise)
    for _ in range(4):
        next(stream)
    state, expected = stream.state_dict(), [next(stream), next(stream)]
    resumed = practice(exercise)
    random.seed(99)  # the process's own generator has no say
    resumed.load_state_dict(state)
    assert all(equal(next(resumed), batch) for batch in expected)
    assert not equal(*expected)


def test_another_seed_gives_other_batches() -> None:
    one, two = (practice(Reading(sizes=((2, 2),)), seed) for seed in (0, 1))
    assert not equal(next(one), next(two))


def test_exercises_of_one_seed_do_not_tell_of_the_same_people() -> None:
    kinds = (Copying, Retelling, Quizzing)
    copied, *others = (next(practice(kind(growing=growing(curriculum="none")))) for kind in kinds)
    fact = 8
    told = [copied["input_ids"][0, 1 : 1 + fact], *(batch["input_ids"][0, 2 : 2 + fact] for batch in others)]
    assert not any(torch.equal(one, another) for one, another in itertools.combinations(told, 2))


def test_what_the_collate_draws_is_repeatable_too() -> None:
    def drawn() -> Practice:
        return Practice(
            Reading(sizes=((1, 1),)),
            TOKENIZER,
            lambda rows, rng: {"drawn": torch.tensor(rng.random(), dtype=torch.double)},
            seed=0,
        )

    one, two = drawn(), drawn()
    first, second = next(one), next(one)
    assert not equal(first, second)
    two.load_state_dict({"position": 1})
    assert equal(next(two), second)


def test_a_mixture_takes_its_exercises_in_turn() -> None:
    mixture = EXERCISES["mixture"]
    assert isinstance(mixture, Mixture)
    for position in range(7):
        round_, turn = divmod(position, 3)
        assert draw(mixture, seed=4, position=position) == draw(mixture.exercises[turn], seed=4, position=round_)


# Who is in it


def people_named(said: str) -> list[facts.Person]:
    words = lexicon()
    pairs = itertools.pairwise(re.findall(r"\w+", said))
    return [
        (words.first_names.index(left), words.last_names.index(right))
        for left, right in pairs
        if left in words.first_names and right in words.last_names
    ]


@EACH
def test_training_never_names_a_test_person(exercise: Exercise) -> None:
    stream, seen = practice(exercise), 0
    for _ in range(6):
        for row in next(stream)["input_ids"].tolist():
            named = people_named(TOKENIZER.decode(row, skip_special_tokens=True))
            seen += len(named)
            assert not any(map(facts.is_test, named))
    assert seen > 150


def biographies(people: People, n: int, seed: int) -> list[facts.Biography]:
    return people.draw(random.Random(seed), n)


@pytest.mark.parametrize("namesakes", [0.0, 0.75, 1.0])
def test_people_are_different_and_of_the_train_split(namesakes: float) -> None:
    for seed in range(50):
        drawn = [b.person for b in biographies(People(namesakes=namesakes), 8, seed)]
        assert len(set(drawn)) == 8
        assert not any(map(facts.is_test, drawn))


def test_namesakes_share_one_name_with_somebody() -> None:
    for seed in range(30):
        drawn = [b.person for b in biographies(People(namesakes=1.0), 6, seed)]
        for index, person in enumerate(drawn[1:], start=1):
            assert any((person[0] == other[0]) != (person[1] == other[1]) for other in drawn[:index])


@pytest.mark.parametrize(("share", "low", "high"), [(0.0, 0.0, 0.05), (0.75, 0.65, 0.85), (1.0, 1.0, 1.0)])
def test_how_often_all_state_the_same_relations(share: float, low: float, high: float) -> None:
    same = 0
    for seed in range(300):
        stated = {frozenset(dict(b.facts)) for b in biographies(People(same_relations=share), 3, seed)}
        same += len(stated) == 1
    assert low <= same / 300 <= high


# What can be answered from it


def test_every_question_is_answered_by_its_own_person() -> None:
    exercise = Reading(sizes=((1, 5), (8, 5)), questions=6)
    for seed in range(6):
        for row in draw(exercise, seed):
            context = context_text(row)
            said = text(row.tail)
            asked = re.findall(r"([^?<>]*)\?<answer> ?(\w+)</s>", said)
            assert len(asked) == exercise.questions
            for question, value in asked:
                span = facts.answering_span(context, question)
                assert span is not None
                assert context[slice(*span)].endswith(f" {value}.")
            assert answers(row) == [word for _, value in asked for word in (value, "</s>")]


def test_reading_has_the_sizes_it_was_given() -> None:
    sizes = ((1, 5), (2, 4), (8, 3))
    drawn = Counter()
    for seed in range(60):
        rows = draw(Reading(sizes=sizes, questions=1), seed)
        (passages,) = {len(row.context) for row in rows}
        drawn[passages, len(rows)] += 1
    assert set(drawn) == set(sizes)
    assert min(drawn.values()) > 8


def test_a_passage_is_its_tag_and_four_statements() -> None:
    tag = [TOKENIZER.convert_tokens_to_ids("<passage>")]
    for row in draw(Reading(sizes=((3, 4),))):
        assert row.start == [TOKENIZER.bos_token_id]
        assert [(block.tag, len(block.text)) for block in row.context] == [(tag, 32)] * 3


# k = 4 has chunks shorter than a statement; at k = 12 the last statement is cut in two.
CUT = pytest.mark.parametrize(("k", "chunks"), [(4, 1), (8, 1), (12, 1), (16, 1), (4, 8), (12, 8), (8, 16), (32, 8)])


def whole(k: int, chunks: int) -> Growing:
    return growing(k=k, steps=1, max_chunks=chunks, curriculum="none", tokens=k * chunks * 3)


@CUT
def test_every_question_of_a_quiz_is_answered_by_what_was_read(k: int, chunks: int) -> None:
    """By the statement of its own person, and by one that stands in the cut context in full."""
    exercise = Quizzing(growing=whole(k, chunks), questions=6)
    for seed in range(10):
        for row in draw(exercise, seed):
            context = context_text(row)
            asked = re.findall(r"([^?<>]*)\?<answer> ?(\w+)</s>", text(row.tail))
            assert len(asked) == exercise.questions
            for question, value in asked:
                span = facts.answering_span(context, question)
                assert span is not None, "nothing is asked that was not told"
                assert context[slice(*span)].endswith(f" {value}.")
            assert answers(row) == [word for _, value in asked for word in (value, "</s>")], "all answers, no more"


def test_a_quiz_asks_about_all_that_was_read() -> None:
    exercise = Quizzing(growing=growing(steps=1, max_chunks=16, curriculum="none"), questions=60)
    spans = []
    for row in draw(exercise):
        context = context_text(row)
        questions = re.findall(r"([^?<>]*)\?<answer>", text(row.tail))
        spans.append(len({facts.answering_span(context, question) for question in questions}))
    assert len(spans) == 2
    assert min(spans) > 13, "of 16 facts, 60 draws reach nearly all"


@CUT
def test_retellings_answers_are_values_that_the_context_states(k: int, chunks: int) -> None:
    exercise = Retelling(growing=whole(k, chunks))
    for seed in range(10):
        for row in draw(exercise, seed):
            context, tail = context_text(row), text(row.tail)
            told = re.findall(r"(?:The|Known) (\w+) of (\w+ \w+) (?:is|was) (\w+)\.", tail)
            assert len(told) == exercise.sentences
            for noun, name, value in told:
                span = facts.answering_span(context, f"what is the {noun} of {name}")
                assert span is not None, "nothing is retold that was not told"
                assert context[slice(*span)].endswith(f" {value}.")
            assert answers(row) == [value for _, _, value in told]
            assert row.is_answer == [i % 8 == 6 for i in range(8 * exercise.sentences)], "the value, nothing else"


def test_retelling_tells_of_all_that_it_read_and_in_other_words() -> None:
    """Statements are drawn from every fact of the context, and with the other noun half of the time."""
    exercise = Retelling(growing=growing(steps=1, max_chunks=16, curriculum="none"), sentences=40)
    covered, nouns, copied, total = [], set(), 0, 0
    for seed in range(5):
        for row in draw(exercise, seed):
            context = context_text(row)
            sentences = re.findall(r"\w[^.]*\.", text(row.tail))
            covered.append(len({(tuple(s.split()[3:5]), s.split()[-1]) for s in sentences}))
            nouns |= {sentence.split()[1] for sentence in sentences}
            copied += sum(sentence in context for sentence in sentences)
            total += len(sentences)
    assert sum(covered) / len(covered) > 13, "of 16 facts, 40 draws reach nearly all"
    assert len(nouns) > 15, "both nouns of most of the ten relations"
    assert 0.05 < copied / total < 0.25, "one noun in two, one opening in two, one verb in two: an eighth"


def test_copying_repeats_its_context() -> None:
    for seed in range(10):
        for row in draw(Copying(growing=growing(k=4, steps=1)), seed, position=seed):
            (block,) = row.context
            assert block.tag == []
            assert row.tail == block.text
            assert row.is_answer == [True] * len(block.text)


def test_the_copy_does_not_change_with_what_is_copied() -> None:
    """A collate may cut the context; the target must be a list of its own."""
    row = draw(Copying(growing=growing()))[0]
    before = list(row.tail)
    row.context[0].text.clear()
    assert row.tail == before


# How long it is


@pytest.mark.parametrize("curriculum", ["paper", "none", "linear", "geometric", "3-stage"])
@pytest.mark.parametrize("k", [4, 16])
def test_lengths_follow_the_curriculum_and_end_at_the_maximum(curriculum: str, k: int) -> None:
    steps, longest = 60, 16
    plan = growing(k=k, steps=steps, max_chunks=longest, tokens=512, curriculum=curriculum)
    reference = build_curriculum(curriculum, longest)
    seen = set()
    for position in [*range(steps), steps, 10 * steps]:  # and beyond, for whoever trains on
        weights = reference.mixtures[reference.stage(position, steps)]
        allowed = {m for m, weight in zip(reference.multipliers, weights, strict=True) if weight}
        drawn = {plan.draw(random.Random(f"{position}-{i}"), position) for i in range(20)}
        assert {length for length, _ in drawn} <= {m * k for m in allowed}
        assert all(length <= longest * k for length, _ in drawn)
        assert all(rows == max(1, 512 // length) for length, rows in drawn)
        seen |= {length // k for length, _ in drawn}
    assert max(seen) == longest
    assert curriculum != "none" or seen == {longest}
    assert curriculum == "none" or min(seen) == 1


def test_lengths_are_mixed_as_the_stage_says() -> None:
    plan, n = growing(k=8, steps=9, max_chunks=16), 1500
    reference = build_curriculum("paper", 16)
    for position in (0, 4, 8):
        weights = reference.mixtures[reference.stage(position, 9)]
        drawn = Counter(plan.draw(random.Random(i), position)[0] // 8 for i in range(n))
        for multiplier, weight in zip(reference.multipliers, weights, strict=True):
            assert drawn[multiplier] / n == pytest.approx(weight / sum(weights), abs=0.05)


@pytest.mark.parametrize("kind", [Retelling, Quizzing, Copying])
@pytest.mark.parametrize("k", [8, 12, 16])  # 12: contexts of 48 and 96 tokens, the last passage cut short
def test_a_context_is_as_long_as_was_drawn(kind: type[Retelling | Quizzing | Copying], k: int) -> None:
    plan = growing(k=k, steps=12, max_chunks=16)
    for position in range(12):
        length, n_rows = plan.draw(random.Random(position), position)
        rows = draw(kind(growing=plan), seed=position, position=position)
        assert len(rows) == n_rows
        assert {sum(len(block.text) for block in row.context) for row in rows} == {length}
        assert all(block.text for row in rows for block in row.context), "no empty passages"


@pytest.mark.parametrize("curriculum", ["linear"])
def test_a_context_may_end_in_the_middle_of_a_fact(curriculum: str) -> None:
    """k = 4 and an odd number of chunks: half a fact is read, and nothing is asked of it."""
    plan = growing(k=4, steps=8, max_chunks=8, tokens=64, curriculum=curriculum)
    lengths = set()
    for position in range(8):
        for row in draw(Retelling(growing=plan), seed=position, position=position):
            lengths.add(sum(len(block.text) for block in row.context))
            context = context_text(row)
            for sentence in re.findall(r"\w[^.]*\.", text(row.tail)):
                _, noun, _, first, last, _, _ = sentence.split()
                assert facts.answering_span(context, f"what is the {noun} of {first} {last}") is not None
    assert lengths == {8, 12, 16, 20, 24, 28, 32}, "4 tokens tell nothing: one whole fact instead"


def test_a_maximum_that_the_curriculum_lacks_is_an_input_error() -> None:
    with pytest.raises(InputError, match="got 12"):
        growing(max_chunks=12).draw(random.Random(0), 0)


def test_pairs_tell_of_two_people_in_a_passage() -> None:
    """The same people and facts as one by one: passages are joined, their tags lost, no token of text."""
    alone, paired = (Reading(sizes=((8, 2),), people=people) for people in (People(), Pairs()))
    rows, merged = (exercise.draw(random.Random(3), 0, TOKENIZER) for exercise in (alone, paired))
    for row, other in zip(rows, merged, strict=True):
        assert [len(block.text) for block in row.context] == [32] * 8
        assert [len(block.text) for block in other.context] == [64] * 4
        assert [t for block in row.context for t in block.text] == [t for block in other.context for t in block.text]
        assert (row.tail, row.is_answer) == (other.tail, other.is_answer)
