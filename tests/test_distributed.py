"""Several processes train what one trains: the same losses, the same state, one decision, one export."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from together import together
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from harness.data.world.practice import Reading
from harness.data.world.tokenizer import build_tokenizer
from harness.errors import InputError, Interrupted
from harness.model.load import random_decoder
from harness.train import checkpoint, distributed, loop
from harness.train.chunk_model import lay_out_for, read_chunks
from harness.train.chunk_rows import condense, expand_at_random
from harness.train.distributed import by_first, mean, rank, world
from harness.train.export import export, read_training
from harness.train.loop import NonFiniteLoss, train
from harness.train.losses import token_losses
from harness.train.optim import build_optimizers, freeze
from harness.train.recompute import recompute_activations
from harness.train.sharding import clip, gathered, place
from harness.train.shares import share, take_rows
from harness.train.stage import AdamW, Muon, Stage
from refrag_v2.model import Refrag, RefragConfig
from refrag_v2.recipe import ENCODING, RefragRecipe
from slurm.jobs import train as train_job
from slurm.jobs.train import TrainJob

pytestmark = pytest.mark.usefixtures("one_thread")

CPU = torch.device("cpu")
Batch = dict[str, Tensor]


# A model with all that FSDP2 treats in a way of its own: layers, tied weights, a scalar, a buffer, a part that is
# frozen, widths that no number of processes divides. And batches of rows with very different numbers of tokens.


class Layer(GradientCheckpointingLayer):
    def __init__(self) -> None:
        super().__init__()
        self.matrix = nn.Linear(7, 7)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.matrix(x).tanh()


class Small(nn.Module):
    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(11, 7)
        self.layers = nn.ModuleList(Layer() for _ in range(2))
        self.frozen = nn.Linear(7, 7)
        self.gain = nn.Parameter(torch.ones(()))
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(7, 11, bias=False)
        self.head.weight = self.embed.weight
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, ids: Tensor) -> Tensor:
        x = self.gain * self.dropout(self.embed(ids))
        for layer in self.layers:
            x = layer(x)
        self.seen += 1
        return self.head(self.frozen(x))


class Drawn:
    """Batch i depends on i alone: 5 rows of 6 ids, of which 1 to 6 count; ``broken`` has a NaN in its last row."""

    def __init__(self, broken: int | None = None, rows: int = 5) -> None:
        self.position, self.broken, self.rows = 0, broken, rows

    def __next__(self) -> Batch:
        self.position += 1
        generator = torch.Generator().manual_seed(self.position)
        ids = torch.randint(11, (self.rows, 6), generator=generator)
        lengths = torch.randint(1, 7, (self.rows, 1), generator=generator)
        weight = torch.ones(self.rows, 1)
        weight[-1] = float("nan") if self.position == self.broken else 1.0
        return {"ids": ids, "attention_mask": (torch.arange(6)[None] < lengths).long(), "weight": weight}

    def state_dict(self) -> dict[str, int]:
        return {"position": self.position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.position = state["position"]


def loss(model: nn.Module, batch: Batch) -> Tensor:
    logits = model(batch["ids"])
    each = nn.functional.cross_entropy(logits.flatten(0, 1), batch["ids"].roll(1, 1).flatten(), reduction="none")
    each = each.view(batch["ids"].shape) * batch["weight"]
    counted = each[batch["attention_mask"].bool()]
    return mean(counted.sum(), len(counted))


def stage(**changes: Any) -> Stage:
    plain: dict[str, Any] = {
        "name": "s",
        "steps": 8,
        "optimizer": AdamW(lr=1e-2, weight_decay=0.01),
        "clip": 0.3,
        "trained": ("embed", "layers", "gain"),
        "boosted": ("gain",),
        "boost": 3.0,
        "checkpoint_every": 100,
    }
    return Stage(**plain | changes)


def state_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def moments(model: nn.Module, optimizers: list[torch.optim.Optimizer]) -> dict[str, Tensor]:
    """What the optimizers keep, whole, by parameter."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    return {
        f"{names[parameter]}.{key}": value.full_tensor() if hasattr(value, "full_tensor") else value
        for optimizer in optimizers
        for parameter, state in optimizer.state.items()
        for key, value in state.items()
    }


def trained(
    device: torch.device,
    folder: Path,
    *,
    recipe: Stage | None = None,
    batches: Drawn | None = None,
    stop_after: int | None = None,
    dropout: float = 0.0,
    interrupted_in: int | None = None,
) -> tuple[list[float], dict[str, Tensor]]:
    """The loss of every step and the whole weights at the end, from process 0."""
    curve: list[float] = []

    def progress(step: int, value: float, rate: float) -> None:
        curve.append(value)
        if interrupted_in == rank() and step == 3:
            raise Interrupted

    model = Small(dropout)
    train(
        recipe or stage(),
        model,
        batches or Drawn(),
        loss,
        folder,
        device=device,
        progress=progress,
        stop_after=stop_after,
    )
    return curve, gathered(model)


def equal(found: dict[str, Tensor], expected: dict[str, Tensor]) -> bool:
    return found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in expected)


# Losses


@pytest.mark.parametrize(("processes", "rows", "accumulation"), [(2, 5, 3), (3, 2, 1)])
def test_several_processes_have_the_losses_and_weights_of_one(
    tmp_path: Path, processes: int, rows: int, accumulation: int
) -> None:
    """Rows with unequally many tokens; in the last case one process has no row at all."""
    recipe = stage(accumulation=accumulation)
    alone, weights = trained(CPU, tmp_path / "one", recipe=recipe, batches=Drawn(rows=rows))
    (curve, found), *others = together(processes, _trained_on_rows, tmp_path / "several", recipe, rows)
    assert curve == pytest.approx(alone, abs=1e-5) and len(curve) == 8
    assert all(other[0] == curve and other[1] == {} for other in others)
    for name, tensor in weights.items():
        torch.testing.assert_close(found[name], tensor, atol=1e-5, rtol=1e-4, msg=name)
    one, several = ((tmp_path / name / "log.jsonl").read_text().splitlines() for name in ("one", "several"))
    assert [json.loads(row)["tokens"] for row in several] == [json.loads(row)["tokens"] for row in one]


def _trained_on_rows(device: torch.device, folder: Path, recipe: Stage, rows: int) -> Any:
    return trained(device, folder, recipe=recipe, batches=Drawn(rows=rows))


def refrag() -> Refrag:
    decoder = random_decoder("tiny", seed=0)
    torch.manual_seed(0)
    return Refrag(RefragConfig(k=8), decoder)


REFRAG = RefragRecipe(
    stage=Stage(name="finetune", steps=10, optimizer=AdamW(lr=1e-3), boosted=ENCODING, boost=4.0, checkpoint_every=100),
    after=("decoder", "pretrain", "small"),
    requires=(),
    model=RefragConfig(k=8),
    data=Reading(sizes=((1, 3), (2, 3), (3, 1)), questions=2),
    expand=(0.0, 0.3, 1.0),
    language_weight=0.1,
    stored_as="float32",
)


def _refrag_curve(device: torch.device, folder: Path, recompute: bool = False) -> list[float]:
    model, curve = refrag(), []
    if recompute:
        recompute_activations(model)
    batches = REFRAG.batches(model, build_tokenizer())
    train(
        REFRAG.stage,
        model,
        batches,
        REFRAG.loss(),
        folder,
        device=device,
        progress=lambda step, value, rate: curve.append(value),
    )
    return curve


def test_refrag_has_the_loss_curve_of_one_process(tmp_path: Path) -> None:
    """Chunks that stand as tokens at random, two means in a loss, a batch of one row; activations are recomputed."""
    alone = _refrag_curve(CPU, tmp_path / "one")
    curves = together(2, _refrag_curve, tmp_path / "two", True)
    assert curves[0] == curves[1] == pytest.approx(alone, abs=1e-5)
    assert alone[-1] < alone[0] - 0.5


@pytest.mark.parametrize("window", ["chunk", "passage"])
@pytest.mark.parametrize("processes", [1, 2, 3, 5])
def test_shares_of_a_batch_read_as_their_rows_of_the_whole(window: Any, processes: int) -> None:
    torch.manual_seed(0)
    model = Refrag(RefragConfig(k=8, window=window), random_decoder("tiny", seed=0)).eval()
    rng, tokenizer = random.Random(1), build_tokenizer()
    rows = [row for n in (1, 3, 2) for row in Reading(sizes=((n, 2),), questions=2).draw(rng, 0, tokenizer)][:5]
    laid_out = lay_out_for(model, rows, tokenizer)
    batch = condense(laid_out, expand_at_random(laid_out["n_chunks"], (0.0, 0.4), rng))
    with torch.no_grad():
        whole = token_losses(read_chunks(model, batch), batch["labels"])
        parts = [share(batch, index, processes) for index in range(processes)]
        read = torch.cat([token_losses(read_chunks(model, part), part["labels"]) for part, _ in parts])
    torch.testing.assert_close(read, whole, atol=1e-5, rtol=1e-5)
    assert all(counts for _, counts in parts)
    assert sum(part["encoder_ids"].shape[0] for part, _ in parts) == batch["encoder_ids"].shape[0]


def test_a_process_without_a_row_gets_one_that_counts_nothing() -> None:
    batch = {"ids": torch.arange(2), "attention_mask": torch.ones(2, 1)}
    shares = [share(batch, index, 3) for index in range(3)]
    assert [(part["ids"].tolist(), counts) for part, counts in shares] == [([0], False), ([0], True), ([1], True)]


def test_rows_without_a_chunk_are_refused() -> None:
    batch = {
        "attention_mask": torch.ones(2, 3),
        "input_ids": torch.ones(2, 3),
        "n_chunks": torch.tensor([0, 1]),
        "first_chunk": torch.tensor([0, 0]),
        "encoder_chunk": torch.zeros(1, 3),
    }
    with pytest.raises(InputError, match="rows 0 to 0 of a batch have no chunk"):
        take_rows(batch, 0, 1)


def test_a_broken_row_of_one_process_stops_all_before_the_step(tmp_path: Path) -> None:
    broken, expected = together(2, _broken, tmp_path / "a"), together(2, _four_steps, tmp_path / "b")
    assert {str(error) for error, _ in broken} == {"stage s: loss is nan at step 5 of 8"}
    assert equal(broken[0][1], expected[0])


def _broken(device: torch.device, folder: Path) -> tuple[NonFiniteLoss, dict[str, Tensor]]:
    model = Small()
    with pytest.raises(NonFiniteLoss) as error:
        train(stage(), model, Drawn(broken=5), loss, folder, device=device)
    return error.value, gathered(model)


def _four_steps(device: torch.device, folder: Path) -> dict[str, Tensor]:
    state = trained(device, folder, stop_after=4)[1]
    return state | {"seen": state["seen"] + 1} if state else state  # the fifth forward pass, which found the NaN


def test_the_norm_and_what_it_cuts_are_those_of_one_process() -> None:
    found, again = together(2, _clipped)
    norm, gradients = _clipped(CPU)
    assert norm > 0.3 and found[0] == again[0] == pytest.approx(norm, rel=1e-5)
    assert found[1].keys() == gradients.keys() and "gain" in gradients
    for name, gradient in gradients.items():
        torch.testing.assert_close(found[1][name], gradient, atol=1e-7, rtol=1e-4, msg=name)


def _clipped(device: torch.device) -> tuple[float, dict[str, Tensor]]:
    model = Small()
    objective = place(model, loss, device)
    parameters = freeze(model, stage())
    own, counts = share(next(Drawn()), rank(), world())
    objective(own, counts).backward()
    norm = clip(parameters.values(), 0.3)
    whole = {name: p.grad for name, p in parameters.items()}
    return float(norm), {n: g.full_tensor() if hasattr(g, "full_tensor") else g for n, g in whole.items()}


# Checkpoints


def test_resumed_in_as_many_processes_equals_unbroken(tmp_path: Path) -> None:
    """With dropout, so that each process's random state has to come back, and another one in each."""
    (whole, resumed), _ = together(2, _unbroken_and_resumed, tmp_path)
    assert whole[0][5:] == resumed[0]
    assert equal(resumed[1], whole[1])
    assert {path.name for path in tmp_path.rglob("step-*")} == {"step-000005", "step-000008"}
    assert not list(tmp_path.rglob(".step-*"))


def _unbroken_and_resumed(device: torch.device, folder: Path) -> Any:
    whole = trained(device, folder / "whole", dropout=0.5)
    trained(device, folder / "broken", dropout=0.5, stop_after=5)
    torch.manual_seed(999)
    return whole, trained(device, folder / "broken", dropout=0.5)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """Four steps of two processes, and the whole state that they wrote."""
    folder = tmp_path_factory.mktemp("written")
    return folder, together(2, _written, folder)[0]


def _written(device: torch.device, folder: Path) -> Any:
    trained(device, folder, stop_after=4)
    return _read(device, folder)


@pytest.mark.parametrize("processes", [1, 4])
def test_another_number_of_processes_goes_on_from_the_same_state(
    tmp_path: Path, written: tuple[Path, Any], processes: int
) -> None:
    folder, expected = written
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    (state, rest), *_ = [_goes_on(CPU, tmp_path)] if processes == 1 else together(processes, _goes_on, tmp_path)
    assert all(equal(found, wanted) and len(wanted) > 5 for found, wanted in zip(state[:2], expected, strict=False))
    assert state[2] == expected[2] == (4, 4)
    alone, _ = trained(CPU, tmp_path / "alone")
    assert rest[0] == pytest.approx(alone[4:], abs=1e-5) and len(rest[0]) == 4


def _goes_on(device: torch.device, folder: Path) -> Any:
    return _read(device, folder), trained(device, folder)


def _read(device: torch.device, folder: Path) -> Any:
    model = Small()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)
    place(model, loss, device)
    optimizers = build_optimizers(freeze(model, stage()), stage())
    state = checkpoint.restore(folder, model, optimizers, loop.digest(stage()))
    assert state is not None
    return gathered(model), moments(model, optimizers), (state.step, state.data["position"])


def test_several_processes_do_not_go_on_from_what_one_wrote(tmp_path: Path) -> None:
    trained(CPU, tmp_path, stop_after=4)
    for error in together(2, trained, tmp_path):
        assert isinstance(error, InputError) and "step-000004 was written by one process" in str(error)


def test_a_damaged_part_is_named_in_every_process(tmp_path: Path, written: tuple[Path, Any]) -> None:
    files = [".metadata", "__1_0.distcp", "state.json"]
    for file in files:
        shutil.copytree(written[0], tmp_path / file)
        path = tmp_path / file / "step-000004" / file
        path.write_bytes(path.read_bytes()[:20])
    for said in together(2, _damaged, [tmp_path / file for file in files]):
        assert all("step-000004 is damaged" in line for line in said) and len(said) == 3, said


def _damaged(device: torch.device, folders: list[Path]) -> list[str]:
    said = []
    for folder in folders:
        with pytest.raises(InputError) as error:
            trained(device, folder)
        said.append(str(error.value))
    return said


def test_a_full_disk_in_one_process_keeps_the_earlier_checkpoint(tmp_path: Path) -> None:
    errors = together(2, _full, tmp_path)
    assert all(isinstance(error, InputError) and "cannot write the checkpoint" in str(error) for error in errors)
    assert "no space left" in str(errors[0])
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == ["step-000004"]


def _full(device: torch.device, folder: Path) -> None:
    from torch.distributed.checkpoint.filesystem import FileSystemWriter

    trained(device, folder, stop_after=4)
    if rank() == 1:

        def full(*arguments: object) -> None:
            raise OSError("no space left on device")

        FileSystemWriter.write_data = full
    trained(device, folder)


# One decision


def test_an_interruption_of_one_process_ends_all_with_a_checkpoint(tmp_path: Path) -> None:
    told = together(2, _interrupted, tmp_path)
    assert all(isinstance(error, Interrupted) for error in told)
    assert [path.name for path in checkpoint.steps(tmp_path)] == ["step-000003"]
    rest, _ = together(2, trained, tmp_path)
    alone, _ = trained(CPU, tmp_path / "alone")
    assert rest[0] == pytest.approx(alone[3:], abs=1e-5)


def _interrupted(device: torch.device, folder: Path) -> None:
    trained(device, folder, interrupted_in=1)


def test_what_the_first_process_fails_at_fails_in_all() -> None:
    first, other = together(2, _divided)
    assert isinstance(first, ZeroDivisionError) and isinstance(other, InputError)


def _divided(device: torch.device) -> None:
    by_first(lambda: 1 // 0)


# What is for one process


def test_muon_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = stage(optimizer=Muon(lr=1e-2, adamw_lr=1e-3))
    assert len(build_optimizers(freeze(Small(), recipe), recipe)) == 2
    monkeypatch.setattr(distributed, "world", lambda: 2)
    with pytest.raises(InputError, match="stage 's' trains by Muon, which is for one process, got 2"):
        build_optimizers(freeze(Small(), recipe), recipe)


def _policy_losses() -> list[tuple[str, Callable[..., Any]]]:
    from refrag_v1.policy import reinforce
    from refrag_v2.grpo import grpo, warm_up

    return [("REINFORCE", reinforce), ("GRPO", grpo), ("the warm-up of the policy", warm_up)]


@pytest.mark.parametrize(("name", "of_policy"), _policy_losses(), ids=lambda value: str(value)[:4])
def test_policies_are_refused_by_name(monkeypatch: pytest.MonkeyPatch, name: str, of_policy: Any) -> None:
    monkeypatch.setattr(distributed, "world", lambda: 2)
    with pytest.raises(InputError, match=f"{name} is for one process, got 2"):
        of_policy(None, {}, None)


# The job


def job(runs: Path, start: Path, **shape: int) -> TrainJob:
    return TrainJob(system="refrag_v2", stage="finetune", scale="small", runs=runs, start=start, **shape)


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    _small_recipe()
    training = {"data": "world", "init": "random", "recipe": {"template": "tagged"}}
    return export(random_decoder("tiny", seed=0), build_tokenizer(), training, tmp_path / "decoder")


def _small_recipe() -> None:
    short = replace(REFRAG, stage=replace(REFRAG.stage, steps=2))
    train_job.RECIPES = {"refrag_v2": {"finetune": {"small": short}}}


@pytest.fixture(autouse=True)
def _recipes_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train_job, "RECIPES", train_job.RECIPES)


def test_a_job_of_two_processes_leaves_the_checkpoint_of_one(tmp_path: Path, start: Path) -> None:
    from safetensors.torch import load_file

    one, two = job(tmp_path / "one", start), job(tmp_path / "two", start, nodes=1, tasks_per_node=2)
    assert one.identity == two.identity
    expected = one.run()
    assert together(2, _run, two, joins=True) == [two.checkpoint] * 2
    found = two.checkpoint
    assert {path.name for path in found.iterdir()} == {path.name for path in expected.iterdir()}
    losses = []
    for folder in (found, expected):
        training = read_training(folder)
        losses.append(training.pop("final_loss"))
        assert training["lineage"] == ["refrag_v2/finetune"] and training["steps"] == 2
        assert training["tokens"] == read_training(expected)["tokens"]
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)
    for name in ("model.safetensors", "refrag.safetensors"):
        weights, other = load_file(expected / name), load_file(found / name)
        assert weights.keys() == other.keys()
        different = sum(int((weights[key] - other[key]).abs().gt(1e-5).sum()) for key in weights)
        # AdamW's first steps are +-lr wherever there is a gradient at all, be it rounding.
        assert different <= 0.002 * sum(tensor.numel() for tensor in weights.values())


def _run(device: torch.device, two: TrainJob) -> Path:
    _small_recipe()
    return two.run()


def test_a_job_of_four_processes_alone_says_how_it_is_run(tmp_path: Path, start: Path) -> None:
    with pytest.raises(InputError, match=r"needs 4 processes, got 1: .*`refrag-bench sweep submit EXPERIMENT"):
        job(tmp_path, start, nodes=2, tasks_per_node=2).run()


def test_one_gpu_is_not_given_to_several_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    with (
        pytest.raises(InputError, match="2 processes take a GPU each; give cuda, not cuda:1"),
        distributed.joined(2, "cuda:1"),
    ):
        pass
