"""The names that the command line knows, and where each lives. Looked up lazily, so ``--help`` imports none of it."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from harness.config import load
from harness.errors import InputError, unknown

SYSTEMS: Mapping[str, str] = {
    "standard_rag": "baselines.standard_rag:StandardRAGConfig",
    "no_context": "baselines.no_context:NoContextConfig",
    "llama_k": "baselines.llama_k:LlamaKConfig",
    "replug": "baselines.replug:ReplugConfig",
    "extract": "baselines.extract:ExtractConfig",
    "kv_reuse": "baselines.kv_reuse:KvReuseConfig",
    "kv_reuse_plain": "baselines.kv_reuse:KvReuseConfig",  # on a decoder that was never trained for it
    "cepe": "baselines.cepe:CepeSystemConfig",
    "refrag_v1": "refrag_v1.system:RefragV1SystemConfig",
    "refrag_v2": "refrag_v2.system:RefragV2Config",
}

# Those of them that also say how likely a given text is (harness.protocol.LogLikelihood); tests hold it to the systems.
LIKELIHOODS = ("standard_rag", "no_context", "llama_k", "replug", "extract", "cepe", "refrag_v2")

SUITES: Mapping[str, str] = {
    "nq": "suites.qa:build",
    "triviaqa": "suites.qa:build",
    "popqa": "suites.qa:build",
    "same_relation": "suites.same_relation:build",
}

# Suites with settings of their own: a config whose ``build`` takes what the builders above take.
ASKED_SUITES: Mapping[str, str] = {
    "gold_position": "suites.gold_position:GoldPositionConfig",
    "topiocqa": "suites.multi_turn:MultiTurnConfig",
    "qrecc": "suites.multi_turn:MultiTurnConfig",
    "orconvqa": "suites.multi_turn:MultiTurnConfig",
    "arxiv_summary": "suites.summarisation:SummarisationConfig",
    "pubmed_summary": "suites.summarisation:SummarisationConfig",
}

# Suites that make their questions by settings of their own, in tokens of the decoder that is asked.
MADE_SUITES: Mapping[str, str] = {
    "passkey": "suites.passkey:PasskeyConfig",
    "long_range": "suites.long_range:LongRangeConfig",
}

RECIPES: Mapping[str, Mapping[str, str]] = {
    "decoder": {"pretrain": "baselines.stages:PRETRAIN"},
    "standard_rag": {"finetune": "baselines.stages:FINETUNE", "memory": "baselines.stages:MEMORY"},
    "kv_reuse": {"finetune": "baselines.kv_reuse_stages:FINETUNE", "memory": "baselines.kv_reuse_stages:MEMORY"},
    "cepe": {
        "warmup": "baselines.cepe_stages:WARMUP",
        "cpt": "baselines.cepe_stages:CPT",
        "memory": "baselines.cepe_stages:MEMORY",
    },
    "refrag_v1": {
        "cpt_recon": "refrag_v1.stages:CPT_RECON",
        "cpt_next": "refrag_v1.stages:CPT_NEXT",
        "train_policy": "refrag_v1.stages:TRAIN_POLICY",
    },
    "refrag_v2": {
        "reconstruction": "refrag_v2.stages:RECONSTRUCTION",
        "cpt": "refrag_v2.stages:CPT",
        "mixed": "refrag_v2.stages:MIXED",
        "finetune": "refrag_v2.stages:FINETUNE",
        "policy": "refrag_v2.stages:POLICY",
        "policy_start": "refrag_v2.stages:POLICY_START",
        "memory": "refrag_v2.stages:MEMORY",
    },
}

# What the seed document calls the stages of REFRAG v2.
SEED_NAMES: Mapping[str, str] = {
    "train_reconstruction": "reconstruction",
    "train_cpt": "cpt",
    "train_policy": "policy",
}

EXPERIMENTS: Mapping[str, str] = {
    "smoke": "slurm.sweeps.smoke:smoke",
    "tiny": "slurm.sweeps.tiny:tiny",
    "selection": "slurm.sweeps.selection:selection",
    "expansion": "slurm.sweeps.expansion:expansion",
    "objective": "slurm.sweeps.objective:objective",
    "order": "slurm.sweeps.order:order",
    "curriculum": "slurm.sweeps.curriculum:curriculum",
    "k_ablation": "slurm.sweeps.k_ablation:k_ablation",
    "pooling": "slurm.sweeps.pooling:pooling",
    "perplexity": "slurm.sweeps.perplexity:perplexity",
    "text_ablation": "slurm.sweeps.text_ablation:text_ablation",
    "latency": "slurm.sweeps.latency:latency",
    "passkey": "slurm.sweeps.passkey:passkey",
    "real": "slurm.sweeps.real:real",
    "main_table": "slurm.sweeps.main_table:main_table",
    "fsdp": "slurm.sweeps.fsdp:fsdp",
    "paper": "slurm.sweeps.paper:paper",
}


def find(kind: str, names: Mapping[str, Any], name: str) -> Any:
    """What ``name`` stands for. Raises ``InputError`` with the valid names for any other."""
    if name not in names:
        raise unknown(kind, name, names)
    target = names[name]
    return load(target) if isinstance(target, str) else target


def find_system(name: str) -> Any:
    """The configuration class of a system: one of ``SYSTEMS``, or somebody's own as ``module:Class``.

    An own module is looked for in the folder that the command was started in too. Raises ``InputError`` with the valid
    names for an unknown one, and for a module that cannot be imported, has no such class or one without the two
    methods that a system's settings have.
    """
    if ":" not in name:
        return find("system", SYSTEMS, name)
    here = str(Path.cwd())
    if here not in sys.path:  # an installed command does not look there
        sys.path.append(here)
    module, _, attribute = name.partition(":")
    try:
        found = load(name)
    except (ImportError, ValueError) as error:  # ValueError: an empty name
        raise InputError(
            f"system {name!r}: cannot import {module!r} from {here} or the installed packages: {error}"
        ) from error
    except AttributeError as error:
        raise InputError(f"system {name!r}: {module} has no {attribute!r}") from error
    if missing := [method for method in ("defaults", "build") if not callable(getattr(found, method, None))]:
        raise InputError(
            f"system {name!r}: expected a dataclass with defaults() and build(), {', '.join(missing)} missing"
        )
    return found
