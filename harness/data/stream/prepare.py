"""Text of any size to token windows on disk: by several processes, and again from where it was killed.

    <out>/plan.json       what is to be done: the files, the settings that shards depend on, the tokenizer's digest
    <out>/shards/         shards and reports, unit by unit (``packing``)
    <out>/windows.json    the manifest (``windows``); written last

A unit that has its report is never done again, so a kill costs the units that were under way. The mixture, the budget
of tokens and what share of bad input is borne are no part of the plan: they may change from call to call, and no shard
changes with them.

With a budget the first units of the text are taken, as many as have it, and no more is tokenised. Which those are does
not depend on how many processes did them, or in how many calls.
"""

from __future__ import annotations

import fcntl
import json
import math
import multiprocessing
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.config import canonical_json, digest, plain
from harness.data.stream.mixture import parse_mixture
from harness.data.stream.packing import COUNTED, Packing, Unit, finished, into_units, pack
from harness.data.stream.reading import Columns, short_name
from harness.data.stream.shard_files import Found, find_files
from harness.data.stream.tally import Tally
from harness.data.stream.windows import FORMAT, MANIFEST, SHARDS, tokenizer_digest
from harness.errors import Busy, InputError, unknown
from harness.files import write_atomically
from harness.processes import end_with_parent

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PLAN = "plan.json"
ANY = ""  # no set is called so
UNIT_BYTES, LEAST_UNITS = 64 << 20, 64  # input: small enough to lose and to share out, large enough that shards are few
ROWS_BEFORE_JUDGING = 10_000

Progress = Callable[[int, int, str], None]  # units done, units in all, a note


@dataclass(frozen=True, kw_only=True)
class StreamConfig:
    """``context`` and ``output`` are s and o: a window is their sum. ``sets`` are names as the data or this project
    write them (``RedPajamaArXiv``, ArXiv, arxiv); empty for all. ``mixture`` is as ``parse_mixture`` reads it.

    ``tokens`` is the budget, in windows, of all sets together: with a mixture, each set's share of it. None takes all
    there is. ``most_bad`` is the share of the rows, and of the files, that may be bad; ``most_short`` the share of the documents
    that may be too short for a window.
    """

    context: int = 2048
    output: int = 2048
    split: str = "train"
    sets: tuple[str, ...] = ()
    mixture: str | None = None
    columns: Columns = field(default_factory=Columns)
    tokens: int | None = None
    most_bad: float = 0.05
    most_short: float = 0.95

    def __post_init__(self) -> None:
        if self.context < 1 or self.output < 0:
            raise InputError(f"expected a context of at least 1 token and an output, got {self.context}, {self.output}")
        if self.tokens is not None and self.tokens < 1:
            raise InputError(f"expected a budget of at least 1 token, got {self.tokens}")
        for name, share in (("--most-bad", self.most_bad), ("--most-short", self.most_short)):
            if not 0 <= share <= 1:
                raise InputError(f"expected a share from 0 to 1 for {name}, got {share:g}")
        parse_mixture(self.mixture, self.short_sets)

    @property
    def short_sets(self) -> tuple[str, ...]:
        return tuple(short_name(name) for name in self.sets)

    def asked(self) -> dict[str, int]:
        """The budget by set, or under ``ANY`` where it is of all together; then something of each that is named."""
        if self.tokens is None:
            return {}
        mixture = parse_mixture(self.mixture, self.short_sets)
        if mixture is None:
            return {**dict.fromkeys(self.short_sets, 1), ANY: self.tokens}
        return {name: math.ceil(share * self.tokens) for name, share in mixture.items()}


def prepare(
    where: str, tokenizer: str, out: Path, config: StreamConfig, *, workers: int = 1, progress: Progress | None = None
) -> Path:
    """Tokenise and pack the text ``where`` with the tokenizer of a checkpoint into ``out``; returns ``out``.

    Raises ``InputError`` where there is no such text, split, set or checkpoint, where ``out`` holds what was made of
    other data or by other settings, where too much is bad, where no document fills a window, and where there is less
    than the budget asks for; ``Busy`` where another process prepares into ``out``.
    """
    if workers < 1:
        raise InputError(f"expected at least 1 worker, got {workers}")
    found = find_files(where, config.split)
    opened = _tokenizer(tokenizer)
    packing = Packing(
        length=config.context + config.output,
        dtype="<u2" if len(opened) <= 1 << 16 else "<u4",
        columns=config.columns,
        sets=config.short_sets,
    )
    plan = {
        "format": FORMAT,
        "dataset": found.name,
        "revision": found.revision,
        "split": config.split,
        "packing": plain(packing),
        "tokenizer": {"digest": tokenizer_digest(opened), "vocabulary": len(opened)},
        "files": [[file.label, file.size] for file in found.files],
    }
    units = into_units(found.files, min(UNIT_BYTES, sum(file.size for file in found.files) // LEAST_UNITS))
    (out / SHARDS).mkdir(parents=True, exist_ok=True)
    with _alone(out):
        _agree(out / PLAN, plan)
        reports = _all_units(units, packing, tokenizer, out / SHARDS, config, workers, progress)
        taken = units[: _enough(reports, config, packing.length) or len(units)]
        manifest = _manifest(found, plan, config, [reports[unit.number] for unit in taken])
        write_atomically(out / MANIFEST, json.dumps(manifest, indent=1, ensure_ascii=False) + "\n")
    return out


def _tokenizer(name: str) -> PreTrainedTokenizerBase:
    from harness.model.load import load_tokenizer

    tokenizer = load_tokenizer(name)
    tokenizer.model_max_length = sys.maxsize  # a document is longer than any model reads, and is cut afterwards
    return tokenizer


@contextmanager
def _alone(out: Path) -> Iterator[None]:
    with (out / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise Busy(f"{out} is being prepared by another process") from error
        for left in (out / SHARDS).glob(".*.partial"):
            left.unlink()
        yield


def _agree(path: Path, plan: Mapping[str, Any]) -> None:
    """Write the plan, or find it written. Raises ``InputError`` where what is there was made otherwise."""
    if not path.exists():
        write_atomically(path, json.dumps(plan, indent=1) + "\n")
        return
    try:
        there = json.loads(path.read_text(encoding="utf-8"))
        other = [key for key in plan if canonical_json(there.get(key)) != canonical_json(plan[key])]
    except (ValueError, AttributeError) as error:
        raise InputError(f"{path} is damaged; delete {path.parent} to prepare it again") from error
    if other:
        raise InputError(
            f"{path.parent} was prepared with another {' and '.join(other)}; give another --out, or delete it"
        )


def _windows(reports: Iterable[Mapping[str, Any]]) -> Counter[str]:
    """By set, and of ``ANY`` set."""
    found = Counter[str]()
    for report in reports:
        for name, counts in report["sets"].items():
            found[name] += counts["windows"]
            found[ANY] += counts["windows"]
    return found


def _enough(reports: Mapping[int, Mapping[str, Any]], config: StreamConfig, length: int) -> int | None:
    """How many of the first units have the budget; None where those that are done, without a gap, have not."""
    if not (asked := config.asked()):
        return None
    have = Counter[str]()
    for number in range(len(reports)):
        if number not in reports:
            return None
        have += _windows([reports[number]])
        if all(have[name] * length >= tokens for name, tokens in asked.items()):
            return number + 1
    return None


def _all_units(
    units: Sequence[Unit],
    packing: Packing,
    tokenizer: str,
    folder: Path,
    config: StreamConfig,
    workers: int,
    progress: Progress | None,
) -> dict[int, dict[str, Any]]:
    """The reports by unit; those that are not there are made, as long as the budget asks for more.

    Raises ``InputError`` early where too much is bad.
    """
    reports = {unit.number: report for unit in units if (report := finished(unit, folder))}
    tally = Tally()
    for report in reports.values():
        tally.add(Tally.of_json(report["tally"]))
    to_do = [unit for unit in units if unit.number not in reports]

    def done(unit: Unit) -> None:
        report = finished(unit, folder)
        assert report is not None, "a unit that is packed has a report"
        reports[unit.number] = report
        tally.add(Tally.of_json(report["tally"]))
        if tally.rows >= ROWS_BEFORE_JUDGING:
            tally.check(config.most_bad, 1.0)
        if progress:
            tokens = _windows(reports.values())[ANY] * packing.length
            progress(len(reports), len(units), f"{tokens:,} tokens in windows")

    def wanted() -> Iterator[Unit]:
        for unit in to_do:
            if _enough(reports, config, packing.length):
                return
            yield unit

    if progress:
        progress(len(reports), len(units), "")
    if workers == 1:
        opened = _tokenizer(tokenizer) if to_do else None
        for unit in wanted():
            assert opened is not None
            pack(unit, packing, opened, folder)
            done(unit)
    elif to_do:
        _in_processes(wanted(), packing, tokenizer, folder, workers, done)
    return reports


def _in_processes(
    left: Iterator[Unit], packing: Packing, tokenizer: str, folder: Path, workers: int, done: Callable[[Unit], None]
) -> None:
    """At most two units per worker are handed out at a time, so that a failure is not behind a long queue."""
    context = multiprocessing.get_context("spawn")
    waiting: dict[Future[None], Unit] = {}
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_start, initargs=(tokenizer,)) as pool:
        try:
            while True:
                while len(waiting) < 2 * workers and (unit := next(left, None)):
                    waiting[pool.submit(_pack, unit, packing, folder)] = unit
                if not waiting:
                    return
                ready, _ = wait(waiting, return_when=FIRST_COMPLETED)
                for future in ready:
                    future.result()
                    done(waiting.pop(future))
        except BrokenProcessPool as error:
            raise InputError(
                "a worker process was killed (for memory?); the same command goes on, with fewer --workers if need be"
            ) from error
        finally:
            pool.shutdown(cancel_futures=True)


_opened: PreTrainedTokenizerBase | None = None


def _start(tokenizer: str) -> None:
    """In a worker: one thread each, and no worker outlives the process that asked for it."""
    global _opened
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    end_with_parent()
    _opened = _tokenizer(tokenizer)


def _pack(unit: Unit, packing: Packing, folder: Path) -> None:
    assert _opened is not None
    pack(unit, packing, _opened, folder)


def _manifest(
    found: Found, plan: Mapping[str, Any], config: StreamConfig, reports: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """All units as one. Raises ``InputError`` where too much is bad or nothing is left."""
    tally, sets, shards = Tally(), dict[str, Counter[str]](), list[dict[str, Any]]()
    for report in reports:
        tally.add(Tally.of_json(report["tally"]))
        for name, counts in report["sets"].items():
            sets.setdefault(name, Counter()).update(counts)
        shards += [{"set": name, **shard} for name, shard in report["shards"].items()]
    tally.check(config.most_bad, config.most_short)
    if missing := [name for name in config.short_sets if name not in sets]:
        raise unknown(f"set of {found.name}", missing[0], [*sets, *tally.other_sets])
    if not sets:
        raise InputError(f"{found.name}: no document of {plan['packing']['length']:,} tokens in {tally.rows:,} rows")
    windows, length = _windows(reports), plan["packing"]["length"]
    for name, tokens in config.asked().items():
        if windows[name] * length < tokens:
            raise InputError(
                f"{found.name} has {windows[name] * length:,} tokens in windows of {name or 'all sets'}, fewer than the "
                f"{tokens:,} that --tokens asks for; ask for fewer, or leave it out to take all"
            )
    files = [file for report in reports for file in report["files"]]
    manifest = {
        "format": FORMAT,
        "dataset": found.name,
        "revision": found.revision or digest([[file["file"], file["digest"]] for file in files]),
        "split": config.split,
        "columns": plain(config.columns),
        "layout": {"context": config.context, "output": config.output, "length": plan["packing"]["length"]},
        "dtype": plan["packing"]["dtype"],
        "tokenizer": plan["tokenizer"],
        "mixture": parse_mixture(config.mixture, config.short_sets),
        "budget": config.tokens,
        "sets": {name: {key: counts[key] for key in COUNTED} for name, counts in sorted(sets.items())},
        "read": tally.to_json(),
        "files": files,
        "shards": sorted(shards, key=lambda shard: (shard["set"], shard["file"])),
    }
    return {**manifest, "digest": digest([manifest["layout"], manifest["tokenizer"], manifest["mixture"], shards])}
