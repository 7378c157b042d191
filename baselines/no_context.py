"""No context: the question alone, whatever was retrieved. What the decoder knows by heart, and the floor of TTFT."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.model.load import Decoder
from harness.model.prompted import Prompted
from harness.model.prompting import Prompting
from harness.protocol import Passage, TokenBlock
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

    def build(self, decoder: Decoder, cache: Path | None = None) -> Prompted[None]:  # noqa: ARG002
        """The system. There is nothing to keep: ``cache`` is left alone."""
        prompting = Prompting(self.template, self.max_positions, decoder)
        return Prompted(NoContext(prompting), prompting, decoder)


class NoContext:
    """``encode`` forgets the passages."""

    def __init__(self, prompting: Prompting) -> None:
        self.prompting = prompting

    def encode(self, passages: Sequence[Sequence[Passage]]) -> None:  # noqa: ARG002
        return None

    def encode_tokens(self, blocks: Sequence[Sequence[TokenBlock]]) -> None:  # noqa: ARG002
        return None

    def prompts(
        self,
        questions: Sequence[str],
        context: None,  # noqa: ARG002
        max_new_tokens: int,  # noqa: ARG002
    ) -> tuple[list[list[int]], list[int]]:
        asked = self.prompting.questions(questions)
        return [[*self.prompting.start, *question] for question in asked], [0] * len(asked)
