"""Does this cluster run our jobs? Twenty that count and say where, then one that needs them all.

    refrag-bench sweep submit smoke --cluster h100 --watch
    refrag-bench sweep submit smoke --cluster h100 --device cuda       each asks for a GPU
    refrag-bench sweep submit smoke --cluster h100 --scale failing     one fails until a file is there that it names
    refrag-bench sweep submit smoke --cluster h100 --scale slow        each counts for half a minute: to interrupt

Fills     no table: it is there to try out queueing, logs, cancelling and resuming at a new site
Cost      20 jobs that do next to nothing but start (``--limit N`` changes their number)
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from harness.errors import InputError, unknown
from slurm.jobs.count import CountJob
from slurm.phases import Phase

NAME = "smoke"
JOBS = 20
FAILING = 7
# Numbers to count, seconds between them.
BUDGETS = {"quick": (1, 0.0), "slow": (60, 0.5), "failing": (1, 0.0)}


def smoke(
    *,
    data: Path | None,
    checkpoint: str | None,
    limit: int | None,
    device: str,
    out: Path,
    budget: str | None = None,
    from_scratch: bool = False,
    **_: Any,
) -> Iterator[Phase]:
    """Phases of the experiment; ``limit`` is the number of jobs. What they write goes below ``out``, to count anew.

    Raises ``InputError`` for an unknown ``budget``, and for what nothing here would read.
    """
    budget = budget or "quick"
    if budget not in BUDGETS:
        raise unknown(f"scale of experiment {NAME!r}", budget, BUDGETS)
    if data or checkpoint or from_scratch:
        raise InputError(f"experiment {NAME!r} only counts; leave --data, --checkpoint and --from-scratch out")
    to, pause_s = BUDGETS[budget]
    folder = out / NAME
    jobs = [
        CountJob(
            number=number,
            to=to,
            pause_s=pause_s,
            folder=folder,
            device=device,
            mended=out / "mended" if budget == "failing" and number == FAILING else None,
        )
        for number in range(limit or JOBS)
    ]
    yield Phase(title="count", jobs=jobs)
    yield Phase(title="last", jobs=[CountJob(number=len(jobs), to=1, pause_s=0.0, folder=folder)])
