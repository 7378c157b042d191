"""What do expanded chunks buy, by how many they are and who chose them? Read off an accuracy table that varies both.

Nothing here depends on the order of files or on a clock. ``expansion_figure`` draws the curves.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from results.experiments.accuracy import METRICS, SUITES, Table
from results.experiments.cost import EXPANDED, SCORES, SHARE_OF
from results.grids import Grid, linked, percent
from results.records import Record

SYSTEM = "refrag_v2"
# The paper's order (its Figure 3), then what it has not.
SELECTORS = ("policy", "perplexity-desc", "perplexity-asc", "random", "oracle", "first")
ENDS = ("none", "all")  # nobody chooses there: points of every selector's curve
HIT, POSITIONS, RATE = "oracle_hit", "decoder_positions", "effective_rate"
CSV_HEAD = (
    "experiment", "k", "select", "share", EXPANDED, SHARE_OF[EXPANDED], RATE, POSITIONS, "metric", "mean", "low",
    "high", "n", HIT, "run_id",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class Curve:
    """One selector at one k: its records by the share that was asked for, nothing (0) and everything (1) included."""

    k: int
    select: str
    records: Mapping[float, Record]


def curves(table: Table) -> list[Curve]:
    """Every selector of every k. Empty unless a k has two shares between nothing and everything, one run for each."""
    found: dict[tuple[int, str, float], dict[str, Record]] = {}
    for record in (cell.record for cell in table.cells if cell.score):
        config = record.spec["system"]["config"] if record else {}
        if record is not None and record.system == SYSTEM and {"k", "select", "expand"} <= config.keys():
            found.setdefault((config["k"], config["select"], config["expand"]), {})[record.run_id] = record
    between = {(k, share) for k, _, share in found if 0 < share < 1}
    varied = {k for k, _ in between if sum(of == k for of, _ in between) > 1}
    if not varied or any(len(records) > 1 for records in found.values()):
        return []
    by_share = sorted(found.items(), key=lambda point: point[0][::-1])
    points = {point: record for point, records in by_share for record in records.values()}
    return [
        Curve(
            k=k,
            select=select,
            records={share: r for (of, by, share), r in points.items() if of == k and by in (*ENDS, select)},
        )
        for k in sorted(varied)
        for select in SELECTORS
        if any((of, by) == (k, select) for of, by, _ in points)
    ]


def share_expanded(record: Record) -> float:
    """The share of chunks that was really expanded: chunks are whole."""
    return record.metrics[EXPANDED].mean / record.metrics[SHARE_OF[EXPANDED]].mean


def grids(table: Table, folder: Path) -> list[Grid]:
    """The score, how often the asked fact was expanded, and what each share is, by asked share; none without curves."""
    found = curves(table)
    if not found:
        return []
    asked = sorted({share for curve in found for share in curve.records})
    records = [record for curve in found for record in curve.records.values()]
    suite, root, passages = records[0].suite, records[0].root, records[0].passages
    where = f"{SUITES[suite]} ({root}), {passages} passages"

    def grid(title: str, cell: Callable[[Record], str], notes: Sequence[str]) -> Grid:
        lines = [
            [f"k={curve.k}, {curve.select}", *(_or_dash(curve.records.get(share), cell) for share in asked)]
            for curve in found
        ]
        head = ["Expanded by", *(f"{100 * share:g} %" for share in asked)]
        return Grid(title=f"{table.experiment}: {title} by asked share, {where}", head=head, lines=lines, notes=notes)

    def score(record: Record, name: str = table.metric) -> str:
        value = record.metrics[name]
        return linked(f"{percent(value.mean)} [{percent(value.low)}, {percent(value.high)}]", record.path, folder)

    n = sorted({record.metrics[table.metric].n for record in records})
    method = sorted({record.metrics[table.metric].method for record in records})
    ends = "Nothing and everything have nobody to choose: one run each, shown for every selector."
    every: dict[int, dict[float, Record]] = {}
    for curve in found:
        every.setdefault(curve.k, {}).update(curve.records)
    shares = Grid(
        title=f"{table.experiment}: what a share is, {where}",
        head=["Asked", *(f"{100 * share:g} %" for share in asked)],
        lines=[[f"k={k}", *(_or_dash(at.get(share), _is) for share in asked)] for k, at in every.items()],
        notes=[
            "Chunks expanded of all, decoder positions of the whole prompt, effective rate k / (1 - p + k p) at the "
            "share p that was really expanded (arXiv:2509.01092v2, p. 5).",
            "-: the share rounds to no chunk at all.",
        ],
    )
    return [
        grid(
            f"{METRICS[table.metric]} (%)",
            score,
            [
                f"Brackets: the 95 % interval ({', '.join(method)}), n = {', '.join(map(str, n))} questions a cell.",
                ends,
            ],
        ),
        *(
            [grid(SCORES[HIT].lower(), lambda record: score(record, HIT), [ends])]
            if all(HIT in record.metrics for record in records)
            else []
        ),
        shares,
    ]


def _or_dash(record: Record | None, cell: Callable[[Record], str]) -> str:
    return cell(record) if record else "-"


def _is(record: Record) -> str:
    expanded, chunks = (record.metrics[name].mean for name in (EXPANDED, SHARE_OF[EXPANDED]))
    positions, rate = (record.metrics[name].mean for name in (POSITIONS, RATE))
    return f"{expanded:.0f} of {chunks:.0f}, {positions:.0f} positions, {rate:.2f}x"


def to_csv(table: Table) -> str:
    """Every point of the curves, those of the ends once; scores as fractions."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(CSV_HEAD)
    rows = {
        record.run_id: (curve.k, record.spec["system"]["config"]["select"], share, record)
        for curve in curves(table)
        for share, record in curve.records.items()
    }
    for k, select, share, record in rows.values():
        value, metrics = record.metrics[table.metric], record.metrics
        counts = [metrics[name].mean for name in (EXPANDED, SHARE_OF[EXPANDED], RATE, POSITIONS)]
        hit = metrics[HIT].mean if HIT in metrics else ""
        point = (table.experiment, k, select, share, *counts)
        writer.writerow([*point, table.metric, value.mean, value.low, value.high, value.n, hit, record.run_id])
    return text.getvalue()
