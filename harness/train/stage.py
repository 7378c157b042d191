"""What a training stage is: the numbers of a recipe, as data that reads like a paper's table.

The mechanism that carries a stage out is ``loop.train``; the numbers of a system's own stages live in its
``stages.py``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """Learning rate against optimizer steps: linear warm-up over ``warmup`` of the steps, then decay to ``floor``.

    Counted in optimizer steps, never in micro-batches: a schedule sized in micro-batches and stepped once per
    accumulation never leaves its warm-up.
    """

    warmup: float = 0.04
    decay: Literal["cosine", "linear", "constant"] = "cosine"
    floor: float = 0.0

    def scale(self, step: int, steps: int) -> float:
        """The factor on the peak learning rate at 0-based ``step`` of ``steps``, in (0, 1]."""
        warmup_steps = math.ceil(self.warmup * steps)
        if step < warmup_steps:
            return (step + 1) / warmup_steps
        done = (step - warmup_steps) / max(1, steps - warmup_steps)
        match self.decay:
            case "cosine":
                left = 0.5 * (1.0 + math.cos(math.pi * done))
            case "linear":
                left = 1.0 - done
            case "constant":
                left = 1.0
        return self.floor + (1.0 - self.floor) * left


@dataclass(frozen=True, kw_only=True)
class AdamW:
    """AdamW for all parameters: what the paper names (p. 19). Betas and weight decay are not stated there."""

    lr: float
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Muon:
    """Muon for the matrices of the layers, AdamW at ``adamw_lr`` for embeddings and norms: the tiny scale only."""

    lr: float
    adamw_lr: float
    betas: tuple[float, float] = (0.9, 0.95)


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One stage: how long, with which optimizer and schedule, and which parts move.

    ``trained`` holds parameter-name prefixes; all others are frozen. ``boosted`` are prefixes whose parameters take
    ``boost`` times the learning rate: parts that start afresh beside trained ones.
    """

    name: str
    steps: int
    optimizer: AdamW | Muon
    schedule: Schedule = Schedule()
    accumulation: int = 1
    clip: float = 1.0
    precision: Literal["float32", "bfloat16"] = "float32"
    seed: int = 0
    trained: tuple[str, ...] = ("",)
    boosted: tuple[str, ...] = ()
    boost: float = 1.0
    checkpoint_every: int = 100
