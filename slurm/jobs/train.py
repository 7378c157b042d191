"""Train one stage of one system."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness import provenance
from harness.cli.catalog import RECIPES, find
from harness.config import digest
from harness.device import open_device
from harness.errors import unknown
from slurm.jobs import Progress


@dataclass(frozen=True, kw_only=True)
class TrainJob:
    """Train one stage of one system at one scale; the checkpoint lies in ``folder``."""

    system: str
    stage: str
    scale: str
    runs: Path
    device: str = "cpu"

    def recipe(self) -> Any:
        stages = find("system", RECIPES, self.system)
        scales = find(f"stage of {self.system}", stages, self.stage)
        if self.scale not in scales:
            raise unknown(f"scale of {self.system} {self.stage}", self.scale, scales)
        return scales[self.scale]

    @property
    def title(self) -> str:
        return f"train {self.system} {self.stage} ({self.scale})"

    @property
    def folder(self) -> Path:
        """Named after the recipe, so that a changed recipe never meets an old checkpoint."""
        return self.runs / "train" / self.system / f"{self.stage}-{self.scale}-{digest(self.recipe())}"

    @property
    def checkpoint(self) -> Path:
        return self.folder / "final"

    def run(self, progress: Progress | None = None) -> Path:
        """Train from the newest checkpoint, if any, and export; returns the exported folder."""
        if (self.checkpoint / "config.json").exists():
            return self.checkpoint
        from harness.data.world.tokenizer import ANSWER, build_tokenizer
        from harness.model.circuit_init import circuit_init
        from harness.model.load import random_decoder
        from harness.train.export import export
        from harness.train.loop import train
        from harness.train.losses import answer_loss

        recipe, device = self.recipe(), open_device(self.device)
        tokenizer = build_tokenizer()
        model = random_decoder(recipe.shape, seed=recipe.stage.seed)
        if recipe.start == "circuit":
            circuit_init(model, tokenizer.convert_tokens_to_ids(ANSWER), recipe.stage.seed)
        trained = train(
            recipe.stage,
            model.to(device),
            recipe.data.build(tokenizer),
            answer_loss(recipe.language_weight),
            self.folder,
            device=device,
            progress=None if progress is None else _training_progress(progress, recipe.stage.steps),
        )
        training = {
            "system": self.system,
            "lineage": [self.stage],
            "scale": self.scale,
            "data": "world",
            "recipe": recipe,
            "steps": trained.steps,
            "tokens": trained.tokens,
            "final_loss": trained.final_loss,
            "provenance": provenance.collect(self.device),
        }
        return export(model, tokenizer, training, self.checkpoint)

    def said(self, result: Path) -> str:
        return str(result)


def _training_progress(progress: Progress, steps: int) -> Callable[[int, float, float], None]:
    return lambda step, loss, rate: progress(step, steps, f"loss {loss:.3f}, {rate:,.0f} tokens/s")
