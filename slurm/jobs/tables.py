"""Draw tables and figures from records."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from results.draw import draw, memory_grids, write
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
        folder = self.out / "tables"
        grids = memory_grids(read_records([self.runs]), self.experiment, folder)
        texts = [*(to_markdown(table, folder) for table in result), *(grid.markdown() for grid in grids.values())]
        return "\n\n" + "\n".join(texts)
