"""``refrag-bench report``: everything that was measured as one page for a browser."""

from __future__ import annotations

import argparse
from pathlib import Path

from harness.config import load

HELP = "draw one page with every table, figure and record, for a browser without a network"

DESCRIPTION = """\
Write one HTML file with everything that was measured: the tables of every experiment, what they cost, paired
differences, latency, the seed's and the paper's tables and figures with ours beside, the seed's claims, and every
published number with its verdict. Tables sort by a click on a heading; a measured number opens its record: run id,
settings, metrics with intervals and n, times, provenance, and where the run's journal lies beside the record a few of
its examples (question, passages, chunks expanded, answer, scores).

Records are read below --records and, for what is not there, below the folder `records` beside the page. The file needs
nothing else: no network, no server, no script from elsewhere. The same records give the same bytes. Neither torch nor a
GPU is needed.

The examples repeat questions and passages of the data that was used: mind its licence before passing a page on."""

EPILOG = """\
examples:
  refrag-bench report                                   records below runs/, the page in results/report.html
  refrag-bench report --records results/records         the accepted records alone
  refrag-bench report --records runs --out /tmp/report.html"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description, parser.epilog = DESCRIPTION, EPILOG
    parser.add_argument(
        "--records", type=Path, nargs="+", default=[Path("runs")], metavar="DIR", help="where records lie (runs)"
    )
    parser.add_argument(
        "--out", type=Path, default=Path("results/report.html"), metavar="FILE", help="the page (results/report.html)"
    )


def run(args: argparse.Namespace) -> int:
    from harness.files import destination

    _, files = load("results.report.page:draw")(args.records, destination(args.out))
    load("results.experiments.draw:write")(files)
    return 0
