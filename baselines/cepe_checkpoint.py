"""CEPE's checkpoint: the frozen decoder's folder, and beside it encoder and cross-attention."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from baselines.cepe_model import Cepe, CepeConfig, build_cepe
from harness.errors import InputError
from harness.model.beside import Beside
from harness.train.export import export

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerBase

FILES = Beside(name="cepe", what="encoder of CEPE", made_by="train cepe")


def save_cepe(
    config: CepeConfig, model: Cepe, tokenizer: PreTrainedTokenizerBase, training: dict[str, Any], folder: Path
) -> Path:
    """Write all of ``model`` into ``folder``, complete or not at all."""
    return export(
        model.decoder,
        tokenizer,
        training,
        folder,
        beside=lambda temporary: FILES.write(temporary, model, asdict(config)),
    )


def read_config(folder: Path) -> CepeConfig:
    """What stands around the decoder in ``folder``. Raises ``InputError`` where nothing does."""
    document = FILES.read(folder)
    try:
        return CepeConfig(**document)
    except (TypeError, AttributeError, InputError) as error:
        raise InputError(f"{folder / FILES.config_file} is damaged: {error}") from error


def load_cepe(folder: Path, decoder: LlamaForCausalLM) -> Cepe:
    """The model in ``folder`` around its already loaded ``decoder``, in the decoder's dtype and on its device."""
    config = read_config(folder)
    try:
        model = build_cepe(config, decoder)
    except (TypeError, InputError) as error:
        raise InputError(f"{folder / FILES.config_file} does not fit its decoder: {error}") from error
    FILES.load(folder, model)
    return model.eval()
