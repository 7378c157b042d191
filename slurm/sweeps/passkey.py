"""How long a context is each system good for? Pass keys and far look-ups, within the trained length and past it.

    refrag-bench run passkey                     from the accepted checkpoints
    refrag-bench run passkey --from-scratch      trains everything, the checkpoints that these start from too

Fills     results/tables/passkey*.*, results/figures/passkey*.*
Cost      offline, CPU: 6 trainings of 800 steps, 3 to 10 minutes each on a busy core, then 120 cells, some 15 minutes
Expect    within 512 tokens 95 to 100 % of the keys on tokens, 77 to 89 by REFRAG at k = 8; at 1,024 nothing, but half
          by REFRAG and all by CEPE; a fact 1,024 tokens away 4 % on tokens, 86 and 97 (results/LOG.md)

Every system starts from the checkpoint of the main table and practises on the same rows of up to 512 tokens
(harness/data/world/memory_practice.py), then answers at 128 to 4,096 tokens, REFRAG at up to 16,384. So each chunk
embedding being one position can be read off twice: at equal tokens, and at equal decoder positions (standard RAG at L
against rate k at k L). Nothing is expanded. The instructions of the template are left out: the tiny tokenizer spells
them in 133 tokens, more than the shortest context has.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from harness.data.passkey import TRAINED_LENGTH
from harness.data.world.links import TRAINED_DISTANCE
from harness.errors import InputError
from slurm.jobs.evaluate import EvaluateJob
from slurm.jobs.tables import TablesJob
from slurm.jobs.train import TrainJob
from slurm.phases import Phase
from slurm.sweeps.tiny import NOTHING, train_phase

NAME = "passkey"
RATES = (8, 16, 32)
ON_TOKENS = ("standard_rag", "kv_reuse", "cepe")
LENGTHS = (128, 256, TRAINED_LENGTH, 1024, 2048, 4096)
LONGER = (8192, 16384)  # REFRAG's alone: k times a length at which standard RAG was asked
AMONG = 4  # keys in one context
AMONG_LENGTHS = (256, TRAINED_LENGTH, 2048)
DISTANCES = (32, 128, TRAINED_DISTANCE, 1024, 2048)
STEPS = (1, 2)
PER_DEPTH = 40
PER_DISTANCE = 150
POSITIONS = 8192  # more than the decoder's own window: nothing is left out at any length
DIGITS = 5
ANSWER_TOKENS = DIGITS + 2  # a space before it, and an end after it
BATCH = 4


def passkey(
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
    """Phases of the experiment. Raises ``InputError`` for what it has no use for."""
    if data or checkpoint or budget:
        raise InputError(
            f"experiment {NAME!r} makes its own data and trains all systems alike; leave --data, --checkpoint and "
            "--scale out"
        )
    settings: dict[str, Any] = dict(stage="memory", runs=runs, device=device, from_scratch=from_scratch)
    on_tokens = [TrainJob(system=system, scale="tiny", **settings) for system in ON_TOKENS]
    compressed = {k: TrainJob(system="refrag_v2", scale=f"tiny-k{k}", **settings) for k in RATES}
    yield train_phase([*on_tokens, *compressed.values()])

    def cell(job: TrainJob, options: Mapping[str, Any], suite: str, **asked: Any) -> EvaluateJob:
        return EvaluateJob(
            system=job.system,
            suite=suite,
            checkpoint=str(job.checkpoint),
            asked=asked,
            limit=limit,
            max_new_tokens=ANSWER_TOKENS,
            batch_size=BATCH,
            device=device,
            options={"max_positions": POSITIONS, **options},
            experiment=NAME,
            runs=runs,
        )

    def cells(job: TrainJob, options: Mapping[str, Any], lengths: tuple[int, ...]) -> Iterator[EvaluateJob]:
        of_key: dict[str, Any] = dict(n=PER_DEPTH, digits=DIGITS, instructions=False)
        for length in lengths:
            yield cell(job, options, "passkey", length=length, **of_key)
        for length in AMONG_LENGTHS:
            yield cell(job, options, "passkey", length=length, keys=AMONG, **of_key)
        for steps in STEPS:
            for distance in DISTANCES:
                yield cell(job, options, "long_range", distance=distance, steps=steps, n=PER_DISTANCE)

    asked = [found for job in on_tokens for found in cells(job, {}, LENGTHS)]
    for k, job in compressed.items():
        asked += cells(job, {"k": k, **NOTHING}, (*LENGTHS, *LONGER))
    yield Phase(title="evaluate", jobs=asked)
    yield Phase(title="tables", jobs=[TablesJob(experiment=NAME, runs=runs, out=out)])
