"""A tiny random REFRAG v1 and its recipes in a few steps: what the tests of v1 run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import LlamaForCausalLM

from harness.cli.catalog import RECIPES
from harness.config import load
from harness.data.world.practice import Reading
from harness.data.world.tokenizer import TAGS, build_tokenizer
from harness.model.encoders import encoder_tokenizer
from harness.model.load import random_decoder
from refrag_v1.checkpoint import save
from refrag_v1.model import RefragV1, RefragV1Config
from refrag_v1.policy import Policy, PolicyConfig
from refrag_v1.recipe import PolicyRecipe, RefragV1Recipe

K = 8
CONCAT = {"k": K, "encoder": "decoder:1", "pooling": "concat"}
TOKENIZER = build_tokenizer()
FIRST_WORD = len(TAGS) + 256  # after the tags and the bytes
STAGES = ("cpt_recon", "cpt_next", "train_policy")
NAMES = RECIPES["refrag_v1"]  # kept here, because some tests put other recipes there


def tiny_v1(seed: int = 0, policy: bool = False, decoder: LlamaForCausalLM | None = None, **config: Any) -> RefragV1:
    """The same for the same seed. Around a decoder that is not given, its predictions depend on every input."""
    settings = RefragV1Config(**CONCAT | config)
    torch.manual_seed(seed)
    model = RefragV1(settings, decoder or random_decoder("tiny", seed=seed), encoder_tokenizer(settings.encoder))
    if policy:
        model.policy = Policy(PolicyConfig(), model.decoder.config.hidden_size)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.startswith("encoder." if decoder else ("decoder.", "encoder.")) and parameter.ndim == 2:
                parameter.mul_(5)  # at their random start all texts look alike
            elif name.startswith("policy."):
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


def write_tiny_v1(
    folder: Path, seed: int = 0, policy: bool = True, lineage: tuple[str, ...] = (), **config: Any
) -> Path:
    training = {"data": "world", "init": "random", "lineage": list(lineage), "recipe": {"template": "tagged"}}
    return save(tiny_v1(seed, policy, **config), TOKENIZER, training, folder)


def words(n: int, first: int = 0) -> list[int]:
    """So many different tokens."""
    return list(range(FIRST_WORD + first, FIRST_WORD + first + n))


def encoded(model: RefragV1, texts: Sequence[Sequence[int]]) -> Tensor:
    return model.encode(model.inputs(texts, TOKENIZER))


def recipe(stage: str, scale: str = "objective-k8") -> Any:
    """The recipe that the command line finds."""
    scales: Mapping[str, RefragV1Recipe | PolicyRecipe] = load(NAMES[stage])
    return scales[scale]


def small(stage: str, steps: int = 2, **of_stage: Any) -> Any:
    """The same recipe in a few steps on a few rows."""
    found = recipe(stage)
    system, before, _ = found.after
    after = found.after if stage == STAGES[0] else (system, before, "small")
    data = found.data
    if isinstance(data, Reading):
        data = replace(data, sizes=((3, 2),))
    else:
        data = replace(data, growing=replace(data.growing, steps=steps, max_chunks=4, tokens=64))
    changes = {"steps": steps, "checkpoint_every": 1} | of_stage
    return replace(found, after=after, data=data, stage=replace(found.stage, **changes))


def state(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def changed(model: nn.Module, before: Mapping[str, Tensor]) -> set[str]:
    assert model.state_dict().keys() == before.keys()
    return {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
