"""Times of two commits, in turn: one prompt at a time through both, every lane, each in a process that waits meanwhile.

    round r:  lane 1 of the one commit, lane 1 of the other; lane 2 of the one, of the other; ...

Which commit goes first changes from round to round, and the order of lanes is drawn afresh, so that whatever drifts
hits both alike. The same lane of both stands side by side in time: what is judged is their ratio.
"""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from results.gate.times import FIGURES, Rounds

TOKENS = 9  # of every answer: the first one, and 8 steps of the decode loop
WARM_UP = 5  # rounds that are not counted
PROMPTS = 60  # different prompts, asked in turn; all have one shape


class Timed(Protocol):
    """A commit at work (``slurm.gate.asking.Worker``)."""

    def ask(self, what: str, **given: Any) -> Any: ...


def measure(
    first: Timed,
    second: Timed,
    lanes: Sequence[str],
    rounds: int,
    prompts: int,
    progress: Callable[..., None] | None = None,
) -> Rounds:
    """``rounds`` rounds of both, whose systems are open already (``open``); seconds by lane and figure."""
    seconds: tuple[dict[str, dict[str, list[float]]], ...] = tuple(
        {lane: {figure: [] for figure in FIGURES} for lane in lanes} for _ in range(2)
    )
    for number in range(-WARM_UP, rounds):
        order = list(lanes)
        random.Random(number).shuffle(order)
        turn = (0, 1) if number % 2 else (1, 0)
        for lane in order:
            for side in turn:
                timed = (first, second)[side].ask("answer", lane=lane, prompt=number % prompts, tokens=TOKENS)
                if number >= 0:
                    for figure, value in _figures(timed).items():
                        seconds[side][lane][figure].append(value)
        if progress:
            progress(number + WARM_UP + 1, rounds + WARM_UP)
    return Rounds(first=seconds[0], second=seconds[1])


def _figures(timed: dict[str, Any]) -> dict[str, float]:
    """What one answer gives; the steps after the first as their median, which one interrupted step does not move."""
    return {
        "ttft": timed["ttft_s"],
        "ttft_not_cached": timed["ttft_with_encode_s"],
        "ttit": statistics.median(timed["ttit_s"]),
    }
