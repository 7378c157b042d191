"""An exercise whose data nothing here can read yet: a recipe can be planned and priced before it can be trained."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import TYPE_CHECKING

from harness.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from harness.train.rows import Row


@dataclass(frozen=True, kw_only=True)
class Missing:
    """``data`` says what would be read."""

    data: str

    @property
    def said(self) -> str:
        return f"nothing here reads {self.data} yet"

    def draw(self, rng: random.Random, position: int, tokenizer: PreTrainedTokenizerFast) -> list[Row]:  # noqa: ARG002
        """Raises ``InputError``, always."""
        raise InputError(self.said)
