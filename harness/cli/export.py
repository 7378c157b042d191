"""``refrag-bench export``: finished runs as the files that lm-eval writes."""

from __future__ import annotations

import argparse
from pathlib import Path

from harness.config import load

HELP = "write finished runs as lm-eval's results and samples files"

DESCRIPTION = """\
Write the answers and scores of finished runs as EleutherAI's lm-evaluation-harness writes its own, for tools that read
those: OUT/SYSTEM/RUN_ID/results_DATE.json and samples_SUITE_DATE.jsonl. Nothing is run or scored again, and lm-eval
need not be installed. Examples that raised an error have no answer; they are left out and counted.

Of what a system read, `arguments` and `doc` of a sample hold the question alone, and `prompt_hash` is that of the
question: a run's journal has neither the passages nor the prompt as the model saw it.

Accepted records (results/records) carry no journal of answers and cannot be exported."""

EPILOG = """\
examples:
  refrag-bench export runs/nq --out exported            every run on NQ
  refrag-bench export runs/nq/refrag_v2/9f3c30311d11a974 --out exported"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description, parser.epilog = DESCRIPTION, EPILOG
    parser.add_argument("runs", type=Path, nargs="+", metavar="DIR", help="a run's folder, or one above several")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="where the files go")


def run(args: argparse.Namespace) -> int:
    for folder in load("results.lm_eval_samples:run_folders")(args.runs):
        written = load("results.lm_eval_samples:export")(folder, args.out)
        left_out = f", {written.errors} with errors left out" if written.errors else ""
        print(f"{written.samples}: {written.n} samples{left_out}")
    return 0
