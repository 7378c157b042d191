"""A random REFRAG with an untrained policy, as training exports one. It answers nonsense, and always the same."""

from __future__ import annotations

from pathlib import Path

import torch

from harness.data.world.tokenizer import build_tokenizer
from harness.model.load import random_decoder
from refrag_v2.checkpoint import save_refrag
from refrag_v2.model import Refrag, RefragConfig
from refrag_v2.policy import Policy, PolicyConfig


def tiny_refrag(k: int = 8) -> Refrag:
    decoder = random_decoder("tiny", seed=3)
    torch.manual_seed(4)
    model = Refrag(RefragConfig(k=k), decoder)
    model.policy = Policy(PolicyConfig(width=32, heads=2), decoder.config.hidden_size)
    return model.eval()


def write_tiny_refrag(folder: Path, k: int = 8) -> Path:
    training = {"data": "world", "init": "random", "recipe": {"template": "tagged"}}
    return save_refrag(tiny_refrag(k), build_tokenizer(), training, folder)
