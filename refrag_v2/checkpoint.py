"""REFRAG's checkpoint: the decoder's folder, and beside it encoder, projector and, once trained, the policy."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.errors import InputError
from harness.model.beside import ENCODER, Beside, match, write_encoder
from harness.model.encoders import encoder_tokenizer, shaped_roberta
from harness.train.export import export
from refrag_v2.model import Refrag, RefragConfig
from refrag_v2.policy import Policy, PolicyConfig

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerBase

FILES = Beside(name="refrag", what="chunk encoder", made_by="train refrag_v2")


def save_refrag(model: Refrag, tokenizer: PreTrainedTokenizerBase, training: dict[str, Any], folder: Path) -> Path:
    """Write all of ``model`` into ``folder``, complete or not at all."""

    def beside(temporary: Path) -> None:
        policy = asdict(model.policy.config) if model.policy is not None else None
        FILES.write(temporary, model, {"model": asdict(model.config), "policy": policy})
        write_encoder(temporary, model.encoder, model.encoder_tokenizer)

    return export(model.decoder, tokenizer, training, folder, beside=beside)


def read_config(folder: Path) -> tuple[RefragConfig, PolicyConfig | None]:
    """What stands around the decoder in ``folder``. Raises ``InputError`` where nothing does."""
    document = FILES.read(folder)
    try:
        policy = document["policy"]
        return RefragConfig(**document["model"]), PolicyConfig(**policy) if policy else None
    except (TypeError, KeyError, InputError) as error:
        raise InputError(f"{folder / FILES.config_file} is damaged: {error}") from error


def load_refrag(folder: Path, decoder: LlamaForCausalLM) -> Refrag:
    """The model in ``folder`` around its already loaded ``decoder``, in the decoder's dtype and on its device."""
    config, policy = read_config(folder)
    own = None if config.shares_tokens else shaped_roberta(folder / ENCODER)
    model = Refrag(config, decoder, encoder_tokenizer(config.encoder, folder / ENCODER), own)
    if policy is not None:
        try:
            model.policy = Policy(policy, decoder.config.hidden_size)
        except (RuntimeError, AssertionError) as error:
            raise InputError(f"{folder / FILES.config_file}: no policy can be built as {policy}: {error}") from error
    FILES.load(folder, model)
    match(model, decoder)
    return model.eval()
