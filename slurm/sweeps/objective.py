"""Why does REFRAG v1 fail: its objective, or its k? Both at k = 8 and k = 64, three seeds, equal decoder tokens.

    refrag-bench run objective

Fills     results/tables/objective.*, objective-2.*, objective-4.* (paired differences, by passages);
          runs/alignment/objective-*.json (how well chunks read back after each of the two stages)
Cost      offline, CPU: 12 trainings of 361 k + 1.44 M decoder tokens, some 3 to 5 minutes each on
          a busy core (about 45 minutes of one), then 48 seconds
Expect    97 to 100 % at k = 8 under either objective, chance at k = 64 (results/LOG.md)

Each cell learns to read chunks back by its own objective (v1: the embedding repeated; v2: x_1:kL from L embeddings),
then the next paragraph. Decoder tokens and the rates of reconstruction are equal; encoder, pooling, decoder and data
are the same. What else the seed document blames stays with v1: the linear curriculum, 0.4 of v2's rate in the second
stage, the linear schedule, the Tanh. Passages tell of two people here, so that a chunk of 64 tokens is one: k = 64
holds eight facts in one embedding, k = 8 one.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from harness.data.world.mirror import WorldConfig
from harness.errors import InputError
from harness.train.alignment import Gate
from slurm.jobs.align import AlignJob
from slurm.jobs.compare import CompareJob, Way
from slurm.jobs.data import WorldJob
from slurm.jobs.evaluate import EvaluateJob
from slurm.jobs.tables import TablesJob
from slurm.jobs.train import TrainJob
from slurm.phases import Phase
from slurm.sweeps.tiny import ANSWER_TOKENS, train_phase

NAME = "objective"
RATES = (8, 64)
SEEDS = (0, 1, 2)
WORLD = WorldConfig(seed=2, pairs=True)
PASSAGES = (2, 4)  # of two people each
STAGES = {"refrag_v1": ("cpt_recon", "cpt_next"), "refrag_v2": ("reconstruction", "cpt")}


def objective(
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
    """Phases of the experiment. ``checkpoint`` is a decoder to start from; None takes the project's own.

    Raises ``InputError`` for a ``budget``: matched numbers of steps are the experiment.
    """
    if budget is not None:
        raise InputError(f"experiment {NAME!r} has one budget, equal for all; leave --scale {budget} out")
    world = WorldJob(config=WORLD, folder=runs / "data" / WORLD.name)
    root = data or world.folder
    if data is None:
        yield Phase(title="data", jobs=[world])

    def trained(system: str, k: int, seed: int) -> TrainJob:
        first, second = STAGES[system]
        settings: dict[str, Any] = dict(
            system=system, scale=f"objective-k{k}", runs=runs, device=device, seed=seed, from_scratch=from_scratch
        )
        start = TrainJob(stage=first, start=Path(checkpoint) if checkpoint else None, **settings)
        return TrainJob(stage=second, start=start, **settings)

    cells = {(system, k): [trained(system, k, seed) for seed in SEEDS] for system in STAGES for k in RATES}
    yield train_phase([job for jobs in cells.values() for job in jobs])

    checks = [
        AlignJob(
            checkpoint=job.checkpoint,
            chunks=(1, 2),
            batches=2,
            gate=Gate(),
            device=device,
            out=runs / "alignment" / f"{NAME}-{system}-k{k}-seed{seed}-{job.stage}.json",
        )
        for (system, k), jobs in cells.items()
        for seed, last in zip(SEEDS, jobs, strict=True)
        for job in (last.before, last)
        if job is not None
    ]
    yield Phase(title="read back", jobs=checks)

    def answered(system: str, job: TrainJob, passages: int) -> EvaluateJob:
        return EvaluateJob(
            system=system,
            suite="same_relation",
            checkpoint=str(job.checkpoint),
            passages=passages,
            data=root,
            limit=limit,
            max_new_tokens=ANSWER_TOKENS,
            device=device,
            options={"expand": 0.0},
            experiment=NAME,
            runs=runs,
        )

    runs_of = {
        (system, k, n): [answered(system, job, n) for job in jobs]
        for (system, k), jobs in cells.items()
        for n in PASSAGES
    }
    yield Phase(title="evaluate", jobs=[job for jobs in runs_of.values() for job in jobs])

    def way(system: str, k: int, n: int) -> Way:
        return Way(name=f"{system.removeprefix('refrag_')} k={k}", cells=runs_of[system, k, n])

    compared = [
        CompareJob(
            name=f"{NAME}-{n}",
            contrasts=[
                *((way("refrag_v2", k, n), way("refrag_v1", k, n)) for k in RATES),
                *((way(system, 8, n), way(system, 64, n)) for system in STAGES),
            ],
            figures=("em",),
            runs=runs,
            out=out,
        )
        for n in PASSAGES
    ]
    yield Phase(title="compare", jobs=compared)
    yield Phase(title="tables", jobs=[TablesJob(experiment=NAME, runs=runs, out=out)])
