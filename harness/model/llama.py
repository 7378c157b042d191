"""The Llama forward for inference: transformers' weights without its per-layer bookkeeping.

``transformers`` stays the source of the weights and the reference of every test. Its forward spends, on a small
model, more time on mask objects, cache objects and dispatch than on arithmetic; this one is the same arithmetic in
a straight line, so that what the clock sees is the method. Departures, none of which changes a result:

1. Keys and values go to one preallocated buffer per layer (``KVCache``).
2. Where only the next token is asked for, the last layer computes queries, attention output and MLP for the last
   position alone: nobody reads the others.
3. A prompt without padding uses the causal kernel, a padded one an explicit mask.
4. On a GPU all but attention is recorded once per shape and replayed (``graphs``, which says why and what it costs).

Shapes: B batch, T new positions, S cache length, H query heads, G key/value heads, D head width, E hidden size.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from harness.model.graphs import Graphs, Record, Recorded, Straight, cuda_graphs

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM


Rotation = tuple[Tensor, Tensor]  # cos, sin (B, 1, T, D)
Heads = tuple[Tensor, Tensor, Tensor]  # queries (B, H, T, D), keys and values (B, G, T, D); all but values are rotated
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
    parameters become views of them, so nothing is stored twice. ``record`` is what parts of a pass are recorded with;
    None is CUDA graphs on a GPU and nothing elsewhere. ``passes`` counts what was run in which way, by name.
    """

    def __init__(self, model: LlamaForCausalLM, record: Record | None = None) -> None:
        config = model.config
        assert not config.attention_bias and not config.mlp_bias and config.hidden_act == "silu"
        self.model = model
        self.n_heads: int = config.num_attention_heads
        self.n_kv_heads: int = config.num_key_value_heads
        self.head_width: int = config.head_dim
        self.logits_width: int = model.lm_head.weight.shape[0]
        self.eps: float = config.rms_norm_eps
        self.rotary = model.model.rotary_emb
        self.embedding: Tensor = model.model.embed_tokens.weight
        self.layers = list(model.model.layers)
        self.qkv = [_fuse([a.q_proj, a.k_proj, a.v_proj]) for a in (layer.self_attn for layer in self.layers)]
        self.gate_up = [_fuse([mlp.gate_proj, mlp.up_proj]) for mlp in (layer.mlp for layer in self.layers)]
        self.passes: Counter[str] = Counter()
        if record is None and self.embedding.is_cuda:
            record = partial(cuda_graphs, self.embedding.device)
        self.graphs = Graphs(record, self.passes)

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
        return self._forward("prefill", inputs_BTE, positions_BT, cache, visible, between, last)

    def decode_one_token(self, token_B: Tensor, cache: KVCache, between: Between | None = None) -> Tensor:
        """Append one token per row; returns the logits (B, V) of the one after it."""
        position_B1 = cache.visible_BS[:, : cache.length].sum(-1, keepdim=True)
        mask = cache.visible_BS[:, None, None, : cache.length + 1] if cache.padded else None
        return self._forward("decode", self.embed(token_B)[:, None], position_B1, cache, mask, between, 1)[:, 0]

    def _forward(
        self,
        name: str,
        x_BTE: Tensor,
        positions_BT: Tensor,
        cache: KVCache,
        mask: Tensor | None,
        between: Between | None,
        last: int,
    ) -> Tensor:
        run = self._pass(name, x_BTE, positions_BT, last)
        for index in range(len(self.layers)):
            run.x_BTE = self._attend(index, run, cache, mask, only_last=last == 1)
            if between:
                run.x_BTE = between(index, run.x_BTE)
            run.go_on(index)
        cache.length += positions_BT.shape[1]
        return run.logits

    def _pass(self, name: str, x_BTE: Tensor, positions_BT: Tensor, last: int) -> Straight | Recorded:
        """A pass that stands before its first attention."""
        recordable = last == 1 and not torch.is_grad_enabled()
        recorded = self.graphs.of(self, *positions_BT.shape) if recordable else None
        self.passes[f"{name} {'replayed' if recorded else 'eager'}"] += 1
        return recorded.enter(x_BTE, positions_BT) if recorded else Straight(self, last, x_BTE, positions_BT)

    def _attend(
        self, index: int, run: Straight | Recorded, cache: KVCache, mask: Tensor | None, only_last: bool
    ) -> Tensor:
        q, k, v = run.heads
        x_BTE = run.x_BTE
        start, end = cache.length, cache.length + k.shape[2]
        keys, values = cache.keys[index, :, :, :end], cache.values[index, :, :, :end]
        keys[:, :, start:] = k
        values[:, :, start:] = v
        if only_last and q.shape[2] > 1 and index == len(self.layers) - 1:
            q, x_BTE = q[:, :, -1:], x_BTE[:, -1:]
            mask = None if mask is None else mask[:, :, -1:]
        attended = F.scaled_dot_product_attention(
            q,
            keys,
            values,
            attn_mask=mask,
            is_causal=mask is None and q.shape[2] > 1,
            enable_gqa=self.n_heads != self.n_kv_heads,
        )
        output = self.layers[index].self_attn.o_proj.weight
        return torch.add(x_BTE, F.linear(attended.transpose(1, 2).flatten(2), output), out=run.into)

    # What lies between attentions: the parts of a pass. A result that has an address to go to is given it as ``into``.

    def rotation(self, x_BTE: Tensor, positions_BT: Tensor) -> Rotation:
        """The rotary embedding of these positions, in the dtype of ``x_BTE``."""
        cos, sin = self.rotary(x_BTE, positions_BT)
        return cos[:, None], sin[:, None]

    def heads(
        self,
        index: int,
        x_BTE: Tensor,
        rotation: Rotation,
        qkv_into: Tensor | None = None,
        turned_into: Tensor | None = None,
    ) -> Heads:
        """Queries, keys and values of layer ``index``."""
        B, T, E = x_BTE.shape
        x_NE = self._norm(x_BTE, self.layers[index].input_layernorm.weight).view(B * T, E)
        qkv = torch.mm(x_NE, self.qkv[index].t(), out=qkv_into)
        turn, _ = self._by_head(qkv, B)
        return self.split(qkv, rotate(turn, *rotation, into=turned_into))

    def split(self, qkv: Tensor, turned_BHTD: Tensor) -> Heads:
        """Queries and keys of ``turned_BHTD`` (B, H + G, T, D), values of ``qkv`` (B T, (H + 2 G) D)."""
        q, k = turned_BHTD.split([self.n_heads, self.n_kv_heads], dim=1)
        return q, k, self._by_head(qkv, len(turned_BHTD))[1]

    def feed_forward(self, index: int, x_BTE: Tensor, into: Tensor | None = None) -> Tensor:
        """The MLP of layer ``index``, and what goes past it."""
        layer = self.layers[index]
        gate, up = F.linear(self._norm(x_BTE, layer.post_attention_layernorm.weight), self.gate_up[index]).chunk(2, -1)
        return torch.add(x_BTE, F.linear(F.silu(gate) * up, layer.mlp.down_proj.weight), out=into)

    def logits(self, x_BTE: Tensor, into: Tensor | None = None) -> Tensor:
        """(B, T, V) of the token after each position."""
        x_BTE = self._norm(x_BTE, self.model.model.norm.weight)
        logits_NV = torch.mm(x_BTE.flatten(0, 1), self.model.lm_head.weight.t(), out=into)
        return logits_NV.view(*x_BTE.shape[:2], -1)

    def _by_head(self, qkv: Tensor, B: int) -> tuple[Tensor, Tensor]:
        """What is rotated (B, H + G, T, D), and values (B, G, T, D)."""
        H, G = self.n_heads, self.n_kv_heads
        turn, v = qkv.view(B, -1, H + 2 * G, self.head_width).transpose(1, 2).split([H + G, G], dim=1)
        return turn, v

    def _norm(self, x: Tensor, weight: Tensor) -> Tensor:
        return F.rms_norm(x, (x.shape[-1],), weight, self.eps)


def rotate(x_BHTD: Tensor, cos: Tensor, sin: Tensor, into: Tensor | None = None) -> Tensor:
    """Rotary embedding in the half-split convention of the published Llama weights (RoFormer, Eq. 34)."""
    left, right = x_BHTD.chunk(2, dim=-1)
    return torch.add(x_BHTD * cos, torch.cat((-right, left), dim=-1) * sin, out=into)


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
