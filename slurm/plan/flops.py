"""How many FLOPs does one example of a stage take?

One multiply-add is 2. A matrix of N weights applied to one position takes

    2 N    forward
    2 N    backward, for the gradient of its input
    2 N    backward, for the gradient of its weights

so per position 6 N where it is trained, 4 N where it is frozen but a gradient passes through it to something trained
(the decoder of the reconstruction stage, on the way to the projector), and 2 N where no gradient comes. N counts the
weights of linear layers, the output head among them; looking up an embedding is no multiplication. Attention over S
positions multiplies Q by K and the weights by V, per layer and position 2 S A each, where A is heads x head size: 4
S A forward, and twice that backward whether or not anything is trained. Both are the count of PaLM (appendix B), which
model-FLOPs utilisation (MFU) is defined by: all S positions count under a causal mask too, and what activation
checkpointing recomputes does not. Vector operations (norms, activations, softmax, the optimizer) are left out.

Of the positions that an example takes (``slurm.plan.reading``) the encoder attends within one window (S = k + 2), the
projector not at all, the decoder over all of its own, and the policy over all chunks (S = L).

Each part of a stage is used in one of the three ways. A policy stage runs the encoder, the projector and G times the
decoder forward, the policy once forward (the older copy that draws) and once with its gradient.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from refrag_v2.paper_scale import PlannedStage
    from slurm.plan.parts import Part
    from slurm.plan.reading import Reading

Use = Literal["forward", "through", "trained"]
WEIGHT_FLOPS: Mapping[Use, int] = {"forward": 2, "through": 4, "trained": 6}
ATTENTION_FLOPS: Mapping[Use, int] = {"forward": 4, "through": 12, "trained": 12}
FLOW = ("encoder", "projector", "decoder")  # the way of the data; gradients come back the other way


def flops(part: Part, use: Use, positions: int, window: int) -> int:
    """FLOPs of ``part`` over ``positions`` that attend within windows of ``window`` (module docstring)."""
    attention = ATTENTION_FLOPS[use] * part.layers * part.attention * window
    return positions * (WEIGHT_FLOPS[use] * part.matrix + attention)


def use_of(stage: PlannedStage, part: str) -> Use:
    """How a stage uses one of ``FLOW``."""
    if stage.trains(part):
        return "trained"
    return "through" if any(stage.trains(before) for before in FLOW[: FLOW.index(part)]) else "forward"


def example_flops(stage: PlannedStage, parts: Mapping[str, Part], reading: Reading) -> dict[str, int]:
    """FLOPs of one example, by part."""
    L = reading.chunks
    counted = {
        "encoder": flops(parts["encoder"], use_of(stage, "encoder"), reading.encoder, reading.window),
        "projector": flops(parts["projector"], use_of(stage, "projector"), L, 0),
        "decoder": max(1, stage.rollouts)
        * flops(parts["decoder"], use_of(stage, "decoder"), reading.decoder, reading.decoder),
    }
    if stage.rollouts:
        counted["policy"] = flops(parts["policy"], "forward", L, L) + flops(parts["policy"], "trained", L, L)
    return counted
