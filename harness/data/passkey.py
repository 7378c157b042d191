"""Passkey retrieval: the words of Landmark Attention's test (arXiv:2305.16300), and keys to put in them.

    The pass key is 94027. Remember it. 94027 is the pass key.

hidden in "The grass is green. The sky is blue. ..." With several keys in one context each has an owner ("The pass key
of Nadir Tovun is ..."), and the question says whose is asked for. Owners are people of the synthetic world.

Numbers whose digits add up to a multiple of five are test keys and never occur in training; any digit can still stand
anywhere in them.
"""

from __future__ import annotations

import random

from harness.data.world.facts import Split, draw_person
from harness.data.world.lexicon import lexicon

INSTRUCTIONS = (
    "There is an important info hidden inside a lot of irrelevant text. Find it and memorize them. "
    "I will quiz you about the important information there."
)
FILLER = tuple(
    "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again.".split()
)
TEST_FOLD = 5
TRAINED_LENGTH = 512  # tokens of context at the most in the project's own training (world/memory_practice.py)


def is_test(key: str) -> bool:
    """Whether a key is reserved for testing (one in five)."""
    return sum(map(int, key)) % TEST_FOLD == 0


def draw_key(rng: random.Random, digits: int, split: Split) -> str:
    """A number of so many digits, the first of them not 0."""
    while True:
        key = str(rng.randrange(10 ** (digits - 1), 10**digits))
        if is_test(key) == (split == "test"):
            return key


def draw_owner(rng: random.Random, split: Split) -> str:
    """Somebody of the split, by name."""
    words = lexicon()
    first, last = draw_person(rng, split)
    return f"{words.first_names[first]} {words.last_names[last]}"


def statement(key: str, owner: str | None) -> str:
    """What is hidden; None is the one key of the context."""
    of = f" of {owner}" if owner else ""
    return f"The pass key{of} is {key}. Remember it. {key} is the pass key{of}."


def question(owner: str | None) -> str:
    """What is asked. The prompt template brings the question mark and what an answer starts with."""
    return f"What is the pass key of {owner}" if owner else "What is the pass key"
