"""``refrag-bench index``: make a corpus searchable."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from harness.data.sources import DataRoot
    from harness.protocol import Passage
    from harness.retrieval.index import Index

HELP = "index a corpus with BM25, FAISS or Qdrant (a no-op when it is done)"

DESCRIPTION = """\
Index the passages of a data root, or of a file or folder given with --corpus, below --work. The index folder is named
by everything that can change its answers, so the same command again finds it and does nothing. FAISS and Qdrant share
the vectors of a corpus: the second index of an encoder takes seconds."""

EPILOG = """\
examples:
  refrag-bench index --data DIR --retriever bm25
  refrag-bench index --data DIR --retriever faiss --encoder minilm        14,000 passages: minutes on one CPU core
  refrag-bench index --data DIR --retriever qdrant --qdrant-url http://localhost:6333
  refrag-bench index --corpus psgs_w100.tsv.gz --retriever faiss --encoder bge-small=FOLDER
  refrag-bench index --corpus books.jsonl --documents 256 --tokenizer FOLDER --retriever bm25

corpus rows: {"id", "title", "text"} as JSON lines, or DPR's tab-separated id, text, title; plain or gzipped.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description, parser.epilog = DESCRIPTION, EPILOG
    add_index_arguments(parser)


def add_index_arguments(parser: argparse.ArgumentParser) -> None:
    """What says which index is meant: shared with ``retrieve``, which makes it if it is not there."""
    parser.add_argument("--data", type=Path, metavar="DIR", help="data root (default: REFRAG_DATA, else the Hub)")
    parser.add_argument("--retriever", required=True, help="bm25, faiss, qdrant")
    parser.add_argument("--corpus", type=Path, metavar="PATH", help="passages to index (default: corpus/ of --data)")
    parser.add_argument(
        "--documents",
        type=int,
        nargs="?",
        const=256,
        metavar="TOKENS",
        help="the corpus holds whole documents: cut them into passages of TOKENS (256)",
    )
    parser.add_argument(
        "--tokenizer", metavar="ID", help="counts the tokens of --documents: folder or Hub id (default: the encoder's)"
    )
    parser.add_argument(
        "--encoder",
        default="minilm",
        help="for faiss and qdrant: minilm (all-MiniLM-L6-v2, offline; default), bge-small (BAAI/bge-small-en-v1.5), "
        "bge-small=FOLDER, or a sentence-transformers FOLDER",
    )
    parser.add_argument("--qdrant-url", metavar="URL", help="use this Qdrant server (default: the embedded engine)")
    parser.add_argument("--work", type=Path, default=Path("runs"), metavar="DIR", help="where indexes lie (runs)")


def run(args: argparse.Namespace) -> int:
    from harness.data.sources import DataRoot

    index = ensure(args, DataRoot.open(args.data))
    done = "indexed" if index.new else "already indexed"
    print(f"{done}: {len(index.corpus.passages):,} passages, {index.config.retriever}, {index.folder}")
    return 0


def ensure(args: argparse.Namespace, root: DataRoot) -> Index:
    """The index that the arguments name, made now unless it is there already."""
    from harness.errors import InputError
    from harness.retrieval.corpus import read_corpus
    from harness.retrieval.index import ensure_index
    from harness.retrieval.retrievers import index_config

    config = index_config(args.retriever, args.encoder, args.qdrant_url)
    corpus = args.corpus or root.file("corpus")
    if corpus is None:
        raise InputError(f"the data root {root.name!r} has no corpus/; give one with --corpus")
    return ensure_index(config, read_corpus(corpus, _cut(args)), args.work)


def _cut(args: argparse.Namespace) -> Callable[[Iterable[Passage]], Iterable[Passage]] | None:
    if args.documents is None:
        return None
    from functools import partial

    from harness.retrieval.cut import cut_documents, token_spans
    from harness.retrieval.embed import encoder

    tokenizer = args.tokenizer or encoder(args.encoder).folder
    return partial(cut_documents, tokens=args.documents, tokenize=token_spans(tokenizer))
