"""Look-ups of two steps in the synthetic world, the second of them so many tokens before the first.

    [others] [what is true of B] [filler: ``distance`` tokens] [the teacher of A is B. the teacher of C is D.]

"What is the sport of the teacher of A?" needs both; "What is the sport of B?" is the one-step control over the same
passages with the same answer, which lies as far away. D's facts are told too, so that following any link is not enough;
the passages between tell of other people. Links name people by both words ("The teacher of A is First Last."), all else
is stated as everywhere in the world.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from harness.data.haystack import Ruler
from harness.data.world.facts import (
    Biography,
    Person,
    Split,
    count_people,
    draw_biography,
    draw_person,
    draw_relations,
    state,
)
from harness.data.world.lexicon import lexicon
from harness.errors import InputError

LINKS = ("teacher", "rival")  # relations to another person
TRAINED_DISTANCE = 352  # tokens at the most in the project's own training; with all around it passkey.TRAINED_LENGTH
BEFORE = 3  # at most so many passages stand before the first that matters


@dataclass(frozen=True, kw_only=True)
class LookUp:
    """One answer, and the two questions that have it."""

    two_steps: str
    one_step: str
    answer: str


@dataclass(frozen=True, kw_only=True)
class Chain:
    """Passages, what is looked up at the set distance, and the other look-up over the same passages."""

    passages: tuple[str, ...]
    far: LookUp
    other: LookUp


def draw_chain(rng: random.Random, ruler: Ruler, split: Split, *, distance: int, piece: int) -> Chain:
    """A chain whose passages have ``piece`` tokens each. Raises ``InputError`` for a distance that is no multiple."""
    if piece < 1 or distance < piece or distance % piece:
        raise InputError(
            f"expected a distance that is a multiple of {piece}, the tokens of a passage, and at least one; "
            f"got {distance}"
        )
    n = distance // piece
    before = rng.randrange(BEFORE + 1)
    asker, b, other, d, *rest = _people(rng, 4 + before + n - 1, split)
    relation = rng.choice([r.index for r in lexicon().relations if r.name not in LINKS])
    told_b, told_d = (_knowing(rng, person, relation) for person in (b, d))
    others = [draw_biography(rng, person, draw_relations(rng)) for person in rest]
    between = [*others[before:], told_d]
    rng.shuffle(between)
    link = rng.choice([r for r in lexicon().relations if r.name in LINKS])
    noun = rng.choice(link.nouns)
    links = [
        f"{rng.choice(['The', 'Known'])} {noun} of {_name(who)} {rng.choice(['is', 'was'])} {_name(whom)}."
        for who, whom in ((asker, b), (other, d))
    ]
    rng.shuffle(links)
    told = [state(rng, biography) for biography in (*others[:before], told_b, *between)]
    asked = rng.choice(lexicon().relations[relation].nouns)

    def look_up(who: Person, told: Biography) -> LookUp:
        return LookUp(
            two_steps=f"What is the {asked} of the {noun} of {_name(who)}",
            one_step=f"What is the {asked} of {told.name}",
            answer=told.value(relation),
        )

    return Chain(
        passages=tuple(_to_length(ruler, [*told, " ".join(links)], piece)),
        far=look_up(asker, told_b),
        other=look_up(other, told_d),
    )


def _people(rng: random.Random, n: int, split: Split) -> list[Person]:
    if n > (there := count_people(split)):
        raise InputError(f"the world has {there} people of the {split} split; a distance that needs {n} is too long")
    people: dict[Person, None] = {}
    while len(people) < n:
        people[draw_person(rng, split)] = None
    return list(people)


def _knowing(rng: random.Random, person: Person, relation: int) -> Biography:
    """A biography that has ``relation``."""
    relations = draw_relations(rng)
    if relation not in relations:
        relations[rng.randrange(len(relations))] = relation
    return draw_biography(rng, person, relations)


def _name(person: Person) -> str:
    return Biography(person, ()).name


def _to_length(ruler: Ruler, texts: Sequence[str], piece: int) -> list[str]:
    filled = []
    for text, tokens in zip(texts, ruler.lengths(texts), strict=True):
        if tokens > piece:
            raise InputError(f"{text!r} takes {tokens} tokens; a passage has {piece}")
        filled.append(" ".join([text, *[ruler.padding] * (piece - tokens)]))
    return filled
