"""``refrag-bench retrieve``: the passages of a suite, frozen to the file that every system reads."""

from __future__ import annotations

import argparse
import json
from typing import Any

from harness.cli import index

HELP = "retrieve a suite's passages once, freeze them to a file, print hit@k"

DESCRIPTION = """\
Retrieve passages for every question of a suite and freeze them below --work, in DPR/FiD form (gzipped JSON lines with
id, question, answers and ctxs), with a manifest that carries the digest of the rows. Indexes the corpus first if that
has not been done. The same command again reads the file.

hit@k is the share of questions of which one of the first k passages holds an answer (DPR's test); recall@k the share
of a question's known gold passages among the first k, averaged over the recall_n questions retrieved for that have
some. gold_unmatched counts the question ids of the root's gold file that match no question of the suite: of the whole
suite, whatever --limit is. --json gives fractions, 0 to 1, the text percent; a k beyond the lists' length is null."""

EPILOG = """\
examples:
  refrag-bench retrieve --suite nq --retriever bm25 --data DIR
  refrag-bench retrieve --suite popqa --retriever faiss --data DIR --k 10 --json
  refrag-bench retrieve --suite triviaqa --retriever bm25 --data DIR --setting weak --seed 1
Give the file to `refrag-bench evaluate --retrieval FILE`.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description, parser.epilog = DESCRIPTION, EPILOG
    parser.add_argument("--suite", required=True, help="nq, triviaqa, popqa; topiocqa, qrecc, orconvqa")
    index.add_index_arguments(parser)
    parser.add_argument(
        "--setting", default="strong", help="strong: the best K (default); weak: K of the best 200 at random"
    )
    parser.add_argument("--k", type=int, default=20, metavar="K", help="passages per question (20)")
    parser.add_argument("--seed", type=int, default=0, help="of the weak setting's draw (0)")
    parser.add_argument("--limit", type=int, metavar="N", help="only the first N questions")
    parser.add_argument("--json", action="store_true", help="print one JSON document; rates are fractions")


def run(args: argparse.Namespace) -> int:
    from harness.data.sources import DataRoot, load_questions
    from harness.retrieval.frozen import Setting, freeze
    from harness.retrieval.gold import read_gold

    setting = Setting(name=args.setting, k=args.k, seed=args.seed)
    root = DataRoot.open(args.data)
    examples, source = load_questions(args.suite, root, limit=args.limit)
    made = index.ensure(args, root)
    # The gold passages are ids in the root's own corpus; in another one they would be other passages.
    own_corpus = args.corpus is None and args.documents is None
    gold = read_gold(args.suite, root, load_questions(args.suite, root)[0]) if own_corpus else None
    frozen = freeze(examples, source, made, setting, suite=args.suite, work=args.work, gold=gold)
    found = {
        "suite": args.suite,
        "root": root.name,
        "retriever": args.retriever,
        "setting": setting.name,
        "k": setting.k,
        "seed": frozen.manifest.seed,
        "n": frozen.manifest.n,
        **frozen.manifest.measures,
        "digest": frozen.manifest.digest,
        "frozen": str(frozen.path),
        "index": str(made.folder),
        "new": frozen.new,
    }
    print(json.dumps(found, indent=1) if args.json else _text(found))
    return 0


def _text(found: dict[str, Any]) -> str:
    head = (
        f"{found['suite']} ({found['root']}): {found['retriever']}, {found['setting']}, k={found['k']}, n={found['n']}"
    )
    lines = [head, _rates("hit", found)]
    if "recall_n" in found:
        file, n = f"qrels/{found['suite']}.gold.tsv", found["gold_unmatched"]
        unmatched = f"; {n:,} question ids of {file} match none of the whole suite" if n else ""
        lines.append(f"{_rates('recall', found)}  over {found['recall_n']} questions with gold passages{unmatched}")
    state = "frozen" if found["new"] else "already frozen"
    return "\n".join([*lines, f"{state}: {found['frozen']} ({found['digest']})"])


def _rates(name: str, found: dict[str, Any]) -> str:
    rates = {key: rate for key, rate in found.items() if key.startswith(f"{name}@")}
    return "  ".join(f"{key} {'-' if rate is None else f'{100 * rate:.1f}%'}" for key, rate in rates.items())
