"""The names that the command line knows, and where each lives. Looked up lazily, so ``--help`` imports none of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from harness.config import load
from harness.errors import unknown

SYSTEMS: Mapping[str, str] = {
    "standard_rag": "baselines.standard_rag:StandardRAGConfig",
}

SUITES: Mapping[str, str] = {
    "nq": "suites.qa:build",
    "triviaqa": "suites.qa:build",
    "popqa": "suites.qa:build",
    "same_relation": "suites.same_relation:build",
}

RECIPES: Mapping[str, Mapping[str, str]] = {
    "standard_rag": {"finetune": "baselines.stages:FINETUNE"},
}

EXPERIMENTS: Mapping[str, str] = {
    "tiny": "slurm.sweeps.tiny:tiny",
    "real": "slurm.sweeps.real:real",
}


def find(kind: str, names: Mapping[str, Any], name: str) -> Any:
    """What ``name`` stands for. Raises ``InputError`` with the valid names for any other."""
    if name not in names:
        raise unknown(kind, name, names)
    target = names[name]
    return load(target) if isinstance(target, str) else target
