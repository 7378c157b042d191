"""Everything that has published numbers beside ours, as files: the seed's and the paper's tables and figures.

Drawn from the records and latency journals below the given folders and below ``OUT/records``, the accepted ones: a run
of one's own goes before them. ``draw`` in ``results.experiments.draw`` makes the accuracy tables, without the
ledger in sight.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path

from harness.errors import InputError, unknown
from results.experiments.draw import Files
from results.ledger.entries import read_ledger
from results.painters import Drawing, Painters, drawn
from results.replication import configurations, paper_figures, paper_tables, seed_tables
from results.replication.evidence import read_evidence
from results.replication.layouts import Layout
from results.replication.published import Ledger

RESULTS = {**seed_tables.TABLES, **paper_tables.TABLES}
NAMES = (*configurations.TABLES, *RESULTS, *paper_figures.FIGURES)
NO_FACTS = f"no {configurations.FILE} in the folders of records: `refrag-bench run tiny` writes one to OUT/records"


def draw(
    records: Iterable[Path], out: Path, *, only: Sequence[str] | None = None, painters: Painters | None = None
) -> tuple[list[Layout], Files]:
    """The tables and figures named in ``only`` (None: all of ``NAMES``), and what belongs in ``out``.

    Nothing is written; where there are ``painters``, the files of figures are theirs. Raises ``InputError`` for an
    unknown name, for damaged records or journals, and for a table of configurations where nobody wrote them down
    (``left_out``, if everything was asked for).
    """
    wanted = NAMES if only is None else only
    for name in wanted:
        if name not in NAMES:
            raise unknown("table or figure", name, NAMES)
    folders = searched(records, out)
    ledger, evidence = Ledger(read_ledger()), read_evidence(folders)
    shown = evidence.of(*paper_figures.EXPERIMENTS)
    pictures: dict[Path, Drawing] = {
        out / "figures" / name: partial(paper_figures.draw, name, ledger, shown) for name in figures(only)
    }
    files: Files = drawn(pictures, painters)
    layouts = _configurations(ledger, folders, wanted, required=only is not None)
    layouts += [build(ledger, evidence) for name, build in RESULTS.items() if name in wanted]
    folder = out / "tables"
    for layout in layouts:
        grid = layout.grid(folder)
        for kind, text in (("md", grid.markdown()), ("csv", layout.csv(folder)), ("tex", grid.latex())):
            files[folder / f"{layout.name}.{kind}"] = text.encode()
    return layouts, files


def figures(only: Sequence[str] | None) -> list[str]:
    """Those of the names in ``only`` (None: of all) that are figures."""
    return [name for name in paper_figures.FIGURES if only is None or name in only]


def left_out(layouts: Iterable[Layout]) -> str | None:
    """Why ``layouts``, of everything, lack the tables of configurations; None where they do not."""
    drawn = {layout.name for layout in layouts}
    return None if configurations.TABLES.keys() <= drawn else f"tables of configurations left out, {NO_FACTS}"


def _configurations(ledger: Ledger, folders: Sequence[Path], wanted: Sequence[str], *, required: bool) -> list[Layout]:
    asked = [build for name, build in configurations.TABLES.items() if name in wanted]
    path = configurations.find(folders)
    if path is None:
        if asked and required:
            raise InputError(NO_FACTS)
        return []
    facts = configurations.read(path)
    return [build(ledger, facts) for build in asked]


def searched(records: Iterable[Path], out: Path) -> list[Path]:
    """The folders in the order in which they are searched, the accepted records last."""
    accepted = [out / "records"] if (out / "records").is_dir() else []
    return list({folder.resolve(): folder for folder in (*records, *accepted)}.values())
