"""``refrag-bench run``: a whole experiment, from data to tables."""

from __future__ import annotations

import argparse
from pathlib import Path

from harness.cli.arguments import SCALE, count

HELP = "run a whole experiment: data, training, retrieval, evaluation, tables"

DESCRIPTION = """\
Run an experiment end to end. Whatever is there already is not done again, so the same command goes on after any
interruption.

experiments:
  smoke  jobs that only count, to try out a cluster (`refrag-bench sweep submit smoke`)
  tiny   the synthetic world: every system on three suites and on the same-relation hard set, with REFRAG v2 at k = 8,
         16 and 32; what is expanded (nothing, by chance, by the policy, by an oracle, everything); who answers first.
         Starts from the accepted checkpoints; --from-scratch trains everything (offline; minutes on 2 cores)
  main_table
         every system on every suite, three trainings each, and its paired difference to standard RAG; with --data and
         --checkpoint, what needs no training of its own on real questions
  selection
         does GRPO teach the policy anything: three seeds against their own start and against chance, paired tests
  expansion
         exact match by the share of chunks that is expanded, 0 to 100 %, by every selector at k = 8, 16 and 32 (the
         paper's Figure 3), and k = 16 with the policy beside k = 8 at equal decoder positions (its Table 13), in small
  objective
         REFRAG v1's recipe and v2's, each at k = 8 and 64, three seeds, paired tests
  order, curriculum, k_ablation, pooling
         training ablations in one small budget, three seeds, paired tests: the order of the stages (with an encoder
         that starts aligned and one that does not), the curriculum, k from 2 to 64, what the encoder reads and how its
         states become a chunk
  perplexity
         log-perplexity of the next tokens of real text given s tokens before them, every system, in the layout of the
         paper's Tables 1 and 2; trains small models on the text of --data (--scale quarter: an hour of one core; mini,
         of 91 M parameters: nine minutes of an H200)
  text_ablation
         on the text of --data too, the paper's Tables 11 to 13 in small: the order of the stages, the curriculum of
         reconstruction, a policy at k = 16 against k = 8
  passkey
         pass keys at every length and depth, and look-ups at every distance, within the trained length and past it
  latency
         TTFT, TTIT, throughput and memory of every system beside this machine's limit (`refrag-bench latency` with its
         settings chosen): a 100 M-parameter shape on a CPU, LLaMA-2-7B's on cuda
  real   NQ, TriviaQA and PopQA questions over the corpus of a data root: indexes it with BM25, FAISS and Qdrant,
         freezes every retrieval, prints hit@1/5/20, and evaluates the tiny decoder on it (scores near zero: it has
         never read natural language; give --checkpoint for a decoder that has)
  paper  the paper's training on 64 GPUs, then the main table; refused with its reasons as long as some of it cannot
         run; --scale smoke is the same phases in minutes. For a cluster alone: refrag-bench sweep submit paper
  fsdp   two nodes of two ranks train a small REFRAG stage, one process trains the same; the loss curves are compared.
         For a cluster alone: refrag-bench sweep submit fsdp --cluster NAME"""

EPILOG = """\
examples:
  refrag-bench run tiny
  refrag-bench run tiny --from-scratch                   trains every stage in a small budget
  refrag-bench run tiny --from-scratch --scale long     trains the accepted checkpoints again
  refrag-bench run perplexity --data DIR                 parquet or jsonl in SlimPajama's schema, train and validation
  refrag-bench run real --data DIR --limit 100
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description, parser.epilog = DESCRIPTION, EPILOG
    parser.add_argument("experiment", metavar="NAME", help="tiny, selection, objective, order, ... (below)")
    parser.add_argument("--data", type=Path, metavar="DIR", help="data root (default: REFRAG_DATA; tiny makes its own)")
    parser.add_argument("--checkpoint", metavar="DIR", help="decoder to evaluate (default: the trained tiny one)")
    parser.add_argument("--from-scratch", action="store_true", help="train everything, accepted checkpoints or not")
    parser.add_argument("--scale", help=SCALE)
    parser.add_argument("--limit", type=count, metavar="N", help="only the first N questions of every suite")
    parser.add_argument("--device", default="cpu", help="cpu (default) or cuda")
    parser.add_argument("--runs", type=Path, default=Path("runs"), metavar="DIR", help="where runs lie (runs)")
    parser.add_argument("--out", type=Path, default=Path("results"), metavar="DIR", help="where tables go (results)")


def run(args: argparse.Namespace) -> int:
    from harness.cli.catalog import EXPERIMENTS, find
    from harness.config import load

    experiment = find("experiment", EXPERIMENTS, args.experiment)
    phases = experiment(
        data=args.data,
        checkpoint=args.checkpoint,
        limit=args.limit,
        device=args.device,
        runs=args.runs,
        out=args.out,
        from_scratch=args.from_scratch,
        budget=args.scale,
    )
    code: int = load("slurm.phases:run_phases")(phases)
    return code
