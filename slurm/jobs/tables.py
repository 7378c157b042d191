"""Draw from records: an experiment's tables and figures, those with published numbers beside ours, and the page."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from results.experiments import expansion
from results.experiments.accuracy import Table
from results.experiments.draw import draw, draw_perplexity, draw_text_ablation, memory_grids, write
from results.experiments.formats import to_markdown
from results.experiments.text_ablation import question_of
from results.latency import report as latency_report
from results.latency.journals import read
from results.records import read_records
from results.replication import draw as replication
from results.replication.layouts import Layout
from results.report import page as report
from slurm.jobs import Progress


@dataclass(frozen=True, kw_only=True)
class TablesJob:
    """Draw an experiment's tables and figures from the records below ``runs``."""

    experiment: str
    runs: Path
    out: Path

    @property
    def title(self) -> str:
        return f"draw {self.experiment}"

    def run(self, progress: Progress | None = None) -> list[Table]:
        tables, files = draw([self.runs], self.out, experiments=[self.experiment])
        write(files)
        return tables

    def said(self, result: list[Table]) -> str:
        folder = self.out / "tables"
        grids = memory_grids(read_records([self.runs]), self.experiment, folder)
        by_share = [grid for table in result for grid in expansion.grids(table, folder)]
        texts = [*(to_markdown(table, folder) for table in result)]
        texts += [grid.markdown() for grid in (*grids.values(), *by_share)]
        return "\n\n" + "\n".join(texts)


@dataclass(frozen=True, kw_only=True)
class ReplicationJob:
    """Draw the seed's and the paper's tables and figures from the records below ``runs`` and the accepted ones."""

    runs: Path
    out: Path

    @property
    def title(self) -> str:
        return "draw the seed's and the paper's tables and figures"

    def run(self, progress: Progress | None = None) -> list[Layout]:
        layouts, files = replication.draw([self.runs], self.out)
        write(files)
        return layouts

    def said(self, result: list[Layout]) -> str:
        counts = Counter(cell.status for layout in result for cell in layout.cells)
        said = ", ".join(f"{counts[status]} {status}" for status in ("measured", "computed", "not measured"))
        return f"{len(result)} tables; our cells: {said} (each says what it would take)"


@dataclass(frozen=True, kw_only=True)
class TextTablesJob:
    """Draw the tables of an experiment on text, an ablation or not, from the records below ``runs``."""

    experiment: str
    runs: Path
    out: Path

    @property
    def title(self) -> str:
        return f"draw {self.experiment}"

    def run(self, progress: Progress | None = None) -> str:
        draw_text = draw_text_ablation if question_of(self.experiment) else draw_perplexity
        files = draw_text(read_records([self.runs]), [self.runs], self.out, self.experiment)
        write(files)
        return files[self.out / "tables" / f"{self.experiment}.md"].decode()

    def said(self, result: str) -> str:
        return f"\n\n{result}"


@dataclass(frozen=True, kw_only=True)
class LatencyTablesJob:
    """Draw the table and the figure of a latency ``journal`` beside it."""

    journal: Path

    @property
    def title(self) -> str:
        return f"draw {self.journal.parent.name}"

    def run(self, progress: Progress | None = None) -> str:
        latency_report.write(self.journal, self.journal.parent)
        return latency_report.closing_table(read(self.journal))

    def said(self, result: str) -> str:
        return f"\n\n{result}"


@dataclass(frozen=True, kw_only=True)
class ReportJob:
    """Draw everything as one page in ``out``: the records below ``runs``, and the accepted ones beside."""

    runs: Path
    out: Path

    @property
    def title(self) -> str:
        return "draw the page"

    def run(self, progress: Progress | None = None) -> report.Report:
        drawn, files = report.draw([self.runs], self.out)
        write(files)
        return drawn

    def said(self, result: report.Report) -> str:
        tables = sum(len(section.tables) for section in result.sections)
        return f"{self.out}: {tables} tables, {len(result.panels.made)} measurements to open"
