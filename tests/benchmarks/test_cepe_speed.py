"""CEPE's decoding with keys and values of cross-attention kept against those projected anew at every step.

The released code does the latter, which is what its time per token in REFRAG's figures rests on. Same weights, same
passages, equal tokens (asserted); the tiny shape, so the ratio is one of work per step and not of a 7 B model.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from interleaved import interleave, report

from baselines.cepe import CROSS_KV, CepeSystemConfig
from baselines.cepe_checkpoint import save_cepe
from baselines.cepe_model import CepeConfig, build_cepe
from harness.data.world.tokenizer import build_tokenizer
from harness.model.load import load_decoder, random_decoder
from harness.protocol import Passage

NEW, PASSAGES = 32, 8


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("statements", [4, 32], ids=["short passages", "long passages"])
def test_decoding(tmp_path: Path, device: str, statements: int) -> None:
    config = CepeConfig(cross_layers=4, encoder="decoder:1")
    model = build_cepe(config, random_decoder("tiny", seed=0))
    training = {"data": "world", "init": "random", "recipe": {"template": "tagged"}}
    folder = save_cepe(config, model, build_tokenizer(), training, tmp_path / "final")
    text = " ".join(["The birthplace of Mirel Tovan is Grell."] * statements)
    context = [[Passage(id=str(i), title="", text=text) for i in range(PASSAGES)]]
    systems = {
        kept: CepeSystemConfig(template="tagged", cross_kv=kept).build(load_decoder(str(folder), device=device))
        for kept in CROSS_KV
    }
    prepared = {kept: system.encode(context) for kept, system in systems.items()}
    question = ["What is the birthplace of Mirel Tovan?"]

    def decoded(kept: str) -> torch.Tensor:
        system = systems[kept]
        system.prompting.stop_ids = []
        return torch.stack(list(system.generate(question, prepared[kept], max_new_tokens=NEW)), dim=1)

    assert torch.equal(decoded("cached"), decoded("recomputed"))
    ways = {"cached": lambda: decoded("cached").numel(), "recomputed": lambda: decoded("recomputed").numel()}
    tokens = sum(passage.length for passage in prepared["cached"].passages[0])
    title = f"CEPE, batch 1, {tokens} tokens in the encoder, {NEW} new, {device}, {torch.get_num_threads()} threads"
    report(title, "tokens/s", interleave(ways, rounds=9), "cached")
