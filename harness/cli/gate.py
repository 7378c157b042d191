"""``refrag-bench gate``: is this commit worse than that one?"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

HELP = "judge a commit against another: answers on the same questions, times in turn on this machine"

DESCRIPTION = """\
Is the candidate worse than the base, in what it answers or in how soon? Both are checked out into worktrees below
RUNS/gate and run with their own code, by this interpreter.

answers  the questions of --suites, as every run answers and stores them. Each cell is compared question by question
         (exact McNemar test, Holm over the table): a regression is a drop beyond --margin that is no chance. Questions
         whose score flipped are listed. The metric itself is compared on fixed predictions. A base whose predictions
         are stored (by commit, settings and environment) is not run again.
times    TTFT with passages encoded before and inside, and TTIT, of standard RAG and relative to it of CEPE, REFRAG v2
         and v1. First the base against itself (A/A): what differs there cannot be judged on this machine. Then base and
         candidate in turn, each in a process of its own that waits while the other one answers. A regression is slower
         by more than --time-margin.

suites:
  smoke                           7 cells of 200 questions of the synthetic world from the shipped checkpoints
  tiny                            the main experiment: every system and suite, 500 questions
  selection, expansion, passkey   those experiments; the first and the last train what the commit does not ship

--system adds two cells and a lane of one more system, on standard RAG's decoder. Where the base does not have it yet,
it is reported as new: nothing to compare with, and the exit code is that of the others.

Every report says what difference it could have found. docs/gate.md explains how it judges, and has files for a git
host's CI and for SLURM.

exit codes: 0 pass; 1 regression; 2 could not judge: a revision or suites that do not exist, conditions that differ
(named), rows that are missing on one side, a machine too noisy (A/A differs)"""

EPILOG = """\
examples:
  refrag-bench gate --base main                                what is checked out against main
  refrag-bench gate --base HEAD~1 --only answers               without the clock: on a machine that others use
  refrag-bench gate --base v1.0 --candidate v1.1 --suites tiny --html gate.html
  refrag-bench gate --base HEAD --dirty                        are my uncommitted changes worse?
  refrag-bench gate --base HEAD~1 --system mine:MineConfig     and my own system, new in that commit or changed
  refrag-bench gate --base HEAD --candidate HEAD               A/A: has to pass
  refrag-bench gate --base main --accept                       a pass joins results/records/gate, for `history`"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description, parser.epilog = DESCRIPTION, EPILOG
    parser.add_argument("--base", required=True, metavar="REV", help="what to compare with: branch, tag or commit")
    parser.add_argument("--candidate", metavar="REV", help="what is judged (default: what is checked out)")
    parser.add_argument(
        "--dirty", action="store_true", help="judge uncommitted changes too; the report names the files"
    )
    parser.add_argument("--suites", default="smoke", metavar="NAME", help="smoke (default), tiny, ... (above)")
    parser.add_argument(
        "--system", default="", metavar="NAME", help="judge this one too: your own as module:Class, or a known name"
    )
    parser.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", help="a setting of that system; repeatable"
    )
    parser.add_argument("--only", choices=("answers", "times"), help="one half of it")
    parser.add_argument("--limit", type=int, metavar="N", help="only the first N questions of a cell (smoke: 200)")
    parser.add_argument("--rounds", type=int, default=240, metavar="N", help="rounds of every pair that is timed (240)")
    parser.add_argument("--margin", type=float, default=2.0, metavar="POINTS", help="drop that is allowed (2)")
    parser.add_argument("--time-margin", type=float, default=5.0, metavar="PERCENT", help="slow-down allowed (5)")
    parser.add_argument("--accept", action="store_true", help="after a pass, keep the candidate's records")
    parser.add_argument(
        "--records", type=Path, default=Path("results/records"), metavar="DIR", help="where (results/records)"
    )
    parser.add_argument(
        "--data", type=Path, metavar="DIR", help="a world that is on disk (default: each makes its own)"
    )
    parser.add_argument("--device", default="cpu", help="cpu (default) or cuda")
    parser.add_argument("--runs", type=Path, default=Path("runs"), metavar="DIR", help="where runs lie (runs)")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    parser.add_argument("--html", type=Path, metavar="FILE", help="write the report as a page too")


def run(args: argparse.Namespace) -> int:
    from harness.config import load
    from harness.files import destination, write_atomically
    from harness.progress import say

    page = destination(args.html) if args.html else None
    report = load("slurm.gate.job:GateJob")(
        base=args.base,
        candidate=args.candidate,
        dirty=args.dirty,
        suites=args.suites,
        system=args.system,
        options=load("slurm.jobs.system:parse_settings")(args.set),
        parts=(args.only,) if args.only else ("answers", "times"),
        limit=args.limit,
        rounds=args.rounds,
        margin=args.margin / 100,
        time_margin=args.time_margin / 100,
        data=args.data,
        device=args.device,
        runs=args.runs,
    ).run()
    print(json.dumps(report.as_json(), indent=1, ensure_ascii=False) if args.json else report.text(), end="")
    if page:
        write_atomically(page, report.html())
    if args.accept and report.exit_code == 0:
        say(f"accepted: {load('slurm.gate.job:accept')(report, args.records)}")
    code: int = report.exit_code
    return code
