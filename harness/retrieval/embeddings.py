"""The vectors of a corpus on disk: made once per (corpus, encoder), shared by every dense index.

Encoding is the slow step, so it is resumable. The file being written has its final header from the start and grows by
whole blocks; a run that was killed goes on after the last whole block, and the file gets its real name when complete.
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.lib import format as npy

from harness.errors import InputError
from harness.retrieval.corpus import Corpus, passage_text
from harness.retrieval.embed import EncoderConfig

BLOCK = 512


def embeddings_path(work: Path, corpus: Corpus, encoder: EncoderConfig) -> Path:
    """Where the vectors of ``corpus`` by ``encoder`` lie under ``work``."""
    return work / "embeddings" / f"{corpus.digest}-{encoder.digest()}.npy"


def corpus_vectors(corpus: Corpus, encoder: EncoderConfig, work: Path) -> np.ndarray:
    """Unit vectors (N, D), float32, row i for passage i; encoded now unless they are on disk (then memory-mapped).

    Raises ``InputError`` when the file on disk is damaged.
    """
    path = embeddings_path(work, corpus, encoder)
    if not path.exists():
        _encode(corpus, encoder, path)
    try:
        vectors_ND: np.ndarray = np.load(path, mmap_mode="r")
    except (ValueError, EOFError) as error:
        raise InputError(f"{path} is damaged; delete it and index again ({error})") from error
    assert len(vectors_ND) == len(corpus.passages), f"{path} does not belong to this corpus"
    return vectors_ND


def _encode(corpus: Corpus, encoder: EncoderConfig, path: Path) -> None:
    from harness.progress import bar

    model = encoder.build()
    n, partial = len(corpus.passages), path.with_name(path.name + ".partial")
    path.parent.mkdir(parents=True, exist_ok=True)
    # Opened without truncation: what another process has written stays until the lock says whose it is.
    with (
        os.fdopen(os.open(partial, os.O_RDWR | os.O_CREAT, 0o666), "r+b") as file,
        bar(f"encoding with {encoder.name}") as show,
    ):
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InputError(f"{path.name} is being encoded by another process; wait for it") from error
        if path.exists():  # another process ended between our look and the lock
            partial.unlink(missing_ok=True)
            return
        for start in range(_resume(file, n, model.dimensions), n, BLOCK):
            texts = [passage_text(passage) for passage in corpus.passages[start : start + BLOCK]]
            file.write(model.encode(texts).tobytes())
            show(min(start + BLOCK, n), n)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)


def _resume(file: BinaryIO, n: int, dimensions: int) -> int:
    """Leave ``file`` behind its last whole block, under a header for (n, dimensions); returns the rows it has."""
    file.seek(0)
    npy.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": (n, dimensions)})
    header, row_bytes = file.tell(), 4 * dimensions
    rows = max(0, file.seek(0, os.SEEK_END) - header) // row_bytes
    done = n if rows >= n else rows // BLOCK * BLOCK
    file.seek(header + done * row_bytes)
    file.truncate()
    return done
