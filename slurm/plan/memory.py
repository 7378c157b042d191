"""How much of a GPU's memory does a stage take?

Mixed precision under full sharding (ZeRO, arXiv:1910.02054, 16 bytes per trained parameter): ``MEMORY`` has the
formulas. Activation bytes per layer and position follow what autograd keeps of the transformers modules in bfloat16,
with an attention kernel that keeps no S x S matrix; ``measure_decoder`` and ``measure_encoder`` of
``slurm.plan.parts`` derive them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

from slurm.plan.flops import FLOW, use_of
from slurm.plan.reading import read

if TYPE_CHECKING:
    from refrag_v2.paper_scale import PlannedStage
    from slurm.plan.parts import Part
    from slurm.plan.scales import Scale

MEMORY: Mapping[str, str] = {
    "weights": "bf16, sharded: 2 B x parameters / GPUs",
    "gathered weights": "bf16, whole: 2 B x (parameters outside layers + 2 x largest layer)",
    "gradients": "bf16, sharded: 2 B x trained / GPUs",
    "gathered gradients": "bf16, whole: 2 B x (trained outside layers + 2 x largest trained layer)",
    "master weights": "fp32, sharded: 4 B x trained / GPUs",
    "AdamW moments": "fp32, sharded: 8 B x trained / GPUs",
    "logits and loss": "vocabulary x decoder positions x 12 B (log-softmax and two gradients in fp32), "
    "10 B where no gradient comes",
    "activations, all kept": "positions x layers x bytes per layer and position (below)",
    "activations, checkpointed": "positions x layers x 2 B x width, plus one layer's of the line above; where no "
    "gradient comes, in both lines, one layer's alone",
}
STATES = ("weights", "gathered weights", "gradients", "gathered gradients", "master weights", "AdamW moments")


def memory(scale: Scale, stage: PlannedStage, parts: Mapping[str, Part]) -> dict[str, float]:
    """Bytes per GPU by line of ``MEMORY``, at the stage's batch and its longest examples, and the two totals.

    All lines are added up, though not all peak at the same moment. Not counted: communication buffers, the allocator's
    fragmentation, and the optimizer's own scratch.
    """
    present = {name: part for name, part in parts.items() if name in FLOW or stage.rollouts}
    trained = [part for name, part in present.items() if stage.trains(name)]
    gpus = scale.cluster.gpus
    reading, rows = read(stage, scale.model.k), rows_per_gpu(scale, stage)

    def gathered(units: list[Part]) -> int:
        return 2 * (sum(p.root_parameters for p in units) + 2 * max(p.layer_parameters for p in units))

    n_trained = sum(part.parameters for part in trained)
    decoded = rows * reading.decoder * max(1, stage.rollouts)
    lines: dict[str, float] = {
        "weights": 2 * sum(part.parameters for part in present.values()) / gpus,
        "gathered weights": gathered(list(present.values())),
        "gradients": 2 * n_trained / gpus,
        "gathered gradients": gathered(trained),
        "master weights": 4 * n_trained / gpus,
        "AdamW moments": 8 * n_trained / gpus,
        "logits and loss": (10 if stage.rollouts else 12) * parts["decoder"].vocabulary * decoded,
    }
    kept = checkpointed = one_layer = 0
    for name, positions in (("decoder", decoded), ("encoder", rows * reading.encoder)):
        part, use = parts[name], use_of(stage, name)
        a_layer = positions * (part.kept_through if use == "through" else part.kept_trained)
        # Where no gradient comes nothing is kept: about one layer's tensors are there while it runs.
        one_layer = max(one_layer, a_layer)
        if use != "forward":
            kept += part.layers * a_layer
            checkpointed += part.layers * positions * 2 * part.width
    lines["activations, all kept"] = max(kept, one_layer)
    lines["activations, checkpointed"] = checkpointed + one_layer
    fixed = sum(lines[name] for name in (*STATES, "logits and loss"))
    lines["total, all kept"] = fixed + lines["activations, all kept"]
    lines["total, checkpointed"] = fixed + lines["activations, checkpointed"]
    return lines


def rows_per_gpu(scale: Scale, stage: PlannedStage) -> int:
    """Examples per GPU and pass."""
    return math.ceil(stage.batch / (scale.cluster.gpus * stage.stage.accumulation))
