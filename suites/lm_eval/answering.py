"""A system of ours as a model of lm-eval.

What counts as passages:

1. A document with ``passages`` (``suites.lm_eval.documents``): those are the passages, ``question`` is the question,
   and the system makes its own prompt of them, as everywhere in this project. The context string is not read. One that
   holds more than the task's own prompt of the document (few-shot examples, a description, a chat template) is refused,
   because that would be lost.
2. Any other document: its context string, in passages of ``PASSAGE`` tokens, is what the system may compress, and
   nothing stands behind it. That takes the template ``bare``; others would put a question there, and are refused.
3. ``loglikelihood_rolling`` has no context, hence no passages: windows of the text as lm-eval cuts them, each token
   given those before it in its window. Of a window after the first the one token before it is its context.

Departure from lm-eval's own models: BOS stands before every prompt, also before a window after the first.

Documents go through in their order, ``batch_size`` at a time: the batches, and so the answers, of ``harness.run``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lm_eval.api.model import LM
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from harness.data.text_practice import PASSAGE
from harness.errors import InputError, unknown
from harness.model.chunking import split
from harness.prompts import text_ids
from harness.protocol import LogLikelihood, System
from suites.lm_eval import documents

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance

    from harness.model.load import Decoder

KNOWN = ("until", "max_gen_toks", "do_sample", "temperature")  # of generation_kwargs


class Answering(LM):  # type: ignore[misc]
    """``system`` for lm-eval. ``window``: how many positions its decoder has for prompt and answer together.

    ``scoring`` gives the system as one with a likelihood, or raises ``InputError`` naming those that have one; it is
    asked when a task needs it. ``template`` is None for a system that has no such setting.
    """

    def __init__(
        self,
        system: System[Any],
        decoder: Decoder,
        *,
        scoring: Callable[[], LogLikelihood[Any]],
        template: str | None,
        window: int,
        max_new_tokens: int,
        batch_size: int,
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        super().__init__()
        self.system, self.tokenizer, self.scoring = system, decoder.tokenizer, scoring
        self.template, self.window, self.progress = template, window, progress
        self.max_new_tokens, self.batch_size = max_new_tokens, batch_size

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """The systems' answers, cut at the first of the task's ``until``; greedy.

        Raises ``InputError`` for sampling, unknown settings and questions that are longer than the context.
        """
        answers: list[str] = []
        for batch, longest in self._batches(requests):
            context, questions = self._read(batch)
            self.system.check(questions, max_new_tokens=longest)
            columns = list(self.system.generate(questions, context, max_new_tokens=longest))
            for request, answer in zip(batch, self.system.text(columns), strict=True):
                answers.append(_cut(answer, request.args[1].get("until")))
            self._done(len(answers), len(requests))
        return answers

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        """Of each continuation log p in nats, and whether the system's own answer starts with it.

        Raises ``InputError`` for a system without a likelihood.
        """
        scoring = self.scoring()
        found: list[tuple[float, bool]] = []
        for start in range(0, len(requests), self.batch_size):
            batch = requests[start : start + self.batch_size]
            if _has_passages(batch):
                context, questions = self._read(batch)
                continuations = text_ids(self.tokenizer, [request.args[1] for request in batch])
            else:
                pairs = [self._pair(*request.args) for request in batch]
                context, questions, continuations = self._bare(scoring, pairs)
            log_p = scoring.log_probabilities(questions, continuations, context)
            said = self._said(questions, context, max(map(len, continuations)))
            found += [
                (float(of_one.sum()), answer[: len(row)] == row)
                for of_one, answer, row in zip(log_p, said, continuations, strict=True)
            ]
            self._done(len(found), len(requests))
        return found

    def loglikelihood_rolling(self, requests: list[Instance]) -> list[float]:
        """Of each text log p of all its tokens, in nats. Raises ``InputError`` for a system without a likelihood."""
        scoring = self.scoring()
        found = []
        for request in requests:
            (ids,) = text_ids(self.tokenizer, [request.args[0]])
            # Room for BOS, and for the last token, which is scored and never read.
            rolled = get_rolling_token_windows(ids, -1, max_seq_len=self.window - 2, context_len=1)
            windows = [
                ([token for token in before if token != -1], scored)
                for before, scored in map(make_disjoint_window, rolled)
            ]
            total = 0.0
            for start in range(0, len(windows), self.batch_size):
                context, questions, rows = self._bare(scoring, windows[start : start + self.batch_size])
                total += sum(float(log_p.sum()) for log_p in scoring.log_probabilities(questions, rows, context))
            found.append(total)
            self._done(len(found), len(requests))
        return found

    def _batches(self, requests: Sequence[Instance]) -> Iterator[tuple[Sequence[Instance], int]]:
        """Batches in order, each with its longest answer in tokens."""
        for start in range(0, len(requests), self.batch_size):
            batch = requests[start : start + self.batch_size]
            longest = {_checked(request.args[1]).get("max_gen_toks", self.max_new_tokens) for request in batch}
            if len(longest) > 1:
                raise InputError(f"expected one max_gen_toks in a batch, got {sorted(longest)}; set --batch-size 1")
            yield batch, longest.pop()

    def _read(self, batch: Sequence[Instance]) -> tuple[Any, list[str]]:
        """What the system prepared of the batch's passages, and the questions."""
        if not _has_passages(batch):
            context, questions, _ = self._bare(self.scoring(), [(self._ids(r.args[0]), []) for r in batch])
            return context, questions
        for request in batch:
            if request.args[0] != documents.text(request.doc):
                raise InputError(
                    f"document {request.doc.get('id')!r}: the prompt is made of its passages and its question, and the "
                    "context holds something else (few-shot examples, a description or a chat template?): leave it out"
                )
        return self.system.encode([documents.passages(r.doc) for r in batch]), [r.doc["question"] for r in batch]

    def _bare(
        self, scoring: LogLikelihood[Any], pairs: Sequence[tuple[list[int], list[int]]]
    ) -> tuple[Any, list[str], list[list[int]]]:
        """Contexts as untagged passages with nothing behind them, no questions, and the continuations."""
        if self.template is None:
            raise InputError(
                "a document without passages is read as it stands, which takes the template 'bare'; the system has no "
                "setting 'template'"
            )
        if self.template != "bare":
            raise InputError(
                f"a document without passages is read as it stands, which takes the template 'bare', not "
                f"{self.template!r} (--set template=bare)"
            )
        context = scoring.encode_tokens([[([], piece) for piece in split(before, PASSAGE)] for before, _ in pairs])
        return context, [""] * len(pairs), [after for _, after in pairs]

    def _pair(self, before: str, after: str) -> tuple[list[int], list[int]]:
        """Context and continuation, tokenised together: lm-eval's own rule (``TemplateLM._encode_pair``)."""
        stripped = before.rstrip()
        before, after = stripped, before[len(stripped) :] + after
        whole, first = self._ids(before + after), self._ids(before)
        return first, whole[len(first) :]

    def _ids(self, text: str) -> list[int]:
        (ids,) = text_ids(self.tokenizer, [text])
        return ids

    def _said(self, questions: Sequence[str], context: Any, length: int) -> list[list[int]]:
        """The first ``length`` tokens of what the system answers itself."""
        columns = [column.tolist() for column in self.system.generate(questions, context, max_new_tokens=length)]
        return [list(row) for row in zip(*columns, strict=True)]

    def _done(self, done: int, total: int) -> None:
        if self.progress:
            self.progress(done, total)


def _has_passages(batch: Sequence[Instance]) -> bool:
    """Whether passages ride in the documents. Raises ``InputError`` where they do in some of the batch only."""
    having = {"passages" in request.doc for request in batch}
    if len(having) > 1:
        raise InputError("expected documents with passages or documents without, got both in one batch")
    return having.pop()


def _checked(settings: Mapping[str, Any]) -> Mapping[str, Any]:
    for name in settings:
        if name not in KNOWN:
            raise unknown("setting of a generation", name, KNOWN)
    if settings.get("do_sample") or settings.get("temperature"):
        raise InputError(f"systems decode greedily, got {dict(settings)}; expected do_sample false and temperature 0")
    return settings


def _cut(answer: str, until: str | Sequence[str] | None) -> str:
    for stop in [until] if isinstance(until, str) else until or ():
        answer = answer.split(stop)[0] if stop else answer
    return answer
