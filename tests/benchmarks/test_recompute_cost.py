"""Activation checkpointing: the memory that it saves and the time that it takes, of a training step of REFRAG v2.

Memory is the peak of a process of its own (on a CPU its resident set, on a GPU the allocator's), once with and once
without, beside the peak before the first step: weights, libraries and, on a CPU, the interpreter. Times are of both in
turn in this process; activations alone need a third more work where they are all computed again.
"""

import json
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from interleaved import interleave, report
from transformers import LlamaConfig, LlamaForCausalLM

from harness.data.world.practice import Copying, Growing
from harness.data.world.tokenizer import build_tokenizer
from harness.timing import peak_bytes
from harness.train.chunk_model import lay_out_for, read_chunks
from harness.train.chunk_rows import condense
from harness.train.losses import answer_loss
from harness.train.recompute import recompute_activations
from refrag_v2.model import Refrag, RefragConfig

BATCH, CONTEXT, K, LAYERS = 4, 512, 16, 12
WAYS = {"kept": False, "recomputed": True}


def training_step(device: str, *, recompute: bool) -> Callable[[], float]:
    """Forward and backward of joint reconstruction, everything trained; returns the loss."""
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=256,
        intermediate_size=704,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        vocab_size=974,
        max_position_embeddings=4096,
    )
    model = Refrag(RefragConfig(k=K), LlamaForCausalLM._from_config(config, dtype=torch.float32)).to(device).train()
    if recompute:
        assert recompute_activations(model) == LAYERS + 1
    tokenizer, loss = build_tokenizer(), answer_loss(read_chunks, 0.0)
    growing = Growing(k=K, steps=1, max_chunks=CONTEXT // K, tokens=BATCH * CONTEXT, curriculum="none")
    batch = lay_out_for(model, Copying(growing=growing).draw(random.Random(0), 0, tokenizer), tokenizer)
    batch = condense(batch, torch.zeros(BATCH, CONTEXT // K, dtype=torch.bool))
    batch = {name: tensor.to(device) for name, tensor in batch.items()}

    def step() -> float:
        model.zero_grad()
        found = loss(model, batch)
        found.backward()
        return found.item()

    return step


def peaks(device: str, recompute: bool) -> dict[str, float]:
    """Bytes before and after two steps, and the loss. For a process of its own."""
    torch.set_num_threads(1)
    step = training_step(device, recompute=recompute)
    before = peak_bytes(torch.device(device))
    losses = [step() for _ in range(2)]
    return {"before": before, "after": peak_bytes(torch.device(device)), "loss": losses[-1]}


def test_memory_and_time(device: str) -> None:
    torch.set_num_threads(1)
    code = "import json, sys, test_recompute_cost as t; print(json.dumps(t.peaks(sys.argv[1], sys.argv[2] == 'True')))"
    found = {}
    for name, recompute in WAYS.items():
        command = [sys.executable, "-c", code, device, str(recompute)]
        done = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=True)
        found[name] = json.loads(done.stdout.splitlines()[-1])
    steps = {name: training_step(device, recompute=recompute) for name, recompute in WAYS.items()}
    for name, step in steps.items():
        assert step() == pytest.approx(found[name]["loss"], abs=1e-6)
    assert found["kept"]["loss"] == found["recomputed"]["loss"]

    tokens = BATCH * CONTEXT
    rates = interleave({name: lambda step=step: step() and tokens for name, step in steps.items()}, rounds=3)
    title = f"REFRAG v2, {LAYERS} layers, batch {BATCH}, {CONTEXT} tokens of context and of target, k = {K}, {device}"
    report(title, "context tokens/s", rates, "recomputed")
    for name, each in found.items():
        above = (each["after"] - each["before"]) / 2**20
        print(f"  {name:12} peak {each['after'] / 2**20:8,.0f} MiB, {above:8,.0f} MiB above that before the first step")
