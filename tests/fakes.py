"""A suite and a system of ten lines each: what the harness's own tests run."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch

from harness.errors import InputError
from harness.metrics import score_answer
from harness.protocol import Example, Passage, Usage
from harness.record import DecodeSpec, RunSpec, SuiteSpec, SystemSpec

PAD = 0


@dataclass
class EchoSystem:
    """Answers with the first word of the question, one code point per column; fails where the question says so."""

    window: int = 100
    delay_s: float = 0.0
    pad_id: int = PAD
    batches: list[tuple[str, ...]] = field(default_factory=list)

    def check(self, questions: Sequence[str], *, max_new_tokens: int) -> None:
        for question in questions:
            if len(question) + max_new_tokens > self.window:
                raise InputError(f"question {question[:20]!r} is longer than the context")

    def encode(self, passages: Sequence[Sequence[Passage]]) -> int:
        return len(passages)

    def generate(self, questions: Sequence[str], context: int, *, max_new_tokens: int) -> Iterator[torch.Tensor]:
        self.batches.append(tuple(questions))
        words = [question.split()[0] for question in questions]
        for column in range(max(map(len, words))):
            time.sleep(self.delay_s)
            if any("explode" in question for question in questions):
                raise RuntimeError("device on fire\nat line 3")
            yield torch.tensor([ord(word[column]) if column < len(word) else PAD for word in words])

    def usage(self, questions: Sequence[str], context: int, *, max_new_tokens: int) -> list[Usage]:
        return [Usage(decoder_positions=len(question), passages_read=0) for question in questions]

    def text(self, columns: Sequence[torch.Tensor]) -> list[str]:
        return ["".join(chr(t) for t in row if t != PAD) for row in torch.stack(list(columns), dim=1).tolist()]


@dataclass
class ListSuite:
    questions: list[Example]
    name: str = "list"

    def examples(self) -> list[Example]:
        return self.questions

    def score(self, example: Example, text: str) -> dict[str, float]:
        return score_answer(text, example.answers)


def questions(n: int) -> list[Example]:
    return [Example(id=f"q{i}", question=f"word{i} ?", answers=(f"word{i}" if i % 3 else "other",)) for i in range(n)]


def spec(**changes: object) -> RunSpec:
    settings = {
        "suite": SuiteSpec(name="list", dataset="list", split="test", limit=None, root="fake", revision="0"),
        "retrieval": None,
        "passages": 0,
        "system": SystemSpec(name="echo", config={}, checkpoint="none"),
        "decode": DecodeSpec(max_new_tokens=8, batch_size=4, device="cpu", dtype="float32"),
        "seed": 0,
        "prompt_version": 1,
        "metric_version": 1,
    }
    return RunSpec(**settings | changes)
