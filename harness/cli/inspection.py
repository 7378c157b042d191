"""``refrag-bench inspect``: one question, chunk by chunk.

Not ``inspect.py``: where ``main.py`` is run as a script, a file of that name here would hide the standard library's.
"""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.cli.evaluate import SETTINGS, add_decoder_arguments

if TYPE_CHECKING:
    from rich.console import Console

HELP = "show which chunks of a question's passages REFRAG expands, and why"

DESCRIPTION = """\
Answer a question with REFRAG v2 and show its passages as the decoder read them: chunk by chunk, compressed to one
embedding or expanded to its tokens, with the selector's score and the chunk's text, and what the prompt came to in
decoder positions. The passages come from an index that `refrag-bench index` built, or from a corpus file (JSON lines
with id, title and text)."""

EPILOG = """\
examples:
  refrag-bench inspect "what is the rival of Mirel Tovan" --checkpoint DIR --index runs/indexes/bm25-…
  refrag-bench inspect "…" --checkpoint DIR --passages-file passages.jsonl --set expand=0.1 --set select=policy
  refrag-bench inspect "…" --checkpoint DIR --passages-file passages.jsonl --html chunks.html

keys of --json: question, answer, checkpoint (its digest), source, k, select, expand, passages (id, title, score of the
retriever, read, chunks: text, tokens, expanded, score of the selector), chunks, chunks_expanded, decoder_positions,
token_positions (with all chunks as tokens), position_ratio, effective_rate
"""

BAR = 10
EXPANDED, COMPRESSED = "■", "·"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description, parser.epilog = DESCRIPTION, EPILOG + SETTINGS
    parser.add_argument("question", metavar="QUESTION")
    add_decoder_arguments(parser)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--index", type=Path, metavar="DIR", help="index folder to retrieve from")
    source.add_argument("--passages-file", type=Path, metavar="FILE", help="the passages themselves, as JSON lines")
    parser.add_argument("--passages", type=int, metavar="N", help="how many (4 of an index, all of a file)")
    parser.add_argument("--html", type=Path, metavar="FILE", help="also write a page of its own, nothing else needed")
    parser.add_argument("--json", action="store_true", help="print one JSON document")


def run(args: argparse.Namespace) -> int:
    from harness.config import load, plain
    from harness.files import destination, write_atomically

    html = args.html and destination(args.html)
    inspection = load("slurm.jobs.inspect:InspectJob")(
        question=args.question,
        checkpoint=args.checkpoint,
        index=args.index,
        passages_file=args.passages_file,
        passages=args.passages,
        max_new_tokens=args.max_new_tokens,
        options=load("slurm.jobs.system:parse_settings")(args.set),
        chunk_cache=args.chunk_cache,
        dtype=args.dtype,
        device=args.device,
    ).run()
    if html:
        write_atomically(html, load("results.inspection:to_html")(inspection))
    if args.json:
        print(json.dumps(plain(inspection), indent=1, ensure_ascii=False))
        return 0
    from rich.console import Console

    _draw(inspection, Console(highlight=False))
    return 0


def _draw(it: Any, console: Console) -> None:
    """On a terminal in its width and with styles; elsewhere the same as plain text."""
    from rich.table import Table
    from rich.text import Text

    console.print(Text(_safe(it.question), style="bold"))
    for place, passage in enumerate(it.passages, start=1):
        score = "" if passage.score is None else f"  retrieval score {passage.score:.2f}"
        console.print()
        console.print(Text.assemble((f"[{place}] {_safe(passage.title or passage.id)}", "bold"), (score, "dim")))
        if not passage.read:
            console.print(Text("  not read: no room in the decoder's context", style="dim"))
            continue
        table = Table.grid(padding=(0, 1))
        for chunk in passage.chunks:
            style = "bold" if chunk.expanded else "dim"
            mark = Text(
                f"  {EXPANDED if chunk.expanded else COMPRESSED}", style="bold cyan" if chunk.expanded else "dim"
            )
            scored = [] if chunk.score is None else [f"{chunk.score:8.2f}", _bar(it.share(chunk.score))]
            text = " ".join(_safe(chunk.text).split())
            table.add_row(mark, *(Text(cell, style="dim", no_wrap=True) for cell in scored), Text(text, style=style))
        console.print(table)
    console.print()
    legend = [f"{EXPANDED} expanded: read as its tokens", f"{COMPRESSED} compressed: read as one embedding"]
    if it.score_meaning:
        legend.append(f"score: {it.score_meaning}")
    console.print(Text("\n".join(legend), style="dim"))
    console.print()
    facts = Table.grid(padding=(0, 2))
    facts.add_row("chunks", f"{it.chunks_expanded} of {it.chunks} expanded (k={it.k}, p={it.expand:g}, {it.select})")
    facts.add_row(
        "positions",
        f"{it.decoder_positions} of the decoder; {it.token_positions} with all chunks as tokens, "
        f"ratio {it.position_ratio:.2f}; effective rate {it.effective_rate:.2f}",
    )
    facts.add_row("answer", Text(_safe(it.answer), style="bold"))
    console.print(facts)


def _bar(share: float) -> str:
    filled = round(BAR * share)
    return "█" * filled + "░" * (BAR - filled)


def _safe(text: str) -> str:
    """``text`` without control characters: a passage must not steer the terminal."""
    return re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", "\N{REPLACEMENT CHARACTER}", text)
