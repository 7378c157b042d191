"""Differences in log-perplexity between two ways of reading the same windows: paired tests over finished runs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness import provenance
from harness.config import digest, plain
from harness.errors import InputError
from harness.files import write_atomically
from harness.record import Journal, RunSpec
from harness.statistics import holm, paired_bootstrap
from slurm.jobs import Progress
from slurm.jobs.perplexity import PerplexityJob

FILE = "differences.json"


@dataclass(frozen=True, kw_only=True)
class DifferencesJob:
    """The first of each of ``contrasts`` minus the second, over the longest output, in nats per token.

    The two may differ in how much context they have: what they predict is the same. Windows are resampled; beside it
    stands in how many documents the first is lower, since windows of one document are not independent of it. p-values
    are Holm's over all contrasts. ``names`` says what tables call runs that their settings do not tell apart. Leaves
    ``differences.json`` below ``runs`` and below ``out``.

    Raises ``InputError`` where the runs do not predict the same tokens, or are not finished.
    """

    name: str
    contrasts: Sequence[tuple[PerplexityJob, PerplexityJob]]
    runs: Path
    out: Path
    names: Sequence[tuple[PerplexityJob, str]] = ()

    @property
    def title(self) -> str:
        return f"{len(self.contrasts)} paired differences"

    def run(self, progress: Progress | None = None) -> dict[str, Any]:
        compared = [job for contrast in self.contrasts for job in contrast]
        jobs = list({id(job): job for job in (*compared, *(job for job, _ in self.names))}.values())
        read = {id(job): _read(job) for job in jobs}
        tests = [_test(read[id(a)], read[id(b)]) for a, b in self.contrasts]
        for test, p_value in zip(tests, holm([test["p_value"] for test in tests]), strict=True):
            test["p_holm"] = p_value
        names = {read[id(job)][0].run_id: name for job, name in self.names}
        document = {"name": self.name, "tests": tests, "provenance": provenance.collect("cpu")}
        if names:
            document["names"] = names
        for folder in (self.runs, self.out / "records"):
            path = folder / "comparisons" / self.name / FILE
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, json.dumps(document, indent=1) + "\n")
        return document

    def said(self, result: dict[str, Any]) -> str:
        lower = sum(test["high"] < 0 for test in result["tests"])
        return f"{lower} of {len(result['tests'])} lower, intervals below 0"


Scores = dict[str, tuple[str, float]]  # of a window: its document, and its log-perplexity


def _read(job: PerplexityJob) -> tuple[RunSpec, Scores]:
    spec = job.open().spec
    folder = spec.folder(job.runs)
    if not (folder / "record.json").exists():
        raise InputError(f"run {spec.run_id} is not finished; score it before it is compared")
    with Journal(folder / "predictions.jsonl", spec.run_id) as journal:
        rows = journal.rows
    if broken := [row["id"] for row in rows if "error" in row]:
        raise InputError(f"run {spec.run_id} has {len(broken)} windows in error, the first of them {broken[0]}")
    return spec, {row["id"]: (row["document"], row["nll"] / row["tokens"]) for row in rows}


def _test(a: tuple[RunSpec, Scores], b: tuple[RunSpec, Scores]) -> dict[str, Any]:
    (spec_a, rows_a), (spec_b, rows_b) = a, b
    if digest(_predicted(spec_a)) != digest(_predicted(spec_b)) or rows_a.keys() != rows_b.keys():
        raise InputError(f"runs {spec_a.run_id} and {spec_b.run_id} do not predict the same tokens")
    pairs = [(document, value, rows_b[window][1]) for window, (document, value) in rows_a.items()]
    by_document: dict[str, list[float]] = {}
    for document, ours, theirs in pairs:
        by_document.setdefault(document, []).append(ours - theirs)
    tested = paired_bootstrap([ours for _, ours, _ in pairs], [theirs for _, _, theirs in pairs])
    return {
        "a": spec_a.run_id,
        "b": spec_b.run_id,
        **plain(tested),
        "documents": len(by_document),
        "documents_lower": sum(sum(differences) < 0 for differences in by_document.values()),
    }


def _predicted(spec: RunSpec) -> dict[str, Any]:
    """What identifies the predicted tokens: all of the windows but their context."""
    suite: dict[str, Any] = plain(spec.suite)
    return suite | {"context": None}
