"""Does the order of the stages matter? Reconstruction then CPT, CPT alone, reconstruction alone; three seeds.

    refrag-bench run order

Fills     results/tables/order.*, order-pairs.*
Cost      offline, CPU: 18 trainings of at most 300 steps (17 minutes of one busy core)
Expect    no difference where the encoder starts aligned (95 % either way), below chance where it does not

Once with an encoder that starts aligned (the decoder's own first layer, whose states the projector hands through), once
with one that does not (random weights, its own embeddings): reconstruction first should pay where there is something to
align. All have 300 steps, CPT alone spends them on CPT. The paper's claim is Table 12 (CPT fails without it).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

from slurm.phases import Phase
from slurm.sweeps.ablation import ablate, settings_of

NAME = "order"
ENCODERS: Mapping[str, str] = {"aligned": "ablation-k8", "unaligned": "ablation-k8-roberta-tiny"}


def order(**asked: Any) -> Iterator[Phase]:
    """Phases of the experiment."""
    settings = settings_of(NAME, **asked)
    variants, pairs = {}, []
    for encoder, scale in ENCODERS.items():
        both, alone, first = (f"{encoder}, {what}" for what in ("reconstruction then CPT", "CPT", "reconstruction"))
        variants[both] = partial(settings.trained, scale)
        variants[alone] = partial(settings.trained, f"{scale}-alone", skip=True)
        variants[first] = partial(settings.trained, scale, last="reconstruction")
        pairs += [(both, alone), (both, first)]
    return ablate(NAME, variants, pairs, settings)
