"""v1's checkpoint: the decoder's folder, and beside it encoder, projector and, once trained, the policy."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.errors import InputError
from harness.model.beside import ENCODER, Beside, match, write_encoder
from harness.model.encoders import encoder_tokenizer, shaped_roberta, shares_tokens
from harness.train.export import export
from refrag_v1.model import RefragV1, RefragV1Config
from refrag_v1.policy import Policy, PolicyConfig

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerBase

FILES = Beside(name="refrag_v1", what="chunk encoder of v1", made_by="train refrag_v1")


def save(model: RefragV1, tokenizer: PreTrainedTokenizerBase, training: dict[str, Any], folder: Path) -> Path:
    """Write all of ``model`` into ``folder``, complete or not at all."""

    def beside(temporary: Path) -> None:
        policy = asdict(model.policy.config) if model.policy is not None else None
        FILES.write(temporary, model, {"model": asdict(model.config), "policy": policy})
        write_encoder(temporary, model.encoder, model.encoder_tokenizer)

    return export(model.decoder, tokenizer, training, folder, beside=beside)


def read_config(folder: Path) -> tuple[RefragV1Config, PolicyConfig | None]:
    """What stands around the decoder in ``folder``. Raises ``InputError`` where nothing does."""
    document = FILES.read(folder)
    try:
        policy = document["policy"]
        return RefragV1Config(**document["model"]), PolicyConfig(**policy) if policy else None
    except (TypeError, KeyError, InputError) as error:
        raise InputError(f"{folder / FILES.config_file} is damaged: {error}") from error


def load(folder: Path, decoder: LlamaForCausalLM) -> RefragV1:
    """The model in ``folder`` around its already loaded ``decoder``, in the decoder's dtype and on its device."""
    config, policy = read_config(folder)
    own = None if shares_tokens(config.encoder) else shaped_roberta(folder / ENCODER)
    model = RefragV1(config, decoder, encoder_tokenizer(config.encoder, folder / ENCODER), own)
    if policy is not None:
        try:
            model.policy = Policy(policy, decoder.config.hidden_size)
        except (RuntimeError, TypeError) as error:
            raise InputError(f"{folder / FILES.config_file}: no policy can be built as {policy}: {error}") from error
    FILES.load(folder, model)
    match(model, decoder)
    return model.eval()
