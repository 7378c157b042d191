"""No context: the question alone, whatever was retrieved. What the decoder knows by heart, and the floor of TTFT."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from harness.model.decode import from_tokens
from harness.model.llama import Llama
from harness.model.load import Decoder
from harness.model.prompting import Prompting
from harness.protocol import Passage, Usage
from harness.train.export import own_template, read_training


@dataclass(frozen=True, kw_only=True)
class NoContextConfig:
    """``template`` is the prompt template that the decoder knows.

    ``max_positions`` bounds prompt and answer together; None means the decoder's own window.
    """

    template: str = "text"
    max_positions: int | None = None

    @classmethod
    def defaults(cls, checkpoint: str) -> dict[str, Any]:
        """What a checkpoint says of itself."""
        return {"template": own_template(read_training(Path(checkpoint)))}

    def build(self, decoder: Decoder, cache: Path | None = None) -> NoContext:  # noqa: ARG002
        """The system. There is nothing to keep: ``cache`` is left alone."""
        return NoContext(self, decoder)


class NoContext:
    """``encode`` forgets the passages."""

    def __init__(self, config: NoContextConfig, decoder: Decoder) -> None:
        self.prompting = Prompting(config.template, config.max_positions, decoder)
        self.pad_id = self.prompting.pad_id
        self.llama = Llama(decoder.model)

    def check(self, questions: Sequence[str], *, max_new_tokens: int) -> None:
        self.prompting.check(questions, max_new_tokens)

    def encode(self, passages: Sequence[Sequence[Passage]]) -> None:  # noqa: ARG002
        return None

    def generate(
        self,
        questions: Sequence[str],
        context: None,  # noqa: ARG002
        *,
        max_new_tokens: int,
    ) -> Iterator[Tensor]:
        return from_tokens(
            self.llama,
            self._prompts(questions),
            max_new_tokens=max_new_tokens,
            stop_ids=self.prompting.stop_ids,
            pad_id=self.pad_id,
        )

    def usage(self, questions: Sequence[str], context: None, *, max_new_tokens: int) -> list[Usage]:  # noqa: ARG002
        return [Usage(decoder_positions=len(prompt), passages_read=0) for prompt in self._prompts(questions)]

    def text(self, columns: Sequence[Tensor]) -> list[str]:
        return self.prompting.text(columns)

    def _prompts(self, questions: Sequence[str]) -> list[list[int]]:
        return [[*self.prompting.start, *question] for question in self.prompting.questions(questions)]
