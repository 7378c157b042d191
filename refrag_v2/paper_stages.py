"""The paper's stages as recipes, at its own scale and in very small: the numbers of both are those of ``paper_scale``.

    paper-k16          LLaMA-2-7B and RoBERTa-large, for 64 GPUs, on windows that `refrag-bench data prepare` made of
                       long text with the decoder's tokenizer; nothing here reads the instruction examples yet
    paper-k16-smoke    the same stages, optimizers, rates and order in 4 steps on the synthetic world: teaches nothing,
                       and shows that all of it runs

The order is the paper's: no warm-up stands before the policy (``grpo`` says what that is).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from harness.data.missing import Missing
from harness.data.stream.window_practice import Lengthening, WindowExercise, WindowParagraph, WindowRepeating
from harness.data.world.practice import Copying, Exercise, Growing, Quizzing, Reading
from refrag_v2.paper_scale import GRPO, INSTRUCTIONS, POLICY, RATES, STAGES, PlannedStage, model_config
from refrag_v2.recipe import PolicyRecipe, RefragRecipe

SMOKE = "-smoke"
SMOKE_STEPS = 4
SMOKE_ENCODER = "random:roberta-tiny"  # with a classification token, as the paper's


def _reads(planned: PlannedStage, k: int) -> WindowExercise | Missing:
    """What a planned stage reads: contexts by its curriculum, if it has one, of ``context`` tokens at the longest."""
    if planned.stage.name == "finetune":
        return Missing(data=f"the {INSTRUCTIONS / 1e6:g} M instruction examples (p. 7)")
    curriculum = "paper" if planned.curriculum else "none"
    growing = Lengthening(
        k=k,
        steps=planned.stage.steps * planned.stage.accumulation,
        max_chunks=planned.context // k,
        rows=planned.batch // planned.stage.accumulation,
        curriculum=curriculum,
    )
    if planned.target is None:
        return WindowRepeating(growing=growing)
    return WindowParagraph(context=planned.context, output=planned.target, rows=growing.rows, growing=growing)


def _smoke_reads(k: int) -> Mapping[str, Exercise]:
    """Contexts of at most four chunks, a few rows each."""
    growing = Growing(k=k, steps=SMOKE_STEPS, max_chunks=4, tokens=16 * k)
    return {
        "reconstruction": Copying(growing=growing),
        "cpt": Quizzing(growing=growing),
        "mixed": Quizzing(growing=growing),
        "finetune": Reading(sizes=((4, 4),), questions=2),
        "policy": Reading(sizes=((4, 4),), questions=1),
    }


def recipes(k: int, *, smoke: bool) -> dict[str, RefragRecipe | PolicyRecipe]:
    """All stages with chunks of ``k`` tokens, by name. Raises ``InputError`` where the paper has no such k."""
    model = model_config(k)
    model = replace(model, encoder=SMOKE_ENCODER) if smoke else model
    scale = f"paper-k{k}{SMOKE if smoke else ''}"
    reads = _smoke_reads(k) if smoke else {name: _reads(planned, k) for name, planned in STAGES.items()}
    before: list[str] = []
    found: dict[str, RefragRecipe | PolicyRecipe] = {}
    for name, planned in STAGES.items():
        stage = replace(planned.stage, steps=SMOKE_STEPS, checkpoint_every=1) if smoke else planned.stage
        after = ("refrag_v2", before[-1], scale) if before else ("decoder", "pretrain", "tiny") if smoke else None
        common: dict[str, Any] = dict(
            stage=stage,
            after=after,
            requires=tuple(f"refrag_v2/{each}" for each in before),
            model=model,
            data=reads[name],
            template="tagged" if smoke else "text",
        )
        if planned.rollouts:
            found[name] = PolicyRecipe(policy=POLICY, objective=GRPO, **common)
        else:
            found[name] = RefragRecipe(expand=(planned.expand,), **common)
        before.append(name)
    return found


PAPER: Mapping[str, Mapping[str, RefragRecipe | PolicyRecipe]] = {
    f"paper-k{k}{SMOKE if smoke else ''}": recipes(k, smoke=smoke) for k in RATES for smoke in (False, True)
}
