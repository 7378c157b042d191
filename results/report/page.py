"""Everything that was measured, on one page that needs nothing but a browser: what goes in, and the page itself.

Experiments, and with them paired differences and latency, are drawn from the given folders, and where those have none
of an experiment, from the accepted records beside the page. What has published numbers beside ours is drawn from both,
a run of one's own first. All texts are escaped, scripts other than the page's own are forbidden by its policy, and the
same records give the same bytes.
"""

from __future__ import annotations

import base64
import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from markupsafe import Markup

from harness.errors import InputError
from results.experiments import expansion, memory, perplexity, perplexity_figure, text_ablation
from results.experiments.accuracy import QA_SUITES, build_table, experiments
from results.experiments.comparison import damage_named, read_comparisons, run_names
from results.experiments.cost import build_cost_table
from results.experiments.draw import memory_files, memory_grids, picture_of
from results.latency import figure as latency_figure
from results.latency import report as latency_report
from results.ledger import claims
from results.ledger.entries import SOURCE_CLASSES, read_ledger
from results.ledger.measured import holds_measurements, read_measured
from results.ledger.verdicts import VERDICTS, Verdict, judge
from results.pages import page
from results.records import Record, read_each, read_records
from results.replication import configurations
from results.replication import draw as replication
from results.replication.evidence import read_evidence
from results.report.examples import Journals
from results.report.figures import inline
from results.report.panels import Panels, as_json
from results.report.tables import PageTable, of_accuracy, of_comparison, of_cost, of_grid, of_latency, of_layout

# What a reader comes for stands first, the others after it by name.
MAIN = ("tiny-systems", "tiny", "tiny-selection", "expansion")
TEMPLATE = Path(__file__).parent / "report.html.jinja"
SCRIPT = TEMPLATE.with_name("report.js")


@dataclass(frozen=True, kw_only=True)
class PageFigure:
    """A figure; ``name`` is that of its files."""

    name: str
    title: str
    svg: Markup


@dataclass(frozen=True, kw_only=True)
class Section:
    """Tables and figures under one heading."""

    name: str
    title: str
    tables: Sequence[PageTable]
    figures: Sequence[PageFigure]


@dataclass(frozen=True, kw_only=True)
class Report:
    """All that is on the page. ``left_out`` says what could not be drawn."""

    sections: Sequence[Section]
    verdicts: Sequence[Verdict]
    panels: Panels
    left_out: str | None

    @cached_property
    def counts(self) -> Sequence[tuple[str, str, Mapping[str, int]]]:
        """Each verdict with its meaning and its entries by source class."""
        by_verdict = {verdict: Counter[str]() for verdict in VERDICTS}
        for verdict in self.verdicts:
            by_verdict[verdict.verdict][verdict.entry.source_class] += 1
        return [(verdict, VERDICTS[verdict], counts) for verdict, counts in by_verdict.items()]

    @property
    def classes(self) -> Mapping[str, str]:
        return SOURCE_CLASSES


def draw(records: Iterable[Path], out: Path) -> tuple[Report, dict[Path, bytes]]:
    """The page of the records below ``records`` and ``out``'s accepted ones, and what belongs in the file ``out``.

    Nothing is written. Raises ``InputError`` where no record answers questions, and for damaged files.
    """
    report = gather(list(records), out.parent)
    return report, {out: to_html(report).encode(errors="replace")}  # a journal can say half a character


def gather(folders: Sequence[Path], home: Path) -> Report:
    """Everything for a page in ``home``."""
    own, accepted = read_each([folders, _accepted(home)], read_records)
    found = {record.path: record for record in (*own, *accepted)}
    panels = Panels(records=found, journals=Journals(folders), folder=home)
    everywhere = replication.searched(folders, home)
    sections = [*_experiments(own, accepted, panels, everywhere)]
    if not sections:
        raise InputError(f"none of the {len(own)} records answers questions; suites that do: {', '.join(QA_SUITES)}")
    sections += [
        *_windows(own, accepted, panels, everywhere),
        *_text_ablations(own, accepted, panels, everywhere),
        *_memory(own, accepted, panels),
    ]
    if differences := [*_differences(everywhere, panels)]:
        sections.append(Section(name="differences", title="Paired differences", tables=differences, figures=[]))
    sections += _latency(everywhere, panels)
    layouts, files = replication.draw(folders, home)
    pictures = {path.stem: content for path, content in files.items() if path.suffix == ".svg"}
    measured = [figure for folder in everywhere if holds_measurements(folder) for figure in read_measured(folder)]
    verdicts = list(judge(read_ledger(), measured))
    for name, title in (("seed", "The seed's tables"), ("paper", "The paper's tables and figures")):
        tables = [of_layout(layout, panels) for layout in layouts if layout.name.startswith(f"{name}-")]
        drawn = [_figure(stem, svg) for stem, svg in pictures.items() if stem.startswith(f"{name}-")]
        sections.append(Section(name=name, title=title, tables=tables, figures=drawn))
    if made := [of_layout(layout, panels) for layout in layouts if layout.name in configurations.TABLES]:
        sections.append(Section(name="configurations", title="What each system is made of", tables=made, figures=[]))
    claimed = of_grid("claims", claims.claims_table(verdicts, home), panels)
    sections.append(Section(name="the-claims", title="The seed's claims", tables=[claimed], figures=[]))
    return Report(sections=sections, verdicts=verdicts, panels=panels, left_out=replication.left_out(layouts))


def to_html(report: Report) -> str:
    """The page."""
    script = SCRIPT.read_text(encoding="utf-8")
    allowed = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return page(TEMPLATE, it=report, data=as_json(report.panels), script=Markup(script), allowed=allowed)


def _accepted(home: Path) -> list[Path]:
    """The folder of accepted records, where there are any."""
    folder = home / "records"  # another home than the project's may hold configurations.json alone
    return [folder] if next(folder.rglob("record.json"), None) else []


def _experiments(
    own: Sequence[Record], accepted: Sequence[Record], panels: Panels, folders: Sequence[Path]
) -> Iterator[Section]:
    found = dict(_first(own, accepted, experiments))
    called = run_names(folders, found)
    for name, records in found.items():
        table = build_table(records, experiment=name, called=called[name])
        costs = build_cost_table(records, name)
        by_share = [
            of_grid(f"{name}-shares-{place}", grid, panels)
            for place, grid in enumerate(expansion.grids(table, panels.folder), start=1)
        ]
        yield Section(
            name=f"experiment-{name}",
            title=f"Experiment {name}",
            tables=[of_accuracy(table, panels), *([of_cost(costs, panels)] if costs else []), *by_share],
            figures=[_figure(name, picture_of(table)["svg"])],
        )


def _windows(
    own: Sequence[Record], accepted: Sequence[Record], panels: Panels, folders: Sequence[Path]
) -> Iterator[Section]:
    """Log-perplexity, and the published tables that it has the layout of."""
    for name, records in _first(own, accepted, perplexity.experiments):
        built = perplexity.build(records, folders, experiment=name)
        grids = perplexity.to_grids(built, panels.folder)
        yield Section(
            name=f"experiment-{name}",
            title=f"Experiment {name}",
            tables=[of_grid(f"{name}-{place}", grid, panels) for place, grid in enumerate(grids, start=1)],
            figures=[_figure(name, perplexity_figure.draw_figure(built)["svg"])],
        )


def _text_ablations(
    own: Sequence[Record], accepted: Sequence[Record], panels: Panels, folders: Sequence[Path]
) -> Iterator[Section]:
    """What changes of the training do on real text."""
    for name, records in _first(own, accepted, text_ablation.experiments):
        grids = text_ablation.to_grids(text_ablation.build(records, folders, experiment=name), panels.folder)
        yield Section(
            name=f"experiment-{name}",
            title=f"Experiment {name}",
            tables=[of_grid(f"{name}-{place}", grid, panels) for place, grid in enumerate(grids, start=1)],
            figures=[],
        )


def _memory(own: Sequence[Record], accepted: Sequence[Record], panels: Panels) -> Iterator[Section]:
    """Pass keys and look-ups."""
    for name, records in _first(own, accepted, memory.experiments):
        grids = memory_grids(records, name, panels.folder)
        drawn = memory_files(records, name, panels.folder)
        yield Section(
            name=f"experiment-{name}",
            title=f"Experiment {name}",
            tables=[of_grid(stem, grid, panels) for stem, grid in grids.items()],
            figures=[_figure(path.stem, svg) for path, svg in drawn.items() if path.suffix == ".svg"],
        )


def _first(
    own: Sequence[Record], accepted: Sequence[Record], experiments_of: Callable[[Sequence[Record]], list[str]]
) -> Iterator[tuple[str, Sequence[Record]]]:
    """Each experiment with the records that it is drawn from: one's own, else the accepted."""
    mine = experiments_of(own)
    names = dict.fromkeys([*mine, *experiments_of(accepted)])
    for name in sorted(names, key=lambda name: (name not in mine, MAIN.index(name) if name in MAIN else len(MAIN))):
        yield name, own if name in mine else accepted


def _differences(folders: Iterable[Path], panels: Panels) -> Iterator[PageTable]:
    seen: set[str] = set()
    for found in read_comparisons(folders):
        if found.name not in seen:
            seen.add(found.name)
            with damage_named(found.path):
                table = of_comparison(found.path, found.document, panels)
            yield table


def _latency(folders: Iterable[Path], panels: Panels) -> Iterator[Section]:
    journals = {path.resolve(): journal for path, journal in read_evidence(folders).journals if journal.lines}
    for place, (path, journal) in enumerate(journals.items(), start=1):
        name = f"latency-{place}"
        grids = latency_report.grids(journal)
        yield Section(
            name=f"journal-{place}",
            title=f"Latency, {journal.header['device']}, {journal.header['dtype']}",
            tables=[of_latency(f"{name}-{batch}", grid, path, panels) for batch, grid in enumerate(grids, start=1)],
            figures=[_figure(name, latency_figure.draw(journal)["svg"])],
        )


def _figure(name: str, svg: bytes) -> PageFigure:
    title = f"Figure {name}"
    return PageFigure(name=name, title=title, svg=inline(svg, name, title))
