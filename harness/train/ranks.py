"""Which processes train together, and where do they meet? Read off the environment; nothing here needs torch.

A process is one of many where a launcher says so. The launchers, and the variables that they set:

    torchrun          RANK  WORLD_SIZE  LOCAL_RANK  MASTER_ADDR  MASTER_PORT
    submitit, local   SUBMITIT_LOCAL_GLOBALID  SUBMITIT_LOCAL_NTASKS  SUBMITIT_LOCAL_LOCALID  SUBMITIT_LOCAL_JOB_ID
    srun              SLURM_PROCID  SLURM_NTASKS  SLURM_LOCALID  SLURM_JOB_NODELIST  SLURM_JOB_ID

The first that is there counts: the other two may run inside a job of SLURM, and know better.
"""

from __future__ import annotations

import os
import re
import socket
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass

from harness.errors import InputError

FIRST_PORT, PORTS = 15000, 15000  # below what Linux gives out by itself (32768 and up)


@dataclass(frozen=True, kw_only=True)
class Rank:
    """This process: ``rank`` of ``world``, and its place ``local`` among those of its node."""

    rank: int = 0
    world: int = 1
    local: int = 0


_LAUNCHERS = {
    "torchrun": ("RANK", "WORLD_SIZE", "LOCAL_RANK"),
    "submitit": ("SUBMITIT_LOCAL_GLOBALID", "SUBMITIT_LOCAL_NTASKS", "SUBMITIT_LOCAL_LOCALID"),
    "srun": ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID"),
}


def launcher(environment: Mapping[str, str] = os.environ) -> str | None:
    """The name of the launcher that started this process; None where none did."""
    return next((name for name, keys in _LAUNCHERS.items() if all(key in environment for key in keys)), None)


def here(environment: Mapping[str, str] = os.environ) -> Rank:
    """This process, by whoever started it; rank 0 of 1 where nobody says so."""
    by = launcher(environment)
    if by is None:
        return Rank()
    rank, world, local = (int(environment[key]) for key in _LAUNCHERS[by])
    return Rank(rank=rank, world=world, local=local)


def meeting_point(environment: Mapping[str, str] = os.environ) -> tuple[str, int]:
    """Host and port of rank 0. The port follows from the job's id, so that jobs on one machine do not meet.

    Raises ``InputError`` where the host cannot be found.
    """
    match launcher(environment):
        case "torchrun":
            return environment["MASTER_ADDR"], int(environment["MASTER_PORT"])
        case "submitit":
            return "127.0.0.1", port(environment["SUBMITIT_LOCAL_JOB_ID"])
        case "srun":
            return address(first_host(environment["SLURM_JOB_NODELIST"])), port(environment["SLURM_JOB_ID"])
        case _:
            raise InputError("this process has no others to meet: it was started by neither srun nor torchrun")


def port(job: str) -> int:
    return FIRST_PORT + int(job) % PORTS


def first_host(nodes: str) -> str:
    """The first of SLURM's list of nodes: ``gpu-[03-05,11],login`` begins with ``gpu-03``."""
    found = re.match(r"(?:[^,\[]|\[[^\]]*\])+", nodes)
    if not found:
        raise InputError(f"expected a list of nodes in SLURM_JOB_NODELIST, got {nodes!r}")
    return re.sub(r"\[(\d+)[^\]]*\]", r"\1", found[0])


def address(node: str) -> str:
    """Where ``node`` is reached: by its name where that resolves, else by what SLURM says of it (virtual nodes)."""
    try:
        socket.getaddrinfo(node, None)
    except OSError:
        pass
    else:
        return node
    try:
        asked = subprocess.run(
            ["scontrol", "-o", "show", "node", node], capture_output=True, text=True, check=True, timeout=60
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise InputError(f"node {node!r} does not resolve, and scontrol does not know it: {error}") from error
    found = re.search(r"\bNodeAddr=(\S+)", asked.stdout)
    if not found:
        raise InputError(f"node {node!r} does not resolve, and scontrol tells no address of it")
    return found[1]
