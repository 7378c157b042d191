"""Qdrant: the embedded engine by default, or a server by URL; exact search in both.

Points carry their corpus row as id and no payload: passages come from the corpus.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from harness.errors import InputError
from harness.retrieval.corpus import Corpus
from harness.retrieval.dense import DenseRetriever
from harness.retrieval.embed import EncoderConfig
from harness.retrieval.embeddings import corpus_vectors

if TYPE_CHECKING:
    import numpy as np
    from qdrant_client import QdrantClient

SHARD = "shard"
UPSERT = 1024
QUERIES = 64
INSTALL = "the retriever qdrant needs its engine and client: pip install 'refrag-bench[qdrant]'"


@dataclass(frozen=True, kw_only=True)
class QdrantConfig:
    """``encoder``'s vectors in the embedded engine, or in the server at ``url`` (its key in QDRANT_API_KEY)."""

    encoder: EncoderConfig
    url: str | None = None

    retriever = "qdrant"

    def __post_init__(self) -> None:
        """A URL is kept in manifests and said in errors. Raises ``InputError``, without it, where it holds a secret."""
        if self.url is not None and ("@" in self.url or "?" in self.url or "#" in self.url):
            raise InputError(
                "expected a Qdrant URL like http://localhost:6333, without user, password and query; a key goes into "
                "QDRANT_API_KEY"
            )

    def identity(self) -> dict[str, Any]:
        return {"encoder": self.encoder.identity(), "kind": "exact inner product", "url": self.url}

    def choice(self) -> dict[str, str]:
        server = {} if self.url is None else {"qdrant_url": self.url}
        return {"retriever": self.retriever, "encoder": self.encoder.choice} | server

    def versions(self) -> dict[str, str]:
        engine = "qdrant-edge-py" if self.url is None else "qdrant-client"
        return {package: version(package) for package in (engine, "torch", "transformers")}

    def write(self, corpus: Corpus, folder: Path, work: Path) -> None:
        if self.url is None:
            _edge()  # before minutes of encoding
            write_shard(corpus_vectors(corpus, self.encoder, work), folder)
        else:
            client = connect(self.url)
            upload(corpus_vectors(corpus, self.encoder, work), client, self._collection(corpus))

    def open(self, corpus: Corpus, folder: Path) -> DenseRetriever:
        if self.url is None:
            return DenseRetriever(corpus, self.encoder, QdrantShard(folder))
        server = QdrantServer(connect(self.url), self._collection(corpus), len(corpus.passages))
        return DenseRetriever(corpus, self.encoder, server)

    def _collection(self, corpus: Corpus) -> str:
        return f"refrag-{corpus.digest}-{self.encoder.digest()}"


class QdrantShard:
    """The vectors in ``folder``, opened by the embedded engine."""

    def __init__(self, folder: Path) -> None:
        self._edge = _edge()
        self._shard = self._edge.EdgeShard.load(str(folder / SHARD))

    def nearest(self, queries_QD: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        edge, points = self._edge, []
        exact = edge.SearchParams(exact=True)
        for batch in _batches(len(queries_QD), QUERIES):
            requests = [
                edge.QueryRequest(limit=k, query=edge.Query.Nearest(query), params=exact)
                for query in queries_QD[batch].tolist()
            ]
            points += self._shard.query_batch(edge.QueryBatchRequest(requests))
        return _scores_and_rows(points)


def write_shard(vectors_ND: np.ndarray, folder: Path) -> None:
    """Index ``vectors_ND`` (float32) into ``folder``."""
    edge = _edge()
    path = folder / SHARD
    path.mkdir()
    parameters = edge.EdgeVectorParams(size=vectors_ND.shape[1], distance=edge.Distance.Dot)
    # The log would lock the shard to one reader, and an index that is not flushed is not finished anyway.
    shard = edge.EdgeShard.create(str(path), edge.EdgeConfig(vectors=parameters, wal_enabled=False))
    for batch in _batches(len(vectors_ND), UPSERT):
        points = [edge.Point(batch.start + row, vector) for row, vector in enumerate(vectors_ND[batch].tolist())]
        shard.update(edge.UpdateOperation.upsert_points(points))
    shard.flush()
    shard.close()
    # The first load rewrites some files; from then on they keep the sizes that the index's manifest states.
    edge.EdgeShard.load(str(path)).close()


class QdrantServer:
    """The vectors in a server's collection. Raises ``InputError`` when it does not hold ``n`` of them."""

    def __init__(self, client: QdrantClient, collection: str, n: int) -> None:
        found = client.count(collection, exact=True).count if client.collection_exists(collection) else 0
        if found != n:
            raise InputError(
                f"expected {n} passages in the Qdrant collection {collection}, found {found}; "
                "delete the index folder and index again"
            )
        self._client, self._collection = client, collection

    def nearest(self, queries_QD: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        from qdrant_client import models

        exact, points = models.SearchParams(exact=True), []
        for batch in _batches(len(queries_QD), QUERIES):
            requests = [models.QueryRequest(query=query, limit=k, params=exact) for query in queries_QD[batch].tolist()]
            points += [answer.points for answer in self._client.query_batch_points(self._collection, requests)]
        return _scores_and_rows(points)


def connect(url: str) -> QdrantClient:
    """The server at ``url``. Raises ``InputError`` when none answers there, or it is no URL."""
    try:
        from qdrant_client import QdrantClient
        from qdrant_client.http.exceptions import ResponseHandlingException, UnexpectedResponse
    except ImportError as error:
        raise InputError(INSTALL) from error
    try:
        client = QdrantClient(url=url, api_key=os.environ.get("QDRANT_API_KEY"), check_compatibility=False)
    except ValueError as error:
        raise InputError(f"expected a URL like http://localhost:6333 for the Qdrant server, got {url!r}") from error
    try:
        client.get_collections()
    except (ResponseHandlingException, UnexpectedResponse, ValueError) as error:
        raise InputError(f"expected a Qdrant server at {url}; none answers there") from error
    return client


def upload(vectors_ND: np.ndarray, client: QdrantClient, collection: str) -> None:
    """Make ``collection`` afresh with ``vectors_ND`` (float32)."""
    from qdrant_client import models

    if client.collection_exists(collection):
        client.delete_collection(collection)
    parameters = models.VectorParams(size=vectors_ND.shape[1], distance=models.Distance.DOT)
    client.create_collection(collection, vectors_config=parameters)
    for batch in _batches(len(vectors_ND), UPSERT):
        vectors = vectors_ND[batch]
        points = models.Batch(ids=list(range(batch.start, batch.start + len(vectors))), vectors=vectors.tolist())
        client.upsert(collection, points=points, wait=True)


def _batches(n: int, size: int) -> Iterator[slice]:
    return (slice(start, start + size) for start in range(0, n, size))


def _scores_and_rows(points: list[list[Any]]) -> tuple[np.ndarray, np.ndarray]:
    import numpy as np

    scores = [[point.score for point in found] for found in points]
    return np.array(scores, dtype=np.float32), np.array([[point.id for point in found] for found in points], dtype=int)


def _edge() -> ModuleType:
    try:
        import qdrant_edge
    except ImportError as error:
        raise InputError(INSTALL) from error
    return qdrant_edge
