"""The main table: every system through every suite, three trainings each, an evaluation a job.

    refrag-bench sweep submit main_table --cluster h100 --device cuda --watch
    refrag-bench run main_table --scale smoke            that all of it runs: accepted checkpoints, few questions
    refrag-bench run main_table --data DIR --checkpoint DECODER       NQ, TriviaQA and PopQA of a data root

Fills     results/tables/main_table.*, and main_table-SUITE.*: the three trainings of each system as one row, and its
          paired difference to standard RAG
Cost      offline, CPU: 50 trainings, those of two more seeds, and 180 evaluations of 500 questions: not run yet
          (``tiny`` trained one seed of everything but the baselines and read 78 such cells in 98 minutes). The smoke:
          60 evaluations of 8 questions, 67 s of one core
Expect    seed 0 is the experiment ``tiny``'s: results/tables/tiny-systems.md has its scores, tiny.md those of k = 32.
          What two more trainings add is the spread between seeds; nobody has measured it yet for all systems

Seeds change every training but that of the decoder, from which all systems start. In a data root of real questions the
trained systems read with decoders that know the synthetic world alone, so their rows prove the path and not the method;
with ``--checkpoint`` what needs no training of its own reads with that decoder, once, and the others are left out (what
trains REFRAG on a real decoder is the experiment ``paper``).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from harness.data.sources import DataRoot
from harness.data.world import is_world
from harness.data.world.mirror import WorldConfig
from harness.errors import unknown
from slurm.jobs.compare import CompareJob, Way
from slurm.jobs.data import RetrieveJob, WorldJob
from slurm.jobs.evaluate import EvaluateJob
from slurm.jobs.tables import TablesJob
from slurm.jobs.train import TrainJob
from slurm.phases import Phase
from slurm.sweeps.tiny import (
    ANSWER_TOKENS,
    LAST_STAGES,
    MOST,
    RATES,
    SUITES,
    baseline_training,
    every_system,
    rag_training,
    refrag_training,
    train_phase,
)

NAME = "main_table"
SEEDS = (0, 1, 2)
BUDGETS: Mapping[str, Sequence[int]] = {"full": SEEDS, "smoke": SEEDS[:1]}  # and their seeds
SMOKE_LIMIT = 8
REAL_ANSWER_TOKENS = 16
Asked = tuple[str, str, Mapping[str, Any]]  # system, checkpoint, settings


def main_table(
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
    """Phases of the experiment over the data root ``data`` (None: the experiment ``tiny``'s world).

    ``checkpoint`` is a decoder for what needs no training of its own, which then runs alone. Raises ``InputError`` for
    an unknown ``budget``.
    """
    budget = budget or "full"
    if budget not in BUDGETS:
        raise unknown(f"scale of experiment {NAME!r}", budget, BUDGETS)
    limit = limit or (SMOKE_LIMIT if budget == "smoke" else None)
    world = WorldJob(config=WorldConfig(), folder=runs / "data" / WorldConfig().name)
    if data is None:
        yield Phase(title="data", jobs=[world])
    asked = [every_system(checkpoint, {}, {})] if checkpoint else []
    if checkpoint is None:
        settings: dict[str, Any] = dict(runs=runs, device=device, from_scratch=from_scratch)
        settings["budget"] = "short" if budget == "smoke" and from_scratch else "long"
        trainings = [_trainings(seed, **settings) for seed in BUDGETS[budget]]
        yield train_phase([job for jobs in trainings for job in jobs.values()])
        asked = [_systems(jobs) for jobs in trainings]
    yield from table(NAME, asked, data=data or world.folder, limit=limit, device=device, runs=runs, out=out)


def table(
    name: str,
    asked: Sequence[Sequence[Asked]],
    *,
    data: Path | None,
    limit: int | None,
    device: str,
    runs: Path,
    out: Path,
) -> Iterator[Phase]:
    """Phases that fill the table ``name``: retrieve, evaluate, compare, tables.

    ``asked`` are the systems of each seed, the same in each and the reference first. In a world the set of the same
    relation is asked too.
    """
    in_world = _is_world(data)
    retrievals = {suite: RetrieveJob(suite=suite, retriever="bm25", data=data, runs=runs) for suite in SUITES}
    yield Phase(title="retrieve", jobs=list(retrievals.values()))

    def cell(suite: str, system: str, of: str, options: Mapping[str, Any]) -> EvaluateJob:
        return EvaluateJob(
            system=system,
            suite=suite,
            checkpoint=of,
            passages=MOST,
            data=data,
            retrieval=retrievals.get(suite),
            limit=limit,
            max_new_tokens=ANSWER_TOKENS if in_world else REAL_ANSWER_TOKENS,
            device=device,
            options=options,
            experiment=name,
            runs=runs,
        )

    ways = {
        suite: [
            Way(name=_named(systems[0]), cells=[cell(suite, *each) for each in systems])
            for systems in zip(*asked, strict=True)
        ]
        for suite in (*SUITES, *(["same_relation"] if in_world else []))
    }
    cells = [job for rows in ways.values() for way in rows for job in way.cells]
    yield Phase(title="evaluate", jobs=cells)
    compare = [
        CompareJob(
            name=f"{name}-{suite.replace('_', '-')}",
            contrasts=[(way, reference) for way in others],
            figures=("em",),
            runs=runs,
            out=out,
        )
        for suite, (reference, *others) in ways.items()
    ]
    yield Phase(title="compare", jobs=compare)
    yield Phase(title="tables", jobs=[TablesJob(experiment=name, runs=runs, out=out)])


def _is_world(data: Path | None) -> bool:
    """One that is there, or the one that the experiment is going to write. None is no world."""
    return data is not None and (data.name == WorldConfig().name or is_world(DataRoot.open(data).name))


def _named(asked: Asked) -> str:
    system, _, options = asked
    settings = ", ".join(f"{name}={value}" for name, value in options.items())
    return f"{system} ({settings})" if settings else system


def _trainings(seed: int, **settings: Any) -> dict[str | int, TrainJob]:
    """The last training of standard RAG, of each baseline that has one, and of REFRAG at each k."""
    jobs: dict[str | int, TrainJob] = {"standard_rag": rag_training(**settings)}
    jobs |= {system: baseline_training(system, **settings) for system in LAST_STAGES}
    jobs |= {k: refrag_training(k, **settings) for k in RATES}
    return {name: seeded(job, seed) for name, job in jobs.items()}


def seeded(job: TrainJob, seed: int) -> TrainJob:
    """The training with ``seed`` in every stage of its chain but the decoder's own."""
    before = job.before
    if before is None:
        return job
    return replace(job, seed=seed, start=seeded(before, seed))


def _systems(jobs: Mapping[str | int, TrainJob]) -> list[Asked]:
    checkpoints = {name: str(job.checkpoint) for name, job in jobs.items()}
    baselines = {system: checkpoints[system] for system in LAST_STAGES}
    return every_system(checkpoints["standard_rag"], baselines, {k: checkpoints[k] for k in RATES})
