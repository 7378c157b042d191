"""The one training loop: draw, forward, backward, check, step, log, save.

Resume is exact: N steps, a kill, and M more steps give the bytes of N + M steps (tests/test_train.py), because the
next batch, the random-number state and the optimizer moments all come out of the checkpoint.

Several processes (``distributed``) run the same loop over the same batches, each on its share of the rows; loss, norm
and what is decided are the same in all of them, and equal to those of one process but for the order of sums.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch

from harness.config import digest
from harness.errors import Interrupted
from harness.train import checkpoint
from harness.train.checkpoint import TrainingState
from harness.train.distributed import anywhere, average, rank, world
from harness.train.optim import build_optimizers, freeze, rates
from harness.train.rows import Batch
from harness.train.sharding import clip, place
from harness.train.shares import draw
from harness.train.stage import Stage

if TYPE_CHECKING:
    from torch import Tensor, nn

Loss = Callable[["nn.Module", Batch], "Tensor"]
Progress = Callable[[int, float, float], None]  # after every optimizer step: step, loss, tokens per second
Logged = Callable[[Mapping[str, Any]], None]  # a row of the log
LOG_EVERY = 10


class Batches(Protocol):
    """An endless source of batches that can say where it stands and go back there.

    A batch is a dict of tensors; its ``attention_mask`` (B, T) counts the tokens.
    """

    def __next__(self) -> Batch: ...

    def state_dict(self) -> dict[str, Any]:
        """Where the source stands, as plain JSON values."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go back there: the next batch is the one that came after ``state_dict`` gave ``state``."""


class NonFiniteLoss(ArithmeticError):
    """The loss or its gradient became NaN or infinite; raised before the step, so the weights are still whole."""


@dataclass(frozen=True, kw_only=True)
class Trained:
    """What a finished stage reports."""

    steps: int
    tokens: int
    final_loss: float | None


def train(
    stage: Stage,
    model: nn.Module,
    batches: Batches,
    loss: Loss,
    folder: Path,
    *,
    device: torch.device,
    progress: Progress | None = None,
    logged: Logged | None = None,
    stop_after: int | None = None,
) -> Trained:
    """Run ``stage`` on ``model`` in place, from the newest checkpoint in ``folder`` if there is one.

    ``loss`` returns the mean over what it supervises, a scalar. ``logged`` is told every row of the log, in process 0;
    its ``grad_norm`` is that before clipping. ``stop_after`` ends the call after that many
    optimizer steps in all, with a checkpoint (how a test interrupts); so does ``Interrupted`` out of ``progress``, in
    all processes where it comes in one. Raises ``NonFiniteLoss``, and ``InputError`` where a checkpoint in ``folder``
    belongs to another stage, and where several processes are given what is for one.
    """
    torch.manual_seed(stage.seed + rank())  # rows differ, so must what is dropped out of them
    objective = place(model, loss, device)
    parameters = freeze(model, stage)
    optimizers = build_optimizers(parameters, stage)
    identity = digest(stage)
    state = checkpoint.restore(folder, model, optimizers, identity)
    if state is None:
        state = TrainingState(step=0, tokens=0, loss=None, data=batches.state_dict())
    batches.load_state_dict(state.data)
    step, tokens = state.step, state.tokens
    last = stage.steps if stop_after is None else min(stage.steps, stop_after)
    folder.mkdir(parents=True, exist_ok=True)
    model.train()
    value, started, tokens_before = state.loss, time.perf_counter(), tokens
    autocast = torch.autocast(device.type, torch.bfloat16) if stage.precision == "bfloat16" else nullcontext()

    def keep() -> None:
        at = TrainingState(step=step, tokens=tokens, loss=value, data=batches.state_dict())
        checkpoint.save(folder, model, optimizers, at, identity)

    with (folder / "log.jsonl").open("a") if rank() == 0 else nullcontext() as log:
        while step < last:
            factor = stage.schedule.scale(step, stage.steps)
            for optimizer in optimizers:
                for group in optimizer.param_groups:
                    group["lr"] = group["initial_lr"] * factor

            total = torch.zeros((), device=device)
            for _ in range(stage.accumulation):
                own, counts, drawn = draw(batches, rank(), world())
                batch = {name: tensor.to(device) for name, tensor in own.items()}
                with autocast:
                    micro = objective(batch, counts) / stage.accumulation
                micro.backward()
                total += micro.detach()
                tokens += drawn
            value = float(average(total))
            if not torch.isfinite(total):
                raise NonFiniteLoss(f"stage {stage.name}: loss is {value} at step {step + 1} of {stage.steps}")

            norm = clip(parameters.values(), stage.clip)
            if not torch.isfinite(norm):
                raise NonFiniteLoss(f"stage {stage.name}: gradient norm is {norm} at step {step + 1} of {stage.steps}")
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
            step += 1

            rate = (tokens - tokens_before) / (time.perf_counter() - started)
            if anywhere(_interrupts(progress, step, value, rate)):
                keep()
                raise Interrupted
            if log and (step % LOG_EVERY == 0 or step == last):
                row: dict[str, Any] = {"step": step, "loss": value, "lr_scale": factor, "lr": rates(optimizers)}
                row |= {"grad_norm": float(norm), "tokens": tokens, "tokens_per_s": round(rate)}
                log.write(json.dumps(row) + "\n")
                log.flush()
                if logged:
                    logged(row)
            if step % stage.checkpoint_every == 0 or step == last:
                keep()
    model.eval()
    return Trained(steps=step, tokens=tokens, final_loss=value)


def _interrupts(progress: Progress | None, step: int, loss: float, rate: float) -> bool:
    """Report a step. Is the training to give its place away?"""
    try:
        if progress:
            progress(step, loss, rate)
    except Interrupted:
        return True
    return False
