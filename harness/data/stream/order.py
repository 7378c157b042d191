"""The one order of all windows, for ever: which window stands at place i? Any place, without those before it.

An epoch is a pseudo-random permutation of its windows, a keyed function and no table: a Feistel network over the
smallest even power of two, walked until it falls among the windows (Black and Rogaway, 2002). So a place costs the
same wherever it lies, memory does not grow with the data (a table of 20 B tokens in windows of 128 takes 1.25 GB per
process), and the order is the same under every version of every library. Place i is in epoch i // (windows of an epoch).

A mixture takes fewer windows of some sets than there are. Which: each epoch goes on in a fixed shuffle of the set where
the one before it stopped, so that over epochs all of it is used evenly, and within an epoch no window comes twice.

What was looked at instead. torchdata's StatefulDataLoader keeps state per worker and does not merge it across ranks, so
4 ranks could not go on as 2. ``datasets``' IterableDataset refills its shuffle buffer on resume: what was in it is
lost, so resume is not exact. Both shuffle a stream through a buffer; windows on disk need none.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from harness.data.stream.mixture import windows_of
from harness.errors import InputError

ROUNDS = 8
LEAST_HALF = 4  # bits: a network over fewer would know only a few permutations
Places = NDArray[np.int64]


def permute(places: Places, n: int, key: str) -> Places:
    """Where each of ``places`` in [0, n) goes under the permutation of [0, n) that ``key`` names."""
    half = max(LEAST_HALF, ((n - 1).bit_length() + 1) // 2)
    keys = np.frombuffer(hashlib.blake2b(key.encode(), digest_size=8 * ROUNDS).digest(), "<u8")
    moved = _feistel(places.astype(np.uint64), half, keys)
    while (outside := moved >= n).any():
        moved[outside] = _feistel(moved[outside], half, keys)
    return moved.astype(np.int64)


def _feistel(values: NDArray[np.uint64], half: int, keys: NDArray[np.uint64]) -> NDArray[np.uint64]:
    bits, mask = np.uint64(half), np.uint64((1 << half) - 1)
    left, right = values >> bits, values & mask
    for key in keys:
        left, right = right, left ^ (_mix(right + key) & mask)
    return (left << bits) | right


def _mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finaliser of SplitMix64, modulo 2^64."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


class Order:
    """The order of the windows of sets of ``sizes`` windows, mixed by ``mixture``, under ``seed``."""

    def __init__(self, sizes: Mapping[str, int], mixture: Mapping[str, float] | None, seed: int) -> None:
        """Raises ``InputError`` where a mixture leaves no window of a set."""
        self.seed = seed
        self.taken = windows_of(sizes, mixture)
        if none := [name for name, count in self.taken.items() if not count]:
            raise InputError(f"the mixture leaves no window of {none[0]}: there are {dict(sizes)}")
        self.sets = sorted(self.taken)
        self._sizes = sizes
        self._until = np.cumsum([self.taken[name] for name in self.sets])
        self.epoch_windows = int(self._until[-1])

    def at(self, places: Places) -> tuple[NDArray[np.intp], Places]:
        """For each of ``places`` (0, 1, ... without end) the number of its set among ``sets``, and of its window."""
        chosen, numbers = np.empty(len(places), np.intp), np.empty(len(places), np.int64)
        epochs = places // self.epoch_windows
        for epoch in np.unique(epochs).tolist():
            here = epochs == epoch
            chosen[here], numbers[here] = self._in_epoch(epoch, places[here] % self.epoch_windows)
        return chosen, numbers

    def _in_epoch(self, epoch: int, places: Places) -> tuple[NDArray[np.intp], Places]:
        slots = permute(places, self.epoch_windows, f"{self.seed}/{epoch}")
        chosen = np.searchsorted(self._until, slots, side="right")
        numbers = slots.copy()
        for index, name in enumerate(self.sets):
            here = chosen == index
            own = slots[here] - (int(self._until[index - 1]) if index else 0)
            size, taken = self._sizes[name], self.taken[name]
            whole = taken == size  # the slots are shuffled as they are
            numbers[here] = own if whole else permute((epoch * taken + own) % size, size, f"{self.seed}/{name}")
        return chosen, numbers
