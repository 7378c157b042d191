"""Does memory stay flat over shards of any size, and is the loader faster than what it feeds?

    pytest -s tests/benchmarks/test_loader_speed.py --gigabytes 10

Shards of random tokens in the paper's layout (2,048 + 2,048, two bytes each) are read once from end to end, in the
shuffled order, by a process of its own: its memory is printed after the first hundredth and at the end. Tokens per
second are those of one process without workers, beside what one H100 takes of the 7B recipe at 40 % MFU (by the FLOPs
of ``slurm.plan``). A rank lays out its own rows alone, 4 of the batch of 256 on 64 GPUs. The two layouts are of an
encoder that shares the decoder's tokens, and of one that reads text anew (RoBERTa, the paper's; here both tokenizers
are a byte-level BPE of 340 tokens, for want of theirs). The last is measured with workers too (``ahead``), and how many
keep the margin is worked out from what one process makes per second of its processor. No time is asserted; that every
window comes once, is.
"""

from __future__ import annotations

import json
import math
import multiprocessing
import random
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from byte_level import byte_level_tokenizer

from harness.data.stream.ahead import EACH_AHEAD, Ahead
from harness.data.stream.packing import Shard
from harness.data.stream.window_practice import Stream, WindowParagraph
from harness.data.stream.windows import FORMAT, MANIFEST, SHARDS, tokenizer_digest
from harness.model.chunking import encoder_inputs, retokenised_inputs
from harness.train.chunk_rows import condense, expand_each, lay_out
from harness.train.rows import Batch, Row
from refrag_v2 import paper_scale
from slurm.plan.flops import example_flops
from slurm.plan.parts import build_parts
from slurm.plan.reading import read
from slurm.plan.scales import paper

MFU = 0.4
K = 16
SHARD_WINDOWS = 8192  # 64 MiB
RANKS = 64
LAID_OUT = 10  # batches
WORKERS = (1, 2, 4)  # of the loader; more than cores bring nothing
MARGIN = 5  # how much faster than training the loader is to be
MOST_GROWTH = 32 << 20  # bytes: of any size of data


def write_windows(folder: Path, gigabytes: float) -> int:
    """Shards of random tokens; the first two of a window are its number. Returns how many windows there are."""
    (folder / SHARDS).mkdir(parents=True)
    rng, tokenizer = np.random.default_rng(0), byte_level_tokenizer()
    n = max(512, int(gigabytes * 1e9) // (2 * paper_scale.LENGTH))
    shards = []
    for first in range(0, n, SHARD_WINDOWS):
        numbers = np.arange(first, min(n, first + SHARD_WINDOWS))
        with Shard(folder / SHARDS / f"{first:08d}-text.npy", paper_scale.LENGTH, "<u2") as shard:
            windows = rng.integers(4, len(tokenizer), (len(numbers), paper_scale.LENGTH), dtype="<u2")
            windows[:, 0], windows[:, 1] = numbers & 0xFFFF, numbers >> 16
            shard.write(windows)
        shards.append({"set": "text", **shard.report()})
    manifest = {
        "format": FORMAT,
        "layout": {"context": paper_scale.CONTEXT, "output": paper_scale.OUTPUT, "length": paper_scale.LENGTH},
        "dtype": "<u2",
        "tokenizer": {"digest": tokenizer_digest(tokenizer)},
        "mixture": None,
        "shards": shards,
        "digest": "random",
    }
    (folder / MANIFEST).write_text(json.dumps(manifest))
    return n


class Clock:
    """Units per second since it was made, of the wall and of the processor: on an idle machine they are equal."""

    def __init__(self) -> None:
        self.wall_s, self.cpu_s = time.perf_counter(), time.process_time()

    def rates(self, units: int) -> tuple[float, float]:
        return units / (time.perf_counter() - self.wall_s), units / (time.process_time() - self.cpu_s)


def memory() -> dict[str, int]:
    """Bytes of this process: its peak, and what it holds now that no file backs."""
    found = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
    return {name: 1024 * int(found[key].split()[0]) for name, key in (("peak", "VmHWM"), ("own", "RssAnon"))}


def stream(folder: Path, collate: Any) -> Stream:
    exercise = WindowParagraph(context=paper_scale.CONTEXT, output=paper_scale.OUTPUT, rows=paper_scale.BATCH)
    return Stream(exercise.over(folder), byte_level_tokenizer(), collate, seed=0)


def pass_over(folder: Path, n: int, answer: Any) -> None:
    """Read every window once; tells tokens per second, memory after a hundredth and at the end, windows seen."""
    torch.set_num_threads(1)
    source, seen = stream(folder, None), np.zeros(n, bool)
    clock, early = Clock(), None
    for first in range(0, n, paper_scale.BATCH):
        ids = source.read(np.arange(first, min(n, first + paper_scale.BATCH)), paper_scale.LENGTH)
        seen[ids[:, 0] + (ids[:, 1] << 16)] = True
        if early is None and first + paper_scale.BATCH >= n / 100:
            early = memory()
    answer.put((clock.rates(n * paper_scale.LENGTH), early, memory(), int(seen.sum())))


def laid_out(folder: Path, retokenised: bool, workers: int = 0) -> tuple[float, float]:
    """Data tokens per second of one rank's batches, laid out for the model; of the wall's where ``workers`` do it."""
    tokenizer = byte_level_tokenizer()

    def inputs(texts: list[list[int]]) -> Any:
        if retokenised:
            return retokenised_inputs(texts, K, "chunk", tokenizer, tokenizer)
        return encoder_inputs(texts, K, "chunk", tokenizer.pad_token_id)

    def collate(rows: Sequence[Row], rngs: Sequence[random.Random]) -> Batch:
        batch = lay_out(rows, K, inputs, tokenizer.pad_token_id)
        return condense(batch, expand_each(batch["n_chunks"], (0.0,), rngs))

    plain, tokens = stream(folder, collate), 0
    source = Ahead(plain, workers) if workers else plain
    for _ in range(1 + EACH_AHEAD * workers):
        source.own(0, RANKS)  # and what lies ready already
    clock = Clock()
    for _ in range(LAID_OUT * max(1, workers)):
        batch, _ = source.own(0, RANKS)
        tokens += len(batch["input_ids"]) * paper_scale.LENGTH
    return clock.rates(tokens)


def consumed() -> dict[str, float]:
    """Data tokens per second that one H100 takes of the 7B recipe, by stage."""
    scale = paper(K)
    parts = build_parts(scale)
    rates = {}
    for name in ("reconstruction", "cpt"):
        stage = scale.stages[name]
        flops = sum(example_flops(stage, parts, read(stage, K)).values())
        rates[name] = MFU * scale.cluster.peak_flops / flops * stage.length
    return rates


def test_memory_is_flat_and_the_loader_is_ahead(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    n = write_windows(tmp_path / "windows", float(request.config.getoption("--gigabytes")))
    size = n * paper_scale.LENGTH * 2
    context = multiprocessing.get_context("spawn")
    answer = context.Queue()
    process = context.Process(target=pass_over, args=(tmp_path / "windows", n, answer))
    process.start()
    read_rate, early, end, seen = answer.get()
    process.join()
    print(f"\none shuffled pass over {size / 1e9:.2f} GB in {n:,} windows, {-(-n // SHARD_WINDOWS)} shards")
    for what, key in (("peak of all memory", "peak"), ("memory of its own", "own")):
        print(f"  {what:20} {early[key] / 1e6:7.1f} MB after a hundredth, {end[key] / 1e6:7.1f} MB at the end")
    rates = {
        "windows read": read_rate,
        "laid out, an encoder of the decoder's tokens": laid_out(tmp_path / "windows", retokenised=False),
        "laid out, an encoder that reads text": laid_out(tmp_path / "windows", retokenised=True),
    }
    text = "laid out, an encoder that reads text"
    alone = rates[text][1]
    for workers in WORKERS:
        rates[f"the same, {workers} worker{'s' * (workers > 1)} ahead"] = laid_out(
            tmp_path / "windows", retokenised=True, workers=workers
        )
    taken = consumed()
    print(f"data tokens per second of one process; one H100 at {MFU:.0%} MFU of the 7B recipe (k = {K}) takes")
    print("  " + ", ".join(f"{rate:,.0f} in {name}" for name, rate in taken.items()))
    for what, (wall, cpu) in rates.items():
        ratios = ", ".join(f"{wall / of:.1f}x {name}" for name, of in taken.items())
        of_one = "" if "ahead" in what else f"   ({cpu:,.0f} per second of the processor)"
        print(f"  {what:46} {wall:12,.0f}   {ratios}{of_one}")
    for name, of in taken.items():
        print(
            f"  {MARGIN}x {name} with an encoder that reads text: {math.ceil(MARGIN * of / alone)} workers, a core each"
        )
    assert seen == n
    assert end["peak"] - early["peak"] < MOST_GROWTH
    assert end["own"] - early["own"] < MOST_GROWTH
