"""Ablations on real text: what one change of the training does to the log-perplexity of the same tokens.

An experiment is one question of the paper's Tables 11 to 13 in small: every line a training or a choice of chunks,
named by the file of its paired differences, for no setting of a run tells the lines apart.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.errors import InputError
from results.experiments import perplexity
from results.grids import Grid
from results.records import Record

# Experiments by their stem, and which words follow it: nothing, or the scale.
QUESTIONS: Mapping[str, str] = {
    "text_order": "The paper's Table 12 in small, on real language: does reconstruction before CPT matter?",
    "text_curriculum": "The paper's Table 11 in small, on real language: does the curriculum of reconstruction matter?",
    "text_policy": "The paper's Table 13 in small, on real language: REFRAG_16 with a policy against REFRAG_8",
}
DIFFERENCES = perplexity.DIFFERENCES


@dataclass(frozen=True, kw_only=True)
class Ablation:
    """The records of an experiment by set and line, in the order of its file, and the paired differences."""

    experiment: str
    records: Mapping[tuple[str, str], Record]
    tests: Sequence[Mapping[str, Any]]

    @property
    def lines(self) -> list[str]:
        return list(dict.fromkeys(name for _, name in self.records))

    @property
    def sets(self) -> list[str]:
        return sorted(dict.fromkeys(set_ for set_, _ in self.records))

    @property
    def suite(self) -> Mapping[str, Any]:
        found: Mapping[str, Any] = next(iter(self.records.values())).spec["suite"]
        return found


def experiments(records: Iterable[Record]) -> list[str]:
    """Those with a record."""
    return sorted({name for record in records for name in record.experiments if question_of(name)})


def question_of(experiment: str) -> str | None:
    """What the experiment asks; None for an experiment of another kind."""
    return QUESTIONS.get(experiment.partition("-")[0])


def build(records: Sequence[Record], folders: Iterable[Path], *, experiment: str) -> Ablation:
    """The experiment's records under the names that its differences, from below ``folders``, give them.

    Raises ``InputError`` where there are no differences, or a record that they name is not there.
    """
    document = _document(folders, experiment)
    by_id = {record.run_id: record for record in records if experiment in record.experiments}
    named: dict[str, str] = document["names"]
    if missing := [run_id for run_id in named if run_id not in by_id]:
        raise InputError(f"the differences of {experiment} name run {missing[0]}, of which there is no record here")
    found = {(by_id[run_id].spec["suite"]["set"], name): by_id[run_id] for run_id, name in named.items()}
    return Ablation(experiment=experiment, records=found, tests=document["tests"])


def to_grids(found: Ablation, folder: Path) -> list[Grid]:
    """The means of every line, and the paired differences; links are relative to ``folder``."""
    suite = found.suite
    columns = [(set_, n) for set_ in found.sets for n in suite["outputs"]]
    names = [perplexity.SETS.get(set_, set_) for set_, _ in columns]
    read = "the context's own tokens again" if suite["name"] == "reconstruction" else "the tokens after the context"
    records = list(found.records.values())
    commits = sorted({str(record.provenance.get("commit"))[:12] for record in records})
    dirty = any(record.provenance.get("dirty") for record in records)
    grid = Grid(
        title=str(question_of(found.experiment)),
        head=["REFRAG", *(f"{name} P{n}" for name, (_, n) in zip(names, columns, strict=True))],
        lines=[
            [line, *(perplexity.cell(found.records.get((set_, line)), n, folder) for set_, n in columns)]
            for line in found.lines
        ],
        notes=[
            f"Nats per token of {read}, s = {suite['context']:,}; Pn: over the first n. Brackets: 95 % bootstrap over "
            "windows. One seed.",
            f"Text: {suite['dataset']} ({suite['split']}), revision {suite['revision']}, tokenised as {suite['root']}.",
            *dict.fromkeys(note for record in records for note in record.notes),
            f"Code: commit {', '.join(commits)}{' with uncommitted changes' if dirty else ''}.",
        ],
    )
    return [grid, _differences(found)]


def _differences(found: Ablation) -> Grid:
    called = {record.run_id: line for (_, line), record in found.records.items()}
    of = {record.run_id: set_ for (set_, _), record in found.records.items()}
    return Grid(
        title=f"{found.experiment}: paired differences at o = {found.suite['outputs'][-1]}",
        head=["Contrast", "Set", "Nats per token", "p", "Documents in which the first is lower", "Windows"],
        lines=[
            [
                f"{called[test['a']]} - {called[test['b']]}",
                perplexity.SETS.get(of[test["a"]], of[test["a"]]),
                f"{test['difference']:+.3f} [{test['low']:+.3f}, {test['high']:+.3f}]",
                f"{test['p_holm']:.2g}",
                f"{test['documents_lower']} of {test['documents']}",
                str(test["n"]),
            ]
            for test in found.tests
        ],
        notes=["95 % interval and p of a paired bootstrap over windows, p Holm's over this table."],
    )


def _document(folders: Iterable[Path], experiment: str) -> Mapping[str, Any]:
    for folder in folders:
        path = folder / str(DIFFERENCES).format(experiment)
        if path.exists():
            try:
                document: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8"))
                assert isinstance(document["names"], dict) and isinstance(document["tests"], list)
            except (ValueError, KeyError, TypeError, AssertionError) as error:
                raise InputError(f"{path} is damaged: expected names and tests ({error})") from error
            return document
    raise InputError(f"no {str(DIFFERENCES).format(experiment)} beside the records of {experiment}; run it to its end")
