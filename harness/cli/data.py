"""``refrag-bench data``: text to token windows for training, and what is in them."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

HELP = "tokenise text into windows for training; show what was prepared"

DESCRIPTION = """\
Prepare text for training at any size, once, before any GPU is paid for.

  prepare   tokenise a text and cut every document into windows of s + o tokens; again to go on after a kill
  show      print what is in a prepared folder: tokens and documents per set, and what was dropped and why

A text is a folder or a file of parquet or JSON lines (.jsonl, .jsonl.gz, .jsonl.zst), or a Hub id. Columns are those
of SlimPajama, `text` and `meta.redpajama_set_name`, unless said otherwise. No window crosses documents; what is left
of a document behind its last whole window is dropped and counted. Damaged rows and files are dropped and counted too,
and end the preparation only where they are more than a share of all."""

EPILOG = """\
examples:
  refrag-bench data prepare --data DIR --tokenizer CHECKPOINT --out windows
  refrag-bench data prepare --data DIR --tokenizer CHECKPOINT --out windows \\
      --sets ArXiv,Book --mixture 50/50-by-tokens --tokens 20000000000 --workers 16
  refrag-bench data prepare --data notes.jsonl.zst --set-column '' --tokenizer CHECKPOINT --out windows
  refrag-bench data prepare --data OWNER/NAME --allow-download --tokenizer CHECKPOINT --out windows
  refrag-bench data show windows --verify
  refrag-bench train refrag_v2 reconstruction --scale stream-smoke --text windows

what is written:
  OUT/windows.json       the manifest, last: counts, digests, tokenizer, mixture
  OUT/shards/N-SET.npy   windows (n, s + o) as uint16, or uint32 for vocabularies above 65,536: numpy opens them
  OUT/shards/N.json      what became of the N-th part of the input"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description, parser.epilog = DESCRIPTION, EPILOG
    actions = parser.add_subparsers(dest="action", metavar="prepare|show", required=True)
    prepare = actions.add_parser("prepare", help="tokenise a text into windows")
    prepare.add_argument("--data", required=True, metavar="DIR", help="the text: a folder, a file or a Hub id")
    prepare.add_argument("--tokenizer", required=True, metavar="CHECKPOINT", help="folder or Hub id of the decoder")
    prepare.add_argument("--out", type=Path, required=True, metavar="DIR", help="where the windows go")
    prepare.add_argument(
        "--split", default="train", metavar="NAME", help="files that start so (train); all: every file"
    )
    prepare.add_argument("--sets", default="", metavar="A,B", help="these sets only (default: all that there are)")
    prepare.add_argument(
        "--mixture", metavar="X/Y-by-tokens", help="an epoch's share of tokens of each of --sets (default: all windows)"
    )
    prepare.add_argument("--context", type=int, default=2048, metavar="S", help="tokens of context, s (2048)")
    prepare.add_argument("--output", type=int, default=2048, metavar="O", help="tokens to be predicted, o (2048)")
    prepare.add_argument(
        "--tokens",
        type=int,
        metavar="N",
        help="stop once N tokens are in windows, with --mixture each set's share of them (default: take all)",
    )
    prepare.add_argument("--workers", type=int, default=1, metavar="N", help="processes that tokenise (1)")
    prepare.add_argument("--text-column", default="text", metavar="NAME", help="where a row has its text (text)")
    prepare.add_argument(
        "--set-column",
        default="meta.redpajama_set_name",
        metavar="NAME",
        help="where a row names its set (meta.redpajama_set_name); '' where there are no sets",
    )
    prepare.add_argument(
        "--most-bad", type=float, default=0.05, metavar="X", help="share of rows, and of files, that may be bad (0.05)"
    )
    prepare.add_argument(
        "--most-short", type=float, default=0.95, metavar="X", help="share of documents that may fill no window (0.95)"
    )
    prepare.add_argument(
        "--allow-download",
        action="store_true",
        default=argparse.SUPPRESS,  # or it would undo the same option before the action
        help="let the model and dataset hub be asked (default: offline)",
    )
    show = actions.add_parser("show", help="what is in a prepared folder")
    show.add_argument("folder", type=Path, metavar="DIR", help="what `data prepare` wrote")
    show.add_argument("--verify", action="store_true", help="read every shard again and compare its SHA-256")
    show.add_argument("--json", action="store_true", help="print the manifest as one JSON object")


def run(args: argparse.Namespace) -> int:
    return _prepare(args) if args.action == "prepare" else _show(args)


def _prepare(args: argparse.Namespace) -> int:
    from harness.data.stream.prepare import StreamConfig, prepare
    from harness.data.stream.reading import Columns
    from harness.data.stream.windows import Windows
    from harness.progress import bar

    config = StreamConfig(
        context=args.context,
        output=args.output,
        split=args.split,
        sets=tuple(filter(None, args.sets.split(","))),
        mixture=args.mixture,
        tokens=args.tokens,
        columns=Columns(text=args.text_column, set=args.set_column or None),
        most_bad=args.most_bad,
        most_short=args.most_short,
    )
    with bar(f"tokenise {Path(args.data).name}") as progress:
        folder = prepare(args.data, args.tokenizer, args.out, config, workers=args.workers, progress=progress)
    print(to_text(Windows(folder).manifest))
    return 0


def _show(args: argparse.Namespace) -> int:
    from harness.data.stream.windows import Windows

    windows = Windows(args.folder)
    print(json.dumps(windows.manifest, ensure_ascii=False) if args.json else to_text(windows.manifest))
    damaged = windows.damaged() if args.verify else []
    if args.verify and not args.json:
        print(f"damaged: {', '.join(damaged) or 'no shard'}")
    return 1 if damaged else 0


def to_text(manifest: Mapping[str, Any]) -> str:
    """The manifest for a person."""
    from harness.data.stream.mixture import windows_of
    from harness.data.stream.tally import KINDS

    layout, read, tokenizer = manifest["layout"], manifest["read"], manifest["tokenizer"]
    sets: Mapping[str, Mapping[str, int]] = manifest["sets"]
    taken = windows_of({name: counts["windows"] for name, counts in sets.items()}, manifest["mixture"])
    length = layout["length"]
    rows: list[tuple[str, ...]] = [("set", "documents", "tokens", "windows", "tokens in windows", "tokens in an epoch")]
    for name, counts in sets.items():
        used = counts["windows"] * length, taken.get(name, 0) * length
        rows.append((name, *(f"{n:,}" for n in (counts["documents"], counts["tokens"], counts["windows"], *used))))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    table = ["  ".join(c.rjust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in rows]
    others = ", ".join(f"{name} {count:,}" for name, count in read["other_sets"].items())
    mixture = " ".join(f"{name} {share:.0%}" for name, share in (manifest["mixture"] or {}).items())
    budget = manifest.get("budget")  # windows of before there was one have none
    dropped = [
        f"  {count:>10,}  {KINDS[kind]}; the first: {read['first'][kind]}" for kind, count in read["dropped"].items()
    ]
    dropped += [
        f"  {sum(counts['rest'] for counts in sets.values()):>10,}  tokens behind the last window of a document"
    ]
    return "\n".join(
        [
            f"windows-{manifest['digest']}: {manifest['dataset']}, split {manifest['split']}",
            f"windows of {layout['context']:,} + {layout['output']:,} tokens, {manifest['dtype']}, of "
            f"{tokenizer['vocabulary']:,} (tokenizer {tokenizer['digest']})",
            f"mixture by tokens: {mixture or 'none, an epoch is all windows'}",
            f"budget: {f'{budget:,} tokens' if budget else 'none, all there is'}",
            *table,
            f"read {read['shards']:,} files, {read['rows']:,} rows, of them of other sets {others or 'none'}",
            "dropped",
            *dropped,
        ]
    )
