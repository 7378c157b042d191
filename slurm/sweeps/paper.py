"""The paper's training at its scale: five stages of REFRAG v2 on 64 H100, one after another, then the main table.

    refrag-bench sweep submit paper --cluster h100 --device cuda --dry-run
    refrag-bench sweep submit paper --cluster h100 --device cuda --checkpoint LLAMA --data DIR --minutes 1440 --watch
    refrag-bench sweep submit paper --cluster local --scale smoke       the same phases, two processes each, minutes

Fills     results/tables/paper.*, paper-SUITE.*
Cost      2,773 GPU-hours at k = 16 (k8: 2,956, k32: 2,678, k64: 2,633), 43 hours of 8 nodes of 8 H100: computed by
          `refrag-bench plan` at an assumed MFU of 0.4, every example at its longest; evaluation is not in it
          The smoke: 50 jobs, 11 minutes of one core, nearly all of it the start of processes
Expect    nothing of this was run. The training losses of the paper's Figure 10 end at about 1.456 at k = 8 and 1.493 at
          k = 64 (read off the figure); its scores stand beside ours in results/tables

``--scale`` is the k that is trained: k8, k16 (default), k32, k64. Stages, rates, batch and order are the paper's, each
with its page or marked as assumed, in ``refrag_v2/paper_scale.py``. The long text of four of them is read from the
folder ``windows`` of the data root, prepared once for all k:

    refrag-bench data prepare --data TEXT --tokenizer LLAMA --sets ArXiv,Book --mixture 50/50-by-tokens \\
        --tokens 20000000000 --workers 16 --out DIR/windows

Today a submission is refused and says why: nothing here reads the instruction sets yet, and the policy is trained by
one process. CEPE and the
fine-tuned LLaMA of the paper have no training at this scale here: the table holds what needs none, and REFRAG.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from harness.cli.plan import MFU, PRICE_USD
from harness.data.world.mirror import WorldConfig
from harness.errors import InputError, unknown
from refrag_v2.paper_scale import RATES, STAGES
from refrag_v2.paper_stages import SMOKE
from slurm.jobs.data import WorldJob
from slurm.jobs.train import TrainJob
from slurm.phases import Phase
from slurm.plan.plan import make_plan
from slurm.sweeps.main_table import SMOKE_LIMIT, table
from slurm.sweeps.tiny import POLICY, every_system, rag_training, train_phase

NAME = "paper"
NODES, TASKS_PER_NODE = 8, 8
SMOKE_TASKS = 2
WINDOWS = "windows"
LOADERS = 2  # beside each GPU: ahead of it by more than five times (tests/benchmarks/test_loader_speed.py)
DEFAULT = "k16"
BUDGETS: Mapping[str, int] = {f"k{k}": k for k in RATES} | {"smoke": 16}


def paper(
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
    """Phases of the experiment. ``checkpoint`` is the decoder to start from, a folder; ``data`` the data root, with
    windows in it.

    Raises ``InputError`` for an unknown ``budget``, for full size on a CPU, and for a start or data of one's own in the
    smoke, which is of the synthetic world.
    """
    budget = budget or DEFAULT
    if budget not in BUDGETS:
        raise unknown(f"scale of experiment {NAME!r}", budget, BUDGETS)
    k, smoke = BUDGETS[budget], budget == "smoke"
    if not smoke and device == "cpu":
        raise InputError(
            f"experiment {NAME!r} trains {NODES * TASKS_PER_NODE} processes with a GPU each: --device cuda"
        )
    if smoke and (data or checkpoint):
        raise InputError(
            f"the smoke of experiment {NAME!r} is of the synthetic world; leave --data and --checkpoint out"
        )
    settings: dict[str, Any] = dict(runs=runs, device=device, from_scratch=from_scratch)
    reader = rag_training(budget="long", **settings)
    if smoke:
        yield train_phase([reader])  # and with it the decoder that REFRAG starts from
    text = data / WINDOWS if data else None
    trained = _trainings(f"paper-k{k}{SMOKE if smoke else ''}", checkpoint, text, smoke=smoke, **settings)
    planned = {} if smoke else make_plan("7b", k=k, mfu=MFU, price_usd=PRICE_USD).stages
    for stage, job in trained.items():
        yield Phase(title=stage, jobs=[job], gpu_hours=planned[stage].gpu_hours if planned else None)

    world = WorldJob(config=WorldConfig(), folder=runs / "data" / WorldConfig().name)
    if smoke:
        yield Phase(title="data", jobs=[world])
    refrag = str(trained["policy"].checkpoint)
    read_by = str(reader.checkpoint) if smoke else checkpoint or "the decoder"
    systems = [*every_system(read_by, {}, {k: refrag}), ("refrag_v2", refrag, {"k": k, **POLICY})]
    yield from table(
        NAME,
        [systems],
        data=world.folder if smoke else data,
        limit=limit or (SMOKE_LIMIT if smoke else None),
        device=device,
        runs=runs,
        out=out,
    )


def _trainings(
    scale: str, checkpoint: str | None, text: Path | None, *, smoke: bool, **settings: Any
) -> dict[str, TrainJob]:
    """The stages in their order, each from the one before. In the smoke one process trains the policy."""
    jobs: dict[str, TrainJob] = {}
    start: Path | TrainJob | None = Path(checkpoint) if checkpoint else None
    for stage, planned in STAGES.items():
        job = TrainJob(
            system="refrag_v2",
            stage=stage,
            scale=scale,
            start=start,
            recompute=not smoke,
            nodes=1 if smoke else NODES,
            tasks_per_node=(1 if planned.rollouts else SMOKE_TASKS) if smoke else TASKS_PER_NODE,
            **settings,
        )
        start = jobs[stage] = replace(job, text=text, loaders=LOADERS) if job.on_text else job
    return jobs
