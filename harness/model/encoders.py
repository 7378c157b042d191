"""The encoders that read chunks: published RoBERTa, its shapes with random weights, or layers of the decoder itself.

All are called the same way: ``encoder(ids_NS, mask_NS) -> states (N, S, D)``, every position seeing every other.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from harness.errors import InputError, unknown
from harness.prompts import pad_id

if TYPE_CHECKING:
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase, RobertaModel

# The published shapes (FacebookAI/roberta-base and roberta-large, sentence-transformers/all-MiniLM-L6-v2, config.json),
# and small ones for small decoders.
ROBERTA_SHAPES: Mapping[str, Mapping[str, Any]] = {
    "roberta-tiny": dict(hidden_size=64, num_hidden_layers=2, num_attention_heads=2, intermediate_size=128),
    "roberta-mini": dict(hidden_size=256, num_hidden_layers=4, num_attention_heads=4, intermediate_size=1024),
    "minilm": dict(hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536),
    "roberta-base": dict(hidden_size=768, num_hidden_layers=12, num_attention_heads=12, intermediate_size=3072),
    "roberta-large": dict(hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, intermediate_size=4096),
}


class BidirectionalLlama(nn.Module):
    """The first ``n_layers`` of a Llama decoder as an encoder: same layers, rotary positions, no causal mask."""

    def __init__(self, config: LlamaConfig, n_layers: int) -> None:
        super().__init__()
        from transformers.models.llama.modeling_llama import (
            LlamaAttention,
            LlamaDecoderLayer,
            LlamaRMSNorm,
            LlamaRotaryEmbedding,
        )

        if not 1 <= n_layers <= config.num_hidden_layers:
            raise InputError(f"expected 1 to {config.num_hidden_layers} encoder layers, got {n_layers}")
        # Its own, whatever the decoder is set to: "eager" would add the boolean mask to the scores.
        config = copy.deepcopy(config)
        config._attn_implementation = "sdpa"
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(LlamaDecoderLayer(config, index) for index in range(n_layers))
        self.norm = LlamaRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.rotary = LlamaRotaryEmbedding(config)
        self.config, self.width = config, int(config.hidden_size)
        for attention in (module for module in self.modules() if isinstance(module, LlamaAttention)):
            attention.is_causal = False

    @torch.no_grad()
    def copy_from(self, decoder: LlamaForCausalLM) -> None:
        """Start from the decoder's own embeddings and first layers."""
        self.embed_tokens.load_state_dict(decoder.model.embed_tokens.state_dict())
        for own, theirs in zip(self.layers, decoder.model.layers, strict=False):
            own.load_state_dict(theirs.state_dict())
        self.norm.load_state_dict(decoder.model.norm.state_dict())

    def forward(self, ids_NS: Tensor, mask_NS: Tensor) -> Tensor:
        """States (N, S, D) of ids (N, S), of which those in ``mask_NS`` are tokens and the rest is padding.

        Every token sees all tokens of its row. What stands at padding means nothing.
        """
        x_NSD = self.embed_tokens(ids_NS)
        positions = torch.arange(ids_NS.shape[1], device=ids_NS.device)[None]
        rotation = self.rotary(x_NSD, positions)
        # Without padding no mask is needed, and the kernel is the faster one.
        mask = None if bool(mask_NS.all()) else mask_NS[:, None, None, :].expand(-1, 1, ids_NS.shape[1], -1)
        for layer in self.layers:
            x_NSD = layer(x_NSD, attention_mask=mask, position_embeddings=rotation)
        out: Tensor = self.norm(x_NSD)
        return out


class Roberta(nn.Module):
    """RoBERTa without its pooler, called like the encoder above."""

    def __init__(self, model: RobertaModel) -> None:
        super().__init__()
        self.model = model
        self.width: int = model.config.hidden_size
        self.longest: int = model.config.max_position_embeddings - model.config.pad_token_id - 1

    def forward(self, ids_NS: Tensor, mask_NS: Tensor) -> Tensor:
        """States (N, S, D) of ids (N, S), of which those in ``mask_NS`` are tokens and the rest is padding.

        Raises ``InputError`` where S is more positions than the model has.
        """
        if ids_NS.shape[1] > self.longest:
            raise InputError(
                f"an encoder window needs {ids_NS.shape[1]} positions; this RoBERTa has {self.longest} "
                "(use shorter chunks, or the window 'chunk')"
            )
        states: Tensor = self.model(input_ids=ids_NS, attention_mask=mask_NS.long()).last_hidden_state
        return states


def random_roberta(shape: str, vocab_size: int = 50265) -> Roberta:
    """RoBERTa of a named shape with random weights. Raises ``InputError`` with the valid names."""
    from transformers import RobertaConfig, RobertaModel

    if shape not in ROBERTA_SHAPES:
        raise unknown("encoder shape", shape, ROBERTA_SHAPES)
    config = RobertaConfig(
        vocab_size=vocab_size,
        max_position_embeddings=514,
        type_vocab_size=1,
        layer_norm_eps=1e-5,
        **ROBERTA_SHAPES[shape],
    )
    return Roberta(RobertaModel(config, add_pooling_layer=False))


def shaped_roberta(folder: Path) -> Roberta:
    """RoBERTa of the shape that ``config.json`` in ``folder`` tells, with random weights."""
    from transformers import RobertaConfig, RobertaModel

    if not (folder / "config.json").is_file():  # transformers would take the shape of roberta-base
        raise InputError(f"no encoder shape in {folder}: expected config.json there")
    try:
        config = RobertaConfig.from_pretrained(folder)
    except (OSError, ValueError) as error:
        raise InputError(f"no encoder shape in {folder}: config.json is damaged") from error
    return Roberta(RobertaModel(config, add_pooling_layer=False))


def load_roberta(name: str) -> Roberta:
    """RoBERTa from a Hub id or a folder (safetensors only). Raises ``InputError`` where there is none."""
    from transformers import RobertaModel

    try:
        model = RobertaModel.from_pretrained(name, add_pooling_layer=False, use_safetensors=True)
    except (OSError, ValueError) as error:
        raise InputError(f"no RoBERTa encoder {name!r}: neither a local folder nor a reachable Hub id") from error
    return Roberta(model)


def shares_tokens(name: str) -> bool:
    """Whether the encoder ``name`` reads the decoder's own tokens, so that nothing is tokenised anew."""
    return name.startswith(("decoder:", "random:"))


def build_encoder(name: str, decoder: LlamaForCausalLM) -> BidirectionalLlama | Roberta:
    """``decoder:N`` (the decoder's own first N layers), ``random:SHAPE``, or a Hub id or folder of a RoBERTa.

    Raises ``InputError`` where it cannot be had.
    """
    kind, _, argument = name.partition(":")
    if kind == "decoder":
        if not argument.isdecimal():
            raise InputError(f"expected an encoder decoder:N with a number of layers, got {name!r}")
        encoder = BidirectionalLlama(decoder.config, int(argument))
        encoder.copy_from(decoder)
        return encoder
    return random_roberta(argument, decoder.config.vocab_size) if kind == "random" else load_roberta(name)


def encoder_tokenizer(name: str, folder: Path | None = None) -> PreTrainedTokenizerBase | None:
    """The own tokenizer of the encoder ``name``, of ``folder`` or of where it is from; None where it has none.

    Raises ``InputError`` where it cannot be had, or has nothing to pad with.
    """
    if shares_tokens(name):
        return None
    from transformers import AutoTokenizer

    source = str(folder or name)
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise InputError(
            f"no tokenizer {source!r} for the encoder: neither a local folder nor a reachable Hub id"
        ) from error
    pad_id(tokenizer)
    return tokenizer
