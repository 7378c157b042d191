"""Finding one published number among the ledger's, and putting a table together line by line.

A result table has a line per row and source: the seed's claim, the paper's number, ours.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from results.ledger.entries import Entry
from results.replication.layouts import DIFFERS, OURS, PAPER, SEED, Cell, Line, Own

VERDICTS = "seed against paper"
NOT_PRINTED = "not printed"
Fill = Callable[[str, str], Cell]


class Ledger:
    """The entries by source class, table, row and column."""

    def __init__(self, entries: Sequence[Entry]) -> None:
        self.entries = entries
        self._cells = {(e.source_class, e.table, e.row, e.column): e for e in entries}
        self._verdicts = {e.row: e for e in entries if e.table == VERDICTS}

    def claim(self, table: str, row: str, column: str) -> Entry:
        """What the seed says. Raises ``KeyError`` where it says nothing of the kind."""
        return self._cells["seed-claim", table, row, column]

    def paper(self, table: str, row: str, column: str) -> Entry:
        """What the paper prints, or what its curve shows. Raises ``KeyError`` where it does not."""
        found = self._cells.get(("paper", table, row, column))
        return found or self._cells["paper-figure", table, row, column]

    def derived(self, table: str, row: str, column: str) -> Entry:
        """Arithmetic on what the paper prints."""
        return self._cells["derived", table, row, column]

    def verdict(self, item: str) -> Entry:
        """The comparison of the seed's claim with the paper."""
        return self._verdicts[item]

    def rows(self, table: str) -> list[str]:
        """The rows of one of the paper's tables, as printed."""
        return list(dict.fromkeys(e.row for e in self.entries if (e.table, e.source_class) == (table, "paper")))

    def columns(self, table: str) -> list[str]:
        """Its columns, those that every row has."""
        rows = self.rows(table)
        names = dict.fromkeys(e.column for e in self.entries if (e.table, e.source_class) == (table, "paper"))
        return [name for name in names if all(("paper", table, row, name) in self._cells for row in rows)]


@dataclass(frozen=True, kw_only=True)
class Side:
    """One of the sources of a table, and its cell for a row and a column."""

    heading: str
    fill: Fill


def lines(rows: Sequence[str], columns: Sequence[str], sides: Sequence[Side]) -> tuple[Line, ...]:
    """Every row once for each source."""
    return tuple(
        Line(row=row, source=side.heading, cells=tuple(side.fill(row, column) for column in columns))
        for row in rows
        for side in sides
    )


def claimed(row: str, column: str, entry: Entry, marks: tuple[str, ...] = ()) -> Cell:
    """A cell of the seed document's."""
    return Cell(row=row, column=column, source=SEED, entry=entry, marks=marks)


def printed(row: str, column: str, entry: Entry | None, beside: Entry | None = None) -> Cell:
    """A cell of the paper's, marked where ``beside``, the seed's, disagrees; without an entry it is not printed."""
    if entry is None:
        return Cell(row=row, column=column, source=PAPER, silent=NOT_PRINTED)
    marks = (f"{DIFFERS} seed: {beside.printed}",) if beside and disagree(beside, entry) else ()
    return Cell(row=row, column=column, source=PAPER, entry=entry, marks=marks)


def ours(row: str, column: str, own: Own | None, takes: str, marks: tuple[str, ...] = ()) -> Cell:
    """A cell of ours; without a value it says what one would take."""
    if own is None:
        return Cell(row=row, column=column, source=OURS, takes=takes)
    return Cell(row=row, column=column, source=OURS, own=own, marks=marks)


def disagree(seed: Entry, paper: Entry) -> bool:
    """Two numbers that are not the same, or a verdict that says so."""
    if paper.table == VERDICTS:
        return paper.value == "contradicts"
    return seed.value != paper.value


def rounds_to(value: float, entry: Entry) -> bool:
    """Whether ``value`` is the printed number, as far as it was printed."""
    if isinstance(entry.value, str):
        return False
    decimals = len(entry.printed.partition(".")[2])
    return round(value, decimals) == entry.value
