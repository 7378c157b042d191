"""Draw tables and figures from records."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from results.draw import draw, write
from results.formats import to_markdown
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
