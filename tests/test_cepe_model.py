"""CEPE's model against plain arithmetic in loops, against the plain decoder, and against our inference path.

The reference below knows the published names and the equations, nothing of our module: one row at a time, no padding,
one head at a time.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from baselines.cepe_model import (
    ENCODER_SHAPES,
    Cepe,
    CepeConfig,
    Context,
    added_parameters,
    build_cepe,
    from_published,
    hidden_states,
)
from harness.errors import InputError
from harness.model.encoders import BidirectionalLlama
from harness.model.llama import Llama
from harness.model.load import SHAPES

VOCABULARY = 60
DECODER = dict(
    hidden_size=32, intermediate_size=40, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2,
    vocab_size=VOCABULARY, rms_norm_eps=1e-5, rope_theta=10000.0, max_position_embeddings=128,
    tie_word_embeddings=False,
)  # fmt: skip
ENCODER = dict(
    hidden_size=24, intermediate_size=28, num_hidden_layers=3, num_attention_heads=3, num_key_value_heads=1,
    vocab_size=VOCABULARY, rms_norm_eps=1e-6, rope_theta=500.0, max_position_embeddings=64,
)  # fmt: skip


@dataclass(frozen=True)
class Published:
    """A checkpoint as the authors lay it out."""

    decoder: dict[str, Any]
    encoder: dict[str, Any]
    cross_layers: int
    states: int
    weights: dict[str, Tensor]

    def model(self) -> Cepe:
        return from_published(self.decoder, self.encoder, self.cross_layers, self.states, self.weights)


def published(cross_layers: int = 2, states: int = 1, decoder: dict | None = None, encoder: dict | None = None):
    decoder, encoder = DECODER | (decoder or {}), ENCODER | (encoder or {})
    generator = torch.Generator().manual_seed(cross_layers * 10 + states)

    def matrix(rows: int, columns: int) -> Tensor:
        return torch.randn((rows, columns), generator=generator) * 1.2 / math.sqrt(columns)

    def norm(width: int) -> Tensor:
        return torch.rand(width, generator=generator) + 0.5

    def stack(prefix: str, config: dict) -> dict[str, Tensor]:
        width, inner, heads = config["hidden_size"], config["intermediate_size"], config["num_attention_heads"]
        narrow = width // heads * config["num_key_value_heads"]
        made = {
            f"{prefix}embed_tokens.weight": torch.randn((VOCABULARY, width), generator=generator),
            f"{prefix}norm.weight": norm(width),
        }
        for layer in range(config["num_hidden_layers"]):
            for name, shape in {
                "self_attn.q_proj": (width, width), "self_attn.k_proj": (narrow, width),
                "self_attn.v_proj": (narrow, width), "self_attn.o_proj": (width, width),
                "mlp.gate_proj": (inner, width), "mlp.up_proj": (inner, width), "mlp.down_proj": (width, inner),
            }.items():  # fmt: skip
                made[f"{prefix}layers.{layer}.{name}.weight"] = matrix(*shape)
            for name in ("input_layernorm", "post_attention_layernorm"):
                made[f"{prefix}layers.{layer}.{name}.weight"] = norm(width)
        return made

    weights = stack("model.", decoder) | stack("encoder.", encoder)
    width, source = decoder["hidden_size"], encoder["hidden_size"]
    weights["lm_head.weight"] = matrix(VOCABULARY, width)
    narrow = width // decoder["num_attention_heads"] * decoder["num_key_value_heads"]
    for layer in range(decoder["num_hidden_layers"] - cross_layers, decoder["num_hidden_layers"]):
        block = f"model.layers.{layer}.cross_attn"
        weights[f"{block}.q_proj.weight"] = matrix(width, width)
        weights[f"{block}.k_proj.weight"] = matrix(narrow, source)
        weights[f"{block}.v_proj.weight"] = matrix(narrow, source)
        weights[f"{block}.o_proj.weight"] = matrix(width, width)
        weights[f"{block}.layernorm.weight"] = norm(width)
    return Published(decoder, encoder, cross_layers, states, weights)


# The reference: float64, one row of real tokens, its passages as lists of real tokens.


def ref_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return torch.stack([row / math.sqrt(float((row * row).mean()) + eps) * weight for row in x])


def ref_rotate(x: Tensor, positions: list[int], theta: float) -> Tensor:
    half = x.shape[1] // 2
    out = torch.empty_like(x)
    for row, position in enumerate(positions):
        for pair in range(half):
            angle = position * theta ** (-2 * pair / x.shape[1])
            a, b = x[row, pair], x[row, pair + half]
            out[row, pair] = a * math.cos(angle) - b * math.sin(angle)
            out[row, pair + half] = b * math.cos(angle) + a * math.sin(angle)
    return out


def ref_attention(
    w: dict[str, Tensor],
    name: str,
    config: dict,
    queries_from: Tensor,
    read_from: Tensor,
    positions: list[int] | None,
    causal: bool,
) -> Tensor:
    q, k, v, o = (w[f"{name}.{part}_proj.weight"] for part in "qkvo")
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    width = config["hidden_size"] // heads
    found = []
    for head in range(heads):
        shared = head // (heads // kv_heads)
        mine, theirs = slice(head * width, (head + 1) * width), slice(shared * width, (shared + 1) * width)
        query, key, value = queries_from @ q[mine].T, read_from @ k[theirs].T, read_from @ v[theirs].T
        if positions is not None:
            query, key = (ref_rotate(x, positions, config["rope_theta"]) for x in (query, key))
        rows = []
        for at in range(len(query)):
            seen = at + 1 if causal else len(key)
            weights = (key[:seen] @ query[at] / math.sqrt(width)).exp()
            rows.append((weights / weights.sum()) @ value[:seen])
        found.append(torch.stack(rows))
    return torch.cat(found, dim=1) @ o.T


def ref_mlp(w: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    gate, up, down = (w[f"{name}.{part}_proj.weight"] for part in ("gate", "up", "down"))
    return (torch.nn.functional.silu(x @ gate.T) * (x @ up.T)) @ down.T


def ref_encode(p: Published, w: dict[str, Tensor], chunk: list[int]) -> list[Tensor]:
    """Embeddings, every layer's output, the last of them normalised."""
    eps, positions = p.encoder["rms_norm_eps"], list(range(len(chunk)))
    x = w["encoder.embed_tokens.weight"][chunk]
    states = [x]
    for layer in range(p.encoder["num_hidden_layers"]):
        name = f"encoder.layers.{layer}"
        normed = ref_norm(x, w[f"{name}.input_layernorm.weight"], eps)
        x = x + ref_attention(w, f"{name}.self_attn", p.encoder, normed, normed, positions, causal=False)
        x = x + ref_mlp(w, f"{name}.mlp", ref_norm(x, w[f"{name}.post_attention_layernorm.weight"], eps))
        states.append(x)
    states[-1] = ref_norm(x, w["encoder.norm.weight"], eps)
    return states


def reference(p: Published, row: list[int], chunks: list[list[int]]) -> Tensor:
    w = {name: tensor.double() for name, tensor in p.weights.items()}
    encoded = [ref_encode(p, w, chunk) for chunk in chunks if chunk]
    eps, layers, positions = p.decoder["rms_norm_eps"], p.decoder["num_hidden_layers"], list(range(len(row)))
    x = w["model.embed_tokens.weight"][row]
    for layer in range(layers):
        name = f"model.layers.{layer}"
        normed = ref_norm(x, w[f"{name}.input_layernorm.weight"], eps)
        x = x + ref_attention(w, f"{name}.self_attn", p.decoder, normed, normed, positions, causal=True)
        if encoded and layer >= layers - p.cross_layers:
            read = torch.cat([states[-1 if p.states == 1 else layer - layers] for states in encoded])
            normed = ref_norm(x, w[f"{name}.cross_attn.layernorm.weight"], eps)
            x = x + ref_attention(w, f"{name}.cross_attn", p.decoder, normed, read, None, causal=False)
        x = x + ref_mlp(w, f"{name}.mlp", ref_norm(x, w[f"{name}.post_attention_layernorm.weight"], eps))
    return ref_norm(x, w["model.norm.weight"], eps) @ w["lm_head.weight"].T


# Ragged batches.

ROWS = [[5, 9, 31, 7], [11, 12, 13, 14, 15, 16, 17], [40], [8, 8, 3, 59, 2]]
CHUNKS = [
    [[21, 22, 23], [], [24, 25, 26, 27, 28]],  # an empty passage between two
    [[30], [31, 32, 33, 34, 35], [36, 37]],
    [[], [], []],  # nothing to read
    [[50, 51, 52, 53, 54], [55, 56, 57, 58, 59], [1, 2, 3, 4, 5]],  # no padding
]


def pad(rows: list[list[int]], width: int, side: str, pad_id: int) -> tuple[Tensor, Tensor]:
    ids = torch.full((len(rows), width), pad_id)
    mask = torch.zeros(ids.shape, dtype=torch.long)
    for index, row in enumerate(rows):
        at = slice(width - len(row), width) if side == "left" else slice(0, len(row))
        ids[index, at] = torch.tensor(row, dtype=torch.long)
        mask[index, at] = 1
    return ids, mask


def batch(
    rows: list[list[int]] = ROWS,
    chunks: list[list[list[int]]] = CHUNKS,
    *,
    side: str = "left",
    encoder_side: str = "right",
    extra: int = 0,
    pad_id: int = 0,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Decoder ids, mask and positions, encoder ids and mask; ``extra`` columns wider than needed."""
    ids, mask = pad(rows, max(map(len, rows)) + extra, side, pad_id)
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    width = max(len(chunk) for row in chunks for chunk in row) + extra
    read = [pad(row, width, encoder_side, pad_id) for row in chunks]
    return ids, mask, positions, torch.stack([r[0] for r in read]), torch.stack([r[1] for r in read])


@torch.no_grad()
def by_row(model: Cepe, inputs: tuple[Tensor | None, ...]) -> list[Tensor]:
    """Logits of each row's tokens; what stands at padding is only asked to be finite."""
    logits = model(*inputs).logits
    assert logits.isfinite().all()
    return [row[mask.bool()] for row, mask in zip(logits, inputs[1], strict=True)]


def close(got: Tensor, expected: Tensor) -> bool:
    return torch.allclose(got, expected.to(got), atol=1e-5, rtol=1e-5)


SHAPED = {
    "grouped": {},
    "every layer": dict(cross_layers=3),
    "one layer": dict(cross_layers=1),
    "own states": dict(cross_layers=2, states=2),
    "own states of every layer": dict(cross_layers=3, states=3),
    "own states down to the embeddings": dict(cross_layers=3, states=3, encoder=dict(num_hidden_layers=2)),
    "no grouping": dict(decoder=dict(num_key_value_heads=4), encoder=dict(num_key_value_heads=3)),
    "one key head": dict(decoder=dict(num_key_value_heads=1), cross_layers=3),
    "a wider encoder": dict(encoder=dict(hidden_size=48, num_attention_heads=4, num_key_value_heads=2)),
}


@pytest.mark.parametrize("shape", SHAPED)
def test_it_is_the_arithmetic_of_the_paper(shape: str) -> None:
    checkpoint = published(**SHAPED[shape])
    model = checkpoint.model()
    sides = [by_row(model, batch(side=a, encoder_side=b)) for a, b in (("left", "right"), ("right", "left"))]
    for row, chunks, *got in zip(ROWS, CHUNKS, *sides, strict=True):
        expected = reference(checkpoint, row, chunks)
        for logits in got:
            assert close(logits, expected), (logits - expected).abs().max()
        if any(chunks):
            without = reference(checkpoint, row, [])
            assert (expected - without).abs().max() > 0.1, "a context that moves nothing proves nothing"


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_shifts_and_leaks_nothing(side: str) -> None:
    model = published(cross_layers=3, states=3).model()
    expected = by_row(model, batch())
    for extra, pad_id, encoder_side in [(0, 59, "left"), (3, 0, "right"), (6, 7, "left")]:
        inputs = batch(side=side, encoder_side=encoder_side, extra=extra, pad_id=pad_id)
        for got, alone in zip(by_row(model, inputs), expected, strict=True):
            assert close(got, alone)


def test_positions_in_a_passage_count_its_tokens() -> None:
    """A constant shift would not show, rotary positions being relative; a hole does."""
    model = published().model()
    ids, mask, positions, read, read_mask = batch(ROWS[:1], [[[21, 22, 23, 24]]])
    holed, holed_mask = torch.tensor([[[21, 22, 0, 23, 24]]]), torch.tensor([[[1, 1, 0, 1, 1]]])
    (expected,), (got,) = (
        by_row(model, (ids, mask, positions, *context)) for context in ((read, read_mask), (holed, holed_mask))
    )
    assert close(got, expected)


@pytest.mark.parametrize("side", ["left", "right"])
def test_no_softmax_is_over_nothing(side: str, monkeypatch) -> None:
    """Some kernels give zeros there, some NaN, which the states that padding hides would carry on."""
    kernel, masks = torch.nn.functional.scaled_dot_product_attention, []

    def strict(*args: Any, attn_mask: Tensor | None = None, **settings: Any) -> Tensor:
        if attn_mask is not None:
            masks.append(attn_mask)
            assert attn_mask.any(-1).all()
        return kernel(*args, attn_mask=attn_mask, **settings)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", strict)
    published().model()(*batch(side=side, encoder_side=side))
    assert len(masks) == 3 + 3 + 2, "of the encoder's layers, the decoder's, and cross-attention"


def test_a_row_does_not_feel_its_neighbours() -> None:
    model = published().model()
    for row, chunks, got in zip(ROWS, CHUNKS, by_row(model, batch()), strict=True):
        full = [chunk for chunk in chunks if chunk]
        ids, mask, positions, *read = batch([row], [full or [[0]]])
        (alone,) = by_row(model, (ids, mask, positions, *(read if full else (None, None))))
        assert close(got, alone)


def test_the_order_of_passages_is_not_seen() -> None:
    """That of a passage's tokens is."""
    model = published(cross_layers=3, states=3).model()
    ids, mask, positions, read, read_mask = batch()
    expected = by_row(model, (ids, mask, positions, read, read_mask))
    for order in ([1, 2, 0], [2, 1, 0]):
        got = by_row(model, (ids, mask, positions, read[:, order], read_mask[:, order]))
        assert all(close(a, b) for a, b in zip(got, expected, strict=True))
    turned = [[chunk[::-1] for chunk in row] for row in CHUNKS]
    assert (by_row(model, batch(chunks=turned))[1] - expected[1]).abs().max() > 1e-3


# Nothing to read.


def plain(checkpoint: Published) -> LlamaForCausalLM:
    decoder = LlamaForCausalLM(LlamaConfig(**checkpoint.decoder)).eval()
    own = {n: t for n, t in checkpoint.weights.items() if not n.startswith("encoder.") and "cross_attn" not in n}
    decoder.load_state_dict(own)
    return decoder


@pytest.mark.parametrize("rows", [ROWS, [row[:1] * 4 for row in ROWS]], ids=["padded", "unpadded"])
@pytest.mark.parametrize("side", ["left", "right"])
@torch.no_grad()
def test_without_passages_it_is_the_plain_decoder(rows: list[list[int]], side: str) -> None:
    checkpoint = published()
    model = checkpoint.model()
    ids, mask, positions, read, read_mask = batch(rows, side=side)
    expected = plain(checkpoint)(input_ids=ids, attention_mask=mask, position_ids=positions).logits
    nothing = [(None, None), (read[:, :0], read_mask[:, :0]), (read, torch.zeros_like(read_mask))]
    for context in nothing:
        got = by_row(model, (ids, mask, positions, *context))
        assert all(torch.equal(a, b[m.bool()]) for a, b, m in zip(got, expected, mask, strict=True))
    assert all(
        torch.equal(a, b[m.bool()])
        for a, b, m in zip(by_row(model, (ids, mask, positions)), expected, mask, strict=True)
    )


@torch.no_grad()
def test_a_row_with_nothing_to_read_is_the_plain_decoder_among_others() -> None:
    checkpoint = published(cross_layers=3)
    inputs = batch()
    got = by_row(checkpoint.model(), inputs)[2]
    ids, mask, positions, _, _ = inputs
    expected = plain(checkpoint)(input_ids=ids, attention_mask=mask, position_ids=positions).logits
    assert torch.equal(got, expected[2][mask[2].bool()])


def test_nothing_to_read_leaves_gradients_finite() -> None:
    model = published(cross_layers=3, states=3).model()
    ids, mask, positions, read, read_mask = batch()
    model(ids, mask, positions, read, read_mask).logits.square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


# The inference path: our Llama with cross-attention between self-attention and MLP.


def inference(model: Cepe, read: Tensor, read_mask: Tensor) -> Context:
    """Passages encoded and projected one by one, laid side by side afterwards, as a system that keeps them would."""
    B, N, S = read.shape
    per_row = []
    for row in range(B):
        per_passage = [model.keys_values(model.encode(read[row, n, None], read_mask[row, n, None])) for n in range(N)]
        per_row.append(
            [
                tuple(torch.cat([blocks[b][which] for blocks in per_passage], dim=2) for which in (0, 1))
                for b in range(len(model.cross))
            ]
        )
    blocks = [
        (torch.cat([row[b][0] for row in per_row]), torch.cat([row[b][1] for row in per_row]))
        for b in range(len(model.cross))
    ]
    return Context.of(blocks, read_mask.bool().reshape(B, N * S))


@pytest.mark.parametrize("shape", ["grouped", "own states of every layer", "one layer"])
@pytest.mark.parametrize("rows", [ROWS, [row[:1] * 4 for row in ROWS]], ids=["padded", "unpadded"])
@torch.no_grad()
def test_llama_with_cross_attention_between_equals_the_forward(shape: str, rows: list[list[int]]) -> None:
    model = published(**SHAPED[shape]).model()
    ids, mask, positions, read, read_mask = batch(rows)
    expected = model(ids, mask, positions, read, read_mask).logits[:, -1]
    between = partial(model.cross_attend, context=inference(model, read, read_mask))
    llama = Llama(model.decoder)
    cache = llama.new_cache(len(rows), ids.shape[1])
    got = llama.prefill(llama.embed(ids), mask.bool(), cache, between)
    assert close(got, expected)
    again = llama.prefill(llama.embed(ids), mask.bool(), llama.new_cache(len(rows), ids.shape[1]))
    assert (got - again).abs().max() > 0.1


@torch.no_grad()
def test_decoding_equals_the_forward_over_everything_and_cached_keys_equal_fresh_ones() -> None:
    model = published(cross_layers=3, states=3).model()
    ids, mask, positions, read, read_mask = batch()
    llama = Llama(model.decoder)
    kept = inference(model, read, read_mask)
    caches = [llama.new_cache(len(ids), ids.shape[1] + 4) for _ in range(2)]
    llama.prefill(llama.embed(ids), mask.bool(), caches[0], partial(model.cross_attend, context=kept))
    llama.prefill(llama.embed(ids), mask.bool(), caches[1], partial(model.cross_attend, context=kept))
    for step in range(4):
        token = torch.tensor([3 + step, 20 + step, 30 + step, 50 + step])
        ids = torch.cat([ids, token[:, None]], dim=1)
        mask = torch.cat([mask, torch.ones_like(token)[:, None]], dim=1)
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        fresh = inference(model, read, read_mask)
        got = llama.decode_one_token(token, caches[0], partial(model.cross_attend, context=kept))
        recomputed = llama.decode_one_token(token, caches[1], partial(model.cross_attend, context=fresh))
        assert torch.equal(got, recomputed)
        assert close(got, model(ids, mask, positions, read, read_mask).logits[:, -1])


@torch.no_grad()
def test_only_the_states_that_are_read_are_kept() -> None:
    ids, mask = torch.tensor([[7, 8, 9]]), torch.ones((1, 3), dtype=torch.bool)
    for layerwise, kept in ((1, 1), (2, 2)):
        model = published(cross_layers=2, states=layerwise).model()
        states = model.encode(ids, mask)
        assert [tuple(s.shape) for s in states] == [(1, 3, 24)] * kept
        assert torch.equal(states[-1], hidden_states(model.encoder, ids, mask, 4)[-1])
        assert torch.allclose(states[-1], model.encoder(ids, mask), atol=1e-6), "the encoder's own forward"


# Training.


def test_a_step_moves_what_was_added_and_not_a_byte_of_the_frozen_decoder() -> None:
    model = published(cross_layers=2, states=2).model().train()
    model.decoder.requires_grad_(False)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    ids, mask, positions, read, read_mask = batch()
    logits = model(ids, mask, positions, read, read_mask).logits
    torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten()).backward()
    optimizer.step()
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]) == name.startswith("decoder."), name


def test_it_starts_as_self_attention() -> None:
    checkpoint = published(cross_layers=2)
    model = checkpoint.model()
    model.initialise_from_self_attention()
    for number, layer in enumerate((1, 2)):
        block = model.cross[number]
        for name in ("q", "k", "v", "o"):
            theirs = checkpoint.weights[f"model.layers.{layer}.self_attn.{name}_proj.weight"]
            cut = theirs[:, :24] if name in "kv" else theirs
            assert torch.equal(getattr(block, f"{name}_proj").weight, cut)
        assert torch.equal(
            block.layernorm.weight, checkpoint.weights[f"model.layers.{layer}.post_attention_layernorm.weight"]
        )
        theirs = {p.data_ptr() for p in model.decoder.parameters()}
        assert theirs.isdisjoint(p.data_ptr() for p in block.parameters()), "copied, not shared"
    with pytest.raises(InputError, match="an encoder of width 48 .* decoder of 32"):
        published(**SHAPED["a wider encoder"]).model().initialise_from_self_attention()


@pytest.mark.parametrize("encoder", ["decoder:2", "random:cepe-tiny"])
def test_built_around_a_decoder(encoder: str) -> None:
    decoder = LlamaForCausalLM._from_config(LlamaConfig(**DECODER | {"hidden_size": 64}), dtype=torch.bfloat16).eval()
    before = {name: tensor.clone() for name, tensor in decoder.state_dict().items()}
    model = build_cepe(CepeConfig(encoder=encoder, cross_layers=2, encoder_states=2), decoder)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert model.encoder.rotary.inv_freq.dtype == torch.float32
    assert torch.equal(model.cross[1].q_proj.weight, decoder.model.layers[2].self_attn.q_proj.weight)
    if encoder == "decoder:2":
        assert torch.equal(model.encoder.layers[1].mlp.up_proj.weight, decoder.model.layers[1].mlp.up_proj.weight)
    logits = model(*batch()).logits
    assert logits.shape == (4, 7, VOCABULARY) and logits.isfinite().all()
    assert all(torch.equal(tensor, before[name]) for name, tensor in decoder.state_dict().items())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (dict(cross_layers=0), "at least 1 layer"),
        (dict(cross_layers=3, encoder_states=2), "encoder_states 1 or, one for each cross-attention, 3; got 2"),
        (dict(cross_layers=2, encoder="roberta-base"), "decoder:N with a number of layers or random:SHAPE"),
        (dict(cross_layers=2, encoder="decoder:two"), "decoder:N with a number of layers or random:SHAPE"),
        (dict(cross_layers=2, encoder="random:cepe-huge"), "valid choices: cepe-large, cepe-mini, cepe-tiny"),
    ],
)
def test_wrong_settings_are_input_errors(settings: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        CepeConfig(**settings)


def test_layers_that_are_not_there_are_input_errors() -> None:
    with pytest.raises(InputError, match="expected 1 to 3 decoder layers with cross-attention, got 4"):
        from_published(DECODER, ENCODER, 4, 1, {})
    with pytest.raises(InputError, match="3 decoder layers would each read .* there are 2"):
        from_published(DECODER, ENCODER | {"num_hidden_layers": 1}, 3, 3, {})
    with pytest.raises(InputError, match="expected at least 1 encoder state, got 0"):
        from_published(DECODER, ENCODER, 3, 0, {})


# The published names.


def test_missing_and_unexpected_names_are_listed() -> None:
    checkpoint = published()
    gone = {"model.layers.2.cross_attn.layernorm.weight", "encoder.norm.weight", "lm_head.weight"}
    weights = {n: t for n, t in checkpoint.weights.items() if n not in gone} | {
        "model.layers.0.cross_attn.q_proj.weight": torch.zeros(32, 32)
    }
    with pytest.raises(InputError) as error:
        replace(checkpoint, weights=weights).model()
    message = str(error.value)
    assert "3 missing" in message and "1 unexpected: model.layers.0.cross_attn.q_proj.weight" in message
    assert all(name in message for name in gone)


def test_of_many_names_the_first_stand_for_all() -> None:
    with pytest.raises(InputError, match=r"\d+ missing") as error:
        replace(published(), weights={}).model()
    message = str(error.value)
    assert message.count(".weight") == 10 and message.endswith(", ...")


def test_shapes_that_do_not_fit_are_named() -> None:
    checkpoint = published()
    name = "model.layers.2.cross_attn.k_proj.weight"
    with pytest.raises(InputError, match=rf"{name}: expected the shape \(16, 24\), got \(16, 32\)"):
        replace(checkpoint, weights=checkpoint.weights | {name: torch.zeros(16, 32)}).model()


def test_what_a_published_config_and_checkpoint_carry_besides_is_let_be() -> None:
    checkpoint = published()
    besides = dict(architectures=["LlamaForCausalLM"], model_type="llama", torch_dtype="float16", rope_scaling=None,
                   transformers_version="4.34.1", use_cache=True, num_cross_attn_layers=2)  # fmt: skip
    old = {
        f"{part}.layers.{i}.self_attn.rotary_emb.inv_freq": torch.rand(4)
        for part in ("model", "encoder")
        for i in (0, 1)
    }
    carried = replace(
        checkpoint,
        decoder=besides | checkpoint.decoder,
        encoder=besides | checkpoint.encoder,
        weights=checkpoint.weights | old,
    )
    expected = by_row(checkpoint.model(), batch())
    assert all(torch.equal(a, b) for a, b in zip(by_row(carried.model(), batch()), expected, strict=True))


def test_a_tied_decoder_needs_no_head() -> None:
    checkpoint = published(decoder={"tie_word_embeddings": True})
    tied = {n: t for n, t in checkpoint.weights.items() if n != "lm_head.weight"}
    embedding = tied["model.embed_tokens.weight"]
    got = by_row(replace(checkpoint, weights=tied).model(), batch())
    spelt = replace(checkpoint, weights=tied | {"lm_head.weight": embedding})
    for row, chunks, logits in zip(ROWS, CHUNKS, got, strict=True):
        expected = reference(spelt, row, chunks)
        assert torch.allclose(logits, expected.float(), atol=1e-4, rtol=1e-5)  # logits are larger by a wide embedding
    with pytest.raises(InputError, match="lm_head.weight is not the token embedding"):
        checkpoint.model()


def test_the_dtype_is_the_checkpoints_and_its_tensors_stay_its_own() -> None:
    checkpoint = published()
    half = replace(checkpoint, weights={n: t.bfloat16() for n, t in checkpoint.weights.items()})
    model = half.model()
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16} and not model.training
    assert model.decoder.model.rotary_emb.inv_freq.dtype == model.encoder.rotary.inv_freq.dtype == torch.float32
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert all(tensor.abs().sum() > 0 for tensor in half.weights.values())


# The published sizes: 435.4 M and 1342 M, 1778 M together, counted without norms.


def test_around_llama2_7b_it_adds_what_the_paper_counts() -> None:
    with torch.device("meta"):
        decoder = LlamaForCausalLM(LlamaConfig(**SHAPES["llama2-7b"]))
        shape = LlamaConfig(vocab_size=32000, **ENCODER_SHAPES["cepe-large"])
        model = Cepe(decoder, BidirectionalLlama(shape, shape.num_hidden_layers), cross_layers=32)
    added = added_parameters(model)
    encoder_norms, cross_norms = (2 * 24 + 1) * 1024, 32 * 4096
    assert added == {"encoder": 435_421_184 + encoder_norms, "cross": 1_342_177_280 + cross_norms}
    assert round((added["encoder"] - encoder_norms) / 1e5) == 4354
    assert round((added["cross"] - cross_norms) / 1e6) == 1342
    assert round(sum(added.values()) / 1e6) == 1778, "with norms, and without"
