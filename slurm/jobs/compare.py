"""Compare ways of answering on the same questions: paired tests over the journals of finished runs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness import provenance
from harness.config import plain
from harness.errors import InputError
from harness.files import write_atomically
from harness.statistics import holm, paired_bootstrap
from results.experiments.comparison import FILE, write_comparison
from results.pairs import Run, read_run, refuse_other_questions
from slurm.jobs import Progress
from slurm.jobs.evaluate import EvaluateJob


@dataclass(frozen=True, kw_only=True)
class Way:
    """One way of answering: its run, or one run for every training seed."""

    name: str
    cells: Sequence[EvaluateJob]


@dataclass(frozen=True, kw_only=True)
class CompareJob:
    """The first of each of ``contrasts`` against the second, by every one of ``figures``. Names tell ways apart.

    A way of one run stands against each seed of the other. Whole questions are resampled, since the seeds of a question
    are not independent evidence; p-values are Holm's over the table. The means of ``beside`` are shown and not tested.
    Leaves ``comparison.json`` below ``runs``, and the table and the same file below ``out``. Raises ``InputError``
    where the runs do not answer the same questions.
    """

    name: str
    contrasts: Sequence[tuple[Way, Way]]
    figures: Sequence[str]
    beside: Sequence[str] = ()
    runs: Path
    out: Path

    @property
    def title(self) -> str:
        return f"compare {', '.join(f'{a.name} with {b.name}' for a, b in self.contrasts)}"

    def run(self, progress: Progress | None = None) -> dict[str, Any]:
        """Compare, and return what ``comparison.json`` holds: the means, and a test per figure and contrast.

        Raises ``InputError`` where the runs do not answer the same questions over the same passages, where one is not
        finished or has examples in error, and where both sides have several seeds and not as many.
        """
        ways = list({way.name: way for contrast in self.contrasts for way in contrast}.values())
        runs = {way.name: [_finished(cell) for cell in way.cells] for way in ways}
        refuse_other_questions([run for of_way in runs.values() for run in of_way])
        journals = {name: [_figures(run) for run in of_way] for name, of_way in runs.items()}
        tests = [
            {"figure": figure, "a": a.name, "b": b.name} | plain(_paired(journals[a.name], journals[b.name], figure))
            for figure in self.figures
            for a, b in self.contrasts
        ]
        for test, p_value in zip(tests, holm([test["p_value"] for test in tests]), strict=True):
            test["p_holm"] = p_value
        document = {
            "name": self.name,
            "beside": list(self.beside),
            "runs": {name: [run.run_id for run in of_way] for name, of_way in runs.items()},
            "means": {
                name: {figure: [_mean(rows, figure) for rows in seeds] for figure in (*self.figures, *self.beside)}
                for name, seeds in journals.items()
            },
            "tests": tests,
            "provenance": provenance.collect("cpu"),
        }
        folder = self.runs / "comparisons" / self.name
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / FILE, json.dumps(document, indent=1) + "\n")
        write_comparison(document, self.out)
        return document

    def said(self, result: dict[str, Any]) -> str:
        return "\n" + "\n".join(
            f"    {test['figure']}, {test['a']} - {test['b']}: {100 * test['difference']:+.1f} "
            f"[{100 * test['low']:+.1f}, {100 * test['high']:+.1f}]  p {test['p_holm']:.2g}  n={test['n']}"
            for test in result["tests"]
        )


def _finished(cell: EvaluateJob) -> Run:
    spec = cell.open().spec
    return read_run(spec.folder(cell.runs), spec.run_id, plain(spec))


def _figures(run: Run) -> dict[str, Mapping[str, float]]:
    """Scores and usage of each question."""
    return {row["id"]: row["scores"] | row["usage"] for row in run.rows}


def _paired(a: Sequence[dict[str, Any]], b: Sequence[dict[str, Any]], figure: str) -> Any:
    if len(a) != len(b) and 1 not in (len(a), len(b)):
        raise InputError(f"expected as many seeds on both sides, or one run on one of them; got {len(a)} and {len(b)}")
    pairs = [(a[i % len(a)], b[i % len(b)]) for i in range(max(len(a), len(b)))]
    questions = [(left, right, question) for left, right in pairs for question in left]
    return paired_bootstrap(
        [left[question][figure] for left, _, question in questions],
        [right[question][figure] for _, right, question in questions],
        clusters=[question for _, _, question in questions],
    )


def _mean(rows: Mapping[str, Mapping[str, float]], figure: str) -> float:
    return sum(row[figure] for row in rows.values()) / len(rows)
