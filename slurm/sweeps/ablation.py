"""What every training ablation shares: variants trained from three seeds, asked the same questions, compared in pairs.

A variant is a last training per seed; what it needs is in its chain, and a training that two variants or experiments
share is made once. All are of one small budget (``refrag_v2.study_stages``), so they tell what a change does there
and not how good a full training is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.data.world.mirror import WorldConfig
from harness.errors import InputError, unknown
from harness.train.alignment import Gate
from refrag_v2.study_stages import SMOKE
from slurm.jobs.align import AlignJob
from slurm.jobs.compare import CompareJob, Way
from slurm.jobs.data import WorldJob
from slurm.jobs.evaluate import EvaluateJob
from slurm.jobs.losses import LossesJob, Training
from slurm.jobs.tables import TablesJob
from slurm.jobs.train import TrainJob
from slurm.phases import Phase
from slurm.sweeps.tiny import ANSWER_TOKENS, train_phase

SEEDS = (0, 1, 2)
BUDGETS = {"full": SEEDS, "smoke": (0, 1)}  # and their seeds; smoke shows that all of it runs, in a minute or two
SMOKE_LIMIT = 16
WORLD = WorldConfig(seed=2, pairs=True)  # passages of two people: chunks of 64 tokens fit
PASSAGES = 4


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What the command line gives every experiment."""

    data: Path | None
    limit: int | None
    device: str
    runs: Path
    out: Path
    from_scratch: bool
    budget: str

    @property
    def smoke(self) -> bool:
        return self.budget == "smoke"

    @property
    def seeds(self) -> Sequence[int]:
        return BUDGETS[self.budget]

    def trained(self, scale: str, seed: int, last: str = "cpt", *, skip: bool = False) -> TrainJob:
        """Reconstruction of ``scale``, and CPT after it; ``skip`` leaves reconstruction out."""
        scale = f"{scale}{SMOKE}" if self.smoke else scale
        common: dict[str, Any] = dict(
            system="refrag_v2",
            scale=scale,
            runs=self.runs,
            device=self.device,
            seed=seed,
            from_scratch=self.from_scratch,
        )
        if skip:
            decoder = TrainJob(
                system="decoder",
                stage="pretrain",
                scale="tiny",
                runs=self.runs,
                device=self.device,
                from_scratch=self.from_scratch,
            )
            return TrainJob(stage=last, start=decoder, skip=("refrag_v2/reconstruction",), **common)
        first = TrainJob(stage="reconstruction", **common)
        return first if last == "reconstruction" else TrainJob(stage=last, start=first, **common)


Variant = Callable[[int], TrainJob]  # a seed to the last training


def ablate(
    name: str, variants: Mapping[str, Variant], contrasts: Sequence[tuple[str, str]], settings: Settings
) -> Iterator[Phase]:
    """Phases: data, train, read back, evaluate, compare (``contrasts`` name pairs), losses, tables."""
    world = WorldJob(config=WORLD, folder=settings.runs / "data" / WORLD.name)
    if settings.data is None:
        yield Phase(title="data", jobs=[world])
    jobs = {variant: [make(seed) for seed in settings.seeds] for variant, make in variants.items()}
    yield train_phase([job for trained in jobs.values() for job in trained])

    checks = [
        AlignJob(
            checkpoint=job.checkpoint,
            chunks=(1, 2),
            batches=2,
            gate=Gate(),
            device=settings.device,
            out=settings.runs / "alignment" / f"{name}-{variant.replace(', ', '-').replace(' ', '-')}-seed{seed}.json",
        )
        for variant, trained in jobs.items()
        for seed, job in zip(settings.seeds, trained, strict=True)
    ]
    yield Phase(title="read back", jobs=checks)

    cells = {
        variant: [
            EvaluateJob(
                system="refrag_v2",
                suite="same_relation",
                checkpoint=str(job.checkpoint),
                passages=PASSAGES,
                data=settings.data or world.folder,
                limit=settings.limit,
                max_new_tokens=ANSWER_TOKENS,
                device=settings.device,
                options={"expand": 0.0},
                experiment=name,
                runs=settings.runs,
            )
            for job in trained
        ]
        for variant, trained in jobs.items()
    }
    yield Phase(title="evaluate", jobs=[cell for each in cells.values() for cell in each])
    ways = {variant: Way(name=variant, cells=each) for variant, each in cells.items()}
    compare = CompareJob(
        name=f"{name}-pairs",
        contrasts=[(ways[a], ways[b]) for a, b in contrasts],
        figures=("em",),
        runs=settings.runs,
        out=settings.out,
    )
    yield Phase(title="compare", jobs=[compare])
    losses = LossesJob(
        name=f"{name}{SMOKE}" if settings.smoke else name,
        trainings=[Training(way=variant, job=job) for variant, trained in jobs.items() for job in trained],
        runs=settings.runs,
        out=settings.out,
    )
    yield Phase(title="losses", jobs=[losses])
    yield Phase(title="tables", jobs=[TablesJob(experiment=name, runs=settings.runs, out=settings.out)])


def settings_of(name: str, *, checkpoint: str | None, budget: str | None, limit: int | None, **rest: Any) -> Settings:
    """``rest`` as ``Settings``. Raises ``InputError`` for a start, which no ablation has, and an unknown budget."""
    if checkpoint is not None:
        raise InputError(f"experiment {name!r} starts from the project's own decoder; leave --checkpoint out")
    budget = budget or "full"
    if budget not in BUDGETS:
        raise unknown(f"scale of experiment {name!r}", budget, BUDGETS)
    return Settings(budget=budget, limit=limit or (SMOKE_LIMIT if budget == "smoke" else None), **rest)
