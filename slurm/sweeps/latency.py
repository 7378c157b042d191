"""The paper's Figures 2, 8 and 9: how much earlier does the first token come, and how near is that to the limit?

    refrag-bench sweep submit latency --cluster h100 --device cuda     LLaMA-2-7B's shape, bfloat16
    refrag-bench run latency                                          a 100 M-parameter shape, float32, 2 CPU cores

Fills     <runs>/latency/latency.*; accepted journals lie in results/records/latency
Cost      a job of one GPU (`make gpu` stops it after 8 minutes), or 16 minutes of two CPU cores up to 4,096 tokens
          (measured), by extrapolation as long again for 8,192
Expect    on an H200 at 16,384 tokens 9, 15 to 16 and 26 to 27 at k = 8, 16 and 32 (the paper, on an A100: 9.2, 16.5,
          30.9); on a CPU at 4,096 tokens 11, 18 to 20 and 31 to 35 at k = 8, 16 and 32
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from harness.errors import InputError
from slurm.jobs.latency import JOURNAL, LatencyJob
from slurm.jobs.tables import LatencyTablesJob
from slurm.phases import Phase

NAME = "latency"
# What is worth most comes first: a job that is cut off leaves a valid table.
ON_CUDA: dict[str, Any] = dict(
    shape="llama2-7b",
    dtype="bfloat16",
    lengths=(16384, 4096, 1024, 32768, 512, 2048, 8192, 65536),
    batches=(1, 8),
    rounds=5,
)
ON_CPU: dict[str, Any] = dict(
    shape="llama-100m", dtype="float32", lengths=(2048, 4096, 1024, 512, 8192), batches=(1,), rounds=5
)


def latency(*, device: str, runs: Path, **rest: Any) -> Iterator[Phase]:
    """Phases of the experiment. Raises ``InputError`` for what an experiment of random weights would not read."""
    if asked := [name for name, value in rest.items() if value and name != "out"]:
        names = ", ".join(f"--{'scale' if name == 'budget' else name.replace('_', '-')}" for name in asked)
        raise InputError(f"experiment {NAME!r} takes --device and --runs alone; leave {names} out")
    folder = runs / NAME
    chosen = ON_CPU if device == "cpu" else ON_CUDA
    yield Phase(title="measure", jobs=[LatencyJob(device=device, out=folder, **chosen)])
    yield Phase(title="tables", jobs=[LatencyTablesJob(journal=folder / JOURNAL)])
