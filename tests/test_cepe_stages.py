"""CEPE's stages: what a batch holds and a loss is, what moves and what never does, and why it starts as it does."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from baselines import cepe_stages
from baselines.cepe import CepeSystemConfig
from baselines.cepe_checkpoint import FILES, load_cepe, save_cepe
from baselines.cepe_model import Cepe, CepeConfig, build_cepe
from baselines.cepe_stages import (
    WINDOW,
    CepeRecipe,
    collate_duplicate,
    collate_passages,
    divergence_from_tokens,
    read_passages,
)
from harness.cli.catalog import RECIPES
from harness.config import load
from harness.data.world.practice import Practice, Reading
from harness.data.world.tokenizer import build_tokenizer
from harness.errors import InputError
from harness.model.load import load_decoder, random_decoder
from harness.protocol import Passage
from harness.train.loop import train
from harness.train.optim import freeze
from harness.train.rows import IGNORED, Batch, Block, Row
from slurm.jobs.train import ACCEPTED, TrainJob

pytestmark = pytest.mark.usefixtures("one_thread")

CPU = torch.device("cpu")
TOKENIZER = build_tokenizer()
PAD = TOKENIZER.pad_token_id
STAGES = ("warmup", "cpt")
EACH_STAGE = pytest.mark.parametrize("stage", STAGES)
NAMES = RECIPES["cepe"]  # kept here, because some tests put other recipes there
ADDED = ("encoder.", "cross.")


def recipe(stage: str, scale: str = "tiny") -> CepeRecipe:
    """The recipe that the command line finds."""
    scales: Mapping[str, CepeRecipe] = load(NAMES[stage])
    return scales[scale]


def small(stage: str, steps: int = 2, **changes: Any) -> CepeRecipe:
    """The same recipe in a few steps on a few rows."""
    found = recipe(stage)
    return replace(
        found,
        after=found.after if stage == "warmup" else ("cepe", "warmup", "small"),
        data=Reading(sizes=((3, 2),), questions=2),
        stage=replace(found.stage, steps=steps, checkpoint_every=1),
        **changes,
    )


def run(recipe: CepeRecipe, start: Path, folder: Path, **how: Any) -> Cepe:
    """The model after training as the job trains it."""
    model, tokenizer = recipe.open(start)
    train(recipe.stage, model, recipe.batches(model, tokenizer), recipe.loss(), folder, device=CPU, **how)
    return model


def state(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def changed(model: nn.Module, before: Mapping[str, Tensor]) -> set[str]:
    assert model.state_dict().keys() == before.keys()
    return {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}


def random_cepe(seed: int = 0, **shape: Any) -> Cepe:
    """Around a tiny decoder, everything far from its start: nothing that is added is a copy any more."""
    model = build_cepe(
        CepeConfig(**dict(cross_layers=2, encoder="decoder:1") | shape), random_decoder("tiny", seed=seed)
    )
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 2:
                parameter.mul_(4)  # at their random start all inputs look alike
            if not name.startswith("decoder."):
                parameter.add_(0.02 * torch.randn_like(parameter))
    return model


def through(folder: Path, *stages: str, **shape: Any) -> Path:
    """A random checkpoint whose papers say that it went through ``stages``."""
    shape = dict(vars(cepe_stages.MODEL)) | shape
    training = {"lineage": [f"cepe/{s}" for s in stages], "init": "random", "recipe": {"template": "tagged"}}
    return save_cepe(CepeConfig(**shape), random_cepe(seed=1, **shape), TOKENIZER, training, folder)


def start_of(stage: str, plain: Path, folder: Path) -> Path:
    return plain if stage == "warmup" else through(folder, "warmup")


# What a batch holds

QUESTIONED = Row([1], [Block([4], [10, 11]), Block([4], [12])], [20, 21, 22, 23], [False, False, True, True])
BARE = Row([1], [], [30, 31], [False, True])
LONG = Row([1], [Block([4], [13, 14, 15, 16])], [40, 41, 42], [False, True, True])
ROWS = [QUESTIONED, BARE, LONG]


def test_passages_go_to_the_encoder_and_the_rest_to_the_decoder() -> None:
    batch = {name: tensor.tolist() for name, tensor in collate_passages(ROWS, 99).items()}
    f, t, n = False, True, IGNORED
    assert batch == {
        "input_ids": [[1, 20, 21, 22, 23], [1, 30, 31, 99, 99], [1, 40, 41, 42, 99]],
        "attention_mask": [[1, 1, 1, 1, 1], [1, 1, 1, 0, 0], [1, 1, 1, 1, 0]],
        "labels": [[1, 20, 21, 22, 23], [1, 30, 31, n, n], [1, 40, 41, 42, n]],
        "is_answer": [[f, f, f, t, t], [f, f, t, f, f], [f, f, t, t, f]],
        "encoder_ids": [
            [[4, 10, 11, 99, 99], [4, 12, 99, 99, 99]],
            [[99] * 5, [99] * 5],
            [[4, 13, 14, 15, 16], [99] * 5],
        ],
        "encoder_mask": [
            [[t, t, t, f, f], [t, t, f, f, f]],
            [[f] * 5, [f] * 5],
            [[t] * 5, [f] * 5],
        ],
        "whole_ids": [
            [1, 4, 10, 11, 4, 12, 20, 21, 22, 23],
            [1, 30, 31, *[99] * 7],
            [1, 4, 13, 14, 15, 16, 40, 41, 42, 99],
        ],
        "whole_tail": [
            [f, f, f, f, f, t, t, t, t, t],
            [t, t, t, *[f] * 7],
            [f, f, f, f, f, t, t, t, t, f],
        ],
    }


def test_the_warm_up_has_everything_in_the_decoder_and_again_in_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cepe_stages, "WINDOW", 3)
    batch = {name: tensor.tolist() for name, tensor in collate_duplicate(ROWS, 99).items()}
    f, t, n = False, True, IGNORED
    assert batch == {
        "input_ids": [
            [1, 4, 10, 11, 4, 12, 20, 21, 22, 23],
            [1, 30, 31, *[99] * 7],
            [1, 4, 13, 14, 15, 16, 40, 41, 42, 99],
        ],
        "attention_mask": [[1] * 10, [1] * 3 + [0] * 7, [1] * 9 + [0]],
        "labels": [
            [1, 4, 10, 11, 4, 12, 20, 21, 22, 23],
            [1, 30, 31, *[n] * 7],
            [1, 4, 13, 14, 15, 16, 40, 41, 42, n],
        ],
        "is_answer": [[f, *[t] * 9], [f, t, t, *[f] * 7], [f, *[t] * 8, f]],
        "encoder_ids": [
            [[4, 10, 11], [4, 12, 20], [21, 22, 23]],
            [[30, 31, 99], [99] * 3, [99] * 3],
            [[4, 13, 14], [15, 16, 40], [41, 42, 99]],
        ],
        "encoder_mask": [
            [[t] * 3, [t] * 3, [t] * 3],
            [[t, t, f], [f] * 3, [f] * 3],
            [[t] * 3, [t] * 3, [t, t, f]],
        ],
    }


def drawn(stage: str, n: int = 6) -> Iterator[tuple[list[Row], Batch]]:
    """Batches of the recipe itself, and the rows that each was made of."""
    found = recipe(stage)
    batches = found.batches(None, TOKENIZER)
    rows = Practice(found.data, TOKENIZER, lambda rows, _: {"rows": rows}, seed=found.stage.seed)
    return ((next(rows)["rows"], next(batches)) for _ in range(n))


def test_the_warm_up_gives_both_the_same_tokens() -> None:
    for rows, batch in drawn("warmup"):
        assert batch["encoder_ids"].shape[-1] == WINDOW == 64
        for index, row in enumerate(rows):
            said = batch["input_ids"][index][batch["attention_mask"][index].bool()].tolist()
            read = batch["encoder_ids"][index][batch["encoder_mask"][index]].tolist()
            assert said == row.start + read
            assert read == [t for block in row.context for t in block.tag + block.text] + row.tail
            assert int(batch["is_answer"][index].sum()) == len(read), "every token is to be predicted"


def test_the_tail_is_the_same_in_both_layouts() -> None:
    """Otherwise the divergence compares predictions of different tokens."""
    for rows, batch in drawn("cpt"):
        for index, row in enumerate(rows):
            own = batch["input_ids"][index][batch["attention_mask"][index].bool()].tolist()
            marked = batch["whole_ids"][index][batch["whole_tail"][index]].tolist()
            assert own == row.start + row.tail
            assert marked[1:] == own[1:] == row.tail and len(marked) == len(own)
            assert marked[0] == row.context[-1].text[-1]
            read = batch["encoder_ids"][index][batch["encoder_mask"][index]].tolist()
            assert [*row.start, *read, *row.tail] == batch["whole_ids"][index].tolist()[: len(own) + len(read)]
            answers = [token for token, answer in zip(row.tail, row.is_answer, strict=True) if answer]
            assert batch["input_ids"][index][batch["is_answer"][index]].tolist() == answers


# What is computed of it


def reading(model: Cepe, passages: Sequence[Sequence[int]], said: Sequence[int]) -> Tensor:
    """Logits (T, V) of one row that nothing pads, over its passages laid out one by one."""
    ids = torch.tensor([list(said)])
    width = max(map(len, passages), default=0)
    read = torch.tensor([[[*passage, *[0] * (width - len(passage))] for passage in passages]], dtype=torch.long)
    mask = torch.tensor([[[1] * len(p) + [0] * (width - len(p)) for p in passages]], dtype=torch.bool)
    return model(ids, torch.ones_like(ids), torch.arange(len(said))[None], read, mask).logits[0]


def of_row(model: Cepe, row: Row) -> Tensor:
    return reading(model, [block.tag + block.text for block in row.context], row.start + row.tail)


@torch.no_grad()
def test_padding_changes_no_logit() -> None:
    model = random_cepe()
    got = read_passages(model, collate_passages(ROWS, 99))
    for row, ours in zip(ROWS, got, strict=True):
        expected = of_row(model, row)
        torch.testing.assert_close(ours[: len(expected)], expected, atol=1e-5, rtol=1e-5)
    expected = model.decoder(torch.tensor([LONG.start + LONG.tail])).logits[0]
    assert (got[2, : len(expected)] - expected).abs().max() > 0.1, "passages that move nothing prove nothing"


def teacher_of(model: Cepe, row: Row) -> Tensor:
    """The decoder's logits over everything as tokens, from the token before the tail on."""
    ids = [*row.start, *(t for block in row.context for t in block.tag + block.text), *row.tail]
    return model.decoder(torch.tensor([ids])).logits[0, -len(row.tail) - 1 :]


def divergence(model: Cepe, students: Sequence[Tensor]) -> float:
    """sum_v p (log p - log q), the mean over all positions of all rows; p of the teacher, q of the student."""
    total, count = 0.0, 0
    for row, student in zip(ROWS, students, strict=True):
        for theirs, ours in zip(teacher_of(model, row), student, strict=True):
            p, q = (logits.double().exp() / logits.double().exp().sum() for logits in (theirs, ours))
            total, count = total + float((p * (p.log() - q.log())).sum()), count + 1
    return total / count


@torch.no_grad()
@pytest.mark.parametrize(("language_weight", "kl_weight"), [(0.0, 0.0), (0.02, 0.0), (0.5, 0.0), (0.02, 2.0)])
def test_the_loss_is_its_formula(language_weight: float, kl_weight: float) -> None:
    """Answers and other tokens each averaged over their own number, and the divergence over all that predict."""
    model = random_cepe()
    found = replace(recipe("cpt"), language_weight=language_weight, kl_weight=kl_weight)
    answers, others, students = [], [], []
    for row in ROWS:
        students.append(of_row(model, row))
        for token, answer, logits in zip(row.tail, row.is_answer, students[-1], strict=False):
            (answers if answer else others).append(float(logits.logsumexp(-1) - logits[token]))
    expected = sum(answers) / len(answers) + language_weight * sum(others) / len(others)
    expected += kl_weight * divergence(model, students)
    assert float(found.loss()(model, collate_passages(ROWS, 99))) == pytest.approx(expected, abs=1e-4)


@torch.no_grad()
def test_where_all_is_answer_the_loss_is_theirs() -> None:
    """The mean over no other token would be NaN, and end the training at its first step."""
    model = random_cepe()
    batch = collate_passages([Row([1], [Block([4], [10, 11])], [20, 21], [True, True])], 99)
    with_others, without = (replace(recipe("cpt"), language_weight=weight).loss()(model, batch) for weight in (0.5, 0))
    assert float(with_others) == float(without) > 0


@torch.no_grad()
def test_the_warm_ups_loss_is_over_every_token() -> None:
    model = random_cepe()
    losses = []
    for row in ROWS:
        said = [token for block in row.context for token in block.tag + block.text] + row.tail
        logits = reading(model, [said], [*row.start, *said])  # shorter than a window
        losses += [float(at.logsumexp(-1) - at[token]) for token, at in zip(said, logits, strict=False)]
    got = float(recipe("warmup").loss()(model, collate_duplicate(ROWS, 99)))
    assert got == pytest.approx(sum(losses) / len(losses), abs=1e-4)


def laid_out(students: Sequence[Tensor], fill: float) -> Tensor:
    """Logits (B, T, V) of rows of their own lengths, ``fill`` behind."""
    out = torch.full((len(students), max(map(len, students)), students[0].shape[-1]), fill)
    for index, student in enumerate(students):
        out[index, : len(student)] = student
    return out


@torch.no_grad()
def test_the_divergence_from_itself_is_nothing() -> None:
    model, batch = random_cepe(), collate_passages(ROWS, 99)
    same = [teacher_of(model, row) for row in ROWS]
    assert abs(float(divergence_from_tokens(model, batch, laid_out(same, 7.0)))) < 1e-6
    shifted = [torch.roll(logits, 1, dims=0) for logits in same]
    assert float(divergence_from_tokens(model, batch, laid_out(shifted, 7.0))) > 0.01, "each at its position"


@torch.no_grad()
def test_the_divergence_is_its_formula() -> None:
    model, batch = random_cepe(), collate_passages(ROWS, 99)
    torch.manual_seed(0)
    for students in ([of_row(model, row) for row in ROWS], [torch.randn(len(r.tail) + 1, 974) for r in ROWS]):
        got = float(divergence_from_tokens(model, batch, laid_out(students, 7.0)))
        assert got == pytest.approx(divergence(model, students), abs=1e-5)
        assert got > 0.01


@torch.no_grad()
def test_with_nothing_to_read_there_is_nothing_to_distil() -> None:
    """Student and teacher are then the same decoder over the same tokens."""
    model = random_cepe()
    batch = collate_passages([Row(row.start, [], row.tail, row.is_answer) for row in ROWS], 99)
    assert not batch["encoder_mask"].any() and batch["encoder_ids"].shape[:2] == (3, 1)
    assert torch.equal(read_passages(model, batch), model.decoder(batch["input_ids"]).logits)
    assert abs(float(divergence_from_tokens(model, batch, read_passages(model, batch)))) < 1e-6


def test_the_divergence_teaches_the_student_alone() -> None:
    model, batch = random_cepe(), collate_passages(ROWS, 99)
    logits = torch.randn((3, 5, 974), requires_grad=True)
    divergence_from_tokens(model, batch, logits).backward()
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())
    assert logits.grad is not None
    assert torch.equal(logits.grad.abs().amax(-1) > 0, batch["attention_mask"].bool())


# What moves


@pytest.mark.parametrize(("stage", "kl_weight"), [("warmup", 0.0), ("cpt", 0.0), ("cpt", 2.0)])
def test_the_decoder_is_frozen(tiny_checkpoint: Path, tmp_path: Path, stage: str, kl_weight: float) -> None:
    """Not a byte of it moves, while all of encoder and cross-attention does."""
    start, found = start_of(stage, tiny_checkpoint, tmp_path / "start"), small(stage, kl_weight=kl_weight)
    model, tokenizer = found.open(start)
    freeze(model, found.stage)
    found.loss()(model, next(found.batches(model, tokenizer))).backward()
    for name, parameter in model.named_parameters():
        moved = parameter.grad is not None and bool(parameter.grad.any())
        assert moved == name.startswith(ADDED), name
        assert parameter.grad is None or name.startswith(ADDED)
    before = state(found.open(start)[0])
    moved = changed(run(found, start, tmp_path / "run"), before)
    assert moved == {name for name in before if name.startswith(ADDED)}


def test_a_fresh_encoder_depends_on_the_seed_alone(tiny_checkpoint: Path) -> None:
    def fresh(seed: int, of_process: int) -> Cepe:
        torch.manual_seed(of_process)
        found = small("warmup", model=CepeConfig(cross_layers=2, encoder="random:cepe-tiny"))
        return replace(found, stage=replace(found.stage, seed=seed)).open(tiny_checkpoint)[0]

    assert not changed(fresh(0, of_process=1), state(fresh(0, of_process=2)))
    assert "encoder.layers.0.mlp.up_proj.weight" in changed(fresh(0, of_process=1), state(fresh(1, of_process=1)))


# The order


@pytest.mark.parametrize("scale", ["tiny", "tiny-short", "tiny-distilled"])
def test_training_goes_on_from_the_warm_up(scale: str) -> None:
    cpt = recipe("cpt", scale)
    warmup = recipe("warmup", cpt.after[2])
    assert (cpt.after[:2], cpt.requires) == (("cepe", "warmup"), ("cepe/warmup",))
    assert (warmup.after[:2], warmup.requires) == (("decoder", "pretrain"), ())
    assert warmup.after[2] in load(RECIPES["decoder"]["pretrain"])
    assert (warmup.duplicate, cpt.duplicate) == (True, False)
    assert cpt.model == warmup.model
    assert (cpt.kl_weight == 2.0) == (scale == "tiny-distilled")
    for found in (warmup, cpt):
        assert found.stage.trained == ADDED
        assert (found.stage.schedule.warmup, found.stage.schedule.decay) == (0.04, "cosine")


@pytest.fixture
def jobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., TrainJob]:
    """The jobs of the stages at a scale of a few steps."""
    monkeypatch.setitem(RECIPES, "cepe", {stage: {"small": small(stage)} for stage in STAGES})

    def job(stage: str, start: Any, **changes: Any) -> TrainJob:
        settings = dict(system="cepe", stage=stage, scale="small", runs=tmp_path / "runs", start=start)
        return TrainJob(**settings | changes)

    return job


def test_what_never_saw_the_warm_up_is_refused(jobs: Any, tiny_checkpoint: Path, tmp_path: Path) -> None:
    for start in (tiny_checkpoint, through(tmp_path / "start")):
        job = jobs("cpt", start)
        said = "expects .* that went through cepe/warmup; .* went through nothing known .*--skip cepe/warmup"
        with pytest.raises(InputError, match=said):
            job.run()
        assert not job.folder.exists()
    with pytest.raises(InputError, match="unknown stage .*'cepe/cpt'.*valid choices: cepe/warmup"):
        jobs("cpt", tiny_checkpoint, skip=("cepe/cpt",)).run()


def test_an_ablation_is_accepted_and_recorded(jobs: Any, tiny_checkpoint: Path) -> None:
    ablation = jobs("cpt", tiny_checkpoint, skip=("cepe/warmup",))
    assert ablation.name != jobs("cpt", tiny_checkpoint).name, "and never mistaken for the real thing"
    training = json.loads((ablation.run() / "training.json").read_text())
    assert (training["skipped"], training["lineage"]) == (["cepe/warmup"], ["cepe/cpt"])


def test_both_stages_make_a_system(jobs: Any, tiny_checkpoint: Path) -> None:
    """Around a decoder that is, to the last bit that is stored, the one they started from."""
    warmup = jobs("warmup", tiny_checkpoint)
    job = jobs("cpt", warmup)
    assert job.chain == [warmup, job]
    warmup.run()
    checkpoint = job.run()
    training = json.loads((checkpoint / "training.json").read_text())
    assert training["lineage"] == ["cepe/warmup", "cepe/cpt"]
    assert (training["steps"], training["skipped"], training["init"]) == (2, [], "random")
    assert math.isfinite(training["final_loss"]) and training["tokens"] > 0
    assert job.finished and job.run() == checkpoint
    stored = load_file(checkpoint / FILES.weights_file)
    assert all(name.startswith(ADDED) for name in stored)
    assert {tensor.dtype for tensor in stored.values()} == {torch.bfloat16}
    before, after = (load_file(folder / "model.safetensors") for folder in (tiny_checkpoint, checkpoint))
    assert before.keys() == after.keys()
    assert all(torch.equal(after[name], tensor.bfloat16()) for name, tensor in before.items())
    config = CepeSystemConfig(**CepeSystemConfig.defaults(str(checkpoint)))
    assert config.template == "tagged"
    system = config.build(load_decoder(str(checkpoint)))
    context = system.encode([[Passage(id="", title="", text="The rival of is")]])
    assert len(system.text(list(system.generate(["what is"], context, max_new_tokens=2)))) == 1


def test_a_stage_starts_with_the_weights_of_the_one_before(tmp_path: Path) -> None:
    start = through(tmp_path / "start", "warmup")
    opened = recipe("cpt").open(start)[0].state_dict()
    stored = load_file(start / FILES.weights_file)
    assert stored.keys() == {name for name in opened if name.startswith(ADDED)}
    assert all(torch.equal(opened[name], tensor) for name, tensor in stored.items())
    fresh = build_cepe(cepe_stages.MODEL, load_decoder(str(start)).model).state_dict()
    assert not any(torch.equal(fresh[name], tensor) for name, tensor in stored.items())


def test_a_model_that_was_built_otherwise_is_refused(tmp_path: Path) -> None:
    start = through(tmp_path / "start", "warmup", cross_layers=2)
    with pytest.raises(InputError, match=f"{start} was built as .*cross_layers=2.*; this stage expects .*layers=4"):
        recipe("cpt").open(start)
    with pytest.raises(InputError, match="CEPE starts from a decoder; none was given"):
        recipe("warmup").open(None)


class Killed(Exception):
    pass


@EACH_STAGE
@pytest.mark.parametrize("killed_at", [2, 4])
def test_resumed_equals_unbroken(
    jobs: Any, tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str, killed_at: int
) -> None:
    """Every byte of the exported weights; and so with activations that are computed again."""
    monkeypatch.setitem(RECIPES, "cepe", {stage: {"small": small(stage, steps=4)}})
    start, seen = start_of(stage, tiny_checkpoint, tmp_path / "start"), []

    def dying(step: int, total: int, said: str) -> None:
        if step == killed_at:
            raise Killed

    whole = jobs(stage, start, runs=tmp_path / "whole").run()
    broken = jobs(stage, start, runs=tmp_path / "broken", recompute=True)
    with pytest.raises(Killed):
        broken.run(dying)
    assert not broken.finished
    torch.manual_seed(999)  # a new process has another random state; the checkpoint must bring its own
    resumed = broken.run(lambda step, total, said: seen.append(step))
    assert seen == list(range(killed_at, 5)), "from the last step that was kept"
    for file in (FILES.weights_file, "model.safetensors"):
        assert (resumed / file).read_bytes() == (whole / file).read_bytes()
    untrained, trained = small(stage).open(start)[0].state_dict(), load_file(whole / FILES.weights_file)
    assert not any(
        torch.equal(tensor, untrained[name].bfloat16()) for name, tensor in trained.items() if tensor.ndim == 2
    )


# The checkpoint


@pytest.mark.parametrize(
    "shape",
    [
        dict(cross_layers=4, encoder="decoder:1"),
        dict(cross_layers=3, encoder="decoder:2", encoder_states=3),
        dict(cross_layers=1, encoder="random:cepe-tiny"),
    ],
    ids=lambda shape: f"{shape['encoder']}",
)
@torch.no_grad()
def test_what_was_saved_is_loaded(tmp_path: Path, shape: dict[str, Any]) -> None:
    model = random_cepe(seed=5, **shape)
    folder = save_cepe(CepeConfig(**shape), model, TOKENIZER, {"recipe": {"template": "tagged"}}, tmp_path / "final")
    loaded = load_cepe(folder, load_decoder(str(folder)).model)
    assert not changed(loaded, state(model)) and not loaded.training
    batch = collate_passages(ROWS, PAD)
    assert torch.equal(read_passages(loaded, batch), read_passages(model, batch))


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return through(tmp_path_factory.mktemp("saved") / "final", "warmup")


@pytest.fixture
def copied(saved: Path, tmp_path: Path) -> Path:
    """A folder to damage, with the decoder of ``saved`` beside."""
    for name in (FILES.config_file, FILES.weights_file):
        (tmp_path / name).write_bytes((saved / name).read_bytes())
    return tmp_path


WHOLE = dict(cross_layers=4, encoder="decoder:1", encoder_states=1)


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ("", "is damaged"),
        ('{"cross_layers": 4, "enc', "is damaged"),
        ("null", "is damaged"),
        ("[4]", "is damaged"),
        ({"encoder": "decoder:1"}, "is damaged.*cross_layers"),
        (WHOLE | {"colour": "red"}, "is damaged.*colour"),
        (WHOLE | {"cross_layers": 0}, "is damaged.*at least 1 layer"),
        (WHOLE | {"cross_layers": "4"}, "is damaged"),
        (WHOLE | {"encoder": 1}, "is damaged"),
        (WHOLE | {"encoder": "decoder:x"}, "is damaged.*decoder:N"),
        (WHOLE | {"encoder": "random:cepe-huge"}, "is damaged.*valid choices: cepe-large, cepe-mini, cepe-tiny"),
        (WHOLE | {"encoder_states": 2}, "is damaged.*encoder_states"),
        (WHOLE | {"encoder": "decoder:9"}, "does not fit its decoder: expected 1 to 4 encoder layers, got 9"),
        (WHOLE | {"cross_layers": 9}, "does not fit its decoder: expected 1 to 4 decoder layers .* got 9"),
        (WHOLE | {"cross_layers": 2.5}, "does not fit its decoder"),
        (WHOLE | {"encoder_states": 4}, "does not fit its decoder.*there are 2"),
    ],
)
def test_a_damaged_description_is_named(saved: Path, copied: Path, document: Any, message: str) -> None:
    (copied / FILES.config_file).write_text(document if isinstance(document, str) else json.dumps(document))
    with pytest.raises(InputError, match=f"{copied / 'cepe.json'} {message}"):
        load_cepe(copied, load_decoder(str(saved)).model)


@pytest.mark.parametrize("damage", ["gone", "empty", "cut", "noise", "fewer blocks", "another width"])
def test_damaged_weights_are_named(saved: Path, copied: Path, tmp_path: Path, damage: str) -> None:
    path = copied / FILES.weights_file
    whole = path.read_bytes()
    match damage:
        case "gone":
            path.unlink()
        case "empty":
            path.write_bytes(b"")
        case "cut":
            path.write_bytes(whole[: len(whole) // 2])
        case "noise":
            path.write_bytes(bytes(range(256)) * 64)
        case "fewer blocks":
            path.write_bytes((through(tmp_path / "other", cross_layers=2) / FILES.weights_file).read_bytes())
        case "another width":
            other = through(tmp_path / "other", encoder="random:cepe-tiny")
            path.write_bytes((other / FILES.weights_file).read_bytes())
    with pytest.raises(InputError, match=rf"{path} (cannot be loaded|does not fit cepe\.json)"):
        load_cepe(copied, load_decoder(str(saved)).model)


# Where it starts


@pytest.fixture(scope="module")
def accepted() -> Path:
    """The decoder that the recipes start from."""
    (folder,) = (ACCEPTED / "decoder").glob("pretrain-tiny-*")
    return folder


@torch.no_grad()
def first_token_accuracy(model: Cepe, n_passages: int, blind: bool = False) -> float:
    """Of 128 questions that no training saw, each over passages of its own in the encoder."""
    batch = next(
        Practice(
            Reading(sizes=((n_passages, 128),), questions=1),
            TOKENIZER,
            lambda rows, _: collate_passages(rows, PAD),
            seed=1234,
        )
    )
    if blind:
        batch["encoder_mask"] = torch.zeros_like(batch["encoder_mask"])
    before = batch["is_answer"][:, :-1]
    first = batch["is_answer"][:, 1:] & ~before
    right = read_passages(model, batch)[:, :-1].argmax(-1) == batch["labels"][:, 1:]
    assert int(first.sum()) == 128
    return float(right[first].float().mean())


def randomised(model: Cepe) -> Cepe:
    """Cross-attention as any new layer starts, the encoder as it was."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.cross.parameters():
            torch.nn.init.normal_(parameter, std=0.02) if parameter.ndim == 2 else parameter.fill_(1.0)
    return model


def test_a_copy_of_self_attention_reads_before_any_training(accepted: Path) -> None:
    """The reason for that start. Neither the decoder alone nor random cross-attention does."""
    model, _ = recipe("warmup").open(accepted)
    assert first_token_accuracy(model, 1) > 0.6
    assert first_token_accuracy(model, 4) > 0.35, "chosen among four"
    assert first_token_accuracy(model, 1, blind=True) < 0.2
    assert first_token_accuracy(randomised(model), 1) < 0.2


@torch.no_grad()
def test_training_starts_far_below_chance(accepted: Path) -> None:
    found = recipe("cpt")
    model, tokenizer = recipe("warmup").open(accepted)
    batch = next(found.batches(model, tokenizer))
    start = float(found.loss()(model, batch))
    assert start < 0.25 * math.log(model.decoder.config.vocab_size)
    assert start < 0.7 * float(found.loss()(randomised(model), batch)), "which knows how an answer ends, and no more"
