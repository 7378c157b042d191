"""A finished stage as a checkpoint that anything can load: a transformers folder plus ``training.json``.

``training.json`` is the checkpoint's provenance: which stages it went through, from which start, on what data, with
which recipe. It is what a later stage checks before it starts, and what a record's notes are written from.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError

from harness.config import plain
from harness.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

TRAINING_FILE = "training.json"


def export(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    training: dict[str, Any],
    folder: Path,
    *,
    beside: Callable[[Path], None] | None = None,
) -> Path:
    """Write config, safetensors, tokenizer and ``training.json`` into ``folder``, complete or not at all.

    ``beside`` writes what a system keeps beside its decoder into the folder that it is given.
    """
    from transformers.utils import logging

    logging.disable_progress_bar()
    temporary = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        model.save_pretrained(temporary)
        tokenizer.init_kwargs.pop("local_files_only", None)  # how it was loaded, no part of what it is
        tokenizer.save_pretrained(temporary)
        if beside:
            beside(temporary)
        (temporary / TRAINING_FILE).write_text(json.dumps(plain(training), indent=1) + "\n")
    except SafetensorError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise InputError(f"cannot write the checkpoint {folder}: {error}") from error
    except OSError:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    shutil.rmtree(folder, ignore_errors=True)
    temporary.rename(folder)
    return folder


def read_training(folder: Path) -> dict[str, Any]:
    """The provenance of a checkpoint; empty for one that was not trained here. ``InputError`` where it is damaged."""
    path = folder / TRAINING_FILE
    if not path.exists():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise InputError(f"{path} is damaged: {error}") from error
    if not isinstance(found, dict) or not isinstance(found.get("recipe"), dict):
        raise InputError(f"{path} is damaged: expected an object with a recipe")
    return found


def own_template(training: dict[str, Any]) -> str:
    """The prompt template that a checkpoint was trained with; published decoders read plain text."""
    template: str = training.get("recipe", {}).get("template", "text")
    return template
