"""Where a decoder comes from: a Hub id, a local folder, or a config with random weights at a named shape.

Only the Llama architecture is taken (LLaMA-2, LLaMA-3.x and every model published in that form): all systems of the
paper are built on it, and the one decode path in ``llama`` is proven against it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.config import digest, file_digest
from harness.device import open_device
from harness.errors import InputError, unknown
from harness.prompts import pad_id

if TYPE_CHECKING:
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase

    from harness.protocol import Demonstration

# The published shapes (model cards), the small ones of the synthetic world and of text, and one with which a CPU can
# read long prompts. Latency depends on these alone.
SHAPES: Mapping[str, Mapping[str, Any]] = {
    "tiny": dict(
        hidden_size=128, intermediate_size=352, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=4,
        vocab_size=974, max_position_embeddings=4096, tie_word_embeddings=True,
    ),
    "text-tiny": dict(
        hidden_size=128, intermediate_size=352, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=4,
        vocab_size=2048, max_position_embeddings=4096, tie_word_embeddings=True,
    ),
    "text-mini": dict(
        hidden_size=768, intermediate_size=2048, num_hidden_layers=12, num_attention_heads=12,
        num_key_value_heads=12, vocab_size=8192, max_position_embeddings=8192, tie_word_embeddings=True,
    ),
    "llama-100m": dict(
        hidden_size=768, intermediate_size=2048, num_hidden_layers=12, num_attention_heads=12,
        num_key_value_heads=12, vocab_size=16000, max_position_embeddings=4096, tie_word_embeddings=True,
    ),
    "llama2-7b": dict(
        hidden_size=4096, intermediate_size=11008, num_hidden_layers=32, num_attention_heads=32,
        num_key_value_heads=32, vocab_size=32000, max_position_embeddings=4096,
    ),
    "llama2-13b": dict(
        hidden_size=5120, intermediate_size=13824, num_hidden_layers=40, num_attention_heads=40,
        num_key_value_heads=40, vocab_size=32000, max_position_embeddings=4096,
    ),
    "llama2-70b": dict(
        hidden_size=8192, intermediate_size=28672, num_hidden_layers=80, num_attention_heads=64,
        num_key_value_heads=8, vocab_size=32000, max_position_embeddings=4096,
    ),
    "llama3.2-3b": dict(
        hidden_size=3072, intermediate_size=8192, num_hidden_layers=28, num_attention_heads=24,
        num_key_value_heads=8, head_dim=128, vocab_size=128256, max_position_embeddings=131072,
        tie_word_embeddings=True,
        rope_parameters=dict(
            rope_type="llama3", rope_theta=500000.0, factor=32.0, high_freq_factor=4.0, low_freq_factor=1.0,
            original_max_position_embeddings=8192,
        ),
    ),
}  # fmt: skip

DTYPES = ("float32", "bfloat16", "float16")


@dataclass(frozen=True, kw_only=True)
class Decoder:
    """A decoder with its tokenizer. ``checkpoint`` is the content hash or Hub revision: the identity in records.

    ``source`` is the folder or Hub id that it came from; a system may keep more of itself there. ``demonstrations``
    stand before every prompt, whatever the system (few-shot).
    """

    model: LlamaForCausalLM
    tokenizer: PreTrainedTokenizerBase
    checkpoint: str
    source: str
    demonstrations: tuple[Demonstration, ...] = ()


def load_decoder(name: str, *, dtype: str = "float32", device: str = "cpu") -> Decoder:
    """Load the decoder and tokenizer in folder ``name``, or of Hub id ``name``.

    Weights are read as safetensors only and no code of a checkpoint is run. Raises ``InputError`` where there is no
    such checkpoint, its architecture is not Llama, its weights have another shape than its config says, or its
    tokenizer nothing to pad with.
    """
    import torch
    from safetensors import SafetensorError
    from transformers import AutoConfig, AutoTokenizer, LlamaForCausalLM
    from transformers.utils import logging

    where = open_device(device)
    if dtype not in DTYPES:
        raise unknown("dtype", dtype, DTYPES)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    folder = Path(name)
    if folder.exists() and not (folder / "config.json").exists():
        raise InputError(f"no decoder in {folder}: expected config.json there (is the training finished?)")
    try:
        config = AutoConfig.from_pretrained(name, trust_remote_code=False)
    except (OSError, ValueError) as error:
        if folder.is_dir():
            raise InputError(f"decoder {name}: its config.json cannot be read: {_first_line(error)}") from error
        raise InputError(f"no decoder {name!r}: neither a local folder nor a reachable Hub id") from error
    _check_architecture(name, config)
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
        pad_id(tokenizer)  # refused here, and not at the first row that is shorter than its batch
        model, report = LlamaForCausalLM.from_pretrained(
            name,
            dtype=getattr(torch, dtype),
            use_safetensors=True,
            ignore_mismatched_sizes=True,  # reported below, by name
            output_loading_info=True,
        )
    except (OSError, RuntimeError, ValueError, SafetensorError) as error:
        raise InputError(f"decoder {name} cannot be loaded: {_first_line(error)}") from error
    misfits = [
        str(key) for kind in ("missing_keys", "unexpected_keys", "mismatched_keys") for key in sorted(report[kind])
    ]
    if misfits:
        raise InputError(
            f"decoder {name}: {len(misfits)} weights do not fit its config, the first of them {misfits[0]}"
        )
    if len(tokenizer) > model.config.vocab_size:
        raise InputError(
            f"decoder {name}: its tokenizer has {len(tokenizer)} tokens, its embedding only {model.config.vocab_size}"
        )
    return Decoder(model=model.to(where).eval(), tokenizer=tokenizer, checkpoint=_identity(folder, config), source=name)


def load_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """The tokenizer in folder ``name``, or of Hub id ``name``. Raises ``InputError`` where there is none."""
    from transformers import AutoTokenizer

    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise InputError(f"decoder {name}: its tokenizer cannot be loaded: {_first_line(error)}") from error
    return tokenizer


def _check_architecture(name: str, config: Any) -> None:
    """Refuse what the forward in ``llama`` does not compute: other families, biases, other activations."""
    if config.model_type != "llama":
        raise InputError(f"decoder {name} is of type {config.model_type!r}; only 'llama' is supported")
    if config.attention_bias or config.mlp_bias or config.hidden_act != "silu":
        raise InputError(
            f"decoder {name} has attention_bias={config.attention_bias}, mlp_bias={config.mlp_bias}, "
            f"hidden_act={config.hidden_act!r}; expected False, False and 'silu' (the published Llama form)"
        )


def shape_config(shape: str) -> LlamaConfig:
    """The configuration of a named shape."""
    from transformers import LlamaConfig

    if shape not in SHAPES:
        raise unknown("model shape", shape, SHAPES)
    return LlamaConfig(**SHAPES[shape])


def random_decoder(shape: str, *, seed: int, dtype: str = "float32", device: str = "cpu") -> LlamaForCausalLM:
    """A decoder of a named shape with random weights: for tests, for latency, and as the start of training.

    Made where it is to stay: 7 B parameters in float32 may not fit beside themselves. Raises ``InputError`` for unknown
    names.
    """
    import torch
    from transformers import LlamaForCausalLM

    where = open_device(device)
    if dtype not in DTYPES:
        raise unknown("dtype", dtype, DTYPES)
    torch.manual_seed(seed)
    with where:
        return LlamaForCausalLM._from_config(shape_config(shape), dtype=getattr(torch, dtype)).eval()


# Everything in a checkpoint folder that can move an answer: its JSON (also what a method keeps beside its decoder) but
# for what tells of its making, and for transformers' own way of generating, which is not ours.
CONTENT = ("*.json", "*.safetensors", "tokenizer*", "vocab*", "merges*", "encoder/*")
NO_CONTENT = ("training.json", "generation_config.json")


def checkpoint_digest(folder: Path) -> str:
    """Content hash of a checkpoint folder: names and bytes of its config, weights and tokenizer files."""
    return digest([[file.relative_to(folder).as_posix(), file_digest(file)] for file in content_files(folder)])


def content_files(folder: Path) -> list[Path]:
    """The files that ``checkpoint_digest`` reads, in its order."""
    return sorted({file for pattern in CONTENT for file in folder.glob(pattern) if file.name not in NO_CONTENT})


def _identity(folder: Path, config: Any) -> str:
    return checkpoint_digest(folder) if folder.is_dir() else str(config._commit_hash)


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]
