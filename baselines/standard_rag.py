"""Standard RAG: the retrieved passages stand in the prompt as tokens and the decoder reads them all.

The strong baseline of every comparison. With no passages it is the closed-book row. A prompt that does not fit the
context loses whole passages from the end of the ranking; the question is never cut.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.model.load import Decoder
from harness.model.prompted import Prompted
from harness.model.prompting import Prompting, whole
from harness.protocol import Passage, TokenBlock
from harness.train.export import own_template, read_training

Block = list[int]


@dataclass(frozen=True, kw_only=True)
class StandardRAGConfig:
    """``template`` is the prompt template that the decoder knows.

    ``max_positions`` bounds prompt and answer together; None means the decoder's own window.
    """

    template: str = "text"
    max_positions: int | None = None

    @classmethod
    def defaults(cls, checkpoint: str) -> dict[str, Any]:
        """What a checkpoint says of itself."""
        return {"template": own_template(read_training(Path(checkpoint)))}

    def build(self, decoder: Decoder, cache: Path | None = None) -> Prompted[list[list[Block]]]:  # noqa: ARG002
        """The system. Tokens are not worth keeping: ``cache`` is left alone."""
        prompting = Prompting(self.template, self.max_positions, decoder)
        return Prompted(StandardRAG(prompting), prompting, decoder)


class StandardRAG:
    """``encode`` only tokenises: each passage becomes a block of token ids."""

    def __init__(self, prompting: Prompting) -> None:
        self.prompting = prompting

    def encode(self, passages: Sequence[Sequence[Passage]]) -> list[list[Block]]:
        return self.encode_tokens(self.prompting.passages(passages))

    def encode_tokens(self, blocks: Sequence[Sequence[TokenBlock]]) -> list[list[Block]]:
        return whole(blocks)

    def prompts(
        self, questions: Sequence[str], context: list[list[Block]], max_new_tokens: int
    ) -> tuple[list[list[int]], list[int]]:
        return self.prompting.whole_prompts(questions, context, max_new_tokens)
