"""How is an accuracy table written down? As Markdown, as long-form CSV, and as LaTeX.

Every measured cell carries its interval and a link to its record, relative to the folder that the text will lie in.
"""

from __future__ import annotations

import csv
import io
import math
import os
import re
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from urllib.parse import quote, unquote

from harness.statistics import Interval
from results.records import Record
from results.tables import Cell, Row, Table

_LINK = re.compile(r"\[([^\]]*)\]\(([^)]*)\)")
_TEX = {character: f"\\{character}" for character in "&%$#_{}"} | {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "≠": r"$\neq$",
    "`": r"\textasciigrave{}",
    "[": "{[}",  # After the \\ of a line a bare one would open that command's argument.
}


@dataclass(frozen=True, kw_only=True)
class Grid:
    """A table as text, for the ones without cells of their own; the first column stands to the left.

    A cell may be Markdown; LaTeX takes the text of its links, in lines of ``wrap`` letters where that is given: a wide
    table is shrunk to the width of a page, and long cells would make it unreadable.
    """

    title: str
    head: Sequence[str]
    lines: Sequence[Sequence[str]]
    notes: Sequence[str]
    wrap: int | None = None

    def markdown(self) -> str:
        from tabulate import tabulate

        align = ("left", *("right" for _ in self.head[1:]))
        lines = [[_pipes(cell) for cell in line] for line in self.lines]
        body = tabulate(lines, headers=list(self.head), tablefmt="pipe", colalign=align, disable_numparse=True)
        return f"**{self.title}**\n\n{body}\n\n" + "\n".join(f"- {note}" for note in self.notes) + "\n"

    def latex(self) -> str:
        head, *lines = [
            [self._latex_cell(_LINK.sub(r"\1", cell)) for cell in line] for line in (self.head, *self.lines)
        ]
        columns = "l" + "r" * (len(self.head) - 1)
        return _environment(self.title, columns, head, lines, self.notes)

    def _latex_cell(self, text: str) -> str:
        parts = textwrap.wrap(text, self.wrap, break_long_words=False) if self.wrap else [text]
        if len(parts) <= 1:
            return _tex(text)
        lines = r"\\ ".join(map(_tex, parts))
        return rf"\begin{{tabular}}[t]{{@{{}}l@{{}}}}{lines}\end{{tabular}}"

    def csv(self) -> str:
        """Head and lines, each cell as its text; without title and notes."""
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows(
            [[_LINK.sub(r"\1", cell) for cell in line] for line in (self.head, *self.lines)]
        )
        return text.getvalue()


def linked(text: str, path: Path, folder: Path) -> str:
    """``text``, its first word linked to ``path`` as seen from ``folder``."""
    first, _, rest = text.partition(" ")
    return f"[{first}]({quote(link(path, folder))}) {rest}".rstrip()


def parts(cell: str) -> list[tuple[str, str | None]]:
    """A cell of a ``Grid`` as its texts in order, each with the file that it links to; None where it links to none."""
    found: list[tuple[str, str | None]] = []
    end = 0
    for match in _LINK.finditer(cell):
        found += [(cell[end : match.start()], None), (match[1], unquote(match[2]))]
        end = match.end()
    return [part for part in (*found, (cell[end:], None)) if part[0]]


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
        [[_pipes(cell) for cell in line] for line in grid.lines],
        headers=[_pipes(name) for name in grid.head],
        tablefmt="pipe",
        colalign=("left", "right", *("left" for _ in table.columns)),
        disable_numparse=True,
    )
    notes = "\n".join(f"- {note}" for note in table.notes)
    return f"**{table.title}**\n\n{body}\n\n{notes}\n"


def to_latex(table: Table, folder: Path) -> str:
    """A ``table`` environment for a document with booktabs, graphicx and hyperref; shrunk where wider than a line."""
    head = ["System", "Passages", *(_tex(column.name) for column in table.columns)]
    lines = [
        [_tex(row.name), _tex(row.context), *(_latex_cell(cell, folder) for cell in cells)]
        for row, cells in _lines(table)
    ]
    return _environment(table.title, "lr" + "l" * len(table.columns), head, lines, table.notes)


def _environment(
    title: str, columns: str, head: Sequence[str], lines: Iterable[Sequence[str]], notes: Iterable[str]
) -> str:
    return "\n".join(
        [
            r"% Needs \usepackage{booktabs,graphicx,hyperref}.",
            r"\begin{table}",
            r"\centering\small",
            rf"\caption{{{_tex(title)}}}",
            r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%",
            rf"\begin{{tabular}}{{@{{}}{columns}@{{}}}}",
            r"\toprule",
            " & ".join(head) + r" \\",
            r"\midrule",
            *(" & ".join(line) + r" \\" for line in lines),
            r"\bottomrule",
            r"\end{tabular}}",
            r"\par\medskip\footnotesize\raggedright",
            *(rf"{_tex(note)}\par" for note in notes),
            r"\end{table}",
            "",
        ]
    )


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
    read = [_read(cell.passages_read, cell.row)] if cell.passages_read is not None and cell.truncated else []
    errors = [_errors(record)] if record.n_errors else []
    return ", ".join([*chance, f"n {score.n}", *read, *errors])


def _read(passages: float, row: Row) -> str:
    # Rounded down: what was left out never rounds to nothing.
    return f"read {math.floor(10 * passages) / 10:.1f} of {row.passages}"


def _errors(record: Record) -> str:
    return f"{record.n_errors} error" + ("" if record.n_errors == 1 else "s")


def _interval(metric: Interval) -> str:
    return f"[{percent(metric.low)}, {percent(metric.high)}]"


def percent(fraction: float) -> str:
    """A fraction as percent with one digit."""
    return f"{100 * fraction:z.1f}"  # z: never "-0.0"


def link(path: Path, folder: Path) -> str:
    """The way from ``folder`` to ``path``."""
    return _way(path.absolute(), folder.absolute())


@lru_cache(1 << 12)  # each form of a table has the same links
def _way(path: Path, folder: Path) -> str:
    return Path(os.path.relpath(path.resolve(), folder.resolve())).as_posix()


def _pipes(text: str) -> str:
    return text.replace("|", r"\|")


def _tex(text: str) -> str:
    # Two hyphens would become a dash: options of a command have them.
    return "".join(_TEX.get(character, character) for character in text).replace("--", "-{}-")
