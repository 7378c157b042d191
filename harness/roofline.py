"""What a forward pass costs at least, in FLOPs and bytes, and how much of either a device does per second.

Legend: L layers, E width, H query heads, G key/value heads, D head width, F width inside the MLP, V vocabulary; T new
positions of a row, P positions before them; W encoder width, R encoder positions of a row that cross-attention reads.

FLOPs. A multiply-add is 2, so a matrix of N weights takes 2 N per position:

    q, o         2 E H D each
    k, v         2 E G D each
    MLP          2 E F per matrix: gate, up and down in a Llama, two in RoBERTa
    attention    4 H D per pair of a query and a position that it sees: 2 for the score, 2 for the weighted value
    output head  2 E V

Prefill: L - 1 layers do this for T positions and T P + T (T + 1) / 2 pairs (T (P + T) where pairs behind the causal
mask are counted too). The last layer needs keys and values of all T, and everything else of the last position alone:
P + T pairs. The head reads one position per row. A decode step is a prefill of one position.

Vector operations (norms, rotary positions, softmax, activations, residuals) and embedding look-ups are left out.

Bytes. A lower bound: each weight is read once per forward, whatever the batch; keys and values of earlier positions
are read once, those of new positions written once. Activations stay on the chip. A chip whose cache holds weights or
keys and values from one forward to the next can be faster, so on a CPU a small model may be below this floor.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from harness.roofline_limits import NOTHING, Ceilings, Work
from harness.timing import synchronise

if TYPE_CHECKING:
    import torch
    from transformers import LlamaConfig, RobertaConfig

REPEATS = 8


@dataclass(frozen=True, kw_only=True)
class Layers:
    """A stack of transformer layers. ``ffn`` is the width inside the MLP."""

    layers: int
    width: int
    heads: int
    kv_heads: int
    head_width: int
    ffn: int

    @property
    def q_weights(self) -> int:
        """Of one layer's query matrix; the output projection is of the same size."""
        return self.width * self.heads * self.head_width

    @property
    def k_weights(self) -> int:
        """Of one layer's key matrix; the value matrix is of the same size."""
        return self.width * self.kv_heads * self.head_width


@dataclass(frozen=True, kw_only=True)
class LlamaShape(Layers):
    """A Llama decoder, without biases."""

    vocab: int

    @classmethod
    def of(cls, config: LlamaConfig) -> LlamaShape:
        """The shape that ``config`` describes."""
        return cls(**_layers(config, config.num_hidden_layers), vocab=config.vocab_size)

    @property
    def weights(self) -> int:
        """The parameters that a forward reads: all but the embedding table, which is the head where they are tied."""
        layer = 2 * self.q_weights + 2 * self.k_weights + 3 * self.width * self.ffn + 2 * self.width
        return self.layers * layer + self.width + self.width * self.vocab


@dataclass(frozen=True, kw_only=True)
class EncoderShape(Layers):
    """RoBERTa, or (``gated``) a Llama's layers without a causal mask and a last norm."""

    gated: bool

    @classmethod
    def of_roberta(cls, config: RobertaConfig) -> EncoderShape:
        """All layers of the RoBERTa that ``config`` describes."""
        heads = config.num_attention_heads
        return cls(
            layers=config.num_hidden_layers,
            width=config.hidden_size,
            heads=heads,
            kv_heads=heads,
            head_width=config.hidden_size // heads,
            ffn=config.intermediate_size,
            gated=False,
        )

    @classmethod
    def of_llama(cls, config: LlamaConfig, layers: int) -> EncoderShape:
        """The first ``layers`` of the Llama that ``config`` describes."""
        return cls(**_layers(config, layers), gated=True)

    @property
    def mlp_weights(self) -> int:
        """Of one layer's MLP, without biases."""
        return (3 if self.gated else 2) * self.width * self.ffn

    @property
    def weights(self) -> int:
        """All parameters but the embedding tables; RoBERTa has biases, two vectors per norm, a norm of embeddings."""
        matrices = 2 * self.q_weights + 2 * self.k_weights + self.mlp_weights
        if self.gated:
            return self.layers * (matrices + 2 * self.width) + self.width
        return self.layers * (matrices + 9 * self.width + self.ffn) + 2 * self.width


def prefill(shape: LlamaShape, *, new: int, past: int = 0, batch: int = 1, itemsize: int, causal: bool = True) -> Work:
    """What ``harness.model.llama.Llama.prefill`` must do: ``new`` positions per row after ``past`` in the cache.

    ``itemsize`` is the bytes of a number. ``causal=False`` counts the pairs behind the causal mask too, as FLOP
    counters and the paper do.
    """
    assert new >= 1
    pairs = new * past + (new * (new + 1) // 2 if causal else new * new)
    below = shape.layers - 1
    attention = (below * pairs + past + new) * 4 * shape.heads * shape.head_width
    per_row = (
        shape.layers * new * 4 * shape.k_weights
        + (below * new + 1) * 2 * (2 * shape.q_weights + 3 * shape.width * shape.ffn)
        + attention
        + 2 * shape.width * shape.vocab
    )
    moved = itemsize * shape.weights + kv_bytes(shape, past + new, batch, itemsize)
    return Work(flops=batch * per_row, bytes=moved, attention=batch * attention)


def decode_step(shape: LlamaShape, *, past: int, batch: int = 1, itemsize: int) -> Work:
    """One token per row, after ``past`` positions in the cache."""
    return prefill(shape, new=1, past=past, batch=batch, itemsize=itemsize)


def kv_bytes(shape: LlamaShape, positions: int, batch: int, itemsize: int) -> int:
    """Of the keys and values of ``positions`` per row, in all layers."""
    return 2 * shape.layers * shape.kv_heads * shape.head_width * positions * batch * itemsize


def encode(shape: EncoderShape, *, rows: int, positions: int, itemsize: int) -> Work:
    """``rows`` windows of ``positions`` through an encoder of ``harness.model.encoders``: all states of its last layer.

    Every position sees its whole window. Neither ids nor states are counted as bytes.
    """
    if not rows:
        return NOTHING
    per_position = 2 * (2 * shape.q_weights + 2 * shape.k_weights + shape.mlp_weights)
    attention = rows * shape.layers * positions**2 * 4 * shape.heads * shape.head_width
    flops = rows * shape.layers * positions * per_position + attention
    return Work(flops=flops, bytes=itemsize * shape.weights, attention=attention)


def project(*, pooled: int, width: int, chunks: int, itemsize: int) -> Work:
    """REFRAG's projector, ``pooled`` -> ``width`` -> ``width`` with biases, once per chunk.

    ``pooled`` is k encoder widths with the pooling ``concat``, whose skip is not counted, and one otherwise. Neither
    states nor chunk embeddings are counted as bytes.
    """
    if not chunks:
        return NOTHING
    matrices = pooled * width + width**2
    return Work(flops=2 * chunks * matrices, bytes=itemsize * (matrices + 2 * width))


def cross_attention(
    shape: LlamaShape,
    *,
    layers: int,
    encoder_width: int,
    new: int,
    read: int,
    batch: int = 1,
    itemsize: int,
    kv: bool,
) -> Work:
    """CEPE's blocks in the top ``layers`` of the decoder: per row, ``new`` positions over ``read`` of the encoder.

    The decoder's last layer works for the last position alone, and so does the last block. ``kv`` adds the projection
    of keys and values: with ``new=0`` the encode phase, which writes them; with ``new`` the option "recomputed", which
    reads the encoder's last states once for all blocks and uses keys and values on the spot. Without ``kv`` they are
    read.
    """
    states = batch * read  # encoder positions of all rows
    kv_width = 2 * shape.kv_heads * shape.head_width
    flops, attention, numbers = 0, 0, 0
    if new:
        positions = (layers - 1) * new + 1
        attention = batch * positions * 4 * shape.heads * shape.head_width * read
        flops += batch * positions * 4 * shape.q_weights + attention
        numbers += layers * (2 * shape.q_weights + shape.width)
        numbers += states * encoder_width if kv else layers * states * kv_width
    if kv:
        flops += layers * states * 2 * encoder_width * kv_width
        numbers += layers * encoder_width * kv_width
        numbers += 0 if new else layers * states * kv_width
    return Work(flops=flops, bytes=itemsize * numbers, attention=attention)


def measure_ceilings(device: torch.device, dtype: torch.dtype) -> Ceilings:
    """The fastest of several large matrix products in ``dtype``, of causal attention, and of large copies and sums.

    The best, because a ceiling is a maximum; a sum beside the copy, because a decode step only reads, and reading alone
    can be faster. Random numbers, because zeros take a GPU less power and so less time. With the threads that the
    process has. Meanwhile it holds 4 GiB of a GPU, or 1 GiB of a CPU, where the process's peak keeps it.
    """
    import torch

    cuda = device.type == "cuda"
    side, n = (8192, 1 << 29) if cuda else (2048, 1 << 27)  # n float32 are more than the last-level cache holds
    generator = torch.Generator(device).manual_seed(0)  # its own: the process's random numbers stay as they are
    a, b = (torch.randn((side, side), generator=generator, device=device, dtype=dtype) for _ in range(2))
    product = torch.empty_like(a)
    product_s = _best_s(lambda: torch.mm(a, b, out=product), device)
    heads, positions, width = 16, 4096, 128 if cuda else 64
    shape = (3, 1, heads, positions, width)
    q, k, v = torch.randn(shape, generator=generator, device=device, dtype=dtype)
    attend = torch.nn.functional.scaled_dot_product_attention
    attention_s = _best_s(lambda: attend(q, k, v, is_causal=True), device)
    pairs = positions * (positions + 1) // 2
    source = torch.rand(n, generator=generator, device=device)
    copy = torch.empty_like(source)
    copy_s = _best_s(lambda: copy.copy_(source), device)
    sum_s = _best_s(source.sum, device)
    return Ceilings(
        flops_per_s=2 * side**3 / product_s,
        bytes_per_s=max(2 * source.nbytes / copy_s, source.nbytes / sum_s),
        attention_flops_per_s=4 * heads * width * pairs / attention_s,
        device=torch.cuda.get_device_name(device) if cuda else device.type,
        dtype=str(dtype).removeprefix("torch."),
    )


def _best_s(run: Callable[[], object], device: torch.device) -> float:
    """Seconds of the fastest of several runs, after two that warm up."""
    samples = []
    for _ in range(2 + REPEATS):
        synchronise(device)
        start = time.perf_counter()
        run()
        synchronise(device)
        samples.append(time.perf_counter() - start)
    return min(samples[2:])


def _layers(config: LlamaConfig, layers: int) -> dict[str, int]:
    """The fields of ``Layers`` for ``layers`` of a Llama."""
    return dict(
        layers=layers,
        width=config.hidden_size,
        heads=config.num_attention_heads,
        kv_heads=config.num_key_value_heads,
        head_width=config.head_dim,
        ffn=config.intermediate_size,
    )
