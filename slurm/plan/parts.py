"""How large is each part of a model? Counted on torch's meta device: exact, no memory, no download."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn
    from transformers import LlamaForCausalLM

    from harness.model.encoders import Roberta
    from slurm.plan.scales import Scale


@dataclass(frozen=True, kw_only=True)
class Part:
    """The shape of one part; without ``layers`` it is no transformer.

    ``matrix`` is the weights of its linear layers, ``attention`` heads x head size. The last two are the bytes that
    autograd keeps of one layer per position in bfloat16, where the layer is trained and where a gradient only passes
    through it.
    """

    parameters: int
    matrix: int
    layers: int = 0
    layer_parameters: int = 0
    width: int = 0
    attention: int = 0
    vocabulary: int = 0
    kept_trained: int = 0
    kept_through: int = 0

    @property
    def root_parameters(self) -> int:
        """Those in no layer: embeddings, head, last norm."""
        return self.parameters - self.layers * self.layer_parameters


def measure(module: nn.Module, **shape: int) -> Part:
    """Count a module, which may lie on the meta device; ``shape`` gives the rest of ``Part``."""
    from torch import nn

    matrices = [m.weight for m in module.modules() if isinstance(m, nn.Linear)]
    matrices += [m.in_proj_weight for m in module.modules() if isinstance(m, nn.MultiheadAttention)]
    return Part(parameters=_size(module), matrix=sum(w.numel() for w in matrices), **shape)


def measure_decoder(decoder: LlamaForCausalLM) -> Part:
    """A Llama's ``Part``.

    What autograd keeps of a layer, with width h, a = heads x head size, g = key-value heads x head size, and f wide
    inside the feed-forward:

    norms, twice    4 h input in fp32; trained: 2 h before the gain, 2 h output (the linear layers' input)
    attention       2 a query, 2 g key, 2 g value, 2 a output, 4 per head (log-sum-exp in fp32)
    feed-forward    2 f gate, 2 f its SiLU, 2 f up; trained: 2 f product

    A frozen linear layer keeps nothing: its input is needed for its weights' gradient alone.
    """
    c = decoder.config
    h, f, heads = c.hidden_size, c.intermediate_size, c.num_attention_heads
    a, g = heads * c.head_dim, c.num_key_value_heads * c.head_dim
    through = 8 * h + 4 * a + 4 * g + 6 * f + 4 * heads
    return measure(
        decoder,
        layers=c.num_hidden_layers,
        layer_parameters=_size(decoder.model.layers[0]),
        width=h,
        attention=a,
        vocabulary=c.vocab_size,
        kept_trained=through + 8 * h + 2 * f,
        kept_through=through,
    )


def measure_encoder(encoder: Roberta) -> Part:
    """A RoBERTa's ``Part``.

    What autograd keeps of a trained layer, with width h, and f wide inside the feed-forward:

    norms, twice    2 h input, 2 h output
    attention       2 h each of query, key, value and output, 4 per head (log-sum-exp in fp32)
    feed-forward    2 f before GELU, 2 f after it
    dropout, twice  h, a mask of one byte
    """
    c = encoder.model.config
    h, f = c.hidden_size, c.intermediate_size
    return measure(
        encoder,
        layers=c.num_hidden_layers,
        layer_parameters=_size(encoder.model.encoder.layer[0]),
        width=h,
        attention=h,
        kept_trained=18 * h + 4 * f + 4 * c.num_attention_heads,
    )


def _size(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def build_parts(scale: Scale) -> dict[str, Part]:
    """Decoder, encoder (without its pooler), projector and policy, built on the meta device and counted."""
    import torch
    from transformers import LlamaForCausalLM

    from harness.model.encoders import random_roberta
    from harness.model.load import shape_config
    from refrag_v2.model import Projector
    from refrag_v2.policy import Policy

    with torch.device("meta"):
        decoder = LlamaForCausalLM._from_config(shape_config(scale.decoder_shape), dtype=torch.bfloat16)
        encoder = random_roberta(scale.encoder_shape, scale.encoder_vocabulary)
        width = decoder.config.hidden_size
        projector = Projector(scale.model, encoder.width, width)
        policy = Policy(scale.policy, width)
    return {
        "decoder": measure_decoder(decoder),
        "encoder": measure_encoder(encoder),
        "projector": measure(projector),
        "policy": measure(policy, layers=scale.policy.layers, attention=scale.policy.width),
    }
