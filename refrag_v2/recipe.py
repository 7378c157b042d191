"""How a stage of REFRAG is carried out: its model, batches, loss, and what it leaves. Its numbers: ``stages``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, cast

from harness.data.stream.window_practice import Stream, WindowExercise
from harness.data.world.practice import Exercise, Practice
from harness.train.chunk_model import lay_out_for, read_chunks
from harness.train.chunk_rows import condense, expand_at_random, expand_each
from harness.train.losses import answer_loss
from harness.train.rows import Batch
from harness.train.stage import Stage
from refrag_v2.grpo import GrpoConfig, PolicyTraining, WarmUpConfig, grpo, warm_up
from refrag_v2.model import RefragConfig
from refrag_v2.policy import Policy, PolicyConfig

if TYPE_CHECKING:
    import random
    from collections.abc import Sequence

    from harness.train.loop import Batches, Loss
    from harness.train.rows import Row
    from refrag_v2.model import Refrag

Start = tuple[str, str, str]
ENCODING = ("encoder", "projector")


@dataclass(frozen=True, kw_only=True)
class RefragRecipe:
    """A stage of everything but the policy. Each row draws its share of expanded chunks from ``expand``.

    ``model`` builds encoder and projector around a plain decoder; after the first stage it is what the start has.
    """

    stage: Stage
    after: Start | None
    requires: tuple[str, ...]
    model: RefragConfig
    data: Exercise | WindowExercise
    expand: tuple[float, ...] = (0.0,)
    language_weight: float = 0.0
    init: None = None
    template: str = "tagged"
    stored_as: str = "bfloat16"

    def open(self, start: Path | None) -> tuple[Refrag, Any]:
        return open_model(self.model, start, seed=self.stage.seed)

    def batches(self, model: Refrag, tokenizer: Any) -> Batches:
        def collate_each(rows: Sequence[Row], rngs: Sequence[random.Random]) -> Batch:
            batch = lay_out_for(model, rows, tokenizer)
            return condense(batch, expand_each(batch["n_chunks"], self.expand, rngs))

        if isinstance(self.data, WindowExercise):
            return Stream(self.data, tokenizer, collate_each, seed=self.stage.seed)

        def collate(rows: Sequence[Row], rng: random.Random) -> Batch:
            batch = lay_out_for(model, rows, tokenizer)
            return condense(batch, expand_at_random(batch["n_chunks"], self.expand, rng))

        return Practice(self.data, tokenizer, collate, seed=self.stage.seed)

    def loss(self) -> Loss:
        return answer_loss(read_chunks, self.language_weight)

    def export(self, model: Refrag, tokenizer: Any, training: dict[str, Any], folder: Path) -> Path:
        from refrag_v2.checkpoint import save_refrag

        return save_refrag(model, tokenizer, training, folder)


@dataclass(frozen=True, kw_only=True)
class PolicyRecipe:
    """A stage of the policy on a frozen model: GRPO, or the warm-up before it. Without one in the start it is fresh."""

    stage: Stage
    after: Start | None
    requires: tuple[str, ...]
    model: RefragConfig
    data: Exercise | WindowExercise
    policy: PolicyConfig = PolicyConfig()
    objective: GrpoConfig | WarmUpConfig = GrpoConfig()
    for_one: ClassVar[str] = "a policy's training"
    init: None = None
    template: str = "tagged"
    stored_as: str = "bfloat16"

    def open(self, start: Path | None) -> tuple[PolicyTraining, Any]:
        import torch

        model, tokenizer = open_model(self.model, start, seed=self.stage.seed)
        if model.policy is None:
            torch.manual_seed(self.stage.seed)
            model.policy = Policy(self.policy, model.decoder.config.hidden_size)
        return PolicyTraining(model), tokenizer

    def batches(self, model: PolicyTraining, tokenizer: Any) -> Batches:
        def collate(rows: Sequence[Row], _: object) -> Batch:
            return lay_out_for(model.refrag, rows, tokenizer)

        if isinstance(self.data, WindowExercise):
            return Stream(self.data, tokenizer, collate, seed=self.stage.seed)
        return Practice(self.data, tokenizer, collate, seed=self.stage.seed)

    def loss(self) -> Loss:
        if isinstance(objective := self.objective, WarmUpConfig):
            return lambda model, batch: warm_up(cast("PolicyTraining", model), batch, objective)
        return lambda model, batch: grpo(cast("PolicyTraining", model), batch, objective)

    def export(self, model: PolicyTraining, tokenizer: Any, training: dict[str, Any], folder: Path) -> Path:
        from refrag_v2.checkpoint import save_refrag

        return save_refrag(model.refrag, tokenizer, training, folder)


def open_model(config: RefragConfig, start: Path | None, *, seed: int) -> tuple[Refrag, Any]:
    """The model in ``start``; around a plain decoder a fresh encoder and projector as ``config`` says.

    Raises ``InputError`` where ``start`` was built otherwise.
    """
    import torch

    from harness.errors import InputError
    from harness.model.encoders import encoder_tokenizer
    from harness.model.load import load_decoder
    from refrag_v2.checkpoint import FILES, load_refrag
    from refrag_v2.model import Refrag

    if start is None:
        raise InputError("REFRAG starts from a decoder; none was given")
    decoder = load_decoder(str(start))
    if not FILES.there(start):
        torch.manual_seed(seed)
        return Refrag(config, decoder.model, encoder_tokenizer(config.encoder)), decoder.tokenizer
    model = load_refrag(start, decoder.model)
    if model.config != config:
        raise InputError(f"{start} was built as {model.config}; this stage expects {config}")
    return model, decoder.tokenizer
