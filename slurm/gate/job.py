"""Run a gate: two worktrees, the answers of both, their times in turn, and what is judged of them.

    runs/gate/commits/<commit>/<environment>/<suite>/<system>/<run_id>/  predictions of a commit, as any run leaves them
    runs/gate/commits/<commit>/<environment>/asked/<digest>.json         which of them a gate of those settings reads
    runs/gate/gates/<base>-<candidate>-<digest>-<n>/                     one gate: its candidate's predictions, the
                                                                         seconds of all rounds, logs; report.json last

A base that was answered under the same settings in the same environment is read from there and not run again. A
candidate is always run: compared with itself it has to answer alike, which a stored answer would not show. Its
predictions are stored when the gate is done, for the day when it is the base. A gate that was interrupted goes on.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

from harness import provenance
from harness.config import digest, plain
from harness.errors import InputError
from harness.files import is_file_name, write_atomically
from harness.progress import bar, say
from harness.record import read_rows
from results.gate import answers as gate_answers
from results.gate import times as gate_times
from results.gate.answers import PROBES, Absent, AnswerVerdict, Base
from results.gate.report import Report, Times, speeds
from results.gate.verdicts import NEW, NOT_JUDGED
from results.pairs import Answers, conditions
from slurm.gate.asking import Worker, WorkerFailed
from slurm.gate.rounds import PROMPTS, WARM_UP, measure
from slurm.gate.sets import LANES, SMOKE, SMOKE_LIMIT, check_set, own_cells, own_lanes, titled
from slurm.gate.sides import Side, candidate_of, commit_of, worktree

PARTS = ("answers", "times")
WHAT_IS_RUN = "slurm/jobs"  # of every commit, with all below it
# What does not move an answer or belongs to one run alone.
PASSING = ("commit", "dirty", "created", "threads", "slurm_job", "attempt")


@dataclass(frozen=True, kw_only=True)
class GateJob:
    """``candidate`` None is what is checked out. Margins are shares: 0.02 is two points, 0.05 is 5 %.

    ``system`` is judged beside the suites', with the settings ``options``, a name of the catalog or somebody's own
    ``module:Class``; empty for none. Where the base does not have it, it is told and not judged.
    """

    base: str
    candidate: str | None
    dirty: bool
    suites: str
    system: str
    options: Mapping[str, str]
    parts: tuple[str, ...]
    limit: int | None
    rounds: int
    margin: float
    time_margin: float
    data: Path | None
    device: str
    runs: Path

    def run(self) -> Report:
        """The report, which lies in the gate's folder too. Raises ``InputError`` for what cannot be asked."""
        fewest = gate_times.FEWEST_BLOCKS * gate_times.BLOCK
        check_set(self.suites)
        if "times" in self.parts and self.rounds < fewest:
            raise InputError(f"expected at least {fewest} rounds, got {self.rounds}")
        if self.limit is not None and self.limit < 1:
            raise InputError(f"expected a limit of at least 1 question, got {self.limit}")
        if not (0 <= self.margin < 1 and 0 < self.time_margin < 1):
            raise InputError(
                f"expected a margin of at least 0 and one of times above 0, both below 100 %, got "
                f"{100 * self.margin:g} and {100 * self.time_margin:g}"
            )
        if self.options and not self.system:
            raise InputError(f"settings ({', '.join(self.options)}) are those of --system, which is not given")
        base, candidate = commit_of(self.base), candidate_of(self.candidate, dirty=self.dirty)
        for name, side in (("base", base), ("candidate", candidate)):
            if not side.holds(WHAT_IS_RUN):
                raise InputError(f"the {name} {side.said} is no commit of this project: it has no {WHAT_IS_RUN}")
        environment = {k: v for k, v in provenance.collect(self.device).items() if k not in PASSING}
        folder = self._folder(base, candidate, environment)
        say(f"[bold]gate {self.suites}[/bold]  base {base.short}, candidate {candidate.short}, in {folder}")
        with ExitStack() as stack:
            trees = {
                name: stack.enter_context(worktree(side, self.work / "code"))
                for name, side in (("base", base), ("candidate", candidate))
            }
            self._known(candidate, trees["candidate"], folder)
            stored = self.work / "commits" / base.identity / digest(environment)
            answers: list[AnswerVerdict] = []
            records: dict[str, Any] = {}
            if "answers" in self.parts:
                answers, records = self._answers(trees, folder, stored)
            times = self._times(trees, folder, stored) if "times" in self.parts else None
        report = Report(
            suites=self.suites,
            base=_described(base),
            candidate=_described(candidate),
            settings={
                "limit": self._limit,
                "rounds": self.rounds,
                "margin": self.margin,
                "time_margin": self.time_margin,
                "device": self.device,
                "data": None if self.data is None else self.data.name,
                "system": titled(self.system, self.options),
            },
            answers=answers,
            times=times,
            records=records,
            provenance=provenance.collect(self.device),
        )
        if records:
            self._store(folder / "candidate", self.work / "commits" / candidate.identity / digest(environment))
        write_atomically(folder / "report.json", json.dumps(report.as_json(), indent=1, ensure_ascii=False) + "\n")
        return report

    @property
    def work(self) -> Path:
        return self.runs.absolute() / "gate"

    @property
    def _limit(self) -> int | None:
        return self.limit or (SMOKE_LIMIT if self.suites == "smoke" else None)

    def _asked(self) -> dict[str, Any]:
        """What a commit is asked for its answers."""
        smoke = self.suites == "smoke"
        return {
            "cells": plain(SMOKE) if smoke else None,
            "experiment": None if smoke else self.suites,
            "own": plain(own_cells(self.system, self.options)),
            "limit": self._limit,
            "data": None if self.data is None else str(self.data.absolute()),
            "device": self.device,
        }

    def _folder(self, base: Side, candidate: Side, environment: Mapping[str, Any]) -> Path:
        """Of this gate: the first number that is not finished."""
        sides = [base.identity, candidate.identity]
        name = digest([sides, self._asked(), self.rounds, self.margin, self.time_margin, self.parts, environment])
        stem = self.work / "gates" / f"{base.short}-{candidate.short}-{name[:8]}"
        folder = next(
            folder
            for folder in (stem.with_name(f"{stem.name}-{number}") for number in count(1))
            if not (folder / "report.json").exists()
        )
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def _known(self, candidate: Side, tree: Path, folder: Path) -> None:
        """Raise ``InputError`` where the candidate has no such system; what else is wrong with it is told later."""
        if not self.system:
            return
        try:
            with Worker(tree, folder / "log" / "candidate.log") as commit:
                why = commit.ask("lacks", system=self.system)
        except WorkerFailed:
            return
        if why:
            raise InputError(f"system {self.system!r} is not in the candidate {candidate.short}: {why}")

    def _answers(
        self, trees: Mapping[str, Path], folder: Path, stored: Path
    ) -> tuple[list[AnswerVerdict], dict[str, Any]]:
        """What is judged of the answers, and the candidate's records by cell."""
        found: dict[str, dict[str, Path] | str] = {}
        metrics: dict[str, Any] = {}
        absent = ""
        for name, runs in (("base", stored), ("candidate", folder / "candidate")):
            try:
                with Worker(trees[name], folder / "log" / f"{name}.log") as commit:
                    metrics[name] = commit.ask("score", pairs=plain(PROBES))
                    if name == "base" and self.system:
                        absent = commit.ask("lacks", system=self.system)
                    found[name] = self._stored(runs) if name == "base" and self._index(runs).exists() else {}
                    if not found[name]:
                        found[name] = self._evaluated(commit, name, runs)
                    else:
                        say(f"  base: predictions are stored already, below {runs}")
            except WorkerFailed as error:
                found[name] = str(error)
        verdicts = [gate_answers.judge_metric(metrics["base"], metrics["candidate"])] if len(metrics) == 2 else []
        cells = list(dict.fromkeys(cell for side in found.values() if isinstance(side, dict) for cell in side)) or [
            self.suites
        ]
        own = own_cells(self.system, self.options) if absent else {}
        pairs: dict[str, tuple[Base, Answers | str]] = {
            cell: (
                Absent(why=f"the base has no such system: {absent}") if cell in own else _read(found["base"], cell),
                _read(found["candidate"], cell),
            )
            for cell in cells
        }
        verdicts += gate_answers.judge(pairs, margin=self.margin)
        candidate = found["candidate"]
        records = {}
        if isinstance(candidate, dict):
            for cell, run in candidate.items():
                if isinstance(run, Path):
                    records[cell] = json.loads((run / "record.json").read_text(encoding="utf-8"))
        return verdicts, records

    def _evaluated(self, commit: Worker, name: str, runs: Path) -> dict[str, Any]:
        """The run folders of one commit by cell, or why a cell has none; all of them stored if none failed."""
        with bar(f"  {name}: data and retrieval") as progress:
            cells = commit.ask("prepare", progress, runs=str(runs), **self._asked())
        found: dict[str, Any] = {}
        for number, cell in enumerate(cells, start=1):
            with bar(f"  {name}: {cell} ({number} of {len(cells)})") as progress:
                try:
                    found[cell] = Path(commit.ask("evaluate", progress, cell=cell))
                except WorkerFailed as error:
                    found[cell] = str(error)
                    say(f"  {name}: {cell}: {error}")
        if all(isinstance(run, Path) for run in found.values()):
            index = self._index(runs)
            index.parent.mkdir(parents=True, exist_ok=True)
            names = {cell: run.relative_to(runs).as_posix() for cell, run in found.items()}
            write_atomically(index, json.dumps(names, indent=1) + "\n")
        return found

    def _index(self, runs: Path) -> Path:
        return runs / "asked" / f"{digest(self._asked())}.json"

    def _stored(self, runs: Path) -> dict[str, Any]:
        """As ``_evaluated``, of what is there; empty where a part of it is gone."""
        found = {cell: runs / name for cell, name in asked_runs(self._index(runs)).items()}
        return found if all((run / "record.json").exists() for run in found.values()) else {}

    def _store(self, runs: Path, stored: Path) -> None:
        """Keep a candidate's predictions as those of its commit, unless they are there."""
        index = self._index(runs)
        if not index.exists() or self._index(stored).exists():
            return
        for name in asked_runs(index).values():
            shutil.copytree(runs / name, stored / name, dirs_exist_ok=True)
        self._index(stored).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(index, self._index(stored))

    def _times(self, trees: Mapping[str, Path], folder: Path, stored: Path) -> Times:
        """Both commits in turn, after the base in turn with itself."""
        where = {"data": self._asked()["data"], "device": self.device}
        sides = {"base": stored, "base again": stored, "candidate": folder / "candidate"}
        workers: dict[str, Worker] = {}
        opened: dict[str, Any] = {}
        own = own_lanes(self.system, self.options)
        untimed: list[tuple[str, str]] = []
        with ExitStack() as stack:
            for name, runs in sides.items():
                log = folder / "log" / f"{name.replace(' ', '-')}-times.log"
                try:
                    workers[name] = stack.enter_context(Worker(trees[name.split()[0]], log))
                    if name == "base" and own and (why := workers[name].ask("lacks", system=self.system)):
                        text = f"nothing to compare with, the base has no such system: {why}"
                        untimed += [(NEW, f"times of {lane}: {text}") for lane in own]
                        own = {}
                    opened[name] = workers[name].ask(
                        "open", lanes=plain(LANES), own=plain(own), prompts=PROMPTS, runs=str(runs), **where
                    )
                except WorkerFailed as error:
                    return Times(verdicts=[], problem=f"{name}: {error}", speeds={})
            failed = {lane: f"{name}: {why}" for name, side in opened.items() for lane, why in side["untimed"].items()}
            untimed += [(NOT_JUDGED, f"times of {lane}: {why}") for lane, why in failed.items()]
            for side in opened.values():
                del side["untimed"]
                side["specs"] = {lane: spec for lane, spec in side["specs"].items() if lane not in failed}
            lanes = list(opened["base"]["specs"])
            if differing := list(conditions(opened["base"], opened["candidate"])):
                problem = f"not comparable, conditions differ: {'; '.join(differing)}"
                return Times(verdicts=[], problem=problem, speeds={})

            def rounds(title: str, first: str, second: str) -> gate_times.Rounds:
                with bar(f"  {title}, {self.rounds} rounds after {WARM_UP}") as progress:
                    prompts = opened["base"]["prompts"]
                    return measure(workers[first], workers[second], lanes, self.rounds, prompts, progress)

            try:
                same = rounds("times: base against itself", "base", "base again")
                compared = None
                if gate_times.calm(same, margin=self.time_margin):
                    compared = rounds("times: base against candidate", "base", "candidate")
            except WorkerFailed as error:
                return Times(verdicts=[], problem=str(error), speeds={})
        seconds = {"same": plain(same), "compared": plain(compared)}
        write_atomically(folder / "times.json", json.dumps(seconds) + "\n")
        return Times(
            verdicts=gate_times.judge(same, compared, margin=self.time_margin),
            problem="",
            speeds=speeds(compared.second) if compared else {},
            untimed=untimed,
        )


def asked_runs(index: Path) -> dict[str, str]:
    """Where the runs of each cell lie, below the folder of the commit. Raises ``InputError`` where that is damaged."""
    try:
        names: dict[str, str] = json.loads(index.read_text(encoding="utf-8"))
        outside = [name for name in names.values() if not all(map(is_file_name, name.split("/")))]
    except (ValueError, AttributeError) as error:
        raise InputError(f"{index} is damaged ({error}); delete it to run these again") from error
    if outside:
        raise InputError(f"{index} is damaged: {outside[0]!r} is no run below its commit; delete it to run these again")
    return names


def _read(side: dict[str, Path] | str | dict[str, Any], cell: str) -> Answers | str:
    """What one side answered, or why there is nothing."""
    if isinstance(side, str):
        return side
    run = side.get(cell)
    if run is None:
        return "has no such cell"
    if isinstance(run, str):
        return run
    record = json.loads((run / "record.json").read_text(encoding="utf-8"))
    return Answers(spec=record["spec"], rows=read_rows(run / "predictions.jsonl", record["run_id"]))


def _described(side: Side) -> dict[str, Any]:
    return {
        "commit": side.source.commit,
        "dirty": bool(side.source.diff),
        "files": list(side.files),
        "subject": side.subject,
        "date": side.date,
        "said": side.said,
    }


def accept(report: Report, records: Path) -> Path:
    """Write what ``report`` found of its candidate below ``records``, for the history. Returns the file.

    Raises ``InputError`` where the gate has not passed, or the candidate is no commit.
    """
    if report.verdict != "pass":
        raise InputError(f"only a gate that passed is accepted; this one: {report.verdict}")
    if report.candidate["dirty"]:
        raise InputError("only a commit is accepted, this candidate has uncommitted changes")
    path = records / "gate" / report.suites / f"{report.candidate['commit'][:12]}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps(report.golden(), indent=1, ensure_ascii=False) + "\n")
    return path
