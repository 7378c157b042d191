"""Decoders from shapes and folders: the published sizes, safetensors only, and honest identities."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import LlamaForCausalLM

from harness.errors import InputError
from harness.model.load import SHAPES, checkpoint_digest, load_decoder, random_decoder, shape_config
from harness.train.export import export


@pytest.mark.parametrize(
    ("shape", "parameters"),
    [("llama2-7b", 6_738_415_616), ("llama2-13b", 13_015_864_320), ("llama3.2-3b", 3_212_749_824), ("tiny", 928_640)],
)
def test_shapes_have_their_number_of_parameters(shape: str, parameters: int) -> None:
    with torch.device("meta"):
        model = LlamaForCausalLM(shape_config(shape))
    assert sum(p.numel() for p in model.parameters()) == parameters


def test_the_same_seed_gives_the_same_weights() -> None:
    one, two, other = (random_decoder("tiny", seed=seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert not torch.equal(one["model.embed_tokens.weight"], other["model.embed_tokens.weight"])


def test_a_loaded_decoder_is_the_exported_one(tiny_checkpoint: Path) -> None:
    decoder = load_decoder(str(tiny_checkpoint))
    expected = random_decoder("tiny", seed=3).state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in decoder.model.state_dict().items())
    assert not decoder.model.training


def test_the_identity_is_the_content(tiny_checkpoint: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(tiny_checkpoint, tmp_path / "elsewhere"))
    assert checkpoint_digest(copy) == checkpoint_digest(tiny_checkpoint) == load_decoder(str(copy)).checkpoint
    settings = copy / "tokenizer_config.json"
    settings.write_text(settings.read_text().replace('"</s>"', '"<s>"'))
    assert checkpoint_digest(copy) != checkpoint_digest(tiny_checkpoint), "another EOS gives other answers"
    shutil.copy(tiny_checkpoint / "tokenizer_config.json", settings)
    assert checkpoint_digest(copy) == checkpoint_digest(tiny_checkpoint)
    weights = copy / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    assert checkpoint_digest(copy) != checkpoint_digest(tiny_checkpoint)


def test_pickled_weights_are_not_loaded(tiny_checkpoint: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(tiny_checkpoint, tmp_path / "pickled"))
    (copy / "model.safetensors").unlink()
    torch.save(random_decoder("tiny", seed=3).state_dict(), copy / "pytorch_model.bin")
    with pytest.raises(InputError, match="cannot be loaded"):
        load_decoder(str(copy))


@pytest.mark.parametrize("change", [{"attention_bias": True}, {"mlp_bias": True}, {"hidden_act": "gelu"}])
def test_what_the_forward_does_not_compute_is_refused(
    tiny_checkpoint: Path, tmp_path: Path, change: dict[str, object]
) -> None:
    copy = Path(shutil.copytree(tiny_checkpoint, tmp_path / "changed"))
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(InputError, match="expected False, False and 'silu'"):
        load_decoder(str(copy))


@pytest.mark.parametrize("file", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_truncated_file_is_one_clear_error(tiny_checkpoint: Path, tmp_path: Path, file: str) -> None:
    copy = Path(shutil.copytree(tiny_checkpoint, tmp_path / "torn"))
    data = (copy / file).read_bytes()
    (copy / file).write_bytes(data[: len(data) // 2])
    with pytest.raises(InputError, match="cannot be"):
        load_decoder(str(copy))


def test_a_tokenizer_larger_than_the_embedding_is_refused(tiny_checkpoint: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(tiny_checkpoint, tmp_path / "grown"))
    tokenizer = json.loads((copy / "tokenizer.json").read_text())
    tokenizer["added_tokens"].append(
        {"id": 974, "content": "<more>", "special": True, "single_word": False, "lstrip": False, "rstrip": False,
         "normalized": False}
    )  # fmt: skip
    (copy / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(InputError, match="975 tokens, its embedding only 974"):
        load_decoder(str(copy))


def test_unknown_shape_names_the_valid_ones() -> None:
    with pytest.raises(InputError, match="llama2-7b"):
        shape_config("llama2-7B")
    assert "tiny" in SHAPES


def test_how_a_tokenizer_was_loaded_is_no_part_of_a_checkpoint(tiny_checkpoint: Path, tmp_path: Path) -> None:
    decoder = load_decoder(str(tiny_checkpoint))
    digests = set()
    for offline in (True, False):
        decoder.tokenizer.init_kwargs["local_files_only"] = offline
        digests.add(checkpoint_digest(export(decoder.model, decoder.tokenizer, {}, tmp_path / str(offline))))
    assert len(digests) == 1
