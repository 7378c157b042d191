"""A function in several processes at once, as torchrun would start them; gloo, one thread each.

The processes are forked off a server that has imported torch once, so that each costs no import.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import socket
import traceback
from collections.abc import Callable
from queue import Empty
from typing import Any

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(
    [
        "pytest",
        "harness.data.world.tokenizer",
        "harness.train.loop",
        "refrag_v2.recipe",
        "refrag_v2.checkpoint",
        "slurm.jobs.train",
        "torch.distributed.fsdp",
        "torch.distributed.tensor",
        "transformers.models.llama.modeling_llama",
    ]
)
LIMIT_S = 300  # a hang, not a measure; importing torch counts


def together(
    world: int, function: Callable[..., Any], *arguments: Any, joins: bool = False, limit_s: int = LIMIT_S
) -> list[Any]:
    """What ``function(device, *arguments)`` returns in each of ``world`` processes, or the error that it raised.

    A function that ``joins`` the others does so by itself. After ``limit_s`` seconds it is taken to hang.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    answers = CONTEXT.Queue()
    members = [
        CONTEXT.Process(target=_member, args=(rank, world, port, joins, answers, function, arguments), daemon=True)
        for rank in range(world)
    ]
    for member in members:
        member.start()
    try:
        told = {rank: pickle.loads(answer) for rank, answer in (answers.get(timeout=limit_s) for _ in members)}
    except Empty:
        raise AssertionError(f"{function.__name__} hangs in {world} processes") from None
    finally:
        for member in members:
            member.join(timeout=5)
            member.kill()
    for value in told.values():
        if isinstance(value, str) and value.startswith("Traceback"):
            raise AssertionError(value)
    return [told[rank] for rank in range(world)]


def _member(
    rank: int,
    world: int,
    port: int,
    joins: bool,
    answers: Any,
    function: Callable[..., Any],
    arguments: tuple[Any, ...],
) -> None:
    import torch

    from harness.errors import InputError, Interrupted
    from harness.train.distributed import joined
    from harness.train.loop import NonFiniteLoss

    torch.set_num_threads(1)
    os.environ |= {
        "RANK": str(rank),
        "WORLD_SIZE": str(world),
        "LOCAL_RANK": str(rank),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    try:
        with joined(1 if joins else world, "cpu") as device:
            answer = function(device, *arguments)
    except (InputError, Interrupted, NonFiniteLoss, ZeroDivisionError) as error:
        answer = error
    except BaseException:
        answer = traceback.format_exc()
    answers.put((rank, pickle.dumps(answer)))  # past torch's own way, which needs the sender to live on
