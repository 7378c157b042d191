"""Several processes as one training: who they are to each other, and what they agree on. One process is the rule.

Every function here is what its name says in one process too, without a group and at no cost. What is agreed on is
small (a flag, a count, a loss) and lies on the CPU, but for the counts and losses, which are where the loss is;
weights and gradients are FSDP's (``sharding``).

Rows. Each process draws the whole batch of a stage and takes its share of the rows (``shares``). A loss is a sum of
means over what it supervises, and shares have unequally many tokens, so the mean is over those of all processes:

    mean(total, count) = world * total / sum over processes of count

FSDP averages gradients over the ``world`` processes, which leaves sum of totals / sum of counts: what one process
computes from the whole batch. The reported loss is averaged likewise.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import timedelta
from typing import TYPE_CHECKING, TypeVar

import torch
import torch.distributed as dist

from harness.device import open_device
from harness.errors import Broken, InputError
from harness.train.ranks import here, meeting_point

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")
PATIENCE = timedelta(minutes=30)  # of processes that start, or save, at different speed
_idle: ContextVar[bool] = ContextVar("idle", default=False)


def world() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """Which of them this is, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


@contextmanager
def joined(processes: int, device: str) -> Iterator[torch.device]:
    """Join the others of a training over ``processes`` processes; the device of this one.

    ``cuda`` stands for one GPU each: that of the process's place on its node, among those that the job may see. One
    process joins nobody, whatever the environment. Raises ``InputError`` where the environment tells of another number
    of processes, and where ``device`` names one GPU for several. Where another process is lost while they train, what
    that breaks here is raised as ``Broken``.
    """
    if processes == 1:
        yield open_device(device)
        return
    own = here()
    if own.world != processes:
        raise InputError(
            f"this training needs {processes} processes, got {own.world}: submit its experiment with "
            "`refrag-bench sweep submit EXPERIMENT --cluster CLUSTER`"
        )
    if device.startswith("cuda:"):
        raise InputError(f"{processes} processes take a GPU each; give cuda, not {device}")
    where = open_device(f"cuda:{own.local}" if device == "cuda" else device)
    if where.type == "cuda":
        torch.cuda.set_device(where)
    host, port = meeting_point()
    dist.init_process_group(
        "gloo" if where.type == "cpu" else "cpu:gloo,cuda:nccl",
        init_method=f"tcp://{host}:{port}",
        rank=own.rank,
        world_size=own.world,
        timeout=PATIENCE,
    )
    try:
        yield where
    except Exception as error:
        if _lost_another(error):
            raise Broken(
                f"process {own.rank} of {own.world} (from 0) lost another one of its training, whose output says why; "
                "the same command goes on from the newest checkpoint"
            ) from error
        raise
    finally:
        dist.destroy_process_group()


def _lost_another(error: BaseException | None) -> bool:
    """Is it, or what it came of, that a process cannot be reached? gloo has no type of its own for that."""
    while error is not None:
        if isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "gloo/transport" in str(error)):
            return True
        error = error.__cause__ or error.__context__
    return False


def mean(total: Tensor, count: int, *, least: int = 0) -> Tensor:
    """``total`` / ``count``, sums over this process's rows, as the mean over the rows of all (see above).

    Where nothing is counted anywhere it is NaN, and 0 with a ``least`` count of 1 to divide by.
    """
    if world() == 1:
        return total / max(count, least)
    if _idle.get():
        total, count = total * 0, 0
    counted = total.new_tensor(float(count))
    dist.all_reduce(counted)
    return total * world() / counted.clamp(min=least)


@contextmanager
def idle(on: bool) -> Iterator[None]:
    """``on``: what is computed in here counts nothing. For a process that no row of a batch fell to."""
    token = _idle.set(on)
    try:
        yield
    finally:
        _idle.reset(token)


def average(value: Tensor) -> Tensor:
    """The mean of ``value`` over all processes, in place."""
    if world() > 1:
        dist.all_reduce(value)
        value /= world()
    return value


def total(count: int) -> int:
    """The sum of ``count`` over all processes."""
    if world() == 1:
        return count
    counted = torch.tensor(count)
    dist.all_reduce(counted)
    return int(counted)


def anywhere(flag: bool) -> bool:
    """Is ``flag`` set in any process? All have to ask, and all get the same answer; none goes on before."""
    if world() == 1:
        return flag
    asked = torch.tensor(int(flag))
    dist.all_reduce(asked, dist.ReduceOp.MAX)
    return bool(asked)


def agreed(value: T) -> T:
    """What process 0 takes ``value`` to be. A plain value."""
    if world() == 1:
        return value
    told = [value]
    dist.broadcast_object_list(told)
    return told[0]


def by_first(action: Callable[[], object]) -> None:
    """Process 0 does it while the others wait. Where it fails there, all fail."""
    failed: BaseException | None = None
    if rank() == 0:
        try:
            action()
        except Exception as error:
            failed = error
    if anywhere(failed is not None):
        raise failed or InputError("process 0 of this training failed; its output says why")


def alone(what: str) -> None:
    """Raises ``InputError`` where several processes train: ``what`` is for one."""
    if world() > 1:
        raise InputError(f"{what} is for one process, got {world()}")
