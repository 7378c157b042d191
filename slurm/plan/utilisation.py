"""What share of a device's peak does a training reach? Model FLOPs of its batches over time and peak (MFU).

FLOPs are counted as in ``slurm.plan.flops`` (PaLM, appendix B: 2, 4 or 6 per weight and position by what is trained,
all positions of a window attended to, nothing recomputed), but from the batches as they come: padding is no work. A row
of n positions is a window of n; sums of n and n^2 stay on the device until somebody asks, so that counting waits for
nothing.

    FLOPs = sum over parts of  w matrix sum(n) + a layers attention sum(n^2)

MFU is left out where the peak is not known, or the model is none of those that are counted: REFRAG v2 (not its policy)
and a plain decoder.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from slurm.plan.flops import ATTENTION_FLOPS, FLOW, WEIGHT_FLOPS, Use
from slurm.plan.parts import Part, measure

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from harness.train.loop import Logged, Loss
    from harness.train.rows import Batch

# Dense FLOP/s in bfloat16 by NVIDIA's data sheets (SXM), by a part of the device's name.
PEAKS: Mapping[str, float] = {"H100 80GB HBM3": 989e12, "H200": 989e12, "A100-SXM4": 312e12}


def peak_flops(device: torch.device, precision: str) -> float | None:
    """FLOP/s that the data sheet of ``device`` states; None for one that is not in ``PEAKS``, and for float32."""
    import torch

    if device.type != "cuda" or precision != "bfloat16":
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak for part, peak in PEAKS.items() if part in name), None)


class Arithmetic:
    """The FLOPs of the batches that ``model`` was trained on. Which of its parts are trained is looked up at each."""

    def __init__(self, model: nn.Module, parts: Mapping[str, Part]) -> None:
        self._modules = {name: model if len(parts) == 1 else getattr(model, name) for name in parts}
        self._parts = parts
        self._sums: dict[tuple[str, Use], tuple[Tensor, Tensor]] = {}

    @classmethod
    def of(cls, model: nn.Module) -> Arithmetic | None:
        """None for a model that is not counted."""
        from transformers import LlamaForCausalLM

        from harness.model.encoders import Roberta
        from refrag_v2.model import Refrag

        if isinstance(model, LlamaForCausalLM):
            return cls(model, {"decoder": _llama(model)})
        if not isinstance(model, Refrag):
            return None
        encoder = model.encoder
        if isinstance(encoder, Roberta):
            shape = encoder.model.config
            read = measure(encoder, layers=shape.num_hidden_layers, attention=shape.hidden_size)
        else:
            read = measure(encoder, layers=len(encoder.layers), attention=_attention(encoder.config))
        return cls(model, {"encoder": read, "projector": measure(model.projector), "decoder": _llama(model.decoder)})

    def add(self, batch: Batch) -> None:
        """Count a batch: ``attention_mask`` (B, T); of one with chunks ``encoder_mask`` (N, S), ``n_chunks`` (B,)."""
        rows = {"decoder": batch["attention_mask"].sum(1)}
        if "encoder" in self._parts:
            rows |= {"encoder": batch["encoder_mask"].sum(1), "projector": batch["n_chunks"]}
        for name, n in rows.items():
            key = name, self._use(name)
            sums = n.sum(), n.square().sum()
            had = self._sums.get(key)
            self._sums[key] = sums if had is None else (had[0] + sums[0], had[1] + sums[1])

    def flops(self) -> float:
        """All that was added."""
        counted = 0.0
        for (name, use), (positions, pairs) in self._sums.items():
            part = self._parts[name]
            counted += float(positions) * WEIGHT_FLOPS[use] * part.matrix
            counted += float(pairs) * ATTENTION_FLOPS[use] * part.layers * part.attention
        return counted

    def _use(self, name: str) -> Use:
        trained = {part: any(p.requires_grad for p in module.parameters()) for part, module in self._modules.items()}
        if trained[name]:
            return "trained"
        return "through" if any(trained.get(before) for before in FLOW[: FLOW.index(name)]) else "forward"


def with_mfu(model: nn.Module, loss: Loss, logged: Logged, peak: float | None) -> tuple[Loss, Logged]:
    """The two, so that rows have an ``mfu`` too: of this process's device, from the first batch to the row.

    A batch that cannot be counted ends the counting and not the training.
    """
    counting = [found] if peak and (found := Arithmetic.of(model)) else []
    began: list[float] = []

    def counted(model: nn.Module, batch: Batch) -> Tensor:
        if not began:
            began.append(time.perf_counter())
        try:
            for arithmetic in counting:
                arithmetic.add(batch)
        except Exception:
            counting.clear()
        return loss(model, batch)

    def told(row: Mapping[str, Any]) -> None:
        reached = [each.flops() / (time.perf_counter() - began[0]) / peak for each in counting if peak]
        logged({**row, "mfu": reached[0]} if reached else row)

    return (counted, told) if counting else (loss, logged)


def _llama(decoder: Any) -> Part:
    return measure(decoder, layers=decoder.config.num_hidden_layers, attention=_attention(decoder.config))


def _attention(config: Any) -> int:
    return int(config.num_attention_heads * config.head_dim)
