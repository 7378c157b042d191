"""Which encoders stand beside a decoder in the latency lab? Names of shapes, without the models."""

from collections.abc import Mapping

from harness.errors import unknown

# By decoder shape: the RoBERTa beside it, and CEPE's encoder.
ENCODERS: Mapping[str, tuple[str, str]] = {
    "tiny": ("roberta-tiny", "cepe-tiny"),
    "llama-100m": ("roberta-mini", "cepe-mini"),
    "llama3.2-3b": ("roberta-base", "cepe-large"),
    "llama2-7b": ("roberta-large", "cepe-large"),
    "llama2-13b": ("roberta-large", "cepe-large"),
}


def check_shape(shape: str) -> None:
    """Raises ``InputError`` for a decoder's shape without encoders."""
    if shape not in ENCODERS:
        raise unknown("decoder shape of the latency lab", shape, ENCODERS)
