"""What did the finished runs measure? Reads ``record.json`` files into light, checked, frozen views.

A record is written last and by rename, so a file that does not parse is damage, never a run in progress: it is named
and refused. Only what tables and figures draw on is checked; the rest of the JSON is carried along as it is.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from harness.errors import InputError
from harness.record import SCHEMA_VERSION, experiment_name
from harness.statistics import Interval

PASSAGES_READ = "passages_read"
READ_NOTE = (
    "Read: the mean number of passages that were read, where not all were; whole passages that found no room in the "
    "decoder's context were left out."
)
Source = TypeVar("Source")
Content = TypeVar("Content")

HOW_TO_MAKE_RECORDS = "make some with `refrag-bench run tiny`"


@dataclass(frozen=True, kw_only=True, slots=True)
class Record:
    """One finished run. ``path`` is its ``record.json``; ``root`` names the data root that the suite was read from.

    ``metrics`` hold scores as fractions, not percent, and beside them what answering used, as counts. ``n_errors`` of
    the ``n_examples`` raised and were not scored: they are in no metric's ``n``. ``notes`` are what a reader of its
    numbers must know. ``timings`` are in seconds and bytes, by name.
    """

    path: Path
    run_id: str
    experiments: tuple[str, ...]
    notes: tuple[str, ...]
    suite: str
    root: str
    system: str
    passages: int
    metric_version: int
    spec: Mapping[str, Any]
    metrics: Mapping[str, Interval]
    n_examples: int
    n_errors: int
    n_empty_golds: int
    timings: Mapping[str, Any]
    provenance: Mapping[str, Any]


def read_records(folders: Iterable[Path]) -> list[Record]:
    """Every record below ``folders``, each file once, in the order of path.

    Raises ``InputError`` where ``record_paths`` does, and one naming every file that ``read_record`` refuses.
    """
    return read_each(record_paths(folders), read_record)


def read_each(sources: Iterable[Source], read: Callable[[Source], Content]) -> list[Content]:
    """What ``read`` gives of each. Raises one ``InputError`` with what it says of all that are damaged."""
    contents, damaged = [], []
    for source in sources:
        try:
            contents.append(read(source))
        except InputError as error:
            damaged.append(str(error))
    if damaged:
        raise InputError("; ".join(damaged))
    return contents


def record_paths(folders: Iterable[Path]) -> list[Path]:
    """Where the records below ``folders`` lie, each file once, in order.

    Raises ``InputError`` on a folder that is missing or holds no record.
    """
    paths: set[Path] = set()
    for folder in folders:
        if not folder.is_dir():
            raise InputError(f"no folder {folder} to read records from; {HOW_TO_MAKE_RECORDS}")
        found = {path.resolve() if path.is_symlink() else path for path in folder.resolve().rglob("record.json")}
        if not found:
            raise InputError(f"no record.json below {folder}; {HOW_TO_MAKE_RECORDS}")
        paths |= found
    return sorted(paths)


def read_record(path: Path) -> Record:
    """The record in ``path``. Raises ``InputError`` naming the file if it is damaged or of another schema."""
    try:
        document = json.loads(path.read_bytes(), parse_constant=_refuse_constant)
    except IsADirectoryError:
        raise InputError(f"{path}: expected a record, got a folder") from None
    except ValueError as error:
        raise InputError(f"{path}: not a record, the JSON is damaged ({error})") from None
    version = document.get("schema_version") if isinstance(document, dict) else None
    if version != SCHEMA_VERSION:
        raise InputError(
            f"{path}: expected schema_version {SCHEMA_VERSION}, got {version!r}; "
            "read it with the version of refrag-bench that wrote it, or run it again"
        )
    try:
        json.dumps(document, ensure_ascii=False).encode()  # JSON can say half a character, which nothing can draw
        return _record(path, document)
    except (InputError, KeyError, TypeError, ValueError) as error:
        problem = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        raise InputError(f"{path}: not a whole record, {problem}") from None


def read_of(spec: Mapping[str, Any], read: float | None) -> str:
    """ "read 6.3 of 8": how many passages a run of ``spec`` read in the mean, where it was not all of them; else empty.

    Look-ups have contexts of several lengths, of which the spec names the longest: the passages between what is asked
    and where it stands are the least that any of them has. Articles may have fewer passages than a prompt may hold.
    """
    suite, given, of = spec["suite"], spec["passages"], "of"
    if suite["name"] == "long_range":
        asked = suite.get("settings", {})
        given, of = asked.get("distance", 0) // asked.get("piece", 1), "of at least"
    elif suite["name"].endswith("_summary"):
        of = "of up to"
    if read is None or read >= given:
        return ""
    # Rounded down: what was left out never rounds to nothing.
    return f"read {math.floor(10 * read) / 10:,.1f} {of} {given:,}"


def _record(path: Path, document: Mapping[str, Any]) -> Record:
    spec = _typed(document["spec"], dict, "spec")
    suite = _typed(spec["suite"], dict, "spec.suite")
    metrics = _typed(document["metrics"], dict, "metrics")
    return Record(
        path=path,
        run_id=_typed(document["run_id"], str, "run_id"),
        experiments=tuple(
            experiment_name(_typed(name, str, "experiments"))
            for name in _typed(document["experiments"], list, "experiments")
        ),
        notes=tuple(_typed(note, str, "notes") for note in _typed(document.get("notes", []), list, "notes")),
        suite=_name(suite["name"], "spec.suite.name"),
        root=_typed(suite["root"], str, "spec.suite.root"),
        system=_name(_typed(spec["system"], dict, "spec.system")["name"], "spec.system.name"),
        passages=_count(spec["passages"], "spec.passages"),
        metric_version=_count(spec["metric_version"], "spec.metric_version"),
        spec=spec,
        metrics={name: _metric(metric, f"metrics.{name}") for name, metric in metrics.items()},
        n_examples=_count(document["n_examples"], "n_examples"),
        n_errors=_count(document["n_errors"], "n_errors"),
        n_empty_golds=_count(document["n_empty_golds"], "n_empty_golds"),
        timings=_typed(document.get("timings", {}), dict, "timings"),
        provenance=_typed(document["provenance"], dict, "provenance"),
    )


def _metric(metric: Any, name: str) -> Interval:
    fields = _typed(metric, dict, name)
    mean, low, high = (float(_typed(fields[key], (int, float), f"{name}.{key}")) for key in ("mean", "low", "high"))
    if not all(map(math.isfinite, (mean, low, high))):
        raise ValueError(f"{name}: expected finite numbers, got {mean} [{low}, {high}]")
    return Interval(
        mean=mean,
        low=low,
        high=high,
        n=_count(fields["n"], f"{name}.n"),
        method=_typed(fields["method"], str, f"{name}.method"),
    )


def _name(value: Any, name: str) -> str:
    """A name that a figure can show: no control characters."""
    if not _typed(value, str, name).isprintable():
        raise ValueError(f"{name}: expected printable characters, got {value!r}")
    return str(value)


def _count(value: Any, name: str) -> int:
    if _typed(value, int, name) < 0:
        raise ValueError(f"{name}: expected a count, got {value}")
    return int(value)


def _typed(value: Any, kind: type | tuple[type, ...], name: str) -> Any:
    if not isinstance(value, kind) or isinstance(value, bool):
        raise TypeError(f"{name}: {value!r} is of type {type(value).__name__}")
    return value


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is no number")
