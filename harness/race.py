"""Who answers first? Time to the first token of several systems on the same prompts, one prompt at a time.

Every prompt goes through all lanes before the next one comes, and the order turns by one each time, so that whatever
drifts hits all alike. The first lane is the reference; a second lane of the same system measures the noise (A/A).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from harness.protocol import Example, System
from harness.timing import timed_batch

if TYPE_CHECKING:
    import torch

WARM_UP = 3  # prompts that every lane answers before the clock counts; all prompts of a race have one shape


@dataclass
class Lane:
    """One system's seconds, prompt by prompt: passages encoded before ("cached") or inside ("not cached")."""

    cached_s: list[float] = field(default_factory=list)
    not_cached_s: list[float] = field(default_factory=list)


def race(
    systems: Sequence[System[Any]],
    examples: Sequence[Example],
    device: torch.device,
    progress: Callable[..., None] | None = None,
) -> list[Lane]:
    """Time every system on every example, batch size 1; the first ``WARM_UP`` examples are not counted."""
    lanes = [Lane() for _ in systems]
    for index, example in enumerate(examples):
        order = list(range(len(systems)))
        random.Random(index).shuffle(order)  # no lane always finds the caches that the same other one left
        for number in order:
            timed = _first_token(systems[number], example, device)
            if index >= WARM_UP:
                lanes[number].cached_s.append(timed.ttft_s)
                lanes[number].not_cached_s.append(timed.ttft_with_encode_s)
        if progress:
            progress(index + 1, len(examples))
    return lanes


def _first_token(system: System[Any], example: Example, device: torch.device) -> Any:
    return timed_batch(
        lambda: system.encode([example.passages]),
        lambda context: system.generate([example.question], context, max_new_tokens=1),
        device,
        system.pad_id,
    )
