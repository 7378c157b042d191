"""v1's training, stage by stage, as data. The seed document's recipe and ours:

    stage         task                              trained               seed: LR   here
    cpt_recon     a chunk from its embedding        encoder + projector   2e-5       a tenth of v2's, as 2e-5 of 2e-4
    cpt_next      next paragraph                    everything            2e-5       0.4 of v2's, as 2e-5 of 5e-5
    train_policy  expand or not, chunk by chunk     policy                1e-4       v2's, as in the seed

Common to all in the seed: AdamW, 6 % linear warm-up, linear decay, no weight decay, clip 1.0. The curriculum is linear:
one number of chunks at a time, from one to the most. No order is enforced, there is no fine-tuning stage and no prompt
template. At the tiny scale matrices are trained by Muon, as everywhere in this project at that scale.

The seed's other faults of v1, a dozen GPU-hours on five thousand samples, are no property of a method: here v1 gets the
steps that v2 gets, or at the objective-* scales the tokens (those of a step differ with the curriculum).
"""

from __future__ import annotations

from dataclasses import dataclass

from harness.data.world.practice import Copying, Growing, Quizzing, Reading
from harness.train.stage import AdamW, Muon, Schedule, Stage
from refrag_v1.model import RefragV1Config
from refrag_v1.policy import ReinforceConfig
from refrag_v1.recipe import ENCODING, PolicyRecipe, RefragV1Recipe

_SCHEDULE = Schedule(warmup=0.06, decay="linear")
LONGEST = 256  # tokens of context in training: 8 passages


@dataclass(frozen=True, kw_only=True)
class Budget:
    """Chunk length, optimizer steps of each stage, and the scale of the decoder to start from.

    ``expand`` is the policy's p: eight passages of the world are 4 chunks of 64 tokens, of which a tenth is none.
    """

    k: int
    expand: float
    decoder: str
    cpt_recon: int
    cpt_next: int
    train_policy: int
    recon_lr: float = 1e-6


BUDGETS = {
    "tiny-k64": Budget(k=64, expand=0.25, decoder="tiny", cpt_recon=100, cpt_next=1600, train_policy=200),
    "tiny-k64-short": Budget(k=64, expand=0.25, decoder="tiny-short", cpt_recon=30, cpt_next=430, train_policy=30),
} | {
    # The two objectives at two k (slurm/sweeps/objective.py). refrag_v2 has scales of the same names: all four read
    # 361 k and 1.44 M decoder tokens in the two stages, and reconstruct at the same rate.
    f"objective-k{k}": Budget(
        k=k, expand=expand, decoder="tiny", cpt_recon=first, cpt_next=second, train_policy=100, recon_lr=6e-4
    )
    for k, expand, first, second in ((8, 0.1, 356, 938), (64, 0.25, 353, 1693))
}


def _stage(name: str, steps: int, lr: float, boost: float, trained: tuple[str, ...] = ("",)) -> Stage:
    return Stage(
        name=name,
        steps=steps,
        optimizer=Muon(lr=lr, adamw_lr=0.7 * lr),
        schedule=_SCHEDULE,
        trained=trained,
        boosted=ENCODING,
        boost=boost,
    )


def recipes(scale: str, budget: Budget) -> dict[str, RefragV1Recipe | PolicyRecipe]:
    """All stages of one scale."""
    k = budget.k
    crowded = k >= 32  # as in refrag_v2: longer embeddings and a faster decoder where many facts share a chunk
    model = RefragV1Config(k=k, encoder="decoder:1", pooling="concat", norm=48.0 if crowded else 32.0)
    lr, boost = (4e-4, 10) if crowded else (2e-4, 20)

    def growing(steps: int, longest: int) -> Growing:
        return Growing(k=k, steps=steps, max_chunks=longest // k, tokens=1024, curriculum="linear")

    return {
        "cpt_recon": RefragV1Recipe(
            after=("decoder", "pretrain", budget.decoder),
            stage=_stage("cpt_recon", budget.cpt_recon, budget.recon_lr, 1, trained=ENCODING),
            model=model,
            data=Copying(growing=growing(budget.cpt_recon, max(64, k))),
            repeat=True,
        ),
        "cpt_next": RefragV1Recipe(
            after=("refrag_v1", "cpt_recon", scale),
            stage=_stage("cpt_next", budget.cpt_next, 0.4 * lr, boost),
            model=model,
            data=Quizzing(growing=growing(budget.cpt_next, LONGEST)),
            language_weight=0.05,
        ),
        "train_policy": PolicyRecipe(
            after=("refrag_v1", "cpt_next", scale),
            stage=Stage(
                name="train_policy",
                steps=budget.train_policy,
                optimizer=AdamW(lr=1e-3),
                schedule=_SCHEDULE,
                trained=("model.policy.",),
            ),
            model=model,
            data=Reading(sizes=((8, 64),), questions=1),
            objective=ReinforceConfig(expand=budget.expand),
        ),
    }


_RECIPES = {scale: recipes(scale, budget) for scale, budget in BUDGETS.items()}
CPT_RECON, CPT_NEXT, TRAIN_POLICY = (
    {scale: stages[stage] for scale, stages in _RECIPES.items()} for stage in ("cpt_recon", "cpt_next", "train_policy")
)
