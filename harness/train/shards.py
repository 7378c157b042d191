"""The weights, moments and random states of several processes, written and read in parts (torch's DCP).

Tensors are named, so that any number of processes can read what any number wrote, one process among them:

    model.<name>                 a parameter or buffer
    optimizer.<name>.<moment>    what AdamW keeps of the parameter
    random.<rank>                the random-number state of a process; read by the process of that rank, if any

Hyperparameters are no part of it: they are the stage's, and the checkpoint names its stage.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from harness.errors import InputError
from harness.train.distributed import rank, world
from harness.train.parts import Parts

if TYPE_CHECKING:
    from torch import Tensor, nn


def write(folder: Path, model: nn.Module, optimizers: list[torch.optim.Optimizer]) -> None:
    """Write into ``folder``, all processes together. Raises ``InputError`` in all where one cannot."""
    tensors = _of_model(model)
    for name, parameter, optimizer in _trained(model, optimizers):
        tensors |= {f"optimizer.{name}.{key}": value for key, value in optimizer.state.get(parameter, {}).items()}
    tensors |= _random_states()
    try:
        save(tensors, checkpoint_id=folder)
    except CheckpointException as error:
        raise InputError(f"cannot write {folder}: {_cause(error)}") from error


def read(folder: Path, model: nn.Module, optimizers: list[torch.optim.Optimizer]) -> None:
    """Read what ``write`` wrote, whatever the number of processes then and now.

    With as many processes as wrote it, and so with their random states, everything is as it was. Raises ``InputError``
    where it is damaged or of another model.
    """
    try:
        there = Parts(folder).read_metadata().state_dict_metadata
        tensors = _of_model(model)
        for name, parameter, optimizer in _trained(model, optimizers):
            if f"optimizer.{name}.step" in there:  # a parameter that never had a gradient has no moments
                state = optimizer.state[parameter] = _fresh(parameter)
                tensors |= {f"optimizer.{name}.{key}": value for key, value in state.items()}
        writers = sum(name.startswith("random.") for name in there)
        if writers == world():
            random = {name: state for name, state in _random_states().items() if name in there}
            tensors |= random
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "torch.distributed is disabled")  # one process reads: it is meant
            load(tensors, storage_reader=Parts(folder))
        if writers == world():
            torch.set_rng_state(random[f"random.{rank()}"])
            if (cuda := random.get(f"random_cuda.{rank()}")) is not None:
                torch.cuda.set_rng_state(cuda)
    except InputError:
        raise
    except (CheckpointException, OSError, RuntimeError, ValueError, KeyError) as error:
        raise InputError(f"checkpoint {folder} is damaged or does not fit the model; delete it to go on") from error


def _random_states() -> dict[str, Tensor]:
    """Of this process and, where there is one, of its GPU, on which dropout draws."""
    cuda = {f"random_cuda.{rank()}": torch.cuda.get_rng_state()} if torch.cuda.is_available() else {}
    return {f"random.{rank()}": torch.get_rng_state(), **cuda}


def _of_model(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by name; of tied ones the first."""
    once = {id(tensor): (name, tensor) for name, tensor in reversed(list(model.state_dict(keep_vars=True).items()))}
    return {f"model.{name}": tensor.detach() for name, tensor in reversed(list(once.values()))}


def _trained(
    model: nn.Module, optimizers: list[torch.optim.Optimizer]
) -> list[tuple[str, nn.Parameter, torch.optim.Optimizer]]:
    names = {parameter: name for name, parameter in model.named_parameters()}
    return [
        (names[parameter], parameter, optimizer)
        for optimizer in optimizers
        for group in optimizer.param_groups
        for parameter in group["params"]
    ]


def _fresh(parameter: nn.Parameter) -> dict[str, Tensor]:
    """AdamW's state before its first step."""
    zeros = torch.zeros_like(parameter, memory_format=torch.preserve_format, requires_grad=False)
    return {"step": torch.zeros(()), "exp_avg": zeros, "exp_avg_sq": zeros.clone()}


def _cause(error: CheckpointException) -> str:
    first = next(iter(error.failures.values()))[0]
    return str(first).splitlines()[0] if str(first) else type(first).__name__
