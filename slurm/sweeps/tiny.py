"""The main job: every system on the synthetic world, from nothing to tables.

    refrag-bench run tiny          (make run)

Fills     results/tables/tiny.*, results/figures/tiny.*
Cost      offline, 5 minutes on 2 CPU cores, 4 of them training (2.6 M tokens)
Expect    standard RAG: EM about 1.4 closed-book (a relation has 36 values), 100 / 99 / 96 at 1 / 4 / 8 passages; on
          the same-relation hard set 100 / 99.8 / 98.8 at 2 / 4 / 8 passages, where a
          reader that ignores the entity scores 51 / 27 / 15
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from harness.data.world.mirror import SAME_RELATION_SIZES, WorldConfig
from slurm.jobs.data import RetrieveJob, WorldJob
from slurm.jobs.evaluate import EvaluateJob
from slurm.jobs.tables import TablesJob
from slurm.jobs.train import TrainJob
from slurm.local import Phase

NAME = "tiny"
SUITES = ("nq", "triviaqa", "popqa")
PASSAGES = (0, 1, 4, 8)
ANSWER_TOKENS = 4  # a value is one token; more would only show rambling


def tiny(
    *, data: Path | None, checkpoint: str | None, limit: int | None, device: str, runs: Path, out: Path
) -> Iterator[Phase]:
    """Phases of the experiment. ``data`` is for a world that is already on disk; None writes one below ``runs``."""
    world = WorldJob(config=WorldConfig(), folder=runs / "data" / WorldConfig().name)
    root = data or world.folder
    if data is None:
        yield Phase(title="data", jobs=[world])

    training = TrainJob(system="standard_rag", stage="finetune", scale="tiny", runs=runs, device=device)
    if checkpoint is None:
        yield Phase(title="train", jobs=[training])

    retrievals = {suite: RetrieveJob(suite=suite, retriever="bm25", data=root, runs=runs) for suite in SUITES}
    yield Phase(title="retrieve", jobs=list(retrievals.values()))

    def cell(suite: str, passages: int, retrieval: RetrieveJob | None) -> EvaluateJob:
        return EvaluateJob(
            system="standard_rag",
            suite=suite,
            checkpoint=checkpoint or str(training.checkpoint),
            passages=passages,
            data=root,
            retrieval=retrieval,
            limit=limit,
            max_new_tokens=ANSWER_TOKENS,
            device=device,
            experiment=NAME,
            runs=runs,
        )

    cells = [cell(suite, n, retrievals[suite] if n else None) for suite in SUITES for n in PASSAGES]
    cells += [cell("same_relation", n, None) for n in SAME_RELATION_SIZES]
    yield Phase(title="evaluate", jobs=cells)
    yield Phase(title="tables", jobs=[TablesJob(experiment=NAME, runs=runs, out=out)])
