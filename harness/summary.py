"""From the rows of a journal to the metrics of its record: for the run that writes them, and for whoever checks it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from typing import Any

from harness import metrics, statistics
from harness.config import plain

BINARY = metrics.BINARY | {"oracle_hit", "other_link"}


def summarise(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Each score and usage figure: mean, interval and n over the rows without an error that have it.

    ``em@4`` is an ``em`` of some of the examples, and gets its kind of interval.
    """
    return summarise_all([columns(rows)])[0]


def columns(rows: Iterable[dict[str, Any]]) -> dict[str, list[float]]:
    """The values of each score and usage figure, of the rows without an error that have it."""
    scored = [row["scores"] | row["usage"] for row in rows if "scores" in row]
    names = dict.fromkeys(chain.from_iterable(scored))
    return {name: [scores[name] for scores in scored if name in scores] for name in names}


def summarise_all(runs: Sequence[Mapping[str, Sequence[float]]]) -> list[dict[str, Any]]:
    """``summarise`` for the ``columns`` of many runs at once, in far less time than one by one."""
    bootstrapped: dict[int, dict[tuple[int, str], Sequence[float]]] = {}
    intervals: dict[tuple[int, str], statistics.Interval] = {}
    for run, figures in enumerate(runs):
        for name, values in figures.items():
            if name.partition("@")[0] in BINARY:
                intervals[run, name] = statistics.interval(values, binary=True)
            else:
                bootstrapped.setdefault(len(values), {})[run, name] = values
    for alike in bootstrapped.values():
        intervals |= zip(alike, statistics.bootstrap_means(list(alike.values())), strict=True)
    return [{name: plain(intervals[run, name]) for name in figures} for run, figures in enumerate(runs)]
