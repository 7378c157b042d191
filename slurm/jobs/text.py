"""Prepare a long text: a tokenizer trained on it, and its documents as token ids."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from harness.data.text import Text, TextConfig, prepare, text_folder
from slurm.jobs import Progress

DEFAULT = TextConfig()


@dataclass(frozen=True, kw_only=True)
class TextJob:
    """``data`` is a folder or a Hub id (``harness.data.text``)."""

    data: str
    runs: Path
    config: TextConfig = DEFAULT

    @property
    def title(self) -> str:
        return f"tokenise {Path(self.data).name}"

    @property
    def folder(self) -> Path:
        """Where the prepared text lies."""
        return text_folder(self.data, self.config, self.runs)

    def run(self, progress: Progress | None = None) -> Path:
        return prepare(self.data, self.config, self.runs)

    def said(self, result: Path) -> str:
        counts = Text(result).counts
        sizes = [
            f"{split} {name} {c['documents']:,} documents, {c['tokens']:,} tokens"
            for split, sets in counts.items()
            for name, c in sets.items()
        ]
        return f"{result}: {'; '.join(sizes)}"
