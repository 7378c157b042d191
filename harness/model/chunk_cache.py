"""Chunk embeddings on disk, so that a passage is encoded once for all questions and all runs.

    <folder>/<encoder>/<passage>.safetensors      the embeddings (chunks, E) of one passage, and their SHA-256

Content-addressed: ``encoder`` is the digest of everything that moves an embedding (weights, tokenizer, k, pooling,
dtype), ``passage`` that of its decoder tokens. So nothing ever goes stale, and a cache may be shared or deleted at any
time. Reading back gives the bytes that were computed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from harness.config import digest
from harness.files import write_atomically


class ChunkCache:
    """The embeddings of one encoder. ``hits`` and ``misses`` count passages."""

    def __init__(self, folder: Path, encoder: str) -> None:
        self.folder = folder / encoder
        self.folder.mkdir(parents=True, exist_ok=True)
        self.hits = self.misses = 0

    def embed(self, passages: Sequence[Sequence[int]], encode: Callable[[list[Sequence[int]]], list[Tensor]]) -> Tensor:
        """Embeddings of all chunks of all passages, in order, on the CPU.

        ``encode`` gives one tensor (chunks, E) per passage and is called once, for what is missing.
        """
        found = [self._read(passage) for passage in passages]
        missing = {tuple(p): None for p, tensor in zip(passages, found, strict=True) if tensor is None}
        self.hits += sum(tensor is not None for tensor in found)
        self.misses += sum(tensor is None for tensor in found)
        encoded = [tensor.cpu().contiguous() for tensor in encode(list(missing))] if missing else []
        fresh = dict(zip(missing, encoded, strict=True))
        for passage, chunks in fresh.items():
            write_atomically(self._path(passage), save({"chunks": chunks, "sha256": _sha256(chunks)}))
        parts = [fresh[tuple(p)] if t is None else t for p, t in zip(passages, found, strict=True)]
        # An empty passage has no chunks either, but their width.
        return torch.cat(parts or encode([()])).cpu()

    def _path(self, passage: Sequence[int]) -> Path:
        return self.folder / f"{digest(list(passage))}.safetensors"

    def _read(self, passage: Sequence[int]) -> Tensor | None:
        """A file that is missing or damaged is encoded anew."""
        try:
            stored = load(self._path(passage).read_bytes())
            chunks = stored["chunks"]
            return chunks if torch.equal(stored["sha256"], _sha256(chunks)) else None
        except (FileNotFoundError, SafetensorError, KeyError):
            return None


def _sha256(chunks: Tensor) -> Tensor:
    """Of dtype, shape and bytes, so that a damaged header shows as well."""
    sha = hashlib.sha256(f"{chunks.dtype} {list(chunks.shape)} ".encode())
    sha.update(chunks.view(torch.uint8).numpy().tobytes())
    return torch.tensor(list(sha.digest()), dtype=torch.uint8)
