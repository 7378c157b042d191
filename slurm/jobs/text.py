"""Prepare a long text: a tokenizer trained on it, and its documents as token ids."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from harness.config import plain
from harness.data.text import MANIFEST, Text, TextConfig, prepare, text_folder
from harness.errors import InputError
from slurm.jobs import Progress

DEFAULT = TextConfig()


@dataclass(frozen=True, kw_only=True)
class TextJob:
    """``data`` is a folder or a Hub id (``harness.data.text``), or a text that was prepared by ``config`` already."""

    data: str
    runs: Path
    config: TextConfig = DEFAULT

    @property
    def title(self) -> str:
        return f"tokenise {Path(self.data).name}"

    @property
    def folder(self) -> Path:
        """Where the prepared text lies."""
        return Path(self.data) if self._prepared else text_folder(self.data, self.config, self.runs)

    def run(self, progress: Progress | None = None) -> Path:
        """The folder, made if need be. Raises ``InputError`` where a text was prepared by other settings."""
        if not self._prepared:
            return prepare(self.data, self.config, self.runs)
        found = Text(self.folder).manifest.get("config")
        if found != plain(self.config):
            raise InputError(f"{self.data} was prepared as {found}; expected {plain(self.config)}")
        return self.folder

    @property
    def _prepared(self) -> bool:
        return (Path(self.data) / MANIFEST).exists()

    def said(self, result: Path) -> str:
        counts = Text(result).counts
        sizes = [
            f"{split} {name} {c['documents']:,} documents, {c['tokens']:,} tokens"
            for split, sets in counts.items()
            for name, c in sets.items()
        ]
        return f"{result}: {'; '.join(sizes)}"
