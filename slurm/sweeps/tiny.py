"""The main job: every system on the synthetic world, from nothing to tables.

    refrag-bench run tiny                                    (make run) from the accepted checkpoints
    refrag-bench run tiny --from-scratch                     trains everything in a short budget: a smoke of the recipe
    refrag-bench run tiny --from-scratch --scale long       trains the accepted checkpoints again

Fills     results/tables/tiny.*, tiny-selection.*, tiny-selection-cost.*, tiny-systems.*, tiny-systems-cost.*,
          results/figures/tiny*.*, and the seed's and the paper's tables and figures (results/replication/draw.py);
          results/report.html, all of it on one page
Cost      offline, 6 minutes on 2 idle cores from the accepted checkpoints, installation included: 138 cells of 500
          questions and a race of 33 systems. Beside other work 22 minutes from scratch in the short budget and 98 in
          the long one (when it had no baselines yet: 78 cells)
Expect    8 passages, nothing expanded: standard RAG 99 to 100, REFRAG 98 to 99 at k = 8, 96 to 97 at k = 16, 91 to 94
          at k = 32, where a reader that ignores the entity scores 15 to 20
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from harness.data.world.mirror import SAME_RELATION_SIZES, WorldConfig
from harness.errors import unknown
from harness.train.alignment import Gate
from slurm.jobs.align import AlignJob
from slurm.jobs.configurations import ConfigurationsJob
from slurm.jobs.data import RetrieveJob, WorldJob
from slurm.jobs.evaluate import EvaluateJob
from slurm.jobs.race import RaceJob
from slurm.jobs.tables import ReplicationJob, ReportJob, TablesJob
from slurm.jobs.train import TrainJob
from slurm.phases import Phase

NAME, SELECTION, SYSTEMS = "tiny", "tiny-selection", "tiny-systems"
SUITES = ("nq", "triviaqa", "popqa")
PASSAGES = (0, 1, 4, 8)
MOST = 8
RATES = (8, 16, 32)
ALIGNED = (1, 2, 4)  # chunks read back; the seed's gate is shown, and stops nothing here (refrag_v2/stages.py says why)
SHARE = 0.1
ANSWER_TOKENS = 4  # a value is one token; more would only show rambling
RACE_PROMPTS = 60
# The main table: every system at the most passages. What has no training of its own reads with standard RAG's decoder.
ON_STANDARD_RAG: tuple[tuple[str, Mapping[str, Any]], ...] = (
    ("standard_rag", {}),
    ("no_context", {}),
    ("replug", {}),
    ("llama_k", {"k": 8}),
    ("extract", {"k": 8}),
    ("extract", {"k": 16}),
    ("kv_reuse_plain", {}),
)
ON_THEIR_OWN: tuple[tuple[str, Mapping[str, Any]], ...] = (
    ("kv_reuse", {}),
    ("cepe", {}),
    ("cepe", {"cross_kv": "recomputed"}),
    ("refrag_v1", {"expand": 0.0}),
    ("refrag_v1", {"expand": 0.25}),  # one of its four chunks; a tenth of them is none
)
COMPARED = (8, 16)  # REFRAG's k there
IN_FULL = ("kv_reuse", "cepe")  # these at every number of passages
LAST_STAGES = {
    "kv_reuse": ("finetune", "tiny"),
    "cepe": ("cpt", "tiny"),
    "refrag_v1": ("train_policy", "tiny-k64"),
}
BUDGETS = {"long": "", "short": "-short"}

# What is expanded, and by whom: rows of the selection table.
NOTHING: Mapping[str, Any] = {"expand": 0.0, "select": "none"}
POLICY: Mapping[str, Any] = {"expand": SHARE, "select": "policy"}
CHOICES: tuple[Mapping[str, Any], ...] = (
    NOTHING,
    *({"expand": SHARE, "select": select} for select in ("random", "perplexity-desc", "perplexity-asc")),
    POLICY,
    {"expand": SHARE, "select": "oracle"},
    {"expand": 1.0, "select": "all"},
)


def tiny(
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
    """Phases of the experiment.

    ``data`` is for a world that is already on disk; None writes one below ``runs``. ``checkpoint`` is a decoder for
    standard RAG, which then runs alone.
    """
    budget = budget or ("short" if from_scratch else "long")
    settings: dict[str, Any] = dict(runs=runs, device=device, budget=budget, from_scratch=from_scratch)
    of_rag = rag_training(**settings)
    of_refrag = [refrag_training(k, **settings) for k in RATES]
    of_baselines = {system: baseline_training(system, **settings) for system in LAST_STAGES}
    world = WorldJob(config=WorldConfig(), folder=runs / "data" / WorldConfig().name)
    root = data or world.folder
    if data is None:
        yield Phase(title="data", jobs=[world])

    if checkpoint is None:
        yield train_phase([of_rag, *of_refrag, *of_baselines.values()])
    rag = checkpoint or str(of_rag.checkpoint)
    refrags = {} if checkpoint else {k: str(job.checkpoint) for k, job in zip(RATES, of_refrag, strict=True)}

    checks = [
        AlignJob(
            checkpoint=Path(refrag),
            chunks=ALIGNED,
            batches=2,
            gate=Gate(),
            device=device,
            out=runs / "alignment" / f"{NAME}-k{k}.json",
        )
        for k, refrag in refrags.items()
    ]
    if checks:
        yield Phase(title="verify alignment", jobs=checks)

    retrievals = {suite: RetrieveJob(suite=suite, retriever="bm25", data=root, runs=runs) for suite in SUITES}
    yield Phase(title="retrieve", jobs=list(retrievals.values()))

    def cell(
        suite: str,
        passages: int,
        system: str = "standard_rag",
        of: str = rag,
        options: Mapping[str, Any] = MappingProxyType({}),
        experiment: str = NAME,
    ) -> EvaluateJob:
        return EvaluateJob(
            system=system,
            suite=suite,
            checkpoint=of,
            passages=passages,
            data=root,
            retrieval=retrievals[suite] if passages and suite in retrievals else None,
            limit=limit,
            max_new_tokens=ANSWER_TOKENS,
            device=device,
            options=options,
            experiment=experiment,
            runs=runs,
        )

    contexts = [(suite, n) for suite in SUITES for n in PASSAGES]
    contexts += [("same_relation", n) for n in SAME_RELATION_SIZES]
    cells = [cell(suite, n) for suite, n in contexts]
    for k, refrag in refrags.items():
        cells += [cell(suite, n, "refrag_v2", refrag, {"k": k, **NOTHING}) for suite, n in contexts if n]
        cells += [cell(suite, n, "refrag_v2", refrag, {"k": k, **POLICY}) for suite, n in contexts if n == MOST]
    if refrags:
        baselines = {system: str(job.checkpoint) for system, job in of_baselines.items()}
        cells += [cell(suite, n, system, baselines[system]) for system in IN_FULL for suite, n in contexts if n]
    yield Phase(title="evaluate", jobs=cells)

    if refrags:
        choices = [cell("same_relation", MOST, experiment=SELECTION)]
        choices += [
            cell("same_relation", MOST, "refrag_v2", refrag, {"k": k, **options}, SELECTION)
            for k, refrag in refrags.items()
            for options in CHOICES
        ]
        yield Phase(title="select", jobs=choices)

        def rows(suite: str) -> list[EvaluateJob]:
            """Every system at the most passages, standard RAG first."""
            systems = every_system(rag, baselines, {k: refrags[k] for k in COMPARED})
            return [cell(suite, MOST, system, of, options, SYSTEMS) for system, of, options in systems]

        compared = {suite: rows(suite) for suite in ("same_relation", *SUITES)}
        yield Phase(title="compare systems", jobs=[job for jobs in compared.values() for job in jobs])
        once = {(job.system, job.checkpoint, tuple(job.options.items())): job for job in choices}
        for job in compared["same_relation"]:
            once.setdefault((job.system, job.checkpoint, tuple(job.options.items())), job)
        race = RaceJob(cells=list(once.values()), prompts=RACE_PROMPTS, runs=runs, experiments=(SELECTION, SYSTEMS))
        yield Phase(title="race", jobs=[race])
    drawn = (NAME, SELECTION, SYSTEMS) if refrags else (NAME,)
    if refrags:
        facts = out / "records" / "configurations.json"
        yield Phase(title="configurations", jobs=[ConfigurationsJob(out=facts)])
    beside = [ReplicationJob(runs=runs, out=out)] if refrags else []
    experiments = [TablesJob(experiment=name, runs=runs, out=out) for name in drawn]
    yield Phase(title="tables", jobs=[*experiments, *beside])
    yield Phase(title="report", jobs=[ReportJob(runs=runs, out=out / "report.html")])


def every_system(
    rag: str, baselines: Mapping[str, str], refrags: Mapping[int, str]
) -> list[tuple[str, str, Mapping[str, Any]]]:
    """Systems as (name, checkpoint, settings), standard RAG first.

    ``rag`` is the checkpoint of all that have no training of their own, ``baselines`` are those of others by name, and
    ``refrags`` REFRAG v2's by k; who has no checkpoint is left out.
    """
    return [
        *((system, rag, options) for system, options in ON_STANDARD_RAG),
        *((system, baselines[system], options) for system, options in ON_THEIR_OWN if system in baselines),
        *(("refrag_v2", of, {"k": k, **NOTHING}) for k, of in refrags.items()),
    ]


def baseline_training(system: str, runs: Path, device: str, budget: str, *, from_scratch: bool) -> TrainJob:
    """The last stage of a system that is compared with; the others are in its chain."""
    stage, scale = LAST_STAGES[system]
    return TrainJob(
        system=system,
        stage=stage,
        scale=f"{scale}{suffix(budget)}",
        runs=runs,
        device=device,
        from_scratch=from_scratch,
    )


def rag_training(runs: Path, device: str, budget: str, *, from_scratch: bool) -> TrainJob:
    """Standard RAG, fine-tuned on the decoder that all systems start from. Raises ``InputError`` for another budget."""
    return TrainJob(
        system="standard_rag",
        stage="finetune",
        scale=f"tiny{suffix(budget)}",
        runs=runs,
        device=device,
        from_scratch=from_scratch,
    )


def refrag_training(k: int, runs: Path, device: str, budget: str, *, from_scratch: bool) -> TrainJob:
    """The last stage of REFRAG v2; the others are in its chain."""
    return TrainJob(
        system="refrag_v2",
        stage="policy",
        scale=f"tiny-k{k}{suffix(budget)}",
        runs=runs,
        device=device,
        from_scratch=from_scratch,
    )


def suffix(budget: str, budgets: Mapping[str, str] = BUDGETS) -> str:
    """What a budget adds to the name of a scale. Raises ``InputError`` with the valid budgets."""
    if budget not in budgets:
        raise unknown("budget", budget, budgets)
    return budgets[budget]


def train_phase(targets: Sequence[TrainJob]) -> Phase:
    """Everything that ``targets`` need, each job once."""
    return Phase(title="train", jobs=list(dict.fromkeys(job for target in targets for job in target.chain)))
