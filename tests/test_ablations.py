"""The training ablations as plans: each changes one thing, all else is equal, and what is shared is trained once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from harness.errors import InputError
from refrag_v2.stages import CPT, RECONSTRUCTION
from slurm.jobs.compare import CompareJob
from slurm.jobs.evaluate import EvaluateJob
from slurm.jobs.train import TrainJob
from slurm.phases import Phase
from slurm.sweeps.ablation import SEEDS
from slurm.sweeps.curriculum import SCHEDULES, curriculum
from slurm.sweeps.k_ablation import RATES, k_ablation
from slurm.sweeps.order import ENCODERS, order
from slurm.sweeps.pooling import WAYS, pooling

Experiment = Callable[..., Iterator[Phase]]
ALL = (order, curriculum, k_ablation, pooling)


@pytest.fixture
def plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, Phase]]:
    monkeypatch.setattr("slurm.jobs.train.ACCEPTED", tmp_path / "accepted")

    def planned(experiment: Experiment, **changes: Any) -> dict[str, Phase]:
        asked: dict[str, Any] = dict(
            data=None, checkpoint=None, limit=None, device="cpu", runs=tmp_path / "runs", out=tmp_path / "out",
            budget=None, from_scratch=False,
        )  # fmt: skip
        return {phase.title: phase for phase in experiment(**asked | changes)}

    return planned


def trainings(phases: dict[str, Phase]) -> list[TrainJob]:
    return [job for job in phases["train"].jobs if isinstance(job, TrainJob) and job.system == "refrag_v2"]


def test_recipes_of_one_k_differ_in_nothing_but_what_is_ablated() -> None:
    base = RECONSTRUCTION["ablation-k8"], CPT["ablation-k8"]
    for name in set(SCHEDULES.values()) | set(WAYS.values()) | {"ablation-k8-roberta-tiny"}:
        for recipe, other in zip(base, (RECONSTRUCTION[name], CPT[name]), strict=True):
            same_model = replace(other, model=recipe.model, after=recipe.after)
            data: Any = recipe.data
            growing = replace(data.growing, curriculum=same_model.data.growing.curriculum)
            assert same_model == replace(recipe, data=replace(data, growing=growing))
            assert other.model.k == 8 and other.model.norm == recipe.model.norm


def test_every_k_sees_the_same_context_tokens() -> None:
    for stages in (RECONSTRUCTION, CPT):
        recipes = [stages[f"ablation-k{k}"] for k in RATES]
        assert {(recipe.stage.steps, recipe.data.growing.tokens) for recipe in recipes} == {
            (recipes[0].stage.steps, 512)
        }
    for k in RATES:
        assert CPT[f"ablation-k{k}"].data.growing.max_chunks * k == 256


@pytest.mark.parametrize("scale", ENCODERS.values())
def test_cpt_alone_has_the_steps_of_both_stages(plan: Callable[..., dict[str, Phase]], scale: str) -> None:
    both = RECONSTRUCTION[scale].stage.steps + CPT[scale].stage.steps
    assert CPT[f"{scale}-alone"].stage.steps == both
    alone = [job for job in trainings(plan(order)) if job.scale == f"{scale}-alone"]
    assert len(alone) == len(SEEDS)
    for job in alone:
        assert job.before and (job.before.system, job.stage) == ("decoder", "cpt")
        assert job.skip == ("refrag_v2/reconstruction",)


@pytest.mark.parametrize(("experiment", "variants"), [(order, 6), (curriculum, 5), (k_ablation, 6), (pooling, 4)])
def test_every_variant_is_trained_read_back_and_asked_for_three_seeds(
    plan: Callable[..., dict[str, Phase]], experiment: Experiment, variants: int
) -> None:
    phases = plan(experiment)
    asked = [job for job in phases["evaluate"].jobs if isinstance(job, EvaluateJob)]
    assert len(asked) == len(phases["read back"].jobs) == 3 * variants
    assert len({job.checkpoint for job in asked}) == 3 * variants
    assert {(job.suite, job.passages, job.options["expand"]) for job in asked} == {("same_relation", 4, 0.0)}
    made = {str(job.checkpoint) for job in trainings(phases)}
    assert {job.checkpoint for job in asked} <= made
    (compare,) = phases["compare"].jobs
    assert isinstance(compare, CompareJob)
    compared = {cell.checkpoint for pair in compare.contrasts for way in pair for cell in way.cells}
    assert compared == {job.checkpoint for job in asked}, "every variant is in a contrast"


def test_what_experiments_share_is_one_training(plan: Callable[..., dict[str, Phase]]) -> None:
    folders = [{job.checkpoint for job in trainings(plan(experiment)) if job.stage == "cpt"} for experiment in ALL]
    assert len(set.intersection(*folders)) == len(SEEDS), "the base: k = 8, nine stages, concat, chunk, aligned"


@pytest.mark.parametrize("experiment", ALL)
@pytest.mark.parametrize(
    ("changes", "said"),
    [(dict(budget="short"), "valid choices: full, smoke"), (dict(checkpoint="somewhere"), "leave --checkpoint out")],
)
def test_an_ablation_has_one_start_and_its_own_budgets(
    plan: Callable[..., dict[str, Phase]], experiment: Experiment, changes: dict[str, str], said: str
) -> None:
    with pytest.raises(InputError, match=said):
        plan(experiment, **changes)


@pytest.mark.parametrize("experiment", ALL)
def test_smoke_is_the_same_plan_in_few_steps(plan: Callable[..., dict[str, Phase]], experiment: Experiment) -> None:
    full, smoke = plan(experiment), plan(experiment, budget="smoke")
    assert list(full) == list(smoke)
    steps = {job.recipe().stage.steps for job in trainings(smoke)}
    assert max(steps) <= 12 < min(job.recipe().stage.steps for job in trainings(full))
    assert {job.limit for job in smoke["evaluate"].jobs if isinstance(job, EvaluateJob)} == {16}
    assert not {job.name for job in trainings(full)} & {job.name for job in trainings(smoke)}
