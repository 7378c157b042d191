"""``refrag-bench plan``: what would training at a scale take? Arithmetic; nothing is run."""

from __future__ import annotations

import argparse
import json
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from harness.config import load, plain

HELP = "parameters, memory, FLOPs, GPU-hours and cost of training at a scale"

DESCRIPTION = """\
Compute what training REFRAG at a scale takes, from the shapes alone: no weights, no download, nothing measured.
Prints parameters per part, memory per GPU, and per stage the tokens, steps, FLOPs, GPU-hours and cost, beside them what
other scales would take, then the seed document's own estimate, which is a claim and enters no number, and last
everything that is assumed.

  7b            the paper's: LLaMA-2-7B, 20 B tokens, 64 H100 (experiment `paper`)
  7b-10x-data   the same on 200 B tokens
  70b           the same with LLaMA-2-70B"""

EPILOG = """\
examples:
  refrag-bench plan
  refrag-bench plan --scale 70b
  refrag-bench plan --k 32 --mfu 0.3 --price 4
  refrag-bench plan --json | jq '.stages | map_values(.gpu_hours)'

keys of --json: scale, k, decoder, encoder, cluster, mfu, price_usd, parameters, memory_bytes (per GPU, by stage and
line), memory_formulas, activation_bytes, rows_per_gpu, stages, total, beyond, assumed, seed_claims"""

Table = list[tuple[str, ...]]
WIDTH = 100
MFU = 0.4
PRICE_USD = 2.5


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description, parser.epilog = DESCRIPTION, EPILOG
    parser.add_argument("--scale", default="7b", metavar="NAME", help="7b (default, the paper's), 7b-10x-data or 70b")
    parser.add_argument("--k", type=int, default=16, help="tokens per chunk (16)")
    parser.add_argument(
        "--mfu", type=float, default=MFU, help=f"assumed share of the GPUs' peak that training reaches ({MFU:g})"
    )
    parser.add_argument(
        "--price", type=float, default=PRICE_USD, metavar="USD", help=f"assumed price per GPU-hour ({PRICE_USD:.2f})"
    )
    parser.add_argument("--json", action="store_true", help="print the plan as one JSON object")


def run(args: argparse.Namespace) -> int:
    plan = plain(load("slurm.plan.plan:make_plan")(args.scale, k=args.k, mfu=args.mfu, price_usd=args.price))
    print(json.dumps(plan, indent=1, allow_nan=False) if args.json else to_text(plan))
    return 0


def to_text(plan: Mapping[str, Any]) -> str:
    """The plan for a person, at most 100 columns wide."""
    cluster = plan["cluster"]
    title = (
        f"Training at scale {plan['scale']!r}, k = {plan['k']}: {plan['decoder']} with {plan['encoder']}, on "
        f"{cluster['nodes']} x {cluster['gpus_per_node']} {cluster['gpu']}. Computed from shapes; nothing is measured."
    )
    blocks = [
        _wrapped(title),
        _parameters(plan),
        _memory(plan),
        _stages(plan),
        _example_flops(plan),
        _beyond(plan),
        _seed(plan),
        _assumed(plan),
    ]
    return "\n\n".join(blocks)


def _parameters(plan: Mapping[str, Any]) -> str:
    rows = [(part, f"{count:,}") for part, count in plan["parameters"].items()]
    return "Parameters\n" + _table([("part", "parameters"), *rows])


def _memory(plan: Mapping[str, Any]) -> str:
    stages: Mapping[str, Mapping[str, float]] = plan["memory_bytes"]
    lines = list(next(iter(stages.values())))
    table: Table = [("GB", *stages)]
    table += [(line, *(_gb(stage[line]) for stage in stages.values())) for line in lines]
    room = plan["cluster"]["memory_bytes"]
    for total in (line for line in lines if line.startswith("total")):
        fits = ("yes" if stage[total] <= room else "no" for stage in stages.values())
        table.append((f"fits in {room / 1e9:g} GB, {total.removeprefix('total, ')}", *fits))
    rows = ", ".join(f"{name} {count}" for name, count in plan["rows_per_gpu"].items())
    kept = ", ".join(f"{name} {count:,}" for name, count in plan["activation_bytes"].items())
    formulas = [f"{line}: {formula}" for line, formula in plan["memory_formulas"].items()]
    notes = [*formulas, f"activation bytes per layer and position: {kept}", f"examples per GPU and pass: {rows}"]
    return "Memory per GPU (1 GB = 1e9 bytes), full sharding\n" + _table(table) + "\n" + _listed(notes)


def _stages(plan: Mapping[str, Any]) -> str:
    table: Table = [("stage", "tokens", "steps", "peak lr", "FLOPs", "GPU-h", "days", "USD", "T8 GPU-h", "T8 USD")]
    for name, stage in plan["stages"].items():
        table.append((name, _count(stage["tokens"]), f"{stage['steps']:,}", _rate(stage["lr"]), *_cost(stage)))
    table.append(("total", "", "", "", *_cost(plan["total"])))
    said = f"at an MFU of {plan['mfu']:g} and {plan['price_usd']:.2f} USD per GPU-hour, both assumed"
    gpus = plan["cluster"]["nodes"] * plan["cluster"]["gpus_per_node"]
    note = (
        f"Days on {gpus} GPUs. FLOPs to USD: every example at its longest, an upper bound. T8: with the lengths of "
        "the paper's curriculum (Table 8), where a stage has it."
    )
    return f"Stages, {said}\n" + _table(table) + "\n" + _listed([note])


def _cost(row: Mapping[str, Any]) -> tuple[str, ...]:
    return (
        f"{row['flops']:.2e}",
        f"{row['gpu_hours']:,.0f}",
        f"{row['days']:.2f}",
        f"{row['cost_usd']:,.0f}",
        f"{row['curriculum_gpu_hours']:,.0f}",
        f"{row['curriculum_cost_usd']:,.0f}",
    )


def _example_flops(plan: Mapping[str, Any]) -> str:
    parts = [part for part in plan["parameters"] if part != "total"]
    table: Table = [("stage", "encoder in", "decoder in", *parts, "trained")]
    for name, stage in plan["stages"].items():
        used = (stage["flops_by_part"].get(part) for part in parts)
        cells = ("-" if flops is None else f"{flops / 1e12:,.3f}" for flops in used)
        positions = f"{stage['encoder_positions']:,}", f"{stage['decoder_positions']:,}"
        everything = set(stage["trained"]) >= {"decoder", "encoder", "projector"}
        table.append((name, *positions, *cells, "everything" if everything else ", ".join(stage["trained"])))
    note = (
        "Per position and weight: 6 where trained, 4 where frozen on a gradient's way, 2 forward only; attention over "
        "S positions: 12 S x width per layer, 4 forward only. The encoder reads windows of k + 2 positions."
    )
    return "One example: positions read, TFLOP by part\n" + _table(table) + "\n" + _listed([note])


def _beyond(plan: Mapping[str, Any]) -> str:
    cluster = plan["cluster"]
    table: Table = [("scale", "decoder", "tokens", "GPU-h", "days", "USD", "T8 GPU-h", "GB per GPU", "fits")]
    for name, other in plan["beyond"].items():
        total = other["total"]
        cost = (f"{total[key]:,.{digits}f}" for key, digits in (("gpu_hours", 0), ("days", 1), ("cost_usd", 0)))
        short = f"{total['curriculum_gpu_hours']:,.0f}", _gb(other["memory_bytes"]), "yes" if other["fits"] else "no"
        table.append((name, other["decoder"].split("/")[-1], _count(other["tokens"]), *cost, *short))
    title = (
        f"Other scales, the same stages on the same {cluster['nodes']} x {cluster['gpus_per_node']} {cluster['gpu']}"
    )
    note = (
        "All stages together; GB are of one GPU, checkpointed, in the stage that needs most. No rate, batch or MFU was "
        "adapted."
    )
    return f"{title}\n{_table(table, left=2)}\n{_listed([note])}"


def _seed(plan: Mapping[str, Any]) -> str:
    rows = [(c["phase"], c["gpus"], c["time"], c["cost"], f"{c['gpu_hours']:,}") for c in plan["seed_claims"]]
    title = 'Claim of the seed document ("Estimated Resources"), for phases of its own; no number above uses it'
    note = "GPU-hours are the claim's GPUs times its time. Its Phase 4 is the whole training at the paper's size."
    table = _table([("phase", "GPUs", "time", "cost", "GPU-hours"), *rows], left=4)
    return f"{title}\n{table}\n{_listed([note])}"


def _assumed(plan: Mapping[str, Any]) -> str:
    lines = [f"{name}: {reason}" for name, reason in plan["assumed"].items()]
    for name, stage in plan["stages"].items():
        lines += [f"{name}, {setting}: {reason}" for setting, reason in stage["assumed"].items()]
    return "Assumed, not stated by the paper\n" + _listed(lines)


def _table(rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """Aligned columns; the first ``left`` of them to the left."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = (
            cell.ljust(width) if index < left else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        lines.append(("  " + "  ".join(cells)).rstrip())
    return "\n".join(lines)


def _wrapped(text: str, indent: str = "") -> str:
    return textwrap.fill(text, WIDTH, initial_indent=indent, subsequent_indent="    " if indent else "")


def _listed(lines: Iterable[str]) -> str:
    return "\n".join(_wrapped(line, "  ") for line in lines)


def _gb(count: float) -> str:
    return f"{count / 1e9:,.2f}"


def _rate(lr: float) -> str:
    return f"{lr:.0e}".replace("e-0", "e-")


def _count(tokens: int) -> str:
    return f"{tokens / 1e9:,.1f} B"
