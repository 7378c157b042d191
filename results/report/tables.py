"""How does a table look on the page? As every other form of it, with a number to sort a cell by and what it opens.

The texts are those of the tables in Markdown (``results.grids.Grid``), whose links to records become panels.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from results.experiments import comparison, cost, formats
from results.experiments.accuracy import Table
from results.grids import Grid, parts
from results.records import Record
from results.replication.layouts import Layout
from results.report.panels import Panels

TIMED = ("TTFT, ms", "Speed-up", "TTIT, ms", "Tokens/s")
_NUMBER = re.compile(r"[<>≤≥~≈±$]?\s*([+-]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?:[eE][+-]?\d+)?)(?:\s?([KMB])\b)?")
_BRACKETS = re.compile(r"\[[^\]]*\]")
_TIMES = {"": 1.0, "K": 1e3, "M": 1e6, "B": 1e9}


@dataclass(frozen=True, kw_only=True, slots=True)
class PageCell:
    """``parts`` are texts, each with the number of the panel that it opens; ``value`` is what the column sorts by."""

    parts: tuple[tuple[str, int | None], ...]
    value: float | None

    @property
    def text(self) -> str:
        return "".join(text for text, _ in self.parts)


@dataclass(frozen=True, kw_only=True, slots=True)
class PageTable:
    """A table; ``name`` is that of its files, and its place on the page."""

    name: str
    title: str
    head: tuple[str, ...]
    lines: tuple[tuple[PageCell, ...], ...]
    notes: tuple[str, ...]

    @property
    def words(self) -> list[bool]:
        """Of each column, whether fewer than half of its filled cells start with a number: it then stands left."""
        return [_is_words([cell for cell in column if cell.text != "-"]) for column in zip(*self.lines, strict=True)]


def of_grid(name: str, grid: Grid, panels: Panels, sources: Iterable[Sequence[Path | None]] = ()) -> PageTable:
    """``grid``, its links relative to the page's folder. ``sources`` are the files of cells that have no link."""
    files = list(sources) or [[None] * len(grid.head)] * len(grid.lines)
    return PageTable(
        name=name,
        title=grid.title,
        head=tuple(grid.head),
        lines=tuple(
            tuple(_cell(text, path, panels) for text, path in zip(line, paths, strict=True))
            for line, paths in zip(grid.lines, files, strict=True)
        ),
        notes=tuple(grid.notes),
    )


def of_accuracy(table: Table, panels: Panels) -> PageTable:
    return of_grid(table.experiment, formats.to_grid(table, panels.folder), panels)


def of_cost(table: cost.CostTable, panels: Panels) -> PageTable:
    """Every figure opens the record that it is from: those of speed open the race."""
    sources = [[None, *(_path(line.source(name)) for name in table.columns)] for line in table.lines]
    return of_grid(table.name, cost.to_grid(table, panels.folder), panels, sources)


def of_layout(layout: Layout, panels: Panels) -> PageTable:
    return of_grid(layout.name, layout.grid(panels.folder), panels)


def of_comparison(path: Path, document: Mapping[str, Any], panels: Panels) -> PageTable:
    """The differences of each line open the document with the tests."""
    grid = comparison.to_grid(document)
    at = list(grid.head).index("Difference")
    sources = [[path if place == at else None for place in range(len(grid.head))] for _ in grid.lines]
    return of_grid(f"comparison-{document['name']}", grid, panels, sources)


def of_latency(name: str, grid: Grid, path: Path, panels: Panels) -> PageTable:
    """Measured times and ratios open the conditions of their journal."""
    timed = [column in TIMED for column in grid.head]
    return of_grid(name, grid, panels, [[path if own else None for own in timed] for _ in grid.lines])


def number(text: str) -> float | None:
    """The number that ``text`` starts with; K, M and B after it are thousands, millions and billions."""
    found = _NUMBER.match(text)
    return float(found[1].replace(",", "")) * _TIMES[found[2] or ""] if found else None


def _cell(text: str, path: Path | None, panels: Panels) -> PageCell:
    found = parts(text)
    linked = [(part, panels.number(panels.folder / target) if target else None) for part, target in found]
    value = number("".join(part for part, _ in found))
    if path and value is not None and len(found) == 1:
        first, space, rest = text.partition(" ")
        linked = [(first, panels.number(path)), (space + rest, None)]
    whole = [(_BRACKETS.sub(lambda found: found[0].replace(" ", "\N{NO-BREAK SPACE}"), part), n) for part, n in linked]
    return PageCell(parts=tuple(whole), value=value)


def _is_words(cells: Sequence[PageCell]) -> bool:
    return 2 * sum(cell.value is not None for cell in cells) < len(cells)


def _path(record: Record | None) -> Path | None:
    return record.path if record else None
