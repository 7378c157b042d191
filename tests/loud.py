"""A random decoder that tells inputs apart, and short ways to ask a system: for tests of systems that read tokens."""

from __future__ import annotations

import torch

from harness.data.world.tokenizer import build_tokenizer
from harness.model.load import Decoder, random_decoder
from harness.protocol import Passage, System


def loud_decoder() -> Decoder:
    """One that answers nonsense, and another nonsense for every other prompt: at a random start all look alike."""
    model = random_decoder("tiny", seed=1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(5)
    return Decoder(model=model, tokenizer=build_tokenizer(), checkpoint="none", source="none")


def passages(*texts: str) -> list[Passage]:
    return [Passage(id=str(i), title="t", text=text) for i, text in enumerate(texts)]


def answer(system: System, questions: list[str], rows: list[list[Passage]], n: int = 8) -> list[list[int]]:
    """The token ids of each answer."""
    columns = list(system.generate(questions, system.encode(rows), max_new_tokens=n))
    return torch.stack(columns, dim=1).tolist()
