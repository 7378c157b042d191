"""How does accuracy fall with k, at equal context tokens? Chunks of 2 to 64 tokens, three seeds.

    refrag-bench run k_ablation

Fills     results/tables/k_ablation.*, k_ablation-pairs.*
Cost      offline, CPU: 18 trainings of 100 + 200 steps (25 minutes of one busy core)
Expect    a peak at k = 8, the length of a fact; chance at 2, 4, 32 and 64

A fact is 8 tokens here and a passage tells of eight facts: k = 64 holds a whole passage in one embedding.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from itertools import pairwise
from typing import Any

from slurm.phases import Phase
from slurm.sweeps.ablation import ablate, settings_of

NAME = "k_ablation"
RATES = (2, 4, 8, 16, 32, 64)
SMOKE_RATES = (8, 16)


def k_ablation(**asked: Any) -> Iterator[Phase]:
    """Phases of the experiment."""
    settings = settings_of(NAME, **asked)
    rates = SMOKE_RATES if settings.smoke else RATES
    variants = {f"k={k}": partial(settings.trained, f"ablation-k{k}") for k in rates}
    pairs = [(f"k={a}", f"k={b}") for a, b in pairwise(rates)]
    return ablate(NAME, variants, pairs, settings)
