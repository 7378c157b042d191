"""How is an accuracy table written down? As Markdown, as long-form CSV, and as LaTeX.

Every measured cell carries its interval and a link to its record, relative to the folder that the text will lie in.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

from harness.statistics import Interval
from results.experiments.accuracy import Cell, Row, Table
from results.grids import Grid, environment, link, percent, pipes, tex
from results.records import Record


def to_grid(table: Table, folder: Path) -> Grid:
    """The table as text; links as seen from ``folder``."""
    return Grid(
        title=table.title,
        head=["System", "Passages", *(column.name for column in table.columns)],
        lines=[
            [row.name, row.context, *(_markdown_cell(cell, folder) for cell in cells)] for row, cells in _lines(table)
        ],
        notes=table.notes,
    )


def to_markdown(table: Table, folder: Path) -> str:
    """Title, table and notes, without a heading, so that it fits anywhere in a document."""
    from tabulate import tabulate

    grid = to_grid(table, folder)
    body = tabulate(
        [[pipes(cell) for cell in line] for line in grid.lines],
        headers=[pipes(name) for name in grid.head],
        tablefmt="pipe",
        colalign=("left", "right", *("left" for _ in table.columns)),
        disable_numparse=True,
    )
    notes = "\n".join(f"- {note}" for note in table.notes)
    return f"**{table.title}**\n\n{body}\n\n{notes}\n"


def to_latex(table: Table, folder: Path) -> str:
    """A ``table`` environment (``results.grids.environment``)."""
    head = ["System", "Passages", *(tex(column.name) for column in table.columns)]
    lines = [
        [tex(row.name), tex(row.context), *(_latex_cell(cell, folder) for cell in cells)]
        for row, cells in _lines(table)
    ]
    return environment(table.title, "lr" + "l" * len(table.columns), head, lines, table.notes)


def to_csv(table: Table, folder: Path) -> str:
    """``long_form`` as CSV, one cell a line."""
    cells = long_form(table, folder)
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(cells[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(cells)
    return text.getvalue()


def long_form(table: Table, folder: Path) -> list[dict[str, str | int | float | None]]:
    """One mapping a cell. Scores are fractions as the record has them; what was not measured is None."""
    return [
        {
            "experiment": table.experiment,
            "suite": cell.column.suite,
            "root": cell.column.root,
            "system": cell.row.system,
            "variant": cell.row.variant,
            "passages": cell.row.passages,
            "passages_read": cell.passages_read,
            "metric": table.metric,
            "status": cell.status,
            "mean": cell.score.mean if cell.score else None,
            "low": cell.score.low if cell.score else None,
            "high": cell.score.high if cell.score else None,
            "n": cell.score.n if cell.score else None,
            "method": cell.score.method if cell.score else None,
            "chance": cell.chance.mean if cell.chance else None,
            "errors": cell.record.n_errors if cell.record else None,
            "run_id": cell.record.run_id if cell.record else None,
            "record": link(cell.record.path, folder) if cell.record else None,
        }
        for cell in table.cells
    ]


def _lines(table: Table) -> Iterator[tuple[Row, tuple[Cell, ...]]]:
    width = len(table.columns)
    for i, row in enumerate(table.rows):
        yield row, table.cells[i * width : (i + 1) * width]


def _markdown_cell(cell: Cell, folder: Path) -> str:
    if cell.record is None:
        return cell.status
    target = quote(link(cell.record.path, folder))
    if cell.score is None:
        return f"[{cell.status}]({target}) ({_errors(cell.record)})"
    return f"[{percent(cell.score.mean)}]({target}) {_interval(cell.score)} ({_remarks(cell, cell.score, cell.record)})"


def _latex_cell(cell: Cell, folder: Path) -> str:
    if cell.record is None:
        return cell.status
    target = quote(link(cell.record.path, folder)).replace("%", r"\%")
    if cell.score is None:
        return rf"\href{{{target}}}{{{cell.status}}} ({_errors(cell.record)})"
    score = rf"\href{{{target}}}{{{percent(cell.score.mean)}}} {_interval(cell.score)}"
    remarks = _remarks(cell, cell.score, cell.record)
    return rf"\begin{{tabular}}[t]{{@{{}}l@{{}}}}{score}\\ {remarks}\end{{tabular}}"


def _remarks(cell: Cell, score: Interval, record: Record) -> str:
    chance = [f"chance {percent(cell.chance.mean)}"] if cell.chance else []
    read = [cell.read] if cell.read else []
    errors = [_errors(record)] if record.n_errors else []
    return ", ".join([*chance, f"n {score.n}", *read, *errors])


def _errors(record: Record) -> str:
    return f"{record.n_errors} error" + ("" if record.n_errors == 1 else "s")


def _interval(metric: Interval) -> str:
    return f"[{percent(metric.low)}, {percent(metric.high)}]"
