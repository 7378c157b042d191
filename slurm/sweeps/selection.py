"""Does GRPO teach the policy anything? The trained policy against its own start and against chance, three seeds.

    refrag-bench run selection

Fills     results/tables/selection.*, selection-policy.*
Cost      offline, CPU: a REFRAG of half the budget, three warm-ups and three GRPO trainings on it, 9 x 1,000 questions;
          40 minutes in all on two cores that had other work too
Expect    GRPO expands the right chunk 45 points more often than its start and 54 more than chance, and answers 10.5
          points more questions than either (results/LOG.md)
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from harness.data.world.mirror import WorldConfig
from slurm.jobs.compare import CompareJob, Way
from slurm.jobs.data import WorldJob
from slurm.jobs.evaluate import EvaluateJob
from slurm.jobs.tables import TablesJob
from slurm.jobs.train import TrainJob
from slurm.phases import Phase
from slurm.sweeps import tiny
from slurm.sweeps.tiny import ANSWER_TOKENS, MOST, SHARE, suffix, train_phase

NAME = "selection"
# Where there is something to choose: four facts a chunk, and a model whose chunks were learned half, while it reads
# tokens as well as ever. The long budget's reads chunks so well that little is left to gain (results/LOG.md).
K, BUDGET = 32, "half"
BUDGETS = tiny.BUDGETS | {"half": "-half"}
SEEDS = (0, 1, 2)
WORLD = WorldConfig(seed=1, questions=1000)  # other people and other questions than the main table's


def selection(
    *,
    data: Path | None,
    checkpoint: str | None,
    limit: int | None,
    device: str,
    runs: Path,
    out: Path,
    budget: str | None = None,
    from_scratch: bool = False,
) -> Iterator[Phase]:
    """Phases of the experiment. ``checkpoint`` is a fine-tuned REFRAG v2 at this k; None trains one."""
    budget = budget or BUDGET
    model = TrainJob(
        system="refrag_v2",
        stage="finetune",
        scale=f"tiny-k{K}{suffix(budget, BUDGETS)}",
        runs=runs,
        device=device,
        from_scratch=from_scratch,
    )
    world = WorldJob(config=WORLD, folder=runs / "data" / WORLD.name)
    root = data or world.folder
    if data is None:
        yield Phase(title="data", jobs=[world])
    if checkpoint is None:
        yield train_phase([model])
    refrag = Path(checkpoint or model.checkpoint)

    def policy(stage: str, seed: int, start: Path | TrainJob) -> TrainJob:
        return TrainJob(
            system="refrag_v2",
            stage=stage,
            scale=f"tiny-k{K}",  # the policy's own stages at full length, whatever the model's budget
            runs=runs,
            device=device,
            start=start,
            seed=seed,
            from_scratch=from_scratch,
        )

    starts = [policy("policy_start", seed, Path(checkpoint) if checkpoint else model) for seed in SEEDS]
    trained = [policy("policy", seed, start) for seed, start in zip(SEEDS, starts, strict=True)]
    yield Phase(title="warm up", jobs=starts)
    yield Phase(title="train by GRPO", jobs=trained)

    def cell(of: Path, options: Mapping[str, Any]) -> EvaluateJob:
        return EvaluateJob(
            system="refrag_v2",
            suite="same_relation",
            checkpoint=str(of),
            passages=MOST,
            data=root,
            limit=limit,
            max_new_tokens=ANSWER_TOKENS,
            device=device,
            options=options,
            experiment=NAME,
            runs=runs,
        )

    def chosen(select: str) -> dict[str, Any]:
        return {"expand": SHARE, "select": select}

    ways = {
        "GRPO": [cell(job.checkpoint, chosen("policy")) for job in trained],
        "its start": [cell(job.checkpoint, chosen("policy")) for job in starts],
        "random": [cell(refrag, chosen("random"))],
        "nothing": [cell(refrag, {"expand": 0.0, "select": "none"})],
        "oracle": [cell(refrag, chosen("oracle"))],
    }
    yield Phase(title="evaluate", jobs=[job for cells in ways.values() for job in cells])
    compared = CompareJob(
        name=f"{NAME}-policy",
        contrasts=[
            (Way(name="GRPO", cells=ways["GRPO"]), Way(name=name, cells=ways[name])) for name in ("its start", "random")
        ],
        figures=("oracle_hit", "em"),
        runs=runs,
        out=out,
    )
    yield Phase(title="compare", jobs=[compared])
    yield Phase(title="tables", jobs=[TablesJob(experiment=NAME, runs=runs, out=out)])
