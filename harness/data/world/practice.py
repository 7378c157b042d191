"""Endless training batches of the world, every fact drawn afresh. The exercises:

- ``Reading``: questions about the passages (fine-tuning). Many per sequence, so that one forward pass gives many
  supervised answers.
- ``Quizzing`` and ``Retelling``: the next paragraph after the passages (pre-training), as questions with their answers
  or as statements in other words: who and what can only be known from the passages.
- ``Copying``: the passages' text itself (reconstruction).

What a batch looks like is its exercise's business; how the passages get into it (as tokens, as chunks) is that of
the ``collate`` which a system brings.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from harness import prompts
from harness.data.world.facts import (
    FACTS_PER_PASSAGE,
    Biography,
    ask,
    draw_biography,
    draw_namesake,
    draw_person,
    draw_relations,
    in_pairs,
    state,
)
from harness.data.world.mirror import OPENINGS
from harness.protocol import Passage
from harness.train.curriculum import build_curriculum
from harness.train.rows import Batch, Block, Collate, Row

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

FACT_TOKENS = 8


class Exercise(Protocol):
    """What to draw at step ``position``: the rows of one batch."""

    def draw(self, rng: random.Random, position: int, tokenizer: PreTrainedTokenizerFast) -> list[Row]: ...


class Practice:
    """The batches of an exercise, in the layout of ``collate``. Batch i depends on (seed, i) alone."""

    def __init__(
        self, exercise: Exercise, tokenizer: PreTrainedTokenizerFast, collate: Collate, *, seed: int
    ) -> None:
        self.exercise, self.tokenizer, self.collate, self.seed = exercise, tokenizer, collate, seed
        self.position = 0

    def state_dict(self) -> dict[str, Any]:
        return {"position": self.position}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.position = state["position"]

    def __next__(self) -> Batch:
        rng = random.Random(f"{type(self.exercise).__name__}-{self.seed}-{self.position}")
        rows = self.exercise.draw(rng, self.position, self.tokenizer)
        self.position += 1
        return self.collate(rows, rng)


@dataclass(frozen=True, kw_only=True)
class People:
    """Who is in a sequence. In ``same_relations`` of the sequences every passage states the same four relations, so
    that only the entity tells the answer; ``namesakes`` of the people share a first or last name with another."""

    same_relations: float = 0.75
    namesakes: float = 0.75

    def draw(self, rng: random.Random, n: int) -> list[Biography]:
        shared = draw_relations(rng) if rng.random() < self.same_relations else None
        people = [draw_person(rng, "train")]
        while len(people) < n:
            like = rng.choice(people)
            near = rng.random() < self.namesakes
            person = draw_namesake(rng, like, "train") if near else draw_person(rng, "train")
            if person not in people:
                people.append(person)
        return [draw_biography(rng, person, shared or draw_relations(rng)) for person in people]

    def passages(self, rng: random.Random, biographies: list[Biography]) -> list[Passage]:
        """What is told of them, a passage each."""
        return [Passage(id="", title=b.name, text=state(rng, b)) for b in biographies]


@dataclass(frozen=True, kw_only=True)
class Pairs(People):
    """The same people, two to a passage: passages long enough for chunks of 64 tokens."""

    def passages(self, rng: random.Random, biographies: list[Biography]) -> list[Passage]:
        return in_pairs(super().passages(rng, biographies))


@dataclass(frozen=True, kw_only=True)
class Sketches(People):
    """The same people, of whom a passage states only the first ``facts`` facts, one number for all of a sequence.

    So chunks that have room for four facts are first met with one in them.
    """

    facts: tuple[int, ...] = (1, 1, 2, 3, 4)

    def draw(self, rng: random.Random, n: int) -> list[Biography]:
        biographies = super().draw(rng, n)
        count = rng.choice(self.facts)
        return [Biography(biography.person, biography.facts[:count]) for biography in biographies]


@dataclass(frozen=True, kw_only=True)
class Reading:
    """``sizes`` are (passages, rows of a batch) to choose from; ``questions`` are asked per row."""

    sizes: tuple[tuple[int, int], ...] = ((1, 24), (2, 20), (4, 14), (8, 8))
    questions: int = 8
    people: People = People()

    def draw(self, rng: random.Random, position: int, tokenizer: PreTrainedTokenizerFast) -> list[Row]:  # noqa: ARG002
        n_passages, n_rows = rng.choice(self.sizes)
        return [self._row(rng, n_passages, tokenizer) for _ in range(n_rows)]

    def _row(self, rng: random.Random, n: int, tokenizer: PreTrainedTokenizerFast) -> Row:
        biographies = self.people.draw(rng, n)
        row = _told(rng, self.people, biographies, tokenizer)
        _ask(rng, row, [(b, rng.choice(b.facts)[0]) for b in rng.choices(biographies, k=self.questions)], tokenizer)
        return row


@dataclass(frozen=True, kw_only=True)
class Growing:
    """How much of a context a batch has: chunks by a curriculum over ``steps``, rows so that batches weigh the same.

    ``max_chunks`` chunks of ``k`` tokens at the longest; ``tokens`` of context in a batch. The paper's table counts
    data points, of which a long one weighs more; here its mixture is over batches of equal size (its unit is open).
    """

    k: int
    steps: int
    max_chunks: int
    tokens: int
    curriculum: str = "paper"

    def draw(self, rng: random.Random, position: int) -> tuple[int, int]:
        """Context tokens of a row, and rows of the batch."""
        chunks = build_curriculum(self.curriculum, self.max_chunks).draw(position, self.steps, rng)
        length = chunks * self.k
        return length, max(1, self.tokens // length)


@dataclass(frozen=True, kw_only=True)
class Quizzing:
    """After ``growing`` tokens of passages, a paragraph of ``questions`` about them with their answers.

    The passages state one fact at least, even where ``growing`` would cut it short.
    """

    growing: Growing
    questions: int = 8
    people: People = People()

    def draw(self, rng: random.Random, position: int, tokenizer: PreTrainedTokenizerFast) -> list[Row]:
        length, n_rows = self.growing.draw(rng, position)
        return [self._row(rng, max(length, FACT_TOKENS), tokenizer) for _ in range(n_rows)]

    def _row(self, rng: random.Random, length: int, tokenizer: PreTrainedTokenizerFast) -> Row:
        biographies = _known_for(rng, self.people, length)
        row = _told(rng, self.people, biographies, tokenizer, length)
        facts = [(b, relation) for b, (relation, _) in _stated(biographies, length)]
        _ask(rng, row, rng.choices(facts, k=self.questions), tokenizer)
        return row


@dataclass(frozen=True, kw_only=True)
class Retelling:
    """After ``growing`` tokens of passages, ``sentences`` statements of their facts, values as answers.

    The passages state one fact at least, even where ``growing`` would cut it short.
    """

    growing: Growing
    sentences: int = 12
    people: People = People()

    def draw(self, rng: random.Random, position: int, tokenizer: PreTrainedTokenizerFast) -> list[Row]:
        length, n_rows = self.growing.draw(rng, position)
        return [self._row(rng, max(length, FACT_TOKENS), tokenizer) for _ in range(n_rows)]

    def _row(self, rng: random.Random, length: int, tokenizer: PreTrainedTokenizerFast) -> Row:
        biographies = _known_for(rng, self.people, length)
        row = _told(rng, self.people, biographies, tokenizer, length)
        for biography, fact in rng.choices(_stated(biographies, length), k=self.sentences):
            ids = prompts.text_ids(tokenizer, [state(rng, Biography(biography.person, (fact,)))])[0]
            row.say(ids[:-2])
            row.say(ids[-2:-1], answer=True)  # the value
            row.say(ids[-1:])  # the full stop
        return row


@dataclass(frozen=True, kw_only=True)
class Copying:
    """x_1:kL from L chunks: the whole context again, every token of it an answer (section 4, joint reconstruction)."""

    growing: Growing
    people: People = People()

    def draw(self, rng: random.Random, position: int, tokenizer: PreTrainedTokenizerFast) -> list[Row]:
        length, n_rows = self.growing.draw(rng, position)
        return [self._row(rng, length, tokenizer) for _ in range(n_rows)]

    def _row(self, rng: random.Random, length: int, tokenizer: PreTrainedTokenizerFast) -> Row:
        row = _told(rng, self.people, _known_for(rng, self.people, length), tokenizer, length)
        row.context = [Block([], [token for block in row.context for token in block.text])]
        row.say(row.context[0].text, answer=True)
        return row


@dataclass(frozen=True, kw_only=True)
class Mixture:
    """Exercises in turn, a batch of each."""

    exercises: tuple[Exercise, ...]

    def draw(self, rng: random.Random, position: int, tokenizer: PreTrainedTokenizerFast) -> list[Row]:
        round_, turn = divmod(position, len(self.exercises))
        return self.exercises[turn].draw(rng, round_, tokenizer)


def _known_for(rng: random.Random, people: People, length: int) -> list[Biography]:
    """As many people as ``length`` tokens of passages tell of."""
    return people.draw(rng, -(-length // (FACT_TOKENS * FACTS_PER_PASSAGE)))


def _stated(biographies: list[Biography], length: int) -> list[tuple[Biography, tuple[int, int]]]:
    """The facts that ``length`` tokens of their passages state in full."""
    return [(b, fact) for b in biographies for fact in b.facts][: length // FACT_TOKENS]


def _ask(
    rng: random.Random, row: Row, asked: list[tuple[Biography, int]], tokenizer: PreTrainedTokenizerFast
) -> None:
    """Append a question for each (person, relation), and its answer."""
    questions = [ask(rng, biography, relation, rng.choice(OPENINGS)) for biography, relation in asked]
    answers = prompts.text_ids(tokenizer, [biography.value(relation) for biography, relation in asked])
    for question, answer in zip(prompts.TAGGED.question_ids(tokenizer, questions), answers, strict=True):
        row.say(question)
        row.say([*answer, tokenizer.eos_token_id], answer=True)


def _told(
    rng: random.Random,
    people: People,
    biographies: list[Biography],
    tokenizer: PreTrainedTokenizerFast,
    length: int | None = None,
) -> Row:
    """A row whose context tells of ``biographies``, cut to ``length`` tokens of text."""
    template = prompts.TAGGED
    passages = people.passages(rng, biographies)
    blocks = [Block(*block) for block in template.passage_blocks(tokenizer, passages)]
    if length is not None:
        for block in blocks:
            del block.text[length:]
            length -= len(block.text)
    return Row(start=template.start_ids(tokenizer), context=blocks)
