"""Is one way of answering better than another, on the same questions? Paired tests as a table."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.errors import InputError
from harness.files import is_file_name, write_atomically
from results.experiments.cost import COUNTS, SCORES
from results.grids import Grid, percent

HEAD = ("Contrast", "Figure", "First, by seed", "Second, by seed", "Difference", "p", "Detectable", "Questions")
NOTES = (
    "Difference: in points, with the 95 % interval of a paired bootstrap that resamples whole questions (the seeds of "
    "a question are not independent); p: two-sided, Holm's over this table.",
    "Detectable: the smallest difference that so many questions, as noisy as these, would have shown in 80 % of "
    "repetitions.",
)


FILE = "comparison.json"


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What ``slurm.jobs.compare`` left: ``document`` has the means of each way by seed, and the paired tests.

    Or ``slurm.jobs.differences``, where ``document`` names its runs.
    """

    path: Path
    document: Mapping[str, Any]

    @property
    def name(self) -> str:
        return str(self.document["name"])


def read_comparisons(folders: Iterable[Path], file: str = FILE) -> Iterator[Comparison]:
    """Every one below ``folders``, in their order. Raises ``InputError`` for a damaged file."""
    for path in (path for folder in folders for path in sorted(folder.rglob(file))):
        with damage_named(path):
            found = Comparison(path=path, document=json.loads(path.read_bytes()))
            if not is_file_name(found.name):
                raise ValueError(f"{found.name!r} is no name of a file")
        yield found


@contextmanager
def damage_named(path: Path) -> Iterator[None]:
    """What is missing in a document, or of another kind than it should be, is an ``InputError`` that names its file."""
    try:
        yield
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path} is no comparison: {type(error).__name__}: {error}") from None


def write_comparison(document: Mapping[str, Any], out: Path) -> None:
    """The tests of a comparison as Markdown and LaTeX below ``out/tables``, and itself below ``out/records``."""
    record = out / "records" / "comparisons" / document["name"] / FILE
    files = _tables(document, out) | {record: (json.dumps(document, indent=1) + "\n").encode()}
    for path, text in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, text)


def draw_comparisons(folders: Iterable[Path], out: Path, experiments: Sequence[str]) -> dict[Path, bytes]:
    """The tables of the comparisons that belong to ``experiments``; of two by one name the first."""
    drawn: dict[Path, bytes] = {}
    for found in read_comparisons(folders):
        if any(found.name.startswith(f"{experiment}-") for experiment in experiments):
            with damage_named(found.path):
                drawn = _tables(found.document, out) | drawn
    return drawn


def _tables(document: Mapping[str, Any], out: Path) -> dict[Path, bytes]:
    grid, stem = to_grid(document), out / "tables" / document["name"]
    return {
        stem.with_name(f"{stem.name}.md"): grid.markdown().encode(),
        stem.with_name(f"{stem.name}.tex"): grid.latex().encode(),
    }


def run_names(folders: Iterable[Path], experiments: Iterable[str]) -> dict[str, dict[str, str]]:
    """What the comparisons of each experiment call its runs, by run id: the way, and which seed where it has several.

    Raises ``InputError`` for a damaged file.
    """
    named: dict[str, dict[str, str]] = {experiment: {} for experiment in experiments}
    for found in read_comparisons(folders):
        with damage_named(found.path):
            for names in (names for experiment, names in named.items() if found.name.startswith(f"{experiment}-")):
                for way, runs in found.document["runs"].items():
                    for seed, run_id in enumerate(runs):
                        names.setdefault(run_id, f"{way}, seed {seed}" if len(runs) > 1 else way)
    return named


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
