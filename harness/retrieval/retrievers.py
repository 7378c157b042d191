"""Which retrievers there are, by name."""

from __future__ import annotations

from pathlib import Path

from harness.errors import InputError, unknown
from harness.protocol import Retriever
from harness.retrieval.index import IndexConfig, damaged, load_index, read_manifest

RETRIEVERS = ("bm25", "faiss", "qdrant")
CHOICES = ({"retriever"}, {"retriever", "encoder"}, {"retriever", "encoder", "qdrant_url"})


def index_config(retriever: str, encoder: str = "minilm", qdrant_url: str | None = None) -> IndexConfig:
    """The settings of ``retriever``; ``encoder`` (as ``harness.retrieval.embed.encoder`` takes it) is for dense ones.

    Raises ``InputError`` for an unknown name, an encoder that cannot be had, or a URL for a retriever without server.
    """
    if qdrant_url is not None and retriever != "qdrant":
        raise InputError(f"a Qdrant URL goes with the retriever qdrant, got it with {retriever!r}")
    match retriever:
        case "bm25":
            from harness.retrieval.bm25 import BM25Config

            return BM25Config()
        case "faiss":
            from harness.retrieval import embed
            from harness.retrieval.faiss_index import FaissConfig

            return FaissConfig(encoder=embed.encoder(encoder))
        case "qdrant":
            from harness.retrieval import embed
            from harness.retrieval.qdrant_index import QdrantConfig

            return QdrantConfig(encoder=embed.encoder(encoder), url=qdrant_url)
        case _:
            raise unknown("retriever", retriever, RETRIEVERS)


def open_index(folder: Path) -> Retriever:
    """The retriever over an index folder, which ``ensure_index`` made here or on another machine.

    Raises ``InputError`` when the folder is no index, is damaged, or its encoder is not to be had here.
    """
    manifest = read_manifest(folder)
    choice = manifest["choice"]
    if choice.keys() not in CHOICES or not all(isinstance(value, str) for value in choice.values()):
        raise damaged(folder, f"its manifest names no retriever of ours: {choice}")
    return load_index(index_config(**choice), folder, manifest).open()
