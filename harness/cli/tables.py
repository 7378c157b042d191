"""``refrag-bench tables``: draw every table and figure again from the records, without a model."""

from __future__ import annotations

import argparse
import importlib
import itertools
import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path

from harness.config import load
from harness.errors import InputError

HELP = "draw the accuracy tables and figures from the records"

DESCRIPTION = """\
Read every record.json below --records and write, for each experiment found,
  OUT/tables/EXPERIMENT.md .csv .tex    score, 95 % interval, chance, n, passages read, errors, link to record
  OUT/figures/EXPERIMENT.png .svg       the score against the number of passages
  OUT/tables/EXPERIMENT-*, figures      where pass keys or look-ups were asked: score by length, depth and distance
  OUT/tables/EXPERIMENT-cost.*          where systems raced: rate, decoder positions and speed beside the score
(EXPERIMENT-METRIC.* for a metric other than em). The Markdown goes to stdout as well. The same records always give
the same bytes. Neither torch nor a GPU is needed."""

EPILOG = """\
examples:
  refrag-bench tables                                  records below runs/, output below results/
  refrag-bench tables --records results/records --experiment tiny --metric f1
  refrag-bench tables --json | jq '.[] | select(.status == "not run")'
  refrag-bench tables --readme README.md               also redraw the README's tables

A table of the README stands between a line <!-- table:EXPERIMENT --> and a line <!-- /table -->."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description, parser.epilog = DESCRIPTION, EPILOG
    parser.add_argument(
        "--records", type=Path, nargs="+", default=[Path("runs")], metavar="DIR", help="where records lie (runs)"
    )
    parser.add_argument("--out", type=Path, default=Path("results"), metavar="DIR", help="where to write (results)")
    parser.add_argument("--experiment", metavar="NAME", help="only this experiment (all that have records)")
    parser.add_argument("--metric", default="em", help="the score to show: em, f1, em_triviaqa, acc_popqa ... (em)")
    parser.add_argument("--readme", type=Path, metavar="FILE", help="redraw the marked tables of this Markdown file")
    parser.add_argument("--json", action="store_true", help="print the cells as one JSON list instead of Markdown")


def run(args: argparse.Namespace) -> int:
    """Draw everything first and write last, so that bad input leaves no half of a result behind."""
    drawing, formats = load("results.draw:draw"), importlib.import_module("results.formats")
    tables, files = drawing(args.records, args.out, experiment=args.experiment, metric=args.metric)
    if args.readme:
        folder = args.readme.parent
        texts = load("results.draw:cost_texts")(args.records, folder, [table.experiment for table in tables])
        texts |= {table.experiment: formats.to_markdown(table, folder) for table in tables}
        files[args.readme] = _with_tables(args.readme, texts).encode()
    load("results.draw:write")(files)
    if args.json:
        print(json.dumps([cell for table in tables for cell in formats.long_form(table, Path.cwd())], indent=1))
    else:
        print("\n".join(formats.to_markdown(table, args.out / "tables") for table in tables), end="")
    return 0


_MARKER = re.compile(r"^<!-- (?:table:(\S+)|/table) -->$", re.MULTILINE)
_MARKED = re.compile(r"^<!-- table:(\S+) -->$.*?^<!-- /table -->$", re.MULTILINE | re.DOTALL)


def _with_tables(readme: Path, texts: Mapping[str, str]) -> str:
    """The text of ``readme`` with the marked tables replaced by ``texts`` (by experiment), all else as it was.

    Raises ``InputError`` on an opening marker without a closing one, and if no marker names one of ``texts``.
    """
    if not readme.is_file():
        raise InputError(f"no file {readme} to redraw tables in")
    document = readme.read_text(encoding="utf-8")
    # A closing marker has no name; the end of the file closes nothing.
    markers = [*(match[1] or "" for match in _MARKER.finditer(document)), "end of file"]
    for name, following in itertools.pairwise(markers):
        if name and following:
            raise InputError(f"{readme}: the line <!-- table:{name} --> is not followed by a line <!-- /table -->")
    marked = {name for name in markers[:-1] if name}
    if not marked & texts.keys():
        raise InputError(
            f"{readme}: expected a line <!-- table:NAME --> and a line <!-- /table --> for one of "
            f"{', '.join(sorted(texts))}; found {', '.join(sorted(marked)) or 'no marker'}"
        )
    for name in sorted(marked - texts.keys()):
        print(f"{readme}: the table {name} stays as it is, no record of that experiment was read", file=sys.stderr)

    def redrawn(match: re.Match[str]) -> str:
        name = match[1]
        return f"<!-- table:{name} -->\n\n{texts[name]}\n<!-- /table -->" if name in texts else match[0]

    return _MARKED.sub(redrawn, document)
