"""Is one way of answering better than another, on the same questions? Paired tests as a table."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from harness.errors import InputError
from harness.files import write_atomically
from results.cost import COUNTS, SCORES
from results.formats import Grid, percent

HEAD = ("Contrast", "Figure", "First, by seed", "Second, by seed", "Difference", "p", "Detectable", "Questions")
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


def run_names(folders: Iterable[Path], experiments: Iterable[str]) -> dict[str, dict[str, str]]:
    """What the comparisons of each experiment call its runs, by run id: the way, and which seed where it has several.

    Raises ``InputError`` for a damaged file.
    """
    found: dict[str, dict[str, str]] = {experiment: {} for experiment in experiments}
    for path in (path for folder in folders for path in sorted(folder.rglob("comparison.json"))):
        try:
            document = json.loads(path.read_bytes())
            for names in (names for name, names in found.items() if document["name"].startswith(f"{name}-")):
                for way, runs in document["runs"].items():
                    for seed, run_id in enumerate(runs):
                        names.setdefault(run_id, f"{way}, seed {seed}" if len(runs) > 1 else way)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(f"{path} is no comparison: {error}") from None
    return found


def to_grid(document: Mapping[str, Any]) -> Grid:
    """One line per test; what its document has ``beside``, as means of the two sides."""
    beside = document.get("beside", ())  # documents of before it have none
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
                *(_sides(document["means"], test, figure) for figure in beside),
            ]
        )
    return Grid(
        title=f"{document['name']}: paired differences",
        head=[*HEAD, *(COUNTS[figure] for figure in beside)],
        lines=lines,
        notes=NOTES,
    )


def _sides(means: Mapping[str, Any], test: Mapping[str, Any], figure: str) -> str:
    """Mean counts of the first and of the second, by seed."""
    return " against ".join(" / ".join(f"{mean:.1f}" for mean in means[test[side]][figure]) for side in ("a", "b"))
