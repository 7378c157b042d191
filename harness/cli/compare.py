"""``refrag-bench compare``: is one run better than another, on the same questions?"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

HELP = "compare finished runs on the same questions: differences, paired tests, who alone was right"

DESCRIPTION = """\
Compare runs that `evaluate` or an experiment finished with the first one given, question by question. Nothing is run
or scored again, nothing is written, and neither torch nor a GPU is needed.

For EM and F1 (of summaries ROUGE-L), a line a run:
  first, this    both means, over the same n questions
  difference     this - first in points of 100, with its 95 % interval
  test, p        exact McNemar for right or wrong, a paired bootstrap of the questions for the rest; two-sided
  p (Holm)       the same, as one of all the tests of this call: what to go by
  detectable     the smallest difference that so many questions would have shown in 80 % of repetitions
and how many questions only one of the two answered right.

Refused, by what differs: runs of other questions, other passages or another metric version; unfinished ones, ones with
examples in error, accepted records (they have no journal), and runs that answer no questions. Systems, settings,
checkpoints, decoding and prompts may differ: the output names what does.

Several seeds of one system are several lines here; the paired tables of the built-in experiments resample a question
with all its seeds. Whether a commit is worse than another is `refrag-bench gate`."""

EPILOG = """\
examples:
  refrag-bench compare runs/nq/standard_rag/4c2c550acd5c597f runs/nq/refrag_v2/af61387a3cc4de26
  refrag-bench compare 4c2c550acd5c597f af61387a3cc4de26       the same by run id, below --runs
  refrag-bench compare runs/same_relation/standard_rag/* runs/same_relation/refrag_v2/* --flips 5
  refrag-bench compare 4c2c550acd5c597f af61387a3cc4de26 --json | jq '.tests[] | {figure, difference, p_holm}'

`refrag-bench status` lists runs with their ids."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description, parser.epilog = DESCRIPTION, EPILOG
    parser.add_argument(
        "run_ids", nargs="+", metavar="RUN", help="a run's folder, or its id; the first is compared with"
    )
    parser.add_argument(
        "--flips", type=int, default=0, metavar="N", help="list the first N questions that only one answered right (0)"
    )
    parser.add_argument("--runs", type=Path, default=Path("runs"), metavar="DIR", help="where run ids lie (runs)")
    parser.add_argument("--json", action="store_true", help="print one JSON document; scores are fractions")


def run(args: argparse.Namespace) -> int:
    from harness.config import load
    from harness.errors import InputError

    if args.flips < 0:
        raise InputError(f"expected --flips of at least 0, got {args.flips}")
    compared = load("results.comparing:compare")(args.run_ids, args.runs)
    if args.json:
        print(json.dumps(compared.as_json(args.flips), indent=1, ensure_ascii=False))
    else:
        print(compared.text(args.flips), end="")
    return 0
