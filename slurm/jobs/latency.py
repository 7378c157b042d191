"""The latency lab: every system on the same requests in one process, length by length, beside the physical limit.

Every (length, batch) is a group: each lane answers one request unseen by the clock, then rounds of requests go through
all lanes in turn, every round in an order of its own, the reference twice. A group's rows are written when it is done,
so a run that is cut off leaves a shorter table, and the same command goes on with the groups that are missing.
"""

from __future__ import annotations

import json
import os
import random
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from itertools import repeat
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO, cast

from harness import provenance, roofline, timing
from harness.device import open_device
from harness.errors import InputError
from harness.files import destination, write_atomically
from results.latency.journals import SCHEMA, read
from slurm.jobs import Progress
from slurm.latency.encoders import check_shape

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

    from harness.model.load import Decoder
    from harness.protocol import Usage
    from slurm.latency.lanes import Lane
    from suites.latency import Ids, Workload

JOURNAL = "latency.jsonl"
OVERHEAD_SAMPLES = 200
SEARCHES = 20
VOCABULARY = 30_522  # of the encoder of questions
OUT_OF_MEMORY = "out of memory"


@dataclass(frozen=True, kw_only=True)
class LatencyJob:
    """Time all lanes around a random decoder of ``shape`` at ``lengths`` (context tokens), in this order.

    ``indexed`` passages are in the index of the ``+retrieve`` boundary. ``minutes`` bounds the whole run: no round
    starts after it, and a group that had no round is left out. ``threads`` None leaves torch's own number. Files go to
    ``out``; a journal of other settings there is an ``InputError``.
    """

    shape: str
    lengths: Sequence[int]
    batches: Sequence[int]
    out: Path
    rounds: int = 7
    new_tokens: int = 16
    question_tokens: int = 32
    passage_tokens: int = 128
    indexed: int = 1_000_000
    device: str = "cpu"
    dtype: str = "float32"
    threads: int | None = None
    minutes: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        check_shape(self.shape)
        if self.rounds < 1 or self.new_tokens < 2:
            raise InputError(f"expected at least 1 round and 2 new tokens, got {self.rounds} and {self.new_tokens}")
        if self.indexed < 1:
            raise InputError(f"expected at least 1 passage to search among, got {self.indexed}")
        if not self.lengths or not self.batches:
            raise InputError("expected at least one length and one batch size")
        for what, numbers in (("lengths", self.lengths), ("batch sizes", self.batches)):
            if len(set(numbers)) < len(numbers):
                raise InputError(f"expected {what} once each, got {','.join(map(str, numbers))}")
        if self.threads is not None and self.threads < 1:
            raise InputError(f"expected at least 1 thread, got {self.threads}")
        if self.minutes is not None and not self.minutes > 0:
            raise InputError(f"expected more than 0 minutes, got {self.minutes:g}")
        self._workloads()

    @property
    def title(self) -> str:
        return f"latency at the shape {self.shape}"

    def run(self, progress: Progress | None = None) -> Path:
        """Measure what is missing; returns the journal."""
        import torch

        started = time.monotonic()
        device = open_device(self.device)
        if self.threads:
            torch.set_num_threads(self.threads)
        journal = destination(self.out / JOURNAL)
        there = self._groups_there(journal)
        missing = [load for load in self._workloads() if (load.length, load.batch) not in there]
        if not missing:
            return journal
        from slurm.latency.lanes import build_lanes

        decoder, tokenizer = self._decoder()
        lanes = build_lanes(self.shape, decoder)
        shape = roofline.LlamaShape.of(decoder.model.config)
        if not there and not (journal.exists() and journal.stat().st_size):
            write_atomically(journal, json.dumps(self._header(lanes, decoder, device)) + "\n")
        with journal.open("a") as file:
            for done, load in enumerate(missing):
                if self._over(started):
                    break
                if progress:
                    progress(done, len(missing), f"{load.length:,} tokens, batch {load.batch}")
                measured = self._group(lanes, tokenizer, load, device, started)
                _write(file, [self._row(lane, shape, load, measured[lane.label]) for lane in lanes if measured])
        if progress:
            progress(len(missing), len(missing), "")
        return journal

    def said(self, result: Path) -> str:
        return str(result)

    def _workloads(self) -> list[Workload]:
        from suites.latency import Workload

        return [
            Workload(
                length=length, batch=batch, passage_tokens=self.passage_tokens, question_tokens=self.question_tokens
            )
            for batch in self.batches
            for length in self.lengths
        ]

    def _settings(self) -> dict[str, Any]:
        """What has to be the same for rows to stand in one table."""
        names = (
            "shape",
            "dtype",
            "device",
            "threads",
            "new_tokens",
            "question_tokens",
            "passage_tokens",
            "indexed",
            "rounds",
            "seed",
        )
        return {name: getattr(self, name) for name in names}

    def _groups_there(self, journal: Path) -> set[tuple[int, int]]:
        """The whole groups in ``journal``; what is left of one that was cut off is dropped from it.

        Raises ``InputError`` where it is of other settings.
        """
        if not journal.exists() or journal.stat().st_size == 0:
            return set()
        found = read(journal)
        asked = found.header["asked"]
        for name, value in self._settings().items():
            if asked[name] != value:
                raise InputError(f"{journal} was measured with {name}={asked[name]}, not {value}; choose another --out")
        known = {part["batch"] for part in found.header["search"]}
        if not known.issuperset(self.batches):
            raise InputError(
                f"{journal} was measured for batch sizes {', '.join(map(str, sorted(known)))}; choose another --out"
            )
        best = min(self.indexed, max(self.lengths) // self.passage_tokens)
        if any(part["best"] < best for part in found.header["search"]):
            raise InputError(f"{journal} searched for fewer than {best} passages; choose another --out")
        kept = [found.header, *found.rows]
        write_atomically(journal, "".join(json.dumps(document) + "\n" for document in kept))
        return {(row["length"], row["batch"]) for row in found.rows}

    def _decoder(self) -> tuple[Decoder, Ids]:
        from harness.model.load import Decoder, random_decoder
        from suites.latency import Ids

        model = random_decoder(self.shape, seed=self.seed, dtype=self.dtype, device=self.device)
        tokenizer = Ids(model.config.vocab_size)
        decoder = Decoder(
            model=model,
            tokenizer=cast("PreTrainedTokenizerBase", tokenizer),
            checkpoint=f"random-{self.seed}",
            source=self.shape,
        )
        return decoder, tokenizer

    def _header(self, lanes: Sequence[Lane], decoder: Decoder, device: torch.device) -> dict[str, Any]:
        import torch

        return {
            "kind": "run",
            "schema": SCHEMA,
            "asked": self._settings(),
            "labels": [lane.label for lane in lanes],
            "shape": self.shape,
            "decoder": {
                "parameters": sum(p.numel() for p in decoder.model.parameters()),
                "width": decoder.model.config.hidden_size,
                "layers": decoder.model.config.num_hidden_layers,
            },
            "dtype": self.dtype,
            "device": self.device,
            "threads": torch.get_num_threads(),
            "new_tokens": self.new_tokens,
            "question_tokens": self.question_tokens,
            "passage_tokens": self.passage_tokens,
            "rounds": self.rounds,
            "ceilings": asdict(roofline.measure_ceilings(device, getattr(torch, self.dtype))),
            "overhead_s": _overhead(device),
            "indexed": self.indexed,
            "search": [self._search(batch, device) for batch in self.batches],
            "provenance": provenance.collect(self.device),
        }

    def _search(self, batch: int, device: torch.device) -> dict[str, Any]:
        """Seconds from questions to the passages' numbers, as many as the longest context holds."""
        import torch

        from slurm.latency.search import build_search, search_work

        search = build_search(self.indexed, VOCABULARY, device, getattr(torch, self.dtype), self.seed)
        best = min(self.indexed, max(self.lengths) // self.passage_tokens)
        seconds = []
        for number in range(-1, SEARCHES):  # the first is the warm-up
            generator = torch.Generator().manual_seed(number)
            ids = torch.randint(VOCABULARY, (batch, self.question_tokens), generator=generator).to(device)
            timing.synchronise(device)
            start = time.perf_counter()
            search(ids, best)
            if number >= 0:
                seconds.append(time.perf_counter() - start)
        work = search_work(search, batch=batch, question_tokens=self.question_tokens)
        return {"batch": batch, "best": best, "seconds": seconds, "work": asdict(work)}

    def _over(self, started: float) -> bool:
        return self.minutes is not None and time.monotonic() - started > 60 * self.minutes

    def _group(
        self, lanes: Sequence[Lane], tokenizer: Ids, load: Workload, device: torch.device, started: float
    ) -> dict[str, Measured]:
        """What each lane took, by label; nothing where time ran out before the first round."""
        measured = {lane.label: Measured() for lane in lanes}
        for number in range(-1, self.rounds):  # the first is the warm-up
            if number >= 0 and self._over(started):
                break
            tokenizer.rows.clear()
            for lane in random.Random(f"{load}-{number}").sample(lanes, len(lanes)):
                if not measured[lane.label].error:
                    measured[lane.label].take(lane, tokenizer, load, number, device, self.new_tokens)
        return measured if any(own.total_s for own in measured.values()) else {}

    def _row(self, lane: Lane, shape: roofline.LlamaShape, load: Workload, own: Measured) -> dict[str, Any]:
        work = lane.work(load, self.new_tokens // 2)
        positions = own.decoder_positions
        cached = positions and positions + self.new_tokens - 1
        return {
            "kind": "row",
            "system": lane.name,
            "label": lane.label,
            "settings": dict(lane.settings),
            "length": load.length,
            "batch": load.batch,
            "decoder_positions": positions,
            "error": own.error,
            "samples": own.samples(),
            "passes": dict(own.passes),
            "work": {phase: asdict(part) for phase, part in vars(work).items()},
            "memory": {
                "peak_bytes": own.request_bytes and lane.weights_bytes + own.request_bytes,
                "weights_bytes": lane.weights_bytes,
                "kv_bytes": cached and roofline.kv_bytes(shape, cached, load.batch, lane.itemsize),
                "stored_bytes": own.stored_bytes,
            },
        }


@dataclass
class Measured:
    """What one lane took at one length and batch size. ``request_bytes``: the device's peak over what stood before.

    ``passes`` of its decoder, by the way they were run (``harness.model.graphs``), and shapes that were refused to it
    in the warm-up; nothing of a system whose forward is another's.
    """

    prefill_s: list[float] = field(default_factory=list)
    with_encode_s: list[float] = field(default_factory=list)
    ttit_s: list[float] = field(default_factory=list)
    total_s: list[float] = field(default_factory=list)
    prefill_device_s: list[float] = field(default_factory=list)
    passes: Counter[str] = field(default_factory=Counter)
    request_bytes: int | None = None
    decoder_positions: int | None = None
    stored_bytes: int | None = None
    error: str | None = None

    def samples(self) -> dict[str, list[float]]:
        """Seconds by what they are of, as the journal has them."""
        names = ("prefill_s", "with_encode_s", "ttit_s", "total_s", "prefill_device_s")
        return {name: getattr(self, name) for name in names}

    def take(
        self, lane: Lane, tokenizer: Ids, load: Workload, number: int, device: torch.device, new_tokens: int
    ) -> None:
        """Answer request ``number``; those below 0 are not counted. Out of memory ends the lane."""
        request = load.request(tokenizer, number)
        before, passed = _forget_peak(device), _passes(lane)
        try:
            timed = timing.timed_batch(
                lambda: lane.system.encode(request.passages),
                lambda context: lane.system.generate(request.questions, context, max_new_tokens=new_tokens),
                device,
                pad_id=-1,
            )
            new = _passes(lane) - passed
            if number < 0:
                self.passes += _refusals(new)
                self._note(lane.system.usage(request.questions, timed.context, max_new_tokens=new_tokens))
                return
        except (RuntimeError, MemoryError) as error:
            if not _is_out_of_memory(error):
                raise
            self.error = OUT_OF_MEMORY
            return
        self.passes += new
        self.prefill_s.append(timed.ttft_s)
        self.with_encode_s.append(timed.ttft_with_encode_s)
        self.ttit_s += timed.ttit_s
        self.total_s.append(timed.total_s)
        if timed.device_ttft_s is not None:
            self.prefill_device_s.append(timed.device_ttft_s)
            self.request_bytes = max(self.request_bytes or 0, timing.peak_bytes(device) - before)

    def _note(self, usage: Sequence[Usage]) -> None:
        self.decoder_positions = usage[0].decoder_positions
        self.stored_bytes = sum(row.stored_bytes for row in usage)


def _passes(lane: Lane) -> Counter[str]:
    """What the lane's decoder counts, as it stands."""
    llama = getattr(lane.system, "llama", None)
    return Counter(llama.passes) if llama else Counter()


def _refusals(passes: Counter[str]) -> Counter[str]:
    from harness.model.graphs import REFUSED

    return Counter({name: n for name, n in passes.items() if name.startswith(REFUSED)})


def _overhead(device: torch.device) -> list[float]:
    """Seconds from call to first token of a system that does nothing."""
    import torch

    column_B = torch.zeros(1, dtype=torch.long, device=device)
    return [
        timing.timed_batch(lambda: None, lambda _: repeat(column_B, 2), device, pad_id=-1).ttft_s
        for _ in range(OVERHEAD_SAMPLES)
    ]


def _forget_peak(device: torch.device) -> int:
    """Start the device's peak anew; returns the bytes that are taken already. A process's peak cannot be forgotten."""
    import torch

    if device.type != "cuda":
        return 0
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    return int(torch.cuda.memory_allocated(device))


def _is_out_of_memory(error: BaseException) -> bool:
    import torch

    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)


def _write(file: TextIO, documents: Sequence[dict[str, Any]]) -> None:
    """Append lines, and have them on disk before anything else happens."""
    file.writelines(json.dumps(document) + "\n" for document in documents)
    file.flush()
    os.fsync(file.fileno())
