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

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from types import MappingProxyType
from typing import Any

from harness.data.text_practice import NextParagraph, Repeating
from harness.data.world import memory_practice
from harness.data.world.practice import Copying, Growing, Pairs, Quizzing, Reading, Sketches
from harness.train.stage import AdamW, Muon, Schedule, Stage
from refrag_v2.grpo import GrpoConfig, WarmUpConfig
from refrag_v2.model import RefragConfig
from refrag_v2.recipe import ENCODING, PolicyRecipe, RefragRecipe

# The tiny scale. Encoder and projector start afresh beside a decoder that can read: it moves slowly, they move fast. At
# equal rates the decoder learns to do without the chunks before they say anything (results/LOG.md).
_SCHEDULE = Schedule(warmup=0.04, decay="cosine", floor=0.05)
_POLICY_LR = 1e-3
LONGEST = 256  # tokens of context in training: 8 passages
OBJECTIVE_LR = 6e-4  # reconstruction at the objective-* and ablation-* scales
TEXT_LR, TEXT_ENCODING_LR = 5e-4, 2e-3  # of the decoder, and of encoder and projector, at the text-* scales
ABLATED_K = 8
# An encoder that knows nothing of the decoder: its own embeddings, random weights.
UNALIGNED: Mapping[str, Any] = {"encoder": "random:roberta-tiny"}
# How an encoder's states become chunks, and what it reads at once, other than the default (concat, chunk).
POOLINGS: Sequence[Mapping[str, Any]] = (
    {"window": "passage"},
    {"pooling": "mean"},
    {"pooling": "mean", "window": "passage"},
)


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


def tiny(k: int, budget: Budget) -> dict[str, RefragRecipe | PolicyRecipe]:
    """All stages at the tiny scale with chunks of ``k`` tokens."""
    scale = f"tiny-k{k}{budget.suffix}"
    crowded = k >= 32  # a chunk has room for all four facts of a passage
    model = RefragConfig(k=k, norm=48.0 if crowded else 32.0)
    recipe = partial(RefragRecipe, model=model)

    def growing(steps: int, longest: int, curriculum: str = "paper") -> Growing:
        """Contexts of up to ``longest`` tokens."""
        return Growing(k=k, steps=steps, max_chunks=longest // k, tokens=1024, curriculum=curriculum)

    def policy_stage(name: str, steps: int) -> Stage:
        return Stage(
            name=name,
            steps=steps,
            optimizer=AdamW(lr=_POLICY_LR),
            schedule=_SCHEDULE,
            trained=("refrag.policy.",),
        )

    # Four facts in a chunk, met as such, teach the decoder to ignore whose they are: there the number of facts varies
    # in place of the number of chunks, and the decoder moves faster (results/LOG.md).
    cpt = Reading(people=Sketches()) if crowded else Quizzing(growing=growing(budget.cpt, LONGEST))
    lr, boost = (4e-4, 10) if crowded else (2e-4, 20)

    everything = "refrag_v2/reconstruction", "refrag_v2/cpt", "refrag_v2/mixed"
    policy = partial(PolicyRecipe, model=model, data=Reading(sizes=((8, 2 * k),), questions=1))
    return {
        # No more than a touch: at rates that teach it anything, it leaves a projector that CPT does not recover from
        # when several facts share a chunk (results/LOG.md).
        "reconstruction": recipe(
            after=("decoder", "pretrain", budget.decoder),
            requires=(),
            stage=_stage("reconstruction", budget.reconstruction, 1e-5, 1, trained=ENCODING),
            data=Copying(growing=growing(budget.reconstruction, 64)),
        ),
        "cpt": recipe(
            after=("refrag_v2", "reconstruction", scale),
            requires=everything[:1],
            stage=_stage("cpt", budget.cpt, lr, boost),
            data=cpt,
            language_weight=0.05,
        ),
        "mixed": recipe(
            after=("refrag_v2", "cpt", scale),
            requires=everything[:2],
            stage=_stage("mixed", budget.mixed, 2e-4, 10),
            data=Quizzing(growing=growing(1, LONGEST, "none")),
            expand=(0.1,),
            language_weight=0.05,
        ),
        "finetune": recipe(
            after=("refrag_v2", "mixed", scale),
            requires=everything,
            stage=_stage("finetune", budget.finetune, 5e-4, 4),
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


def objective(k: int) -> dict[str, RefragRecipe]:
    """The first two stages on passages of two people, which have room for chunks of 64: one half of the comparison
    with v1's objective at two k (slurm/sweeps/objective.py). All four read 361 k decoder tokens in the first stage and
    1.44 M in the second, and reconstruct at the same rate: in earnest here, as it is the objective that is asked about,
    and at k = 8 it does CPT no harm (results/LOG.md)."""
    scale = f"objective-k{k}"
    first, second = {8: (300, 500), 64: (342, 1736)}[k]
    crowded = k >= 32
    lr, boost = (4e-4, 10) if crowded else (2e-4, 20)
    recipe = partial(RefragRecipe, model=RefragConfig(k=k, norm=48.0 if crowded else 32.0))

    def growing(steps: int, longest: int) -> Growing:
        return Growing(k=k, steps=steps, max_chunks=longest // k, tokens=1024)

    return {
        "reconstruction": recipe(
            after=("decoder", "pretrain", "tiny"),
            requires=(),
            stage=_stage("reconstruction", first, OBJECTIVE_LR, 1, trained=ENCODING),
            data=Copying(growing=growing(first, max(64, k)), people=Pairs()),
        ),
        "cpt": recipe(
            after=("refrag_v2", "reconstruction", scale),
            requires=("refrag_v2/reconstruction",),
            stage=_stage("cpt", second, lr, boost),
            data=Quizzing(growing=growing(second, LONGEST), people=Pairs()),
            language_weight=0.05,
        ),
    }


def ablation(
    k: int = ABLATED_K, *, model: Mapping[str, Any] = MappingProxyType({}), curriculum: str = "paper", order: str = ""
) -> dict[str, Mapping[str, RefragRecipe]]:
    """The first two stages at one small budget, by scale: what the ablations of slurm/sweeps change one thing of.

    All see the same context tokens, on passages of two people: 512 of them in each of 100 steps of reconstruction, in
    earnest, and 200 of CPT. ``model`` are other fields of ``RefragConfig``. ``order`` "alone": CPT gets all 300 steps.
    """
    changed = [str(value).removeprefix("random:") for value in model.values()]
    changed += [curriculum] * (curriculum != "paper") + [order] * bool(order)
    scale = "-".join([f"ablation-k{k}", *changed])
    crowded = k >= 32
    lr, boost = (4e-4, 10) if crowded else (2e-4, 20)
    first, second = 100, 300 if order else 200
    built: dict[str, Any] = dict(k=k, norm=48.0 if crowded else 32.0) | dict(model)
    recipe = partial(RefragRecipe, model=RefragConfig(**built))

    def growing(steps: int, longest: int) -> Growing:
        return Growing(k=k, steps=steps, max_chunks=longest // k, tokens=512, curriculum=curriculum)

    return {
        scale: {
            "reconstruction": recipe(
                after=("decoder", "pretrain", "tiny"),
                requires=(),
                stage=_stage("reconstruction", first, OBJECTIVE_LR, 1, trained=ENCODING),
                data=Copying(growing=growing(first, max(64, k)), people=Pairs()),
            ),
            "cpt": recipe(
                after=("refrag_v2", "reconstruction", scale),
                requires=("refrag_v2/reconstruction",),
                stage=_stage("cpt", second, lr, boost),
                data=Quizzing(growing=growing(second, LONGEST), people=Pairs()),
                language_weight=0.05,
            ),
        }
    }


def text(k: int, suffix: str, first: int, second: int) -> dict[str, RefragRecipe]:
    """The first two stages on real text (slurm/sweeps/perplexity.py), ``first`` and ``second`` steps: x_1:kL read back,
    then the 128 tokens after 256 of context. All rates k and CEPE see the same windows in the second stage."""
    scale = f"text-tiny-k{k}{suffix}"
    recipe = partial(RefragRecipe, model=RefragConfig(k=k), template="bare", stored_as="float32")

    def stage(name: str, steps: int, lr: float, boost: float, trained: tuple[str, ...] = ("",)) -> Stage:
        return replace(_stage(name, steps, lr, boost, trained), precision="bfloat16")

    return {
        "reconstruction": recipe(
            after=("decoder", "pretrain", f"text-tiny{suffix}"),
            requires=(),
            stage=stage("reconstruction", first, TEXT_ENCODING_LR, 1, trained=ENCODING),
            data=Repeating(growing=Growing(k=k, steps=first, max_chunks=128 // k, tokens=2048)),
        ),
        "cpt": recipe(
            after=("refrag_v2", "reconstruction", scale),
            requires=("refrag_v2/reconstruction",),
            stage=stage("cpt", second, TEXT_LR, TEXT_ENCODING_LR / TEXT_LR),
            data=NextParagraph(),
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
_RECIPES |= {f"objective-k{k}": objective(k) for k in (8, 64)}
for _k in (2, 4, 8, 16, 32, 64):
    _RECIPES |= ablation(_k)
for _curriculum in ("none", "linear", "3-stage", "6-stage"):
    _RECIPES |= ablation(curriculum=_curriculum)
for _model in ({}, UNALIGNED):
    _RECIPES |= ablation(model=_model) | ablation(model=_model, order="alone")
for _model in POOLINGS:
    _RECIPES |= ablation(model=_model)
_RECIPES |= {f"text-tiny-k{k}": text(k, "", 300, 800) for k in (8, 16, 32)}
_RECIPES |= {f"text-tiny-k{k}-short": text(k, "-short", 2, 2) for k in (8, 16, 32)}
RECONSTRUCTION, CPT, MIXED, FINETUNE, POLICY_START, POLICY = (
    {scale: recipes[stage] for scale, recipes in _RECIPES.items() if stage in recipes} for stage in STAGES
)
MEMORY = {f"tiny-k{k}": memory(k) for k in (8, 16, 32)}
