"""What a gate asks of a commit: cells whose answers are compared, and lanes whose times are.

Cells are plain data, because it is the commit's own code that makes jobs of them (``slurm.gate.worker``), and a commit
of before the gate has none of these names. A checkpoint is named without its digest: the one that the commit ships.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from harness.errors import unknown

# REFRAG v2 at k = 8 is the main row; at k = 32 its policy finds the asked fact in 63 % of questions where chance finds
# it in 14, at k = 8 in no more than chance does (results/tables/tiny-selection-cost.md): only there an ignored policy
# shows.
RAG = {"system": "standard_rag", "checkpoint": "standard_rag/finetune-tiny"}
CEPE = {"system": "cepe", "checkpoint": "cepe/cpt-tiny"}
V1 = {"system": "refrag_v1", "checkpoint": "refrag_v1/train_policy-tiny-k64", "options": {"expand": 0.25}}
POLICY = {"expand": 0.1, "select": "policy"}
V2 = {"system": "refrag_v2", "checkpoint": "refrag_v2/policy-tiny-k8", "options": {"k": 8, **POLICY}}
V2_K32 = {"system": "refrag_v2", "checkpoint": "refrag_v2/policy-tiny-k32", "options": {"k": 32, **POLICY}}
HARD = {"suite": "same_relation", "passages": 8}
FOUND = {"suite": "nq", "passages": 4, "retriever": "bm25"}

SMOKE: Mapping[str, Mapping[str, Any]] = {
    "standard_rag, same_relation": {**RAG, **HARD},
    "cepe, same_relation": {**CEPE, **HARD},
    "refrag_v2 k=8 policy, same_relation": {**V2, **HARD},
    "refrag_v2 k=32 policy, same_relation": {**V2_K32, **HARD},
    "refrag_v1, same_relation": {**V1, **HARD},
    "standard_rag, nq": {**RAG, **FOUND},
    "refrag_v2 k=8 policy, nq": {**V2, **FOUND},
}
SMOKE_LIMIT = 200  # questions of a cell
# The first one is the reference of the others.
LANES: Mapping[str, Mapping[str, Any]] = {
    "standard_rag": {**RAG, **HARD},
    "cepe": {**CEPE, **HARD},
    "refrag_v2 k=8 policy": {**V2, **HARD},
    "refrag_v1": {**V1, **HARD},
}


def own_cells(system: str, options: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Cells of a system that ``--system`` names, on the decoder that standard RAG has; empty for no system."""
    own = {**RAG, "system": system, "options": dict(options)}
    return {f"{titled(system, options)}, {where['suite']}": {**own, **where} for where in (HARD, FOUND) if system}


def own_lanes(system: str, options: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """As ``own_cells``, of what is timed."""
    own = {**RAG, "system": system, "options": dict(options)}
    return {titled(system, options): {**own, **HARD}} if system else {}


def titled(system: str, options: Mapping[str, Any]) -> str:
    settings = ", ".join(f"{name}={value}" for name, value in options.items())
    return f"{system} ({settings})" if settings else system


# Experiments of the catalog whose evaluations can be a gate's: from shipped checkpoints, or trained by the commit.
EXPERIMENTS = ("tiny", "selection", "expansion", "passkey")
NAMES = ("smoke", *EXPERIMENTS)


def check_set(name: str) -> str:
    """``name``. Raises ``InputError`` with the valid names for any other."""
    if name not in NAMES:
        raise unknown("suites", name, NAMES)
    return name
