"""Draw tables and figures from records."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from results.draw import draw, draw_perplexity, write
from results.formats import to_markdown
from results.records import read_records
from results.tables import Table
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
        tables, files = draw([self.runs], self.out, experiment=self.experiment)
        write(files)
        return tables

    def said(self, result: list[Table]) -> str:
        return "\n\n" + "\n".join(to_markdown(table, self.out / "tables") for table in result)


@dataclass(frozen=True, kw_only=True)
class PerplexityTablesJob:
    """Draw the tables of an experiment that measures log-perplexity from the records below ``runs``."""

    experiment: str
    runs: Path
    out: Path

    @property
    def title(self) -> str:
        return f"draw {self.experiment}"

    def run(self, progress: Progress | None = None) -> str:
        files = draw_perplexity(read_records([self.runs]), [self.runs], self.out, self.experiment)
        write(files)
        return files[self.out / "tables" / f"{self.experiment}.md"].decode()

    def said(self, result: str) -> str:
        return f"\n\n{result}"
