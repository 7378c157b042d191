"""A hand-built starting point for the tiny decoder of the synthetic world. Disclosed wherever its scores are shown.

Why it exists. Trained from a random start, a decoder of this size learns to find *a* value of the asked relation
long before it learns *whose*: after 4.8 M tokens on a CPU core it still scored chance on the same-relation set. Started
from a match-and-copy circuit it scores 100 / 99.8 / 98.8 there after 2.6 M.

What it gives away. The start itself binds: before any training the first generated token is right for 47 / 47 / 31 % of
the same-relation questions with 2 / 4 / 8 passages (n = 500; chance 51 / 27 / 15), and the whole answer, which it does
not know how to end, for 1 / 4 / 6 %. Training adds the synonyms, the end of the answer, and not to be distracted. Only
weights are set: the model is an ordinary Llama before and after.

The circuit. A statement reads ``... {noun} of {first} {last} is {VALUE}`` and a question ends in
``... {noun} of {first} {last} ? <answer>``. Seen from VALUE and from ``<answer>`` alike, the last name lies 2
tokens back, the first name 3 and the noun 5.

- The residual stream is split: dimension 0 is a constant, CONTENT holds the token, three SLOTS start empty.
- Layer 0: head h looks exactly ``OFFSETS[h]`` tokens back and writes what it sees into slot h. Query and key read
  only the constant; rotating the key by the offset makes the rotary phases agree at that distance alone.
- Layer 1: every head compares the slots of query and key, in the slow rotary pairs only (the fast ones would tie
  the match to a distance), and copies the content of the matching position to the output. ``<answer>`` itself
  carries a penalty as a key, or it would match itself best.
- Every other output projection is zero, so all else starts as the identity.

It is tuned to the world's one template and useless for free text. Figures: results/LOG.md.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM

OFFSETS = (2, 3, 5)
CONTENT = slice(1, 56)
ANSWER_MARK = 55  # the last content dimension, used by the <answer> tag alone
SLOT_WIDTH = 24
SLOTS_START = 56
SLOW_PAIRS = 9  # rotary pairs from here on turn slowly enough to compare contents across a whole prompt
OFFSET_SHARPNESS = 8.0
MATCH_GAIN = 6.0
ANSWER_PENALTY = 14.0
COPY_GAIN = 3.0
CONTENT_NORM = 2.0


@torch.no_grad()
def circuit_init(model: LlamaForCausalLM, answer_id: int, seed: int) -> None:
    """Write the circuit into ``model``, in place.

    The model must have hidden size 128, at least two layers, four heads and tied embeddings, which is the tiny
    shape. ``answer_id`` is the token after which the answer starts.
    """
    config = model.config
    assert (config.hidden_size, config.num_attention_heads) == (128, 4), "the circuit is laid out for the tiny shape"
    assert config.tie_word_embeddings
    generator = torch.Generator().manual_seed(seed)
    for layer in model.model.layers:
        layer.self_attn.o_proj.weight.zero_()
        layer.mlp.down_proj.weight.zero_()
    for layer in model.model.layers[:2]:
        for projection in (layer.self_attn.q_proj, layer.self_attn.k_proj, layer.self_attn.v_proj):
            projection.weight.zero_()
    _embed_tokens(model, answer_id, generator)
    _look_back(model, generator)
    _match_and_copy(model, generator)


def _embed_tokens(model: LlamaForCausalLM, answer_id: int, generator: torch.Generator) -> None:
    """A constant, and a random direction of fixed length, so that RMSNorm scales all tokens alike."""
    embedding = torch.zeros(model.config.vocab_size, model.config.hidden_size)
    embedding[:, 0] = 1.0
    content = _random_rows(model.config.vocab_size, ANSWER_MARK - 1, generator)
    embedding[:, CONTENT.start : ANSWER_MARK] = CONTENT_NORM * content
    embedding[answer_id, CONTENT] = 0.0
    embedding[answer_id, ANSWER_MARK] = CONTENT_NORM
    model.model.embed_tokens.weight.copy_(embedding)


def _look_back(model: LlamaForCausalLM, generator: torch.Generator) -> None:
    """Layer 0: head h writes the token ``OFFSETS[h]`` back into slot h. Rotary pair i of a head is (i, i + pairs)."""
    head_width = model.config.head_dim
    pairs = head_width // 2
    # After RMSNorm the constant dimension reads this:
    constant = math.sqrt(model.config.hidden_size / (1.0 + CONTENT_NORM**2))
    angles = model.model.rotary_emb.inv_freq.float()
    attention = model.model.layers[0].self_attn
    to_slot = _random_rows(SLOT_WIDTH, CONTENT.stop - CONTENT.start, generator)
    for head, offset in enumerate(OFFSETS):
        rows = slice(head * head_width, head * head_width + pairs)
        rotated = slice(rows.stop, rows.stop + pairs)
        attention.q_proj.weight[rows, 0] = OFFSET_SHARPNESS / constant
        attention.k_proj.weight[rows, 0] = OFFSET_SHARPNESS / constant * torch.cos(offset * angles)
        attention.k_proj.weight[rotated, 0] = OFFSET_SHARPNESS / constant * torch.sin(offset * angles)
        values = slice(head * head_width, head * head_width + SLOT_WIDTH)
        slot = slice(SLOTS_START + head * SLOT_WIDTH, SLOTS_START + (head + 1) * SLOT_WIDTH)
        attention.v_proj.weight[values, CONTENT] = to_slot / constant
        attention.o_proj.weight[slot, values] = torch.eye(SLOT_WIDTH)


def _match_and_copy(model: LlamaForCausalLM, generator: torch.Generator) -> None:
    """Layer 1: attend where the slots agree, and copy that position's content to the output."""
    head_width = model.config.head_dim
    pairs = head_width // 2
    # A slot now holds `to_slot @ content`, of about this length, and RMSNorm scales by this:
    slot_length = CONTENT_NORM * math.sqrt(SLOT_WIDTH / (CONTENT.stop - CONTENT.start))
    scale = math.sqrt(model.config.hidden_size / (1.0 + CONTENT_NORM**2 + len(OFFSETS) * slot_length**2))
    attention = model.model.layers[1].self_attn
    slow = torch.arange(SLOW_PAIRS, pairs - 1)  # the last pair carries the penalty
    slots = slice(SLOTS_START, SLOTS_START + len(OFFSETS) * SLOT_WIDTH)
    halves = torch.arange(CONTENT.start, ANSWER_MARK).chunk(2)
    for head in range(model.config.num_attention_heads):
        base = head * head_width
        compared = torch.cat([base + slow, base + pairs + slow])
        match = _random_rows(len(compared), slots.stop - slots.start, generator) * MATCH_GAIN / (scale * slot_length)
        attention.q_proj.weight[compared, slots] = match * math.sqrt(head_width) ** 0.5
        attention.k_proj.weight[compared, slots] = match * math.sqrt(head_width) ** 0.5
        penalty = base + pairs - 1
        strength = math.sqrt(ANSWER_PENALTY * math.sqrt(head_width)) / scale
        attention.q_proj.weight[penalty, 0] = strength
        attention.k_proj.weight[penalty, ANSWER_MARK] = -strength / CONTENT_NORM
        copied = halves[head % 2]
        values = base + torch.arange(len(copied))
        attention.v_proj.weight[values, copied] = 1.0 / scale
        attention.o_proj.weight[copied, values] = COPY_GAIN / 2


def _random_rows(rows: int, columns: int, generator: torch.Generator) -> torch.Tensor:
    """Rows of unit length in random directions."""
    return torch.nn.functional.normalize(torch.randn(rows, columns, generator=generator), dim=-1)
