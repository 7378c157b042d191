"""A model whose weights, gradients and moments lie in parts on several processes: FSDP2, over all of them.

Every transformer layer is a group that is made whole when it runs, the rest (embeddings, head, projector, policy) is
one more. A loss calls a model in its own ways (it encodes, then decodes), so the root of the sharding is not the model
but the loss over it (``Objective``): whatever the loss touches outside a layer is whole while it runs.

Scalars have no dimension to be cut along. They stay whole in every process, their gradients are averaged here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from harness.train.distributed import average, idle, rank, world

if TYPE_CHECKING:
    from torch import Tensor

    from harness.train.rows import Batch


class Objective(nn.Module):
    """``loss`` over ``model``, as a module."""

    def __init__(self, model: nn.Module, loss: Callable[[nn.Module, Batch], Tensor]) -> None:
        super().__init__()
        self.model, self.loss = model, loss

    def forward(self, batch: Batch, counts: bool = True) -> Tensor:
        """The loss of a batch, or of this process's share of one; ``counts`` is whether that is anything."""
        with idle(not counts):
            return self.loss(self.model, batch)


def place(model: nn.Module, loss: Callable[[nn.Module, Batch], Tensor], device: torch.device) -> Objective:
    """``model`` on ``device``, cut in parts where several processes train; and its loss to call.

    The parameters of ``model`` are then others: optimizers come after.
    """
    objective = Objective(model, loss)
    if world() == 1:
        model.to(device)
        return objective
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    from transformers.modeling_layers import GradientCheckpointingLayer

    mesh = init_device_mesh(device.type, (world(),))
    scalars = {parameter for parameter in model.parameters() if parameter.ndim == 0}
    for scalar in scalars:
        scalar.data = scalar.data.to(device)
    for layer in [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]:
        fully_shard(layer, mesh=mesh, ignored_params=scalars)
    fully_shard(objective, mesh=mesh, ignored_params=scalars)
    return objective


def clip(parameters: Iterable[nn.Parameter], most: float) -> Tensor:
    """Scale all gradients so that their common norm is at most ``most``; the norm before, the same in all processes."""
    parameters = list(parameters)
    if world() == 1:
        return nn.utils.clip_grad_norm_(parameters, most)
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    parts = [gradient.to_local() for gradient in gradients if isinstance(gradient, DTensor)]
    whole = [average(gradient) for gradient in gradients if not isinstance(gradient, DTensor)]
    squares = nn.utils.get_total_norm(parts).square()
    norm = (average(squares) * world() + nn.utils.get_total_norm(whole).to(squares.device).square()).sqrt()
    factor = (most / (norm + 1e-6)).clamp(max=1.0)  # as clip_grad_norm_
    for gradient in (*parts, *whole):
        gradient.mul_(factor)
    return norm


def gathered(model: nn.Module) -> dict[str, Tensor]:
    """The whole state of ``model`` on the CPU, in process 0; empty in the others, which have to call it too."""
    state: dict[str, Tensor] = {}
    for name, tensor in model.state_dict().items():
        whole = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
        if rank() == 0:
            state[name] = whole.cpu()
    return state
