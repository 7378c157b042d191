"""The same path over real questions: index, freeze, measure retrieval, read.

    refrag-bench run real --data DIR [--limit N] [--checkpoint DECODER]

Fills     results/tables/real.*, results/figures/real.*; prints hit@1/5/20 of BM25, FAISS and Qdrant
Cost      14,000 passages, 2,600 questions: 7.4 minutes of one CPU thread to embed the passages once; then 19.5 minutes
          on 2 shared cores, nearly all of it reading (bytes make prompts of 500 to 2,500 positions)
Expect    the retrieval figures are real. The default decoder has read nothing but the synthetic world, so its EM is
          near zero: the table proves the path, not the method. Give --checkpoint for a decoder that knows English.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from slurm.jobs.data import RetrieveJob
from slurm.jobs.evaluate import EvaluateJob
from slurm.jobs.tables import TablesJob
from slurm.phases import Phase
from slurm.sweeps.tiny import rag_training, train_phase

NAME = "real"
SUITES = ("nq", "popqa", "triviaqa")
RETRIEVERS = ("bm25", "faiss", "qdrant")
PASSAGES = (0, 1, 4)
READ_FROM = "bm25"


def real(
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
    """Phases of the experiment over the data root ``data`` (None: REFRAG_DATA); ``budget`` is that of ``tiny``."""
    budget = budget or ("short" if from_scratch else "long")
    training = rag_training(runs, device, budget, from_scratch=from_scratch)
    retrievals = [
        RetrieveJob(suite=suite, retriever=retriever, data=data, runs=runs)
        for retriever in RETRIEVERS
        for suite in SUITES
    ]
    yield Phase(title="index and retrieve", jobs=retrievals)

    if checkpoint is None:
        yield train_phase([training])
    read_from = {job.suite: job for job in retrievals if job.retriever == READ_FROM}
    cells = [
        EvaluateJob(
            system="standard_rag",
            suite=suite,
            checkpoint=checkpoint or str(training.checkpoint),
            passages=n,
            data=data,
            retrieval=read_from[suite] if n else None,
            limit=limit,
            max_new_tokens=16,
            device=device,
            experiment=NAME,
            runs=runs,
        )
        for suite in SUITES
        for n in PASSAGES
    ]
    yield Phase(title="evaluate", jobs=cells)
    yield Phase(title="tables", jobs=[TablesJob(experiment=NAME, runs=runs, out=out)])
