"""The training loop: exact resume, honest schedule, and no step on a broken loss."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from harness.errors import InputError, Interrupted
from harness.train import checkpoint, loop
from harness.train.loop import NonFiniteLoss, train
from harness.train.optim import build_optimizers, freeze
from harness.train.stage import AdamW, Muon, Schedule, Stage

CPU = torch.device("cpu")


class Small(nn.Module):
    """Enough of a model to have a matrix, a norm, an embedding and dropout."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(20, 8)
        self.matrix = nn.Linear(8, 8, bias=False)
        self.norm = nn.LayerNorm(8)
        self.dropout = nn.Dropout(0.5)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.norm(self.dropout(self.matrix(self.embed(ids))))


class Counting:
    """Batches that depend on their position alone; ``broken`` names one with a NaN in it."""

    def __init__(self, broken: int | None = None) -> None:
        self.position = 0
        self.broken = broken

    def __next__(self) -> dict[str, torch.Tensor]:
        self.position += 1
        ids = torch.randint(20, (4, 6), generator=torch.Generator().manual_seed(self.position))
        weight = torch.tensor(float("nan") if self.position == self.broken else 1.0)
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "weight": weight}

    def state_dict(self) -> dict[str, int]:
        return {"position": self.position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.position = state["position"]


def loss(model: nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    return (model(batch["input_ids"]) - 1).square().mean() * batch["weight"]


def stage(**changes: object) -> Stage:
    return Stage(**{"name": "s", "steps": 12, "optimizer": AdamW(lr=1e-2), "checkpoint_every": 4} | changes)


def weights(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize("optimizer", [AdamW(lr=1e-2), Muon(lr=1e-2, adamw_lr=1e-3)])
@pytest.mark.parametrize("accumulation", [1, 3])
@pytest.mark.parametrize("killed_at", [1, 4, 7])
def test_resumed_equals_unbroken(tmp_path: Path, optimizer: AdamW | Muon, accumulation: int, killed_at: int) -> None:
    recipe = stage(optimizer=optimizer, accumulation=accumulation)
    whole = Small()
    train(recipe, whole, Counting(), loss, tmp_path / "whole", device=CPU)
    train(recipe, Small(), Counting(), loss, tmp_path / "broken", device=CPU, stop_after=killed_at)
    resumed = Small()
    torch.manual_seed(999)  # a new process has another random state; the checkpoint must bring its own
    train(recipe, resumed, Counting(), loss, tmp_path / "broken", device=CPU)
    expected = weights(whole)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in weights(resumed).items())


@pytest.mark.parametrize("at", [1, 4, 7, 12])
def test_an_interruption_keeps_the_step_that_it_came_after(tmp_path: Path, at: int) -> None:
    """A job that has to give way loses no step, whether or not a checkpoint was due; and goes on to the same bytes."""
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    train(stage(), Small(), Counting(), loss, whole, device=CPU)

    def give_way(step: int, loss: float, rate: float) -> None:
        if step == at:
            raise Interrupted

    with pytest.raises(Interrupted):
        train(stage(), Small(), Counting(), loss, broken, device=CPU, progress=give_way)
    newest = checkpoint.steps(broken)[-1]
    assert json.loads((newest / "state.json").read_text())["step"] == at
    torch.manual_seed(999)
    resumed: list[int] = []
    train(stage(), Small(), Counting(), loss, broken, device=CPU, progress=lambda step, *_: resumed.append(step))
    assert resumed == list(range(at + 1, 13))
    for file in ("model.safetensors", "optimizer.pt", "state.json"):
        assert (broken / "step-000012" / file).read_bytes() == (whole / "step-000012" / file).read_bytes()


def test_training_moves_what_it_trains_and_nothing_else(tmp_path: Path) -> None:
    model = Small()
    before = weights(model)
    train(stage(trained=("matrix",)), model, Counting(), loss, tmp_path, device=CPU)
    moved = {name for name, tensor in weights(model).items() if not torch.equal(tensor, before[name])}
    assert moved == {"matrix.weight"}
    assert model.embed.weight.grad is None


def test_training_nothing_is_an_error() -> None:
    with pytest.raises(InputError, match="trains nothing"):
        freeze(Small(), stage(trained=("decoder",)))


def test_a_broken_loss_stops_before_the_step(tmp_path: Path) -> None:
    model, reference = Small(), Small()
    train(stage(checkpoint_every=1), reference, Counting(), loss, tmp_path / "reference", device=CPU, stop_after=6)
    with pytest.raises(NonFiniteLoss, match="step 7 of 12"):
        train(stage(checkpoint_every=1), model, Counting(broken=7), loss, tmp_path / "broken", device=CPU)
    expected = weights(reference)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in weights(model).items())


def test_a_broken_gradient_stops_before_the_step(tmp_path: Path) -> None:
    def infinite_slope(model: nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        return (model(batch["input_ids"]) * 0).square().sum().sqrt() + loss(model, batch)  # d sqrt(0) is infinite

    model = Small()
    before = weights(model)
    with pytest.raises(NonFiniteLoss, match="gradient norm is nan at step 1"):
        train(stage(), model, Counting(), infinite_slope, tmp_path, device=CPU)
    assert all(torch.equal(tensor, before[name]) for name, tensor in weights(model).items())


def test_a_finished_stage_reports_its_loss_again(tmp_path: Path) -> None:
    first = train(stage(), Small(), Counting(), loss, tmp_path, device=CPU)
    assert train(stage(), Small(), Counting(), loss, tmp_path, device=CPU) == first


@pytest.mark.parametrize(
    ("file", "left"),
    # Without state.json a folder is no checkpoint.
    [(file, left) for file in ("model.safetensors", "optimizer.pt", "state.json") for left in (20, 0)]
    + [("model.safetensors", None), ("optimizer.pt", None)],
)
def test_a_damaged_checkpoint_is_named(tmp_path: Path, file: str, left: int | None) -> None:
    train(stage(), Small(), Counting(), loss, tmp_path, device=CPU, stop_after=4)
    path = tmp_path / "step-000004" / file
    if left is None:
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:left])
    with pytest.raises(InputError, match="step-000004 is damaged"):
        train(stage(), Small(), Counting(), loss, tmp_path, device=CPU)


@pytest.fixture
def rates_of(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[dict[str, float]]]:
    """Train, and for every optimizer step the rate that each parameter was moved at, out of the optimizers' groups."""

    def trained(recipe: Stage, folder: Path, stop_after: int | None = None) -> list[dict[str, float]]:
        model, steps = Small(), list[dict[str, float]]()
        names = {id(parameter): name for name, parameter in model.named_parameters()}

        def before(optimizer: torch.optim.Optimizer, *_: object) -> None:
            steps.append({names[id(p)]: group["lr"] for group in optimizer.param_groups for p in group["params"]})

        def built(*arguments: Any) -> list[torch.optim.Optimizer]:
            optimizers = build_optimizers(*arguments)
            for optimizer in optimizers:
                optimizer.register_step_pre_hook(before)
            return optimizers

        with monkeypatch.context() as patch:
            patch.setattr(loop, "build_optimizers", built)
            train(recipe, model, Counting(), loss, folder, device=CPU, stop_after=stop_after)
        each = 2 if isinstance(recipe.optimizer, Muon) else 1  # optimizers
        return [dict(item for part in steps[i : i + each] for item in part.items()) for i in range(0, len(steps), each)]

    return trained


ADAMW, MUON = AdamW(lr=1e-2), Muon(lr=1e-2, adamw_lr=1e-3)


@pytest.mark.parametrize(
    ("optimizer", "accumulation", "resumed_at"),
    [(ADAMW, 1, None), (MUON, 1, None), (ADAMW, 1, 1), (MUON, 1, 30), (ADAMW, 32, 30)],
    ids=["AdamW", "Muon", "resumed in warm-up", "Muon resumed", "accumulation 32 resumed"],
)
def test_every_step_is_taken_at_the_rate_of_the_closed_form(
    rates_of: Callable[..., list[dict[str, float]]],
    tmp_path: Path,
    optimizer: AdamW | Muon,
    accumulation: int,
    resumed_at: int | None,
) -> None:
    """The paper's (p. 19): linear over the first 4 % of the optimizer steps, a cosine to zero over the others."""
    steps, boost, warm = 50, 20.0, 2
    recipe = stage(
        steps=steps,
        optimizer=optimizer,
        schedule=Schedule(warmup=0.04, decay="cosine"),
        accumulation=accumulation,
        boosted=("embed", "norm.bias"),
        boost=boost,
        checkpoint_every=100,
    )
    taken = rates_of(recipe, tmp_path, resumed_at) if resumed_at else []
    taken += rates_of(recipe, tmp_path)
    others = optimizer.lr if isinstance(optimizer, AdamW) else optimizer.adamw_lr
    peak = {
        "embed.weight": boost * others,
        "matrix.weight": optimizer.lr,
        "norm.weight": others,
        "norm.bias": boost * others,
    }
    assert len(taken) == steps
    for step, found in enumerate(taken):
        factor = (step + 1) / warm if step < warm else 0.5 * (1 + math.cos(math.pi * (step - warm) / (steps - warm)))
        assert found == pytest.approx({name: rate * factor for name, rate in peak.items()}, rel=1e-12)
    logged = {row["step"]: row for row in map(json.loads, (tmp_path / "log.jsonl").read_text().splitlines())}
    assert set(logged) >= set(range(10, steps + 1, 10))
    for step, row in logged.items():
        assert set(row["lr"].values()) == set(taken[step - 1].values())


def test_a_floor_is_where_the_rate_ends(rates_of: Callable[..., list[dict[str, float]]], tmp_path: Path) -> None:
    schedule = Schedule(warmup=0.25, decay="cosine", floor=0.1)
    taken = rates_of(stage(steps=40, schedule=schedule, checkpoint_every=100), tmp_path)
    for step, found in enumerate(taken):
        closed = (step + 1) / 10 if step < 10 else 0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * (step - 10) / 30))
        assert list(found.values()) == pytest.approx([1e-2 * closed] * 4, rel=1e-12)


def test_muon_takes_matrices_and_adamw_the_rest() -> None:
    model = Small()
    parameters = freeze(model, stage(trained=("",)))
    muon, adamw = build_optimizers(parameters, stage(optimizer=Muon(lr=1e-2, adamw_lr=1e-3)))
    assert [id(p) for group in muon.param_groups for p in group["params"]] == [id(model.matrix.weight)]
    assert len([p for group in adamw.param_groups for p in group["params"]]) == 3


def test_a_checkpoint_of_another_recipe_is_refused(tmp_path: Path) -> None:
    train(stage(), Small(), Counting(), loss, tmp_path, device=CPU, stop_after=4)
    with pytest.raises(InputError, match="another stage"):
        train(stage(optimizer=AdamW(lr=5e-3)), Small(), Counting(), loss, tmp_path, device=CPU)


def test_an_unfinished_checkpoint_is_not_seen(tmp_path: Path) -> None:
    train(stage(), Small(), Counting(), loss, tmp_path, device=CPU, stop_after=8)
    torn = tmp_path / ".step-000012"
    torn.mkdir()
    (torn / "model.safetensors").write_bytes(b"half")
    assert [path.name for path in checkpoint.steps(tmp_path)] == ["step-000004", "step-000008"]


def test_only_the_newest_checkpoints_are_kept(tmp_path: Path) -> None:
    train(stage(checkpoint_every=1), Small(), Counting(), loss, tmp_path, device=CPU)
    assert [path.name for path in checkpoint.steps(tmp_path)] == ["step-000011", "step-000012"]


def test_a_full_disk_keeps_the_earlier_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train(stage(), Small(), Counting(), loss, tmp_path, device=CPU, stop_after=4)

    def full(*arguments: object) -> None:
        raise RuntimeError("PytorchStreamWriter failed writing file data/3: file write failed\nat line 9")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(InputError, match="cannot write the checkpoint .*step-000008: Pytorch.* failed$"):
        train(stage(), Small(), Counting(), loss, tmp_path, device=CPU)
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == ["step-000004"]
