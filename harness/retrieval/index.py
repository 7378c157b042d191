"""What an index is on disk: a folder that answers searches by itself, named by what can change its answers.

    <work>/indexes/<retriever>-<digest>/passages.jsonl  the corpus
    <work>/indexes/<retriever>-<digest>/...             whatever the retriever wrote
    <work>/indexes/<retriever>-<digest>/manifest.json   written last; only then does the folder get its name

So a folder of that name was complete, and indexing again finds it and does nothing. The manifest states the size of
every file, because an engine may answer from what is left of a damaged index without a word.
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
        """The retriever. Raises ``InputError`` when a file of the folder is missing or has another size than it had."""
        found = _sizes(self.folder)
        for name, size in read_manifest(self.folder)["files"].items():
            if found.get(name) != size:
                raise damaged(self.folder, f"expected {size} bytes in {name}, got {found.get(name, 'no such file')}")
        return self.config.open(self.corpus, self.folder)


def ensure_index(config: IndexConfig, corpus: Corpus, work: Path) -> Index:
    """The index of ``corpus`` under ``work``, made now unless it is there already.

    Raises ``InputError`` when a folder of its name is there without its manifest.
    """
    identity = _identity(config, corpus)
    name = digest(identity)
    folder = work / "indexes" / f"{config.retriever}-{name}"
    new = not (folder / MANIFEST).exists()
    if new:
        partial = folder.with_name(f".{folder.name}.{os.getpid()}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        try:
            partial.mkdir(parents=True)
            config.write(corpus, partial, work)
            write_corpus(corpus, partial / PASSAGES)
            about = {
                "choice": config.choice(),
                "passages": len(corpus.passages),
                "versions": config.versions(),
                "files": _sizes(partial),
            }
            write_atomically(partial / MANIFEST, json.dumps(identity | about, indent=1, ensure_ascii=False) + "\n")
            _give_name(partial, folder)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return Index(config=config, corpus=corpus, folder=folder, digest=name, new=new)


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of an index folder. Raises ``InputError`` when there is none, or none of ours."""
    path = folder / MANIFEST
    if not path.exists():
        raise InputError(f"expected an index folder with {MANIFEST} at {folder}; make one with refrag-bench index")
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise damaged(folder, f"{MANIFEST}: {error}") from error
    if not isinstance(manifest, dict) or not all(isinstance(manifest.get(part), dict) for part in ("choice", "files")):
        raise damaged(folder, f"expected choice and files in {MANIFEST}")
    return manifest


def damaged(folder: Path, reason: str) -> InputError:
    """The error for an index folder that is not as it was written."""
    return InputError(f"{folder} is damaged; delete it and index again ({reason})")


def load_index(config: IndexConfig, folder: Path, manifest: Mapping[str, Any]) -> Index:
    """The index in ``folder``. Raises ``InputError`` when its passages or ``config`` are not those it was made of."""
    corpus = read_corpus(folder / PASSAGES, blank=True)
    identity = _identity(config, corpus)
    changed = [part for part, value in identity.items() if manifest.get(part) != value]
    if changed:
        raise InputError(f"{folder} was made of another {' and '.join(changed)}; delete it and index again")
    return Index(config=config, corpus=corpus, folder=folder, digest=digest(identity), new=False)


def _give_name(partial: Path, folder: Path) -> None:
    try:
        partial.rename(folder)
    except OSError as error:
        if not folder.is_dir():
            raise
        # Where there is a manifest, another process finished the same index first: its bytes serve as well.
        if not (folder / MANIFEST).exists():
            raise damaged(folder, f"no {MANIFEST}") from error


def _sizes(folder: Path) -> dict[str, int]:
    """The bytes of every file below ``folder``, by its relative name."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.stat().st_size for path in files}


def _identity(config: IndexConfig, corpus: Corpus) -> dict[str, Any]:
    return {"retriever": config.retriever, "corpus": corpus.digest, "config": dict(config.identity())}
