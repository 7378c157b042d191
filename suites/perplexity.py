"""Log-perplexity: how well are the next tokens of a long text foretold, given the tokens before them?

Protocol (after arXiv:2509.01092v2, Tables 1 and 2).

1. Windows. Every document of a set is cut from its start, end to end, into windows of ``longest + output`` tokens. What
   is left over, and documents shorter than one window, are left out, and counted.
2. Of each window the last ``output`` tokens are to be predicted; the ``context`` tokens right before them are what a
   system is given. So at every context length the same tokens are predicted, and with none there is one score.
3. BOS stands before everything. The context goes in as passages of 64 tokens, in their order; systems that read it as
   one text see no border between them.
4. Score: -log p of each token in nats, every token given all before it; ``log_perplexity_n`` is the mean over the first
   n predicted tokens (the paper's P512, P1024, P2048). All windows weigh the same, and so do all of their tokens.

Shorter contexts than s are given to nobody: no context is s = 0 of the same suite. The paper states neither how its
windows were chosen nor the base of its logarithm (its levels fit nats).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

from harness.data.text import Text
from harness.data.text_practice import PASSAGE
from harness.errors import InputError
from harness.likelihood import Window
from harness.record import WindowSpec

NAME = "perplexity"
SPLIT = "validation"


@dataclass(frozen=True, kw_only=True)
class PerplexitySuite:
    """Windows of the set ``set`` of a prepared text. ``limit`` takes that many, evenly spread.

    Raises ``InputError`` for lengths that fit nothing.
    """

    text: Text
    set: str
    context: int
    output: int
    outputs: tuple[int, ...]
    longest: int
    limit: int | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.context <= self.longest or self.context % PASSAGE:
            raise InputError(
                f"expected a context of 0 to {self.longest} tokens (the longest), a multiple of {PASSAGE}; "
                f"got {self.context}"
            )
        if not self.outputs or not all(1 <= n <= self.output for n in self.outputs):
            raise InputError(f"expected scores over the first 1 to {self.output} tokens, got {self.outputs}")
        if self.limit is not None and self.limit < 1:
            raise InputError(f"expected a limit of at least 1 window, got {self.limit}")

    @property
    def spec(self) -> WindowSpec:
        """What identifies the windows."""
        return WindowSpec(
            name=NAME,
            dataset=self.text.manifest["dataset"],
            split=SPLIT,
            limit=self.limit,
            root=self.text.name,
            revision=self.text.manifest["revision"],
            set=self.set,
            context=self.context,
            output=self.output,
            outputs=self.outputs,
            longest=self.longest,
            passage=PASSAGE,
        )

    @cached_property
    def windows(self) -> list[Window]:
        """In the order of documents and places. Raises ``InputError`` where there is none."""
        ids, borders = self.text.ids(SPLIT, self.set)
        length = self.longest + self.output
        places = [
            (document, start)
            for document in range(len(borders) - 1)
            for start in range(int(borders[document]), int(borders[document + 1]) - length + 1, length)
        ]
        if not places:
            raise InputError(
                f"no document of {self.set} has {length} tokens (context {self.longest} and output {self.output})"
            )
        if self.limit is not None and self.limit < len(places):
            places = [places[index * len(places) // self.limit] for index in range(self.limit)]
        windows = []
        for document, start in places:
            until = start + self.longest
            windows.append(
                Window(
                    id=f"{self.set}-{document}-{start - int(borders[document])}",
                    document=f"{self.set}-{document}",
                    context=ids[until - self.context : until].tolist(),
                    continuation=ids[until : until + self.output].tolist(),
                )
            )
        return windows

    @property
    def too_short(self) -> int:
        """Documents that give no window."""
        _, borders = self.text.ids(SPLIT, self.set)
        return sum(int(b - a) < self.longest + self.output for a, b in pairwise(borders))

    def score(self, log_p: Sequence[float]) -> dict[str, float]:
        """Minus the mean of the first n of ``log_p``, for each n."""
        return {f"log_perplexity_{n}": -sum(log_p[:n]) / n for n in self.outputs}
