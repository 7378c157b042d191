"""Progress bars on standard error, so that standard output stays clean for ``--json`` and pipes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Advance = Callable[..., None]
LOG_SECONDS = 10.0


@contextmanager
def bar(title: str) -> Iterator[Advance]:
    """A bar; the yielded function takes the number done, the total and a short note.

    Where standard error is no terminal (a job's log), a line every ten seconds instead.
    """
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    console = Console(stderr=True)
    if not console.is_terminal:
        said = [time.monotonic()]

        def log(done: int, total: int, note: str = "") -> None:
            if time.monotonic() - said[0] > LOG_SECONDS:
                said[0] = time.monotonic()
                console.print(f"{title}: {done}/{total} {note}", highlight=False)

        yield log
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=console) as progress:
        task = progress.add_task(title, total=None, note="")
        yield lambda done, total, note="": progress.update(task, completed=done, total=total, note=note)


def say(message: str) -> None:
    """One line to a person, on standard error."""
    from rich.console import Console

    Console(stderr=True).print(message, highlight=False, soft_wrap=True)
