"""``refrag-bench train``: one stage of one system."""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from harness.errors import InputError

if TYPE_CHECKING:
    from slurm.jobs.train import TrainJob

HELP = "train one stage of a system (goes on from its last checkpoint)"

DESCRIPTION = """\
Train STAGE of SYSTEM at a scale. Interrupt it at any time: the same command goes on from the newest checkpoint and
ends with the same weights as an unbroken run. The checkpoint is a transformers folder plus training.json, which
says where it came from.

systems and stages:
  decoder        pretrain (the decoder that all systems start from)
  standard_rag   finetune, memory
  kv_reuse       finetune (under the mask that it serves), memory
  cepe           warmup, cpt, memory, in this order
  refrag_v1      cpt_recon, cpt_next, train_policy; no order is enforced
  refrag_v2      reconstruction, cpt, mixed, finetune, policy_start, policy, memory, in this order
  (memory: pass keys and far look-ups, for `run passkey`; tiny-k8, tiny-k16, tiny-k32)

scales:
  tiny                                        decoder, standard_rag, kv_reuse, cepe
  tiny-distilled                              cepe's cpt with CEPED's divergence
  tiny-k64                                    refrag_v1
  tiny-k4, tiny-k8, tiny-k16, tiny-k32        refrag_v2, by tokens per chunk
  tiny-k32-half                               refrag_v2 for `run selection`
  objective-k8, objective-k64                 refrag_v1 and refrag_v2 for `run objective`
  text-tiny                                   decoder, standard_rag, cepe, on a text (--text)
  text-tiny-k8, text-tiny-k16, text-tiny-k32  refrag_v2, on a text
  text-mini, text-mini-k8, ...                the same with 91 M parameters, for a GPU
  stream-smoke                                refrag_v2's first two stages, on prepared windows (--text)
  paper-k8, paper-k16, paper-k32, paper-k64   refrag_v2 at the paper's size, on prepared windows (--text) and with
                                              --start for its decoder; `refrag-bench plan` says what it takes
  ...-short                                   the same in fewer steps"""

EPILOG = """\
examples:
  refrag-bench train decoder pretrain
  refrag-bench train standard_rag finetune
  refrag-bench train cepe warmup
  refrag-bench train refrag_v1 cpt_recon --scale tiny-k64
  refrag-bench train refrag_v2 reconstruction --scale tiny-k16
  refrag-bench train refrag_v2 cpt --scale tiny-k16
  refrag-bench train refrag_v2 cpt --scale tiny-k16 --skip refrag_v2/reconstruction --start DECODER    an ablation
  refrag-bench train refrag_v2 reconstruction --scale stream-smoke --text DIR    DIR: of `refrag-bench data prepare`
  refrag-bench train refrag_v2 reconstruction --scale stream-smoke --text DIR --processes 4

Every stage starts from the checkpoint of the one before it, and says so where that is missing. A stage whose trained
checkpoint comes with the project is not trained again, unless --from-scratch says so. The names train_reconstruction,
train_cpt and train_policy stand for the three stages of refrag_v2, also as `refrag-bench train_cpt --scale tiny-k16`.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description, parser.epilog = DESCRIPTION, EPILOG
    parser.add_argument("system", metavar="SYSTEM", help="decoder, standard_rag, kv_reuse, cepe, refrag_v1, refrag_v2")
    parser.add_argument("stage", metavar="STAGE", help="a stage of the system (see above)")
    parser.add_argument("--scale", default="tiny", help="how large and how long (tiny)")
    parser.add_argument("--start", type=Path, metavar="DIR", help="start from this checkpoint (default: stage before)")
    parser.add_argument(
        "--skip",
        action="append",
        default=[],
        metavar="SYSTEM/STAGE",
        help="start although the checkpoint never went through that stage: an ablation, recorded as one; repeatable",
    )
    parser.add_argument("--seed", type=int, help="another random seed than the recipe's own")
    parser.add_argument("--from-scratch", action="store_true", help="train what an accepted checkpoint is there for")
    parser.add_argument(
        "--recompute",
        action="store_true",
        help="activation checkpointing: less memory, about a third more work, the same numbers",
    )
    parser.add_argument(
        "--text",
        type=Path,
        metavar="DIR",
        help="what is trained on: for the text-* scales a text that `refrag-bench run perplexity` made (below "
        "RUNS/text), for stream-smoke and paper-* windows that `refrag-bench data prepare` made",
    )
    parser.add_argument("--runs", type=Path, default=Path("runs"), metavar="DIR", help="where runs lie (runs)")
    parser.add_argument("--device", default="cpu", help="cpu (default) or cuda")
    parser.add_argument(
        "--processes",
        type=int,
        default=1,
        metavar="N",
        help="train in N processes on this machine, a GPU each on cuda; the end of one ends all (1)",
    )
    parser.add_argument(
        "--loaders",
        type=int,
        default=0,
        metavar="N",
        help="beside each process N more that read windows and lay out batches ahead; the batches are the same (0)",
    )
    parser.add_argument(
        "--track",
        metavar="URI",
        help="track to this MLflow store, or off (default: $MLFLOW_TRACKING_URI, else RUNS/mlflow.db where MLflow is "
        "installed); what becomes of it never touches the training",
    )


def run(args: argparse.Namespace) -> int:
    from harness.cli.catalog import RECIPES, SEED_NAMES
    from harness.config import load
    from harness.processes import run_together
    from harness.train.ranks import here, launcher
    from harness.train.tracking import OFF, store

    stages = RECIPES.get(args.system, {})  # a stage that a system has is meant, whatever the seed calls v2's
    stage = args.stage if args.stage in stages else SEED_NAMES.get(args.stage, args.stage)
    job = load("slurm.jobs.train:TrainJob")(
        system=args.system,
        stage=stage,
        scale=args.scale,
        runs=args.runs,
        device=args.device,
        start=args.start,
        skip=tuple(args.skip),
        seed=args.seed,
        from_scratch=args.from_scratch,
        recompute=args.recompute,
        text=args.text,
        tasks_per_node=args.processes,
        loaders=args.loaders,
    )
    track = store(args.track, args.runs) or OFF
    own = here()
    if own.world == 1 and args.processes > 1:
        print(run_together(args.processes, partial(_train, job, track)))
        return 0
    if launcher() == "torchrun" and own.world != args.processes:
        raise InputError(f"torchrun started {own.world} processes; expected --processes {own.world}")
    checkpoint = _train(job, track)
    if own.rank == 0:
        print(checkpoint)
    return 0


def _train(job: TrainJob, track: str) -> Path:
    """Train in this process; of several, the first says how far it is, and tracks it."""
    from harness.progress import bar
    from harness.train.ranks import here

    if here().rank:
        return job.run(track=track)
    with bar(job.title) as progress:
        return job.run(progress, track=track)
