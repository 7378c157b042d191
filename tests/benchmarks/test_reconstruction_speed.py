"""Joint reconstruction, forward and backward: our batched path against two loops, from the same rows and weights.

- *one chunk at a time*, as public implementations have it: each chunk is encoded by a call of its own and read back
  from its embedding alone by another. That is the joint loss only where a row has one chunk (asserted); with more it is
  an easier task of as many tokens, so the ratio is one of implementations and not of one computation.
- *one example at a time*: each chunk is encoded by a call of its own, each example decoded whole. Loss and gradients
  are those of the batched path (asserted). At this width it keeps a thread busy already: what is left is its calls.

Every way is timed in float32 and in bfloat16 (``Stage.precision``). Where the processor multiplies matrices in
bfloat16, large products gain by it and small ones lose, by casting, so the last table gives each way its faster one.
"""

import random
import statistics
from collections.abc import Callable, Iterator
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from interleaved import interleave, report
from transformers import LlamaConfig, LlamaForCausalLM

from harness.data.world.practice import Copying, Growing
from harness.data.world.tokenizer import build_tokenizer
from harness.model.chunking import EncoderInputs, split
from harness.train.chunk_model import lay_out_for, read_chunks
from harness.train.chunk_rows import condense
from harness.train.losses import answer_loss
from harness.train.rows import Block, Row
from refrag_v2.model import Refrag, RefragConfig
from refrag_v2.recipe import ENCODING

BATCH, CONTEXT, K = 8, 512, 16
UNIT = "context tokens/s"
PRECISIONS = (torch.float32, torch.bfloat16)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def decoder_of_3_7_million() -> LlamaForCausalLM:
    config = LlamaConfig(
        hidden_size=256,
        intermediate_size=704,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        vocab_size=974,
        max_position_embeddings=4096,
        tie_word_embeddings=False,
    )
    return LlamaForCausalLM._from_config(config, dtype=torch.float32)


@pytest.mark.parametrize("trained", [ENCODING, ("",)], ids=["encoder and projector", "everything"])
def test_joint_reconstruction(device: str, trained: tuple[str, ...]) -> None:
    torch.manual_seed(0)
    tokenizer = build_tokenizer()
    model = Refrag(RefragConfig(k=K), decoder_of_3_7_million()).to(device)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith(trained))
    growing = Growing(k=K, steps=1, max_chunks=CONTEXT // K, tokens=BATCH * CONTEXT, curriculum="none")
    rows = Copying(growing=growing).draw(random.Random(0), 0, tokenizer)
    assert [len(row.context[0].text) for row in rows] == [CONTEXT] * BATCH
    batched_loss = answer_loss(read_chunks, language_weight=0.0)

    def batched() -> torch.Tensor:
        batch = lay_out_for(model, rows, tokenizer)
        nothing_expanded = torch.zeros(BATCH, CONTEXT // K, dtype=torch.bool)
        batch = {name: tensor.to(device) for name, tensor in condense(batch, nothing_expanded).items()}
        return batched_loss(model, batch)

    losses: dict[str, list[Callable[[], torch.Tensor]]] = {
        "ours": [batched],
        "one example at a time": [partial(one_by_one, model, row) for row in rows],
        "one chunk at a time": [partial(chunk_by_chunk, model, row) for row in rows],
    }

    def step(way: str, precision: torch.dtype) -> float:
        """The mean loss of the batch; its gradients are in the parameters."""
        model.zero_grad()
        total = 0.0
        for micro in losses[way]:
            with torch.autocast(device, precision, enabled=precision != torch.float32):
                loss = micro() / len(losses[way])
            loss.backward()
            total += loss.item()
        return total

    def gradients(way: str, precision: torch.dtype) -> tuple[float, dict[str, torch.Tensor]]:
        loss = step(way, precision)
        return loss, {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    single = [Row(row.start, [Block([], row.context[0].text[:K])], row.tail[:K], row.is_answer[:K]) for row in rows]
    joint = [one_by_one(model, row).item() for row in single]
    assert [chunk_by_chunk(model, row).item() for row in single] == pytest.approx(joint, abs=1e-5)
    loss, expected = gradients("ours", torch.float32)
    found_loss, found = gradients("one example at a time", torch.float32)
    assert found_loss == pytest.approx(loss, abs=1e-4)
    assert expected.keys() == found.keys()
    largest = max(float(gradient.abs().max()) for gradient in expected.values())
    assert largest > 1e-3, "or any two gradients are equal"
    for name, gradient in expected.items():
        torch.testing.assert_close(gradient, found[name], atol=1e-4 * largest, rtol=1e-4, msg=name)
    rounded_loss, rounded = gradients("ours", torch.bfloat16)
    assert rounded_loss == pytest.approx(loss, rel=0.01)
    together = [torch.cat([by_name[name].flatten() for name in expected]) for by_name in (expected, rounded)]
    assert F.cosine_similarity(*together, dim=0) > 0.99, "bfloat16 points where float32 does"

    sizes = {name: sum(p.numel() for p in part.parameters()) for name, part in model.named_children()}
    title = (
        f"reconstruction, forward and backward, batch {BATCH}, {CONTEXT} tokens of context, k = {K}, {device}, "
        f"{torch.get_num_threads()} thread; trained: {' '.join(trained) or 'everything'}; "
        + ", ".join(f"{name} {size / 1e6:.2f} M" for name, size in sizes.items())
    )
    ways = {
        (name, precision): lambda name=name, precision=precision: step(name, precision) and BATCH * CONTEXT
        for name in losses
        for precision in PRECISIONS
    }
    rates = interleave(ways, rounds=5)
    for precision in PRECISIONS:
        report(f"{title}; {precision}", UNIT, {name: rates[name, precision] for name in losses}, "ours")
    faster = {name: max(PRECISIONS, key=lambda p: statistics.median(rates[name, p])) for name in losses}
    best = {f"{name}, {precision}": rates[name, precision] for name, precision in faster.items()}
    report("each in its faster precision", UNIT, best, f"ours, {faster['ours']}")


def one_by_one(model: Refrag, row: Row) -> torch.Tensor:
    """The mean loss of one example, every chunk encoded by a call of its own."""
    chunks = [encode_alone(model, chunk) for block in row.context for chunk in split(block.text, K)]
    return read_back(model, row.start, chunks, row.tail)


def chunk_by_chunk(model: Refrag, row: Row) -> torch.Tensor:
    """The mean loss of one example's chunks, every one encoded and read back by calls of its own."""
    chunks = [chunk for block in row.context for chunk in split(block.text, K)]
    losses = [read_back(model, row.start, [encode_alone(model, chunk)], chunk) for chunk in chunks]
    return torch.stack(losses).mean()


def encode_alone(model: Refrag, chunk: list[int]) -> torch.Tensor:
    """The embedding (1, E) of one chunk, by a call of its own."""
    ids = torch.tensor([chunk], device=model.decoder.device)
    return model.encode(EncoderInputs(ids, torch.ones_like(ids, dtype=torch.bool), torch.zeros_like(ids)))


def read_back(model: Refrag, start: list[int], chunks: list[torch.Tensor], tokens: list[int]) -> torch.Tensor:
    """Teacher-forced mean cross-entropy of ``tokens`` after ``start`` and ``chunks``."""
    embed, device = model.decoder.model.embed_tokens, model.decoder.device
    target = torch.tensor(tokens, device=device)
    inputs = torch.cat([embed(torch.tensor(start, device=device)), *chunks, embed(target)])
    logits = model.decoder(inputs_embeds=inputs[None], use_cache=False).logits[0]
    return F.cross_entropy(logits[-len(tokens) - 1 : -1], target)
