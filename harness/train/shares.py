"""Which rows of a batch are one process's? Contiguous, and as equally many as can be.

A batch is drawn and laid out whole, in every process, and then cut: what is random in a layout (which chunks are
expanded) must not depend on how many processes there are. A source that keeps to this by itself (``ByRank``) is asked
for a process's rows alone: at the paper's batches, the others' are most of the work.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, runtime_checkable

from harness.errors import InputError
from harness.train.distributed import total
from harness.train.rows import Batch

if TYPE_CHECKING:
    from harness.train.loop import Batches


@runtime_checkable
class ByRank(Protocol):
    """A source of batches that draws the rows of one process and steps over those of the others."""

    def own(self, rank: int, world: int) -> tuple[Batch, bool]:
        """As ``share`` of the next batch."""


def draw(batches: Batches, rank: int, world: int) -> tuple[Batch, bool, int]:
    """The next batch's rows of process ``rank``, whether there are any, and the tokens of the whole batch."""
    if isinstance(batches, ByRank):
        own, counts = batches.own(rank, world)
        return own, counts, total(int(own["attention_mask"].sum()) if counts else 0)
    whole = next(batches)
    return *share(whole, rank, world), int(whole["attention_mask"].sum())


def bounds(n: int, rank: int, world: int) -> tuple[int, int]:
    """The first of ``n`` rows that is process ``rank``'s, and the one after its last."""
    return rank * n // world, (rank + 1) * n // world


def share(batch: Batch, rank: int, world: int) -> tuple[Batch, bool]:
    """The rows of process ``rank`` of ``world``, and whether there are any.

    Where there are fewer rows than processes, one that has none gets the first row, to do nothing with but keep up
    with the others.
    """
    if world == 1:
        return batch, True
    start, stop = bounds(batch["attention_mask"].shape[0], rank, world)
    return (take_rows(batch, start, stop), True) if stop > start else (take_rows(batch, 0, 1), False)


def take_rows(batch: Batch, start: int, stop: int) -> Batch:
    """The rows from ``start`` to ``stop`` of a batch, as wide as before.

    A batch with chunks (``chunk_rows``) keeps those of its rows, numbered anew from 0, and what the encoder reads for
    them. Raises ``InputError`` where the rows have no chunk: the encoder would run in the other processes alone, and
    they would wait for this one for ever.
    """
    if "first_chunk" not in batch:
        return {name: tensor[start:stop] for name, tensor in batch.items()}
    encoder = {name: tensor for name, tensor in batch.items() if name.startswith("encoder_")}
    rows = {name: tensor[start:stop] for name, tensor in batch.items() if name not in encoder}
    first, count = int(rows["first_chunk"][0]), int(rows["n_chunks"].sum())
    if not count:
        raise InputError(f"rows {start} to {stop - 1} of a batch have no chunk; several processes need one each")
    codes = rows["input_ids"]
    chunk = encoder["encoder_chunk"]
    own = ((chunk >= first) & (chunk < first + count)).any(1)
    return (
        rows
        | {name: tensor[own] for name, tensor in encoder.items()}
        | {
            "input_ids": codes.where(codes >= 0, codes + first),
            "first_chunk": rows["first_chunk"] - first,
            "encoder_chunk": (chunk - first).where(chunk >= 0, chunk)[own],
        }
    )
