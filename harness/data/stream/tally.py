"""What was read, what was left out, and is it too much? Nothing bad is fatal by itself; a share of it is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from harness.errors import InputError

SHARDS: Mapping[str, str] = {
    "shard_unreadable": "files that could not be read at all",
    "shard_truncated": "files that ended early or broke in the middle; what came before is in",
}
ROWS: Mapping[str, str] = {
    "not_json": "lines that are no JSON object",
    "invalid_utf8": "rows whose text is no Unicode",
    "no_text": "rows without a text in the column of texts",
    "no_set": "rows that do not name their set",
    "empty": "documents of nothing but white space",
}
SHORT = "too_short"
NAMED, REST = 64, "..."
KINDS: Mapping[str, str] = {**SHARDS, **ROWS, SHORT: "documents with fewer tokens than a window"}


@dataclass(kw_only=True)
class Tally:
    """Counts of files, rows, documents of the wanted sets, rows of the others, and of what was dropped, with the first of
    each kind."""

    shards: int = 0
    rows: int = 0
    other_sets: Counter[str] = field(default_factory=Counter)
    documents: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    first: dict[str, str] = field(default_factory=dict)

    def drop(self, kind: str, where: str) -> None:
        """``where`` says which one, and what is wrong with it."""
        assert kind in KINDS
        self.dropped[kind] += 1
        self.first.setdefault(kind, where)

    def leave(self, name: str, count: int = 1) -> None:
        """``count`` rows of a set that is not wanted; of a text with very many sets, not all by name."""
        self.other_sets[name if name in self.other_sets or len(self.other_sets) < NAMED else REST] += count

    def add(self, other: Tally) -> None:
        """Take in what came after."""
        self.shards += other.shards
        self.rows += other.rows
        for name, count in other.other_sets.items():
            self.leave(name, count)
        self.documents += other.documents
        self.dropped.update(other.dropped)
        self.first = {**other.first, **self.first}

    def to_json(self) -> dict[str, Any]:
        """Kinds in the order of ``KINDS``, so that equal tallies are equal bytes."""
        there = [kind for kind in KINDS if self.dropped[kind]]
        return {
            "shards": self.shards,
            "rows": self.rows,
            "other_sets": dict(sorted(self.other_sets.items())),
            "documents": self.documents,
            "dropped": {kind: self.dropped[kind] for kind in there},
            "first": {kind: self.first[kind] for kind in there},
        }

    @classmethod
    def of_json(cls, found: Mapping[str, Any]) -> Tally:
        counters = {key: Counter(found[key]) for key in ("other_sets", "dropped")}
        return cls(**{**found, **counters, "first": dict(found["first"])})

    def check(self, most_bad: float, most_short: float) -> None:
        """Raises ``InputError`` where the bad are more than ``most_bad`` of the files or of the rows, or the documents
        that fill no window more than ``most_short`` of the documents."""
        for what, kinds, of in (("files", SHARDS, self.shards), ("rows", ROWS, self.rows)):
            self._bound(f"bad {what}", kinds, of, "--most-bad", most_bad)
        self._bound("documents too short for a window", {SHORT: ""}, self.documents, "--most-short", most_short)

    def _bound(self, what: str, kinds: Mapping[str, str], of: int, option: str, most: float) -> None:
        found = {kind: self.dropped[kind] for kind in kinds if self.dropped[kind]}
        count = sum(found.values())
        if count > most * of:
            worst = max(found, key=found.__getitem__)
            raise InputError(
                f"{count:,} {what} of {of:,}, more than the share of {most:g} that {option} allows; most are {worst}, "
                f"the first of them {self.first[worst]}"
            )
