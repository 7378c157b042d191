"""LLaMA_K: standard RAG that reads only the last 1/k of its context, as many positions as REFRAG has at rate k.

The control for compression in REFRAG's tables (arXiv:2509.01092v2, p. 6; LLaMA_256 in Table 1 is k = 8 of s = 2048):
the same decoder, with the last s/k tokens of a context of s in place of s/k chunk embeddings. What the paper leaves
open for passages, and what was decided here:

1. The context is what standard RAG would read before the question, tags and all; of its s tokens ceil(s / k) remain.
   They are the last ones, so they come from the passages that the retriever ranks last.
2. All passages are taken whose *shortened* context fits: what does not fit loses whole passages from the end of the
   ranking, as in standard RAG. At k = 1 the prompt is standard RAG's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

from harness.errors import InputError
from harness.model.load import Decoder
from harness.model.prompted import Prompted
from harness.model.prompting import Prompting, whole
from harness.protocol import Passage, TokenBlock
from harness.train.export import own_template, read_training

Block = list[int]


@dataclass(frozen=True, kw_only=True)
class LlamaKConfig:
    """One token in ``k`` of the context is read; ``template`` is the prompt template that the decoder knows.

    ``max_positions`` bounds prompt and answer together; None means the decoder's own window.
    """

    k: int = 8
    template: str = "text"
    max_positions: int | None = None

    def __post_init__(self) -> None:
        if self.k < 1:
            raise InputError(f"expected a rate k of 1 (all of the context) or more, got {self.k}")

    @classmethod
    def defaults(cls, checkpoint: str) -> dict[str, Any]:
        """What a checkpoint says of itself."""
        return {"template": own_template(read_training(Path(checkpoint)))}

    def build(self, decoder: Decoder, cache: Path | None = None) -> Prompted[list[list[Block]]]:  # noqa: ARG002
        """The system. Tokens are not worth keeping: ``cache`` is left alone."""
        prompting = Prompting(self.template, self.max_positions, decoder)
        return Prompted(LlamaK(self.k, prompting), prompting, decoder)


class LlamaK:
    """``encode`` only tokenises: each passage becomes a block of token ids."""

    def __init__(self, k: int, prompting: Prompting) -> None:
        self.k, self.prompting = k, prompting

    def encode(self, passages: Sequence[Sequence[Passage]]) -> list[list[Block]]:
        return self.encode_tokens(self.prompting.passages(passages))

    def encode_tokens(self, blocks: Sequence[Sequence[TokenBlock]]) -> list[list[Block]]:
        return whole(blocks)

    def prompts(
        self, questions: Sequence[str], context: list[list[Block]], max_new_tokens: int
    ) -> tuple[list[list[int]], list[int]]:
        """Token ids of each prompt, and of how many passages there are tokens in it."""
        rows, read = [], []
        for question, blocks in zip(self.prompting.questions(questions), context, strict=True):
            lengths = [len(block) for block in blocks]
            kept = [shortened(total, self.k) for total in accumulate(lengths, initial=0)]
            added = [after - before for before, after in pairwise(kept)]
            taken = self.prompting.fitting(added, question, max_new_tokens)
            tokens = [token for block in blocks[:taken] for token in block]
            cut = len(tokens) - kept[taken]
            rows.append([*self.prompting.start, *tokens[cut:], *question])
            read.append(sum(end > cut for end in accumulate(lengths[:taken])))
        return rows, read


def shortened(tokens: int, k: int) -> int:
    """How many of a context's tokens are read: ceil(tokens / k)."""
    return -(-tokens // k)
