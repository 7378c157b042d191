"""Time several ways of doing one thing in turn (A, B, A, B, ...), so that a busy machine is unfair to none."""

import statistics
import time
from collections.abc import Callable, Hashable, Mapping
from typing import TypeVar

Work = Callable[[], int]
Way = TypeVar("Way", bound=Hashable)


def interleave(ways: Mapping[Way, Work], rounds: int) -> dict[Way, list[float]]:
    """Units per second of each way in each round. A way returns how many units (tokens, questions) it did."""
    for work in ways.values():
        work()  # every shape is warmed up apart
    rates: dict[Way, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, work in ways.items():
            start = time.perf_counter()
            units = work()
            rates[name].append(units / (time.perf_counter() - start))
    return rates


def report(title: str, unit: str, rates: dict[str, list[float]], ours: str) -> None:
    """Median, smallest and largest rate of each way, and the median of our ratio to it, round by round."""
    print(f"\n{title}")
    for name, values in rates.items():
        ratio = statistics.median(a / b for a, b in zip(rates[ours], values, strict=True))
        spread = f"[{min(values):,.0f}, {max(values):,.0f}]"
        print(f"  {name:32} {statistics.median(values):10,.0f} {spread:>20} {unit}   {ours} is {ratio:.2f}x")
