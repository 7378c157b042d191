"""Time to the first token of several cells of a table against the first of them, interleaved on the same prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from harness import provenance, timing
from harness.config import plain
from harness.errors import InputError
from harness.record import DecodeSpec, RunRecord, RunSpec, join, publish
from harness.statistics import Interval, ratio_of_medians
from slurm.jobs import Progress
from slurm.jobs.evaluate import Cell, EvaluateJob

if TYPE_CHECKING:
    from harness.race import Lane

SUITE = "ttft"
METHOD = "bootstrap of the ratio of medians"
NOTE = "Speed-ups are against run {}, on the same prompts in the same process, batch size 1."


@dataclass(frozen=True, kw_only=True)
class RaceJob:
    """``cells`` are of one suite with one number of passages; the first is the reference, and runs twice.

    ``experiments`` are the tables that the race belongs to.

    Leaves one record per cell, suite ``ttft``: ``ttft_speedup`` is the reference's median time over the cell's with
    passages encoded before, ``ttft_not_cached_speedup`` the same with encoding inside. The reference's own record holds
    the A/A ratio of its two lanes. Batch size 1. Raises ``InputError`` where the cells do not see the same prompts.
    """

    cells: Sequence[EvaluateJob]
    prompts: int
    runs: Path
    experiments: tuple[str, ...]

    @property
    def title(self) -> str:
        return f"time to the first token, {len(self.cells)} systems interleaved"

    def run(self, progress: Progress | None = None) -> list[RunRecord]:
        """Race, unless the records of just this race are there: they join ``experiments``. A record per cell, in order.

        Times are in seconds, ratios without a unit. ``progress`` counts prompts. Raises ``InputError`` where there is
        no prompt beyond those that warm up, and where the cells do not see the same prompts.
        """
        from harness.race import WARM_UP, race

        cells = [job.open() for job in self.cells]
        examples = list(cells[0].suite.examples())[: self.prompts + WARM_UP]
        if len(examples) <= WARM_UP:
            raise InputError(
                f"expected at least {WARM_UP + 1} prompts, of which {WARM_UP} warm up, got {len(examples)}"
            )
        specs = [_spec(cell.spec, len(examples) - WARM_UP) for cell in cells]
        reference = specs[0]
        note = NOTE.format(reference.run_id)
        for spec in specs[1:]:
            if (spec.suite, spec.retrieval, spec.passages) != (
                reference.suite,
                reference.retrieval,
                reference.passages,
            ):
                raise InputError("systems that race have to see the same questions and passages")
        folders = [spec.folder(self.runs) for spec in specs]
        there = [RunRecord.read(folder) for folder in folders if (folder / "record.json").exists()]
        # The reference is no part of a cell's identity: another one is another race.
        if len(there) == len(specs) and all(list(record.notes) == [note] for record in there):
            return [join(folder, self.experiments) for folder in folders]
        first, again, *others = race([cells[0].system, *(c.system for c in cells)], examples, cells[0].device, progress)
        records = []
        for cell, spec, lane, folder in zip(cells, specs, [again, *others], folders, strict=True):
            folder.mkdir(parents=True, exist_ok=True)
            records.append(publish(self._record(cell, spec, first, lane, note), folder))
        return records

    def said(self, result: list[RunRecord]) -> str:
        return "\n".join(
            f"    {_name(record)}: {_said(record.metrics['ttft_speedup'])} cached, "
            f"{_said(record.metrics['ttft_not_cached_speedup'])} not cached"
            for record in result
        ).join(("\n", ""))

    def _record(self, cell: Cell, spec: RunSpec, first: Lane, lane: Lane, note: str) -> RunRecord:
        return RunRecord(
            run_id=spec.run_id,
            experiments=list(self.experiments),
            notes=[note],
            spec=plain(spec),
            metrics={
                "ttft_speedup": plain(_speedup(first.cached_s, lane.cached_s)),
                "ttft_not_cached_speedup": plain(_speedup(first.not_cached_s, lane.not_cached_s)),
            },
            n_examples=len(lane.cached_s),
            n_errors=0,
            n_empty_golds=0,
            timings={
                "ttft_s": timing.summary(lane.cached_s),
                "ttft_with_encode_s": timing.summary(lane.not_cached_s),
                "peak_bytes": timing.peak_bytes(cell.device),
            },
            provenance=provenance.collect(str(cell.device)),
        )


def _spec(spec: RunSpec, prompts: int) -> RunSpec:
    """The identity of a cell's race."""
    return replace(
        spec,
        suite=replace(spec.suite, name=SUITE, limit=prompts),
        decode=DecodeSpec(max_new_tokens=1, batch_size=1, device=spec.decode.device, dtype=spec.decode.dtype),
    )


def _speedup(reference_s: list[float], own_s: list[float]) -> Interval:
    ratio = ratio_of_medians(reference_s, own_s)
    return Interval(mean=ratio.ratio, low=ratio.low, high=ratio.high, n=ratio.n, method=METHOD)


def _name(record: RunRecord) -> str:
    system = record.spec["system"]
    config = {key: system["config"][key] for key in ("k", "expand", "select", "cross_kv") if key in system["config"]}
    return " ".join([system["name"], *(f"{key}={value}" for key, value in config.items())])


def _said(speedup: dict[str, float]) -> str:
    return f"{speedup['mean']:.2f}x [{speedup['low']:.2f}, {speedup['high']:.2f}]"
