"""The Llama forward for inference: transformers' weights without its per-layer bookkeeping.

``transformers`` stays the source of the weights and the reference of every test. Its forward spends, on a small
model, more time on mask objects, cache objects and dispatch than on arithmetic; this one is the same arithmetic in
a straight line, so that what the clock sees is the method. Departures, none of which changes a result:

1. Keys and values go to one preallocated buffer per layer (``KVCache``).
2. Where only the next token is asked for, the last layer computes queries, attention output and MLP for the last
   position alone: nobody reads the others.
3. A prompt without padding uses the causal kernel, a padded one an explicit mask.

Shapes: B batch, T new positions, S cache length, H query heads, G key/value heads, D head width, E hidden size.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM
    from transformers.models.llama.modeling_llama import LlamaDecoderLayer


Between = Callable[[int, Tensor], Tensor]  # (layer, its states after self-attention) -> states before its MLP


@dataclass
class KVCache:
    """Keys and values of all layers, (layers, B, G, S, D) each, of which the first ``length`` positions are filled.

    ``visible_BS`` is False at padded positions; positions not filled yet are not looked at.
    """

    keys: Tensor
    values: Tensor
    visible_BS: Tensor
    padded: bool
    length: int = 0

    @property
    def capacity(self) -> int:
        """Positions that fit."""
        return self.keys.shape[3]


class Llama:
    """A ``LlamaForCausalLM`` seen as two verbs: ``prefill`` and ``decode_one_token``.

    ``between``, which both take, is what a method inserts in every layer between self-attention and MLP.

    Shares the model's weights; query/key/value and gate/up matrices are laid side by side once and the model's own
    parameters become views of them, so nothing is stored twice.
    """

    def __init__(self, model: LlamaForCausalLM) -> None:
        config = model.config
        assert not config.attention_bias and not config.mlp_bias and config.hidden_act == "silu"
        self.model = model
        self.n_heads: int = config.num_attention_heads
        self.n_kv_heads: int = config.num_key_value_heads
        self.head_width: int = config.head_dim
        self.eps: float = config.rms_norm_eps
        self.rotary = model.model.rotary_emb
        self.embedding: Tensor = model.model.embed_tokens.weight
        self.layers = list(model.model.layers)
        self.qkv = [_fuse([a.q_proj, a.k_proj, a.v_proj]) for a in (layer.self_attn for layer in self.layers)]
        self.gate_up = [_fuse([mlp.gate_proj, mlp.up_proj]) for mlp in (layer.mlp for layer in self.layers)]

    def embed(self, ids: Tensor) -> Tensor:
        """Token ids (...) to input embeddings (..., E)."""
        return F.embedding(ids, self.embedding)

    def new_cache(self, batch: int, capacity: int) -> KVCache:
        """An empty cache for ``batch`` rows of at most ``capacity`` positions, in the model's dtype and device."""
        weight = self.embedding
        shape = (len(self.layers), batch, self.n_kv_heads, capacity, self.head_width)
        return KVCache(
            keys=weight.new_empty(shape),
            values=weight.new_empty(shape),
            visible_BS=torch.ones((batch, capacity), dtype=torch.bool, device=weight.device),
            padded=False,
        )

    def prefill(self, inputs_BTE: Tensor, mask_BT: Tensor, cache: KVCache, between: Between | None = None) -> Tensor:
        """Append T positions per row to what ``cache`` holds; returns the logits (B, V) of the token after them.

        ``mask_BT`` is False at padding, which stands on the left. Positions count real tokens from 0, those in the
        cache included, so padding shifts nothing.
        """
        return self.prefill_along(inputs_BTE, mask_BT, cache, 1, between)[:, 0]

    def prefill_along(
        self, inputs_BTE: Tensor, mask_BT: Tensor, cache: KVCache, last: int, between: Between | None = None
    ) -> Tensor:
        """``prefill``, with the logits (B, last, V) of the tokens after each of the ``last`` positions."""
        T, start = inputs_BTE.shape[1], cache.length
        assert start + T <= cache.capacity
        cache.visible_BS[:, start : start + T] = mask_BT
        cache.padded = cache.padded or not bool(mask_BT.all())
        before_B1 = cache.visible_BS[:, :start].sum(-1, keepdim=True)
        positions_BT = (before_B1 + mask_BT.cumsum(-1) - 1).clamp(min=0)
        visible = None
        if cache.padded or start:
            causal = torch.ones((T, start + T), dtype=torch.bool, device=inputs_BTE.device).tril(start)
            # A padded position sees itself, or its softmax would be over nothing (NaN).
            itself = causal & ~causal.tril(start - 1)
            visible = ((causal & cache.visible_BS[:, None, : start + T]) | itself)[:, None]
        return self._forward(inputs_BTE, positions_BT, cache, visible, between, last)

    def decode_one_token(self, token_B: Tensor, cache: KVCache, between: Between | None = None) -> Tensor:
        """Append one token per row; returns the logits (B, V) of the one after it."""
        position_B1 = cache.visible_BS[:, : cache.length].sum(-1, keepdim=True)
        mask = cache.visible_BS[:, None, None, : cache.length + 1] if cache.padded else None
        return self._forward(self.embed(token_B)[:, None], position_B1, cache, mask, between, 1)[:, 0]

    def _forward(
        self,
        x_BTE: Tensor,
        positions_BT: Tensor,
        cache: KVCache,
        mask: Tensor | None,
        between: Between | None,
        last: int,
    ) -> Tensor:
        cos, sin = self.rotary(x_BTE, positions_BT)
        rotation = cos[:, None], sin[:, None]
        for index, layer in enumerate(self.layers):
            only_last = last == 1 and index == len(self.layers) - 1
            x_BTE = self._attend(index, layer, x_BTE, rotation, cache, mask, only_last=only_last)
            if between:
                x_BTE = between(index, x_BTE)
            x_BTE = self._feed_forward(index, layer, x_BTE)
        cache.length += positions_BT.shape[1]
        x_BTE = self._norm(x_BTE[:, -last:], self.model.model.norm.weight)
        return F.linear(x_BTE, self.model.lm_head.weight)

    def _attend(
        self,
        index: int,
        layer: LlamaDecoderLayer,
        x_BTE: Tensor,
        rotation: tuple[Tensor, Tensor],
        cache: KVCache,
        mask: Tensor | None,
        only_last: bool,
    ) -> Tensor:
        B, T, _ = x_BTE.shape
        start, end = cache.length, cache.length + T
        H, G, D = self.n_heads, self.n_kv_heads, self.head_width

        qkv = F.linear(self._norm(x_BTE, layer.input_layernorm.weight), self.qkv[index])
        q, k, v = qkv.view(B, T, H + 2 * G, D).transpose(1, 2).split([H, G, G], dim=1)
        cos, sin = rotation
        cache.keys[index, :, :, start:end] = rotate(k, cos, sin)
        cache.values[index, :, :, start:end] = v
        if only_last and T > 1:
            q, cos, sin, x_BTE = q[:, :, -1:], cos[:, :, -1:], sin[:, :, -1:], x_BTE[:, -1:]
            mask = None if mask is None else mask[:, :, -1:]
        q = rotate(q, cos, sin)
        attended = F.scaled_dot_product_attention(
            q,
            cache.keys[index, :, :, :end],
            cache.values[index, :, :, :end],
            attn_mask=mask,
            is_causal=mask is None and q.shape[2] > 1,
            enable_gqa=H != G,
        )
        return x_BTE + F.linear(attended.transpose(1, 2).reshape(B, -1, H * D), layer.self_attn.o_proj.weight)

    def _feed_forward(self, index: int, layer: LlamaDecoderLayer, x_BTE: Tensor) -> Tensor:
        gate, up = F.linear(self._norm(x_BTE, layer.post_attention_layernorm.weight), self.gate_up[index]).chunk(2, -1)
        return x_BTE + F.linear(F.silu(gate) * up, layer.mlp.down_proj.weight)

    def _norm(self, x: Tensor, weight: Tensor) -> Tensor:
        return F.rms_norm(x, (x.shape[-1],), weight, self.eps)


def rotate(x_BHTD: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding in the half-split convention of the published Llama weights (RoFormer, Eq. 34)."""
    left, right = x_BHTD.chunk(2, dim=-1)
    return x_BHTD * cos + torch.cat((-right, left), dim=-1) * sin


@torch.no_grad()
def _fuse(linears: list[torch.nn.Linear]) -> Tensor:
    """Stack the weights of ``linears`` and make each of them a view of the stack.

    The stack of an earlier call is taken again: several systems may read the same model.
    """
    first = linears[0].weight
    rows, width = sum(linear.weight.shape[0] for linear in linears), first.shape[1]
    if _are_stacked([linear.weight for linear in linears]):
        return first.as_strided((rows, width), first.stride())
    fused = torch.cat([linear.weight for linear in linears])
    start = 0
    for linear in linears:
        rows = linear.weight.shape[0]
        linear.weight.data = fused[start : start + rows]
        start += rows
    return fused


def _are_stacked(weights: list[Tensor]) -> bool:
    """Whether the matrices lie one behind the other in the same memory."""
    end = weights[0].storage_offset()
    for weight in weights:
        same = weight.untyped_storage().data_ptr() == weights[0].untyped_storage().data_ptr()
        if not same or not weight.is_contiguous() or weight.storage_offset() != end:
            return False
        end += weight.numel()
    return True
