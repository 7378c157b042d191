"""REFRAG's model: an encoder and a projector turn each chunk into one embedding in the decoder's input space.

arXiv:2509.01092v2, section 2: c_i = encoder(C_i), e_i = projector(c_i), and the decoder reads
[start, e_1 .. e_L, tokens]. What the paper leaves open, and what was decided here:

- Pooling (config). ``cls``: the state of the encoder's first token. ``mean``: of the chunk's states. ``concat``: the
  k states side by side, which keeps their order, with a skip that adds them up by learned weights; only for an encoder
  that shares the decoder's tokens.
- Window (config). ``chunk``: every chunk is encoded alone, as in the paper. ``passage``: the passage is encoded once
  and pooled per chunk (LCLM, arXiv:2606.09659).
- Projector: linear, GELU, linear, with biases; the hidden width is the decoder's (p. 19).
- Norm (config): chunk embeddings are normalised to ``norm`` times the mean length of the decoder's token embeddings,
  times a learned gain that starts at 1; None leaves them as the projector gives them. A chunk must outweigh what the
  decoder's first layers add at its position, the more so the more facts share it; at the length of a token it is
  drowned (results/LOG.md).
- Positions: a chunk embedding occupies one ordinary slot; the attention mask is causal.

Legend: B rows, T decoder positions, N encoder rows, S encoder positions, M chunks, k tokens per chunk, D encoder
width, E decoder width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from harness.errors import InputError, unknown
from harness.model.chunking import WINDOWS, EncoderInputs, Window, encoder_inputs, retokenised_inputs
from harness.model.encoders import Roberta, build_encoder, shares_tokens
from harness.model.pooling import by_chunk
from harness.model.splice import embed_codes
from harness.prompts import pad_id

if TYPE_CHECKING:
    from collections.abc import Sequence

    from transformers import LlamaForCausalLM, PreTrainedTokenizerBase

    from refrag_v2.policy import Policy

MLP_START = 0.3
POSITION_SCALE = 100.0
Pooling = Literal["cls", "mean", "concat"]
POOLINGS: tuple[Pooling, ...] = ("cls", "mean", "concat")


@dataclass(frozen=True, kw_only=True)
class RefragConfig:
    """The shape of everything around the decoder.

    ``encoder`` is ``decoder:N`` (the decoder's own first N layers, bidirectional), ``random:SHAPE`` (a RoBERTa shape
    with random weights over the decoder's vocabulary: for latency and tests) or a Hub id or folder of a RoBERTa, which
    reads the chunks' text through its own tokenizer. ``norm`` is in units of the decoder's mean token-embedding length.
    """

    k: int
    encoder: str = "decoder:1"
    pooling: Pooling = "concat"
    window: Window = "chunk"
    norm: float | None = 32.0

    def __post_init__(self) -> None:
        if self.k < 1:
            raise InputError(f"expected chunks of at least 1 token, got k={self.k}")
        if self.pooling not in POOLINGS:
            raise unknown("pooling", self.pooling, POOLINGS)
        if self.window not in WINDOWS:
            raise unknown("encoder window", self.window, WINDOWS)
        if self.pooling == "cls" and self.window == "passage":
            raise InputError("pooling 'cls' needs the window 'chunk': a passage has one first token for all its chunks")
        if self.pooling == "cls" and self.encoder.startswith("decoder:"):
            raise InputError("pooling 'cls' needs an encoder with a classification token; decoder layers have none")
        if self.pooling == "concat" and not self.shares_tokens:
            raise InputError("pooling 'concat' needs an encoder that shares the decoder's tokens (decoder:N)")

    @property
    def shares_tokens(self) -> bool:
        """Whether the encoder reads the decoder's own tokens, so that nothing is tokenised anew."""
        return shares_tokens(self.encoder)


class Refrag(nn.Module):
    """Decoder, encoder, projector, and the policy once there is one. ``decoder`` is and stays an ordinary Llama."""

    target_length: Tensor

    def __init__(
        self,
        config: RefragConfig,
        decoder: LlamaForCausalLM,
        encoder_tokenizer: PreTrainedTokenizerBase | None = None,
        encoder: Roberta | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        self.decoder = decoder
        self.encoder = encoder or build_encoder(config.encoder, decoder)
        self.encoder_tokenizer = encoder_tokenizer
        self.policy: Policy | None = None
        width = decoder.config.hidden_size
        self.projector = Projector(config, self.encoder.width, width)
        length = decoder.model.embed_tokens.weight.detach().norm(dim=-1).mean()
        # A buffer: measured once, on the decoder that the projector was built for.
        self.register_buffer("target_length", length.clone())

    def inputs(self, passages: Sequence[Sequence[int]], tokenizer: PreTrainedTokenizerBase) -> EncoderInputs:
        """What the encoder reads for passages of decoder tokens; chunks are numbered passage by passage."""
        if self.config.shares_tokens:
            return encoder_inputs(passages, self.config.k, self.config.window, pad_id(tokenizer))
        assert self.encoder_tokenizer is not None
        return retokenised_inputs(passages, self.config.k, self.config.window, tokenizer, self.encoder_tokenizer)

    def encode(self, inputs: EncoderInputs) -> Tensor:
        """All chunks at once to chunk embeddings (M, E), in the decoder's input space."""
        width = self.decoder.config.hidden_size
        if inputs.ids_NS.numel() == 0:
            return torch.zeros((0, width), dtype=self.decoder.dtype, device=self.decoder.device)
        states_NSD = self.encoder(inputs.ids_NS, inputs.mask_NS)
        e_ME: Tensor = self.projector(states_NSD, inputs)
        if self.config.norm is None:
            return e_ME
        unit_ME = F.normalize(e_ME, dim=-1)
        return unit_ME * (self.config.norm * self.target_length * self.projector.gain)

    def forward(self, codes_BT: Tensor, chunks_ME: Tensor) -> Tensor:
        """Logits (B, T, V) of the decoder over tokens (codes >= 0) and chunks (``chunk_code``), right-padded."""
        inputs_BTE = embed_codes(codes_BT, chunks_ME, self.decoder.model.embed_tokens)
        logits: Tensor = self.decoder(inputs_embeds=inputs_BTE, use_cache=False).logits
        return logits


class Projector(nn.Module):
    """Encoder states of all chunks to M vectors: pooling, then linear, GELU, linear.

    ``concat`` adds a skip past the MLP: the sum of the positions' states by learned weights, at first their mean. The
    weights are scaled so that a few dozen steps can single positions out, and the MLP starts small beside it: a fresh
    projector then speaks a language that the decoder half knows, the one of its own first layers. A softmax in their
    place crowns one position, and a chunk of two facts keeps one of them (results/LOG.md).
    """

    def __init__(self, config: RefragConfig, encoder_width: int, decoder_width: int) -> None:
        super().__init__()
        self.k, self.pooling = config.k, config.pooling
        pooled = config.k * encoder_width if config.pooling == "concat" else encoder_width
        self.hidden = nn.Linear(pooled, decoder_width)
        self.out = nn.Linear(decoder_width, decoder_width)
        self.gain = nn.Parameter(torch.ones(()))
        if config.pooling == "concat":
            self.position = nn.Parameter(torch.zeros(config.k))
            self.skip = nn.Linear(encoder_width, decoder_width, bias=False)
            with torch.no_grad():
                self.out.weight.mul_(MLP_START)
                nn.init.eye_(self.skip.weight)

    def forward(self, states_NSD: Tensor, inputs: EncoderInputs) -> Tensor:
        """Encoder states (N, S, D) of N windows to embeddings (M, E) of their M chunks, as ``inputs`` numbers them.

        ``cls`` takes the state at the first position of each window, which then holds one chunk; ``mean`` the mean over
        a chunk's positions; ``concat`` all k of them side by side, zeros behind a shorter chunk.
        """
        if self.pooling == "cls":
            return self._mlp(states_NSD[:, 0])
        slots_MkD, filled_Mk = by_chunk(states_NSD, inputs, self.k if self.pooling == "concat" else None)
        if self.pooling == "mean":
            return self._mlp(slots_MkD.sum(1) / filled_Mk.sum(1, keepdim=True))
        weights_k = (1 + POSITION_SCALE * self.position) / self.k
        weighed_MD = (weights_k[:, None] * slots_MkD).sum(1)
        out: Tensor = self._mlp(slots_MkD.flatten(1)) + self.skip(weighed_MD)
        return out

    def _mlp(self, pooled: Tensor) -> Tensor:
        out: Tensor = self.out(F.gelu(self.hidden(pooled)))
        return out
