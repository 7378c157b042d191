"""REFRAG's training, stage by stage, as data. The paper's recipe (arXiv:2509.01092v2, section 4, p. 19) and ours:

    stage           task                          trained               paper: peak LR   here
    reconstruction  x_1:kL from L embeddings      encoder + projector   2e-4             ``tiny``, below
    cpt             next paragraph                everything            5e-5
    mixed           the same, 10 % as tokens      everything            not stated
    finetune        questions over passages       everything            2e-5
    policy_start    (not in the paper: grpo.py)   policy                -
    policy          pick chunks (policy.py)       policy                not stated

Common to all in the paper: AdamW, 4 % linear warm-up, cosine, batch 256, bf16; it states neither betas, weight decay
nor clipping: (0.9, 0.95), 0 and 1.0 here. The curriculum (Table 8) is used for both tasks of the first two stages.

The order is part of the method: ``requires`` names what a stage's start must have gone through, and training refuses
anything else unless an ablation says so. The policy is trained last, on the model that it will serve: the reward is
the likelihood of that model's answers.

At the tiny scale matrices are trained by Muon and everything else by AdamW, at rates found by trial (results/LOG.md):
0.9 M parameters take, and need, far larger steps than 7 B.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

from harness.data.world import memory_practice
from harness.data.world.practice import Copying, Growing, Quizzing, Reading, Sketches
from harness.train.stage import AdamW, Stage
from refrag_v2.grpo import GrpoConfig, WarmUpConfig
from refrag_v2.model import RefragConfig
from refrag_v2.paper_stages import PAPER
from refrag_v2.recipe import ENCODING, PolicyRecipe, RefragRecipe
from refrag_v2.stage_parts import CROWDED, LONGEST, SCHEDULE, cpt_rates, stage_of
from refrag_v2.study_stages import POLICY_LR, STUDIES


@dataclass(frozen=True, kw_only=True)
class Budget:
    """Optimizer steps of each stage; ``suffix`` tells the scales apart, ``decoder`` is the decoder's own."""

    suffix: str
    decoder: str
    reconstruction: int
    cpt: int
    mixed: int
    finetune: int
    policy_start: int
    policy: int


LONG = Budget(
    suffix="", decoder="tiny", reconstruction=100, cpt=800, mixed=100, finetune=700, policy_start=100, policy=200
)
SHORT = Budget(
    suffix="-short",
    decoder="tiny-short",
    reconstruction=30,
    cpt=200,
    mixed=30,
    finetune=200,
    policy_start=15,
    policy=30,
)
# The long budget's decoder, and chunks learned half: for the selection experiment, which needs something to choose.
HALF = Budget(
    suffix="-half", decoder="tiny", reconstruction=30, cpt=300, mixed=30, finetune=30, policy_start=100, policy=200
)


def tiny(k: int, budget: Budget) -> dict[str, RefragRecipe | PolicyRecipe]:
    """All stages at the tiny scale with chunks of ``k`` tokens."""
    scale = f"tiny-k{k}{budget.suffix}"
    lr, boost, norm = cpt_rates(k)
    model = RefragConfig(k=k, norm=norm)
    recipe = partial(RefragRecipe, model=model)

    def growing(steps: int, longest: int, curriculum: str = "paper") -> Growing:
        """Contexts of up to ``longest`` tokens."""
        return Growing(k=k, steps=steps, max_chunks=longest // k, tokens=1024, curriculum=curriculum)

    def policy_stage(name: str, steps: int) -> Stage:
        return Stage(
            name=name,
            steps=steps,
            optimizer=AdamW(lr=POLICY_LR),
            schedule=SCHEDULE,
            trained=("refrag.policy.",),
        )

    # Four facts in a chunk, met as such, teach the decoder to ignore whose they are: there the number of facts varies
    # in place of the number of chunks, and the decoder moves faster (results/LOG.md).
    cpt = Reading(people=Sketches()) if k >= CROWDED else Quizzing(growing=growing(budget.cpt, LONGEST))

    everything = "refrag_v2/reconstruction", "refrag_v2/cpt", "refrag_v2/mixed"
    policy = partial(PolicyRecipe, model=model, data=Reading(sizes=((8, 2 * k),), questions=1))
    return {
        # No more than a touch: at rates that teach it anything, it leaves a projector that CPT does not recover from
        # when several facts share a chunk (results/LOG.md).
        "reconstruction": recipe(
            after=("decoder", "pretrain", budget.decoder),
            requires=(),
            stage=stage_of("reconstruction", budget.reconstruction, 1e-5, 1, trained=ENCODING),
            data=Copying(growing=growing(budget.reconstruction, 64)),
        ),
        "cpt": recipe(
            after=("refrag_v2", "reconstruction", scale),
            requires=everything[:1],
            stage=stage_of("cpt", budget.cpt, lr, boost),
            data=cpt,
            language_weight=0.05,
        ),
        "mixed": recipe(
            after=("refrag_v2", "cpt", scale),
            requires=everything[:2],
            stage=stage_of("mixed", budget.mixed, 2e-4, 10),
            data=Quizzing(growing=growing(1, LONGEST, "none")),
            expand=(0.1,),
            language_weight=0.05,
        ),
        "finetune": recipe(
            after=("refrag_v2", "mixed", scale),
            requires=everything,
            stage=stage_of("finetune", budget.finetune, 5e-4, 4),
            data=Reading(),
            expand=(0.0, 0.0, 0.1, 0.3, 1.0),
            language_weight=0.02,
        ),
        "policy_start": policy(
            after=("refrag_v2", "finetune", scale),
            requires=(*everything, "refrag_v2/finetune"),
            stage=policy_stage("policy_start", budget.policy_start),
            objective=WarmUpConfig(),
        ),
        "policy": policy(
            after=("refrag_v2", "policy_start", scale),
            requires=(*everything, "refrag_v2/finetune", "refrag_v2/policy_start"),
            stage=policy_stage("policy", budget.policy),
            objective=GrpoConfig(),
        ),
    }


def memory(k: int) -> RefragRecipe:
    """Passkeys and look-ups on top of all of it, nothing expanded (slurm/sweeps/passkey.py); the policy stays."""
    start = tiny(k, LONG)["policy"]
    return RefragRecipe(
        after=("refrag_v2", "policy", f"tiny-k{k}"),
        requires=(*start.requires, "refrag_v2/policy"),
        stage=memory_practice.stage(("decoder.", *ENCODING), ENCODING, 4),
        model=start.model,
        data=memory_practice.PRACTICE,
        language_weight=memory_practice.LANGUAGE_WEIGHT,
    )


STAGES = ("reconstruction", "cpt", "mixed", "finetune", "policy_start", "policy")
_RECIPES: dict[str, Mapping[str, RefragRecipe | PolicyRecipe]] = {
    f"tiny-k{k}{budget.suffix}": tiny(k, budget) for k in (4, 8, 16, 32) for budget in (LONG, SHORT, HALF)
}
_RECIPES |= {**STUDIES, **PAPER}
RECONSTRUCTION, CPT, MIXED, FINETUNE, POLICY_START, POLICY = (
    {scale: recipes[stage] for scale, recipes in _RECIPES.items() if stage in recipes} for stage in STAGES
)
MEMORY = {f"tiny-k{k}": memory(k) for k in (8, 16, 32)}
