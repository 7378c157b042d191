"""Which retrievers there are, by name."""

from __future__ import annotations

from harness.errors import InputError, unknown
from harness.retrieval.index import IndexConfig

RETRIEVERS = ("bm25", "faiss", "qdrant")


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
