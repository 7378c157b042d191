"""What every system reads: retrieval run once and frozen to a file in DPR/FiD form, with a digest.

    <work>/retrieval/<suite>/<name>.jsonl.gz                one row per question, in the suite's order
        {"id", "question", "answers", "ctxs": [{"id", "title", "text", "score", "hasanswer"}]}
    <work>/retrieval/<suite>/<name>.jsonl.gz.manifest.json  written last: with it the two are complete

The two settings of the paper (arXiv:2509.01092, tables 3 and 17): "strong" is the top K; "weak" retrieves 200 and takes
K of them at random. The weak sample is drawn per question from (seed, question id), so it depends neither on the order
nor on the number of questions, and keeps the order of the draw: its first m passages are a random m of the 200.

The digest is of the rows, not of the compressed file, and rows are the same bytes for the same retrieval.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from harness.config import digest
from harness.data.sources import Source, question_id
from harness.errors import InputError, unknown
from harness.files import write_atomically
from harness.metrics import METRIC_VERSION
from harness.protocol import Example, Hit, Passage
from harness.retrieval.evaluate import HIT_AT, AnswerTest, hit_at, recall_at
from harness.retrieval.gold import Gold
from harness.retrieval.index import Index
from harness.retrieval.rows import make_row, read_rows, write_rows

SETTINGS = ("strong", "weak")
WEAK_POOL = 200
QUESTIONS_AT_ONCE = 256


@dataclass(frozen=True, kw_only=True)
class Setting:
    """How ``k`` passages are taken from a ranking. The seed is the weak setting's only."""

    name: str = "strong"
    k: int = 20
    seed: int = 0

    def __post_init__(self) -> None:
        if self.name not in SETTINGS:
            raise unknown("retrieval setting", self.name, SETTINGS)
        if not 1 <= self.k <= (WEAK_POOL if self.name == "weak" else self.k):
            raise InputError(
                f"expected k of at least 1{f' and at most {WEAK_POOL}' * (self.name == 'weak')}, got {self.k}"
            )

    @property
    def depth(self) -> int:
        """How many passages to retrieve."""
        return WEAK_POOL if self.name == "weak" else self.k

    def take(self, hits: Sequence[Hit], question: str) -> list[Hit]:
        """The ``k`` of ``depth`` hits that the question with that id gets."""
        return list(hits) if self.name == "strong" else random.Random(f"{self.seed}:{question}").sample(hits, self.k)

    def identity(self) -> dict[str, Any]:
        return asdict(self) | ({"seed": None} if self.name == "strong" else {"pool": WEAK_POOL})


@dataclass(frozen=True, kw_only=True)
class FrozenManifest:
    """What a frozen file holds. A file from elsewhere has the retriever and setting "given"."""

    retriever: str
    setting: str
    k: int
    """Passages per question; of a given file, in its shortest list."""
    n: int
    digest: str
    """Of the rows: the identity of what the systems read."""
    suite: str | None = None
    source: Mapping[str, Any] | None = None
    index: str | None = None
    seed: int | None = None
    measures: Mapping[str, float | int | None] = field(default_factory=dict)
    """hit@k and recall@k as fractions; None where the lists are shorter than k."""


@dataclass(frozen=True, kw_only=True)
class Frozen:
    """A frozen file that is complete on disk. ``new`` says whether it was made just now."""

    path: Path
    manifest: FrozenManifest
    new: bool


def freeze(
    examples: Sequence[Example],
    source: Source,
    index: Index,
    setting: Setting,
    *,
    suite: str,
    work: Path,
    gold: Gold | None = None,
) -> Frozen:
    """The passages of ``examples`` from ``index``, on disk under ``work``; retrieved now unless they are there already.

    Raises ``InputError`` when the corpus has fewer passages than ``setting`` needs.
    """
    if setting.depth > len(index.corpus.passages):
        raise InputError(
            f"the setting {setting.name} with k={setting.k} needs a corpus of at least {setting.depth} passages, "
            f"got {len(index.corpus.passages)}"
        )
    identity = {
        "source": asdict(source),
        "questions": len(examples),
        "index": index.digest,
        "setting": setting.identity(),
        "metric_version": METRIC_VERSION,
        # The manifest states the recall of these gold passages: asked with others, it would be another's answer.
        "gold": None if gold is None else gold.digest(),
    }
    stem = f"{index.config.retriever}-{setting.name}-k{setting.k}-{digest(identity)}"
    path = work / "retrieval" / suite / f"{stem}.jsonl.gz"
    if path.exists() and manifest_path(path).exists():
        return Frozen(path=path, manifest=_read_manifest(path), new=False)
    rows = list(_retrieve(examples, index, setting))
    manifest = FrozenManifest(
        retriever=index.config.retriever,
        setting=setting.name,
        k=setting.k,
        n=len(rows),
        digest=write_rows(path, rows),
        suite=suite,
        source=asdict(source),
        index=index.digest,
        seed=setting.seed if setting.name == "weak" else None,
        measures=_measure(rows, gold),
    )
    write_atomically(manifest_path(path), json.dumps(asdict(manifest), indent=1, ensure_ascii=False) + "\n")
    return Frozen(path=path, manifest=manifest, new=True)


def read_frozen(path: Path) -> tuple[FrozenManifest, dict[str, tuple[Passage, ...]]]:
    """The manifest of a frozen file and its passages by example id, best first.

    Reads DPR/FiD files from elsewhere too (JSON lines or one JSON list, plain or gzipped; no manifest). Their rows
    are found by their own id and by the NQ id of their question, because public NQ files number rows differently.

    Raises ``InputError`` when the rows are not those of the manifest, or either file is malformed.
    """
    rows, found = read_rows(path)
    if manifest_path(path).exists():
        manifest = _read_manifest(path)
        if found != manifest.digest:
            raise InputError(
                f"{path}: expected rows with digest {manifest.digest}, got {found}; delete and freeze again"
            )
        return manifest, {row.id: row.passages for row in rows}
    if len({row.id for row in rows}) < len(rows):
        raise InputError(f"{path}: expected unique question ids, got {len(rows)} rows with some repeated")
    shortest = min((len(row.passages) for row in rows), default=0)
    manifest = FrozenManifest(retriever="given", setting="given", k=shortest, n=len(rows), digest=found)
    by_question = {question_id(row.question): row.passages for row in rows}
    return manifest, by_question | {row.id: row.passages for row in rows}


def manifest_path(path: Path) -> Path:
    """Where the manifest of the frozen file ``path`` lies."""
    return path.with_name(path.name + ".manifest.json")


def _retrieve(examples: Sequence[Example], index: Index, setting: Setting) -> Iterator[dict[str, Any]]:
    from harness.progress import bar

    retriever, has_answer = index.open(), AnswerTest()
    with bar(f"retrieving with {index.config.retriever}") as show:
        for start in range(0, len(examples), QUESTIONS_AT_ONCE):
            batch = examples[start : start + QUESTIONS_AT_ONCE]
            found = retriever.search([example.question for example in batch], setting.depth)
            for example, ranking in zip(batch, found, strict=True):
                hits = setting.take(ranking, example.id)
                flags = has_answer([hit.passage for hit in hits], example.answers)
                yield make_row(example, hits, flags)
            show(start + len(batch), len(examples))


def _measure(rows: Sequence[Mapping[str, Any]], gold: Gold | None) -> dict[str, float | int | None]:
    """hit@k, and with ``gold`` recall@k, over how many questions, and how many gold qids matched none."""
    flags = [[bool(ctx["hasanswer"]) for ctx in row["ctxs"]] for row in rows]
    measures: dict[str, float | int | None] = {f"hit@{k}": hit_at(k, flags) for k in HIT_AT}
    if gold is not None:
        retrieved = {row["id"]: [ctx["id"] for ctx in row["ctxs"]] for row in rows}
        measures |= {f"recall@{k}": recall_at(k, retrieved, gold.passages) for k in HIT_AT}
        measures |= {"recall_n": len(retrieved.keys() & gold.passages.keys()), "gold_unmatched": gold.unmatched}
    return measures


def _read_manifest(path: Path) -> FrozenManifest:
    manifest = manifest_path(path)
    try:
        return FrozenManifest(**json.loads(manifest.read_text(encoding="utf-8")))
    except (json.JSONDecodeError, UnicodeDecodeError, TypeError) as error:
        raise InputError(f"{manifest} is damaged ({error}); delete it and freeze again") from error
