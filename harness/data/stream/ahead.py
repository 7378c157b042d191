"""Batches made ahead of time, by worker processes: the same batches in the same order, whatever their number.

A batch of a ``Stream`` follows from its number and its place alone, so workers of torch's DataLoader make them from a
list of those, in order. State is where the last batch stands that was *given*: what lies ready is made again after a
resume, so nothing is lost and nothing comes twice.

Workers are forked: what lays rows out knows its model, of which a worker touches no weight.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from harness.data.stream.window_practice import Stream
from harness.errors import InputError
from harness.train.rows import Batch

EACH_AHEAD = 2  # batches that lie ready, by worker

Place = tuple[int, int]  # the number of a batch, and where in the order it begins
Made = tuple[Batch, bool] | InputError


class Places(Sampler[Place]):
    """Every batch of ``stream`` from where that stands now, without end."""

    def __init__(self, stream: Stream) -> None:
        self.stream = stream

    def __iter__(self) -> Iterator[Place]:
        step, place = self.stream.step, self.stream.place
        while True:
            yield step, place
            step, place = self.stream.after(step, place)


class Shares(Dataset[Made]):
    """The rows of process ``rank`` of ``world`` of any batch."""

    def __init__(self, stream: Stream, rank: int, world: int) -> None:
        self.stream, self.rank, self.world = stream, rank, world

    def __getitem__(self, place: Place) -> Made:
        try:
            return self.stream.at(*place, self.rank, self.world)
        except InputError as error:
            return error  # raised where it is waited for, as it is; the DataLoader would wrap it


class Ahead:
    """``stream``, of which ``workers`` processes make the next batches; a source like it (``shares.ByRank``)."""

    def __init__(self, stream: Stream, workers: int) -> None:
        if workers < 1:
            raise InputError(f"expected at least 1 worker that makes batches ahead, got {workers}")
        self.stream, self.workers = stream, workers
        self._of: tuple[int, int] | None = None
        self._ready: Iterator[Made] = iter(())

    def state_dict(self) -> dict[str, Any]:
        return self.stream.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.stream.load_state_dict(state)
        self._of = None

    def __next__(self) -> Batch:
        return self.own(0, 1)[0]

    def own(self, rank: int, world: int) -> tuple[Batch, bool]:
        """As ``Stream.own``."""
        if self._of != (rank, world):
            self._of, self._ready = (rank, world), self._begun(rank, world)
        made = next(self._ready)
        if isinstance(made, InputError):
            self._of, self._ready = None, iter(())
            raise made
        self.stream.advance()
        return made

    def _begun(self, rank: int, world: int) -> Iterator[Made]:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "This DataLoader will create")  # more than cores: it was asked for
            return iter(self._loader(rank, world))

    def _loader(self, rank: int, world: int) -> DataLoader[Made]:
        return DataLoader(
            Shares(self.stream, rank, world),
            sampler=Places(self.stream),
            batch_size=None,
            num_workers=self.workers,
            prefetch_factor=EACH_AHEAD,
            multiprocessing_context="fork",
            worker_init_fn=_alone,
            # Of its own: else beginning would draw from the state that training resumes with, to the bit.
            generator=torch.Generator(),
        )


def _alone(worker: int) -> None:  # noqa: ARG001
    """Workers share the cores among them; none takes several."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    torch.set_num_threads(1)
