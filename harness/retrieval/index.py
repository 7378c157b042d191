"""What an index is on disk: a folder named by everything that can change its answers.

    <work>/indexes/<retriever>-<digest>/              whatever the retriever wrote
    <work>/indexes/<retriever>-<digest>/manifest.json  written last; the folder then gets its name by rename

So a folder of that name is always complete, and indexing again finds it and does nothing.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

from harness.config import digest
from harness.protocol import Retriever
from harness.record import write_atomically
from harness.retrieval.corpus import Corpus


class IndexConfig(Protocol):
    """A kind of index and its settings. ``write`` makes the files, ``open`` makes a retriever of them."""

    @property
    def retriever(self) -> str:
        """bm25, faiss or qdrant."""

    @property
    def packages(self) -> tuple[str, ...]:
        """The distributions whose versions the manifest notes."""

    def identity(self) -> Mapping[str, Any]:
        """The settings that can change a search result."""

    def write(self, corpus: Corpus, folder: Path, work: Path) -> None:
        """Make the index in ``folder``, which is empty. ``work`` is where corpus vectors are kept."""

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
    identity = {"retriever": config.retriever, "corpus": corpus.digest, "config": config.identity()}
    name = digest(identity)
    folder = work / "indexes" / f"{config.retriever}-{name}"
    new = not (folder / "manifest.json").exists()
    if new:
        partial = folder.with_name(f".{folder.name}.{os.getpid()}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        config.write(corpus, partial, work)
        manifest = identity | {
            "digest": name,
            "passages": len(corpus.passages),
            "versions": {package: version(package) for package in config.packages},
        }
        write_atomically(partial / "manifest.json", json.dumps(manifest, indent=1, ensure_ascii=False) + "\n")
        try:
            partial.rename(folder)
        except OSError:
            # Another process finished the same index first: its bytes serve as well.
            if not (folder / "manifest.json").exists():
                raise
            shutil.rmtree(partial)
    return Index(config=config, corpus=corpus, folder=folder, digest=name, new=new)
