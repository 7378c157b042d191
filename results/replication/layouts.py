"""What is a table in which published numbers and ours stand beside each other? Lines by columns; a cell has one source.

Every cell holds exactly one of four things: a published ``entry`` of the ledger, a value of our ``own``, what it would
take (``takes``) where we have none, or the word that a source says nothing (``silent``). A published number has no way
into a cell of ours: ``own`` is made from records, from journals or by arithmetic, never from an ``Entry``.
"""

from __future__ import annotations

import csv
import io
import string
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from results.grids import Grid, link, linked
from results.ledger.entries import Entry

SEED, PAPER, OURS = "seed", "paper", "ours"
DIFFERS, IMPOSSIBLE = "≠", "!"
PAGE, NARROWEST = 150, 12  # letters: of a line that is still readable, and of a column
CSV_HEAD = (
    "table", "row", "column", "source", "status", "value", "low", "high", "n", "unit", "source_class", "page", "from",
    "marks", "at",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class Own:
    """A value of ours as ``text``; ``value`` is its number where it is one, with an interval where one exists.

    ``measured`` came from a clock or a score, ``computed`` from code and configuration alone. ``path`` is the record.
    ``at`` says what it is of, where that is not what its row and column say.
    """

    text: str
    how: Literal["measured", "computed"]
    value: float | None = None
    low: float | None = None
    high: float | None = None
    n: int | None = None
    path: Path | None = None
    at: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Cell:
    """One cell. ``marks`` start with ``DIFFERS`` (from the other source) or ``IMPOSSIBLE``, then say why.

    Raises ``ValueError`` unless it has exactly one of the four contents.
    """

    row: str
    column: str
    source: str
    entry: Entry | None = None
    own: Own | None = None
    takes: str | None = None
    silent: str | None = None
    marks: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        contents = [self.entry, self.own, self.takes, self.silent]
        if sum(content is not None for content in contents) != 1:
            raise ValueError(f"{self.row}, {self.column}: expected one content of a cell, got {contents}")
        if (self.entry is not None and self.source == OURS) or (self.own is not None and self.source != OURS):
            raise ValueError(f"{self.row}, {self.column}: a published number and ours in each other's place")

    @property
    def status(self) -> str:
        if self.own:
            return self.own.how
        if self.entry:
            return "published"
        return "not measured" if self.takes else "not published"


@dataclass(frozen=True, kw_only=True, slots=True)
class Line:
    """One line: a row of the table as one source has it, or (``source`` empty) as every column's own source has it."""

    row: str
    source: str
    cells: tuple[Cell, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Layout:
    """A table by name. ``notes`` are its conditions; every line has a cell for every column."""

    name: str
    title: str
    columns: tuple[str, ...]
    lines: tuple[Line, ...]
    notes: tuple[str, ...]

    def __post_init__(self) -> None:
        for line in self.lines:
            if tuple(cell.column for cell in line.cells) != self.columns:
                raise ValueError(f"{self.name}, {line.row}: expected a cell for each of {self.columns}")

    @property
    def cells(self) -> Iterator[Cell]:
        return (cell for line in self.lines for cell in line.cells)

    def grid(self, folder: Path) -> Grid:
        """The table as text, what it would take and why a cell is marked as notes; links as seen from ``folder``."""
        takes = list(dict.fromkeys(cell.takes for cell in self.cells if cell.takes))
        letters = dict(zip(takes, string.ascii_lowercase, strict=False))
        sources = any(line.source for line in self.lines)
        lines = [
            [line.row, *([line.source] if sources else []), *(_text(cell, letters, folder) for cell in line.cells)]
            for line in self.lines
        ]
        return Grid(
            title=self.title,
            head=["", *(["Source"] if sources else []), *self.columns],
            lines=lines,
            notes=[
                *self.notes,
                *(f"({letters[need]}) not measured; it takes {need}." for need in takes),
                *_legend(self.cells),
            ],
            wrap=max(NARROWEST, PAGE // (1 + sources + len(self.columns))),
        )

    def csv(self, folder: Path) -> str:
        """``long_form`` as CSV, one cell a line."""
        text = io.StringIO()
        writer = csv.DictWriter(text, fieldnames=CSV_HEAD, lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.long_form(folder))
        return text.getvalue()

    def long_form(self, folder: Path) -> list[dict[str, str | int | float | None]]:
        """One mapping a cell, its keys ``CSV_HEAD``; a value that is no number is text."""
        return [
            dict(
                zip(
                    CSV_HEAD,
                    (self.name, cell.row, cell.column, cell.source, cell.status, *_values(cell, folder)),
                    strict=True,
                )
            )
            for cell in self.cells
        ]


def _values(cell: Cell, folder: Path) -> Sequence[str | int | float | None]:
    marks = "; ".join(cell.marks)
    if own := cell.own:
        where = link(own.path, folder) if own.path else None
        value = own.text if own.value is None else own.value
        return value, own.low, own.high, own.n, None, None, None, where, marks, own.at
    if entry := cell.entry:
        return entry.printed, None, None, None, entry.unit, entry.source_class, entry.page, entry.source, marks, None
    return cell.takes or cell.silent, None, None, None, None, None, None, None, marks, None


def _text(cell: Cell, letters: dict[str, str], folder: Path) -> str:
    signs = "".join(f" {mark[0]}" for mark in cell.marks)
    if own := cell.own:
        return (linked(own.text, own.path, folder) if own.path else own.text) + signs
    if cell.entry:
        return cell.entry.printed + signs
    return f"({letters[cell.takes]})" if cell.takes else f"{cell.silent}{signs}"


def _legend(cells: Iterator[Cell]) -> list[str]:
    """What the signs mean: once for ``DIFFERS``, each reason for ``IMPOSSIBLE``."""
    marks = list(dict.fromkeys(mark for cell in cells for mark in cell.marks))
    differs = [f"{DIFFERS}: this source and the one beside it disagree."] if DIFFERS in {m[0] for m in marks} else []
    return differs + [f"{mark[0]}: {mark[1:].strip()}." for mark in marks if mark[0] == IMPOSSIBLE]
