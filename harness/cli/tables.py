"""``refrag-bench tables``: draw every table and figure again from the records, without a model."""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path

from harness.errors import InputError

HELP = "draw the accuracy tables and figures from the records"

DESCRIPTION = """\
Read every record.json below --records and write, for each experiment found,
  OUT/tables/EXPERIMENT.md .csv .tex    score, 95 % interval, chance, n, errors, and a link to each record
  OUT/figures/EXPERIMENT.png .svg       the score against the number of passages
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
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument(
        "--records", type=Path, nargs="+", default=[Path("runs")], metavar="DIR", help="where records lie (runs)"
    )
    parser.add_argument("--out", type=Path, default=Path("results"), metavar="DIR", help="where to write (results)")
    parser.add_argument("--experiment", metavar="NAME", help="only this experiment (all that have records)")
    parser.add_argument("--metric", default="em", help="the score to show: em, f1, em_triviaqa, acc_popqa ... (em)")
    parser.add_argument(
        "--note", action="append", default=[], metavar="TEXT", help="a sentence to print below every table; repeatable"
    )
    parser.add_argument("--readme", type=Path, metavar="FILE", help="redraw the marked tables of this Markdown file")
    parser.add_argument("--json", action="store_true", help="print the cells as one JSON list instead of Markdown")


def run(args: argparse.Namespace) -> int:
    """Draw everything first and write last, so that bad input leaves no half of a result behind."""
    from results import figures, formats, tables
    from results.records import read_records

    records = read_records(args.records)
    names = [args.experiment] if args.experiment else tables.experiments(records)
    if not names:
        raise InputError(
            f"none of the {len(records)} records answers questions, so there is no accuracy table to draw; "
            f"suites with one: {', '.join(tables.QA_SUITES)}"
        )
    drawn = [tables.build_table(records, experiment=name, metric=args.metric, notes=args.note) for name in names]

    files: dict[Path, bytes] = {}
    folder = args.out / "tables"
    for table in drawn:
        stem = table.experiment if args.metric == "em" else f"{table.experiment}-{args.metric}"
        for kind, form in (("md", formats.to_markdown), ("csv", formats.to_csv), ("tex", formats.to_latex)):
            files[folder / f"{stem}.{kind}"] = form(table, folder).encode()
        for kind, picture in figures.draw_figure(table).items():
            files[args.out / "figures" / f"{stem}.{kind}"] = picture
    if args.readme:
        texts = {table.experiment: formats.to_markdown(table, args.readme.parent) for table in drawn}
        files[args.readme] = _with_tables(args.readme, texts).encode()
    for path, content in files.items():
        _write(path, content)
        print(f"wrote {path}", file=sys.stderr)

    if args.json:
        print(json.dumps([cell for table in drawn for cell in formats.long_form(table, Path.cwd())], indent=1))
    else:
        print("\n".join(formats.to_markdown(table, folder) for table in drawn), end="")
    return 0


_MARKER = re.compile(r"^<!-- (?:table:(\S+)|/table) -->$", re.MULTILINE)
_MARKED = re.compile(r"^<!-- table:(\S+) -->$(.*?)^<!-- /table -->$", re.MULTILINE | re.DOTALL)


def _with_tables(readme: Path, texts: Mapping[str, str]) -> str:
    """The text of ``readme`` with the marked tables replaced by ``texts`` (by experiment), all else as it was.

    Raises ``InputError`` on an opening marker without a closing one, and if no marker names one of ``texts``.
    """
    document = readme.read_text(encoding="utf-8")
    markers = [match[1] or "" for match in _MARKER.finditer(document)]  # A closing one has no name.
    for name, following in zip(markers, [*markers[1:], "end of file"], strict=True):
        if name and following:
            raise InputError(f"{readme}: the line <!-- table:{name} --> is not followed by a line <!-- /table -->")
    marked = {name for name in markers if name}
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


def _write(path: Path, content: bytes) -> None:
    """Write by rename: whatever happens, ``path`` holds the old content or the new one, and nothing else is left."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
