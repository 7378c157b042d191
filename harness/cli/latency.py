"""``refrag-bench latency``: how fast is every system, and how far from the limit of this machine?"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

from harness.cli.arguments import counts
from harness.config import load

HELP = "TTFT, TTIT, throughput and memory of every system at fixed lengths, beside the physical limit"

DESCRIPTION = """\
Time standard RAG, KV reuse, CEPE and REFRAG on the same requests in one process, around one decoder of random weights:
latency depends on shapes, not on weights, so nothing is loaded. Each length is a group: every system answers a request
that is not counted, then rounds of new requests go through all systems in turn, standard RAG twice (A/A).

Beside every time stand its floor, from the arithmetic that the method cannot avoid and two ceilings measured in the
same run (a large matrix product, a large copy), and the cap of its speed-up, the ratio of arithmetic. A time below its
floor or a speed-up above its cap is flagged.

Lengths are measured in the order given, so put first what must not be missed: with --minutes, or when interrupted, what
is done by then is a valid table, and the same command goes on with what is missing."""

EPILOG = """\
examples:
  refrag-bench latency --out runs/latency                                      on a CPU, minutes
  refrag-bench latency --shape llama2-7b --device cuda --minutes 8 \\
      --lengths 16384,4096,1024,512,2048,8192,32768,65536 --out runs/latency-gpu

files: latency.jsonl (every sample), latency.csv and latency.md (the table), latency.png and latency.svg, latency.log"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description, parser.epilog = DESCRIPTION, EPILOG
    shapes = ", ".join(load("slurm.latency.encoders:ENCODERS"))
    parser.add_argument("--shape", default="llama-100m", metavar="NAME", help=f"decoder: {shapes} (llama-100m)")
    parser.add_argument(
        "--lengths",
        type=counts,
        default=(512, 1024, 2048, 4096, 8192),
        metavar="N,N",
        help="context tokens, multiples of 128 (512,1024,2048,4096,8192)",
    )
    parser.add_argument("--batches", type=counts, default=(1,), metavar="B,B", help="requests at once (1)")
    parser.add_argument("--rounds", type=int, default=7, metavar="N", help="requests of each system per length (7)")
    parser.add_argument("--new-tokens", type=int, default=16, metavar="N", help="length of the answer (16)")
    parser.add_argument(
        "--indexed", type=int, default=1_000_000, metavar="N", help="passages to search for +retrieve (1000000)"
    )
    parser.add_argument("--device", default="cpu", help="cpu (default) or cuda")
    parser.add_argument("--dtype", help="float32, bfloat16, float16 (default: float32 on a CPU, else bfloat16)")
    parser.add_argument("--threads", type=int, metavar="N", help="of the CPU (default: torch's own choice)")
    parser.add_argument("--minutes", type=float, metavar="M", help="start nothing after so long")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="where the files go")


def run(args: argparse.Namespace) -> int:
    job = load("slurm.jobs.latency:LatencyJob")(
        shape=args.shape,
        lengths=args.lengths,
        batches=args.batches,
        out=args.out,
        rounds=args.rounds,
        new_tokens=args.new_tokens,
        indexed=args.indexed,
        device=args.device,
        dtype=args.dtype or ("float32" if args.device == "cpu" else "bfloat16"),
        threads=args.threads,
        minutes=args.minutes,
    )
    journal = job.run(_teller(args.out / "latency.log"))
    files = load("results.latency.report:write")(journal, args.out)
    print(load("results.latency.report:closing_table")(load("results.latency.journals:read")(journal)))
    print("\n".join(map(str, files)), file=sys.stderr)
    return 0


def _teller(log: Path) -> Callable[..., None]:
    """Progress as lines, on standard error and in ``log``: the machine may have no terminal and no rich."""
    started = time.monotonic()

    def tell(done: int, total: int, note: str = "") -> None:
        line = f"{time.monotonic() - started:6.0f} s  {done}/{total} {note}".rstrip()
        print(line, file=sys.stderr, flush=True)
        with log.open("a") as file:
            file.write(line + "\n")

    return tell
