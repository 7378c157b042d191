"""Prepared windows, opened: what the manifest says, and any windows of a set by their number.

Shards are memory-mappable arrays, but they are read by ``pread``: mapped pages of a shuffled pass count as the
process's memory until the machine runs short of it, and a shard that was cut would end the process by a signal.
"""

from __future__ import annotations

import hashlib
import json
import os
import weakref
from collections import OrderedDict
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from harness.config import digest
from harness.errors import InputError, unknown
from harness.files import is_file_name

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

FORMAT = 1
MANIFEST, SHARDS = "windows.json", "shards"
OPEN_FILES = 256


def tokenizer_digest(tokenizer: PreTrainedTokenizerBase) -> str:
    """What identifies the ids that a tokenizer gives: its whole pipeline, without what a call left behind in it."""
    pipeline = json.loads(tokenizer.backend_tokenizer.to_str())
    return digest({key: value for key, value in pipeline.items() if key not in ("padding", "truncation")})


class Windows:
    """The windows of every set, each ``length`` tokens of one document."""

    def __init__(self, folder: Path) -> None:
        """Raises ``InputError`` where ``folder`` holds no prepared windows."""
        path = folder / MANIFEST
        try:
            self.manifest: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            found = self.manifest["format"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(
                f"expected prepared windows at {folder}, with {MANIFEST} in it (`refrag-bench data prepare` makes "
                f"them): {error}"
            ) from error
        if found != FORMAT:
            raise InputError(f"{path}: expected format {FORMAT}, got {found!r}; prepare it again")
        self.folder = folder
        try:
            self._take(self.manifest)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(f"{path} is damaged ({type(error).__name__}: {error}); prepare it again") from error
        self._open: OrderedDict[str, tuple[int, int]] = OrderedDict()  # file descriptor, where the data begin
        weakref.finalize(self, _close, self._open)

    def _take(self, manifest: Mapping[str, Any]) -> None:
        self.length, self.digest = int(manifest["layout"]["length"]), str(manifest["digest"])
        self.mixture: Mapping[str, float] | None = manifest["mixture"]
        self._dtype = np.dtype(manifest["dtype"])
        if self.length < 1 or self._dtype.kind != "u" or not isinstance(manifest["tokenizer"]["digest"], str):
            raise ValueError(f"windows of {self.length} tokens of type {self._dtype}")
        self._shards: dict[str, list[Mapping[str, Any]]] = {}
        for shard in manifest["shards"]:
            if not is_file_name(shard["file"]) or int(shard["windows"]) < 1:
                raise ValueError(f"a shard {shard['file']!r} of {shard['windows']} windows")
            self._shards.setdefault(str(shard["set"]), []).append(shard)
        self._until = {name: np.cumsum([int(s["windows"]) for s in shards]) for name, shards in self._shards.items()}

    @property
    def name(self) -> str:
        return f"windows-{self.digest}"

    @property
    def sizes(self) -> dict[str, int]:
        """How many windows each set has."""
        return {name: int(until[-1]) for name, until in self._until.items()}

    def check_tokenizer(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Raises ``InputError`` where ``tokenizer`` is not the one that made the ids."""
        expected, got = self.manifest["tokenizer"]["digest"], tokenizer_digest(tokenizer)
        if got != expected:
            raise InputError(
                f"{self.folder} was tokenised by another tokenizer ({expected}) than the model's ({got}); prepare it "
                "with --tokenizer naming the checkpoint that training starts from"
            )

    def read(self, name: str, numbers: NDArray[np.int64]) -> NDArray[Any]:
        """Windows ``numbers`` of set ``name``, (len(numbers), length). Raises ``InputError`` for a damaged shard."""
        if name not in self._shards:
            raise unknown("set", name, self._shards)
        until = self._until[name]
        windows = np.empty((len(numbers), self.length), self._dtype)
        for row, number in zip(windows, numbers.tolist(), strict=True):
            shard = int(np.searchsorted(until, number, side="right"))
            self._fill(row, self._shards[name][shard], number - (int(until[shard - 1]) if shard else 0))
        return windows

    def _fill(self, row: NDArray[Any], shard: Mapping[str, Any], number: int) -> None:
        descriptor, start = self._opened(shard)
        if os.preadv(descriptor, [row.data], start + number * row.nbytes) != row.nbytes:
            raise InputError(f"{self.folder / SHARDS / shard['file']} is cut short; prepare it again")

    def _opened(self, shard: Mapping[str, Any]) -> tuple[int, int]:
        file = shard["file"]
        if file in self._open:
            self._open.move_to_end(file)
            return self._open[file]
        path = self.folder / SHARDS / file
        try:
            descriptor = os.open(path, os.O_RDONLY)
        except OSError as error:
            raise InputError(f"{path} cannot be opened: {error.strerror}; prepare it again") from error
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_RANDOM)
        start = path.stat().st_size - shard["windows"] * self.length * self._dtype.itemsize
        self._open[file] = descriptor, start
        if path.stat().st_size != shard["bytes"]:
            raise InputError(f"{path} is not of the size that {MANIFEST} says; prepare it again")
        if len(self._open) > OPEN_FILES:
            os.close(self._open.popitem(last=False)[1][0])
        return descriptor, start

    def damaged(self) -> list[str]:
        """The shards whose bytes are not those that were written; reads all of them."""
        return [shard["file"] for shard in self.manifest["shards"] if self._sha256(shard) != shard["sha256"]]

    def _sha256(self, shard: Mapping[str, Any]) -> str | None:
        try:
            with (self.folder / SHARDS / shard["file"]).open("rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest()
        except OSError:
            return None


def _close(opened: OrderedDict[str, tuple[int, int]]) -> None:
    for descriptor, _ in opened.values():
        os.close(descriptor)


@lru_cache
def open_windows(folder: Path) -> Windows:
    """The windows in ``folder``, opened once."""
    return Windows(folder)


def name_of(folder: Path) -> str:
    """What records and checkpoints call a prepared text: windows by their digest, any other by its folder's name."""
    return open_windows(folder).name if (folder / MANIFEST).exists() else folder.name
