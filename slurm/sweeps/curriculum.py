"""Does the curriculum matter? The paper's nine stages against six, three, v1's linear one and none; three seeds.

    refrag-bench run curriculum

Fills     results/tables/curriculum.*, curriculum-pairs.*
Cost      offline, CPU: 15 trainings of 100 + 200 steps, three of them those of ``order`` (the others: 12 minutes of one
          busy core)
Expect    95 % under all, but one seed of three fails under linear and under none (results/LOG.md)

The same curriculum in reconstruction and in CPT, at k = 8, up to 32 chunks. The seed's Table 11 and the paper's ask
this of reconstruction; here both stages are judged by the answers after them, and read back (runs/alignment).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

from slurm.phases import Phase
from slurm.sweeps.ablation import ablate, settings_of

NAME = "curriculum"
SCHEDULES: Mapping[str, str] = {
    "9 stages": "ablation-k8",
    "6 stages": "ablation-k8-6-stage",
    "3 stages": "ablation-k8-3-stage",
    "linear": "ablation-k8-linear",
    "none": "ablation-k8-none",
}


def curriculum(**asked: Any) -> Iterator[Phase]:
    """Phases of the experiment."""
    settings = settings_of(NAME, **asked)
    variants = {name: partial(settings.trained, scale) for name, scale in SCHEDULES.items()}
    nine, *others = SCHEDULES
    return ablate(NAME, variants, [(nine, other) for other in others], settings)
