"""The whole vocabulary on one page: what a system, a suite and a retriever are.

    question -> retrieval -> passages -> encode -> generate -> text -> score -> record

The seam between ``encode`` and ``generate`` is what makes latency honest. "TTFT cached" and "TTFT not cached"
are only whether the clock starts after or before ``encode``, so one run gives both; and a generator cannot
misreport its own latency, because the harness times the columns as they come out.

These are protocols, not base classes: helpers that systems share are functions that they call.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

if TYPE_CHECKING:
    from torch import Tensor

ContextT = TypeVar("ContextT")


@dataclass(frozen=True, kw_only=True, slots=True)
class Passage:
    """A retrieved text. ``id`` is unique within its corpus."""

    id: str
    title: str
    text: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Hit:
    """A passage that a retriever returned, with the retriever's own score (higher is better)."""

    passage: Passage
    score: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Example:
    """One question with its gold answers and the passages that every system sees."""

    id: str
    question: str
    answers: tuple[str, ...]
    passages: tuple[Passage, ...] = ()
    meta: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class Demonstration:
    """A question with its answer, and the passage that goes with it, shown before the question that is asked."""

    question: str
    answer: str
    passage: Passage | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Usage:
    """Decoder positions that the prompt occupies, and how many of the given passages found room in it.

    ``stored_bytes`` is what a store would keep of ``encode`` for those passages (chunk embeddings, keys and values),
    at the precision that it was computed in; 0 where ``encode`` makes nothing that a model computed, or nothing that
    belongs to one passage.
    """

    decoder_positions: int
    passages_read: int
    stored_bytes: int = 0


class System(Protocol[ContextT]):
    """One way of answering from passages. Yields tokens; never times itself."""

    pad_id: int

    def check(self, questions: Sequence[str], *, max_new_tokens: int) -> None:
        """Raise ``InputError`` naming the first question that can never be answered (longer than the context)."""

    def encode(self, passages: Sequence[Sequence[Passage]]) -> ContextT:
        """Prepare B lists of passages. Must not see the question, so that the result can be cached."""

    def generate(self, questions: Sequence[str], context: ContextT, *, max_new_tokens: int) -> Iterator[Tensor]:
        """Yield token columns (B,), one per step; a finished row yields its pad token."""

    def usage(self, questions: Sequence[str], context: ContextT, *, max_new_tokens: int) -> list[Usage]:
        """What each question costs. Called outside the clock."""

    def text(self, columns: Sequence[Tensor]) -> list[str]:
        """The B answers that a sequence of token columns spells."""


class Suite(Protocol):
    """Supplies questions and scores answers."""

    name: str

    @property
    def demonstrations(self) -> Sequence[Demonstration]:
        """What is shown before every question; empty unless the suite was built with ``shots``."""

    def examples(self) -> Iterable[Example]:
        """The questions, in the same order every time."""

    def score(self, example: Example, text: str) -> dict[str, float]:
        """What ``text`` scores as the answer to ``example``: fractions by metric name.

        A name that only some examples have (``em@50``) is averaged over those.
        """


class Retriever(Protocol):
    """Finds passages. ``search`` returns one list per question, best first."""

    def search(self, questions: Sequence[str], k: int) -> list[list[Hit]]:
        """The ``k`` best passages of each question (all, where the corpus has fewer), best first."""
