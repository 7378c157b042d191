"""Open a system by name: its decoder, its settings, itself."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args, get_origin, get_type_hints

from harness.cli.catalog import LIKELIHOODS, find_system
from harness.errors import InputError, unknown
from harness.protocol import Demonstration, LogLikelihood, System

if TYPE_CHECKING:
    from harness.model.load import Decoder

BOOLEANS = {"true": True, "false": False}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Opened:
    """A system ready to answer, with what identifies it in a record."""

    system: System[Any]
    config: Any
    decoder: Decoder

    @property
    def checkpoint(self) -> str:
        return self.decoder.checkpoint


def open_system(
    name: str,
    checkpoint: str,
    options: Mapping[str, Any],
    *,
    dtype: str,
    device: str,
    cache: Path | None = None,
    demonstrations: tuple[Demonstration, ...] = (),
) -> Opened:
    """The system ``name`` on ``checkpoint``, its settings those of the checkpoint except where ``options`` say.

    ``demonstrations`` stand before every prompt. ``cache`` is a folder for what the system may keep of its encoding.
    Raises ``InputError`` for unknown names, settings and checkpoints.
    """
    config_type = find_system(name)
    config = configure(name, config_type, checkpoint, options)

    from harness.model.load import load_decoder

    decoder = load_decoder(checkpoint, dtype=dtype, device=device)
    decoder = dataclasses.replace(decoder, demonstrations=demonstrations)
    return Opened(system=config.build(decoder, cache), config=config, decoder=decoder)


def with_likelihood(name: str, system: Any) -> LogLikelihood[Any]:
    """``system``, which can score a given text. Raises ``InputError`` naming those that can where it cannot."""
    if not isinstance(system, LogLikelihood):
        raise InputError(
            f"system {name} generates, but gives no likelihood of a given text; systems that do: "
            f"{', '.join(LIKELIHOODS)}"
        )
    return system


def configure(name: str, config_type: Any, checkpoint: str, options: Mapping[str, Any]) -> Any:
    """The settings as a dataclass; text values (from a command line) are read as their field's type."""
    return config_type(**(config_type.defaults(checkpoint) | read_settings(name, config_type, options)))


def read_settings(name: str, config_type: Any, options: Mapping[str, Any]) -> dict[str, Any]:
    """``options`` with text values read as their field's type. Raises ``InputError`` for what is no field of it."""
    types = get_type_hints(config_type)
    for option in options:
        if option not in types:
            raise unknown(f"setting of {name}", option, types)
    return {option: _read(option, types[option], value) for option, value in options.items()}


def parse_settings(texts: list[str]) -> dict[str, str]:
    """``["expand=0.1"]`` as a mapping. Raises ``InputError`` for what is not NAME=VALUE."""
    for text in texts:
        if "=" not in text:
            raise InputError(f"expected a setting as NAME=VALUE, got {text!r}")
    return dict(text.split("=", 1) for text in texts)


def _read(option: str, kind: Any, value: Any) -> Any:
    if not isinstance(value, str):
        return value
    if get_origin(kind) is tuple:
        return tuple(_read(option, get_args(kind)[0], part) for part in value.split(","))
    if kind is bool:
        if value not in BOOLEANS:
            raise unknown(f"value of setting {option}:", value, BOOLEANS)
        return BOOLEANS[value]
    kinds = [k for k in get_args(kind) or (kind,) if k is not type(None)]
    if value == "none" and type(None) in get_args(kind):
        return None
    try:
        return kinds[0](value)
    except ValueError as error:
        raise InputError(f"setting {option}: expected {kinds[0].__name__}, got {value!r}") from error
