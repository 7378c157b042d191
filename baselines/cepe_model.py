"""CEPE's model: a small encoder reads each passage alone, and the decoder's upper layers attend to what it says.

arXiv:2402.16617, and where the paper is silent, what its authors released (princeton-nlp/CEPE):

- Encoder: a bidirectional Llama, rotary positions from 0 inside every passage.
- Cross-attention: one block in each of the top n decoder layers, between self-attention and MLP. Queries are the
  decoder's states under the block's own RMSNorm, keys and values the encoder's states of all passages side by side,
  x + O softmax(Q(norm x) K(s)^T / sqrt(D)) V(s). No rotary positions, no gate, no causal mask: padding alone is
  hidden, so the order of the passages is not seen.
- States: the encoder's last ones, normalised, for every block; or, with several, those at i - L for decoder layer i of
  L, counted from the end of: embeddings, every layer's output, the last of them normalised.
- A row that has nothing to read gets its states back, and the model is the plain decoder.

Training leaves the decoder frozen; that is the stage's to say, not the model's.

Legend: B rows, T decoder positions, N passages, S positions per passage, P encoder positions of a row (all its passages
side by side), W encoder width, E decoder width, H query heads, G key/value heads, D head width, V vocabulary.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from harness.errors import InputError, unknown
from harness.model.beside import match
from harness.model.encoders import BidirectionalLlama

if TYPE_CHECKING:
    from transformers import LlamaConfig, LlamaForCausalLM
    from transformers.modeling_outputs import CausalLMOutput

# The released encoder, and small ones for small decoders; the vocabulary is the decoder's.
ENCODER_SHAPES: Mapping[str, Mapping[str, Any]] = {
    "cepe-tiny": dict(
        hidden_size=64, intermediate_size=176, num_hidden_layers=2, num_attention_heads=2, max_position_embeddings=512,
        rms_norm_eps=1e-6,
    ),
    "cepe-mini": dict(
        hidden_size=256, intermediate_size=1024, num_hidden_layers=6, num_attention_heads=4,
        max_position_embeddings=512, rms_norm_eps=1e-6,
    ),
    "cepe-large": dict(
        hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, num_attention_heads=16,
        max_position_embeddings=512, rms_norm_eps=1e-6,
    ),
}  # fmt: skip
NAMES_SHOWN = 10  # in an error that lists names of weights

KeysValues = tuple[Tensor, Tensor]  # (B, G, P, D) each


@dataclass(frozen=True, kw_only=True)
class CepeConfig:
    """The shape of everything around the decoder.

    ``encoder`` is ``decoder:N`` (the decoder's own first N layers, bidirectional) or ``random:SHAPE`` (a shape of
    ``ENCODER_SHAPES`` with random weights). ``cross_layers`` is n, how many decoder layers, from the top, read it.
    ``encoder_states`` is how many of its states they read: 1, or one for each of them.
    """

    cross_layers: int
    encoder: str = "decoder:2"
    encoder_states: int = 1

    def __post_init__(self) -> None:
        if self.cross_layers < 1:
            raise InputError(f"expected at least 1 layer with cross-attention, got cross_layers={self.cross_layers}")
        if self.encoder_states not in (1, self.cross_layers):
            raise InputError(
                f"expected encoder_states 1 or, one for each cross-attention, {self.cross_layers}; "
                f"got {self.encoder_states}"
            )
        kind, _, argument = self.encoder.partition(":")
        if kind == "random" and argument not in ENCODER_SHAPES:
            raise unknown("encoder shape", argument, ENCODER_SHAPES)
        if kind != "random" and not (kind == "decoder" and argument.isdecimal()):
            raise InputError(
                f"expected an encoder decoder:N with a number of layers or random:SHAPE, got {self.encoder!r}"
            )


@dataclass(frozen=True)
class Context:
    """What cross-attention reads, made once and read at every step.

    ``keys_values`` has an entry per block. ``mask_B11P`` is True where a row looks, None where all look everywhere,
    which is the faster kernel; ``reads_B111`` is False for a row that has nothing to read.
    """

    keys_values: Sequence[KeysValues]
    mask_B11P: Tensor | None
    reads_B111: Tensor | None

    @classmethod
    def of(cls, keys_values: Sequence[KeysValues], visible_BP: Tensor) -> Context:
        """``keys_values`` of positions of which only those in ``visible_BP`` are tokens of the row's passages."""
        if bool(visible_BP.all()):
            return cls(keys_values, None, None)
        reads_B1 = visible_BP.any(-1, keepdim=True)
        # A row without a visible position looks at all of them, or its softmax would be over nothing (NaN); what it
        # finds is dropped.
        return cls(keys_values, (visible_BP | ~reads_B1)[:, None, None], reads_B1[:, None, None])


class CrossAttention(nn.Module):
    """One block, with the decoder's heads; its parameters carry the published names."""

    def __init__(self, config: LlamaConfig, encoder_width: int) -> None:
        super().__init__()
        E, D = config.hidden_size, config.head_dim
        H, G = config.num_attention_heads, config.num_key_value_heads
        self.n_heads, self.n_kv_heads, self.head_width = H, G, D
        self.q_proj = nn.Linear(E, H * D, bias=False)
        self.k_proj = nn.Linear(encoder_width, G * D, bias=False)
        self.v_proj = nn.Linear(encoder_width, G * D, bias=False)
        self.o_proj = nn.Linear(H * D, E, bias=False)
        self.layernorm = nn.RMSNorm(E, eps=config.rms_norm_eps)

    def keys_values(self, states_BPW: Tensor) -> KeysValues:
        """Encoder states (B, P, W) to keys and values (B, G, P, D)."""
        keys, values = self.k_proj(states_BPW), self.v_proj(states_BPW)
        return self._heads(keys, self.n_kv_heads), self._heads(values, self.n_kv_heads)

    def forward(self, x_BTE: Tensor, block: KeysValues, context: Context) -> Tensor:
        """Decoder states (B, T, E) plus what they read of this block's keys and values (B, G, P, D).

        A row of which ``context`` shows no position stays as it is.
        """
        keys_BGPD, values_BGPD = block
        read_BHTD = F.scaled_dot_product_attention(
            self._heads(self.q_proj(self.layernorm(x_BTE)), self.n_heads),
            keys_BGPD,
            values_BGPD,
            attn_mask=context.mask_B11P,
            enable_gqa=self.n_heads != self.n_kv_heads,
        )
        if context.reads_B111 is not None:
            read_BHTD = read_BHTD.masked_fill(~context.reads_B111, 0)
        out: Tensor = x_BTE + self.o_proj(read_BHTD.transpose(1, 2).flatten(2))
        return out

    def _heads(self, flat: Tensor, n: int) -> Tensor:
        heads: Tensor = flat.unflatten(-1, (n, self.head_width)).transpose(1, 2)
        return heads


class Cepe(nn.Module):
    """Decoder, encoder and the cross-attention blocks. ``decoder`` is and stays an ordinary Llama.

    For inference: ``encode`` passages, ``keys_values`` of what comes, ``Context.of`` them, and give ``Llama`` as its
    ``between``: ``partial(cepe.cross_attend, context=context)``.
    """

    def __init__(
        self, decoder: LlamaForCausalLM, encoder: BidirectionalLlama, cross_layers: int, encoder_states: int = 1
    ) -> None:
        super().__init__()
        n_layers, n_states = len(decoder.model.layers), len(encoder.layers) + 1
        if not 1 <= cross_layers <= n_layers:
            raise InputError(f"expected 1 to {n_layers} decoder layers with cross-attention, got {cross_layers}")
        if encoder_states < 1:
            raise InputError(f"expected at least 1 encoder state, got {encoder_states}")
        if encoder_states > 1 and cross_layers > n_states:
            raise InputError(
                f"{cross_layers} decoder layers would each read an encoder state of their own; there are {n_states}"
            )
        self.decoder, self.encoder = decoder, encoder
        self.first = n_layers - cross_layers  # the lowest decoder layer with a block
        self.n_states = cross_layers if encoder_states > 1 else 1
        self.cross = nn.ModuleList(CrossAttention(decoder.config, encoder.width) for _ in range(cross_layers))
        match(self.encoder, decoder)
        match(self.cross, decoder)

    @torch.no_grad()
    def initialise_from_self_attention(self) -> None:
        """Start every block as its layer's self-attention, with the norm before the layer's MLP.

        Keys and values take the first W input columns of the decoder's. Raises ``InputError`` where it has fewer.
        """
        width = self.decoder.config.hidden_size
        if self.encoder.width > width:
            raise InputError(
                f"an encoder of width {self.encoder.width} cannot take its cross-attention from a decoder of {width}"
            )
        for block, layer in zip(self.cross, self.decoder.model.layers[self.first :], strict=True):
            for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
                own = block.get_parameter(f"{name}.weight")
                own.copy_(layer.self_attn.get_parameter(f"{name}.weight")[:, : own.shape[1]])
            block.get_parameter("layernorm.weight").copy_(layer.post_attention_layernorm.weight)

    def encode(self, ids_NS: Tensor, mask_NS: Tensor) -> list[Tensor]:
        """The states (N, S, W) of N passages that the blocks read: one for all blocks, or one per block."""
        return hidden_states(self.encoder, ids_NS, mask_NS.bool(), self.n_states)

    def keys_values(self, states: Sequence[Tensor]) -> list[KeysValues]:
        """Per block, keys and values (B, G, P, D) of what ``encode`` gave, laid out as (B, P, W).

        Position by position: rows may be single passages, or several side by side, before or after.
        """
        per_block = [states[0]] * len(self.cross) if self.n_states == 1 else states
        blocks = cast("Iterable[CrossAttention]", self.cross)
        return [block.keys_values(s) for block, s in zip(blocks, per_block, strict=True)]

    def cross_attend(self, index: int, x_BTE: Tensor, context: Context) -> Tensor:
        """What stands between self-attention and MLP of decoder layer ``index``: nothing below the top n."""
        if index < self.first:
            return x_BTE
        number = index - self.first
        out: Tensor = self.cross[number](x_BTE, context.keys_values[number], context)
        return out

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        position_ids: Tensor,
        encoder_input_ids: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
    ) -> CausalLMOutput:
        """Logits (B, T, V) of ids, mask and positions (B, T), given passages and their mask (B, N, S).

        Padding may stand on either side, of both. Without passages (None, or N = 0) this is the plain decoder.
        """
        from transformers.modeling_outputs import CausalLMOutput

        # The layers below get a boolean mask or none, and only this implementation knows what either means.
        assert self.decoder.config._attn_implementation == "sdpa"
        context = self._context(encoder_input_ids, encoder_attention_mask)
        model = self.decoder.model
        x_BTE = model.embed_tokens(input_ids)
        rotation = model.rotary_emb(x_BTE, position_ids)
        mask = _causal_mask(attention_mask.bool())
        for index, layer in enumerate(model.layers):
            normed_BTE = layer.input_layernorm(x_BTE)
            x_BTE = x_BTE + layer.self_attn(normed_BTE, attention_mask=mask, position_embeddings=rotation)[0]
            if context:
                x_BTE = self.cross_attend(index, x_BTE, context)
            x_BTE = x_BTE + layer.mlp(layer.post_attention_layernorm(x_BTE))
        return CausalLMOutput(logits=self.decoder.lm_head(model.norm(x_BTE)))

    def _context(self, ids_BNS: Tensor | None, mask_BNS: Tensor | None) -> Context | None:
        if ids_BNS is None or ids_BNS.numel() == 0:
            return None
        assert mask_BNS is not None and mask_BNS.shape == ids_BNS.shape
        mask_BNS = mask_BNS.bool()
        states = self.encode(ids_BNS.flatten(0, 1), mask_BNS.flatten(0, 1))
        rows = [s_NSW.reshape(len(ids_BNS), -1, s_NSW.shape[-1]) for s_NSW in states]
        return Context.of(self.keys_values(rows), mask_BNS.flatten(1))


def hidden_states(encoder: BidirectionalLlama, ids_NS: Tensor, mask_NS: Tensor, last: int) -> list[Tensor]:
    """The ``last`` ones of: embeddings, every layer's output, the last of them normalised; (N, S, W) each.

    Positions count a passage's tokens from 0, whichever side its padding is on.
    """
    x_NSW = encoder.embed_tokens(ids_NS)
    rotation = encoder.rotary(x_NSW, (mask_NS.cumsum(-1) - 1).clamp(min=0))
    visible = None
    if not bool(mask_NS.all()):
        # Padding sees itself: in a passage of nothing else its softmax would be over nothing (NaN).
        visible = mask_NS[:, None, None] | torch.eye(ids_NS.shape[1], dtype=torch.bool, device=ids_NS.device)
    states = deque([x_NSW], maxlen=last)  # the others are not kept in memory
    for layer in encoder.layers:
        x_NSW = layer(x_NSW, attention_mask=visible, position_embeddings=rotation)
        states.append(x_NSW)
    states[-1] = encoder.norm(x_NSW)
    return list(states)


def build_cepe(config: CepeConfig, decoder: LlamaForCausalLM) -> Cepe:
    """The start of training: the encoder that ``config`` names, cross-attention from the decoder's self-attention.

    In the decoder's dtype and on its device. Raises ``InputError`` where the decoder has too few layers for it.
    """
    from transformers import LlamaConfig

    kind, _, argument = config.encoder.partition(":")
    if kind == "decoder":
        encoder = BidirectionalLlama(decoder.config, int(argument))
        encoder.copy_from(decoder)
    else:
        shape = LlamaConfig(vocab_size=decoder.config.vocab_size, **ENCODER_SHAPES[argument])
        encoder = BidirectionalLlama(shape, shape.num_hidden_layers)
    model = Cepe(decoder, encoder, config.cross_layers, config.encoder_states)
    model.initialise_from_self_attention()
    return model


def added_parameters(model: Cepe) -> dict[str, int]:
    """How many parameters stand around the decoder: in the encoder, and in cross-attention."""
    return {part: sum(p.numel() for p in getattr(model, part).parameters()) for part in ("encoder", "cross")}


def from_published(
    decoder_config: dict[str, Any],
    encoder_config: dict[str, Any],
    num_cross_attn_layers: int,
    num_cross_attn_hidden_states: int,
    state_dict: Mapping[str, Tensor],
) -> Cepe:
    """The model of a published checkpoint, in the dtype of its token embeddings, for inference.

    The configs are ``config.json`` documents of Llamas. With ``num_cross_attn_hidden_states`` above 1, whatever it is,
    every layer with cross-attention reads a state of its own. ``rotary_emb.inv_freq``, which old checkpoints carry,
    follows from the configs and is not read. A decoder with tied embeddings needs no ``lm_head.weight``. Raises
    ``InputError`` with the names that are missing, unexpected or of another shape.
    """
    from transformers import LlamaConfig, LlamaForCausalLM

    weights = {name: tensor for name, tensor in state_dict.items() if not name.endswith("rotary_emb.inv_freq")}
    embedding = weights.get("model.embed_tokens.weight")
    dtype = torch.float32 if embedding is None else embedding.dtype
    decoder = LlamaForCausalLM._from_config(LlamaConfig(**decoder_config), dtype=dtype, attn_implementation="sdpa")
    if decoder.config.tie_word_embeddings and embedding is not None:
        head = weights.setdefault("lm_head.weight", embedding)
        if not torch.equal(head, embedding):
            raise InputError("lm_head.weight is not the token embedding, with which tie_word_embeddings ties it")
    shape = LlamaConfig(**encoder_config)
    encoder = BidirectionalLlama(shape, shape.num_hidden_layers)
    model = Cepe(decoder, encoder, num_cross_attn_layers, num_cross_attn_hidden_states)

    published = {own: _published_name(own, model.first) for own in model.state_dict()}
    _check_names(set(published.values()), set(weights))
    for own, tensor in model.state_dict().items():
        expected, got = tuple(tensor.shape), tuple(weights[published[own]].shape)
        if expected != got:
            raise InputError(f"{published[own]}: expected the shape {expected}, got {got}")
    model.load_state_dict({own: weights[name] for own, name in published.items()})
    return model.eval()


def _published_name(own: str, first: int) -> str:
    """What the authors call our parameter ``own``, where decoder layer ``first`` is the lowest with a block."""
    part, _, rest = own.partition(".")
    if part == "cross":
        number, _, rest = rest.partition(".")
        return f"model.layers.{first + int(number)}.cross_attn.{rest}"
    return rest if part == "decoder" else own


def _check_names(expected: set[str], got: set[str]) -> None:
    complaints = [
        f"{len(names)} {kind}: {', '.join(sorted(names)[:NAMES_SHOWN])}{', ...' if len(names) > NAMES_SHOWN else ''}"
        for kind, names in (("missing", expected - got), ("unexpected", got - expected))
        if names
    ]
    if complaints:
        raise InputError(f"the weights do not fit the configs; {'; '.join(complaints)}")


def _causal_mask(mask_BT: Tensor) -> Tensor | None:
    """Who sees whom (B, 1, T, T); None without padding, where the causal kernel does it.

    A padded position sees itself too, or its softmax would be over nothing (NaN).
    """
    if bool(mask_BT.all()):
        return None
    T = mask_BT.shape[1]
    causal = torch.ones((T, T), dtype=torch.bool, device=mask_BT.device).tril()
    return (causal & mask_BT[:, None, None]) | causal.triu()
