"""``refrag-bench status``: how far is every run? Reads the run folders, changes nothing."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import groupby
from pathlib import Path
from typing import Any, Literal

from harness.config import load
from harness.errors import InputError

HELP = "list the runs: done, partial or not started, with their errors"

DESCRIPTION = """\
List every run folder RUNS/SUITE/SYSTEM/RUN_ID:
  done         record.json is there; it is written last
  partial      a journal without a record: running now, or interrupted (start the run again, it continues)
  not started  only the spec is there
  damaged      record.json, a line of the journal or spec.json is not what belongs there, or spec.json is gone; also a
               journal beside a record that does not hold a row for every example
"settings" are those that differ among the runs of one system on as many passages of one suite (k, expand, seed, ...);
"errors" counts the examples that raised; "when" is the last write, in UTC."""

EPILOG = """\
examples:
  refrag-bench status
  refrag-bench status --runs runs --json | jq '.[] | select(.state != "done")'"""

_SPEC, _JOURNAL, _RECORD = _FILES = ("spec.json", "predictions.jsonl", "record.json")
_STYLES = {"done": "green", "partial": "yellow", "not started": "", "damaged": "red"}


@dataclass(frozen=True, kw_only=True, slots=True)
class RunState:
    """One run folder. ``rows`` of ``n_examples`` are answered (or raised: ``errors``); None is not known.

    ``settings`` are those that differ among the runs of its system on as many passages of its suite, as in a table.
    """

    suite: str
    system: str
    run_id: str
    passages: int | None
    settings: str
    state: str
    rows: int
    n_examples: int | None
    errors: int
    when: str


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description, parser.epilog = DESCRIPTION, EPILOG
    parser.add_argument("--runs", type=Path, default=Path("runs"), metavar="DIR", help="the folder of runs (runs)")
    parser.add_argument("--json", action="store_true", help="print the states as one JSON list instead of a table")


def run(args: argparse.Namespace) -> int:
    states = run_states(args.runs)
    if args.json:
        print(json.dumps([dataclasses.asdict(state) for state in states], indent=1))
    else:
        _print_table(states)
    return 0


def run_states(runs: Path) -> list[RunState]:
    """The state of every run folder below ``runs``, in the order of suite, system, passages and run id.

    Raises ``InputError`` if there is no such folder or no run in it. A damaged run is a state, not an error: this
    command is what one calls to find it.
    """
    folders = {path.parent for name in _FILES for path in runs.glob(f"*/*/*/{name}")}
    if not folders:
        problem = "no run below" if runs.is_dir() else "no folder"
        raise InputError(f"{problem} {runs}; start a run with `refrag-bench run tiny`")
    found = sorted(
        (_state(folder) for folder in folders),
        key=lambda one: (one[0].suite, one[0].system, one[0].passages or 0, one[0].run_id),
    )
    return [
        state
        for _, system in groupby(found, lambda one: (one[0].suite, one[0].system))
        for state in _with_settings(list(system))
    ]


def _with_settings(found: Sequence[tuple[RunState, Mapping[str, Any]]]) -> Iterator[RunState]:
    """Runs of one suite and system, in the order of passages, with what tells those on as many apart."""
    cells = [list(cell) for _, cell in groupby(found, lambda one: one[0].passages)]
    words = load("results.experiments.variants:told_apart")([[spec for _, spec in cell] for cell in cells])
    for cell, names in zip(cells, words, strict=True):
        for (state, _), name in zip(cell, names, strict=True):
            yield dataclasses.replace(state, settings=name)


def _state(folder: Path) -> tuple[RunState, Mapping[str, Any]]:
    """The state of a run, without its settings, and its spec, empty where it is not known."""
    read_record = load("results.records:read_record")
    spec = _read_spec(folder / _SPEC)
    asked: Mapping[str, Any] = spec.get("spec", {})
    n_examples, passages = spec.get("n_examples"), asked.get("passages")
    rows = errors = 0
    if (folder / _RECORD).exists():
        try:
            record = read_record(folder / _RECORD)
        except InputError:
            state = "damaged"
        else:
            state, rows, errors = "done", record.n_examples, record.n_errors
            n_examples, passages, asked = record.n_examples, record.passages, record.spec
            if (folder / _JOURNAL).exists():  # accepted records and races have none
                rows, errors, end = _read_journal(folder / _JOURNAL, folder.name)
                state = "done" if (end, rows) == ("whole", n_examples) else "damaged"
    else:
        rows, errors, end = _read_journal(folder / _JOURNAL, folder.name)
        state = "damaged" if end == "damaged" else "partial" if rows else "not started"
    found = RunState(
        suite=folder.parent.parent.name,
        system=folder.parent.name,
        run_id=folder.name,
        passages=passages,
        settings="",
        state=state if spec or state == "done" else "damaged",
        rows=rows,
        n_examples=n_examples,
        errors=errors,
        when=_last_write(folder),
    )
    return found, asked


def _read_spec(path: Path) -> dict[str, Any]:
    """The content of ``spec.json``, empty where the file is missing or damaged."""
    try:
        spec = json.loads(path.read_bytes())
    except (FileNotFoundError, IsADirectoryError, ValueError):
        return {}
    inner = spec.get("spec") if isinstance(spec, dict) else None
    return spec if isinstance(inner, dict) and isinstance(inner.get("passages"), int) else {}


def _read_journal(path: Path, run_id: str) -> tuple[int, int, Literal["whole", "torn", "damaged"]]:
    """How many examples of the run have a row, how many of these raised, and how the journal ends.

    A last line without its newline is ``torn`` by an interruption: no damage while the run can go on from there.
    Counting stops where damage begins.
    """
    rows = errors = 0
    if path.is_dir():
        return rows, errors, "damaged"
    if path.exists():
        with path.open("rb") as journal:
            for line in journal:
                if not line.endswith(b"\n"):
                    return rows, errors, "torn"
                try:
                    row = json.loads(line)
                except ValueError:
                    return rows, errors, "damaged"
                if not isinstance(row, dict) or (row.get("run_id"), row.get("i")) != (run_id, rows):
                    return rows, errors, "damaged"
                rows += 1
                errors += "error" in row
    return rows, errors, "whole"


def _last_write(folder: Path) -> str:
    seconds = max(path.stat().st_mtime for name in _FILES if (path := folder / name).exists())
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")


def _print_table(states: list[RunState]) -> None:
    from rich.box import SIMPLE
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=SIMPLE, pad_edge=False)
    told = any(state.settings for state in states)
    names = ("suite", "system", "passages", *(["settings"] * told), "run", "state", "examples", "errors", "when")
    for name in names:
        right = name in ("passages", "examples", "errors")
        table.add_column(name, justify="right" if right else "left", overflow="fold", no_wrap=name == "run")
    for state in states:
        table.add_row(
            state.suite,
            state.system,
            _known(state.passages),
            *([Text(state.settings)] * told),
            state.run_id,
            Text(state.state, style=_STYLES[state.state]),
            f"{state.rows} of {_known(state.n_examples)}",
            Text(str(state.errors), style="red" if state.errors else ""),
            state.when.removesuffix("+00:00").replace("T", " "),
        )
    # A pipe or a file has no width of its own: room for every column, so that no run id is broken in two.
    Console(width=None if sys.stdout.isatty() else 160).print(table)


def _known(count: int | None) -> str:
    return "?" if count is None else str(count)
