"""From a stage's optimizer to torch optimizers over the parameters that it trains."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.distributed.tensor import DTensor

from harness.errors import InputError
from harness.train.distributed import alone
from harness.train.stage import AdamW, Muon, Stage

if TYPE_CHECKING:
    from torch import nn


def freeze(model: nn.Module, stage: Stage) -> dict[str, nn.Parameter]:
    """Switch gradients on for the stage's parts and off for the rest; returns the trained parameters by name."""
    trained = {}
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith(stage.trained))
        if parameter.requires_grad:
            trained[name] = parameter
    if not trained:
        raise InputError(f"stage {stage.name!r} trains nothing: no parameter starts with {', '.join(stage.trained)}")
    return trained


def build_optimizers(parameters: dict[str, nn.Parameter], stage: Stage) -> list[torch.optim.Optimizer]:
    """One optimizer (AdamW) or two (Muon and AdamW). Each group keeps its peak rate in ``initial_lr``.

    Raises ``InputError`` for Muon over several processes: its step is of a whole matrix, and each has a part.
    """
    config = stage.optimizer
    if isinstance(config, AdamW):
        groups = _groups(parameters, stage, config.lr)
        optimizers: list[torch.optim.Optimizer] = [
            torch.optim.AdamW(groups, betas=config.betas, weight_decay=config.weight_decay)
        ]
    else:
        assert isinstance(config, Muon)
        alone(f"stage {stage.name!r} trains by Muon, which")
        matrices = {name: p for name, p in parameters.items() if _is_matrix_of_a_layer(name, p)}
        others = {name: p for name, p in parameters.items() if name not in matrices}
        optimizers = [
            torch.optim.Muon(_groups(matrices, stage, config.lr), weight_decay=0.0, adjust_lr_fn="match_rms_adamw"),
            torch.optim.AdamW(_groups(others, stage, config.adamw_lr), betas=config.betas, weight_decay=0.0),
        ]
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["initial_lr"] = group["lr"]
    return optimizers


def rates(optimizers: list[torch.optim.Optimizer]) -> dict[str, float]:
    """The learning rates that the next step takes, ``AdamW.0`` the first of AdamW's groups that differ, and so on."""
    return {
        f"{type(optimizer).__name__}.{place}": rate
        for optimizer in optimizers
        for place, rate in enumerate(dict.fromkeys(group["lr"] for group in optimizer.param_groups))
    }


def _is_matrix_of_a_layer(name: str, parameter: nn.Parameter) -> bool:
    return parameter.ndim == 2 and "embed" not in name and "lm_head" not in name


def _groups(parameters: dict[str, nn.Parameter], stage: Stage, lr: float) -> list[dict[str, object]]:
    """The parameters at ``lr``, and those of the stage's boosted parts at ``boost`` times as much.

    Of several processes' parameters, those that each has a part of and the whole ones (``sharding``) are groups apart:
    a step is over all tensors of a group at once, and takes no mixture.
    """
    boosted = {name: p for name, p in parameters.items() if stage.boosted and name.startswith(stage.boosted)}
    plain = [p for name, p in parameters.items() if name not in boosted]
    groups = [(plain, lr), (list(boosted.values()), lr * stage.boost)]
    return [
        {"params": alike, "lr": rate}
        for members, rate in groups
        for in_parts in (False, True)
        if (alike := [p for p in members if isinstance(p, DTensor) is in_parts])
    ]
