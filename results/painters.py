"""Who draws the figures? Several of them processes of their own, beside the one that writes the tables.

A figure takes matplotlib about a second, which is most of what drawing everything takes, and none waits for another.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path

Drawing = Callable[[], Mapping[str, bytes]]  # gives a figure as {"png": ..., "svg": ...}

WORTH_PROCESSES = 4  # figures: fewer are drawn before a process has imported what it draws with
AT_MOST = 8  # processes


class Painters:
    """Draws figures in the processes of ``pool`` from the moment on that they are known."""

    def __init__(self, pool: ProcessPoolExecutor) -> None:
        self._pool = pool
        self._begun: dict[Path, Future[Mapping[str, bytes]]] = {}

    def begin(self, figures: Mapping[Path, Drawing]) -> None:
        """Have ``figures`` drawn, each by the path of its files without their suffix; they have to be picklable."""
        self._begun |= {stem: self._pool.submit(drawing) for stem, drawing in figures.items()}

    def files(self) -> dict[Path, bytes]:
        """The files of all figures that were begun, in that order. Raises what drawing one of them raised."""
        return _files({stem: begun.result() for stem, begun in self._begun.items()})


@contextmanager
def painters(figures: int) -> Iterator[Painters | None]:
    """Processes for ``figures`` figures or more, started with the first; None where they would not pay.

    Have everything begun that is to be drawn, and take the files, before the context ends.
    """
    number = min(os.cpu_count() or 1, AT_MOST)
    if number < 2 or figures < WORTH_PROCESSES:
        yield None
        return
    # Spawned: who calls this may have threads, which a fork would leave behind holding their locks.
    pool = ProcessPoolExecutor(number, get_context("spawn"))
    try:
        yield Painters(pool)
    finally:
        pool.shutdown(cancel_futures=True)


def drawn(figures: Mapping[Path, Drawing], by: Painters | None) -> dict[Path, bytes]:
    """The files of ``figures``, by the path of each without their suffix; none yet where painters draw them."""
    if by is None:
        return _files({stem: drawing() for stem, drawing in figures.items()})
    by.begin(figures)
    return {}


def _files(drawn: Mapping[Path, Mapping[str, bytes]]) -> dict[Path, bytes]:
    return {
        stem.with_name(f"{stem.name}.{kind}"): picture
        for stem, kinds in drawn.items()
        for kind, picture in kinds.items()
    }
