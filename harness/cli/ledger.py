"""``refrag-bench ledger``: what was published or claimed, who said it, and does what was measured here agree?"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from harness.config import load
from harness.errors import unknown

HELP = "list published and claimed numbers, their conditions, and the verdict of what was measured"

DESCRIPTION = """\
List every number of results/reference: the paper's tables, its curves, its text, CEPE's code and configuration, and the
claims of the document that this project started from (the seed), which are not the paper's. Each says who said it, on
which page, and under what conditions. What was measured here (records, latency journals, alignment checks below
--records) is compared with it only under the same conditions:
  reproduced      same conditions, and the measured 95 % interval meets what the printed digits leave open
  differs         same conditions, and they do not meet; by how much
  not comparable  measured under other conditions; the closest figure, and what differs
  not measured    nothing like it was measured here; what it would take
  verified        no measurement: a formula gives the printed number
  no measurement  a setting, a formula, a definition or a remark
A claim of the seed has a second verdict, against the paper: contradicts the paper, agrees with the paper, not in the
paper, not judged against the paper. A number that physics forbids is marked "cannot be". Counts come last. Nothing is
written without --claims, and neither torch nor a GPU is needed."""

EPILOG = """\
examples:
  refrag-bench ledger --table "Table 3" --source-class paper --grep NQ
  refrag-bench ledger --source-class seed-claim --verdict "contradicts the paper"
  refrag-bench ledger --file fig02_08_09_latency.csv --grep "REFRAG (Cached) k=16"
  refrag-bench ledger --json | jq '.[] | select(.flags != []) | {row, column, printed, flags}'
  refrag-bench ledger --claims results           also draw results/tables/claims.md, .csv and .tex

In the list a condition of a figure under other conditions is only named; --json has both sides, as "theirs / ours"."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description, parser.epilog = DESCRIPTION, EPILOG
    parser.add_argument("--table", metavar="NAME", help='only this table, figure or section: "Table 3", "Figure 2" ...')
    parser.add_argument(
        "--source-class",
        metavar="CLASS",
        help="only paper, paper-figure, seed-claim, cepe-repo, third-party or derived",
    )
    parser.add_argument("--file", metavar="CSV", help="only this file of results/reference")
    parser.add_argument("--verdict", metavar="VERDICT", help="only this verdict, of either kind")
    parser.add_argument("--grep", metavar="TEXT", help="only where this text stands in any field, in any case")
    parser.add_argument(
        "--records", type=Path, metavar="DIR", help="what was measured (results/records of the project)"
    )
    parser.add_argument(
        "--claims", type=Path, metavar="DIR", help="draw the table of the seed's claims into DIR/tables"
    )
    parser.add_argument("--json", action="store_true", help="print the entries as one JSON list, with every field")


def run(args: argparse.Namespace) -> int:
    names = ("entries", "verdicts", "measured")
    ledger, verdicts, measured = (importlib.import_module(f"results.ledger.{name}") for name in names)
    known = (*verdicts.VERDICTS, *verdicts.AGAINST_PAPER)
    if args.verdict is not None and args.verdict not in known:
        raise unknown("verdict", args.verdict, known)
    entries = ledger.read_ledger()
    wanted = ledger.filter(entries, table=args.table, source_class=args.source_class, file=args.file)
    found = measured.read_measured(args.records or measured.RECORDS)
    if args.claims:
        files = load("results.ledger.claims:claims_files")(verdicts.judge(entries, found), args.claims)
        load("results.experiments.draw:write")(files)
    shown = [
        verdict
        for verdict in verdicts.judge(wanted, found)
        if args.verdict in (None, verdict.verdict, verdict.against_paper) and _mentions(verdict, args.grep)
    ]
    if args.json:
        print(json.dumps([verdicts.as_json(verdict) for verdict in shown], indent=1))
    else:
        _print_list(shown)
        _print_counts(shown, {**ledger.SOURCE_CLASSES, **verdicts.VERDICTS})
    return 0


def _mentions(verdict: Any, text: str | None) -> bool:
    if text is None:
        return True
    entry = verdict.entry
    conditions = " ".join(f"{key}={value}" for key, value in entry.conditions.items())
    fields = (entry.table, entry.row, entry.column, entry.printed, entry.unit, entry.source, conditions, _why(verdict))
    return text.lower() in " ".join(fields).lower()


def _print_list(shown: Sequence[Any]) -> None:
    """One line per entry; what does not fit a column is folded."""
    if not shown:
        return
    from rich.box import SIMPLE
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=SIMPLE, pad_edge=False)
    for name, most in (("source", 32), ("row", 32), ("column", 48), ("value", 24), ("verdict", 40), ("why", None)):
        justify: Literal["left", "right"] = "right" if name == "value" else "left"
        table.add_column(name, justify=justify, max_width=most, overflow="fold")
    for verdict in shown:
        entry = verdict.entry
        source = f"{entry.source_class}, {entry.table}" + (f", p. {entry.page}" if entry.page else "")
        said = "; ".join(filter(None, (verdict.verdict, verdict.against_paper)))
        table.add_row(*map(Text, (source, entry.row, entry.column, entry.printed, said, _why(verdict))))
    # A pipe or a file has no width of its own: room for an entry on one line.
    Console(width=None if sys.stdout.isatty() else 280).print(table)


def _why(verdict: Any) -> str:
    """The reason with the conditions that differ by name alone, and what physics says."""
    why = verdict.why
    if verdict.differing:
        why = (
            why.partition("differs in ")[0] + "differs in " + ", ".join(d.partition(":")[0] for d in verdict.differing)
        )
    return "; ".join(part for part in (*(f"cannot be: {flag}" for flag in verdict.flags), why) if part)


def _print_counts(shown: Sequence[Any], meanings: Mapping[str, str]) -> None:
    against = [verdict.against_paper for verdict in shown if verdict.against_paper]
    print(f"{len(shown)} entries")
    for title, names in (
        ("by class", [verdict.entry.source_class for verdict in shown]),
        ("by verdict", [verdict.verdict for verdict in shown]),
        ("the seed's claims", against),
        ("flagged", ["cannot be" for verdict in shown if verdict.flags]),
    ):
        _print_count(title, names, meanings)


def _print_count(title: str, names: Iterable[str], meanings: Mapping[str, str]) -> None:
    for name, n in Counter(names).most_common():
        meaning = f"   {meanings[name]}" if name in meanings else ""
        print(f"  {title:18} {n:5}  {name}{meaning}")
