"""Training batches of prepared windows, in the one order of all of them (``order``). The exercises:

- ``WindowParagraph``: x_1:s as context, x_s+1:s+o to be predicted from it (arXiv:2509.01092v2, section 4).
- ``WindowRepeating``: x_1:kL as context, and again as what is to be predicted (reconstruction).

A batch is the next n places of the order, whatever the number of processes, and a process reads and lays out its own
rows alone (``harness.train.shares``): so 4 processes see what 2 see, and none reads for another. What is random in a
row (which chunks are expanded) is drawn from the row's place, not from the rows before it. State is where the order
stands: two numbers.

As with other texts (``harness.data.text_practice``) an exercise is written into a recipe without its windows.
"""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from harness.data.stream.order import Order, Places
from harness.data.stream.windows import Windows, open_windows
from harness.data.text_practice import TextExercise, passages
from harness.data.world.practice import Growing
from harness.errors import InputError
from harness.train.curriculum import build_curriculum
from harness.train.rows import Batch, Row
from harness.train.shares import bounds

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CollateEach = Callable[[Sequence[Row], Sequence[random.Random]], Batch]
"""A batch of rows, each with a generator of its own."""


@dataclass(frozen=True, kw_only=True)
class WindowExercise(TextExercise, ABC):
    """What all exercises over windows share; ``folder`` is where ``harness.data.stream.prepare`` put them."""

    @property
    def windows(self) -> Windows:
        assert self.folder is not None, "an exercise is bound to its windows before it is drawn from"
        return open_windows(self.folder)

    @property
    @abstractmethod
    def longest(self) -> int:
        """Tokens that a row takes of its window at most."""

    @abstractmethod
    def draw(self, rng: random.Random, step: int) -> tuple[int, int]:
        """Tokens that a row takes of its window, and rows of the batch at ``step``."""

    @abstractmethod
    def row(self, ids: list[int], start: list[int]) -> Row:
        """A row of so many tokens of a window, after ``start``."""


@dataclass(frozen=True, kw_only=True)
class Lengthening:
    """How much of a context a batch has, as ``Growing``, but always in ``rows`` rows: the paper counts examples.

    ``steps`` are those of the curriculum, in batches.
    """

    k: int
    steps: int
    max_chunks: int
    rows: int
    curriculum: str = "paper"

    def draw(self, rng: random.Random, step: int) -> tuple[int, int]:
        """Context tokens of a row, and rows of the batch."""
        return build_curriculum(self.curriculum, self.max_chunks).draw(step, self.steps, rng) * self.k, self.rows


@dataclass(frozen=True, kw_only=True)
class WindowParagraph(WindowExercise):
    """``rows`` times ``context`` tokens and, to be predicted, the ``output`` that follow.

    With ``growing`` contexts are as long as that says, and ``context`` at the longest.
    """

    context: int
    output: int
    rows: int
    growing: Lengthening | None = None

    @property
    def longest(self) -> int:
        return self.context + self.output

    def draw(self, rng: random.Random, step: int) -> tuple[int, int]:
        context, rows = self.growing.draw(rng, step) if self.growing else (self.context, self.rows)
        return context + self.output, rows

    def row(self, ids: list[int], start: list[int]) -> Row:
        context = len(ids) - self.output
        row = Row(start=start, context=passages(ids[:context]))
        row.say(ids[context:], answer=True)
        return row


@dataclass(frozen=True, kw_only=True)
class WindowRepeating(WindowExercise):
    """Contexts as long as ``growing`` says, each followed by its own text; the rest of their windows is not read."""

    growing: Growing | Lengthening

    @property
    def longest(self) -> int:
        return self.growing.k * self.growing.max_chunks

    def draw(self, rng: random.Random, step: int) -> tuple[int, int]:
        return self.growing.draw(rng, step)

    def row(self, ids: list[int], start: list[int]) -> Row:
        row = Row(start=start, context=passages(ids))
        row.say(ids, answer=True)
        return row


class Stream:
    """The batches of an exercise over windows; a source that can give a process its own rows alone."""

    def __init__(
        self, exercise: WindowExercise, tokenizer: PreTrainedTokenizerBase, collate: CollateEach, *, seed: int
    ) -> None:
        """Raises ``InputError`` where the windows were made by another tokenizer, or too few of a set for its mixture."""
        self.exercise, self.collate, self.seed = exercise, collate, seed
        self.windows = exercise.windows
        self.windows.check_tokenizer(tokenizer)
        self.order = Order(self.windows.sizes, self.windows.mixture, seed)
        self._start = [tokenizer.bos_token_id] if tokenizer.bos_token_id is not None else []
        self.step = self.place = 0

    def state_dict(self) -> dict[str, Any]:
        """``place`` is how many windows were drawn, ``step`` how many batches; the rest says of what and is checked."""
        return {
            "step": self.step,
            "place": self.place,
            "epoch": self.place // self.order.epoch_windows,
            "seed": self.seed,
            "windows": self.windows.digest,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Raises ``InputError`` where ``state`` is of other windows or of another seed: no place of this order."""
        for what, own in (("windows", self.windows.digest), ("seed", self.seed)):
            if state.get(what) != own:
                raise InputError(f"the checkpoint stands in other data: expected {what} {own}, got {state.get(what)}")
        self.step, self.place = state["step"], state["place"]

    def __next__(self) -> Batch:
        batch, _ = self.own(0, 1)
        return batch

    def own(self, rank: int, world: int) -> tuple[Batch, bool]:
        """The next batch's rows of process ``rank`` of ``world``, and whether there are any (as ``shares.share``)."""
        found = self.at(self.step, self.place, rank, world)
        self.advance()
        return found

    def advance(self) -> None:
        """Step over the next batch."""
        self.step, self.place = self.after(self.step, self.place)

    def after(self, step: int, place: int) -> tuple[int, int]:
        """Where the order stands after batch ``step``, which begins at ``place``."""
        return step + 1, place + self.drawn(step)[1]

    def drawn(self, step: int) -> tuple[int, int]:
        """Tokens that a row of batch ``step`` takes of its window, and its rows."""
        return self.exercise.draw(random.Random(f"{type(self.exercise).__name__}-{self.seed}-{step}"), step)

    def at(self, step: int, place: int, rank: int, world: int) -> tuple[Batch, bool]:
        """As ``own``, of batch ``step``, which begins at ``place``. What comes of it depends on nothing else."""
        length, n = self.drawn(step)
        start, stop = bounds(n, rank, world)
        counts = stop > start
        places = np.arange(start, stop) if counts else np.zeros(1, np.int64)
        ids = self.read(place + places, length)
        rows = [self.exercise.row(row, list(self._start)) for row in ids.tolist()]
        rngs = [random.Random(f"{self.seed}-{place + each}") for each in places.tolist()]
        return self.collate(rows, rngs), counts

    def read(self, places: Places, length: int) -> NDArray[np.int64]:
        """The first ``length`` tokens of the windows at ``places`` of the order, (len(places), length).

        Raises ``InputError`` where windows are shorter.
        """
        if length > self.windows.length:
            raise InputError(
                f"a row takes {length} tokens of a window; {self.windows.folder} has windows of {self.windows.length}"
            )
        chosen, numbers = self.order.at(places)
        ids = np.empty((len(places), length), np.int64)
        for index, name in enumerate(self.order.sets):
            here = chosen == index
            ids[here] = self.windows.read(name, numbers[here])[:, :length]
        return ids
