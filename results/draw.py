"""From records to files: every table and figure of an experiment, all drawn before the first file is touched."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from harness.data.passkey import TRAINED_LENGTH
from harness.data.world.links import TRAINED_DISTANCE
from harness.errors import InputError
from harness.files import write_atomically
from results import figures, formats, memory, memory_figure, tables
from results.cost import build_cost_table, to_csv, to_grid
from results.records import Record, read_records

Files = dict[Path, bytes]


def draw(
    records: Iterable[Path], out: Path, *, experiment: str | None = None, metric: str = "em"
) -> tuple[list[tables.Table], Files]:
    """The accuracy tables of ``experiment`` (None: each that has records), and all files that belong in ``out``.

    Nothing is written: that is for ``write``, once everything has been drawn. Raises ``InputError`` where no record
    answers questions.
    """
    found = read_records(records)
    remembered = [name for name in memory.experiments(found) if experiment in (None, name)]
    answered = tables.experiments(found)
    names = [name for name in ([experiment] if experiment else answered) if name in answered or name not in remembered]
    if not names and not remembered:
        raise InputError(
            f"none of the {len(found)} records answers questions, so there is no accuracy table to draw; "
            f"suites with one: {', '.join(tables.QA_SUITES)}"
        )
    drawn = [tables.build_table(found, experiment=name, metric=metric) for name in names]
    files: Files = {}
    folder = out / "tables"
    for table in drawn:
        stem = table.experiment if metric == "em" else f"{table.experiment}-{metric}"
        for kind, form in (("md", formats.to_markdown), ("csv", formats.to_csv), ("tex", formats.to_latex)):
            files[folder / f"{stem}.{kind}"] = form(table, folder).encode()
        for kind, picture in figures.draw_figure(table).items():
            files[out / "figures" / f"{stem}.{kind}"] = picture
        if cost := build_cost_table(found, table.experiment):
            grid = to_grid(cost, folder)
            for kind, text in (("md", grid.markdown()), ("tex", grid.latex()), ("csv", to_csv(cost))):
                files[folder / f"{cost.name}.{kind}"] = text.encode()
    for name in remembered:
        files |= _memory_files(found, name, out)
    return drawn, files


def memory_grids(records: Sequence[Record], experiment: str, folder: Path) -> dict[str, formats.Grid]:
    """The tables of passkeys and look-ups by name, for a document in ``folder``."""
    grids: dict[str, formats.Grid] = {}
    for keys in memory.key_counts(records, experiment):
        lines = memory.passkey_lines(records, experiment, keys=keys)
        stem = experiment if keys == 1 else f"{experiment}-{keys}-keys"
        grids[stem] = memory.by_length(lines, experiment, keys, TRAINED_LENGTH, folder)
        if keys == 1 and (equal := memory.at_equal_positions(lines, experiment, folder)):
            grids[f"{stem}-positions"] = equal
    for steps in memory.step_counts(records, experiment):
        lines = memory.long_range_lines(records, experiment, steps=steps)
        name = f"{experiment}-long-range-{steps}"
        grids[name] = memory.by_distance(lines, experiment, steps, TRAINED_DISTANCE, folder)
    return grids


def _memory_files(records: Sequence[Record], experiment: str, out: Path) -> Files:
    folder = out / "tables"
    files: Files = {folder / f"{experiment}.csv": memory.to_csv(records, experiment).encode()}
    for stem, grid in memory_grids(records, experiment, folder).items():
        files |= {folder / f"{stem}.md": grid.markdown().encode(), folder / f"{stem}.tex": grid.latex().encode()}
    pictures: dict[str, dict[str, bytes]] = {}
    for keys in memory.key_counts(records, experiment):
        lines = memory.passkey_lines(records, experiment, keys=keys)
        stem = experiment if keys == 1 else f"{experiment}-{keys}-keys"
        pictures[stem] = memory_figure.draw_heat_map(lines, TRAINED_LENGTH)
    if steps := memory.step_counts(records, experiment):
        panels = {n: memory.long_range_lines(records, experiment, steps=n) for n in steps}
        pictures[f"{experiment}-long-range"] = memory_figure.draw_distances(panels, TRAINED_DISTANCE)
    return files | {
        out / "figures" / f"{stem}.{kind}": picture
        for stem, kinds in pictures.items()
        for kind, picture in kinds.items()
    }


def cost_texts(records: Iterable[Path], folder: Path, experiments: Iterable[str]) -> dict[str, str]:
    """The cost tables of those experiments that have one, as Markdown for a document in ``folder``, by name."""
    found = read_records(records)
    costs = [build_cost_table(found, name) for name in experiments]
    return {cost.name: to_grid(cost, folder).markdown() for cost in costs if cost}


def write(files: Mapping[Path, bytes]) -> None:
    """Write ``files`` and say so on standard error."""
    for path, content in files.items():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except FileExistsError:
            raise InputError(f"{path.parent} is a file; expected a folder to write {path.name} to") from None
        write_atomically(path, content)
        print(f"wrote {path}", file=sys.stderr)
