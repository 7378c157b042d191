"""Do several processes train what one trains? Two nodes of two ranks under FSDP2 against one process, same recipe.

    refrag-bench sweep submit fsdp --cluster NAME

Fills     runs/comparisons/fsdp/curves.json
Cost      offline, CPU: 30 steps of the tiny REFRAG, twice
Expect    losses that differ by less than 1e-4 at every logged step: the order of sums, and no more

Everything is trained, by AdamW, in float32, on batches of 24 to 8 rows of which chunks stand as tokens at random: so
shares have unequally many rows and supervised tokens. A wrong denominator shows in the first logged loss.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from harness.errors import InputError
from slurm.jobs.curves import CurvesJob
from slurm.jobs.train import TrainJob
from slurm.phases import Phase

NAME = "fsdp"
NODES, TASKS_PER_NODE = 2, 2
TOLERANCE = 1e-4  # nats


def fsdp(
    *,
    data: Path | None,
    checkpoint: str | None,
    limit: int | None,
    device: str,
    runs: Path,
    out: Path,  # noqa: ARG001
    budget: str | None = None,
    from_scratch: bool = False,
) -> Iterator[Phase]:
    """Phases of the experiment. ``checkpoint`` is a decoder to start from; None takes the project's own.

    Raises ``InputError`` for whatever else could be asked: there is one form of it.
    """
    asked = {"--data": data, "--limit": limit, "--scale (a budget)": budget, "--from-scratch": from_scratch or None}
    for option, value in asked.items():
        if value is not None:
            raise InputError(f"experiment {NAME!r} is one training from one start; leave {option} out")
    one = TrainJob(
        system="refrag_v2",
        stage="finetune",
        scale=NAME,
        start=Path(checkpoint) if checkpoint else None,
        runs=runs / NAME / "one",
        device=device,
    )
    several = replace(one, runs=runs / NAME / "several", nodes=NODES, tasks_per_node=TASKS_PER_NODE)
    yield Phase(title="train", jobs=[several, one])
    yield Phase(title="compare", jobs=[CurvesJob(name=NAME, of=one, against=several, most=TOLERANCE, runs=runs)])
