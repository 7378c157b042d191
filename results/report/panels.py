"""What opens when a measured cell is asked where it comes from? The record, in full, with a few of its examples.

A panel is plain data: the page carries all of them as JSON and draws one when it is asked for.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from results.experiments.accuracy import METRICS, QA_SUITES, Row
from results.experiments.variants import flat
from results.grids import link
from results.records import Record
from results.report.examples import Journals

Group = tuple[str, list[tuple[str, str]]]
LONGEST = 24  # values of one list; a latency journal's header holds samples


@dataclass(frozen=True)
class Panels:
    """Panels by the file they are of, made when they are first asked for; ``folder`` is where the page will lie."""

    records: Mapping[Path, Record]
    journals: Journals
    folder: Path
    made: dict[Path, dict[str, Any]] = field(default_factory=dict)

    def number(self, path: Path) -> int | None:
        """The place of the panel of ``path`` among ``made``; None for a file that is no measurement."""
        path = path.resolve()
        if path not in self.made:
            if record := self.records.get(path):
                self.made[path] = self._of_record(record)
            elif path.suffix in (".json", ".jsonl") and path.is_file():
                self.made[path] = self._of_file(path)
            else:
                return None
        return list(self.made).index(path)

    def _of_record(self, record: Record) -> dict[str, Any]:
        row = Row(system=record.system, variant="", passages=record.passages)
        suite = QA_SUITES.get(record.suite, record.suite)
        examples = self.journals.of(record)
        run = [
            ("run id", record.run_id),
            ("record", link(record.path, self.folder)),
            ("experiments", ", ".join(record.experiments)),
            ("examples", f"{record.n_examples:,}"),
            ("of them raised an error", f"{record.n_errors:,}"),
            ("without a gold answer", f"{record.n_empty_golds:,}"),
        ]
        return {
            "title": f"{row.name}: {suite} ({record.root}), {row.context}{' passages' if record.passages else ''}",
            "groups": [
                ("Run", run),
                ("Settings", list(flat(record.spec))),
                ("Times, in seconds and bytes", _facts(record.timings)),
                ("Provenance", _facts(record.provenance)),
            ],
            "metrics": [
                (name, METRICS.get(name, ""), *(f"{x:,.5g}" for x in (m.mean, m.low, m.high)), f"{m.n:,}", m.method)
                for name, m in record.metrics.items()
            ],
            "notes": record.notes,
            "said": examples.said,
            "examples": examples.shown,
        }

    def _of_file(self, path: Path) -> dict[str, Any]:
        """A latency journal's header, or all of another document."""
        text = path.read_text(encoding="utf-8")
        document = json.loads(text.partition("\n")[0] if path.suffix == ".jsonl" else text)
        where = link(path, self.folder)
        return {
            "title": path.parent.name + "/" + path.name,
            "groups": [("File", [("path", where)]), ("Contents", _facts(document))],
            "metrics": [],
            "notes": [],
            "said": "",
            "examples": [],
        }


def _facts(document: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [(key, value) for key, value in flat({k: _short(v) for k, v in document.items()})]


def _short(value: Any) -> Any:
    """``value`` with long lists cut, and numbers as people read them."""
    match value:
        case dict():
            return {key: _short(item) for key, item in value.items()}
        case list():
            cut = [_short(item) for item in value[:LONGEST]]
            return cut if len(value) <= LONGEST else [*cut, f"… {len(value):,} in all"]
        case float():
            return float(f"{value:.6g}")
        case _:
            return value


def as_json(panels: Panels) -> Mapping[str, Any]:
    """What the page's script reads."""
    passages: Iterable[Sequence[str]] = panels.journals.texts
    return {"panels": list(panels.made.values()), "passages": [list(passage) for passage in passages]}
