"""The paper's Table 1 and 2 in small, on real language: log-perplexity of the next tokens given s tokens of context.

    refrag-bench run perplexity --data DIR      DIR: a folder with parquet or jsonl in SlimPajama's schema
    refrag-bench run perplexity --scale quarter --limit 200 --data DIR      what the accepted records of 1.1 M are of
    refrag-bench run perplexity --scale mini --device cuda --data DIR       and those of 91 M parameters

Fills     results/tables/perplexity.*, results/figures/perplexity.*; mini: perplexity-mini.*
Cost      tokenising 89 M characters once (154 s measured; DIR may be what it left); then, offline, on a CPU: a quarter
          of the steps with 200 windows a set about an hour of one core; four times as long in full, which was not run
          yet; mini: 140 s of pre-training and 260 s of the rest, most side by side, on an H200
Expect    at s = 256 full context below no context by .05 to .07 nats, REFRAG's chunks worth four fifths of that to
          its own decoder, and CEPE's a fifth to a third; mini (results/LOG.md)

All systems go on from one decoder (numbers: harness/train/text_scales.py). Tiny, in full: 6.2 M tokens in windows of
384 (1.1 M parameters, BPE of 2,048). Full context, no context, LLaMA_K and REPLUG read with that decoder after 2.1 M
more tokens of the same. REFRAG at each k and CEPE train on the same 12,800 windows of 256 + 128 tokens (1.6 M predicted
tokens, 1.8 to 2.1 M decoder tokens); CEPE's decoder stays frozen, as released. Mini: 24.6 M tokens in windows of 1,280
(91 M parameters, BPE of 8,192), 5.5 M more for full context, 14,080 windows of 1,024 + 256 for the others.
Rates of tiny REFRAG were chosen from four short trials at k = 8 on windows of the validation split: what comes out is
not of unseen text in that respect. Mini's were not tried.
Beyond the trained s + o nobody was trained: what the second table shows of longer contexts is extrapolation.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from harness.data.text import open_text
from slurm.jobs.differences import DifferencesJob
from slurm.jobs.losses import LossesJob, Training
from slurm.jobs.perplexity import PerplexityJob
from slurm.jobs.tables import TextTablesJob
from slurm.jobs.train import TrainJob
from slurm.phases import Phase
from slurm.sweeps.on_text import asked, called
from slurm.sweeps.tiny import train_phase

NAME = "perplexity"
RATES = (8, 16, 32)
NOTHING: Mapping[str, Any] = MappingProxyType({})
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

    Raises ``InputError`` as ``on_text.asked`` does.
    """
    budget = budget or "long"
    scale, text = asked(NAME, data=data, checkpoint=checkpoint, budget=budget, runs=runs)
    size, name = scale.size, called(NAME, scale, budget)
    yield Phase(title="text", jobs=[text])
    prepared = text.folder

    def training(system: str, stage: str, recipes: str = scale.name) -> TrainJob:
        return TrainJob(
            system=system,
            stage=stage,
            scale=recipes,
            runs=runs,
            device=device,
            from_scratch=from_scratch,
            text=prepared,
        )

    full = training("standard_rag", "finetune")
    cepe = training("cepe", "cpt")
    refrags = {k: training("refrag_v2", "cpt", scale.of_rate(k)) for k in RATES}
    yield train_phase([full, cepe, *refrags.values()])

    def cell(
        system: str, job: TrainJob, set_: str, context: int, options: Mapping[str, Any] = NOTHING
    ) -> PerplexityJob:
        return PerplexityJob(
            system=system,
            checkpoint=str(job.checkpoint),
            text=prepared,
            set=set_,
            context=context,
            runs=runs,
            output=size.scoring.outputs[-1],
            outputs=size.scoring.outputs,
            longest=max(size.scoring.contexts),
            limit=limit,
            batch_size=size.scoring.batch_size,
            device=device,
            dtype=size.precision,
            options=options,
            experiment=name,
        )

    of_context: dict[tuple[str, int], list[PerplexityJob]] = {}
    without: dict[str, list[PerplexityJob]] = {}
    for set_ in open_text(prepared).sets:
        without[set_] = [cell("no_context", job, set_, 0) for job in (full, cepe, *refrags.values())]
        for context in size.scoring.contexts:
            of_context[set_, context] = [
                *(cell(system, full, set_, context, options) for system, options in ON_FULL_CONTEXT),
                cell("cepe", cepe, set_, context),
                *(cell("refrag_v2", job, set_, context, {"k": k}) for k, job in refrags.items()),
            ]
    cells_of_all = [job for row in (*without.values(), *of_context.values()) for job in row]
    # By system: each is opened once.
    cells_of_all.sort(key=lambda job: (job.system, job.checkpoint, str(job.options)))
    yield Phase(title="score", jobs=cells_of_all)

    contrasts = []
    for (set_, context), cells in of_context.items():
        nothing, *own = without[set_]
        contrasts += [(job, nothing) for job in cells]
        if context != size.paragraph.context:
            continue
        # What the context gives, apart from what training with it gave the decoder.
        contrasts += list(zip(cells[len(ON_FULL_CONTEXT) :], own, strict=True))
        by_name = {job.system: job for job in cells[: len(ON_FULL_CONTEXT) + 1]}
        contrasts += [(job, by_name[other]) for job in cells[-len(RATES) :] for other in ("cepe", "llama_k")]
    yield Phase(title="compare", jobs=[DifferencesJob(name=name, contrasts=contrasts, runs=runs, out=out)])
    trainings = [Training(way=f"k={k}", job=job) for k, job in refrags.items()]
    losses = LossesJob(name=NAME if budget == "long" else f"{NAME}-{budget}", trainings=trainings, runs=runs, out=out)
    yield Phase(title="losses", jobs=[losses])
    yield Phase(title="tables", jobs=[TextTablesJob(experiment=name, runs=runs, out=out)])
