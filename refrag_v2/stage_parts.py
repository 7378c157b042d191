"""What the scales of REFRAG's stages share: the schedule, the longest context, a stage of tiny training."""

from __future__ import annotations

from harness.train.stage import Muon, Schedule, Stage
from refrag_v2.recipe import ENCODING

# The tiny scale. Encoder and projector start afresh beside a decoder that can read: it moves slowly, they move fast. At
# equal rates the decoder learns to do without the chunks before they say anything (results/LOG.md).
SCHEDULE = Schedule(warmup=0.04, decay="cosine", floor=0.05)
LONGEST = 256  # tokens of context in training: 8 passages
CROWDED = 32  # from this k on a chunk has room for all four facts of a passage


def stage_of(name: str, steps: int, lr: float, boost: float, trained: tuple[str, ...] = ("",)) -> Stage:
    """A stage at ``lr``, encoder and projector at ``boost`` times that. AdamW takes what is no matrix, at 0.7 of it."""
    return Stage(
        name=name,
        steps=steps,
        optimizer=Muon(lr=lr, adamw_lr=0.7 * lr),
        schedule=SCHEDULE,
        trained=trained,
        boosted=ENCODING,
        boost=boost,
    )


def cpt_rates(k: int) -> tuple[float, float, float]:
    """The decoder's rate in CPT, the boost beside it, and the chunks' norm.

    Where chunks are crowded the decoder moves faster and they are longer (results/LOG.md).
    """
    return (4e-4, 10, 48.0) if k >= CROWDED else (2e-4, 20, 32.0)
