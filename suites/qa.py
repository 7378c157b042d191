"""Open-domain question answering: NQ, TriviaQA and PopQA, closed-book or over frozen passages.

Protocol. Questions come from the published validation split (PopQA: its only split) of a data root; the first
``passages`` of the frozen retrieval file stand before the system, best first. An answer is scored by every dialect
of ``harness.metrics``. On a root of the synthetic world each example also gets its chance line (see
``harness.data.world.facts.chance``).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from harness.data.sources import DataRoot, load_questions
from harness.data.world import is_world
from harness.data.world.facts import chance
from harness.errors import InputError
from harness.metrics import score_answer
from harness.protocol import Demonstration, Example, Passage
from harness.record import RetrievalSpec, SuiteSpec
from harness.retrieval.frozen import read_frozen


@dataclass(frozen=True, kw_only=True)
class QASuite:
    """Questions with their passages, and the two parts of the spec that identify them."""

    name: str
    spec: SuiteSpec
    retrieval: RetrievalSpec | None
    questions: tuple[Example, ...]
    demonstrations: tuple[Demonstration, ...]

    def examples(self) -> Iterable[Example]:
        return self.questions

    def score(self, example: Example, text: str) -> dict[str, float]:
        scores = score_answer(text, example.answers)
        if is_world(self.spec.root):
            scores["chance"] = chance(example.passages, example.question, example.answers)
        return scores


def build(
    name: str, root: DataRoot, *, passages: int, frozen: Path | None, limit: int | None, shots: int = 0
) -> QASuite:
    """The suite ``name`` with the first ``passages`` of ``frozen`` (None: closed-book) before every question.

    The last ``shots`` questions of the whole set become demonstrations, each with its best passage, and are not asked
    (CEPE's protocol draws them from the training set, for PopQA from the set itself).
    """
    if passages and frozen is None:
        raise InputError(f"suite {name} with {passages} passages needs a frozen retrieval file (--retrieval FILE)")
    if frozen is not None and not passages:
        raise InputError(f"closed-book takes no retrieval file ({frozen}); give the number of passages")
    if shots < 0:
        raise InputError(f"expected at least 0 demonstrations, got {shots}")
    everything, source = load_questions(name, root, limit=None if shots else limit)
    if shots >= len(everything):
        raise InputError(f"suite {name} has {len(everything)} questions; {shots} demonstrations leave none to ask")
    examples = everything[: len(everything) - shots][:limit]
    shown = everything[len(everything) - shots :]
    retrieval = None
    if passages and frozen is not None:
        manifest, found = read_frozen(frozen)
        if manifest.source is not None and (manifest.suite, manifest.source) != (name, asdict(source)):
            raise InputError(
                f"{frozen} was frozen for {manifest.suite} of {manifest.source['root']} "
                f"({manifest.source['revision']}); expected {name} of {source.root} ({source.revision})"
            )
        examples = [replace(example, passages=_first(example, found, passages, frozen)) for example in examples]
        shown = [replace(example, passages=_first(example, found, 1, frozen)) for example in shown]
        retrieval = RetrievalSpec(retriever=manifest.retriever, setting=manifest.setting, digest=manifest.digest)
    spec = SuiteSpec(
        name=name,
        dataset=source.dataset,
        split=source.split,
        limit=limit,
        root=source.root,
        revision=source.revision,
    )
    demonstrations = tuple(
        Demonstration(question=e.question, answer=e.answers[0], passage=e.passages[0] if e.passages else None)
        for e in shown
    )
    return QASuite(name=name, spec=spec, retrieval=retrieval, questions=tuple(examples), demonstrations=demonstrations)


def _first(example: Example, found: Mapping[str, tuple[Passage, ...]], n: int, file: Path) -> tuple[Passage, ...]:
    if example.id not in found:
        raise InputError(f"{file} holds no passages for question {example.id}; freeze the retrieval of this data again")
    if len(found[example.id]) < n:
        raise InputError(f"{file} holds {len(found[example.id])} passages for {example.id}; {n} were asked for")
    return found[example.id][:n]
