"""How does the score on PopQA change with the popularity of who is asked about?

One line per system and number of passages, one column per power of ten of ``s_pop``, PopQA's monthly page views of the
subject (Mallen et al. 2023, arXiv:2212.10511, show the same by log10 of it). A record has the mean over all questions,
so the scores come from the journals beside the records (``predictions.jsonl``), and the popularity of each question
from the data root that they were read from. Accepted records come without their journals: the table is drawn of runs.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

from harness import metrics, statistics
from harness.errors import InputError
from harness.statistics import Interval
from results.experiments.accuracy import METRICS, Row, row_order
from results.experiments.variants import variants
from results.grids import Grid, link, percent
from results.records import Record

SUITE = "popqa"
JOURNAL = "predictions.jsonl"

Bins = Mapping[int | None, Interval]
"""Scores by ``decade``."""


def decade(popularity: int) -> int | None:
    """The power of ten that ``popularity`` lies above: 3 for 1,000 to 9,999; None for 0, which has no logarithm.

    By digits: ``log10`` is not exact at every power of ten.
    """
    return len(str(popularity)) - 1 if popularity > 0 else None


def by_popularity(record: Record, popularity: Mapping[str, int], metric: str) -> Bins | None:
    """The scores of ``record`` by decade, least popular first; None where its journal does not lie beside it.

    ``popularity`` is by question id. Wilson's interval where scores are 0 or 1, else the bootstrap's. Raises
    ``InputError`` for a damaged journal, one of another run, and for a question whose popularity is not known.
    """
    path = record.path.parent / JOURNAL
    if not path.exists():
        return None
    scores: dict[int | None, list[float]] = defaultdict(list)
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            row = json.loads(line)
            run_id, name, scored = row["run_id"], row["id"], row.get("scores")
            score = None if scored is None else float(scored[metric])
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(
                f"{path}, line {number}: expected a row with run_id, id and {metric}, cannot read it ({error!r})"
            ) from error
        if run_id != record.run_id:
            raise InputError(f"{path}, line {number}: expected a row of run {record.run_id}, got one of {run_id}")
        if name not in popularity:
            raise InputError(f"{path}, line {number}: the data root has no question {name}")
        if score is not None:
            scores[decade(popularity[name])].append(score)
    return {
        bin_: statistics.interval(scores[bin_], binary=metric in metrics.BINARY) for bin_ in sorted(scores, key=_order)
    }


def popularity_grid(
    records: Sequence[Record],
    popularity: Mapping[str, int],
    revision: str,
    *,
    experiment: str,
    metric: str,
    folder: Path,
) -> Grid | None:
    """The table of ``experiment`` for a document in ``folder``; None where it has no PopQA record.

    ``popularity`` is that of the questions of ``revision``. Raises ``InputError`` where records are of other questions,
    or none has its journal.
    """
    ours = [record for record in records if experiment in record.experiments and record.suite == SUITE]
    if not ours:
        return None
    for record in ours:
        if (other := record.spec["suite"]["revision"]) != revision:
            raise InputError(f"{record.path} asked PopQA of revision {other}; the data root has {revision}")
    names = variants(ours)
    found: list[tuple[Row, Record, Bins]] = []
    for record in ours:
        if (bins := by_popularity(record, popularity, metric)) is not None:
            row = Row(system=record.system, variant=names[record.path], passages=record.passages)
            found.append((row, record, bins))
    if not found:
        raise InputError(f"none of the {len(ours)} PopQA records of {experiment!r} has its {JOURNAL} beside it")
    found.sort(key=lambda line: row_order(line[0]))
    decades = sorted({bin_ for *_, bins in found for bin_ in bins}, key=_order)
    notes = [
        f"Metric: {metric} ({METRICS[metric]}); brackets: the 95 % interval "
        f"({', '.join(sorted({score.method for *_, bins in found for score in bins.values()}))}); n: questions.",
        "Popularity: s_pop, the page views of the subject in a month; each column is a power of ten of it.",
    ]
    if left := len(ours) - len(found):
        notes.append(f"Left out: {left} records without their {JOURNAL}.")
    return Grid(
        title=f"{experiment}: PopQA by popularity, {METRICS[metric]} (%)",
        head=["System", "Passages", *map(_bin_name, decades)],
        lines=[
            [row.name, f"[{row.context}]({link(record.path, folder)})", *(_cell(bins.get(bin_)) for bin_ in decades)]
            for row, record, bins in found
        ],
        notes=notes,
    )


def _order(bin_: int | None) -> int:
    return -1 if bin_ is None else bin_


def _bin_name(bin_: int | None) -> str:
    return "0" if bin_ is None else f"{10**bin_:,} to {10 ** (bin_ + 1) - 1:,}"


def _cell(score: Interval | None) -> str:
    if score is None:
        return "no question"
    return f"{percent(score.mean)} [{percent(score.low)}, {percent(score.high)}] (n {score.n})"
