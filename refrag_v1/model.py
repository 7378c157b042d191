"""REFRAG v1's model: the early version, kept as a control with the faults of its method and none of its accidents.

From the seed document: chunks of 64 tokens, RoBERTa-base, the L2-normalised state of its first token, a projector of
linear, Tanh, linear, LLaMA-3.2-3B. Against v2 the differences are these:

- *Objective*: a chunk is read back from its embedding **repeated at every position**. Under rotary embeddings every
  position then attends over copies of one value, and its logits are the same at all of them (they spread by less than
  1e-5 of the largest, in fp32): at best the decoder learns which tokens a chunk holds, never their order. The seed
  calls this "giving the answer at every step"; it is rather the same question at every step.
- *Chunks* are cut from all passages run together, so they cross the borders of passages: without a prompt template
  there are no passages, only a text.
- *Length*: the pooled state is normalised and nothing after it, so that nothing says how long an embedding is.

At the tiny scale encoder, pooling and length are v2's (``pooling="concat"``, ``norm``): a random RoBERTa with one
state per 64 tokens could not be told from a wrong objective there.

Legend: N encoder rows, S encoder positions, M chunks, k tokens per chunk, D encoder width, E decoder width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from harness.errors import InputError, unknown
from harness.model.chunking import EncoderInputs, encoder_inputs, retokenised_inputs
from harness.model.encoders import Roberta, build_encoder, shares_tokens
from harness.model.pooling import by_chunk
from harness.model.splice import embed_codes
from harness.prompts import pad_id

if TYPE_CHECKING:
    from collections.abc import Sequence

    from transformers import LlamaForCausalLM, PreTrainedTokenizerBase

    from refrag_v1.policy import Policy

MLP_START = 0.3
POSITION_SCALE = 100.0
Pooling = Literal["cls", "concat"]
POOLINGS: tuple[Pooling, ...] = ("cls", "concat")


@dataclass(frozen=True, kw_only=True)
class RefragV1Config:
    """The shape of everything around the decoder; the defaults are the seed's.

    ``encoder`` is a Hub id or folder of a RoBERTa, ``decoder:N`` or ``random:SHAPE``. ``norm`` None leaves embeddings
    as the projector gives them; a number is their length in units of the decoder's mean token embedding.
    """

    k: int = 64
    encoder: str = "FacebookAI/roberta-base"
    pooling: Pooling = "cls"
    norm: float | None = None

    def __post_init__(self) -> None:
        if self.k < 1:
            raise InputError(f"expected chunks of at least 1 token, got k={self.k}")
        if self.pooling not in POOLINGS:
            raise unknown("pooling", self.pooling, POOLINGS)
        if self.pooling == "cls" and self.encoder.startswith("decoder:"):
            raise InputError("pooling 'cls' needs an encoder with a classification token; decoder layers have none")
        if self.pooling == "concat" and not shares_tokens(self.encoder):
            raise InputError("pooling 'concat' needs an encoder that shares the decoder's tokens (decoder:N)")


class RefragV1(nn.Module):
    """Decoder, encoder, projector, and the policy once there is one. ``decoder`` is and stays an ordinary Llama."""

    target_length: Tensor

    def __init__(
        self,
        config: RefragV1Config,
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
        self.projector = Projector(config, self.encoder.width, decoder.config.hidden_size)
        length = decoder.model.embed_tokens.weight.detach().norm(dim=-1).mean()
        self.register_buffer("target_length", length.clone())

    def inputs(self, passages: Sequence[Sequence[int]], tokenizer: PreTrainedTokenizerBase) -> EncoderInputs:
        """What the encoder reads: every chunk alone."""
        if shares_tokens(self.config.encoder):
            return encoder_inputs(passages, self.config.k, "chunk", pad_id(tokenizer))
        assert self.encoder_tokenizer is not None
        return retokenised_inputs(passages, self.config.k, "chunk", tokenizer, self.encoder_tokenizer)

    def encode(self, inputs: EncoderInputs) -> Tensor:
        """All chunks at once to chunk embeddings (M, E), in the decoder's input space."""
        if inputs.ids_NS.numel() == 0:
            width = self.decoder.config.hidden_size
            return torch.zeros((0, width), dtype=self.decoder.dtype, device=self.decoder.device)
        e_ME: Tensor = self.projector(self.encoder(inputs.ids_NS, inputs.mask_NS), inputs)
        if self.config.norm is None:
            return e_ME
        return F.normalize(e_ME, dim=-1) * (self.config.norm * self.target_length)

    def forward(self, codes_BT: Tensor, chunks_ME: Tensor) -> Tensor:
        """Logits (B, T, V) of the decoder over tokens (codes >= 0) and chunks (``chunk_code``), right-padded."""
        inputs_BTE = embed_codes(codes_BT, chunks_ME, self.decoder.model.embed_tokens)
        logits: Tensor = self.decoder(inputs_embeds=inputs_BTE, use_cache=False).logits
        return logits

    def repeated(self, chunks_ME: Tensor) -> Tensor:
        """Logits (M, k, V) over every embedding alone, repeated k times: v1's reading back of a chunk."""
        inputs_MkE = chunks_ME[:, None].expand(-1, self.config.k, -1)
        logits: Tensor = self.decoder(inputs_embeds=inputs_MkE, use_cache=False).logits
        return logits


class Projector(nn.Module):
    """Encoder states of all chunks to M vectors: pooling, L2 normalisation, then linear, Tanh, linear.

    ``concat`` is v2's pooling, with its skip past the MLP by learned weights of the positions (``refrag_v2.model``).
    """

    def __init__(self, config: RefragV1Config, encoder_width: int, decoder_width: int) -> None:
        super().__init__()
        self.k, self.pooling = config.k, config.pooling
        pooled = config.k * encoder_width if config.pooling == "concat" else encoder_width
        self.hidden = nn.Linear(pooled, decoder_width)
        self.out = nn.Linear(decoder_width, decoder_width)
        if config.pooling == "concat":
            self.position = nn.Parameter(torch.zeros(config.k))
            self.skip = nn.Linear(encoder_width, decoder_width, bias=False)
            with torch.no_grad():
                self.out.weight.mul_(MLP_START)
                nn.init.eye_(self.skip.weight)

    def forward(self, states_NSD: Tensor, inputs: EncoderInputs) -> Tensor:
        """Encoder states (N, S, D) of N windows to embeddings (M, E) of their M chunks, as ``inputs`` numbers them.

        ``cls`` takes the state at the first position of each window, which then holds one chunk.
        """
        if self.pooling == "cls":
            return self._mlp(states_NSD[:, 0])
        slots_MkD, _ = by_chunk(states_NSD, inputs, self.k)
        weights_k = (1 + POSITION_SCALE * self.position) / self.k
        weighed_MD = (weights_k[:, None] * slots_MkD).sum(1)
        out: Tensor = self._mlp(slots_MkD.flatten(1)) + self.skip(weighed_MD)
        return out

    def _mlp(self, pooled: Tensor) -> Tensor:
        out: Tensor = self.out(torch.tanh(self.hidden(F.normalize(pooled, dim=-1))))
        return out
