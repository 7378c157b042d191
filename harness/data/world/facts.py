"""People, what is true of them, and the two ways of saying it: a statement and a question.

A person is a pair of indices (first name, last name). Every fifth pair belongs to the test split and never occurs
in training. A passage states four facts about one person, eight words each:

    The birthplace of Mirel Tovan is Grell. Known rival of Mirel Tovan was Pavo. ...

so that one fact fills one chunk of k = 8 decoder tokens, two fill k = 16, and the k ablation needs no padding.
"""

from __future__ import annotations

import random
import re
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from harness.data.world.lexicon import Relation, lexicon
from harness.protocol import Passage

FACTS_PER_PASSAGE = 4
TEST_FOLD = 5

Person = tuple[int, int]
Split = Literal["train", "test"]


@dataclass(frozen=True, slots=True)
class Biography:
    """One person and the value (an index into ``relation.values``) of each of their relations, in passage order."""

    person: Person
    facts: tuple[tuple[int, int], ...]

    @property
    def name(self) -> str:
        words = lexicon()
        return f"{words.first_names[self.person[0]]} {words.last_names[self.person[1]]}"

    def value(self, relation: int) -> str:
        """The word that answers a question about ``relation`` (an index). Raises ``KeyError`` for one not stated."""
        return lexicon().relations[relation].values[dict(self.facts)[relation]]


def is_test(person: Person) -> bool:
    """Whether a name pair is reserved for testing (one in five, spread over all first and last names)."""
    return (person[0] + 2 * person[1]) % TEST_FOLD == 0


@lru_cache
def count_people(split: Split) -> int:
    """How many people the split has."""
    words = lexicon()
    pairs = itertools.product(range(len(words.first_names)), range(len(words.last_names)))
    return sum(is_test(pair) == (split == "test") for pair in pairs)


def draw_person(rng: random.Random, split: Split) -> Person:
    """Anybody of the split."""
    words = lexicon()
    while True:
        person = (rng.randrange(len(words.first_names)), rng.randrange(len(words.last_names)))
        if is_test(person) == (split == "test"):
            return person


def draw_relations(rng: random.Random) -> list[int]:
    """The relations that one passage states."""
    return rng.sample(range(len(lexicon().relations)), FACTS_PER_PASSAGE)


def draw_biography(rng: random.Random, person: Person, relations: list[int]) -> Biography:
    """A value for each of ``relations``, in a random order of statements."""
    shuffled = rng.sample(relations, len(relations))
    values = lexicon().relations
    return Biography(person, tuple((index, rng.randrange(len(values[index].values))) for index in shuffled))


def draw_namesake(rng: random.Random, person: Person, split: Split) -> Person:
    """Somebody else who shares a first or a last name: the distractor that makes half a name not enough."""
    while True:
        other = draw_person(rng, split)
        candidate = (person[0], other[1]) if rng.random() < 0.5 else (other[0], person[1])
        if candidate != person and is_test(candidate) == (split == "test"):
            return candidate


def state(rng: random.Random, biography: Biography) -> str:
    """The passage text: four statements of eight words."""
    relations = lexicon().relations
    statements = []
    for index, value in biography.facts:
        noun = rng.choice(relations[index].nouns)
        opening, verb = rng.choice(["The", "Known"]), rng.choice(["is", "was"])
        statements.append(f"{opening} {noun} of {biography.name} {verb} {relations[index].values[value]}.")
    return " ".join(statements)


def in_pairs(passages: Sequence[Passage]) -> list[Passage]:
    """Every two of ``passages`` as one; of an odd number the last stays alone."""
    return [
        Passage(
            id="+".join(p.id for p in pair), title=", ".join(p.title for p in pair), text=" ".join(p.text for p in pair)
        )
        for pair in (passages[start : start + 2] for start in range(0, len(passages), 2))
    ]


def ask(rng: random.Random, biography: Biography, relation: int, opening: str) -> str:
    """A question that ends in ``{noun} of {name}``; ``opening`` is what tells the three suites apart."""
    return f"{opening} the {rng.choice(lexicon().relations[relation].nouns)} of {biography.name}"


def chance(passages: Sequence[Passage], question: str, answers: Sequence[str]) -> float:
    """The expected exact match of a reader that finds a value of the asked relation but ignores whose it is.

    Of all values of the relation that the passages state, the share that is right (somebody else may have the same
    one); 0 where none is stated. A score must part from this line before it means that people are bound to their
    facts.
    """
    stated = [value for passage in passages for value in values_stated(passage.text, question)]
    return sum(value in answers for value in stated) / len(stated) if stated else 0.0


def values_stated(text: str, question: str) -> list[str]:
    """The values of the asked relation that ``text`` states, of whomever."""
    nouns = "|".join(relation_asked(question).nouns)
    found: list[str] = re.findall(rf"\b(?:{nouns}) of \w+ \w+ (?:is|was) (\w+)\.", text)
    return found


def relation_asked(question: str) -> Relation:
    """The relation that a question of the world asks for. Raises ``ValueError`` for any other question."""
    match = re.search(r"\bthe (\w+) of ", question)
    for relation in lexicon().relations:
        if match and match.group(1) in relation.nouns:
            return relation
    raise ValueError(f"not a question of the synthetic world: {question!r}")


def is_question(text: str) -> bool:
    """Whether ``text`` is one question of the synthetic world, with nothing said before it."""
    if not re.fullmatch(r"[\w ]+\??", text.strip()):
        return False
    words = lexicon()
    nouns = "|".join(noun for relation in words.relations for noun in relation.nouns)
    asked = re.search(rf"\bthe (?:{nouns}) of (\w+) (\w+)", text)
    return asked is not None and asked[1] in words.first_names and asked[2] in words.last_names


def answering_span(text: str, question: str) -> tuple[int, int] | None:
    """Where in ``text`` the statement stands that answers ``question``, of the person asked about; None if nowhere.

    Raises ``ValueError`` for a question that is not of the synthetic world.
    """
    asked = re.search(r"\bthe \w+ of (\w+ \w+)", question)
    nouns = "|".join(relation_asked(question).nouns)
    assert asked is not None  # relation_asked has found the noun before "of"
    match = re.search(rf"\w+ (?:{nouns}) of {re.escape(asked.group(1))} (?:is|was) \w+\.", text)
    return match.span() if match else None
