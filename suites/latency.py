"""The latency workload: contexts of an exact number of tokens, unique prompts, random ids.

A context of ``length`` decoder tokens stands in passages of ``passage_tokens`` each; the question comes after it and is
not counted in ``length`` (the paper leaves open whether it is). Texts are names of rows of token ids that ``Ids``
finds: what a tokenizer takes is no part of the time to the first token here, for any system, as the paper times models.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from harness.errors import InputError
from harness.protocol import Passage

PAD = 0
FIRST_ID = 1  # ids below are padding


@dataclass(frozen=True)
class Request:
    """One batch: B questions, and the passages of each."""

    questions: list[str]
    passages: list[list[Passage]]


class Ids:
    """A tokenizer whose texts name rows of token ids: the part of a transformers tokenizer that systems call.

    It has no special tokens, so no answer ends early and every decode takes as many steps as it may.
    """

    bos_token_id = eos_token_id = unk_token_id = None
    pad_token_id = PAD
    all_special_ids: Sequence[int] = ()

    def __init__(self, vocabulary: int) -> None:
        self.vocabulary = vocabulary
        self.rows: list[list[int]] = []

    def name(self, ids: list[int]) -> str:
        """A text that stands for ``ids``, whatever a template puts around it."""
        self.rows.append(ids)
        return f"#{len(self.rows) - 1}#"

    def __len__(self) -> int:
        return self.vocabulary

    def __call__(self, texts: Sequence[str], **_: Any) -> dict[str, list[list[int]]]:
        return {"input_ids": [self.rows[int(text.split("#")[1])] for text in texts]}

    def batch_decode(self, rows: Sequence[Any], **_: Any) -> list[str]:
        """No text: ids are random."""
        return [""] * len(rows)


@dataclass(frozen=True, kw_only=True)
class Workload:
    """Requests of one shape. ``length`` and ``passage_tokens`` are in decoder tokens, ``question_tokens`` too."""

    length: int
    batch: int
    passage_tokens: int
    question_tokens: int

    def __post_init__(self) -> None:
        if min(self.length, self.batch, self.passage_tokens, self.question_tokens) < 1:
            raise InputError(f"expected lengths and a batch of at least 1, got {self}")
        if self.length % self.passage_tokens:
            raise InputError(
                f"expected a length that is a multiple of {self.passage_tokens}, the tokens of a passage; "
                f"got {self.length}"
            )

    def request(self, tokenizer: Ids, number: int) -> Request:
        """Request ``number``: no two share a passage or a question."""
        rng = random.Random(f"latency-{number}-{self}")

        def text(tokens: int) -> str:
            return tokenizer.name(rng.choices(range(FIRST_ID, len(tokenizer)), k=tokens))

        n = self.length // self.passage_tokens
        return Request(
            questions=[text(self.question_tokens) for _ in range(self.batch)],
            passages=[
                [Passage(id=str(i), title="", text=text(self.passage_tokens)) for i in range(n)]
                for _ in range(self.batch)
            ],
        )
