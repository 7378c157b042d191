"""Which published numbers can be had by arithmetic alone? Recomputed here: Table 6 evaluated, and Table 8.

Table 6's ratio of TTFT by ``harness.roofline_limits``, Table 8's counts, totals and shares by the rule of
``harness.train.curriculum`` (neither imports torch). The paper prints no such rule: it was found from the cells, so
that they agree says that the curriculum trained here is the printed one, and nothing about the paper.
"""

from __future__ import annotations

from functools import cache

from harness.roofline_limits import ttft_ratio_theory
from harness.train.curriculum import MULTIPLIERS, paper_table8
from results.ledger.conditions import Value
from results.ledger.entries import Entry


def recomputed(entry: Entry) -> float | None:
    """The number that a formula gives in the place of ``entry``; None where no formula does."""
    under = entry.conditions
    if entry.table == "Table 6 evaluated (derived)":
        return ttft_ratio_theory(float(under["width"]), float(under["context"]), float(under["k"]))
    if entry.file == "table08_curriculum.csv":
        return _curriculum(under["chunks"], under["stage"], str(under["metric"]))
    return None


def _curriculum(chunks: Value, stage: Value, figure: str) -> float | None:
    counts = _table8()
    rows = counts if chunks == "all" else [counts[MULTIPLIERS.index(int(chunks))]]
    if stage == "all":
        return None  # The printed totals are what the rule starts from; its rounded cells miss them by up to 6.
    column = int(stage) - 1
    found = sum(row[column] for row in rows)
    return 100 * found / sum(row[column] for row in counts) if figure == "share" else found


@cache
def _table8() -> list[list[int]]:
    return paper_table8()
