"""A sweep's state for eyes: a table that renews itself on a terminal, a line now and then in a log."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table

    from slurm.execution.watch import Row, Status

STYLES = {"running": "cyan", "done": "green", "failed": "red", "cancelled": "red", "lost": "red", "held": "yellow"}
SHOWN = 20  # rows of one state
LOG_SECONDS = 10.0
REDRAWN_S = 1.0


def table(status: Status, *, everything: bool) -> None:
    """Print the state once, on standard output."""
    from rich.console import Console

    console = Console()
    console.print(_table(status, everything=everything))
    console.print(_summary(status), highlight=False, markup=False)


@contextmanager
def live() -> Iterator[Callable[[Status], None]]:
    """The yielded function shows a state, on standard error."""
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    console = Console(stderr=True)
    last = 0.0
    said = ""

    if not console.is_terminal:

        def log(status: Status) -> None:
            nonlocal last, said
            line = _summary(status)
            if line != said and time.monotonic() - last > LOG_SECONDS:
                last, said = time.monotonic(), line
                console.print(line, highlight=False, markup=False, soft_wrap=True)

        yield log
        return
    with Live(console=console, auto_refresh=False) as view:

        def draw(status: Status) -> None:
            nonlocal last
            if time.monotonic() - last > REDRAWN_S:
                last = time.monotonic()
                drawn = _table(status, everything=False)
                drawn.caption = Text(_summary(status))
                view.update(drawn, refresh=True)

        yield draw


def _table(status: Status, *, everything: bool) -> Table:
    from rich.table import Table
    from rich.text import Text

    drawn = Table(title=status.id, title_justify="left", caption_justify="left", box=None, pad_edge=False)
    for name in ("job", "phase", "what", "state", "where", "said"):
        drawn.add_column(name, no_wrap=name in ("job", "state"), overflow="fold")
    rows, hidden = _chosen(status, everything=everything)
    for row in rows:
        style = STYLES.get(row.state, "")
        where = " ".join(filter(None, (row.slurm_job, row.node)))
        # Text, as an error message may hold what rich takes for markup.
        drawn.add_row(str(row.index), Text(row.phase), Text(row.title), Text(row.state, style), where, Text(row.said))
    for state, n in hidden.items():
        drawn.add_row("...", "", f"{n} more {state}", "", "", "")
    return drawn


def _chosen(status: Status, *, everything: bool) -> tuple[list[Row], dict[str, int]]:
    """The rows to show, and by state how many are not: what is done, and what is many."""
    if everything:
        return list(status.rows), {}
    rows: list[Row] = []
    hidden: dict[str, int] = {}
    shown: dict[str, int] = {}
    for row in status.rows:
        if row.state == "done" and not row.errors:
            continue
        shown[row.state] = shown.get(row.state, 0) + 1
        if shown[row.state] <= SHOWN:
            rows.append(row)
        else:
            hidden[row.state] = hidden.get(row.state, 0) + 1
    return rows, hidden


def _summary(status: Status) -> str:
    counts = ", ".join(f"{n} {state}" for state, n in status.counts.items())
    errors = sum(row.errors for row in status.rows)
    parts = [f"{status.id}: {counts or 'no jobs'} of {len(status.rows)}"]
    parts += [f"{errors} examples raised errors"] * bool(errors) + [f"controller: {status.problem}"] * bool(
        status.problem
    )
    return "; ".join(parts)
