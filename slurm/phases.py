"""What is an experiment? Phases of jobs; and how they run here, one job after another, with a progress bar each."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from harness.progress import bar, say


class Job(Protocol):
    """A dataclass of plain values with one ``run``; a job whose result is there already does nothing.

    One that may not be able to run says why in its ``obstacles``.
    """

    @property
    def title(self) -> str: ...

    def run(self, progress: Callable[..., None] | None = None) -> Any: ...

    def said(self, result: Any) -> str:
        """The result in one line."""


@dataclass(frozen=True, kw_only=True)
class Phase:
    """Jobs in an order that can run; the next phase needs all of them.

    Of its jobs only a training may need another, its ``before``. ``gpu_hours`` is what a plan says that they take
    (``slurm.plan``), None where nobody planned them.
    """

    title: str
    jobs: Sequence[Job]
    gpu_hours: float | None = None


def run_phases(phases: Iterable[Phase]) -> int:
    """Run all phases in order. Exit code 1 where a record holds examples that raised an error."""
    failed = 0
    for phase in phases:
        say(f"[bold]{phase.title}[/bold]")
        for job in phase.jobs:
            with bar(f"  {job.title}") as progress:
                result = job.run(progress)
            say(f"  {job.title}: {job.said(result)}")
            failed += getattr(result, "n_errors", 0)
    return 1 if failed else 0
