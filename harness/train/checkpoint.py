"""Training state on disk: complete or absent, and exact.

    <folder>/step-000200/model.safetensors  optimizer.pt  state.json

``state.json`` goes in last, and the folder takes its name by rename, so a folder of that name is a whole
checkpoint. It holds everything that the next step depends on: weights, optimizer moments, data position and the
random-number state. ``optimizer.pt`` is read with ``weights_only``: nothing in a checkpoint can run code.

Several processes write their parts of weights and moments in place of the first two files (``shards``, ``parts``),
and any number of processes, one too, goes on from there. What one process wrote, one goes on from.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_model, save_model

from harness.errors import InputError
from harness.train import parts, shards
from harness.train.distributed import agreed, by_first, world

if TYPE_CHECKING:
    from torch import nn

KEPT = 2
# What the libraries raise of a file that is gone, cut off or of another model.
DAMAGE = (OSError, EOFError, ValueError, TypeError, KeyError, RuntimeError, SafetensorError, UnpicklingError)


@dataclass(frozen=True, kw_only=True)
class TrainingState:
    """Where a run stands after ``step`` optimizer steps."""

    step: int
    tokens: int
    loss: float | None
    data: dict[str, Any]


def save(
    folder: Path, model: nn.Module, optimizers: list[torch.optim.Optimizer], state: TrainingState, stage_digest: str
) -> None:
    """Write the checkpoint of ``state.step`` under ``folder`` and drop all but the newest two.

    All processes of a training call it together. Raises ``InputError`` where the disk does not take it; the earlier
    checkpoints stay.
    """
    final = folder / f"step-{state.step:06d}"
    temporary = folder / f".{final.name}"

    def begin() -> None:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)

    def finish() -> None:
        (temporary / "state.json").write_text(json.dumps({**asdict(state), "stage": stage_digest}))
        shutil.rmtree(final, ignore_errors=True)
        temporary.rename(final)
        for old in steps(folder)[:-KEPT]:
            shutil.rmtree(old)

    try:
        by_first(begin)
        if world() > 1:
            shards.write(temporary, model, optimizers)
        else:
            _write_whole(temporary, model, optimizers)
        by_first(finish)
    except (SafetensorError, RuntimeError, OSError, InputError) as error:  # each library has its word for a full disk
        by_first(lambda: shutil.rmtree(temporary, ignore_errors=True))
        raise InputError(f"cannot write the checkpoint {final}: {str(error).splitlines()[0]}") from error


def _write_whole(folder: Path, model: nn.Module, optimizers: list[torch.optim.Optimizer]) -> None:
    save_model(model, str(folder / "model.safetensors"))
    states = [optimizer.state_dict() for optimizer in optimizers]
    cuda = {"cuda_rng": torch.cuda.get_rng_state()} if torch.cuda.is_available() else {}
    torch.save({"optimizers": states, "rng": torch.get_rng_state(), **cuda}, folder / "optimizer.pt")


def steps(folder: Path) -> list[Path]:
    """The complete checkpoints under ``folder``, oldest first."""
    return sorted(path for path in folder.glob("step-*") if (path / "state.json").exists())


def restore(
    folder: Path, model: nn.Module, optimizers: list[torch.optim.Optimizer], stage_digest: str
) -> TrainingState | None:
    """Load the newest checkpoint into ``model`` and ``optimizers``; None where there is none.

    Raises ``InputError`` where the checkpoint belongs to another stage or does not fit the model, and where one process
    wrote what several are to read.
    """
    newest = agreed(max(steps(folder), default=None))
    if newest is None:
        return None
    in_parts = (newest / parts.METADATA).exists()
    if world() > 1 and not in_parts:
        raise InputError(f"{newest} was written by one process; go on with one, or delete it to begin anew")
    try:
        header = json.loads((newest / "state.json").read_text())
        stage = header.pop("stage")
        state = TrainingState(**header)
        if stage == stage_digest:
            if in_parts:
                shards.read(newest, model, optimizers)
            else:
                _read_whole(newest, model, optimizers)
    except InputError:
        raise
    except DAMAGE as error:
        raise InputError(f"checkpoint {newest} is damaged or does not fit the model; delete it to go on") from error
    if stage != stage_digest:
        raise InputError(f"{newest} belongs to another stage or recipe; expected {stage_digest}, got {stage}")
    return state


def _read_whole(folder: Path, model: nn.Module, optimizers: list[torch.optim.Optimizer]) -> None:
    load_model(model, str(folder / "model.safetensors"))
    saved = torch.load(folder / "optimizer.pt", weights_only=True)
    for optimizer, optimizer_state in zip(optimizers, saved["optimizers"], strict=True):
        optimizer.load_state_dict(optimizer_state)
    torch.set_rng_state(saved["rng"])
    if "cuda_rng" in saved and torch.cuda.is_available():
        torch.cuda.set_rng_state(saved["cuda_rng"])
