"""``refrag-bench align``: does the decoder understand the chunk embeddings?"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from harness.cli.arguments import counts

HELP = "verify a REFRAG checkpoint's alignment: reconstruction per number of chunks"

DESCRIPTION = """\
Give the decoder L chunk embeddings and measure how well it reads their text back (teacher-forced): perplexity and token
accuracy at every L, on newly drawn text of the synthetic world. Continual pre-training builds on this, so run it after
the reconstruction stage.

Beside all tokens stand names and values alone: half of the text is grammar, which needs no chunk. And below each
reading stands the floor: the same with every embedding zero, what the decoder guesses of the text without the chunks.

The gate is on all tokens, at every L. Its defaults are the seed document's; REFRAG's paper states none. Exit code 1
means that the gate was missed, with one line per L on standard error."""

EPILOG = """\
examples:
  refrag-bench align --checkpoint DIR
  refrag-bench align --checkpoint DIR --chunks 1,2,4 --max-perplexity 1.5 --min-accuracy 0.9
  refrag-bench align --checkpoint DIR --json | jq '.measured[] | [.chunks, .read.values.accuracy]'

keys of --json: folder, checkpoint (its digest), k, batches, seed, gate, measured (per number of chunks: read and floor,
each with all, names, values, each with perplexity, accuracy from 0 to 1, tokens), missed (a line each)"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description, parser.epilog = DESCRIPTION, EPILOG
    parser.add_argument(
        "--checkpoint", type=Path, required=True, metavar="DIR", help="what `train refrag_v2` (or v1) made"
    )
    parser.add_argument(
        "--chunks", type=counts, default=(1, 2, 4, 8), metavar="L,L", help="numbers of chunks (1,2,4,8)"
    )
    parser.add_argument(
        "--batches", type=int, default=8, metavar="N", help="per number of chunks, 1024 tokens each (8)"
    )
    parser.add_argument("--max-perplexity", type=float, default=2.0, metavar="X", help="largest that passes (2.0)")
    parser.add_argument("--min-accuracy", type=float, default=0.95, metavar="X", help="least that passes (0.95)")
    parser.add_argument("--seed", type=int, default=0, help="of the text; never training's (0)")
    parser.add_argument("--device", default="cpu", help="cpu (default) or cuda")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write that document there as well")


def run(args: argparse.Namespace) -> int:
    from harness.config import load
    from harness.progress import bar

    job = load("slurm.jobs.align:AlignJob")(
        checkpoint=args.checkpoint,
        chunks=args.chunks,
        batches=args.batches,
        gate=load("harness.train.alignment:Gate")(max_perplexity=args.max_perplexity, min_accuracy=args.min_accuracy),
        seed=args.seed,
        device=args.device,
        out=args.out,
    )
    with bar(job.title) as progress:
        result = job.run(progress)
    if args.json:
        print(load("slurm.jobs.align:to_json")(result))
    else:
        print(_table(result))
        if not result.missed:
            print(f"gate passed: {result.gate}")
    for line in result.missed:
        print(f"gate missed at {line}", file=sys.stderr)
    return 1 if result.missed else 0


def _table(result: Any) -> str:
    """Two lines per number of chunks: the reading, and under it the floor."""
    kinds = list(dict.fromkeys(kind for row in result.measured for kind in row.read))
    lines = [
        f"{result.folder}: chunks of {result.k} tokens, {result.batches} batches each, seed {result.seed}",
        "",
        f"{'':14}" + "".join(f"{kind + (' tokens' if kind == 'all' else ''):^22}" for kind in kinds).rstrip(),
        f"{'chunks':14}" + f"{'perplexity':>12}{'accuracy':>10}" * len(kinds),
    ]
    for row in result.measured:
        for name, found in ((f"{row.chunks:6}  read", row.read), (f"{'':6}  floor", row.floor)):
            cells = (_cell(found.get(kind)) for kind in kinds)
            lines.append(f"{name:14}" + "".join(cells))
    return "\n".join([*lines, ""])


def _cell(found: Any) -> str:
    if found is None:  # no such token among so few
        return f"{'-':>12}{'-':>10}"
    perplexity = f"{found.perplexity:.3f}" if found.perplexity < 1e5 else f"{found.perplexity:.1e}"
    return f"{perplexity:>12}{100 * found.accuracy:>8.1f} %"
