"""``refrag-bench generate``: one question, answered now."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from harness.cli.catalog import SYSTEMS
from harness.cli.evaluate import SETTINGS, add_decoder_arguments

HELP = "answer one question, closed-book or over passages found in an index"

DESCRIPTION = """\
Answer a question with a system. With --index the passages come from an index that `refrag-bench index` built;
without it the system answers closed-book."""

EPILOG = """\
examples:
  refrag-bench generate "what is the rival of Mirel Tovan" --checkpoint DIR --index runs/indexes/bm25-… --passages 4
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description, parser.epilog = DESCRIPTION, EPILOG + SETTINGS
    parser.add_argument("question", metavar="QUESTION")
    parser.add_argument(
        "--system", default="standard_rag", help=f"{', '.join(SYSTEMS)}, or your own as module:Class (standard_rag)"
    )
    add_decoder_arguments(parser)
    parser.add_argument("--index", type=Path, metavar="DIR", help="index folder to retrieve from")
    parser.add_argument("--passages", type=int, default=4, metavar="N", help="passages to read (4)")
    parser.add_argument("--json", action="store_true", help="print question, passages, answer and times as JSON")


def run(args: argparse.Namespace) -> int:
    from harness.config import load

    answered = load("slurm.jobs.generate:GenerateJob")(
        question=args.question,
        system=args.system,
        checkpoint=args.checkpoint,
        index=args.index,
        passages=args.passages,
        max_new_tokens=args.max_new_tokens,
        options=load("slurm.jobs.system:parse_settings")(args.set),
        chunk_cache=args.chunk_cache,
        dtype=args.dtype,
        device=args.device,
    ).run()
    if args.json:
        print(json.dumps(answered, indent=1, ensure_ascii=False))
        return 0
    for place, passage in enumerate(answered["passages"], start=1):
        print(f"[{place}] {passage['title']}: {passage['text']}")
    print(answered["answer"])
    return 0
