"""What does a training at scale take? All of it in one plan, by arithmetic alone: nothing is measured here."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from harness.errors import InputError, unknown
from slurm.plan.cost import StageCost, Total, stage_cost, total_of
from slurm.plan.memory import MEMORY, memory, rows_per_gpu
from slurm.plan.parts import build_parts
from slurm.plan.scales import SCALES

if TYPE_CHECKING:
    from slurm.plan.scales import Cluster, Scale


@dataclass(frozen=True, kw_only=True)
class Beyond:
    """Another scale in one line. ``memory_bytes`` is of one GPU, checkpointed, in the stage that needs most."""

    decoder: str
    tokens: int
    total: Total
    memory_bytes: float
    fits: bool


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A row of the seed document's table "Estimated Resources", word for word; ``gpu_hours`` is GPUs x time."""

    phase: str
    gpus: str
    time: str
    cost: str
    gpu_hours: int


SEED_CLAIMS = (
    Claim(phase="Phase 1", gpus="1× A100", time="1 day", cost="~$50", gpu_hours=24),
    Claim(phase="Phase 2", gpus="1× A100", time="1 week", cost="~$350", gpu_hours=168),
    Claim(phase="Phase 3", gpus="8× A100", time="1 week", cost="~$2,800", gpu_hours=8 * 168),
    Claim(phase="Phase 4", gpus="64× H100", time="2 weeks", cost="~$50,000", gpu_hours=64 * 336),
)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Everything that ``refrag-bench plan`` prints; its field names are the keys of ``--json``."""

    scale: str
    k: int
    decoder: str
    encoder: str
    cluster: Cluster
    mfu: float
    price_usd: float
    parameters: Mapping[str, int]
    memory_bytes: Mapping[str, Mapping[str, float]]
    memory_formulas: Mapping[str, str]
    activation_bytes: Mapping[str, int]
    rows_per_gpu: Mapping[str, int]
    stages: Mapping[str, StageCost]
    total: Total
    beyond: Mapping[str, Beyond]
    assumed: Mapping[str, str]
    seed_claims: tuple[Claim, ...]


def make_plan(name: str, *, k: int, mfu: float, price_usd: float) -> Plan:
    """The plan of a scale. ``mfu`` is the share of the GPUs' peak that counts, ``price_usd`` of one GPU for one hour.

    Raises ``InputError`` for an unknown scale, a k that it lacks, an MFU outside (0, 1] or a price below 0.
    """
    if name not in SCALES:
        raise unknown("scale", name, SCALES)
    if not 0 < mfu <= 1:
        raise InputError(f"expected an MFU above 0 and at most 1, got {mfu}")
    if not 0 <= price_usd < math.inf:
        raise InputError(f"expected a price of at least 0 USD per GPU-hour, got {price_usd}")
    scale = SCALES[name](k)
    parts = build_parts(scale)
    stages = {key: stage_cost(scale, stage, parts, mfu, price_usd) for key, stage in scale.stages.items()}
    counts = {key: part.parameters for key, part in parts.items()}
    return Plan(
        scale=name,
        k=k,
        decoder=scale.decoder,
        encoder=scale.encoder,
        cluster=scale.cluster,
        mfu=mfu,
        price_usd=price_usd,
        parameters=counts | {"total": sum(counts.values())},
        memory_bytes={key: memory(scale, stage, parts) for key, stage in scale.stages.items()},
        memory_formulas=MEMORY,
        activation_bytes={
            "decoder, trained": parts["decoder"].kept_trained,
            "decoder, frozen": parts["decoder"].kept_through,
            "encoder, trained": parts["encoder"].kept_trained,
        },
        rows_per_gpu={key: rows_per_gpu(scale, stage) for key, stage in scale.stages.items()},
        stages=stages,
        total=total_of(stages.values()),
        beyond={other: _beyond(SCALES[other](k), mfu, price_usd) for other in SCALES if other != name},
        assumed={**scale.assumed, **_assumed(scale, mfu, price_usd)},
        seed_claims=SEED_CLAIMS,
    )


def _beyond(scale: Scale, mfu: float, price_usd: float) -> Beyond:
    parts = build_parts(scale)
    costs = [stage_cost(scale, stage, parts, mfu, price_usd) for stage in scale.stages.values()]
    most = max(memory(scale, stage, parts)["total, checkpointed"] for stage in scale.stages.values())
    return Beyond(
        decoder=scale.decoder,
        tokens=sum(cost.tokens for cost in costs),
        total=total_of(costs),
        memory_bytes=most,
        fits=most <= scale.cluster.memory_bytes,
    )


def _assumed(scale: Scale, mfu: float, price_usd: float) -> dict[str, str]:
    """What holds for every stage."""
    return {
        "MFU": f"{mfu:g} of {scale.cluster.peak_flops / 1e12:g} TFLOP/s (bf16, dense); not measured. Recomputing "
        "activations is not counted as work: with checkpointing the GPUs do a third more than is counted, a half where "
        "the decoder is frozen",
        "price": f"{price_usd:.2f} USD per GPU-hour; a rented {scale.cluster.gpu} costs more or less than that",
        "lengths": "every example at its longest; the columns T8 draw the number of chunks by the paper's "
        "curriculum instead, up to s / k, with cpt's target at its full length (left open by the paper)",
        "precision": "bf16 weights and gradients, fp32 master copy and moments; bf16 and FSDP are stated (p. 19), "
        "the dtype of the optimizer's state is not",
        "memory": "parameters outside layers stay gathered, of the layers this one and the next; no communication "
        "buffers, no fragmentation; with dropout in the encoder only",
        "not counted": "evaluation, baselines, data preparation, checkpoints, failures, and every run but one",
    }
