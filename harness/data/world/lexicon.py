"""The words of the world: invented names, ten relations with two nouns each, and the values that they take.

Everything is generated from one fixed seed, so the lexicon is part of the code's version and not of a run's seed.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import cache

LEXICON_SEED = 20250901
N_NAMES = 160
N_VALUES = 36

# Two nouns per relation: the statement uses one, the question may use the other.
RELATION_NOUNS: tuple[tuple[str, str], ...] = (
    ("birthplace", "hometown"),
    ("occupation", "profession"),
    ("employer", "company"),
    ("language", "tongue"),
    ("instrument", "lute"),
    ("teacher", "mentor"),
    ("rival", "enemy"),
    ("religion", "faith"),
    ("sport", "game"),
    ("drink", "beverage"),
)

# Words of statements, questions and filler that are neither names, nouns nor values.
FUNCTION_WORDS: tuple[str, ...] = ("The", "Known", "of", "is", "was", "what", "What", "Name", "the")


@dataclass(frozen=True, slots=True)
class Relation:
    """One property that people have. ``nouns`` are synonyms; ``values`` are one word each and shared with no other."""

    index: int
    nouns: tuple[str, str]
    values: tuple[str, ...]

    @property
    def name(self) -> str:
        return self.nouns[0]


@dataclass(frozen=True, slots=True)
class Lexicon:
    """All names and relations. A person is a first and a last name."""

    first_names: tuple[str, ...]
    last_names: tuple[str, ...]
    relations: tuple[Relation, ...]

    def words(self) -> list[str]:
        """Every word that the world can say, each once, in a fixed order."""
        nouns = [noun for relation in self.relations for noun in relation.nouns]
        values = [value for relation in self.relations for value in relation.values]
        return [*FUNCTION_WORDS, *nouns, *self.first_names, *self.last_names, *values]


@cache
def lexicon() -> Lexicon:
    """The one lexicon: 160 first names, 160 last names, 10 relations of 36 values."""
    rng = random.Random(LEXICON_SEED)
    taken = {word.lower() for pair in RELATION_NOUNS for word in pair} | {word.lower() for word in FUNCTION_WORDS}
    first_names = _invent(rng, N_NAMES, 2, taken)
    last_names = _invent(rng, N_NAMES, 3, taken)
    relations = tuple(
        Relation(index, nouns, _invent(rng, N_VALUES, 2, taken)) for index, nouns in enumerate(RELATION_NOUNS)
    )
    return Lexicon(first_names, last_names, relations)


def _invent(rng: random.Random, n: int, syllables: int, taken: set[str]) -> tuple[str, ...]:
    """``n`` pronounceable capitalised words that are not in ``taken`` (which grows by them)."""
    words: list[str] = []
    while len(words) < n:
        word = "".join(rng.choice("bdfgklmnprstvz") + rng.choice("aeiou") for _ in range(syllables))
        word += rng.choice(["", "n", "r", "l", "s", "th"])
        if word not in taken:
            taken.add(word)
            words.append(word.capitalize())
    return tuple(words)
