"""What tells two runs of one system apart, when both would fill the same cell of a table?

Only a setting can, of the system, of how it was run, or of a suite that has some (its k, its checkpoint, the seed, the
retriever, how many of the questions it got, the place of the right passage). Other questions or other passages under
the same name and limit cannot: that is a mistake of whoever put the records together, and is refused.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from harness.errors import InputError
from results.records import Record

Settings = Mapping[str, str]  # a spec with dotted keys and its values as text

_LIMIT = "suite.limit"
_OWN = ("suite.settings.", "system.config.")
_SECTION = re.compile(r"^(suite(\.settings)?|system(\.config)?)\.")
_WHAT_IS_ASKED = re.compile(rf"(?!{re.escape(_LIMIT)}$|suite\.settings\.)suite\.|retrieval\.digest$")


def variants(records: Sequence[Record]) -> dict[Path, str]:
    """For every record (by path) the words that tell it from others of its system: ``k=16``, ``limit=5``, or empty.

    Copies of one record may share a cell. Raises ``InputError`` naming two records that share one and cannot be told
    apart.
    """
    names: dict[Path, str] = {}
    settings = {record.path: _settings(record) for record in records}
    for system in {record.system for record in records}:
        of_system = [record for record in records if record.system == system]
        cells = _sharing_a_cell(of_system)
        keys = _telling_keys(cells, settings)
        for record in of_system:
            names[record.path] = _name(settings[record.path], keys)
        for first, second in _pairs(cells):
            if names[first.path] == names[second.path]:
                _refuse_unless_copies(first, second, settings)
    return names


def told_apart(cells: Sequence[Sequence[Mapping[str, Any]]]) -> list[list[str]]:
    """The same words for specs of runs of one system, by cell; runs that only the questions tell apart get none."""
    settings = [[dict(flat(spec)) for spec in cell] for cell in cells]
    pairs = [pair for cell in settings for pair in itertools.combinations(cell, 2)]
    keys = _keys([(first == second, _differing(first, second)) for first, second in pairs])
    return [[_name(one, keys) for one in cell] for cell in settings]


def _telling_keys(cells: Sequence[Sequence[Record]], settings: Mapping[Path, Settings]) -> list[str]:
    """Settings that differ between runs sharing a cell; the limit and those of suite and system where they suffice."""
    pairs = [
        (first.run_id == second.run_id, _differing(settings[first.path], settings[second.path]))
        for first, second in _pairs(cells)
    ]
    return _keys(pairs)


def _keys(pairs: Sequence[tuple[bool, Sequence[str]]]) -> list[str]:
    """Those of ``pairs`` of runs in a cell; of each, whether they are one run, and the settings that differ."""
    keys = {key for _, unlike in pairs for key in unlike if not _WHAT_IS_ASKED.match(key)}
    own = {key for key in keys if key == _LIMIT or key.startswith(_OWN)}
    enough = all(same_run or own & set(unlike) for same_run, unlike in pairs)
    return sorted(own if enough else keys)


def _sharing_a_cell(records: Sequence[Record]) -> list[list[Record]]:
    cells: dict[tuple[int, str, str], list[Record]] = {}
    for record in records:
        cells.setdefault((record.passages, record.suite, record.root), []).append(record)
    return list(cells.values())


def _pairs(cells: Sequence[Sequence[Record]]) -> list[tuple[Record, Record]]:
    return [pair for cell in cells for pair in itertools.combinations(cell, 2)]


def _name(settings: Settings, keys: Sequence[str]) -> str:
    said = [key for key in keys if key in settings]
    if settings.get(_LIMIT) == "null":  # A run on all questions needs no words.
        said = [key for key in said if key != _LIMIT]
    return ", ".join(f"{_SECTION.sub('', key)}={settings[key]}" for key in said)


def _refuse_unless_copies(first: Record, second: Record, settings: Mapping[Path, Settings]) -> None:
    if (first.run_id, first.metrics, first.n_errors) == (second.run_id, second.metrics, second.n_errors):
        return
    before, after = settings[first.path], settings[second.path]
    said = ", ".join(
        f"{key}: {before.get(key, 'unset')} against {after.get(key, 'unset')}" for key in _differing(before, after)
    )
    raise InputError(
        f"two records for one cell: {first.path} and {second.path} (they differ in {said or 'their scores only'}); "
        "give only one of them to --records"
    )


def _differing(before: Settings, after: Settings) -> list[str]:
    return sorted(key for key in before.keys() | after.keys() if before.get(key) != after.get(key))


def _settings(record: Record) -> Settings:
    """The spec with dotted keys (``system.config.k``) and its values as text."""
    return dict(flat(record.spec))


def flat(value: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, str]]:
    """The leaves of nested mappings, in the order of their dotted keys, each value as text."""
    for key, item in sorted(value.items()):
        if isinstance(item, Mapping):
            yield from flat(item, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", item if isinstance(item, str) else json.dumps(item, sort_keys=True)
