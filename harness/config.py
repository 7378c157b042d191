"""Configuration as frozen dataclasses: to JSON, and from JSON to a digest.

A digest is the identity of a run, a retrieval file or an index, so the JSON must be canonical: sorted keys, no
spaces, floats as ``repr`` writes them, and nothing that JSON cannot say (NaN is refused).
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

RUN_ID_LENGTH = 16


def plain(value: Any) -> Any:
    """A dataclass, mapping or sequence as what ``json`` can write (paths as POSIX text)."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, Path):
        return value.as_posix()
    return value


def canonical_json(value: Any) -> str:
    """The one spelling of ``value`` that a digest is taken of. Raises ``ValueError`` on NaN and infinity."""
    return json.dumps(plain(value), sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def digest(value: Any) -> str:
    """The first 16 hex digits of the SHA-256 of ``canonical_json(value)``."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()[:RUN_ID_LENGTH]


def file_digest(*paths: Path) -> str:
    """The first 16 hex digits of the SHA-256 over the bytes of ``paths``, in order."""
    sha = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                sha.update(block)
    return sha.hexdigest()[:RUN_ID_LENGTH]


def load(target: str) -> Any:
    """Import ``"module:name"``, lazily: the command line names its parts this way to start fast."""
    module, _, name = target.partition(":")
    return getattr(importlib.import_module(module), name)
