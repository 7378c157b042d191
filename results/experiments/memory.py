"""What is left of a context? Passkey and long-range records as tables, and the two figures of ``memory_figure``.

A passkey record is one system at one length, with a score for every depth; a long-range record one system at one
distance and number of steps. Everything comes from records alone, in an order that does not depend on files or clocks.
"""

from __future__ import annotations

import csv
import io
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.errors import InputError
from harness.statistics import Interval
from results.experiments.accuracy import Row, row_order
from results.experiments.variants import flat
from results.grids import Grid, linked, percent
from results.records import PASSAGES_READ, READ_NOTE, Record, read_of

PASSKEY, LONG_RANGE = "passkey", "long_range"
REFERENCE = "standard_rag"
EM, CHANCE, POSITIONS, DIGITS, OTHER_LINK = "em", "chance", "decoder_positions", "digits", "other_link"


SHOWN = (EM, CHANCE, POSITIONS, DIGITS, OTHER_LINK)


@dataclass(frozen=True, kw_only=True, slots=True)
class Line:
    """One system: its records by length (passkey) or distance (long range)."""

    row: Row
    k: int | None
    records: Mapping[int, Record]

    @property
    def name(self) -> str:
        return self.row.name


def experiments(records: Iterable[Record]) -> list[str]:
    """Those with a record of either suite."""
    return sorted({name for r in records if r.suite in (PASSKEY, LONG_RANGE) for name in r.experiments})


def passkey_lines(records: Sequence[Record], experiment: str, *, keys: int) -> list[Line]:
    """The systems that were asked for one of ``keys`` keys, each at all its lengths."""
    return _lines(
        [r for r in _of(records, experiment, PASSKEY) if settings(r)["keys"] == keys], lambda r: settings(r)["length"]
    )


def long_range_lines(records: Sequence[Record], experiment: str, *, steps: int) -> list[Line]:
    """The systems over questions of ``steps`` look-ups, each at all its distances."""
    return _lines(
        [r for r in _of(records, experiment, LONG_RANGE) if settings(r)["steps"] == steps],
        lambda r: settings(r)["distance"],
    )


def key_counts(records: Sequence[Record], experiment: str) -> list[int]:
    """How many keys the contexts of the experiment have, each number once."""
    return sorted({settings(r)["keys"] for r in _of(records, experiment, PASSKEY)})


def step_counts(records: Sequence[Record], experiment: str) -> list[int]:
    """How many look-ups its questions take, each number once."""
    return sorted({settings(r)["steps"] for r in _of(records, experiment, LONG_RANGE)})


def settings(record: Record) -> Mapping[str, Any]:
    """What the suite made its questions by. Raises ``InputError`` where the record does not say."""
    found: Mapping[str, Any] | None = record.spec["suite"].get("settings")
    if found is None:
        raise InputError(f"{record.path}: a record of suite {record.suite} without spec.suite.settings; run it again")
    return found


def depths(record: Record) -> dict[int, Interval]:
    """The score at each depth in percent."""
    return {int(name.split("@")[1]): score for name, score in record.metrics.items() if name.startswith(f"{EM}@")}


def _of(records: Sequence[Record], experiment: str, suite: str) -> list[Record]:
    return [r for r in records if experiment in r.experiments and r.suite == suite]


def _lines(records: Sequence[Record], place: Callable[[Record], int]) -> list[Line]:
    """A line for every system and k, and for every setting of it that two records at one place do not share."""
    telling = _telling(records, place)
    found: dict[tuple[str, int | None, str], dict[int, Record]] = {}
    for record in sorted(records, key=lambda r: r.run_id):
        config = _config(record)
        k = record.spec["system"]["config"].get("k")
        named = [*(["k"] if k else []), *telling[record.system]]
        variant = ", ".join(f"{name}={config.get(name, 'unset')}" for name in named)
        at = found.setdefault((record.system, k, variant), {})
        if (other := at.setdefault(place(record), record)).run_id != record.run_id:
            raise InputError(f"two records for one cell: {other.path} and {record.path}; give only one of them")
    lines = [
        Line(row=Row(system=system, variant=variant, passages=0), k=k, records=dict(sorted(at.items())))
        for (system, k, variant), at in found.items()
    ]
    return sorted(lines, key=lambda line: row_order(line.row))


def _telling(records: Sequence[Record], place: Callable[[Record], int]) -> dict[str, list[str]]:
    """Of each system the settings, beside k, in which two of its records at one place differ."""
    telling: dict[str, set[str]] = {record.system: set() for record in records}
    for one, other in itertools.combinations(records, 2):
        if (one.system, place(one)) == (other.system, place(other)):
            before, after = _config(one), _config(other)
            if before.get("k") == after.get("k"):
                telling[one.system] |= {name for name in {*before, *after} if before.get(name) != after.get(name)}
    return {system: sorted(names) for system, names in telling.items()}


def _config(record: Record) -> dict[str, str]:
    return dict(flat(record.spec["system"]["config"]))


def by_length(lines: Sequence[Line], experiment: str, keys: int, trained: int, folder: Path) -> Grid:
    """Exact match over all depths against the length of the context."""
    lengths = sorted({length for line in lines for length in line.records})
    first = next(iter(lines[0].records.values()))
    notes = [
        _scored(lines),
        f"Trained on contexts of up to {trained:,} tokens. A length counts the decoder tokens of the passages' text.",
        f"Depths {', '.join(map(str, sorted(depths(first))))} %, {settings(first)['digits']} digits.",
    ]
    notes += _unread(lines)
    if keys > 1:
        notes.append(f"{keys} keys in every context: a reader that takes any of them scores {percent(1 / keys)}.")
    return Grid(
        title=f"{experiment}: {_keys(keys)}, exact match (%) by tokens of context",
        head=["System", *(f"{length:,}" for length in lengths)],
        lines=[[line.name, *(_score(line.records.get(length), folder) for length in lengths)] for line in lines],
        notes=notes,
    )


def at_equal_positions(lines: Sequence[Line], experiment: str, folder: Path) -> Grid | None:
    """Standard RAG at L tokens beside systems of rate k at k L: as many decoder positions, but for the markup.

    None where no system has both.
    """
    reference = next((line for line in lines if line.row.system == REFERENCE), None)
    compressed = [line for line in lines if line.k]
    if reference is None or not compressed:
        return None
    lengths = [n for n in reference.records if any(n * (line.k or 1) in line.records for line in compressed)]
    if not lengths:
        return None
    rows = []
    for length in lengths:
        cells = [_placed(reference.records[length], folder)]
        cells += [_placed(line.records.get(length * (line.k or 1)), folder) for line in compressed]
        rows.append([f"{length:,}", *cells])
    return Grid(
        title=f"{experiment}: exact match (%) at equal decoder positions",
        head=["L", f"{reference.name}, L tokens", *(f"{line.name}, {line.k} L" for line in compressed)],
        lines=rows,
        notes=[
            _scored(lines),
            "After @: the decoder positions of the prompt. A passage's tag is a position for every system, so they "
            "differ by the tags.",
            *_unread(lines),
        ],
    )


def by_distance(lines: Sequence[Line], experiment: str, steps: int, trained: int, folder: Path) -> Grid:
    """Exact match against the distance of what is looked up, with the chance line."""
    distances = sorted({distance for line in lines for distance in line.records})
    scored = [[line.records[d].metrics for line in lines if d in line.records] for d in distances]
    chances = [next((metrics[CHANCE].mean for metrics in each if CHANCE in metrics), None) for each in scored]
    body = [[line.name, *(_score(line.records.get(d), folder) for d in distances)] for line in lines]
    return Grid(
        title=f"{experiment}: look-ups of {_steps(steps)}, exact match (%) by distance in tokens",
        head=["System", *(f"{distance:,}" for distance in distances)],
        lines=[*body, ["Chance", *("-" if chance is None else percent(chance) for chance in chances)]],
        notes=[
            _scored(lines),
            f"Trained at distances of up to {trained:,} tokens.",
            "Chance: a value of the asked relation, of whomever. A reader that follows one of the two links at random "
            "has half of the answers.",
            *_unread(lines),
        ],
    )


def to_csv(records: Sequence[Record], experiment: str) -> str:
    """Every score of both suites, one a line; fractions as the records have them."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(
        ["suite", "system", "k", "keys_or_steps", "tokens", "metric", "mean", "low", "high", "n", "method", "run_id"]
    )
    asked = [
        (PASSKEY, n, line)
        for n in key_counts(records, experiment)
        for line in passkey_lines(records, experiment, keys=n)
    ] + [
        (LONG_RANGE, n, line)
        for n in step_counts(records, experiment)
        for line in long_range_lines(records, experiment, steps=n)
    ]
    for suite, count, line in asked:
        for tokens, record in line.records.items():
            for name, score in record.metrics.items():
                if name.split("@")[0] in SHOWN:
                    numbers = (score.mean, score.low, score.high, score.n, score.method, record.run_id)
                    writer.writerow([suite, line.row.system, line.k or "", count, tokens, name, *numbers])
    return out.getvalue()


def _scored(lines: Sequence[Line]) -> str:
    counts = sorted({r.metrics[EM].n for line in lines for r in line.records.values() if EM in r.metrics})
    return f"Brackets: the 95 % interval (wilson) over n = {', '.join(map(str, counts))} contexts a cell."


def _unread(lines: Sequence[Line]) -> list[str]:
    """The note on contexts that were not read whole, where there are some."""
    return [READ_NOTE] if any(_read(record) for line in lines for record in line.records.values()) else []


def _score(record: Record | None, folder: Path) -> str:
    if record is None:
        return "-"
    score = record.metrics.get(EM)
    if score is None:
        return linked("errors", record.path, folder)
    read = f" ({read})" if (read := _read(record)) else ""
    return linked(f"{percent(score.mean)} [{percent(score.low)}, {percent(score.high)}]{read}", record.path, folder)


def _read(record: Record) -> str:
    read = record.metrics.get(PASSAGES_READ)
    return read_of(record.spec, read.mean if read else None)


def _placed(record: Record | None, folder: Path) -> str:
    positions = record.metrics.get(POSITIONS) if record else None
    return _score(record, folder) + (f" @{positions.mean:,.0f}" if positions else "")


def _keys(keys: int) -> str:
    return "passkey" if keys == 1 else f"passkey among {keys}"


def _steps(steps: int) -> str:
    return "one step" if steps == 1 else f"{steps} steps"
