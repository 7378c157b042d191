"""Which trainings are planned? Each scale: the shapes of its parts, its stages, and the machines that it runs on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from refrag_v2 import paper_scale
from refrag_v2.paper_scale import PlannedStage, optimizer_steps

if TYPE_CHECKING:
    from refrag_v2.model import RefragConfig
    from refrag_v2.policy import PolicyConfig


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """Machines. ``memory_bytes`` and ``peak_flops`` (bfloat16, dense, per second) are of one GPU."""

    nodes: int
    gpus_per_node: int
    gpu: str
    memory_bytes: float
    peak_flops: float

    @property
    def gpus(self) -> int:
        return self.nodes * self.gpus_per_node


@dataclass(frozen=True, kw_only=True)
class Scale:
    """Everything that a plan is made from. The shapes are names of ``harness.model``."""

    decoder: str
    decoder_shape: str
    encoder: str
    encoder_shape: str
    encoder_vocabulary: int
    model: RefragConfig
    policy: PolicyConfig
    cluster: Cluster
    stages: Mapping[str, PlannedStage]
    assumed: Mapping[str, str]


def paper(k: int) -> Scale:
    """The paper's: LLaMA-2-7B and RoBERTa-large on 8 nodes of 8 H100 (p. 19)."""
    return Scale(
        decoder=paper_scale.DECODER,
        decoder_shape="llama2-7b",
        encoder=paper_scale.ENCODER,
        encoder_shape="roberta-large",
        encoder_vocabulary=50265,
        model=paper_scale.model_config(k),
        policy=paper_scale.POLICY,
        cluster=Cluster(nodes=8, gpus_per_node=8, gpu="H100 80 GB", memory_bytes=80e9, peak_flops=989e12),
        stages=paper_scale.STAGES,
        assumed=paper_scale.ASSUMED,
    )


def ten_times_the_data(k: int) -> Scale:
    """The paper's on ten times as much text; instruction data and policy stay as they are."""
    scale = paper(k)
    return replace(scale, stages={name: _longer(stage, 10) for name, stage in scale.stages.items()})


def _longer(planned: PlannedStage, times: int) -> PlannedStage:
    if not planned.of_corpus:
        return planned
    examples = times * planned.examples
    stage = replace(planned.stage, steps=optimizer_steps(examples, planned.batch))
    return replace(planned, examples=examples, stage=stage)


def seventy_b(k: int) -> Scale:
    """The paper's with LLaMA-2-70B in place of its decoder, at the same rates and on the same machines."""
    return replace(paper(k), decoder="meta-llama/Llama-2-70b-hf", decoder_shape="llama2-70b")


SCALES: Mapping[str, Callable[[int], Scale]] = {
    "7b": paper,
    "7b-10x-data": ten_times_the_data,
    "70b": seventy_b,
}
