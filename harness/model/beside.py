"""What a method keeps beside its decoder, so that the decoder stays a folder which anything can load.

    config.json model.safetensors tokenizer...   the decoder
    <name>.json <name>.safetensors               how what the method adds is built, and its weights
    encoder/                                     shape and tokenizer of an encoder that has its own
    training.json                                where it came from

Nothing is left out: an encoder is saved even where it began as a published one.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from harness.errors import InputError
from harness.model.encoders import Roberta

if TYPE_CHECKING:
    from torch import nn
    from transformers import LlamaForCausalLM, PreTrainedTokenizerBase

ENCODER = "encoder"


@dataclass(frozen=True, kw_only=True)
class Beside:
    """The files of one method. ``what`` and ``made_by`` are for the reader of an error."""

    name: str
    what: str
    made_by: str

    @property
    def config_file(self) -> str:
        return f"{self.name}.json"

    @property
    def weights_file(self) -> str:
        return f"{self.name}.safetensors"

    def write(self, folder: Path, model: nn.Module, document: Mapping[str, Any]) -> None:
        """All weights of ``model`` but its decoder's, and ``document``, from which it can be built again."""
        added = {name: tensor.contiguous() for name, tensor in model.state_dict().items() if not _of_decoder(name)}
        save_file(added, folder / self.weights_file)
        (folder / self.config_file).write_text(json.dumps(document, indent=1))

    def there(self, folder: Path) -> bool:
        return (folder / self.config_file).exists()

    def read(self, folder: Path) -> Any:
        """The document. Raises ``InputError`` where there is none, or half of one."""
        path = folder / self.config_file
        if not path.exists():
            raise InputError(f"{folder} has no {self.what} ({self.config_file}); expected what `{self.made_by}` made")
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise InputError(f"{path} is damaged: {error}") from error

    def load(self, folder: Path, model: nn.Module) -> None:
        """The weights into ``model``. Raises ``InputError`` where they are damaged or not exactly its own."""
        path = folder / self.weights_file
        try:
            missing, unexpected = model.load_state_dict(load_file(path), strict=False)
        except (OSError, RuntimeError, SafetensorError) as error:
            raise InputError(f"{path} cannot be loaded: {_first_line(error)}") from error
        absent = [name for name in missing if not _of_decoder(name)]
        if absent or unexpected:
            raise InputError(f"{path} does not fit {self.config_file}: {', '.join([*absent, *unexpected][:3])}")


def match(module: nn.Module, decoder: LlamaForCausalLM) -> None:
    """Bring ``module`` to the decoder's device, its parameters to the decoder's dtype.

    Buffers keep theirs: rotary frequencies of three digits (bfloat16) would put position 512 off by one.
    """
    module.to(decoder.device)
    for parameter in module.parameters():
        parameter.data = parameter.data.to(decoder.dtype)


def write_encoder(folder: Path, encoder: nn.Module, tokenizer: PreTrainedTokenizerBase | None) -> None:
    """Shape and tokenizer of an encoder that has its own; nothing for one that shares the decoder's."""
    if tokenizer is not None:
        assert isinstance(encoder, Roberta)
        encoder.model.config.save_pretrained(folder / ENCODER)
        tokenizer.save_pretrained(folder / ENCODER)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _of_decoder(name: str) -> bool:
    return name.startswith("decoder.")
