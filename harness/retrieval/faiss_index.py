"""FAISS: a flat inner-product index, exact, on the GPU where FAISS sees one.

Flat, because a benchmark of generators must not inherit the misses of an approximate index.
"""

from __future__ import annotations

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

FILE = "flat.faiss"


@dataclass(frozen=True, kw_only=True)
class FaissConfig:
    """A flat index of ``encoder``'s vectors."""

    encoder: EncoderConfig

    retriever = "faiss"

    def identity(self) -> dict[str, Any]:
        return {"encoder": self.encoder.identity(), "kind": "flat inner product"}

    def choice(self) -> dict[str, str]:
        return {"retriever": self.retriever, "encoder": self.encoder.choice}

    def versions(self) -> dict[str, str]:
        # FAISS comes as one of two distributions, so the module is asked.
        return {"faiss": _faiss().__version__, "torch": version("torch"), "transformers": version("transformers")}

    def write(self, corpus: Corpus, folder: Path, work: Path) -> None:
        _faiss()  # before minutes of encoding
        write_flat(corpus_vectors(corpus, self.encoder, work), folder)

    def open(self, corpus: Corpus, folder: Path) -> DenseRetriever:
        return DenseRetriever(corpus, self.encoder, FaissVectors(folder))


class FaissVectors:
    """The vectors in ``folder``, in memory."""

    def __init__(self, folder: Path) -> None:
        faiss = _faiss()
        index = faiss.read_index(str(folder / FILE))
        self._index = faiss.index_cpu_to_all_gpus(index) if faiss.get_num_gpus() > 0 else index

    def nearest(self, queries_QD: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        scores_QK, rows_QK = self._index.search(queries_QD, k)
        return scores_QK, rows_QK


def write_flat(vectors_ND: np.ndarray, folder: Path) -> None:
    """Index ``vectors_ND`` (float32) into ``folder``."""
    faiss = _faiss()
    index = faiss.IndexFlatIP(vectors_ND.shape[1])
    index.add(vectors_ND)
    faiss.write_index(index, str(folder / FILE))


def _faiss() -> ModuleType:
    try:
        import faiss
    except (ImportError, RuntimeError) as error:
        # The GPU build without its CUDA libraries raises RuntimeError.
        raise InputError(
            "the retriever faiss needs FAISS: pip install 'refrag-bench[cpu]' or, never both, 'refrag-bench[gpu]'"
        ) from error
    module: ModuleType = faiss
    return module
