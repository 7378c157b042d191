"""How long does a stage take, and what does it cost? Its FLOPs over the machines' peak, at an assumed utilisation."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

from slurm.plan.flops import FLOW, example_flops
from slurm.plan.reading import curriculum_shares, read

if TYPE_CHECKING:
    from refrag_v2.paper_scale import PlannedStage
    from slurm.plan.parts import Part
    from slurm.plan.scales import Cluster, Scale


@dataclass(frozen=True, kw_only=True)
class StageCost:
    """One stage. ``flops`` is at full length throughout; ``curriculum_flops`` has Table 8's lengths, where they vary.

    Positions are of one example; ``flops_by_part`` is of one example too.
    """

    tokens: int
    examples: int
    batch: int
    steps: int
    lr: float
    trained: tuple[str, ...]
    chunks: int
    encoder_positions: int
    decoder_positions: int
    flops_by_part: Mapping[str, int]
    flops: float
    gpu_hours: float
    days: float
    cost_usd: float
    curriculum_flops: float
    curriculum_gpu_hours: float
    curriculum_cost_usd: float
    stated: Mapping[str, str]
    assumed: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class Total:
    flops: float
    gpu_hours: float
    days: float
    cost_usd: float
    curriculum_gpu_hours: float
    curriculum_cost_usd: float


def stage_cost(scale: Scale, stage: PlannedStage, parts: Mapping[str, Part], mfu: float, price_usd: float) -> StageCost:
    """Tokens, steps, FLOPs, GPU-hours and cost of one stage."""
    k, cluster, optimizer = scale.model.k, scale.cluster, stage.stage.optimizer
    reading = read(stage, k)
    by_part = example_flops(stage, parts, reading)
    read_examples = stage.stage.steps * stage.batch
    total = read_examples * sum(by_part.values())
    shares = curriculum_shares(reading.chunks) if stage.curriculum else {reading.chunks: 1.0}
    varied = read_examples * sum(
        share * sum(example_flops(stage, parts, read(stage, k, chunks)).values()) for chunks, share in shares.items()
    )
    hours, varied_hours = gpu_hours(total, cluster, mfu), gpu_hours(varied, cluster, mfu)
    return StageCost(
        tokens=stage.tokens,
        examples=stage.examples,
        batch=stage.batch,
        steps=stage.stage.steps,
        lr=optimizer.lr,
        trained=tuple(part for part in (*FLOW, "policy") if (part in FLOW or stage.rollouts) and stage.trains(part)),
        chunks=reading.chunks,
        encoder_positions=reading.encoder,
        decoder_positions=reading.decoder,
        flops_by_part=by_part,
        flops=total,
        gpu_hours=hours,
        days=hours / cluster.gpus / 24,
        cost_usd=hours * price_usd,
        curriculum_flops=varied,
        curriculum_gpu_hours=varied_hours,
        curriculum_cost_usd=varied_hours * price_usd,
        stated=stage.stated,
        assumed=stage.assumed,
    )


def gpu_hours(flops: float, cluster: Cluster, mfu: float) -> float:
    """FLOPs at a share ``mfu`` of the peak of one GPU, in hours of one GPU."""
    return flops / (mfu * cluster.peak_flops) / 3600


def total_of(stages: Collection[StageCost]) -> Total:
    """Of all of them together."""
    return Total(**{f.name: sum(getattr(stage, f.name) for stage in stages) for f in fields(Total)})
