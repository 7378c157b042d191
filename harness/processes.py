"""Processes of one command on this machine: no one outlives what started it, and a training's end together.

A process of a training that dies leaves the others waiting for it, on GPUs without end. So the first that ends other
than well ends all, and what is told is why that one did; the others only followed.
"""

from __future__ import annotations

import math
import multiprocessing
import os
import signal
import socket
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, TypeVar

from harness.errors import Broken, GateMissed, InputError

T = TypeVar("T")
CONTEXT: Any = multiprocessing.get_context("spawn")
LOOK_S = 0.2  # between two looks at which processes are there
FOLLOW_S = 1.0  # in which those that follow a dead process find out themselves
GRACE_S = 10.0  # from being asked to end to being ended


def end_with_parent() -> None:
    """From now on this process ends when the one that started it does, however that was."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def look() -> None:
        wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=look, daemon=True).start()


@dataclass(frozen=True, kw_only=True)
class Member:
    """One of the processes; what it has to say comes through ``told``."""

    rank: int
    process: BaseProcess
    told: Connection


def run_together(processes: int, function: Callable[[], T]) -> T:
    """Call ``function``, which can be pickled, in ``processes`` processes that meet (``harness.train.ranks``).

    Returns what the first of them returned. Raises what one of them found wrong with the input, and ``Broken`` where
    one failed otherwise or was killed; no process is left behind, whatever happened.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        meeting = {"WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    members = list[Member]()
    try:
        for rank in range(processes):
            told, tells = CONTEXT.Pipe(duplex=False)
            own = {"RANK": str(rank), "LOCAL_RANK": str(rank), **meeting}
            process = CONTEXT.Process(target=_be_one, args=(own, function, tells), name=f"process {rank}")
            process.start()
            tells.close()  # so that the other end knows when the process is gone
            members.append(Member(rank=rank, process=process, told=told))
        answers = _all_answers(members)
    finally:
        _end(members)
    found: T = answers[0]
    return found


class End(IntEnum):
    """How a process ended: well, or nearer or farther from the cause of why it did not."""

    WELL = 0
    KILLED = 1
    BAD_INPUT = 2
    FAILED = 3
    LOST_ANOTHER = 4


def _be_one(meeting: dict[str, str], function: Callable[[], Any], tells: Connection) -> None:
    os.environ.update(meeting)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal's goes to all; the one that started them ends them
    end_with_parent()
    try:
        tells.send((End.WELL, function()))
    except (InputError, GateMissed) as error:
        tells.send((End.BAD_INPUT, error))
    except Broken as error:
        tells.send((End.LOST_ANOTHER, error))
    except Exception as error:
        traceback.print_exc()
        tells.send((End.FAILED, f"failed: {type(error).__name__}: {error}"))


def _all_answers(members: Sequence[Member]) -> list[Any]:
    """What every process returned. Raises where one did not, for the first cause that can be told."""
    answers, bad = dict[int, Any](), list[tuple[End, Exception]]()
    left: dict[Any, Member] = {member.told: member for member in members}
    until = math.inf
    while left and time.monotonic() < until:
        ready = set(wait(list(left), LOOK_S))
        # What a dead process started may still hold its end of the pipe.
        ready |= {told for told, member in left.items() if member.process.exitcode is not None}
        for member in [left.pop(told) for told in ready]:
            end, answer = _end_of(member)
            if end is End.WELL:
                answers[member.rank] = answer
                continue
            until = min(until, time.monotonic() + FOLLOW_S)
            if isinstance(answer, str):
                after = "the others were ended; the same command goes on from the newest checkpoint"
                answer = Broken(f"process {member.rank} of {len(members)} (from 0) {answer}; {after}")
            bad.append((end, answer))
    if bad:
        raise min(bad, key=lambda each: each[0])[1]
    for member in members:
        member.process.join(GRACE_S)
    return [answers[member.rank] for member in members]


def _end_of(member: Member) -> tuple[End, Any]:
    """How a process that has spoken, or is gone, ended; with its answer, its error, or what happened in words."""
    try:
        if member.told.poll():
            found: tuple[End, Any] = member.told.recv()
            return found
    except EOFError:
        pass
    member.process.join()
    code = member.process.exitcode or 0
    return End.KILLED, f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"


def _end(members: Sequence[Member]) -> None:
    for member in members:
        member.process.terminate()
    until = time.monotonic() + GRACE_S
    for member in members:
        member.process.join(max(0.0, until - time.monotonic()))
        member.process.kill()
        member.process.join()
