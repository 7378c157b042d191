"""How standard RAG's decoder is trained: one stage, fine-tuning on question answering over passages (LLaMA_FT).

At the scale ``tiny`` there is no published decoder to start from, so the stage also teaches the language of the
synthetic world, from the disclosed hand-built start of ``harness.model.circuit_init``. The numbers were measured on
2 CPU cores; results/LOG.md has what was tried.
"""

from __future__ import annotations

from dataclasses import dataclass

from harness.data.world.reading import ReadingConfig
from harness.train.stage import Muon, Schedule, Stage


@dataclass(frozen=True, kw_only=True)
class ReaderRecipe:
    """A stage with its data, loss weight and start. ``start`` is ``circuit`` (hand-built) or ``random``."""

    stage: Stage
    data: ReadingConfig
    language_weight: float
    shape: str
    start: str
    template: str


FINETUNE = {
    "tiny": ReaderRecipe(
        stage=Stage(
            name="finetune",
            steps=900,
            optimizer=Muon(lr=3e-3, adamw_lr=2e-3),
            schedule=Schedule(warmup=0.04, decay="cosine", floor=0.05),
            checkpoint_every=100,
        ),
        data=ReadingConfig(namesakes=0.75),
        language_weight=0.02,
        shape="tiny",
        start="circuit",
        template="tagged",
    ),
}
