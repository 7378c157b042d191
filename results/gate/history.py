"""How did accuracy and speed go over the commits, and where did they step?

Points come from what gates left: their reports (``runs/gate/gates``) and what was accepted (``results/records/gate``).
A series is one figure of one cell asked with the same number of questions, or one lane's speed (standard RAG's time
over the lane's) on one machine; a commit that was gated more than once is one point.

Steps are found by binary segmentation: at each place between two commits the means before and after, weighted by the
inverse square of their errors, are compared, Holm over all places of the segment; where the smallest p is below
``ALPHA`` the series is cut there, and both parts are looked at in the same way. Source: Scott and Knott 1974,
Biometrics 30:507-512; Vostrikova 1981, Soviet Math. Doklady 24:55-59.

The error of a point is that of its own sample. A speed also depends on the day that it was measured on, so from
``FEWEST`` points on its error is at least what neighbours scatter by: the root of half the mean square of their
differences (von Neumann 1941, Ann. Math. Statist. 12:367-395), which a step moves little among that many. Then the test
is Student's instead of the normal one, with 2 (n - 1)^2 / (3 n - 4) degrees of freedom. All commits answer the same
questions, which the test does not use: steps in accuracy are found later than by a gate of the two commits.
"""

from __future__ import annotations

import csv
import io
import json
import math
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from harness.errors import InputError
from harness.statistics import holm, wilson
from results.gate.answers import SCORES
from results.gate.times import FIGURES
from results.grids import Grid

ALPHA = 0.01
FEWEST = 8  # points from which their scatter can be told
Z = 1.959964
ROUNDING = 1e-9  # no point is surer than this


@dataclass(frozen=True, kw_only=True)
class Series:
    """A figure's name and kind (``score``: a share; ``speed``: a natural logarithm of a ratio)."""

    name: str
    kind: str


@dataclass(frozen=True, kw_only=True)
class Point:
    """``error`` is a standard error in the unit of ``value``; ``gates`` are those that it is the mean of."""

    commit: str
    value: float
    error: float
    gates: int


@dataclass(frozen=True, kw_only=True)
class Step:
    """The series changes with ``commit``; ``p`` is Holm's over the places of its segment."""

    series: Series
    commit: str
    before: float
    after: float
    p: float

    @property
    def said(self) -> str:
        shown = [_shown(self.series, value) for value in (self.before, self.after)]
        return f"{self.commit[:12]}: {self.series.name}: {shown[0]} to {shown[1]} (p {self.p:.2g})"


@dataclass(frozen=True, kw_only=True)
class History:
    """``left_out`` are commits with points that are no ancestors of the one that is looked from."""

    suites: str
    commits: Sequence[str]
    series: Mapping[Series, Sequence[Point]]
    steps: Sequence[Step]
    left_out: Sequence[str]

    def text(self) -> str:
        lines = [f"history {self.suites}: {len(self.commits)} commits, {len(self.steps)} steps", ""]
        lines += [f"step at {step.said}" for step in self.steps]
        if self.left_out:
            lines.append(f"left out, no ancestors: {', '.join(commit[:12] for commit in self.left_out)}")
        return "\n".join([*lines, "", *(grid.markdown() for grid in self._grids())]).rstrip() + "\n"

    def csv(self) -> str:
        """One line a point: its 95 % interval, and the p of a step where there is one."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(("series", "kind", "commit", "value", "low", "high", "gates", "step_p"))
        steps = {(step.series, step.commit): step.p for step in self.steps}
        for series, points in self.series.items():
            for point in points:
                ends = [natural(series, point.value + sign * Z * point.error) for sign in (0, -1, 1)]
                step = steps.get((series, point.commit), "")
                writer.writerow((series.name, series.kind, point.commit, *ends, point.gates, step))
        return text.getvalue()

    def as_json(self) -> list[dict[str, Any]]:
        return [dict(row) for row in csv.DictReader(io.StringIO(self.csv()))]

    def _grids(self) -> Iterator[Grid]:
        steps = {(step.series, step.commit) for step in self.steps}
        for kind, title in (("score", "Scores (%)"), ("speed", "Standard RAG's time over the lane's")):
            columns = [series for series in self.series if series.kind == kind]
            values = {(series, point.commit): point.value for series in columns for point in self.series[series]}
            if columns:
                yield Grid(
                    title=title,
                    head=("Series", *(commit[:10] for commit in self.commits)),
                    lines=[
                        [
                            series.name,
                            *(
                                (_shown(series, values[series, commit]) if (series, commit) in values else "-")
                                + (" step" if (series, commit) in steps else "")
                                for commit in self.commits
                            ),
                        ]
                        for series in columns
                    ],
                    notes=["Commits from the oldest on; a step is marked at the first commit after it."],
                )


def read(runs: Path, records: Path, *, suites: str, order: Sequence[str]) -> History:
    """The history of ``suites`` over the commits of ``order``, the oldest first.

    Raises ``InputError`` where no gate of ``suites`` left anything.
    """
    found: dict[Series, dict[str, list[tuple[float, float]]]] = {}
    for commit, of, value, error in _points(runs, records, suites):
        found.setdefault(of, {}).setdefault(commit, []).append((value, error))
    if not found:
        raise InputError(
            f"no gate of suites {suites!r} below {runs / 'gate' / 'gates'} or {records / 'gate'}; make one with "
            "`refrag-bench gate --base REV`"
        )
    with_points = {commit for commits in found.values() for commit in commits}
    series = {
        one: [_pooled(commit, found[one][commit]) for commit in order if commit in found[one]]
        for one in sorted(found, key=lambda one: (one.kind, one.name))
    }
    return History(
        suites=suites,
        commits=[commit for commit in order if commit in with_points],
        series={one: points for one, points in series.items() if points},
        steps=[step for one, points in series.items() for step in steps(one, points)],
        left_out=sorted(with_points - set(order)),
    )


def steps(series: Series, points: Sequence[Point]) -> list[Step]:
    """Where the series steps, the earliest first; the levels are those of the parts beside it, up to the next step."""
    n = len(points)
    errors, df = [max(point.error, ROUNDING) for point in points], math.inf
    if series.kind == "speed" and n >= FEWEST:
        scatter = math.sqrt(statistics.fmean((b.value - a.value) ** 2 for a, b in pairwise(points)) / 2)
        if scatter > statistics.median(errors):
            errors, df = [max(error, scatter) for error in errors], 2 * (n - 1) ** 2 / (3 * n - 4)
    cuts = dict(_cuts(points, errors, 0, n, df))
    levels = [_weighted(points[start:end], errors[start:end])[0] for start, end in pairwise([0, *sorted(cuts), n]) if n]
    return [
        Step(series=series, commit=points[cut].commit, before=before, after=after, p=cuts[cut])
        for cut, (before, after) in zip(sorted(cuts), pairwise(levels), strict=True)
    ]


def natural(series: Series, value: float) -> float:
    """A value as a reader expects it: a share within 0 and 1, or a ratio."""
    return math.exp(value) if series.kind == "speed" else min(1.0, max(0.0, value))


def _cuts(
    points: Sequence[Point], errors: Sequence[float], start: int, end: int, df: float
) -> Iterator[tuple[int, float]]:
    """The first point after each step between ``start`` and ``end``, and the step's p."""
    from scipy.stats import t

    tests = []
    for place in range(start + 1, end):
        (before, error), (after, other) = (
            _weighted(points[part], errors[part]) for part in (slice(start, place), slice(place, end))
        )
        spread, change = math.hypot(error, other), abs(after - before)
        tests.append((float(2 * t.sf(change / spread, df)), -change, place))
    if not tests:
        return
    adjusted_p = holm([p for p, *_ in tests])
    *_, place = min(tests)  # of equal p-values (0, where the errors are) the larger change is the step
    adjusted = adjusted_p[[test[2] for test in tests].index(place)]
    if adjusted < ALPHA:
        yield place, adjusted
        yield from _cuts(points, errors, start, place, df)
        yield from _cuts(points, errors, place, end, df)


def _weighted(points: Sequence[Point], errors: Sequence[float]) -> tuple[float, float]:
    """The mean by inverse variance, and its standard error."""
    weights = [1 / error**2 for error in errors]
    mean = sum(weight * point.value for weight, point in zip(weights, points, strict=True)) / sum(weights)
    return mean, 1 / math.sqrt(sum(weights))


def _pooled(commit: str, gates: Sequence[tuple[float, float]]) -> Point:
    """Gates of one commit as one point. They share their questions or their code's own noise, so the error of the mean
    stays that of one gate; where they scatter more, it is their own."""
    values = [value for value, _ in gates]
    error = statistics.fmean(error for _, error in gates)
    if len(values) > 1:
        error = max(error, statistics.stdev(values) / math.sqrt(len(values)))
    return Point(commit=commit, value=statistics.fmean(values), error=error, gates=len(values))


def _points(runs: Path, records: Path, suites: str) -> Iterator[tuple[str, Series, float, float]]:
    """Every commit, series, value and error that is on disk; dirty trees are no commits."""
    told: set[tuple[str, Series]] = set()
    for path in sorted((runs / "gate" / "gates").glob("*/report.json")):
        document = _read(path)
        if document["suites"] != suites:
            continue
        for verdict in document["answers"]:
            if verdict["figure"] not in SCORES:
                continue
            series = _score_series(verdict["cell"], verdict["figure"], verdict["n"])
            for side in ("base", "candidate"):
                if not document[side]["dirty"] and verdict[side] is not None:
                    yield document[side]["commit"], series, *_share(verdict[side], verdict["n"])
                    if side == "candidate":
                        told.add((document[side]["commit"], series))
        if document["times"] and not document["candidate"]["dirty"]:
            for point in _speeds(document["candidate"]["commit"], document["times"]["speeds"], document["provenance"]):
                yield point
                told.add(point[:2])
    for path in sorted((records / "gate" / suites).glob("*.json")):
        document = _read(path)
        points = [
            (document["commit"], _score_series(cell, figure, metric["n"]), *_share(metric["mean"], metric["n"]))
            for cell, record in document["records"].items()
            for figure, metric in record["metrics"].items()
            if figure in SCORES
        ]
        points += _speeds(document["commit"], document["speeds"], document["provenance"])
        yield from (point for point in points if point[:2] not in told)  # what a report here has said is not said twice


def _speeds(
    commit: str, speeds: Mapping[str, Any], provenance: Mapping[str, Any]
) -> Iterable[tuple[str, Series, float, float]]:
    machine = provenance["cpu"] if provenance["device"] == "cpu" else provenance["device"]
    for lane, figures in speeds.items():
        for figure, ratio in figures.items():
            name = f"{lane}: {FIGURES[figure]}, {machine}"
            error = (math.log(ratio["high"]) - math.log(ratio["low"])) / (2 * Z)
            yield commit, Series(name=name, kind="speed"), math.log(ratio["ratio"]), error


def _score_series(cell: str, figure: str, n: int) -> Series:
    return Series(name=f"{cell}: {SCORES[figure]} (n {n})", kind="score")


def _share(value: float, n: int) -> tuple[float, float]:
    """A share and its standard error: Wilson's interval over 2 z, which is never 0."""
    bounds = wilson(round(value * n), n)
    return value, (bounds.high - bounds.low) / (2 * Z)


def _shown(series: Series, value: float) -> str:
    value = natural(series, value)
    return f"{value:.2f}x" if series.kind == "speed" else f"{100 * value:.1f}"


def _read(path: Path) -> dict[str, Any]:
    try:
        document: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        version = document["schema_version"]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} is no report of a gate, or damaged") from error
    if version != 1:
        raise InputError(f"{path}: expected schema_version 1, got {version!r}")
    return document
