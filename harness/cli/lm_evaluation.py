"""``refrag-bench lm-eval``: a system of ours through lm-eval's loop and metrics."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from harness.cli.catalog import SYSTEMS
from harness.cli.evaluate import ASKED, SETTINGS, add_decoder_arguments
from harness.config import load

HELP = "evaluate one system by EleutherAI's lm-evaluation-harness (extra lm-eval)"

DESCRIPTION = """\
Answer the questions of lm-eval's tasks with a system of this project. lm-eval asks, scores and writes; the passages
ride in its documents, and the system makes its prompt of them as everywhere else: `evaluate` with the same options
gives the same answers.

tasks:
  nq_open, triviaqa, popqa   questions over --passages passages; scored as lm-eval scores them (exact_match)
  passkey                    a number in a long context; --ask length=N and what else `evaluate --suite passkey` takes
                             (length=256, instructions=false)

Data: --data DIR or REFRAG_DATA (the layout of the Hub, see docs/reference.md), else the synthetic world, written
below --runs. Passages: --retrieval FILE, else BM25 over the data's corpus, which is indexed and frozen first.

A task is run and written before the next one starts, as lm-eval writes:
  OUT/SYSTEM/results_DATE.json    OUT/SYSTEM/samples_TASK_DATE.jsonl    OUT/documents/TASK.jsonl"""

EPILOG = """\
examples:
  refrag-bench lm-eval --system refrag_v2 --checkpoint results/checkpoints/refrag_v2/policy-tiny-k8-91c82a7df4a01141 \\
      --tasks nq_open,passkey --passages 4 --limit 50
  refrag-bench lm-eval --system standard_rag --checkpoint meta-llama/Llama-3.2-3B --allow-download --data DIR \\
      --tasks nq_open,triviaqa,popqa --passages 8 --dtype bfloat16 --device cuda
The same documents for one of lm-eval's own models (it gets the prompt as text):
  lm_eval run --model hf --model_args pretrained=DIR --tasks nq_open --include_path suites/lm_eval \\
      --metadata '{"documents": "/absolute/path/of/OUT/documents"}'
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description, parser.epilog = DESCRIPTION, EPILOG + SETTINGS + ASKED
    parser.add_argument("--system", required=True, help=f"{', '.join(SYSTEMS)}, or your own as module:Class")
    parser.add_argument("--tasks", required=True, metavar="NAME,...", help="nq_open, triviaqa, popqa, passkey")
    add_decoder_arguments(parser)
    parser.add_argument("--passages", type=int, default=0, metavar="N", help="passages per question; 0 is closed-book")
    parser.add_argument("--retrieval", type=Path, metavar="FILE", help="frozen retrieval, for a single task")
    parser.add_argument(
        "--ask", action="append", default=[], metavar="NAME=VALUE", help="a setting of passkey (see below); repeatable"
    )
    parser.add_argument("--data", type=Path, metavar="DIR", help="data root (default: REFRAG_DATA, else the world)")
    parser.add_argument("--limit", type=int, metavar="N", help="only the first N questions of each task")
    parser.add_argument("--batch-size", type=int, default=8, metavar="N", help="questions per batch (8)")
    parser.add_argument(
        "--runs", type=Path, default=Path("runs"), metavar="DIR", help="where data and indexes lie (runs)"
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="where lm-eval's files go (RUNS/lm-eval)")
    parser.add_argument("--json", action="store_true", help="print lm-eval's results, an object by task")


def run(args: argparse.Namespace) -> int:
    from harness.errors import InputError
    from harness.progress import bar

    tasks = load("slurm.jobs.lm_evaluation:task_names")(args.tasks)
    if args.retrieval and len(tasks) > 1:
        raise InputError(f"a frozen file is of one suite's questions, got --retrieval with {len(tasks)} tasks")
    asked = load("slurm.jobs.system:parse_settings")(args.ask)
    if asked and "passkey" not in tasks:
        raise InputError(f"--ask is for the task passkey, got it with {', '.join(tasks)}")
    found = {}
    for task in tasks:
        job = load("slurm.jobs.lm_evaluation:LmEvaluationJob")(
            system=args.system,
            task=task,
            checkpoint=args.checkpoint,
            out=args.out or args.runs / "lm-eval",
            runs=args.runs,
            passages=args.passages,
            asked=asked if task == "passkey" else {},
            data=args.data,
            retrieval=args.retrieval,
            limit=args.limit,
            max_new_tokens=args.max_new_tokens,
            batch_size=args.batch_size,
            device=args.device,
            dtype=args.dtype,
            options=load("slurm.jobs.system:parse_settings")(args.set),
        )
        with bar(job.title) as progress:
            found[task] = job.run(progress)
        if not args.json:
            print(job.said(found[task]), flush=True)
    if args.json:
        print(json.dumps(found, indent=1, ensure_ascii=False))
    return 0
