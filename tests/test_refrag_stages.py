"""REFRAG's stages: in their order or not at all, each moves its own parts, and a resumed one equals an unbroken one."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Mapping
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from harness.cli.catalog import RECIPES
from harness.config import file_digest, load
from harness.data.world.practice import Copying, Growing, Quizzing, Reading, Sketches
from harness.data.world.tokenizer import build_tokenizer
from harness.errors import InputError
from harness.model.load import load_decoder, random_decoder
from harness.train.loop import train
from harness.train.optim import freeze
from refrag_v2.checkpoint import FILES, load_refrag, save_refrag
from refrag_v2.model import Refrag, RefragConfig
from refrag_v2.recipe import ENCODING, PolicyRecipe, RefragRecipe
from refrag_v2.system import RefragV2Config
from slurm.jobs.train import TrainJob

pytestmark = pytest.mark.usefixtures("one_thread")

CPU = torch.device("cpu")
TOKENIZER = build_tokenizer()
ORDER = ("reconstruction", "cpt", "mixed", "finetune", "policy_start", "policy")
LEFT_OUT = "refrag_v2/reconstruction"
SCALES = ("tiny-k4", "tiny-k8", "tiny-k16", "tiny-k32")
K = 8
NAMES = RECIPES["refrag_v2"]  # kept here, because some tests put other recipes there

Recipe = RefragRecipe | PolicyRecipe


def recipe(stage: str, scale: str = "tiny-k8") -> Any:
    """The recipe that the command line finds."""
    scales: Mapping[str, Recipe] = load(NAMES[stage])
    return scales[scale]


def small(stage: str, steps: int = 2, **of_stage: Any) -> Any:
    """The same recipe in a few steps on a few rows."""
    found = recipe(stage)
    system, before, _ = found.after
    after = found.after if stage == "reconstruction" else (system, before, "small")
    data = found.data
    if isinstance(data, Reading):
        data = replace(data, sizes=((3, 2),), questions=min(2, data.questions))
    else:
        data = replace(data, growing=replace(data.growing, steps=steps, max_chunks=4, tokens=64))
    changes = {"steps": steps, "checkpoint_every": 1} | of_stage
    return replace(found, after=after, data=data, stage=replace(found.stage, **changes))


def state(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def changed(model: nn.Module, before: dict[str, Tensor]) -> set[str]:
    assert model.state_dict().keys() == before.keys()
    return {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}


def through(folder: Path, *stages: str) -> Path:
    """A random checkpoint whose papers say that it went through ``stages``."""
    lineage = [f"refrag_v2/{stage}" for stage in stages]
    training = {"lineage": lineage, "init": "random", "recipe": {"template": "tagged"}}
    return save_refrag(Refrag(RefragConfig(k=K), random_decoder("tiny", seed=1)), TOKENIZER, training, folder)


@pytest.fixture(scope="module")
def ready(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that the policy stage takes."""
    return through(tmp_path_factory.mktemp("ready") / "final", *ORDER[:-1])


def run(recipe: Recipe, start: Path, folder: Path, **how: Any) -> Any:
    """The model after training as the job trains it."""
    model, tokenizer = recipe.open(start)
    train(recipe.stage, model, recipe.batches(model, tokenizer), recipe.loss(), folder, device=CPU, **how)
    return model


# The table


@pytest.mark.parametrize("scale", SCALES)
def test_the_recipes_are_the_papers_where_it_says_so(scale: str) -> None:
    stages = {stage: recipe(stage, scale) for stage in ORDER}
    for stage in stages.values():
        assert (stage.stage.schedule.warmup, stage.stage.schedule.decay) == (0.04, "cosine")
    assert stages["reconstruction"].stage.trained == ("encoder", "projector")
    assert all(stages[name].stage.trained == ("",) for name in ("cpt", "mixed", "finetune"))
    assert stages["policy"].stage.trained == ("refrag.policy.",)
    tasks = {name: type(stage.data) for name, stage in stages.items()}
    assert (tasks["reconstruction"], tasks["finetune"], tasks["policy"]) == (Copying, Reading, Reading)
    by_chunks = {name: stage.data.growing for name, stage in stages.items() if hasattr(stage.data, "growing")}
    if scale == "tiny-k32":
        assert stages["cpt"].data == Reading(people=Sketches()), "a chunk is a passage"
    else:
        assert tasks["cpt"] is tasks["mixed"] is Quizzing, "one task, read from embeddings and then from a mixture"
    for name in {"reconstruction", "cpt"} & by_chunks.keys():
        assert by_chunks[name].curriculum == "paper"
        assert stages[name].data.growing.steps == stages[name].stage.steps, "the curriculum ends with the stage"
        assert stages[name].expand == (0.0,)
    assert stages["mixed"].expand == (0.1,)
    assert (stages["policy"].objective.expand, stages["policy"].policy.layers) == (0.1, 2)
    k = int(scale.removeprefix("tiny-k"))
    assert {stage.model.k for stage in stages.values()} == {k}
    assert {growing.k for growing in by_chunks.values()} == {k}


@pytest.mark.parametrize("scale", SCALES)
def test_every_stage_follows_the_one_before_and_requires_all_of_them(scale: str) -> None:
    assert recipe(ORDER[0], scale).after == ("decoder", "pretrain", "tiny")
    for index, stage in enumerate(ORDER):
        if index:
            assert recipe(stage, scale).after == ("refrag_v2", ORDER[index - 1], scale)
        assert recipe(stage, scale).requires == tuple(f"refrag_v2/{earlier}" for earlier in ORDER[:index])


# The order


@pytest.fixture
def jobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The jobs of the stages at a scale of a few steps."""
    monkeypatch.setitem(RECIPES, "refrag_v2", {stage: {"small": small(stage)} for stage in ORDER})

    def job(stage: str, start: Path, **changes: Any) -> TrainJob:
        return TrainJob(system="refrag_v2", stage=stage, scale="small", runs=tmp_path / "runs", start=start, **changes)

    return job


@pytest.mark.parametrize("stage", ORDER[1:])
def test_a_stage_refuses_a_decoder_that_saw_none_of_those_before(jobs: Any, tiny_checkpoint: Path, stage: str) -> None:
    job = jobs(stage, tiny_checkpoint)
    missing = ", ".join(f"refrag_v2/{earlier}" for earlier in ORDER[: ORDER.index(stage)])
    said = f"went through {missing}; .* went through nothing known .*--skip refrag_v2/reconstruction"
    with pytest.raises(InputError, match=said):
        job.run()
    assert not job.folder.exists()


def test_a_stage_names_the_one_that_is_missing(jobs: Any, tmp_path: Path) -> None:
    start = through(tmp_path / "start", "reconstruction", "mixed")
    with pytest.raises(InputError, match="that went through refrag_v2/cpt; .*reconstruction, refrag_v2/mixed"):
        jobs("finetune", start).run()
    with pytest.raises(InputError, match="that went through refrag_v2/cpt; "):
        jobs("finetune", start, skip=(LEFT_OUT,)).run()


def test_an_ablation_is_accepted_and_recorded(jobs: Any, tiny_checkpoint: Path) -> None:
    """CPT on a decoder that never learned to read a chunk: what the paper shows not to work."""
    ablation = jobs("cpt", tiny_checkpoint, skip=(LEFT_OUT,))
    assert ablation.name != jobs("cpt", tiny_checkpoint).name, "and never mistaken for the real thing"
    training = json.loads((ablation.run() / "training.json").read_text())
    assert training["skipped"] == [LEFT_OUT]
    assert training["lineage"] == ["refrag_v2/cpt"]
    with pytest.raises(InputError, match=f"that went through {LEFT_OUT}; "):
        jobs("mixed", ablation.checkpoint).run()


def test_what_was_not_left_out_is_not_recorded_as_an_ablation(jobs: Any, tmp_path: Path) -> None:
    start = through(tmp_path / "start", "reconstruction")
    training = json.loads((jobs("cpt", start, skip=(LEFT_OUT,)).run() / "training.json").read_text())
    assert training["lineage"] == [LEFT_OUT, "refrag_v2/cpt"]
    assert training["skipped"] == []


def test_a_stage_starts_from_something(tmp_path: Path, jobs: Any) -> None:
    with pytest.raises(InputError, match="starts from .*nowhere, which is not there"):
        jobs("cpt", tmp_path / "nowhere").run()
    with pytest.raises(InputError, match="starts from a decoder; none was given"):
        recipe("reconstruction").open(None)


# What names a training


def test_trainings_that_were_given_no_start_keep_their_names(tmp_path: Path) -> None:
    """Checkpoints that come with the project are found by them."""
    for system, stage, scale, identity in (
        ("decoder", "pretrain", "tiny", "2807422d206e8c52"),
        ("standard_rag", "finetune", "tiny", "228d17580887bad1"),
        ("refrag_v2", "policy", "tiny-k8", "91c82a7df4a01141"),
    ):
        assert TrainJob(system=system, stage=stage, scale=scale, runs=tmp_path).identity == identity


def seeded(folder: Path, seed: int) -> Path:
    """As ``through``, of which the weights depend on ``seed``."""
    training = {"lineage": [LEFT_OUT], "init": "random", "recipe": {"template": "tagged"}}
    return save_refrag(Refrag(RefragConfig(k=K), random_decoder("tiny", seed=seed)), TOKENIZER, training, folder)


def test_other_weights_at_the_same_path_are_another_training(jobs: Any, tmp_path: Path) -> None:
    """The first one's checkpoint was taken for that of the second."""
    job = jobs("cpt", seeded(tmp_path / "start", 1))
    first, name = job.run(), job.name
    weights = (first / "model.safetensors").read_bytes()
    seeded(tmp_path / "start", 2)
    assert job.name != name and not job.finished
    second = jobs("cpt", tmp_path / "start").run()
    assert second != first and (first / "model.safetensors").read_bytes() == weights
    assert (second / "model.safetensors").read_bytes() != weights
    shutil.rmtree(tmp_path / "start")
    assert jobs("cpt", seeded(tmp_path / "elsewhere", 1)).run() == first, "and equal ones the same, wherever they lie"


def test_what_comes_to_lie_at_the_start_while_it_trains_names_nothing(jobs: Any, tmp_path: Path) -> None:
    job = jobs("cpt", seeded(tmp_path / "start", 1))
    folder = job.folder
    assert job.run(lambda done, total, note: seeded(tmp_path / "start", 2)) == folder / "final"
    assert not job.finished and not job.folder.exists()


def test_a_start_is_read_once_to_name_a_training(jobs: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may be many gigabytes, and a plan asks for the names again and again."""
    read = []

    def counted(*paths: Path) -> str:
        read.extend(paths)
        return file_digest(*paths)

    monkeypatch.setattr("harness.model.load.file_digest", counted)
    start = seeded(tmp_path / "start", 3)
    assert len({jobs("cpt", start).name for _ in range(3)}) == 1
    assert len(read) == len(set(read)) and start / "model.safetensors" in read


def test_a_start_that_is_not_there_yet_has_a_name(jobs: Any, tmp_path: Path) -> None:
    assert jobs("cpt", tmp_path / "a").name != jobs("cpt", tmp_path / "b").name


def test_a_stage_refuses_a_model_that_was_built_otherwise(ready: Path) -> None:
    with pytest.raises(InputError, match="was built as .*k=8.*; this stage expects .*k=16"):
        recipe("cpt", "tiny-k16").open(ready)


def test_all_stages_in_their_order_make_a_system(jobs: Any, tiny_checkpoint: Path) -> None:
    checkpoint = tiny_checkpoint
    for index, stage in enumerate(ORDER):
        job = jobs(stage, checkpoint)
        checkpoint = job.run()
        training = json.loads((checkpoint / "training.json").read_text())
        assert training["lineage"] == [f"refrag_v2/{earlier}" for earlier in ORDER[: index + 1]]
        assert (training["steps"], training["skipped"], training["init"]) == (2, [], "random")
        assert math.isfinite(training["final_loss"]) and training["tokens"] > 0
        assert job.finished and job.run() == checkpoint
        stored = load_file(checkpoint / FILES.weights_file)
        assert any(name.startswith("policy.") for name in stored) == stage.startswith("policy")
        assert {tensor.dtype for tensor in stored.values()} == {torch.bfloat16}
    system = RefragV2Config(k=K, template="tagged", select="policy", expand=0.1).build(load_decoder(str(checkpoint)))
    columns = list(system.generate(["what is"], system.encode([[]]), max_new_tokens=2))
    assert len(system.text(columns)) == 1


def test_the_policy_is_compared_with_where_it_started(ready: Path, tmp_path: Path) -> None:
    """``policy`` begins from the very policy that ``policy_start`` warmed up, and the same model around it."""
    start = small("policy_start")
    model = run(start, ready, tmp_path / "warm")
    _, tokenizer = start.open(ready)
    folder = start.export(model.to(torch.bfloat16), tokenizer, {"recipe": {"template": "tagged"}}, tmp_path / "final")
    begun = recipe("policy").open(folder)[0]
    assert not changed(begun.refrag, {name: tensor.float() for name, tensor in model.refrag.state_dict().items()})
    assert not changed(begun.sampler, begun.refrag.policy.state_dict())
    assert "policy.project.weight" in changed(begun.refrag, start.open(ready)[0].refrag.state_dict()), "it has moved"


@pytest.mark.parametrize("stage", ["cpt", "policy"])
def test_what_is_exported_is_what_was_trained(jobs: Any, tmp_path: Path, ready: Path, stage: str) -> None:
    trained = run(small(stage), ready, tmp_path / "again")
    model = trained.refrag if stage == "policy" else trained
    checkpoint = jobs(stage, ready).run()
    exported = load_refrag(checkpoint, load_decoder(str(checkpoint)).model)
    expected = {name: tensor.to(torch.bfloat16).float() for name, tensor in model.state_dict().items()}
    assert not changed(exported, expected)


# What moves


def test_reconstruction_moves_encoder_and_projector_alone(tiny_checkpoint: Path, tmp_path: Path) -> None:
    recipe = small("reconstruction", steps=3)
    model, tokenizer = recipe.open(tiny_checkpoint)
    before = state(model)
    freeze(model, recipe.stage)
    batch = next(recipe.batches(model, tokenizer))
    recipe.loss()(model, batch).backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None) == name.startswith(ENCODING), name
    model.zero_grad()
    train(recipe.stage, model, recipe.batches(model, tokenizer), recipe.loss(), tmp_path, device=CPU)
    parameters = {name for name, _ in model.named_parameters()}
    assert changed(model, before) == {name for name in parameters if name.startswith(("encoder.", "projector."))}
    plain = load_decoder(str(tiny_checkpoint)).model.state_dict()
    assert not changed(model.decoder, plain)


@pytest.mark.parametrize("stage", ["cpt", "mixed", "finetune"])
def test_later_stages_move_everything(ready: Path, tmp_path: Path, stage: str) -> None:
    recipe = small(stage)
    before = state(recipe.open(ready)[0])
    model = run(recipe, ready, tmp_path)
    tied = {"decoder.lm_head.weight"}  # the embedding under another name
    assert changed(model, before) == {name for name, _ in model.named_parameters()} | tied


def test_the_policy_stage_moves_the_policy_alone(ready: Path, tmp_path: Path) -> None:
    recipe = small("policy", steps=3)
    before = state(recipe.open(ready)[0])
    moved = changed(run(recipe, ready, tmp_path), before)
    assert any(name.startswith("refrag.policy.") for name in moved)
    assert all(name == "updates" or name.startswith("refrag.policy.") for name in moved)


def test_a_fresh_encoder_depends_on_the_seed_alone(tiny_checkpoint: Path) -> None:
    def fresh(seed: int, of_process: int) -> Refrag:
        torch.manual_seed(of_process)
        return small("reconstruction", seed=seed).open(tiny_checkpoint)[0]

    assert not changed(fresh(0, of_process=1), state(fresh(0, of_process=2)))
    assert "projector.hidden.weight" in changed(fresh(0, of_process=1), state(fresh(1, of_process=1)))


# Resuming


@pytest.mark.parametrize("killed_at", [1, 3])
@pytest.mark.parametrize("stage", ["mixed", "policy"])
def test_resumed_equals_unbroken(ready: Path, tmp_path: Path, stage: str, killed_at: int) -> None:
    """All weights to the byte; of the policy also the sampler that drew, and what it draws next."""
    recipe = small(stage, steps=5)
    if isinstance(recipe, PolicyRecipe):
        recipe = replace(recipe, objective=replace(recipe.objective, refresh=2))
    whole = run(recipe, ready, tmp_path / "whole")
    run(recipe, ready, tmp_path / "broken", stop_after=killed_at)
    torch.manual_seed(999)  # a new process has another random state; the checkpoint must bring its own
    resumed = run(recipe, ready, tmp_path / "broken")
    assert not changed(resumed, state(whole))
    if isinstance(recipe, PolicyRecipe):
        assert int(resumed.updates) == 5
        policy, sampler = whole.refrag.policy.state_dict(), whole.sampler.state_dict()
        assert any(not torch.equal(policy[name], sampler[name]) for name in policy), "the sampler lags behind"


# What is expanded


def half_up(share: float, n: int) -> int:
    return math.floor(Fraction(str(share)) * n + Fraction(1, 2))


def compressed(batch: dict[str, Tensor]) -> list[tuple[int, int]]:
    """Of each row how many chunks it has, and how many of them stand as one embedding."""
    codes = (batch["input_ids"] < 0).sum(1).tolist()
    return list(zip(batch["n_chunks"].tolist(), codes, strict=True))


def test_mixed_expands_a_tenth_of_each_rows_chunks(ready: Path) -> None:
    recipe, seen = small("mixed"), set()
    growing = Growing(k=K, steps=30, max_chunks=32, tokens=256)
    recipe = replace(recipe, data=replace(recipe.data, growing=growing))
    model, tokenizer = recipe.open(ready)
    batches, expanded = recipe.batches(model, tokenizer), set()
    for _ in range(growing.steps):
        batch = next(batches)
        for n, codes in compressed(batch):
            assert codes == n - half_up(0.1, n)
            seen.add(n)
        for row, n in enumerate(batch["n_chunks"].tolist()):
            kept = {-1 - code for code in batch["input_ids"][row].tolist() if code < 0}
            expanded |= {number for number in range(n) if int(batch["first_chunk"][row]) + number not in kept}
    assert {1, 4, 8, 16, 32} <= seen
    assert len(expanded) > 16, "chunks drawn from everywhere, not always the first"


@pytest.mark.parametrize("stage", ["reconstruction", "cpt"])
def test_the_first_two_stages_expand_nothing(ready: Path, stage: str) -> None:
    recipe = small(stage)
    batches = recipe.batches(*recipe.open(ready))
    assert all(n == codes > 0 for _ in range(4) for n, codes in compressed(next(batches)))


def test_finetuning_sees_every_share_of_its_recipe(ready: Path) -> None:
    recipe = small("finetune")
    batches = recipe.batches(*recipe.open(ready))
    rows = [row for _ in range(40) for row in compressed(next(batches))]
    assert {n for n, _ in rows} == {12}
    assert {n - codes for n, codes in rows} == {half_up(share, 12) for share in recipe.expand}


@pytest.mark.parametrize("scale", SCALES)
def test_the_policy_has_rows_of_equally_many_chunks_and_something_to_pick(scale: str, tmp_path: Path) -> None:
    """What ``grpo`` relies on: one number of picks for all of the batch."""
    found = recipe("policy", scale)
    model = Refrag(found.model, random_decoder("tiny", seed=0))
    training = {"recipe": {"template": "tagged"}}
    opened, tokenizer = found.open(save_refrag(model, TOKENIZER, training, tmp_path / "final"))
    batches = found.batches(opened, tokenizer)
    for batch in (next(batches) for _ in range(10)):
        (count,) = set(batch["n_chunks"].tolist())
        assert half_up(found.objective.expand, count) >= 1
        assert (batch["is_answer"].sum(1) == 2).all(), "one question each: a value and the end"
