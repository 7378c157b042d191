"""What an index is on disk: a folder that answers searches by itself, named by what can change its answers.

    <work>/indexes/<retriever>-<digest>/passages.jsonl  the corpus
    <work>/indexes/<retriever>-<digest>/...             whatever the retriever wrote
    <work>/indexes/<retriever>-<digest>/manifest.json   written last; only then does the folder get its name

So a folder of that name is always complete, and indexing again finds it and does nothing.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from harness.config import digest
from harness.errors import InputError
from harness.files import write_atomically
from harness.protocol import Retriever
from harness.retrieval.corpus import Corpus, read_corpus, write_corpus

MANIFEST = "manifest.json"
PASSAGES = "passages.jsonl"


class IndexConfig(Protocol):
    """A kind of index and its settings. ``write`` makes the files, ``open`` makes a retriever of them."""

    @property
    def retriever(self) -> str:
        """bm25, faiss or qdrant."""

    def identity(self) -> Mapping[str, Any]:
        """The settings that can change a search result."""

    def choice(self) -> Mapping[str, str]:
        """What ``retrievers.index_config`` makes this again from."""

    def versions(self) -> Mapping[str, str]:
        """The libraries that do the work, for the manifest."""

    def write(self, corpus: Corpus, folder: Path, work: Path, /) -> None:
        """Make the index in ``folder``. ``work`` is where the vectors of corpora are kept."""

    def open(self, corpus: Corpus, folder: Path) -> Retriever:
        """A retriever over ``folder``, as ``write`` left it."""


@dataclass(frozen=True, kw_only=True)
class Index:
    """An index that is complete on disk. ``new`` says whether it was made just now."""

    config: IndexConfig
    corpus: Corpus
    folder: Path
    digest: str
    new: bool

    def open(self) -> Retriever:
        return self.config.open(self.corpus, self.folder)


def ensure_index(config: IndexConfig, corpus: Corpus, work: Path) -> Index:
    """The index of ``corpus`` under ``work``, made now unless it is there already."""
    identity = _identity(config, corpus)
    name = digest(identity)
    folder = work / "indexes" / f"{config.retriever}-{name}"
    new = not (folder / MANIFEST).exists()
    if new:
        partial = folder.with_name(f".{folder.name}.{os.getpid()}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        config.write(corpus, partial, work)
        write_corpus(corpus, partial / PASSAGES)
        about = {"choice": config.choice(), "passages": len(corpus.passages), "versions": config.versions()}
        write_atomically(partial / MANIFEST, json.dumps(identity | about, indent=1, ensure_ascii=False) + "\n")
        try:
            partial.rename(folder)
        except OSError:
            # Another process finished the same index first: its bytes serve as well.
            if not (folder / MANIFEST).exists():
                raise
            shutil.rmtree(partial)
    return Index(config=config, corpus=corpus, folder=folder, digest=name, new=new)


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of an index folder. Raises ``InputError`` when there is none: the folder is not an index."""
    path = folder / MANIFEST
    if not path.exists():
        raise InputError(f"expected an index folder with {MANIFEST} at {folder}; make one with refrag-bench index")
    manifest: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return manifest


def load_index(config: IndexConfig, folder: Path, manifest: Mapping[str, Any]) -> Index:
    """The index in ``folder``. Raises ``InputError`` when its passages or ``config`` are not those it was made of."""
    corpus = read_corpus(folder / PASSAGES)
    identity = _identity(config, corpus)
    changed = [part for part, value in identity.items() if manifest.get(part) != value]
    if changed:
        raise InputError(f"{folder} was made of another {' and '.join(changed)}; delete it and index again")
    return Index(config=config, corpus=corpus, folder=folder, digest=digest(identity), new=False)


def _identity(config: IndexConfig, corpus: Corpus) -> dict[str, Any]:
    return {"retriever": config.retriever, "corpus": corpus.digest, "config": dict(config.identity())}
