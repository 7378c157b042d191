"""What tests share: where the external data lies, and no network."""

import os
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")

PROJECT = Path(__file__).resolve().parent.parent
SHARED = Path(os.environ.get("REFRAG_SHARED", PROJECT.parent / "shared"))


def shared_path(relative: str) -> Path:
    """A file or folder of the external data, or a skip that says what is missing."""
    path = SHARED / relative
    if not path.exists():
        pytest.skip(f"needs {relative} of the external data; set REFRAG_SHARED to the folder that holds it")
    return path
