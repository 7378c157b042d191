"""A table as text: as Markdown, LaTeX and CSV, with links relative to the folder that the text will lie in."""

from __future__ import annotations

import csv
import io
import os
import re
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from urllib.parse import quote, unquote

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
        lines = [[pipes(cell) for cell in line] for line in self.lines]
        body = tabulate(lines, headers=list(self.head), tablefmt="pipe", colalign=align, disable_numparse=True)
        return f"**{self.title}**\n\n{body}\n\n" + "\n".join(f"- {note}" for note in self.notes) + "\n"

    def latex(self) -> str:
        head, *lines = [
            [self._latex_cell(_LINK.sub(r"\1", cell)) for cell in line] for line in (self.head, *self.lines)
        ]
        columns = "l" + "r" * (len(self.head) - 1)
        return environment(self.title, columns, head, lines, self.notes)

    def _latex_cell(self, text: str) -> str:
        parts = textwrap.wrap(text, self.wrap, break_long_words=False) if self.wrap else [text]
        if len(parts) <= 1:
            return tex(text)
        lines = r"\\ ".join(map(tex, parts))
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


def environment(
    title: str, columns: str, head: Sequence[str], lines: Iterable[Sequence[str]], notes: Iterable[str]
) -> str:
    """A LaTeX ``table`` for a document with booktabs, graphicx and hyperref; shrunk where wider than a line.

    ``head`` and ``lines`` are LaTeX, ``title`` and ``notes`` plain text.
    """
    return "\n".join(
        [
            r"% Needs \usepackage{booktabs,graphicx,hyperref}.",
            r"\begin{table}",
            r"\centering\small",
            rf"\caption{{{tex(title)}}}",
            r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%",
            rf"\begin{{tabular}}{{@{{}}{columns}@{{}}}}",
            r"\toprule",
            " & ".join(head) + r" \\",
            r"\midrule",
            *(" & ".join(line) + r" \\" for line in lines),
            r"\bottomrule",
            r"\end{tabular}}",
            r"\par\medskip\footnotesize\raggedright",
            *(rf"{tex(note)}\par" for note in notes),
            r"\end{table}",
            "",
        ]
    )


def percent(fraction: float) -> str:
    """A fraction as percent with one digit."""
    return f"{100 * fraction:z.1f}"  # z: never "-0.0"


def link(path: Path, folder: Path) -> str:
    """The way from ``folder`` to ``path``."""
    return _way(path.absolute(), folder.absolute())


@lru_cache(1 << 12)  # each form of a table has the same links
def _way(path: Path, folder: Path) -> str:
    return Path(os.path.relpath(path.resolve(), folder.resolve())).as_posix()


def pipes(text: str) -> str:
    """Text as a cell of a table in Markdown."""
    return text.replace("|", r"\|")


def tex(text: str) -> str:
    """Text as LaTeX."""
    # Two hyphens would become a dash: options of a command have them.
    return "".join(_TEX.get(character, character) for character in text).replace("--", "-{}-")
