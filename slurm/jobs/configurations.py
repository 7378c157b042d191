"""What is each system made of, as its configuration says? Counted and read from code, for the comparison tables.

``gather`` goes through the recipes of ``harness.cli.catalog`` at the scales that the tiny experiment reads, and through
the full sizes: the paper's plan (``refrag_v2.paper_scale``), v1's defaults (the seed's early version), the released
CEPE's shape. Models are built on torch's meta device: exact counts, no memory, no download.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.cli.catalog import RECIPES, SYSTEMS
from harness.config import load
from harness.files import write_atomically
from harness.model.chunking import effective_rate, expanded_count
from slurm.jobs import Progress

if TYPE_CHECKING:
    from torch import nn

Fact = str | int | float
Facts = dict[str, dict[str, dict[str, Fact]]]
"""Topic, aspect, column: the fact. A column that is not there has nothing of the kind."""

SCHEMA = 1
SHARE = 0.1  # of chunks left as tokens: the paper's in stage 3, and ours
K = 16  # of REFRAG v2: the seed's default, and the main text's of the paper
TINY = {
    "rag": ("standard_rag", "tiny"),
    "cepe": ("cepe", "tiny"),
    "v1": ("refrag_v1", "tiny-k64"),
    "v2": ("refrag_v2", f"tiny-k{K}"),
}
PAPER = "v2-paper"
# What each stage of a system is in the paper's terms.
ROLES: Mapping[str, Mapping[str, str]] = {
    "rag": {"fine-tuning": "finetune"},
    "cepe": {"warm-up": "warmup", "next paragraph": "cpt"},
    "v1": {"reconstruction": "cpt_recon", "next paragraph": "cpt_next", "policy": "train_policy"},
    "v2": {
        "reconstruction": "reconstruction",
        "next paragraph": "cpt",
        "mixed input": "mixed",
        "fine-tuning": "finetune",
        "policy": "policy",
    },
}
PARTS = ("encoder", "projector", "cross-attention", "decoder", "policy")
# A parameter prefix in the training's names, and the part it belongs to.
PREFIXES = {
    "encoder": "encoder",
    "projector": "projector",
    "encoder.": "encoder",
    "cross.": "cross-attention",
    "model.policy.": "policy",
    "refrag.policy.": "policy",
}


@dataclass(frozen=True, kw_only=True)
class ConfigurationsJob:
    """Write what ``gather`` finds to ``out``, where ``refrag-bench tables`` reads it without torch."""

    out: Path

    @property
    def title(self) -> str:
        return "read the configurations"

    def run(self, progress: Progress | None = None) -> Path:
        self.out.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(self.out, to_json(gather()))
        return self.out

    def said(self, result: Path) -> str:
        return str(result)


def to_json(facts: Facts) -> str:
    return json.dumps({"schema": SCHEMA, "k": K, "facts": facts}, indent=1) + "\n"


def gather() -> Facts:
    """All facts. Nothing here is measured, and nothing comes from a published number."""
    return {
        "components": _components(),
        "chunking": _chunking(),
        "sizes": _sizes(),
        "pipeline": _pipeline(),
        "hyperparameters": _hyperparameters(),
        "files": _files(),
    }


def recipe(column: str, role: str) -> Any:
    """The recipe of one of the tiny columns that plays ``role``."""
    system, scale = TINY[column]
    return load(RECIPES[system][ROLES[column][role]])[scale]


def _by_aspect(rows: Iterable[tuple[str, Mapping[str, Fact]]]) -> dict[str, dict[str, Fact]]:
    return {aspect: dict(cells) for aspect, cells in rows}


# --- components and chunks


def _components() -> dict[str, dict[str, Fact]]:
    from harness.retrieval.retrievers import RETRIEVERS
    from refrag_v1.model import RefragV1Config
    from refrag_v2 import paper_scale

    v1, v2, cepe = recipe("v1", "next paragraph"), recipe("v2", "next paragraph"), recipe("cepe", "next paragraph")
    policy = paper_scale.POLICY
    shape = recipe("v2", "policy").policy
    planned = paper_scale.model_config(K)
    return _by_aspect(
        [
            ("retriever", dict.fromkeys((*TINY, PAPER), ", ".join(RETRIEVERS))),
            (
                "encoder",
                {
                    "cepe": cepe.model.encoder,
                    "v1": v1.model.encoder,
                    "v2": v2.model.encoder,
                    "v1-seed": RefragV1Config().encoder,
                    "cepe-7b": "random:cepe-large",
                    PAPER: planned.encoder,
                },
            ),
            (
                "decoder",
                dict.fromkeys(TINY, load(RECIPES["decoder"]["pretrain"])["tiny"].shape)
                | {
                    "rag-7b": "llama2-7b",
                    "cepe-7b": "llama2-7b",
                    "v1-seed": "llama3.2-3b",
                    PAPER: paper_scale.DECODER,
                },
            ),
            (
                "projector",
                {"v1": "linear, Tanh, linear", "v2": "linear, GELU, linear"}
                | {"v1-seed": "linear, Tanh, linear", PAPER: "linear, GELU, linear"},
            ),
            (
                "pooling",
                {"v1": v1.model.pooling, "v2": v2.model.pooling}
                | {"v1-seed": RefragV1Config().pooling, PAPER: planned.pooling},
            ),
            (
                "policy",
                dict.fromkeys(("v1", "v1-seed"), "linear, ReLU, linear: each chunk by itself")
                | {
                    "v2": f"{shape.layers}-layer transformer, {shape.heads} heads, over question and chunks",
                    PAPER: f"{policy.layers}-layer transformer, {policy.heads} heads, over question and chunks",
                },
            ),
            ("cross-attention", {"cepe": f"top {cepe.model.cross_layers} layers", "cepe-7b": "top 32 layers"}),
        ]
    )


def _chunking() -> dict[str, dict[str, Fact]]:
    from harness.retrieval.cut import PASSAGE_TOKENS
    from refrag_v1.model import RefragV1Config
    from refrag_v2 import paper_scale

    chunks = {
        "v1": recipe("v1", "next paragraph").model.k,
        "v2": recipe("v2", "next paragraph").model.k,
        "v1-seed": RefragV1Config().k,
        PAPER: paper_scale.model_config(K).k,
    }
    whole = dict.fromkeys(("rag", "cepe"), 1)
    n = paper_scale.CONTEXT // K
    return _by_aspect(
        [
            ("passage", dict.fromkeys((*TINY, PAPER), PASSAGE_TOKENS)),
            ("k", chunks),
            ("k available", {PAPER: "; ".join(map(str, paper_scale.RATES))}),
            (
                "two levels",
                {"v1": "no: chunks cross passages", "v2": "yes"}
                | {"v1-seed": "no: chunks cross passages", PAPER: "yes"},
            ),
            ("rate", whole | chunks),
            (
                f"rate at p = {SHARE:g}",
                {key: round(effective_rate(K, expanded_count(SHARE, n), n), 3) for key in ("v2", PAPER)},
            ),
        ]
    )


# --- sizes


def _sizes() -> dict[str, dict[str, Fact]]:
    counted = {**_tiny_sizes(), **_full_sizes()}
    rows: dict[str, dict[str, Fact]] = {part: {} for part in (*PARTS, "total")}
    for column, parts in counted.items():
        for part, count in parts.items():
            rows[part][column] = count
        rows["total"][column] = sum(parts.values())
    return rows


def _tiny_sizes() -> dict[str, dict[str, int]]:
    from refrag_v1.model import RefragV1
    from refrag_v1.policy import Policy as CoinPolicy
    from refrag_v2.model import Refrag
    from refrag_v2.policy import Policy

    shape = load(RECIPES["decoder"]["pretrain"])["tiny"].shape
    v1, v2 = recipe("v1", "policy"), recipe("v2", "policy")
    with _meta():
        decoder = _decoder(shape)
        width = decoder.config.hidden_size
        first, second = RefragV1(v1.model, decoder), Refrag(v2.model, decoder)
        coins, picks = CoinPolicy(v1.policy, width), Policy(v2.policy, width)
    return {
        "rag": {"decoder": _count(decoder)},
        "cepe": _cepe_sizes(recipe("cepe", "next paragraph").model, shape),
        "v1": _refrag_sizes(decoder, first.encoder, first.projector, coins),
        "v2": _refrag_sizes(decoder, second.encoder, second.projector, picks),
    }


def _full_sizes() -> dict[str, dict[str, int]]:
    from baselines.cepe_model import CepeConfig
    from harness.model.encoders import random_roberta
    from refrag_v1.model import RefragV1, RefragV1Config
    from refrag_v1.policy import Policy as CoinPolicy
    from refrag_v1.policy import PolicyConfig as CoinConfig
    from slurm.plan.parts import build_parts
    from slurm.plan.scales import paper

    parts = build_parts(paper(K))
    with _meta():
        decoder = _decoder("llama3.2-3b")
        v1 = RefragV1(RefragV1Config(), decoder, encoder=random_roberta("roberta-base"))
        coins = CoinPolicy(CoinConfig(), decoder.config.hidden_size)
    return {
        "rag-7b": {"decoder": parts["decoder"].parameters},
        "cepe-7b": _cepe_sizes(CepeConfig(cross_layers=32, encoder="random:cepe-large"), "llama2-7b"),
        "v1-seed": _refrag_sizes(decoder, v1.encoder, v1.projector, coins),
        PAPER: {part: parts[part].parameters for part in PARTS if part in parts},
    }


def _cepe_sizes(config: Any, shape: str) -> dict[str, int]:
    from baselines.cepe_model import added_parameters, build_cepe

    with _meta():
        decoder = _decoder(shape)
        added = added_parameters(build_cepe(config, decoder))
    return {"encoder": added["encoder"], "cross-attention": added["cross"], "decoder": _count(decoder)}


def _refrag_sizes(decoder: nn.Module, encoder: nn.Module, projector: nn.Module, policy: nn.Module) -> dict[str, int]:
    return {
        "encoder": _count(encoder),
        "projector": _count(projector),
        "decoder": _count(decoder),
        "policy": _count(policy),
    }


def _meta() -> Any:
    import torch

    return torch.device("meta")


def _decoder(shape: str) -> Any:
    from transformers import LlamaForCausalLM

    from harness.model.load import shape_config

    return LlamaForCausalLM._from_config(shape_config(shape))


def _count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


# --- training


def _pipeline() -> dict[str, dict[str, Fact]]:
    from refrag_v2 import paper_scale

    rows: dict[str, dict[str, Fact]] = {}
    planned = dict(zip(ROLES["v2"], paper_scale.STAGES.values(), strict=True))
    for role in dict.fromkeys(role for roles in ROLES.values() for role in roles):
        for column, roles in ROLES.items():
            if role not in roles:
                continue
            found = recipe(column, role)
            rows.setdefault(f"{role}: stage", {})[column] = roles[role]
            rows.setdefault(f"{role}: trained", {})[column] = _trained(found.stage.trained)
            rows.setdefault(f"{role}: steps", {})[column] = found.stage.steps
            rows.setdefault(f"{role}: must come after", {})[column] = ", ".join(found.requires) or "not enforced"
            if growing := getattr(found.data, "growing", None):
                rows.setdefault(f"{role}: curriculum", {})[column] = _curriculum(growing)
        if role in planned:
            stage = planned[role]
            rows.setdefault(f"{role}: stage", {})[PAPER] = stage.stage.name
            rows[f"{role}: trained"][PAPER] = _trained(stage.stage.trained)
            rows[f"{role}: steps"][PAPER] = stage.stage.steps
            if stage.curriculum:
                rows.setdefault(f"{role}: curriculum", {})[PAPER] = _curriculum_named("paper", paper_scale.CONTEXT // K)
            if stage.expand:
                rows.setdefault(f"{role}: chunks left as tokens", {})[PAPER] = stage.expand
            if stage.rollouts:
                rows.setdefault(f"{role}: algorithm", {})[PAPER] = "GRPO"
    rows["mixed input: chunks left as tokens"]["v2"] = recipe("v2", "mixed input").expand[0]
    rows["policy: chunks left as tokens"] |= {c: recipe(c, "policy").objective.expand for c in ("v1", "v2")}
    rows["policy: algorithm"] |= {"v1": "REINFORCE", "v2": "GRPO"}
    rows["reconstruction: objective"] = {
        "v1": "k tokens from one embedding repeated k times",
        "v2": "all kL tokens from L embeddings, autoregressive",
        PAPER: "all kL tokens from L embeddings, autoregressive",
    }
    order = ["warm-up", *ROLES["v2"]]
    return {key: rows[key] for key in sorted(rows, key=lambda key: order.index(key.partition(":")[0]))}


def _trained(prefixes: tuple[str, ...]) -> str:
    if prefixes == ("",):
        return "everything"
    return ", ".join(PREFIXES[prefix] for prefix in prefixes)


def _curriculum(growing: Any) -> str:
    return _curriculum_named(growing.curriculum, growing.max_chunks)


def _curriculum_named(name: str, most: int) -> str:
    from harness.train.curriculum import build_curriculum

    if name == "none":
        return "none"
    curriculum = build_curriculum(name, most)
    stages = len(curriculum.lengths)
    return f"{name}, {stages} stage{'s' if stages > 1 else ''}, up to {most} chunk{'s' if most > 1 else ''}"


def _hyperparameters() -> dict[str, dict[str, Fact]]:
    from refrag_v2 import paper_scale

    planned = dict(zip(ROLES["v2"], paper_scale.STAGES.values(), strict=True))
    rows: dict[str, dict[str, Fact]] = {}
    for role in ("reconstruction", "next paragraph", "mixed input", "fine-tuning", "policy"):
        lrs: dict[str, Fact] = {
            column: recipe(column, role).stage.optimizer.lr for column in TINY if role in ROLES[column]
        }
        rows[f"LR, {role}"] = lrs | {PAPER: planned[role].stage.optimizer.lr}
    # What all stages share is read from the next-paragraph stage, or the only one.
    common = {column: recipe(column, "fine-tuning" if column == "rag" else "next paragraph") for column in TINY}
    cpt = planned["next paragraph"]
    stages = {column: found.stage for column, found in common.items()} | {PAPER: cpt.stage}
    rows["batch"] = {column: _batch(found.data) for column, found in common.items()} | {PAPER: cpt.batch}
    rows["warm-up"] = {column: round(100 * stage.schedule.warmup, 6) for column, stage in stages.items()}
    rows["schedule"] = {column: stage.schedule.decay for column, stage in stages.items()}
    rows["clipping"] = {column: stage.clip for column, stage in stages.items()}
    rows["weight decay"] = {
        column: getattr(stage.optimizer, "weight_decay", "none") for column, stage in stages.items()
    }
    rows["optimizer"] = {
        column: {"Muon": "Muon and AdamW"}.get(name := type(stage.optimizer).__name__, name)
        for column, stage in stages.items()
    }
    rows["precision"] = {column: stage.precision for column, stage in stages.items()}
    return rows


def _batch(data: Any) -> str:
    """How much one step reads, as the exercise says it."""
    if growing := getattr(data, "growing", None):
        return f"{growing.tokens} tokens of context"
    rows = [rows for _, rows in data.sizes]
    return f"{min(rows)} to {max(rows)} contexts" if len(set(rows)) > 1 else f"{rows[0]} contexts"


# --- files


def _files() -> dict[str, dict[str, Fact]]:
    rows: dict[str, dict[str, Fact]] = {"main file": {}, "numbers": {}}
    commands = {"reconstruction": "train reconstruction", "next paragraph": "train CPT", "policy": "train policy"}
    for column, (system, _) in TINY.items():
        rows["main file"][column] = _path(SYSTEMS[system])
        rows["numbers"][column] = ", ".join(dict.fromkeys(map(_path, RECIPES[system].values())))
        for role, aspect in commands.items():
            if role in ROLES[column]:
                rows.setdefault(aspect, {})[column] = f"train {system} {ROLES[column][role]}"
    rows["numbers"][PAPER] = "refrag_v2/paper_scale.py"
    for aspect, verb in (("index", "index"), ("generate", "generate"), ("evaluate", "evaluate")):
        rows[aspect] = dict.fromkeys(TINY, verb)
    return rows


def _path(target: str) -> str:
    """``package.module:name`` as the file."""
    return target.partition(":")[0].replace(".", "/") + ".py"
