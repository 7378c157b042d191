"""``refrag-bench history``: accuracy and speed over the commits that were gated."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

HELP = "accuracy and speed over the commits that were gated, and where they stepped"

DESCRIPTION = """\
Read the reports of every gate below RUNS/gate and the accepted ones below RECORDS/gate, order their commits as the
history of --at has them, and print scores, and standard RAG's time over each lane's, commit by commit. Steps are
searched by binary segmentation (results/gate/history.py says how) and named at the first commit after them. Speeds of
different machines are different series. Nothing is run, and neither torch nor a GPU is needed.

With --out also OUT/history-SUITES.csv (one line a point), .png and .svg."""

EPILOG = """\
examples:
  refrag-bench history
  refrag-bench history --suites tiny --out runs/history
  refrag-bench history --json | jq '.[] | select(.step_p != "")'"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description, parser.epilog = DESCRIPTION, EPILOG
    parser.add_argument("--suites", default="smoke", metavar="NAME", help="of which gates (smoke)")
    parser.add_argument("--at", default="HEAD", metavar="REV", help="whose ancestors are shown (HEAD)")
    parser.add_argument("--runs", type=Path, default=Path("runs"), metavar="DIR", help="where runs lie (runs)")
    parser.add_argument(
        "--records", type=Path, default=Path("results/records"), metavar="DIR", help="accepted (results/records)"
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="write the CSV and the figure there")
    parser.add_argument("--json", action="store_true", help="print every point as JSON")


def run(args: argparse.Namespace) -> int:
    from harness.config import load
    from harness.files import destination

    order = load("slurm.gate.sides:ancestors")(args.at)
    load("slurm.gate.sets:check_set")(args.suites)
    history = load("results.gate.history:read")(args.runs, args.records, suites=args.suites, order=order)
    print(json.dumps(history.as_json(), indent=1) if args.json else history.text(), end="")
    if args.out:
        stem = args.out / f"history-{args.suites}"
        files = {destination(stem.with_suffix(".csv")): history.csv().encode()}
        for kind, picture in load("results.gate.history_figure:draw_history")(history).items():
            files[stem.with_suffix(f".{kind}")] = picture
        load("results.experiments.draw:write")(files)
    return 0
