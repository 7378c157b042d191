"""``refrag-bench train``: one stage of one system."""

from __future__ import annotations

import argparse
from pathlib import Path

HELP = "train one stage of a system (goes on from its last checkpoint)"

DESCRIPTION = """\
Train STAGE of SYSTEM at a scale. Interrupt it at any time: the same command goes on from the newest checkpoint and
ends with the same weights as an unbroken run. The checkpoint is a transformers folder plus training.json, which
says where it came from."""

EPILOG = """\
examples:
  refrag-bench train decoder pretrain                       the tiny decoder that every system starts from
  refrag-bench train standard_rag finetune                  LLaMA_FT: questions over passages as tokens
  refrag-bench train refrag_v2 reconstruction --scale tiny-k16
  refrag-bench train refrag_v2 cpt --scale tiny-k16         and so on: mixed, finetune, policy
  refrag-bench train refrag_v2 cpt --scale tiny-k16 --skip refrag_v2/reconstruction --start DECODER    an ablation
Every stage starts from the checkpoint of the one before it, and says so where that is missing.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description, parser.epilog = DESCRIPTION, EPILOG
    parser.add_argument("system", metavar="SYSTEM", help="standard_rag")
    parser.add_argument("stage", metavar="STAGE", help="finetune")
    parser.add_argument("--scale", default="tiny", help="tiny (default)")
    parser.add_argument("--runs", type=Path, default=Path("runs"), metavar="DIR", help="where runs lie (runs)")
    parser.add_argument("--device", default="cpu", help="cpu (default) or cuda")


def run(args: argparse.Namespace) -> int:
    from harness.config import load
    from harness.progress import bar

    job = load("slurm.jobs.train:TrainJob")(
        system=args.system, stage=args.stage, scale=args.scale, runs=args.runs, device=args.device
    )
    with bar(job.title) as progress:
        checkpoint = job.run(progress)
    print(checkpoint)
    return 0
