"""``refrag-bench evaluate``: one cell of a table."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from harness.cli.catalog import ASKED_SUITES, MADE_SUITES, SUITES, SYSTEMS

HELP = "evaluate one system on one suite (goes on where its journal ends)"

DESCRIPTION = """\
Answer the questions of a suite with a system and write a record below --runs. Everything that can move the score is
part of the run's identity: the same command again is a no-op, an interrupted one goes on, and another setting is
another run. Exit code 1 means that the record holds examples that raised an error."""

EPILOG = """\
examples:
  refrag-bench evaluate --system standard_rag --suite nq --checkpoint DIR --data DIR --passages 0
  refrag-bench evaluate --system standard_rag --suite nq --checkpoint DIR --data DIR --passages 8 --retrieval FILE
  refrag-bench evaluate --system refrag_v2 --suite nq --checkpoint DIR --data DIR --passages 8 --retrieval FILE \
      --set expand=0.1 --set select=policy
CEPE as released (2 shots, the 10 best passages in the decoder, the others in the encoder; all in the encoder without
in_decoder):
  refrag-bench evaluate --system cepe --suite nq --checkpoint DIR --data DIR --passages 30 --retrieval FILE \
      --shots 2 --set in_decoder=10 --max-new-tokens 25
The right passage at place 10 of 20; conversations with 4 earlier turns; an article in a prompt of 512 positions:
  refrag-bench evaluate --system standard_rag --suite gold_position --checkpoint DIR --data DIR --passages 20 \
      --retrieval DIR/ctxs/nq_ctxs20.jsonl.gz --ask position=10
  refrag-bench evaluate --system standard_rag --suite topiocqa --checkpoint DIR --data DIR --passages 5 \
      --retrieval FILE --ask history=4
  refrag-bench evaluate --system refrag_v2 --suite arxiv_summary --checkpoint DIR --data DIR --passages 100 \
      --set max_positions=512 --max-new-tokens 200
A pass key in 1,024 tokens, and a look-up 512 tokens away (the suite makes its own passages, of exact length):
  refrag-bench evaluate --system refrag_v2 --suite passkey --checkpoint DIR --ask length=1024 --ask instructions=false
  refrag-bench evaluate --system standard_rag --suite long_range --checkpoint DIR --ask distance=512 --ask steps=1
The retrieval file is what `refrag-bench retrieve` froze, or any DPR/FiD file with the questions' ids.
"""

SETTINGS = """
settings (--set NAME=VALUE); the checkpoint's own where it knows them:
  template=text|tagged       the prompt template
  max_positions=N            prompt and answer together (default: the decoder's window)
  k=N                        llama_k, extract: rate, chunk length (8)
  in_decoder=N               cepe: so many passages as tokens in the decoder, the others in the encoder (0)
  cross_kv=cached|recomputed cepe: keep keys and values, or project them at every step as the released code does
  expand=P                   refrag_v1, refrag_v2: share of the chunks left as tokens, 0 to 1; extract: whose positions
  seed=N                     refrag_v1: of the coins that choose them (0)
  select=NAME                refrag_v2: which ones: none, all, first, random, perplexity-desc, perplexity-asc, policy,
                             oracle (synthetic world only)
"""

ASKED = """
what is asked (--ask NAME=VALUE); lengths and distances in tokens of the checkpoint's tokenizer:
  gold_position              position=N: the place of the right passage, 1 is the first
  topiocqa, qrecc, orconvqa  history=N: earlier turns in the question, the latest (10)
  arxiv_summary, pubmed_summary
                             words=N: of the article in each passage (100)
  passkey                    length=N; depths=0,25,50,75,100 (percent), n=50 contexts at each, keys=1, digits=5,
                             piece=64 (tokens of a passage), instructions=true|false, seed=0
  long_range                 distance=N; steps=2 (1: the control), n=200, piece=32, seed=0
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description, parser.epilog = DESCRIPTION, EPILOG + SETTINGS + ASKED
    parser.add_argument("--system", required=True, help=f"{', '.join(SYSTEMS)}, or your own as module:Class")
    parser.add_argument("--suite", required=True, help=", ".join([*SUITES, *ASKED_SUITES, *MADE_SUITES]))
    parser.add_argument(
        "--ask",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="a setting of a suite that has some (see below); repeatable",
    )
    add_decoder_arguments(parser)
    parser.add_argument("--passages", type=int, default=0, metavar="N", help="passages per question; 0 is closed-book")
    parser.add_argument("--shots", type=int, default=0, metavar="N", help="demonstrations before every prompt (0)")
    parser.add_argument("--retrieval", type=Path, metavar="FILE", help="frozen retrieval to take the passages from")
    parser.add_argument("--data", type=Path, metavar="DIR", help="data root (default: REFRAG_DATA, else the Hub)")
    parser.add_argument("--limit", type=int, metavar="N", help="only the first N questions")
    parser.add_argument("--batch-size", type=int, default=8, metavar="N", help="questions per batch (8)")
    parser.add_argument("--experiment", default="adhoc", metavar="NAME", help="the table that the record joins (adhoc)")
    parser.add_argument("--runs", type=Path, default=Path("runs"), metavar="DIR", help="where runs lie (runs)")
    parser.add_argument("--json", action="store_true", help="print the record as JSON")


def add_decoder_arguments(parser: argparse.ArgumentParser) -> None:
    """Which decoder answers, and how: shared with ``generate``."""
    parser.add_argument("--checkpoint", required=True, help="decoder: a local folder or a Hub id")
    parser.add_argument("--max-new-tokens", type=int, default=16, metavar="N", help="longest answer (16)")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="a setting of the system (see below); repeatable",
    )
    parser.add_argument(
        "--chunk-cache", type=Path, metavar="DIR", help="keep chunk embeddings there, for this and later calls"
    )
    parser.add_argument("--dtype", default="float32", help="float32 (default), bfloat16, float16")
    parser.add_argument("--device", default="cpu", help="cpu (default) or cuda")


def run(args: argparse.Namespace) -> int:
    from harness.config import load, plain
    from harness.progress import bar

    job = load("slurm.jobs.evaluate:EvaluateJob")(
        system=args.system,
        suite=args.suite,
        checkpoint=args.checkpoint,
        passages=args.passages,
        retrieval=args.retrieval,
        shots=args.shots,
        data=args.data,
        limit=args.limit,
        max_new_tokens=args.max_new_tokens,
        batch_size=args.batch_size,
        options=load("slurm.jobs.system:parse_settings")(args.set),
        asked=load("slurm.jobs.system:parse_settings")(args.ask),
        chunk_cache=args.chunk_cache,
        dtype=args.dtype,
        device=args.device,
        experiment=args.experiment,
        runs=args.runs,
    )
    with bar(job.title) as progress:
        record = job.run(progress)
    if args.json:
        print(json.dumps(plain(record), indent=1))
    else:
        print(job.said(record))
    return 1 if record.n_errors else 0
