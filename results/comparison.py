"""Is one way of answering better than another, on the same questions? Paired tests as a table."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from harness.files import write_atomically
from results.cost import SCORES
from results.formats import Grid, percent

NOTES = (
    "Difference: in points, with the 95 % interval of a paired bootstrap that resamples whole questions (the seeds of "
    "a question are not independent); p: two-sided, Holm's over this table.",
    "Detectable: the smallest difference that so many questions, as noisy as these, would have shown in 80 % of "
    "repetitions.",
)


def write_comparison(document: Mapping[str, Any], out: Path) -> None:
    """The tests of a comparison as Markdown and LaTeX below ``out/tables``, and itself below ``out/records``."""
    grid = to_grid(document)
    name = document["name"]
    files = {
        out / "tables" / f"{name}.md": grid.markdown(),
        out / "tables" / f"{name}.tex": grid.latex(),
        out / "records" / "comparisons" / name / "comparison.json": json.dumps(document, indent=1) + "\n",
    }
    for path, text in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, text)


def to_grid(document: Mapping[str, Any]) -> Grid:
    """One line per test."""
    lines = []
    for test in document["tests"]:
        a, b = ([percent(mean) for mean in document["means"][test[side]][test["figure"]]] for side in ("a", "b"))
        lines.append(
            [
                f"{test['a']} - {test['b']}",
                SCORES.get(test["figure"], test["figure"]),
                " / ".join(a),
                " / ".join(b),
                f"{100 * test['difference']:+z.1f} [{100 * test['low']:+z.1f}, {100 * test['high']:+z.1f}]",
                f"{test['p_holm']:.2g}",
                "-" if test["detectable"] is None else f"{100 * test['detectable']:.1f}",
                str(test["n"]),
            ]
        )
    return Grid(
        title=f"{document['name']}: paired differences",
        head=["Contrast", "Figure", "First, by seed", "Second, by seed", "Difference", "p", "Detectable", "Questions"],
        lines=lines,
        notes=NOTES,
    )
