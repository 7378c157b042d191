"""What should the encoder read, and how do its states become a chunk? Pooling by window; three seeds.

    refrag-bench run pooling

Fills     results/tables/pooling.*, pooling-pairs.*
Cost      offline, CPU: 12 trainings of 100 + 200 steps, three of them those of ``order`` (an hour of one busy core)
Expect    95 % where the states stand side by side, whatever the window; below chance with their mean

Window: the encoder reads a chunk alone, as in the paper, or the whole passage once. Pooling: the k states side by side
(with a skip), or their mean.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

from slurm.phases import Phase
from slurm.sweeps.ablation import ablate, settings_of

NAME = "pooling"
WAYS: Mapping[str, str] = {
    "concat, chunk": "ablation-k8",
    "concat, passage": "ablation-k8-passage",
    "mean, chunk": "ablation-k8-mean",
    "mean, passage": "ablation-k8-mean-passage",
}


def pooling(**asked: Any) -> Iterator[Phase]:
    """Phases of the experiment."""
    settings = settings_of(NAME, **asked)
    variants = {name: partial(settings.trained, scale) for name, scale in WAYS.items()}
    pairs = [
        ("concat, passage", "concat, chunk"),
        ("mean, passage", "mean, chunk"),
        ("concat, chunk", "mean, chunk"),
        ("concat, passage", "mean, passage"),
    ]
    return ablate(NAME, variants, pairs, settings)
