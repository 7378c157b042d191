"""What has been published or claimed, number by number, and who said it?

Every data row of ``reference/*.csv`` becomes one ``Entry`` with a source class, so that a claim of the document this
project started from can never pass for a number of the paper (most of those claims contradict it), and neither for
a measurement of ours.
"""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from harness.errors import InputError, unknown
from results.ledger.conditions import Cell, Conditions, conditions

REFERENCE = Path(__file__).parents[1] / "reference"

SOURCE_CLASSES = {
    "paper": "printed in the REFRAG paper, arXiv:2509.01092v2",
    "paper-figure": "read off a curve of that paper, so known only to the accuracy that the source states",
    "seed-claim": "the comparison document that this project started from; not the paper",
    "cepe-repo": "code, configuration or issues of the released CEPE",
    "third-party": "another paper, or a summary that nobody checked against its original",
    "derived": "arithmetic on published numbers, or a comparison of them; printed by no source",
}

NUMBER_HEADER = ["table", "row/method", "column/metric", "value", "unit", "source"]
DISCREPANCY_HEADER = ["item", "seed", "paper", "verdict", "where"]

_NUMBER = re.compile(r"[+-]?\d+(\.\d+)?([eE][+-]?\d+)?")
_PAGE = re.compile(r"\bp\.(\d+(?:-\d+)?)")


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """One published cell. ``value`` is a number where the cell is one, else its text (``OOM``, ``256-500``).

    ``printed`` keeps the cell as it was printed, because its decimals say how far the number was rounded.
    ``page`` is the first page that ``source`` names, empty where it names none. ``conditions`` are what the source says
    it was measured under (``results.ledger.conditions``).
    """

    table: str
    row: str
    column: str
    value: float | str
    printed: str
    unit: str
    source: str
    source_class: str
    page: str
    file: str
    conditions: Conditions


def read_ledger(folder: Path = REFERENCE) -> list[Entry]:
    """Every data row of every CSV in ``folder``, in the order of file names and rows.

    Raises ``InputError`` on a file whose columns are neither of the two known kinds, a row of the wrong width, a source
    that belongs to no class, and words that conditions cannot be read from: a number of unknown origin is not let in.
    """
    return list(_read(folder))


@lru_cache
def _read(folder: Path) -> tuple[Entry, ...]:
    """Once: what is published does not change while a command runs."""
    files = sorted(folder.glob("*.csv"))
    if not files:
        raise InputError(f"no CSV file of published numbers in {folder}")
    return tuple(entry for path in files for entry in _read_file(path))


def filter(
    entries: Iterable[Entry], *, table: str | None = None, source_class: str | None = None, file: str | None = None
) -> list[Entry]:
    """The entries of one table, one source class and one file (the seed numbers its tables as the paper does).

    Raises ``InputError`` on a source class that does not exist, or a table or file that none of ``entries`` is from.
    """
    entries = list(entries)
    if source_class is not None and source_class not in SOURCE_CLASSES:
        raise unknown("source class", source_class, SOURCE_CLASSES)
    if table is not None and table not in {entry.table for entry in entries}:
        raise unknown("table", table, {entry.table for entry in entries})
    if file is not None and file not in {entry.file for entry in entries}:
        raise unknown("file", file, {entry.file for entry in entries})
    wanted = (table, source_class, file)
    return [
        entry
        for entry in entries
        if all(
            one in (None, own) for one, own in zip(wanted, (entry.table, entry.source_class, entry.file), strict=True)
        )
    ]


def _read_file(path: Path) -> Iterator[Entry]:
    with path.open(encoding="utf-8", newline="") as file:
        rows = csv.reader(file)
        header = next(rows, [])
        if header not in (NUMBER_HEADER, DISCREPANCY_HEADER):
            raise InputError(f"{path}: expected the columns {','.join(NUMBER_HEADER)}, got {','.join(header)}")
        for cells in rows:
            if len(cells) != len(header):
                raise InputError(f"{path}, line {rows.line_num}: expected {len(header)} cells, got {len(cells)}")
            yield _number(path, cells) if header == NUMBER_HEADER else _discrepancy(path, cells)


def _number(path: Path, cells: list[str]) -> Entry:
    table, row, column, printed, unit, source = cells
    source_class = _source_class(path, source)
    try:
        measured_under = conditions(Cell(file=path.name, table=table, row=row, column=column, unit=unit, source=source))
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    return Entry(
        table=table,
        row=row,
        column=column,
        value=_value(printed),
        printed=printed,
        unit=unit,
        source=source,
        source_class=source_class,
        page=_page(source),
        file=path.name,
        conditions=measured_under,
    )


def _discrepancy(path: Path, cells: list[str]) -> Entry:
    """A line of the comparison "seed against paper": our verdict, so ``derived``, with both texts in the source."""
    item, seed, paper, verdict, where = cells
    return Entry(
        table="seed against paper",
        row=item,
        column="verdict",
        value=verdict,
        printed=verdict,
        unit="",
        source=f"{where}; seed: {seed}; paper: {paper}",
        source_class="derived",
        page=_page(where),
        file=path.name,
        conditions={},
    )


def _value(printed: str) -> float | str:
    if _NUMBER.fullmatch(printed) and math.isfinite(float(printed)):
        return float(printed)
    return printed


def _page(source: str) -> str:
    found = _PAGE.search(source)
    return found[1] if found else ""


def _source_class(path: Path, source: str) -> str:
    if source == "seed":
        return "seed-claim"
    if source.startswith("derived"):
        return "derived"
    if source.startswith("arXiv:2509.01092v2 "):
        return "paper-figure" if "digitised" in source else "paper"
    if source.startswith(("princeton-nlp/CEPE@", "github.com/princeton-nlp/CEPE/")):
        return "cepe-repo"
    if source.startswith(("arXiv:2402.16617 ", "secondary summary", "SharedLLM paper")):
        return "third-party"
    raise InputError(
        f"{path}: the source {source!r} belongs to no source class; valid choices: {', '.join(SOURCE_CLASSES)}"
    )
