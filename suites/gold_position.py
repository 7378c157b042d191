"""Lost in the middle: does an answer depend on where among the passages the right one stands?

Protocol (Liu et al. 2023, arXiv:2307.03172). Each question is asked over ``passages`` passages: the annotated gold
passage at place ``position`` (1 is the first) and beside it the best retrieved ones that hold no answer (DPR's test),
best first. So two positions show the same passages of the same questions: only the order changes.

Questions, retrieved passages and gold come from a DPR/FiD file. Where its rows mark their gold passage (``gold_ctx`` or
``isgold``; a data root's ``ctxs/nq_ctxs20.jsonl.gz``, and lost-in-the-middle's own files), that is it. Where none does,
it is the one that the data root's ``qrels/nq.gold.tsv`` names, if it was retrieved: so for a file that
``refrag-bench retrieve --suite nq`` froze, and in the synthetic world. Questions without a gold passage, and those with
fewer than ``passages - 1`` others, are left out: which are asked depends on ``passages``, never on ``position``.

Scores: every dialect of ``harness.metrics`` (the paper's is ``sub_em``), and in the synthetic world the chance line.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from harness.config import digest
from harness.data.sources import DataRoot, load_questions
from harness.data.world import is_world
from harness.data.world.facts import chance
from harness.errors import InputError
from harness.metrics import score_answer
from harness.protocol import Example, Passage
from harness.record import MadeSuiteSpec, RetrievalSpec
from harness.retrieval.evaluate import AnswerTest
from harness.retrieval.frozen import read_frozen
from harness.retrieval.gold import read_gold
from harness.retrieval.rows import read_rows

QUESTIONS = "nq"


@dataclass(frozen=True, kw_only=True)
class GoldPositionConfig:
    """``position`` counts from 1, the passage that is read first."""

    position: int

    def build(
        self, name: str, root: DataRoot, *, passages: int, frozen: Path | None, limit: int | None, shots: int = 0
    ) -> GoldPositionSuite:
        """The suite over ``passages`` passages of ``frozen``, with as many questions as have them, at most ``limit``.

        Raises ``InputError`` for a position that is not among the passages, and where no question is left.
        """
        if shots:
            raise InputError(f"suite {name} is asked without demonstrations; got {shots} shots")
        if not 1 <= self.position <= passages:
            raise InputError(f"expected a position from 1 to {passages}, the number of passages, got {self.position}")
        if frozen is None:
            raise InputError(f"suite {name} needs a file of questions with their passages (--retrieval FILE)")
        manifest, _ = read_frozen(frozen)
        if manifest.suite not in (QUESTIONS, None):
            raise InputError(f"{frozen} was frozen for {manifest.suite}; expected passages of {QUESTIONS}")
        rows, _ = read_rows(frozen)
        gold = _gold(rows, root)
        holds_answer = AnswerTest()
        questions: list[Example] = []
        for row in rows:
            if row.id in gold and (placed := _placed(row, gold[row.id], passages, self.position, holds_answer)):
                questions.append(placed)
        if not questions:
            raise InputError(
                f"{frozen}: none of {len(rows)} questions has a gold passage and {passages - 1} passages without an "
                f"answer ({len(gold)} have a gold passage)"
            )
        return GoldPositionSuite(
            name=name,
            spec=MadeSuiteSpec(
                name=name,
                dataset=QUESTIONS,
                split="validation",
                limit=limit,
                root=root.name,
                revision=_revision(rows, gold, manifest.digest),
                settings=asdict(self),
            ),
            retrieval=RetrievalSpec(retriever=manifest.retriever, setting=manifest.setting, digest=manifest.digest),
            questions=tuple(questions[:limit]),
        )


@dataclass(frozen=True, kw_only=True)
class GoldPositionSuite:
    """Questions with their passages, and the two parts of the spec that identify them."""

    name: str
    spec: MadeSuiteSpec
    retrieval: RetrievalSpec
    questions: tuple[Example, ...]
    demonstrations: tuple[()] = ()

    def examples(self) -> Iterable[Example]:
        return self.questions

    def score(self, example: Example, text: str) -> dict[str, float]:
        scores = score_answer(text, example.answers)
        if is_world(self.spec.root):
            scores["chance"] = chance(example.passages, example.question, example.answers)
        return scores


def _gold(rows: list[Example], root: DataRoot) -> Mapping[str, Passage]:
    """The gold passage of each row that has one, by the row's id."""
    marked = {row.id: row.meta["gold"] for row in rows if "gold" in row.meta}
    if marked:
        return marked
    known = read_gold(QUESTIONS, root, load_questions(QUESTIONS, root)[0]) if root.path else None
    if known is None:
        raise InputError(
            f"no row marks its gold passage (gold_ctx or isgold), and the data root {root.name!r} has no "
            f"qrels/{QUESTIONS}.gold.tsv to find it by"
        )
    found: dict[str, Passage] = {}
    for row in rows:
        golds = [passage for passage in row.passages if passage.id in known.passages.get(row.id, ())]
        if golds:
            found[row.id] = golds[0]
    return found


def _revision(rows: Iterable[Example], gold: Mapping[str, Passage], frozen: str) -> str:
    """The digest of the rows; where they do not say which passage is gold, with what does."""
    if any("gold" in row.meta for row in rows):
        return frozen
    return digest([frozen, {name: passage.id for name, passage in sorted(gold.items())}])


def _placed(row: Example, gold: Passage, n: int, position: int, holds_answer: AnswerTest) -> Example | None:
    """The row with ``gold`` at its place among the first n - 1 passages without an answer; None if it has fewer."""
    flags = holds_answer(row.passages, row.answers)
    others = [
        passage
        for passage, flag in zip(row.passages, flags, strict=True)
        if not flag and passage.text != gold.text and passage.id != gold.id
    ][: n - 1]
    if len(others) < n - 1:
        return None
    return replace(row, passages=(*others[: position - 1], gold, *others[position - 1 :]))
