"""The clock around a generator. Systems never time themselves; whoever consumes their columns does.

Definitions (all in seconds, the device synchronised, tokens on the host):

- ``ttft_s``: from the call of ``generate`` to its first column. Passages are encoded already ("cached").
- ``ttft_with_encode_s``: from the call of ``encode`` to the first column ("not cached").
- ``device_ttft_s``: ``ttft_s`` by the device's own clock, up to the end of its work; None on a CPU.
- ``ttit_s``: the time of each later column (vLLM's TPOT, AIPerf's ITL).
- ``throughput_tokens_per_s``: generated tokens over the time from ``encode`` to the last column, whole batch.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Generic, TypeVar

import numpy as np

if TYPE_CHECKING:
    import torch
    from torch import Tensor

ContextT = TypeVar("ContextT")
LOWEST_N_FOR_P99 = 299


@dataclass(frozen=True, kw_only=True)
class Timed(Generic[ContextT]):
    """One batch through the clock."""

    context: ContextT
    columns: list[Tensor]
    ttft_s: float
    ttft_with_encode_s: float
    device_ttft_s: float | None
    ttit_s: list[float]
    total_s: float
    generated_tokens: int


def timed_batch(
    encode: Callable[[], ContextT],
    generate: Callable[[ContextT], Iterator[Tensor]],
    device: torch.device,
    pad_id: int,
) -> Timed[ContextT]:
    """Run one batch and time it from outside. ``pad_id`` columns of finished rows are not counted as tokens."""
    synchronise(device)
    start = time.perf_counter()
    context = encode()
    synchronise(device)
    encoded, mark = time.perf_counter(), _mark(device)
    columns: list[Tensor] = []
    arrivals: list[float] = []
    first = None
    for column in generate(context):
        first = first or _mark(device)
        columns.append(column.cpu())  # reaching the host is part of having a token, and synchronises
        arrivals.append(time.perf_counter())
    return Timed(
        context=context,
        columns=columns,
        ttft_s=arrivals[0] - encoded,
        ttft_with_encode_s=arrivals[0] - start,
        device_ttft_s=mark.elapsed_time(first) / 1e3 if mark and first else None,
        ttit_s=[late - early for early, late in pairwise(arrivals)],
        total_s=arrivals[-1] - start,
        generated_tokens=sum(int((column != pad_id).sum()) for column in columns),
    )


def synchronise(device: torch.device) -> None:
    """Wait until the device has done all that it was given (nothing to wait for on a CPU)."""
    if device.type == "cuda":
        import torch

        torch.cuda.synchronize(device)


def _mark(device: torch.device) -> torch.cuda.Event | None:
    """This point of the device's work, for its own clock; None on a CPU, which has no other clock."""
    if device.type != "cuda":
        return None
    import torch

    event = torch.cuda.Event(enable_timing=True)
    event.record(torch.cuda.current_stream(device))
    return event


def peak_bytes(device: torch.device) -> int:
    """Peak memory so far: of the device's allocator, or of this process where the device is the CPU."""
    if device.type == "cuda":
        import torch

        return int(torch.cuda.max_memory_allocated(device))
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def summary(samples: list[float]) -> dict[str, float]:
    """Median, p10, p90 and n; p99 only from 299 samples on, below which it is no more than the maximum."""
    if not samples:
        return {"n": 0}
    low, median, high = np.percentile(samples, [10, 50, 90])
    result = {"median": float(median), "p10": float(low), "p90": float(high), "n": len(samples)}
    if len(samples) >= LOWEST_N_FOR_P99:
        result["p99"] = float(np.percentile(samples, 99))
    return result
