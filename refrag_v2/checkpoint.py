"""REFRAG's checkpoint: the decoder as an ordinary transformers folder, and beside it what REFRAG adds.

    config.json model.safetensors tokenizer...   the decoder, loadable by anything
    refrag.json refrag.safetensors               encoder, projector and, once trained, the policy
    encoder/                                     shape and tokenizer of an encoder that has its own
    training.json                                where it came from

Nothing is left out: the encoder is saved even where it began as a published one.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from harness.errors import InputError
from harness.model.encoders import Roberta, shaped_roberta
from harness.train.export import export
from refrag_v2.model import Refrag, RefragConfig, encoder_tokenizer
from refrag_v2.policy import Policy, PolicyConfig

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerBase

CONFIG_FILE, WEIGHTS_FILE, ENCODER = "refrag.json", "refrag.safetensors", "encoder"


def save_refrag(model: Refrag, tokenizer: PreTrainedTokenizerBase, training: dict[str, Any], folder: Path) -> Path:
    """Write all of ``model`` into ``folder``, complete or not at all."""

    def beside(temporary: Path) -> None:
        added = {name: tensor.contiguous() for name, tensor in model.state_dict().items() if not _of_decoder(name)}
        save_file(added, temporary / WEIGHTS_FILE)
        if model.encoder_tokenizer is not None:
            assert isinstance(model.encoder, Roberta)
            model.encoder.model.config.save_pretrained(temporary / ENCODER)
            model.encoder_tokenizer.save_pretrained(temporary / ENCODER)
        policy = asdict(model.policy.config) if model.policy is not None else None
        (temporary / CONFIG_FILE).write_text(json.dumps({"model": asdict(model.config), "policy": policy}, indent=1))

    return export(model.decoder, tokenizer, training, folder, beside=beside)


def read_config(folder: Path) -> tuple[RefragConfig, PolicyConfig | None]:
    """What stands around the decoder in ``folder``. Raises ``InputError`` where nothing does."""
    path = folder / CONFIG_FILE
    if not path.exists():
        raise InputError(f"{folder} has no chunk encoder ({CONFIG_FILE}); expected what `train refrag_v2` made")
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        policy = document["policy"]
        return RefragConfig(**document["model"]), PolicyConfig(**policy) if policy else None
    except (ValueError, TypeError, KeyError) as error:
        raise InputError(f"{path} is damaged: {error}") from error


def load_refrag(folder: Path, decoder: LlamaForCausalLM) -> Refrag:
    """The model in ``folder`` around its already loaded ``decoder``, in the decoder's dtype and on its device."""
    config, policy = read_config(folder)
    own = None if config.shares_tokens else shaped_roberta(folder / ENCODER)
    model = Refrag(config, decoder, encoder_tokenizer(config, folder / ENCODER), own)
    try:
        if policy is not None:
            model.policy = Policy(policy, decoder.config.hidden_size)
        weights = load_file(folder / WEIGHTS_FILE)
        missing, unexpected = model.load_state_dict(weights, strict=False)
    except (OSError, RuntimeError, AssertionError, SafetensorError) as error:
        raise InputError(f"{folder / WEIGHTS_FILE} cannot be loaded: {_first_line(error)}") from error
    absent = [name for name in missing if not _of_decoder(name)]
    if absent or unexpected:
        raise InputError(f"{folder / WEIGHTS_FILE} does not fit {CONFIG_FILE}: {', '.join([*absent, *unexpected][:3])}")
    return model.to(dtype=decoder.dtype, device=decoder.device).eval()


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _of_decoder(name: str) -> bool:
    return name.startswith("decoder.")
