"""``refrag-bench tables``: draw every table and figure again from the records, without a model."""

from __future__ import annotations

import argparse
import importlib
import itertools
import json
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from harness.config import load
from harness.errors import InputError, unknown
from harness.progress import bar

HELP = "draw the tables and figures from the records, ours and those with published numbers beside"

DESCRIPTION = """\
Read every record.json below --records and write, for each experiment found,
  OUT/tables/EXPERIMENT.md .csv .tex    score, 95 % interval, chance, n, passages read, errors, link to record
  OUT/figures/EXPERIMENT.png .svg       the score against the number of passages
  OUT/tables/EXPERIMENT-*, figures      where pass keys or look-ups were asked: score by length, depth and distance
                                        (EXPERIMENT-memory where EXPERIMENT has a table of answers too)
  OUT/tables/EXPERIMENT-cost.*          where systems raced: rate, decoder positions and speed beside the score
  OUT/tables/EXPERIMENT-NAME.*          where its runs were compared in pairs (comparison.json): differences, tests
  OUT/tables/EXPERIMENT-popularity.*    with --popularity: the score on PopQA by the popularity of who is asked about
(EXPERIMENT-METRIC.* for a metric other than em). Then, with the accepted records below OUT/records and the latency
journals of both, what the seed document and the paper print, each number with its source and ours below it:
  OUT/tables/configurations-*           components, chunking, sizes, training, hyperparameters, files: counted from code
  OUT/tables/seed-table-*               the seed's result tables
  OUT/tables/paper-table-*              the paper's
  OUT/figures/paper-figure-*            its figures, published curves in panels of their own
A cell of ours that nobody measured says what it would take. The Markdown goes to stdout as well. The same records
always give the same bytes. Neither torch nor a GPU is needed.

With --verify nothing is drawn. Every answer in the journals beside the records is scored again, and every metric,
interval and count is recomputed from the rows: exit code 1 if one differs from its record in the last bit, or if the
runs of an experiment have no commit or no metric version in common; each is a line. Records without a journal, like
the accepted ones, are listed, unless a second folder holds the same run made again: then they are held against its
record, and the run counts as of both commits."""

EPILOG = """\
examples:
  refrag-bench tables                                  records below runs/, output below results/
  refrag-bench tables --records results/records --only tiny --metric f1
  refrag-bench tables --records results/records --only seed-table-2 paper-figure-6
  refrag-bench tables --json | jq '.[] | select(.status == "not measured")'
  refrag-bench tables --only real --popularity DIR     the score on PopQA by popularity, from runs/
  refrag-bench tables --pages README.md docs/findings.md   also redraw the tables that stand in these
  refrag-bench tables --verify --records runs          do the records say what their journals say?
  refrag-bench tables --verify --only tiny --records results/records runs
                                                       do the accepted ones, after `refrag-bench run tiny`?

A table of a page stands between a line <!-- table:NAME --> and a line <!-- /table -->."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description, parser.epilog = DESCRIPTION, EPILOG
    parser.add_argument(
        "--records", type=Path, nargs="+", default=[Path("runs")], metavar="DIR", help="where records lie (runs)"
    )
    parser.add_argument("--out", type=Path, default=Path("results"), metavar="DIR", help="where to write (results)")
    parser.add_argument(
        "--only", nargs="+", metavar="NAME", help="only these: experiments, or tables and figures by file name (all)"
    )
    parser.add_argument("--metric", default="em", help="of experiments: em, f1, em@4, rougeL ... (em)")
    parser.add_argument(
        "--popularity",
        type=Path,
        metavar="DIR",
        help="draw PopQA by popularity too; DIR is the data root of the questions, and runs need their journals",
    )
    parser.add_argument(
        "--pages",
        type=Path,
        nargs="+",
        default=[],
        metavar="FILE",
        help="redraw the marked tables of these Markdown files",
    )
    parser.add_argument("--verify", action="store_true", help="draw nothing; recompute the records from their journals")
    parser.add_argument(
        "--json", action="store_true", help="print the cells, or what --verify found, as JSON instead of text"
    )


def run(args: argparse.Namespace) -> int:
    """Draw everything first and write last, so that bad input leaves no half of a result behind."""
    if args.verify:
        return _verify(args)
    drawing, formats = load("results.experiments.draw:draw"), importlib.import_module("results.experiments.formats")
    experiments, others = _chosen(args.only, args.records, args.metric)
    tables, layouts, files = [], [], {}
    figures = len(experiments or ()) + (len(load("results.replication.draw:figures")(others)) if others != [] else 0)
    with load("results.painters:painters")(figures) as painters:
        if experiments != []:
            tables, files = drawing(
                args.records, args.out, experiments=experiments, metric=args.metric, painters=painters
            )
        if others != []:
            layouts, more = load("results.replication.draw:draw")(
                args.records, args.out, only=others, painters=painters
            )
            files |= more
        if args.popularity:
            names = [table.experiment for table in tables]
            files |= load("results.experiments.draw:popularity_files")(
                args.records, args.out, args.popularity, experiments=names, metric=args.metric
            )
        files |= painters.files() if painters else {}
    markdown = [text.decode() for path, text in files.items() if path.suffix == ".md"]
    for page in args.pages:
        folder = page.parent
        texts = load("results.experiments.draw:cost_texts")(
            args.records, folder, [table.experiment for table in tables]
        )
        texts |= {table.experiment: formats.to_markdown(table, folder) for table in tables}
        texts |= {layout.name: layout.grid(folder).markdown() for layout in layouts}
        files[page] = _with_tables(page, texts).encode()
    load("results.experiments.draw:write")(files)
    if others is None and (left := load("results.replication.draw:left_out")(layouts)):
        print(left, file=sys.stderr)
    if args.json:
        cells = [cell for table in tables for cell in formats.long_form(table, Path.cwd())]
        cells += [cell for layout in layouts for cell in layout.long_form(Path.cwd())]
        print(json.dumps(cells, indent=1))
    else:
        print("\n".join(markdown), end="")
    return 0


def _verify(args: argparse.Namespace) -> int:
    for option, given in (
        ("--pages", args.pages),
        ("--metric", args.metric != "em"),
        ("--out", args.out != Path("results")),
    ):
        if given:
            raise InputError(f"--verify checks every metric and draws nothing; give {option} without it")
    with bar("verifying") as progress:
        found = load("results.verify:verify")(args.records, experiments=args.only, progress=progress)
    print(json.dumps(found.as_json(), indent=1) if args.json else "\n".join(found.lines))
    return 0 if found.passed else 1


def _chosen(
    names: Sequence[str] | None, records: Sequence[Path], metric: str
) -> tuple[list[str] | None, list[str] | None]:
    """Which of ``names`` are experiments, and which other tables and figures; None for all.

    Raises ``InputError`` with everything that can be drawn for a name that is neither.
    """
    if names is None:
        return None, None
    experiments = load("results.experiments.draw:experiments")(records, metric)
    others = [name for name in names if name not in experiments]
    known = load("results.replication.draw:NAMES") if others else ()
    for name in others:
        if name not in known:
            raise unknown("experiment, table or figure", name, [*experiments, *known])
    return [name for name in names if name in experiments], others


_MARKER = re.compile(r"^<!-- (?:table:(\S+)|/table) -->$", re.MULTILINE)
_MARKED = re.compile(r"^<!-- table:(\S+) -->$.*?^<!-- /table -->$", re.MULTILINE | re.DOTALL)


def _with_tables(page: Path, texts: Mapping[str, str]) -> str:
    """The text of ``page`` with the marked tables replaced by ``texts`` (by experiment), all else as it was.

    Raises ``InputError`` on an opening marker without a closing one, and if no marker names one of ``texts``.
    """
    if not page.is_file():
        raise InputError(f"no file {page} to redraw tables in")
    document = page.read_text(encoding="utf-8")
    # A closing marker has no name; the end of the file closes nothing.
    markers = [*(match[1] or "" for match in _MARKER.finditer(document)), "end of file"]
    for name, following in itertools.pairwise(markers):
        if name and following:
            raise InputError(f"{page}: the line <!-- table:{name} --> is not followed by a line <!-- /table -->")
    marked = {name for name in markers[:-1] if name}
    if not marked & texts.keys():
        raise InputError(
            f"{page}: expected a line <!-- table:NAME --> and a line <!-- /table --> for one of "
            f"{', '.join(sorted(texts))}; found {', '.join(sorted(marked)) or 'no marker'}"
        )
    for name in sorted(marked - texts.keys()):
        print(f"{page}: the table {name} stays as it is, no record of that experiment was read", file=sys.stderr)

    def redrawn(match: re.Match[str]) -> str:
        name = match[1]
        return f"<!-- table:{name} -->\n\n{texts[name]}\n<!-- /table -->" if name in texts else match[0]

    return _MARKED.sub(redrawn, document)
