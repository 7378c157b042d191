"""A latency journal as files: the table as Markdown and CSV, the figure, and the short table that a run ends with."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from harness.files import write_atomically
from results.latency.figure import draw
from results.latency.journals import AGAIN, PREFILL, REFERENCE, RETRIEVE, Journal, Line, read

if TYPE_CHECKING:
    from results.grids import Grid

_DASH = "-"
_HEADINGS = (
    "Tokens",
    "System",
    "Boundary",
    "Positions",
    "TTFT, ms",
    "n",
    "Speed-up",
    "Paper",
    "Theory",
    "Cap",
    "Of the limit",
    "MFU",
    "TTIT, ms",
    "MBU",
    "Tokens/s",
    "Peak, GB",
    "KV, GB",
    "Stored, GB",
    "Flags",
)
_NOTES = (
    "TTFT, TTIT: median [p10, p90] over n rounds; every round goes through all systems on new requests, in an order of "
    "its own.",
    "Boundary: prefill, what a system keeps of the passages is ready (the paper's cached); +encode, it is made inside "
    "(not cached); +retrieve, the passages are searched for too, which standard RAG pays as well; +select, a policy "
    "chooses inside the clock.",
    "Speed-up: standard RAG's median prefill over this TTFT, with the 95 % interval of a bootstrap over rounds; "
    "~ where it is no further from 1 than the A/A interval reaches.",
    "Cap: the ratio of the arithmetic that cannot be avoided. Of the limit: the floor, from that arithmetic and the "
    "bytes of weights, keys and values against the two ceilings, over the time. Flags: what cannot be, by floor, "
    "weights or cap (where even attention at its own kernel's rate does not explain it).",
    "Paper: arXiv:2509.01092v2, Figures 2, 8 and 9, one A100, batch size 1, digitised. The k of the not-cached curve "
    "(16 here) and whether CEPE encodes inside (taken so) are not stated there.",
    "Theory: the paper's Table 6 at this shape, TTFT before over after; it counts pairs behind the causal mask too.",
    "Tokens: of context; the question comes on top. Token ids are ready: tokenising is in no time. Peak: the device's "
    "over the request, and the system's own weights; not measured on a CPU.",
)


def write(journal_path: Path, out: Path) -> list[Path]:
    """Write ``latency.csv``, ``.md``, ``.png`` and ``.svg`` into ``out``; returns their paths."""
    journal = read(journal_path)
    written = []
    for contents in ({"csv": to_csv(journal), "md": to_markdown(journal)}, draw(journal)):
        for kind, content in contents.items():
            written.append(out / f"latency.{kind}")
            write_atomically(written[-1], content)
    return written


def to_markdown(journal: Journal) -> str:
    """The conditions, and a table per batch size."""
    parts = [f"**Latency at the shape {journal.header['shape']}**", "", *_conditions(journal)]
    by_batch: dict[int, list[Line]] = {}
    for line in journal.lines:
        by_batch.setdefault(line.batch, []).append(line)
    for batch, members in by_batch.items():
        parts += ["", f"Batch size {batch}:", "", *_pipes([_HEADINGS, *map(_cells, members)])]
    return "\n".join([*parts, "", *(f"- {note}" for note in _NOTES), ""])


def grids(journal: Journal) -> list[Grid]:
    """The same tables, for a page: one per batch size."""
    from results.grids import Grid  # not at the top: it needs more than a bare GPU machine has

    return [
        Grid(
            title=f"Latency at the shape {journal.header['shape']}, batch size {batch}",
            head=_HEADINGS,
            lines=[_cells(line) for line in journal.lines if line.batch == batch],
            notes=[*(condition.removeprefix("- ") for condition in _conditions(journal)), *_NOTES],
        )
        for batch in dict.fromkeys(line.batch for line in journal.lines)
    ]


def to_csv(journal: Journal) -> str:
    """Every number of every line, in seconds, bytes and fractions."""
    names = [field.name for field in fields(Line)]
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    wide = {"ttft_s": ("p10", "median", "p90"), "ttit_s": ("p10", "median", "p90")}
    wide["theory"] = ("ttft", "ttit", "kv")
    wide |= dict.fromkeys(("speedup", "ttit_speedup", "throughput_speedup"), ("mean", "low", "high"))
    writer.writerow(f"{name}_{part}" if part else name for name in names for part in wide.get(name, ("",)))
    for line in journal.lines:
        writer.writerow(value for name in names for value in _flat(getattr(line, name), wide.get(name)))
    return out.getvalue()


def closing_table(journal: Journal) -> str:
    """Batch size 1 (or the smallest): TTFT, ratio, the paper's, the cap, the fraction of the limit."""
    members = journal.lines
    smallest = min((line.batch for line in members), default=1)
    shown = [line for line in members if line.batch == smallest and line.label != AGAIN]
    shown = [line for line in shown if not line.boundary.startswith(RETRIEVE)]
    shown = [line for line in shown if line.label != REFERENCE or line.boundary == PREFILL]
    rows = [("tokens", "system", "", "TTFT", "ratio", "paper", "cap", "of limit")]
    for line in shown:
        rows.append(
            (
                f"{line.length:,}",
                line.label,
                line.boundary,
                line.error or _or(line.ttft_s, lambda t: f"{1e3 * t[1]:,.1f} ms"),
                _or(line.speedup, lambda r: f"{r.mean:.2f}"),
                _or(line.paper, lambda x: f"{x:.2f}"),
                _or(line.cap, lambda x: f"{x:.1f}"),
                _or(line.of_limit, lambda x: f"{x:.0%}") + (" !" if line.flags else ""),
            )
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    text = ["  ".join(_aligned(row, widths)).rstrip() for row in rows]
    return "\n".join([*text, "", *_conditions(journal), *([_overhead(journal, smallest)] if shown else [])])


def _aligned(row: Sequence[str], widths: Sequence[int]) -> Iterable[str]:
    """Names to the left, numbers to the right."""
    for column, (cell, width) in enumerate(zip(row, widths, strict=True)):
        yield cell.ljust(width) if column in (1, 2) else cell.rjust(width)


def _conditions(journal: Journal) -> list[str]:
    header, ceilings, provenance = journal.header, journal.ceilings, journal.header["provenance"]
    device = provenance["device"] if header["device"] != "cpu" else provenance["cpu"]
    commit = str(provenance["commit"] or "unknown")[:12] + (" with changes" if provenance["dirty"] else "")
    searches = ", ".join(
        f"{1e3 * np.median(part['seconds']):,.1f} ms at batch {part['batch']}" for part in header["search"]
    )
    searched = (
        f"- Search among {header['indexed']:,} passages (exact, 384 numbers each; encoder of MiniLM's shape): "
        f"{searches}."
    )
    return [
        f"- {device}, {header['dtype']}, {header['threads']} CPU threads; random weights, "
        f"{header['decoder']['parameters'] / 1e6:,.0f} M parameters; {header['new_tokens']} new tokens, "
        f"questions of {header['question_tokens']}, passages of {header['passage_tokens']}; "
        f"up to {header['rounds']} rounds; commit {commit}.",
        f"- Ceilings, measured in the same run: {ceilings.flops_per_s / 1e12:,.2f} TFLOP/s, "
        f"{ceilings.bytes_per_s / 1e9:,.1f} GB/s; the attention kernel reaches "
        f"{ceilings.attention_flops_per_s / 1e12:,.2f} TFLOP/s.",
        *([searched] if searches else []),
        *_passes(journal),
    ]


def _passes(journal: Journal) -> list[str]:
    """How the decoders' passes were run inside the clock, all rows together; nothing where no row says it.

    A shape that was refused was so in the warm-up. Rows whose decode steps went another way than the others' are named.
    """
    counted = [row for row in journal.rows if row.get("passes")]
    total = sum((Counter(row["passes"]) for row in counted), Counter())
    if not total:
        return []
    said = ", ".join(f"{name} {n:,}" for name, n in sorted(total.items()))
    eager = [row for row in counted if row["passes"].get("decode eager")] if total["decode replayed"] else []
    names = ", ".join(f"{row['label']} at {row['length']:,} (batch {row['batch']})" for row in eager)
    return [
        f"- Passes of the decoder (replayed: as CUDA graphs, all but attention): {said}."
        + (f" Decode steps were eager in: {names}." if eager else "")
    ]


def _overhead(journal: Journal, batch: int) -> str:
    """A/A at every length, and the clock's own time beside the shortest TTFT."""
    members = [line for line in journal.lines if line.ttft_s and line.batch == batch]
    if not members:
        return ""
    clock_s = float(np.median(journal.header["overhead_s"]))
    shortest = min(line.ttft_s[1] for line in members if line.ttft_s)
    pairs = [line for line in members if line.label == AGAIN and line.boundary == PREFILL and line.speedup]
    said = ", ".join(f"{line.length:,}: {_speedup(line)}" for line in pairs)
    return f"- A/A, standard RAG over itself: {said}. The clock takes {clock_s / shortest:.3%} of the shortest TTFT."


def _cells(line: Line) -> tuple[str, ...]:
    return (
        f"{line.length:,}",
        line.label,
        line.boundary,
        _or(line.decoder_positions, lambda n: f"{n:,}"),
        line.error or _or(line.ttft_s, lambda spread: _milliseconds(spread, line.n)),
        str(line.n),
        _speedup(line) + (" ~" if _is_noise(line) else ""),
        _or(line.paper, lambda x: f"{x:.2f}"),
        _or(line.theory, lambda x: f"{x[0]:.1f}"),
        _or(line.cap, lambda x: f"{x:.1f}"),
        _or(line.of_limit, lambda x: f"{x:.0%}"),
        _or(line.mfu, lambda x: f"{x:.0%}"),
        _or(line.ttit_s, _milliseconds),
        _or(line.mbu, lambda x: f"{x:.0%}"),
        _or(line.tokens_per_s, lambda x: f"{x:,.1f}"),
        *(_or(size, lambda x: f"{x / 1e9:,.3f}") for size in (line.peak_bytes, line.kv_bytes, line.stored_bytes)),
        "; ".join(line.flags) or _DASH,
    )


def _is_noise(line: Line) -> bool:
    return line.speedup is not None and abs(line.speedup.mean - 1) <= line.noise


def _milliseconds(spread: tuple[float, float, float], n: int | None = None) -> str:
    """Median and, but of one value, p10 and p90; ``n`` None is of many."""
    low, median, high = (1e3 * value for value in spread)
    return f"{median:,.1f}" + (f" [{low:,.1f}, {high:,.1f}]" if n != 1 else "")


def _speedup(line: Line) -> str:
    if line.speedup is None:
        return _DASH
    interval = f" [{line.speedup.low:.2f}, {line.speedup.high:.2f}]" if line.n > 1 else ""
    return f"{line.speedup.mean:.2f}{interval}"


def _or(value: Any, say: Callable[[Any], str]) -> str:
    return _DASH if value is None else say(value)


def _flat(value: Any, parts: Sequence[str] | None) -> Iterable[Any]:
    """A value as its CSV cells."""
    if parts is None:
        return ["; ".join(value) if isinstance(value, tuple) else value]
    if value is None:
        return [None] * len(parts)
    return value if isinstance(value, tuple) else [getattr(value, part) for part in parts]


def _pipes(rows: Sequence[Sequence[str]]) -> list[str]:
    """A Markdown table, the first row its head."""
    head, *body = ["| " + " | ".join(row) + " |" for row in rows]
    return [head, "|" + "---|" * len(rows[0]), *body]
