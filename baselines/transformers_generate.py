"""Standard RAG on transformers' own ``generate``: what a user would run without this harness.

The prompts are standard RAG's and so are the answers (greedy); only the forward and the decode loop are theirs. It is a
row of the latency lab, where it says whether the loop that every other system shares is a fair one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from queue import SimpleQueue
from threading import Thread
from typing import TYPE_CHECKING, Any

from torch import Tensor

from baselines.standard_rag import StandardRAG
from harness.model.decode import left_pad
from harness.model.prompting import Prompting
from harness.protocol import Passage, Usage

if TYPE_CHECKING:
    from harness.model.load import Decoder


class TransformersGenerate:
    """Yields its columns as ``generate`` streams them."""

    def __init__(self, template: str, max_positions: int | None, decoder: Decoder) -> None:
        self.prompting = Prompting(template, max_positions, decoder)
        self.layout = StandardRAG(self.prompting)
        self.model = decoder.model
        self.pad_id = self.prompting.pad_id

    def check(self, questions: Sequence[str], *, max_new_tokens: int) -> None:
        self.prompting.check(questions, max_new_tokens)

    def encode(self, passages: Sequence[Sequence[Passage]]) -> list[list[list[int]]]:
        return self.layout.encode(passages)

    def generate(
        self, questions: Sequence[str], context: list[list[list[int]]], *, max_new_tokens: int
    ) -> Iterator[Tensor]:
        """The columns (B,) of token ids that ``transformers`` decides on, greedily, as soon as it has each.

        ``context`` is that of ``encode``. It runs in a thread of its own, and what it raises is raised here. A caller
        that stops early waits until it has ended.
        """
        from transformers import GenerationConfig

        prompts, _ = self.layout.prompts(questions, context, max_new_tokens)
        ids_BT, mask_BT = left_pad(prompts, self.pad_id, self.model.device)
        columns: SimpleQueue[Tensor | BaseException | None] = SimpleQueue()
        settings = GenerationConfig(
            max_new_tokens=max_new_tokens,
            do_sample=False,
            pad_token_id=self.pad_id,
            eos_token_id=self.prompting.stop_ids or None,
        )

        def answer() -> None:
            try:
                self.model.generate(
                    input_ids=ids_BT,
                    attention_mask=mask_BT.long(),
                    generation_config=settings,
                    streamer=_Columns(columns),
                )
                columns.put(None)
            except BaseException as error:
                columns.put(error)

        thread = Thread(target=answer)
        thread.start()
        try:
            while isinstance(column := columns.get(), Tensor):
                yield column
            if column is not None:
                raise column
        finally:
            thread.join()

    def usage(self, questions: Sequence[str], context: list[list[list[int]]], *, max_new_tokens: int) -> list[Usage]:
        prompts, read = self.layout.prompts(questions, context, max_new_tokens)
        return [Usage(decoder_positions=len(p), passages_read=n) for p, n in zip(prompts, read, strict=True)]

    def text(self, columns: Sequence[Tensor]) -> list[str]:
        return self.prompting.text(columns)


class _Columns:
    """A streamer: transformers gives it the prompt first, then one column at a time, on the host."""

    def __init__(self, columns: SimpleQueue[Any]) -> None:
        self.columns = columns
        self.is_prompt = True

    def put(self, value: Tensor) -> None:
        if not self.is_prompt:
            self.columns.put(value.reshape(-1))
        self.is_prompt = False

    def end(self) -> None:
        """Nothing is held back."""
