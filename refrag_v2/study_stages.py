"""The first two stages at scales that ask something of them: v1 against v2, the ablations, real text; one for FSDP,
one for streamed data.

What is asked stands with the experiments (slurm/sweeps); here are the numbers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import Any

from harness.data.stream.window_practice import WindowParagraph, WindowRepeating
from harness.data.text_practice import Repeating
from harness.data.world.practice import Copying, Growing, Pairs, Quizzing, Reading
from harness.train.stage import AdamW, Stage
from harness.train.text_scales import TEXT_SCALES, TextScale
from refrag_v2.grpo import GrpoConfig, WarmUpConfig
from refrag_v2.model import RefragConfig
from refrag_v2.recipe import ENCODING, PolicyRecipe, RefragRecipe
from refrag_v2.stage_parts import LONGEST, SCHEDULE, cpt_rates, stage_of

Recipes = Mapping[str, RefragRecipe]
Stages = Mapping[str, RefragRecipe | PolicyRecipe]
NOTHING: Mapping[str, Any] = MappingProxyType({})
EARNEST_LR = 6e-4  # reconstruction that is to teach something; at k = 8 it does CPT no harm (results/LOG.md)
ABLATED_K = 8
SMOKE = "-smoke"
FLAT = "-flat"  # reads whole contexts back from the first step on
POLICY_LR = 1e-3
# An encoder that knows nothing of the decoder: its own embeddings, random weights.
UNALIGNED: Mapping[str, Any] = {"encoder": "random:roberta-tiny"}
# How an encoder's states become chunks, and what it reads at once, other than the default (concat, chunk).
POOLINGS: Sequence[Mapping[str, Any]] = (
    {"window": "passage"},
    {"pooling": "mean"},
    {"pooling": "mean", "window": "passage"},
)


def _in_pairs(
    scale: str,
    k: int,
    steps: tuple[int, int],
    tokens: int,
    model: Mapping[str, Any] = NOTHING,
    curriculum: str = "paper",
) -> Recipes:
    """Both stages on passages of two people, which have room for chunks of 64. ``tokens`` of context in a step."""
    lr, boost, norm = cpt_rates(k)
    first, second = steps
    built: dict[str, Any] = dict(k=k, norm=norm) | dict(model)
    recipe = partial(RefragRecipe, model=RefragConfig(**built))

    def growing(steps: int, longest: int) -> Growing:
        return Growing(k=k, steps=steps, max_chunks=longest // k, tokens=tokens, curriculum=curriculum)

    return {
        "reconstruction": recipe(
            after=("decoder", "pretrain", "tiny"),
            requires=(),
            stage=stage_of("reconstruction", first, EARNEST_LR, 1, trained=ENCODING),
            data=Copying(growing=growing(first, max(64, k)), people=Pairs()),
        ),
        "cpt": recipe(
            after=("refrag_v2", "reconstruction", scale),
            requires=("refrag_v2/reconstruction",),
            stage=stage_of("cpt", second, lr, boost),
            data=Quizzing(growing=growing(second, LONGEST), people=Pairs()),
            language_weight=0.05,
        ),
    }


def objective(k: int) -> dict[str, Recipes]:
    """One half of the comparison with v1's objective at two k (slurm/sweeps/objective.py).

    All four read 361 k decoder tokens in the first stage and 1.44 M in the second, and reconstruct at the same rate: in
    earnest, as it is the objective that is asked about.
    """
    scale = f"objective-k{k}"
    return {scale: _in_pairs(scale, k, {8: (300, 500), 64: (342, 1736)}[k], tokens=1024)}


def ablation(
    k: int = ABLATED_K, *, model: Mapping[str, Any] = NOTHING, curriculum: str = "paper", order: str = ""
) -> dict[str, Recipes]:
    """One small budget of which the ablations of slurm/sweeps change one thing.

    All see the same context tokens: 512 of them in each of 100 steps of reconstruction, in earnest, and 200 of CPT.
    ``model`` are other fields of ``RefragConfig``. ``order`` "alone": CPT gets all 300 steps. Scales that end in
    ``-smoke`` are the same in 4 and 8 steps: they teach nothing, and show that all of it runs.
    """
    changed = [str(value).removeprefix("random:") for value in model.values()]
    changed += [curriculum] * (curriculum != "paper") + [order] * bool(order)
    scale = "-".join([f"ablation-k{k}", *changed])
    return {
        name: _in_pairs(name, k, (first, first + second if order else second), 512, model, curriculum)
        for name, (first, second) in {scale: (100, 200), f"{scale}{SMOKE}": (4, 8)}.items()
    }


def text(k: int, scale: TextScale) -> dict[str, Stages]:
    """On real text (slurm/sweeps/perplexity.py, text_ablation.py): x_1:kL read back, then the tokens that follow s of
    context, first from chunks alone, then with a tenth of them expanded, at last the choice of which.

    All rates k and CEPE see the same windows in the second stage. A second scale reads back whole contexts from the
    first step on: no curriculum.
    """
    name, size, steps = scale.of_rate(k), scale.size, scale.steps
    rates, model = size.rates, RefragConfig(k=k, encoder=size.encoder)
    recipe = partial(RefragRecipe, model=model, template="bare", stored_as="float32")

    def stage(name: str, steps: int, lr: float, boost: float, trained: tuple[str, ...] = ("",)) -> Stage:
        return scale.stage(name, steps, (lr, 0.7 * lr), trained=trained, boosted=ENCODING, boost=boost)

    def reading_back(curriculum: str) -> RefragRecipe:
        growing = Growing(
            k=k, steps=steps.reconstruction, max_chunks=size.read_back // k, tokens=size.tokens, curriculum=curriculum
        )
        return recipe(
            after=("decoder", "pretrain", scale.name),
            requires=(),
            stage=stage("reconstruction", steps.reconstruction, rates.encoding, 1, trained=ENCODING),
            data=Repeating(growing=growing),
        )

    def choosing(name: str, steps: int) -> Stage:
        trained = ("refrag.policy.",)
        return Stage(name=name, steps=steps, optimizer=AdamW(lr=POLICY_LR), schedule=SCHEDULE, trained=trained)

    before = "refrag_v2/reconstruction", "refrag_v2/cpt", "refrag_v2/mixed"
    policy = partial(PolicyRecipe, model=model, data=size.choosing, template="bare", stored_as="float32")
    stages: Stages = {
        "reconstruction": reading_back("paper"),
        "cpt": recipe(
            after=("refrag_v2", "reconstruction", name),
            requires=before[:1],
            stage=stage("cpt", steps.cpt, rates.decoder, rates.encoding / rates.decoder),
            data=size.paragraph,
        ),
        "mixed": recipe(
            after=("refrag_v2", "cpt", name),
            requires=before[:2],
            stage=stage("mixed", steps.mixed, rates.decoder, rates.encoding / rates.decoder),
            data=size.paragraph,
            expand=(0.1,),
        ),
        "policy_start": policy(
            after=("refrag_v2", "mixed", name),
            requires=before,
            stage=choosing("policy_start", steps.policy_start),
            objective=WarmUpConfig(),
        ),
        "policy": policy(
            after=("refrag_v2", "policy_start", name),
            requires=(*before, "refrag_v2/policy_start"),
            stage=choosing("policy", steps.policy),
            objective=GrpoConfig(),
        ),
    }
    return {name: stages, f"{name}{FLAT}": {"reconstruction": reading_back("none")}}


def in_parts() -> dict[str, Recipes]:
    """What is trained by one process and by several (slurm/sweeps/fsdp.py): all that a stage can have, in 30 steps.

    By the paper's optimizer; the decoder is that of the tiny scale, and encoder and projector start afresh.
    """
    stage = Stage(name="finetune", steps=30, optimizer=AdamW(lr=5e-4), schedule=SCHEDULE, boosted=ENCODING, boost=4.0)
    recipe = RefragRecipe(
        after=("decoder", "pretrain", "tiny"),
        requires=(),
        stage=stage,
        model=RefragConfig(k=8),
        data=Reading(),
        expand=(0.0, 0.0, 0.1, 0.3, 1.0),
        language_weight=0.05,
    )
    return {"fsdp": {"finetune": recipe}}


def stream() -> dict[str, Recipes]:
    """The paper's two tasks on prepared windows (harness/data/stream), by its optimizer, in 6 and 8 steps.

    They show that training at any size begins, stops and goes on; in so few steps nothing is learned. Windows of at
    least 64 + 32 tokens, of the tiny decoder's tokens or, with a start, of that one's.
    """
    scale, k, first, second = "stream-smoke", 8, 6, 8
    recipe = partial(RefragRecipe, model=RefragConfig(k=k), template="bare", stored_as="float32")

    def stage(name: str, steps: int, lr: float, trained: tuple[str, ...] = ("",)) -> Stage:
        return Stage(
            name=name,
            steps=steps,
            optimizer=AdamW(lr=lr),
            schedule=SCHEDULE,
            trained=trained,
            accumulation=2,
            checkpoint_every=2,
        )

    stages = {
        "reconstruction": recipe(
            after=("decoder", "pretrain", "tiny"),
            requires=(),
            stage=stage("reconstruction", first, 2e-4, ENCODING),
            data=WindowRepeating(growing=Growing(k=k, steps=2 * first, max_chunks=8, tokens=256)),
        ),
        "cpt": recipe(
            after=("refrag_v2", "reconstruction", scale),
            requires=("refrag_v2/reconstruction",),
            stage=stage("cpt", second, 5e-5),
            data=WindowParagraph(context=64, output=32, rows=4),
        ),
    }
    return {scale: stages}


_ALL: list[Mapping[str, Stages]] = [
    *(objective(k) for k in (8, 64)),
    *(ablation(k) for k in (2, 4, 8, 16, 32, 64)),
    *(ablation(curriculum=name) for name in ("none", "linear", "3-stage", "6-stage")),
    *(ablation(model=model) for model in (UNALIGNED, *POOLINGS)),
    *(ablation(model=model, order="alone") for model in (NOTHING, UNALIGNED)),
    *(text(k, scale) for scale in TEXT_SCALES.values() for k in (8, 16, 32)),
    in_parts(),
    stream(),
]
STUDIES: Mapping[str, Stages] = {scale: recipes for each in _ALL for scale, recipes in each.items()}
