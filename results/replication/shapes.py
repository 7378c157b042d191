"""The model and the card of the paper's latencies, as far as a table's arithmetic needs them, without torch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class DecoderShape:
    """``parameters`` as counted on the shape of the same name in ``harness.model.load``."""

    width: int
    layers: int
    parameters: int

    @property
    def bfloat16_bytes(self) -> int:
        return 2 * self.parameters


LLAMA2_7B = DecoderShape(width=4096, layers=32, parameters=6_738_415_616)
# NVIDIA's data sheet of the A100 80 GB SXM, the fastest of its kind: bf16 without sparsity, and memory.
A100_FLOPS_PER_S = 312e12
A100_BYTES_PER_S = 2.039e12
