"""The paper's Table 1 and 2 in small, on real language: log-perplexity of the next tokens given s tokens of context.

    refrag-bench run perplexity --data DIR      DIR: a folder with parquet or jsonl in SlimPajama's schema
    refrag-bench run perplexity --scale quarter --limit 200 --data DIR      what the accepted records are of

Fills     results/tables/perplexity.*, results/figures/perplexity.*
Cost      offline, CPU: tokenising 89 M characters once (154 s measured), then, in a quarter of the steps and with 200
          windows a set, about an hour of one core; four times as long in full, which was not run yet
Expect    at s = 256 full context below no context by .05 to .07 nats, REFRAG's chunks worth four fifths of that to
          its own decoder, and CEPE's a fifth to a third (results/LOG.md)

All systems go on from one decoder: in full of 6.2 M tokens in windows of 384 (1.1 M parameters, BPE of 2,048). Full
context, no context, LLaMA_K and REPLUG read with that decoder after 2.1 M more tokens of the same. REFRAG at each k and
CEPE train on the same 12,800 windows of 256 + 128 tokens (1.6 M predicted tokens, 1.8 to 2.1 M decoder tokens); CEPE's
decoder stays frozen, as released.
Rates of REFRAG were chosen from four short trials at k = 8 on windows of the validation split: what comes out is not of
unseen text in that respect.
Beyond s + o = 384 nobody was trained: what the second table shows of longer contexts is extrapolation.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from harness.data.text import open_text
from harness.errors import InputError, unknown
from slurm.jobs.differences import DifferencesJob
from slurm.jobs.losses import LossesJob, Training
from slurm.jobs.perplexity import PerplexityJob
from slurm.jobs.tables import PerplexityTablesJob
from slurm.jobs.text import TextJob
from slurm.jobs.train import TrainJob
from slurm.local import Phase
from slurm.sweeps.tiny import train_phase

NAME = "perplexity"
RATES = (8, 16, 32)
CONTEXTS = (256, 512, 1024)  # the first is the trained one
NOTHING: Mapping[str, Any] = MappingProxyType({})
BUDGETS = {"long": "", "quarter": "-quarter", "short": "-short"}
# What reads with full context's decoder.
ON_FULL_CONTEXT: tuple[tuple[str, Mapping[str, Any]], ...] = (
    ("standard_rag", NOTHING),
    ("llama_k", {"k": 8}),
    ("replug", NOTHING),
)


def perplexity(
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
    """Phases of the experiment; ``limit`` is the number of windows of a set, ``short`` a budget of two steps each.

    Raises ``InputError`` without ``data``, for a ``checkpoint`` (its tokens would not be the text's), and for an
    unknown ``budget``.
    """
    budget = budget or "long"
    if budget not in BUDGETS:
        raise unknown("budget", budget, BUDGETS)
    if data is None:
        raise InputError(f"experiment {NAME!r} needs a text: give a folder or a Hub id with --data")
    if checkpoint is not None:
        raise InputError(f"experiment {NAME!r} trains its own decoder, on the text's own tokens; leave it out")
    text = TextJob(data=str(data), runs=runs)
    yield Phase(title="text", jobs=[text])
    prepared = text.folder

    def training(system: str, stage: str, scale: str = "text-tiny") -> TrainJob:
        return TrainJob(
            system=system,
            stage=stage,
            scale=f"{scale}{BUDGETS[budget]}",
            runs=runs,
            device=device,
            from_scratch=from_scratch,
            text=prepared,
        )

    full = training("standard_rag", "finetune")
    cepe = training("cepe", "cpt")
    refrags = {k: training("refrag_v2", "cpt", f"text-tiny-k{k}") for k in RATES}
    yield train_phase([full, cepe, *refrags.values()])

    def cell(
        system: str, job: TrainJob, name: str, context: int, options: Mapping[str, Any] = NOTHING
    ) -> PerplexityJob:
        return PerplexityJob(
            system=system,
            checkpoint=str(job.checkpoint),
            text=prepared,
            set=name,
            context=context,
            runs=runs,
            limit=limit,
            device=device,
            options=options,
            experiment=NAME,
        )

    of_context: dict[tuple[str, int], list[PerplexityJob]] = {}
    without: dict[str, list[PerplexityJob]] = {}
    for name in open_text(prepared).sets:
        without[name] = [cell("no_context", job, name, 0) for job in (full, cepe, *refrags.values())]
        for context in CONTEXTS:
            of_context[name, context] = [
                *(cell(system, full, name, context, options) for system, options in ON_FULL_CONTEXT),
                cell("cepe", cepe, name, context),
                *(cell("refrag_v2", job, name, context, {"k": k}) for k, job in refrags.items()),
            ]
    jobs = [job for row in (*without.values(), *of_context.values()) for job in row]
    yield Phase(title="score", jobs=jobs)

    contrasts = []
    for (name, context), cells in of_context.items():
        nothing, *own = without[name]
        contrasts += [(job, nothing) for job in cells]
        if context != CONTEXTS[0]:
            continue
        # What the context gives, apart from what training with it gave the decoder.
        contrasts += list(zip(cells[len(ON_FULL_CONTEXT) :], own, strict=True))
        by_name = {job.system: job for job in cells[: len(ON_FULL_CONTEXT) + 1]}
        contrasts += [(job, by_name[other]) for job in cells[-len(RATES) :] for other in ("cepe", "llama_k")]
    yield Phase(title="compare", jobs=[DifferencesJob(name=NAME, contrasts=contrasts, runs=runs, out=out)])
    trainings = [Training(way=f"k={k}", job=job) for k, job in refrags.items()]
    losses = LossesJob(name=f"{NAME}{BUDGETS[budget]}", trainings=trainings, runs=runs, out=out)
    yield Phase(title="losses", jobs=[losses])
    yield Phase(title="tables", jobs=[PerplexityTablesJob(experiment=NAME, runs=runs, out=out)])
