"""Which passages are known to be right: the ``qrels`` of a data root, under our question ids.

A mirror's ``qrels/<suite>.gold.tsv`` has lines ``qid 0 pid label``; label 1 is a gold passage that holds an answer.
Where a qid is not one of our ids (the NQ files number rows, and public files order the rows differently), the
question's text links them: the ``ctxs/<suite>_ctxs*`` files carry both.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from harness.config import digest
from harness.data.sources import DataRoot
from harness.errors import InputError
from harness.protocol import Example
from harness.retrieval.rows import read_rows


@dataclass(frozen=True, kw_only=True)
class Gold:
    """Gold passage ids by example id; ``unmatched`` counts the qids that no question could be found for."""

    passages: Mapping[str, frozenset[str]]
    unmatched: int

    def digest(self) -> str:
        """The name of these gold passages: what a recall was measured against."""
        return digest([{name: sorted(gold) for name, gold in self.passages.items()}, self.unmatched])


def read_gold(suite: str, root: DataRoot, examples: Iterable[Example]) -> Gold | None:
    """The gold passages of ``examples`` in the corpus of ``root``; None where the root has no qrels for ``suite``.

    ``examples`` is the whole suite: a qid outside it is unmatched. Raises ``InputError`` naming a malformed line,
    or when the file is not UTF-8.
    """
    path = root.file(f"qrels/{suite}.gold.tsv")
    if path is None or root.path is None:
        return None
    ids = {example.id for example in examples}
    by_question = {example.question: example.id for example in examples}
    linked = {
        row.id: by_question[row.question]
        for file in sorted((root.path / "ctxs").glob(f"{suite}_ctxs*"))
        for row in read_rows(file)[0]
        if row.question in by_question
    }
    found: dict[str, set[str]] = {}
    unmatched: set[str] = set()
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise InputError(f"expected UTF-8 text in {path}, cannot read it ({error})") from error
    for number, line in enumerate(lines, start=1):
        fields = line.split("\t")
        if len(fields) != 4:
            raise InputError(f"{path.name}, line {number}: expected qid, 0, pid and label between tabs, got {line!r}")
        qid, _, passage, label = fields
        name = qid if qid in ids else linked.get(qid)
        if name is None:
            unmatched.add(qid)
        elif label == "1":
            found.setdefault(name, set()).add(passage)
    return Gold(passages={name: frozenset(gold) for name, gold in found.items()}, unmatched=len(unmatched))
