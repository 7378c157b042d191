"""Make the data that runs need: the synthetic world, and frozen retrieval."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from harness.data.sources import DataRoot, load_questions
from harness.data.world.mirror import WorldConfig, write_world
from harness.errors import InputError
from harness.retrieval.corpus import read_corpus
from harness.retrieval.frozen import Frozen, Setting, freeze
from harness.retrieval.gold import read_gold
from harness.retrieval.index import ensure_index
from harness.retrieval.retrievers import index_config
from slurm.jobs import Progress

STRONG = Setting()


@dataclass(frozen=True, kw_only=True)
class WorldJob:
    """Write the synthetic world's data root."""

    config: WorldConfig
    folder: Path

    @property
    def title(self) -> str:
        return f"write {self.config.name}"

    def run(self, progress: Progress | None = None) -> Path:
        """Write the world, unless it is there; returns its folder."""
        return write_world(self.config, self.folder)

    def said(self, result: Path) -> str:
        return str(result)


@dataclass(frozen=True, kw_only=True)
class RetrieveJob:
    """Freeze the passages of one suite, indexing the corpus of the data root first if need be."""

    suite: str
    retriever: str
    data: Path | None
    runs: Path
    setting: Setting = STRONG
    encoder: str = "minilm"

    @property
    def title(self) -> str:
        return f"retrieve {self.suite} with {self.retriever}, {self.setting.name}"

    @property
    def obstacles(self) -> tuple[str, ...]:
        """What is wrong with the data root; one below ``runs`` may be for a job before this to write."""
        if not (self.data or os.environ.get("REFRAG_DATA")):
            return ("there is no data root with a corpus (--data)",)
        if self.data and not self.data.exists() and self.data.absolute().is_relative_to(self.runs.absolute()):
            return ()
        try:
            root = DataRoot.open(self.data)
        except InputError as error:
            return (str(error),)
        return () if root.file("corpus") else (f"the data root {root.name!r} has no corpus/ to retrieve from",)

    def run(self, progress: Progress | None = None) -> Frozen:
        """Freeze the passages of every question; returns the frozen file with its hit rates (shares, 0 to 1).

        Raises ``InputError`` where there is no data root, for an unknown suite or retriever, where the root has no such
        questions or no corpus, and where the corpus has fewer passages than the setting needs.
        """
        root = DataRoot.open(self.data)
        questions, source = load_questions(self.suite, root)
        corpus = root.file("corpus")
        if corpus is None:
            raise InputError(f"the data root {root.name!r} has no corpus/ to retrieve from")
        index = ensure_index(index_config(self.retriever, self.encoder), read_corpus(corpus), self.runs)
        gold = read_gold(self.suite, root, questions)
        return freeze(questions, source, index, self.setting, suite=self.suite, work=self.runs, gold=gold)

    def said(self, result: Frozen) -> str:
        rates = {key: rate for key, rate in result.manifest.measures.items() if key.startswith("hit@")}
        return "  ".join(f"{key} {100 * rate:.1f}" for key, rate in rates.items() if rate is not None) + (
            f"  n={result.manifest.n}"
        )
