"""The counts are those of the real modules, the bytes those of a hand, and the guard sees what cannot be.

torch's FLOP counter knows no kernel that attends on a CPU, so attention is computed by its products here. It counts
the pairs behind the causal mask too, and the few products of the rotary positions.
"""

from __future__ import annotations

import csv
import math
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from conftest import PROJECT
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaConfig, LlamaForCausalLM

from baselines.cepe_model import Cepe, Context
from harness import roofline
from harness.model.chunking import encoder_inputs
from harness.model.encoders import BidirectionalLlama, random_roberta
from harness.model.llama import Llama
from harness.model.load import SHAPES
from harness.roofline import EncoderShape, LlamaShape
from harness.roofline_limits import (
    NOTHING,
    Ceilings,
    Work,
    arithmetic_s,
    floor_s,
    kv_bytes_theory,
    kv_ratio_theory,
    throughput_theory,
    ttft_ratio_theory,
    ttft_theory,
    ttit_ratio_theory,
    ttit_theory,
    violations,
)
from refrag_v2.model import Projector, RefragConfig

pytestmark = pytest.mark.usefixtures("one_thread")

CPU = torch.device("cpu")
ROWS, PAST, NEW = 2, 20, 48
CLOSE = 2e-3  # rotary positions
ENCODER_WIDTH = 48
# A100 80 GB SXM: bandwidth and dense bfloat16 rate of NVIDIA's data sheet.
A100 = Ceilings(flops_per_s=312e12, bytes_per_s=2039e9, attention_flops_per_s=312e12, device="A100", dtype="bfloat16")
# Weights: per layer q, o 24 each, k, v 12 each, MLP 60, norms 8: 140; twice, and the last norm 4, the head 28.
# Keys and values: 2 layers x 2 x 3 = 12 numbers per position.
SMALL = LlamaShape(layers=2, width=4, heads=2, kv_heads=1, head_width=3, ffn=5, vocab=7)

PLAIN = dict(num_key_value_heads=4)
GROUPED = dict(num_key_value_heads=2, head_dim=24)  # heads x head width is not the model's width
HEADS = pytest.mark.parametrize("heads", [PLAIN, GROUPED], ids=["plain", "grouped"])


def decoder(heads: dict[str, int]) -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            hidden_size=64, intermediate_size=96, num_hidden_layers=3, num_attention_heads=4, vocab_size=101, **heads
        )
    ).eval()  # fmt: skip


@torch.no_grad()
def counted(run: Callable[[], object]) -> int:
    """FLOPs of ``run`` by torch's counter."""
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


def read_past(llama: Llama, new: int) -> tuple[torch.Tensor, torch.Tensor, object]:
    """Arguments of a prefill of ``new`` positions behind a cache that holds ``PAST``."""
    cache = llama.new_cache(ROWS, PAST + new)
    ids = torch.randint(101, (ROWS, PAST + new))
    mask = torch.ones((ROWS, PAST + new), dtype=torch.bool)
    with torch.no_grad():
        llama.prefill(llama.embed(ids[:, :PAST]), mask[:, :PAST], cache)
    return llama.embed(ids[:, PAST:]), mask[:, PAST:], cache


def test_the_counter_sees_attention() -> None:
    q, k = torch.ones(2, 4, 8, 16), torch.ones(2, 2, 10, 16)
    flops = counted(lambda: F.scaled_dot_product_attention(q, k, k, enable_gqa=True))
    assert flops == 4 * 2 * 4 * 8 * 10 * 16


@HEADS
def test_prefill_is_what_the_decoder_computes(heads: dict[str, int]) -> None:
    llama = Llama(decoder(heads))
    shape = LlamaShape.of(llama.model.config)
    flops = counted(partial(llama.prefill, *read_past(llama, NEW)))
    own = roofline.prefill(shape, new=NEW, past=PAST, batch=ROWS, itemsize=4, causal=False).flops
    # The decoder's fused product makes the last layer's queries of all positions, and drops all but one.
    dropped = 2 * ROWS * (NEW - 1) * shape.q_weights
    assert own + dropped == pytest.approx(flops, rel=CLOSE)


@HEADS
def test_a_decode_step_is_what_the_decoder_computes(heads: dict[str, int]) -> None:
    llama = Llama(decoder(heads))
    _, _, cache = read_past(llama, 1)
    flops = counted(lambda: llama.decode_one_token(torch.ones(ROWS, dtype=torch.long), cache))
    own = roofline.decode_step(LlamaShape.of(llama.model.config), past=PAST, batch=ROWS, itemsize=4).flops
    assert own == pytest.approx(flops, rel=CLOSE)


def test_the_causal_mask_saves_the_pairs_behind_it_in_all_layers_but_the_last() -> None:
    full, causal = (
        roofline.prefill(SMALL, new=5, past=9, batch=3, itemsize=2, causal=causal) for causal in (False, True)
    )
    behind = 4 + 3 + 2 + 1
    assert full.flops - causal.flops == 3 * (SMALL.layers - 1) * behind * 4 * SMALL.heads * SMALL.head_width
    assert full.bytes == causal.bytes


def test_a_prefill_in_two_pieces_repeats_only_the_last_layer_and_the_head() -> None:
    whole = roofline.prefill(SMALL, new=8, itemsize=2).flops
    pieces = [roofline.prefill(SMALL, new=3, itemsize=2), roofline.prefill(SMALL, new=5, past=3, itemsize=2)]
    last_layer = 2 * (2 * 24 + 60) + 4 * 2 * 3 * 3  # q, o, MLP of one position, which sees 3
    assert sum(piece.flops for piece in pieces) - whole == last_layer + 2 * 4 * 7


@HEADS
def test_a_llama_encoder_is_counted(heads: dict[str, int]) -> None:
    config = decoder(heads).config
    encoder = BidirectionalLlama(config, 2).eval()
    shape = EncoderShape.of_llama(config, 2)
    ids = torch.ones((ROWS, NEW), dtype=torch.long)
    flops = counted(lambda: encoder(ids, ids.bool()))
    assert roofline.encode(shape, rows=ROWS, positions=NEW, itemsize=4).flops == pytest.approx(flops, rel=CLOSE)
    assert shape.weights == parameters(encoder) - parameters(encoder.embed_tokens)


def test_roberta_is_counted() -> None:
    encoder = random_roberta("roberta-tiny", 101).eval()
    shape = EncoderShape.of_roberta(encoder.model.config)
    ids = torch.full((ROWS, NEW), 7)
    flops = counted(lambda: encoder(ids, ids.bool()))
    assert roofline.encode(shape, rows=ROWS, positions=NEW, itemsize=4).flops == pytest.approx(flops, rel=CLOSE)
    tables = encoder.model.embeddings
    looked_up = [tables.word_embeddings, tables.position_embeddings, tables.token_type_embeddings]
    assert shape.weights == parameters(encoder) - sum(parameters(table) for table in looked_up)


def test_the_projector_is_counted() -> None:
    config = RefragConfig(k=4, encoder="random:roberta-tiny", pooling="mean")
    projector = Projector(config, ENCODER_WIDTH, 64)
    inputs = encoder_inputs([[5] * 4] * 6, 4, "chunk", 0)
    flops = counted(lambda: projector(torch.ones((6, 4, ENCODER_WIDTH)), inputs))
    own = roofline.project(pooled=ENCODER_WIDTH, width=64, chunks=6, itemsize=4)
    assert own.flops == pytest.approx(flops, rel=CLOSE)
    assert own.bytes == 4 * (parameters(projector) - 1)  # the gain


@HEADS
def test_cross_attention_is_what_cepe_adds_to_the_decoder(heads: dict[str, int]) -> None:
    model, read = decoder(heads), 30
    small = LlamaConfig(hidden_size=ENCODER_WIDTH, intermediate_size=56, num_hidden_layers=1, num_attention_heads=4)
    cepe = Cepe(model, BidirectionalLlama(small, 1), cross_layers=2).eval()
    llama = Llama(model)
    states = torch.randn(ROWS, read, ENCODER_WIDTH)
    own = partial(
        roofline.cross_attention,
        LlamaShape.of(model.config),
        layers=2,
        encoder_width=ENCODER_WIDTH,
        read=read,
        batch=ROWS,
        itemsize=4,
    )

    projected = counted(lambda: cepe.keys_values([states]))
    assert own(new=0, kv=True).flops == pytest.approx(projected, rel=CLOSE)

    context = Context.of(cepe.keys_values([states]), torch.ones((ROWS, read), dtype=torch.bool))
    between = partial(cepe.cross_attend, context=context)
    with_cepe = counted(partial(llama.prefill, *read_past(llama, NEW), between=between))
    added = with_cepe - counted(partial(llama.prefill, *read_past(llama, NEW)))
    assert own(new=NEW, kv=False).flops == pytest.approx(added, rel=CLOSE)
    assert own(new=NEW, kv=True).flops == pytest.approx(added + projected, rel=CLOSE)
    assert own(new=0, kv=False) == NOTHING


def parameters(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def test_weights_are_all_but_the_embedding_table() -> None:
    with torch.device("meta"):
        model = LlamaForCausalLM(LlamaConfig(**SHAPES["llama2-7b"]))
    assert parameters(model) == 6_738_415_616
    assert LlamaShape.of(model.config).weights == 6_738_415_616 - 32_000 * 4096


@pytest.mark.parametrize("name", ["tiny", "llama3.2-3b"])
def test_a_tied_table_is_the_head(name: str) -> None:
    with torch.device("meta"):
        model = LlamaForCausalLM(LlamaConfig(**SHAPES[name]))
        model.tie_weights()
    assert LlamaShape.of(model.config).weights == parameters(model)


def test_bytes_by_hand() -> None:
    assert SMALL.weights == 312
    assert roofline.kv_bytes(SMALL, 5, 2, 2) == 12 * 5 * 2 * 2
    assert roofline.prefill(SMALL, new=3, past=2, batch=2, itemsize=2).bytes == 2 * 312 + 240
    assert roofline.decode_step(SMALL, past=4, batch=2, itemsize=2).bytes == 2 * 312 + 240
    encoder = EncoderShape(layers=1, width=4, heads=2, kv_heads=2, head_width=2, ffn=5, gated=False)
    # Matrices 64 + 40, biases 16 + 9, norms 16, norm of the embeddings 8.
    assert roofline.encode(encoder, rows=3, positions=6, itemsize=2).bytes == 2 * 153
    gated = replace(encoder, gated=True)  # matrices 64 + 60, norms 8, last norm 4
    assert roofline.encode(gated, rows=3, positions=6, itemsize=2).bytes == 2 * 136
    assert roofline.project(pooled=3, width=4, chunks=9, itemsize=2).bytes == 2 * (12 + 4 + 16 + 4)


def test_bytes_of_cross_attention_by_hand() -> None:
    """Two blocks: q, o and norm 24 + 24 + 4, k and v 6 each; K/V 6 numbers per block and each of 2 x 5 positions."""

    def moved(new: int, kv: bool) -> float:
        return roofline.cross_attention(
            SMALL, layers=2, encoder_width=2, new=new, read=5, batch=2, itemsize=2, kv=kv
        ).bytes

    assert moved(3, kv=False) == 2 * (2 * 52 + 2 * 60)
    assert moved(0, kv=True) == 2 * (2 * 12 + 2 * 60)
    assert moved(3, kv=True) == 2 * (2 * 52 + 2 * 12 + 10 * 2)


def test_without_windows_or_chunks_no_weight_is_read() -> None:
    encoder = EncoderShape(layers=1, width=4, heads=2, kv_heads=2, head_width=2, ffn=5, gated=False)
    assert roofline.encode(encoder, rows=0, positions=6, itemsize=2) == NOTHING
    assert roofline.project(pooled=3, width=4, chunks=0, itemsize=2) == NOTHING


def test_work_adds_and_multiplies() -> None:
    one = Work(flops=3, bytes=5, attention=2)
    assert one + NOTHING == one
    assert one + one == 2 * one == one * 2 == Work(flops=6, bytes=10, attention=4)


def test_the_floor_is_the_longer_of_arithmetic_and_memory() -> None:
    ceilings = Ceilings(flops_per_s=100, bytes_per_s=10, attention_flops_per_s=50, device="cpu", dtype="float32")
    assert floor_s(Work(flops=300, bytes=20, attention=100), ceilings) == 3
    assert floor_s(Work(flops=300, bytes=40, attention=100), ceilings) == 4
    assert arithmetic_s(Work(flops=300, bytes=40, attention=100), ceilings) == 2 + 2


def test_attention_is_what_grows_with_the_pairs() -> None:
    """Every other operation is per position: what behind-the-mask pairs or longer windows add is attention alone."""
    some = dict(new=NEW, past=PAST, batch=ROWS, itemsize=2)
    masked, full = (roofline.prefill(SMALL, **some, causal=causal) for causal in (True, False))
    assert full.attention - masked.attention == full.flops - masked.flops > 0
    pairs = NEW * PAST + NEW * (NEW + 1) // 2 + PAST + NEW  # a layer, and the last one's row
    assert masked.attention == ROWS * pairs * 4 * 2 * 3
    encoder = EncoderShape(layers=2, width=4, heads=2, kv_heads=2, head_width=2, ffn=5, gated=True)
    two, one = (roofline.encode(encoder, rows=n, positions=12 // n, itemsize=2) for n in (2, 1))
    assert one.flops - two.flops == one.attention - two.attention == one.attention / 2
    near, far = (
        roofline.cross_attention(SMALL, layers=2, encoder_width=8, new=5, read=read, itemsize=2, kv=False)
        for read in (10, 30)
    )
    assert far.flops - near.flops == far.attention - near.attention == near.attention * 2


RIGHT = dict(measured_s=2.0, floor_s=2.0, memory_bytes=5.0, weights_bytes=5.0, speedup=4.2, cap=4.0, noise=0.05)


def test_the_guard_finds_nothing_in_numbers_that_can_be() -> None:
    assert violations(**RIGHT) == []
    assert violations() == []
    assert violations(measured_s=1e-9, memory_bytes=1.0, speedup=1e9) == []  # nothing to compare them with


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        (dict(measured_s=1.99), "1990 ms is below the floor of 2000 ms"),
        (dict(memory_bytes=4.99), "memory is below"),
        (dict(speedup=4.21), "a speed-up of 4.21 is above the cap of 4 (noise 5.0%)"),
        (dict(noise=0.0), "speed-up"),
    ],
)
def test_the_guard_finds_each_fault_alone(wrong: dict[str, float], reason: str) -> None:
    (found,) = violations(**RIGHT | wrong)
    assert reason in found


def test_the_guard_flags_table_2_of_the_seed() -> None:
    """Its own line on REFRAG, and on no other system."""
    with (PROJECT / "results/reference/seed_claims.csv").open() as file:
        claims = {
            (row["row/method"], row["column/metric"]): float(row["value"])
            for row in csv.DictReader(file)
            if row["table"] == "Table 2"
        }
    shape = LlamaShape.of(LlamaConfig(**SHAPES["llama2-7b"]))
    # The weights alone; 1,024 chunk embeddings of 16,384 tokens; and the 6.6 ms of one that reads the embeddings too.
    least = floor_s(roofline.decode_step(shape, past=0, itemsize=2), A100)
    floor = floor_s(roofline.decode_step(shape, past=16384 // 16, itemsize=2), A100)
    assert least == pytest.approx(6.48e-3, abs=5e-6)
    assert floor == pytest.approx(6.74e-3, abs=5e-6)

    def flagged(system: str) -> list[str]:
        return violations(
            measured_s=claims[system, "TTIT"] / 1e3,
            floor_s=least,
            memory_bytes=claims[system, "Memory"] * 1e9,
            weights_bytes=2 * (shape.weights + shape.vocab * shape.width),
        )

    assert flagged("REFRAG (k=16)") == [
        "4.1 ms is below the floor of 6.481 ms",
        "8.6 GB of memory is below the 13.48 GB of the weights",
    ]
    assert flagged("Standard RAG") == flagged("CEPE") == []


PAPER = dict(d=4096, layers=32, batch=1)


@pytest.mark.parametrize(
    ("s", "k", "ratio"),
    [
        (16384, 8, 12.31), (16384, 16, 25.60), (16384, 32, 52.24),
        (65536, 8, 22.00), (65536, 16, 50.29), (65536, 32, 108.31),
    ],
)  # fmt: skip
def test_the_papers_ttft_ratio(s: int, k: int, ratio: float) -> None:
    assert ttft_ratio_theory(4096, s, k) == pytest.approx(ratio, abs=0.005)
    before, after = (ttft_theory(**PAPER, s=s, f=312e12, k=rate) for rate in (1, k))
    assert before / after == pytest.approx(ttft_ratio_theory(4096, s, k))


@pytest.mark.parametrize("batch", [1, 8])
def test_the_papers_other_ratios_are_those_of_its_formulas(batch: int) -> None:
    sizes = PAPER | dict(batch=batch, s=16384, o=128)
    n, k = 6.74e9, 16
    kv_before, kv_after = (kv_bytes_theory(**sizes, k=rate) for rate in (1, k))
    assert kv_before == 4 * 4096 * 32 * batch * (16384 + 128)
    assert kv_before / kv_after == pytest.approx(kv_ratio_theory(16384, 128, k))
    before, after = (ttit_theory(**sizes, n=n, m=2039e9, k=rate) for rate in (1, k))
    assert before == pytest.approx((2 * n + kv_before) / 2039e9)
    assert before / after == pytest.approx(ttit_ratio_theory(**sizes, n=n, k=k))


def test_the_papers_ratios_end_where_it_says() -> None:
    assert ttft_ratio_theory(4096, 1, 16) == pytest.approx(16, rel=1e-2)
    assert ttft_ratio_theory(4096, 1e12, 16) == pytest.approx(256, rel=1e-2)
    assert ttit_ratio_theory(**PAPER, n=6.74e9, s=1, o=1, k=16) == pytest.approx(1, rel=1e-2)
    assert ttit_ratio_theory(**PAPER, n=6.74e9, s=1e12, o=1, k=16) == pytest.approx(16, rel=1e-2)
    assert kv_ratio_theory(1e12, 1, 16) == pytest.approx(16, rel=1e-2)


def test_the_papers_throughput_is_over_one_first_and_one_later_token() -> None:
    sizes = PAPER | dict(batch=4, s=16384, o=128, k=16)
    first = ttft_theory(d=4096, layers=32, batch=4, s=16384, f=312e12, k=16)
    later = ttit_theory(**sizes, n=6.74e9, m=2039e9)
    assert throughput_theory(**sizes, n=6.74e9, f=312e12, m=2039e9) == pytest.approx(4 * 128 / (first + later))


def test_the_papers_ttft_is_near_the_work_of_its_decoder() -> None:
    """They differ by the MLP's exact width, the head, and what the last layer leaves out."""
    shape = LlamaShape.of(LlamaConfig(**SHAPES["llama2-7b"]))
    own = roofline.prefill(shape, new=4096, itemsize=2, causal=False).flops
    assert own == pytest.approx(ttft_theory(**PAPER, s=4096, f=1), rel=0.03)


def test_ceilings_of_a_cpu() -> None:
    threads, random = torch.get_num_threads(), torch.get_rng_state()
    found = roofline.measure_ceilings(CPU, torch.float32)
    assert all(0 < rate < math.inf for rate in (found.flops_per_s, found.bytes_per_s, found.attention_flops_per_s))
    assert (found.device, found.dtype) == ("cpu", "float32")
    assert torch.get_num_threads() == threads and torch.equal(torch.get_rng_state(), random)


@pytest.mark.parametrize(("copy_s", "sum_s", "bytes_per_s"), [(1, 1, 1 << 30), (8, 2, 1 << 28)])
def test_a_ceiling_counts_what_is_computed_and_moved(
    monkeypatch: pytest.MonkeyPatch, copy_s: float, sum_s: float, bytes_per_s: float
) -> None:
    """A copy reads and writes 512 MiB, a sum reads them."""
    seconds = iter([2, 4, copy_s, sum_s])
    monkeypatch.setattr(roofline, "_best_s", lambda *_: next(seconds))
    found = roofline.measure_ceilings(CPU, torch.float32)
    assert found.flops_per_s == 2048**3
    assert found.attention_flops_per_s == 4 * 16 * 64 * (4096 * 4097 // 2) / 4
    assert found.bytes_per_s == bytes_per_s


def test_the_best_run_counts_and_warming_up_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0
    durations = iter([1, 2, 9, 8, 7, 3, 6, 5, 4, 10])

    def run() -> None:
        nonlocal now
        now += next(durations)

    monkeypatch.setattr(roofline, "time", SimpleNamespace(perf_counter=lambda: now))
    assert roofline._best_s(run, CPU) == 3


@pytest.mark.parametrize("module", ["harness.roofline", "harness.roofline_limits"])
def test_arithmetic_needs_no_torch(module: str) -> None:
    code = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=PROJECT, check=True)
