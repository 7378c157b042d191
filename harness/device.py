"""Which device a run uses, checked before anything starts."""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.errors import InputError

if TYPE_CHECKING:
    import torch


def open_device(name: str) -> torch.device:
    """The torch device ``name``: ``cpu``, ``cuda`` or ``cuda:N``. Raises ``InputError`` where it is not here."""
    import torch

    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise InputError(f"unknown device {name!r}; valid choices: cpu, cuda, cuda:N") from error
    if device.type not in ("cpu", "cuda"):
        raise InputError(f"unsupported device {name!r}; valid choices: cpu, cuda, cuda:N")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise InputError(f"device {name!r} is not here; this machine has {torch.cuda.device_count()} CUDA devices")
    return device
