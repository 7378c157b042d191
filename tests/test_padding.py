"""What pads a row is decided in one place: the padding token, else EOS; LLaMA-2's tokenizers have no other."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from baselines import cepe_stages, kv_reuse_stages, stages, text_stages
from harness.errors import InputError
from harness.model.chunking import retokenised_inputs
from harness.model.encoders import encoder_tokenizer
from harness.model.load import load_decoder, random_decoder
from harness.prompts import pad_id, text_ids
from harness.train.export import export
from harness.train.rows import Block, Row
from refrag_v1 import stages as v1_stages
from refrag_v2 import stages as v2_stages
from tests.byte_level import TEXTS, byte_level_tokenizer

PADS: dict[str, dict[str, str | None]] = {
    "none": {"pad_token": None},
    "EOS": {"pad_token": "</s>"},
    "neither": {"pad_token": None, "eos_token": None},
}
# Every way that a stage lays its rows out.
RECIPES: dict[str, Any] = {
    "decoder pretrain": stages.PRETRAIN["tiny"],
    "text decoder pretrain": text_stages.PRETRAIN["text-tiny"],
    "kv_reuse finetune": kv_reuse_stages.FINETUNE["tiny"],
    "cepe warmup": cepe_stages.WARMUP["tiny"],
    "cepe cpt": cepe_stages.CPT["tiny"],
    "refrag_v1 cpt_recon": v1_stages.CPT_RECON["tiny-k64"],
    "refrag_v2 reconstruction": v2_stages.RECONSTRUCTION["tiny-k8"],
}


@dataclass(frozen=True)
class Ragged:
    """A row of two passages and a row of one, which is shorter."""

    def draw(self, rng: random.Random, position: int, tokenizer: Any) -> list[Row]:
        rows = []
        for texts in (TEXTS[:2], TEXTS[2:]):
            passages = text_ids(tokenizer, texts)
            row = Row(start=[tokenizer.bos_token_id], context=[Block([], ids) for ids in passages])
            row.say(passages[0], answer=True)
            rows.append(row)
        return rows


@pytest.fixture(scope="module")
def decoders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One decoder with three tokenizers: without a padding token, with EOS as such, and with neither."""
    folder, model, found = tmp_path_factory.mktemp("padding"), random_decoder("tiny", seed=3), {}
    for name, tokens in PADS.items():
        tokenizer = byte_level_tokenizer()
        for kind, token in tokens.items():
            setattr(tokenizer, kind, token)
        found[name] = export(model, tokenizer, {}, folder / name)
    return found


@pytest.mark.parametrize("name", RECIPES)
def test_a_stage_on_a_decoder_without_a_padding_token_pads_with_its_end(name: str, decoders: dict[str, Path]) -> None:
    recipe = replace(RECIPES[name], data=Ragged())
    losses = []
    for pad in ("none", "EOS"):
        model, tokenizer = recipe.open(decoders[pad])
        assert tokenizer.pad_token_id == {"none": None, "EOS": tokenizer.eos_token_id}[pad]
        losses.append(recipe.loss()(model, next(recipe.batches(model, tokenizer))).detach())
    assert torch.isfinite(losses[0])
    assert torch.equal(*losses)


@pytest.mark.parametrize("name", RECIPES)
def test_a_stage_is_not_opened_with_nothing_to_pad_with(name: str, decoders: dict[str, Path]) -> None:
    """The error comes with the decoder, not with the first batch."""
    with pytest.raises(InputError, match=rf"{decoders['neither']}\b.*expected a padding token .* got neither"):
        RECIPES[name].open(decoders["neither"])


@pytest.mark.parametrize("window", ["chunk", "passage"])
def test_an_encoder_without_a_padding_token_pads_with_its_end(window: Any) -> None:
    decoder, encoder, padded = (byte_level_tokenizer() for _ in range(3))
    encoder.pad_token, padded.pad_token = None, "</s>"
    passages = text_ids(decoder, TEXTS)
    found, expected = (retokenised_inputs(passages, 4, window, decoder, own) for own in (encoder, padded))
    assert not found.mask_NS.all()
    assert torch.equal(found.ids_NS, expected.ids_NS)


def test_an_encoder_with_nothing_to_pad_with_is_not_opened(tmp_path: Path) -> None:
    tokenizer = byte_level_tokenizer()
    tokenizer.pad_token = tokenizer.eos_token = None
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(InputError, match=f"tokenizer {tmp_path}: expected a padding token"):
        encoder_tokenizer(str(tmp_path))


def test_a_padding_token_is_preferred(decoders: dict[str, Path]) -> None:
    tokenizer = byte_level_tokenizer()
    assert pad_id(tokenizer) == tokenizer.pad_token_id != tokenizer.eos_token_id
    assert pad_id(load_decoder(str(decoders["none"])).tokenizer) == tokenizer.eos_token_id
