"""The hard set of the synthetic world: every passage states the asked relation, each of somebody else.

Protocol. n passages (2, 4 or 8) about n people with the same four relations, the right one at a random place, half
of the others sharing a name with the person asked about. A reader that finds a value of the right kind but ignores
whose it is scores about 1/n; that line is the metric ``chance``. No retrieval: the passages are part of the suite.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from harness.config import file_digest
from harness.data.sources import DataRoot
from harness.data.world import is_world
from harness.data.world.facts import chance
from harness.data.world.mirror import SAME_RELATION_SIZES
from harness.errors import InputError
from harness.metrics import score_answer
from harness.protocol import Example, Passage
from harness.record import RetrievalSpec, SuiteSpec


@dataclass(frozen=True, kw_only=True)
class SameRelationSuite:
    """Questions with their passages, and the two parts of the spec that identify them."""

    name: str
    spec: SuiteSpec
    retrieval: RetrievalSpec | None
    questions: tuple[Example, ...]
    demonstrations: tuple[()] = ()

    def examples(self) -> Iterable[Example]:
        return self.questions

    def score(self, example: Example, text: str) -> dict[str, float]:
        return score_answer(text, example.answers) | {
            "chance": chance(example.passages, example.question, example.answers)
        }


def build(
    name: str, root: DataRoot, *, passages: int, frozen: Path | None, limit: int | None, shots: int = 0
) -> SameRelationSuite:
    """The set with ``passages`` passages. Raises ``InputError`` outside the world and for a size it does not have."""
    if not is_world(root.name) or root.path is None:
        raise InputError(f"suite {name} exists in the synthetic world only; the data root is {root.name!r}")
    if shots:
        raise InputError(f"suite {name} is asked without demonstrations; got {shots} shots")
    if passages not in SAME_RELATION_SIZES:
        raise InputError(f"suite {name} has {', '.join(map(str, SAME_RELATION_SIZES))} passages, not {passages}")
    if frozen is not None:
        raise InputError(f"suite {name} brings its own passages; it takes no retrieval file ({frozen})")
    path = root.path / "ctxs" / f"same_relation_n{passages}.jsonl.gz"
    try:
        with gzip.open(path, "rt", encoding="utf-8") as file:
            rows = [json.loads(line) for line in file][:limit]
        questions = tuple(
            Example(
                id=row["id"],
                question=row["question"],
                answers=tuple(row["answers"]),
                passages=tuple(Passage(id=c["id"], title=c["title"], text=c["text"]) for c in row["ctxs"]),
            )
            for row in rows
        )
    except (FileNotFoundError, gzip.BadGzipFile, EOFError, zlib.error, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} is missing or damaged; write the world again") from error
    revision = file_digest(path)
    return SameRelationSuite(
        name=name,
        spec=SuiteSpec(name=name, dataset=name, split="test", limit=limit, root=root.name, revision=revision),
        retrieval=RetrievalSpec(retriever="given", setting="same relation", digest=revision),
        questions=questions,
    )
