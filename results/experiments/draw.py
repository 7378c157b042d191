"""From records to files: every table and figure of an experiment, all drawn before the first file is touched."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path

from harness.data.passkey import TRAINED_LENGTH
from harness.data.sources import DataRoot, load_questions
from harness.data.world.links import TRAINED_DISTANCE
from harness.errors import InputError
from harness.files import write_atomically
from results.experiments import (
    accuracy,
    dots_figure,
    expansion,
    expansion_figure,
    formats,
    memory,
    memory_figure,
    passages_figure,
    perplexity,
    perplexity_figure,
    popularity,
    text_ablation,
)
from results.experiments.comparison import draw_comparisons, run_names
from results.experiments.cost import build_cost_table, to_csv, to_grid
from results.grids import Grid
from results.painters import Drawing, Painters, drawn
from results.records import Record, read_records

Files = dict[Path, bytes]


def draw(
    records: Iterable[Path],
    out: Path,
    *,
    experiments: Sequence[str] | None = None,
    metric: str = "em",
    painters: Painters | None = None,
) -> tuple[list[accuracy.Table], Files]:
    """The accuracy tables of ``experiments`` (None: each that has records), and all files that belong in ``out``.

    Experiments that measure log-perplexity have tables of another kind: they are among the files alone. Nothing is
    written: that is for ``write``, once everything has been drawn; where there are ``painters``, the files of figures
    are theirs. Raises ``InputError`` where no record answers questions or scores windows.
    """
    folders = list(records)
    found = read_records(folders)
    answered, *others = _experiments(found, metric)
    scored, ablated, remembered = others
    wanted = [name for kind in (answered, *others) for name in kind] if experiments is None else experiments
    names = [name for name in wanted if name in answered or not any(name in kind for kind in others)]
    files: Files = {}
    for name in scored:
        if name in wanted:
            files |= draw_perplexity(found, folders, out, name, painters)
    for name in ablated:
        if name in wanted:
            files |= draw_text_ablation(found, folders, out, name)
    for name in remembered:
        if name in wanted:
            files |= memory_files(found, name, out, painters, stem=f"{name}-memory" if name in answered else name)
    if files and not names:
        return [], files
    if not names:
        raise InputError(
            f"none of the {len(found)} records answers questions, so there is no accuracy table to draw; "
            f"suites with one: {', '.join(accuracy.suites_of(metric))}"
        )
    built, called = {}, run_names(folders, names)
    for name in names:
        table = accuracy.build_table(found, experiment=name, metric=metric, called=called[name])
        stem = name if metric == "em" else f"{name}-{metric}"
        files |= drawn({out / "figures" / stem: partial(picture_of, table)}, painters)
        built[stem] = table
    folder = out / "tables"
    for stem, table in built.items():
        for kind, form in (("md", formats.to_markdown), ("csv", formats.to_csv), ("tex", formats.to_latex)):
            files[folder / f"{stem}.{kind}"] = form(table, folder).encode()
        if by_share := expansion.grids(table, folder):
            texts = {
                "md": "\n".join(grid.markdown() for grid in by_share),
                "tex": "\n".join(grid.latex() for grid in by_share),
                "csv": expansion.to_csv(table),
            }
            files |= {folder / f"{stem}-shares.{kind}": text.encode() for kind, text in texts.items()}
        if cost := build_cost_table(found, table.experiment):
            grid = to_grid(cost, folder)
            for kind, text in (("md", grid.markdown()), ("tex", grid.latex()), ("csv", to_csv(cost))):
                files[folder / f"{cost.name}.{kind}"] = text.encode()
    return [*built.values()], files | draw_comparisons(folders, out, names)


def picture_of(table: accuracy.Table) -> dict[str, bytes]:
    """The figure of an accuracy table: against the share of chunks expanded where it varies, else against passages.

    Where there is one number of passages a line a row.
    """
    if curves := expansion.curves(table):
        return expansion_figure.draw_figure(curves, table.metric)
    if len(table.rows) > 1 and len({row.passages for row in table.rows}) == 1:
        return dots_figure.draw_figure(table)
    return passages_figure.draw_figure(table)


def draw_perplexity(
    found: Sequence[Record], folders: Iterable[Path], out: Path, experiment: str, painters: Painters | None = None
) -> Files:
    """The tables and the figure of an experiment that measures log-perplexity."""
    folder = out / "tables"
    built = perplexity.build(found, folders, experiment=experiment)
    grids = perplexity.to_grids(built, folder)
    texts = {
        "md": "\n".join(grid.markdown() for grid in grids),
        "tex": "\n".join(grid.latex() for grid in grids),
        "csv": perplexity.to_csv(built),
    }
    files = {folder / f"{experiment}.{kind}": text.encode() for kind, text in texts.items()}
    return files | drawn({out / "figures" / experiment: partial(perplexity_figure.draw_figure, built)}, painters)


def draw_text_ablation(found: Sequence[Record], folders: Iterable[Path], out: Path, experiment: str) -> Files:
    """The tables of an ablation on text."""
    folder = out / "tables"
    grids = text_ablation.to_grids(text_ablation.build(found, folders, experiment=experiment), folder)
    texts = {"md": "\n".join(g.markdown() for g in grids), "tex": "\n".join(g.latex() for g in grids)}
    return {folder / f"{experiment}.{kind}": text.encode() for kind, text in texts.items()}


def experiments(records: Iterable[Path], metric: str = "em") -> list[str]:
    """The experiments that ``records`` belong to and that have tables."""
    found = read_records(records)
    return list(dict.fromkeys(name for kind in _experiments(found, metric) for name in kind))


def _experiments(found: Sequence[Record], metric: str) -> tuple[list[str], list[str], list[str], list[str]]:
    """Those that answer questions, that score windows, that ablate a training on text, and that remember."""
    return (
        accuracy.experiments(found, metric),
        perplexity.experiments(found),
        text_ablation.experiments(found),
        memory.experiments(found),
    )


def popularity_files(
    records: Iterable[Path], out: Path, data: Path, *, experiments: Sequence[str], metric: str = "em"
) -> Files:
    """PopQA by popularity, of each of ``experiments`` that asked it; questions are those of the data root ``data``.

    Raises ``InputError`` where none did.
    """
    found = read_records(records)
    questions, source = load_questions(popularity.SUITE, DataRoot.open(data))
    known = {question.id: question.meta["s_pop"] for question in questions}
    folder = out / "tables"
    files: Files = {}
    for name in experiments:
        grid = popularity.popularity_grid(found, known, source.revision, experiment=name, metric=metric, folder=folder)
        if grid:
            stem = f"{name}-popularity" if metric == "em" else f"{name}-popularity-{metric}"
            for kind, text in (("md", grid.markdown()), ("tex", grid.latex()), ("csv", grid.csv())):
                files[folder / f"{stem}.{kind}"] = text.encode()
    if not files:
        raise InputError(f"no record of {', '.join(experiments)} asks PopQA, so there is nothing to draw by popularity")
    return files


def memory_grids(
    records: Sequence[Record], experiment: str, folder: Path, *, stem: str | None = None
) -> dict[str, Grid]:
    """The tables of passkeys and look-ups by name, for a document in ``folder``.

    ``stem`` begins the names of passkeys' (None: the experiment does, which has no accuracy table of that name then).
    """
    grids: dict[str, Grid] = {}
    first = stem or experiment
    for keys in memory.key_counts(records, experiment):
        lines = memory.passkey_lines(records, experiment, keys=keys)
        name = first if keys == 1 else f"{first}-{keys}-keys"
        grids[name] = memory.by_length(lines, experiment, keys, TRAINED_LENGTH, folder)
        if keys == 1 and (equal := memory.at_equal_positions(lines, experiment, folder)):
            grids[f"{name}-positions"] = equal
    for steps in memory.step_counts(records, experiment):
        lines = memory.long_range_lines(records, experiment, steps=steps)
        name = f"{experiment}-long-range-{steps}"
        grids[name] = memory.by_distance(lines, experiment, steps, TRAINED_DISTANCE, folder)
    return grids


def memory_files(
    records: Sequence[Record], experiment: str, out: Path, painters: Painters | None = None, *, stem: str | None = None
) -> Files:
    """Those of passkeys and look-ups by name; ``stem`` as of ``memory_grids``."""
    folder = out / "tables"
    stem = stem or experiment
    files: Files = {folder / f"{stem}.csv": memory.to_csv(records, experiment).encode()}
    for name, grid in memory_grids(records, experiment, folder, stem=stem).items():
        files |= {folder / f"{name}.md": grid.markdown().encode(), folder / f"{name}.tex": grid.latex().encode()}
    pictures: dict[Path, Drawing] = {}
    for keys in memory.key_counts(records, experiment):
        lines = memory.passkey_lines(records, experiment, keys=keys)
        name = stem if keys == 1 else f"{stem}-{keys}-keys"
        pictures[out / "figures" / name] = partial(memory_figure.draw_heat_map, lines, TRAINED_LENGTH)
    if steps := memory.step_counts(records, experiment):
        panels = {n: memory.long_range_lines(records, experiment, steps=n) for n in steps}
        pictures[out / "figures" / f"{experiment}-long-range"] = partial(
            memory_figure.draw_distances, panels, TRAINED_DISTANCE
        )
    return files | drawn(pictures, painters)


def cost_texts(records: Iterable[Path], folder: Path, names: Iterable[str]) -> dict[str, str]:
    """The cost tables of those experiments that have one, as Markdown for a document in ``folder``, by name."""
    found = read_records(records)
    costs = [build_cost_table(found, name) for name in names]
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
