"""What holds for anything: splicing, the journal, metrics and digests, on inputs that nobody chose.

Chunks and layouts have theirs beside their examples (test_chunking.py, test_chunk_rows.py).
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_chunk_rows import PAD, laid_out

from harness.config import digest
from harness.errors import InputError
from harness.metrics import (
    BINARY,
    DIALECTS,
    dpr_tokens,
    f1_squad,
    f1_triviaqa,
    normalise_squad,
    normalise_squad_re,
    normalise_triviaqa,
    score_answer,
)
from harness.model.chunking import WINDOWS, Window, encoder_inputs, split
from harness.model.splice import chunk_code, splice
from harness.record import Journal, read_rows
from harness.train.rows import Block, Row

FEW = settings(max_examples=60)


# Chunks, by loops


@FEW
@given(
    passages=st.lists(st.lists(st.integers(0, 900), max_size=9), max_size=5),
    k=st.integers(1, 30),
    window=st.sampled_from(WINDOWS),
)
def test_encoder_inputs_are_those_of_a_loop(passages: list[list[int]], k: int, window: Window) -> None:
    rows: list[list[tuple[int, int]]] = []
    number = 0
    for passage in passages:
        row: list[tuple[int, int]] = []
        for piece in split(passage, k):
            pairs = [(token, number) for token in piece]
            number += 1
            if window == "chunk":
                rows.append(pairs)
            row += pairs
        if window == "passage" and row:
            rows.append(row)
    width = max(map(len, rows), default=0)
    inputs = encoder_inputs(passages, k, window, PAD)
    assert tuple(inputs.ids_NS.shape) == (len(rows), width)
    for index, row in enumerate(rows):
        rest = width - len(row)
        assert inputs.ids_NS[index].tolist() == [token for token, _ in row] + [PAD] * rest
        assert inputs.chunk_NS[index].tolist() == [chunk for _, chunk in row] + [-1] * rest
        assert inputs.mask_NS[index].tolist() == [True] * len(row) + [False] * rest


def test_a_layout_of_rows_without_any_text_has_no_chunk() -> None:
    rows = [Row([1], [Block([4], []), Block([], [])], [7], [True]), Row([], [], [8, 9], [False, True])]
    batch = laid_out(rows, 100)
    assert batch["input_ids"].tolist() == [[1, 4, 7], [8, 9, PAD]]
    assert (batch["chunk"] == -1).all() and not batch["chunk_start"].any()
    assert batch["n_chunks"].tolist() == [0, 0] and batch["encoder_ids"].numel() == 0


# Splicing


TABLE = torch.nn.Embedding(30, 4)
CHUNKS = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
CODE = st.integers(0, 29) | st.integers(0, 5).map(chunk_code)


@FEW
@given(rows=st.lists(st.lists(CODE, min_size=1, max_size=12), min_size=1, max_size=5))
def test_every_position_is_its_code(rows: list[list[int]]) -> None:
    inputs, mask = splice(rows, CHUNKS, TABLE, pad_id=0)
    width = max(map(len, rows))
    for row, got, real in zip(rows, inputs, mask, strict=True):
        assert real.tolist() == [False] * (width - len(row)) + [True] * len(row)
        for code, at in zip(row, got[real], strict=True):
            assert torch.equal(at, TABLE.weight[code] if code >= 0 else CHUNKS[-1 - code])


# The journal


TEXT = st.text(st.characters(exclude_categories=("Cs",)), max_size=12)
ROWS = st.lists(st.fixed_dictionaries({"id": TEXT, "prediction": TEXT, "score": st.floats(0, 1)}), max_size=3)


@FEW
@given(calls=st.lists(ROWS, max_size=6), cuts=st.lists(st.integers(0, 80), max_size=3))
def test_a_cut_journal_is_a_beginning_and_goes_on(calls: list[list[dict[str, Any]]], cuts: list[int]) -> None:
    """Any appends, any bytes lost at the end: whole rows are read back as they were, and the rest can follow."""
    said = [row for rows in calls for row in rows]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "j.jsonl"
        with Journal(path, "r") as journal:
            for rows in calls:
                journal.append(rows)
        whole = path.read_bytes()
        assert [{"run_id": "r", "i": i, **row} for i, row in enumerate(said)] == read_rows(path, "r")
        for cut in cuts:
            with path.open("r+b") as file:
                file.truncate(max(0, path.stat().st_size - cut))
            with Journal(path, "r") as journal:
                kept = len(journal.rows)
                assert journal.rows == [{"run_id": "r", "i": i, **row} for i, row in enumerate(said[:kept])]
                assert path.read_bytes() == b"".join(whole.splitlines(keepends=True)[:kept])
                journal.append(said[kept:])
            assert path.read_bytes() == whole


@FEW
@given(rows=ROWS.filter(bool), at=st.integers(0, 10**6), to=st.binary(min_size=1, max_size=3))
def test_no_damage_within_a_journal_costs_or_makes_a_row(rows: list[dict[str, Any]], at: int, to: bytes) -> None:
    """Other bytes in place of one are refused, or (within a text: rows have no checksum) the rows stay as many."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "j.jsonl"
        with Journal(path, "r") as journal:
            journal.append(rows)
        data = path.read_bytes()
        at %= len(data) - 1
        path.write_bytes(data[:at] + to + data[at + 1 :])
        try:
            found = read_rows(path, "r")
        except InputError:
            return
        assert [(row["run_id"], row["i"]) for row in found] == [("r", i) for i in range(len(rows))]


@FEW
@given(rows=ROWS.filter(bool), data=st.data())
def test_a_journal_whose_lines_were_lost_doubled_or_moved_is_refused(
    rows: list[dict[str, Any]], data: st.DataObject
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "j.jsonl"
        with Journal(path, "r") as journal:
            journal.append(rows)
        lines = path.read_bytes().splitlines(keepends=True)
        order = data.draw(st.lists(st.integers(0, len(lines) - 1), max_size=5))
        path.write_bytes(b"".join(lines[number] for number in order))
        if order == list(range(len(order))):
            assert len(read_rows(path, "r")) == len(order)
            return
        for read in (lambda: read_rows(path, "r"), lambda: Journal(path, "r").__enter__()):
            try:
                read()
            except InputError:
                continue
            raise AssertionError(f"lines {order} were read")


# Metrics


WORDS = st.lists(st.sampled_from(["the", "a", "Iran", "Ira", "42", "yes", "no", "-", "\u00e9", "İ"]), max_size=5)
ANSWER = WORDS.map(" ".join) | st.text(max_size=12)


@FEW
@given(prediction=ANSWER, golds=st.lists(ANSWER, min_size=1, max_size=4), seed=st.randoms(use_true_random=False))
def test_scores_are_bounded_and_the_order_of_golds_is_none_of_them(
    prediction: str, golds: list[str], seed: Any
) -> None:
    scores = score_answer(prediction, golds)
    assert scores.keys() == DIALECTS
    assert all(0 <= score <= 1 for score in scores.values())
    assert all(scores[name] in (0, 1) for name in BINARY)
    shuffled = golds[:]
    seed.shuffle(shuffled)
    assert score_answer(prediction, shuffled) == scores
    more = score_answer(prediction, [*golds, "something else"])
    assert all(more[name] >= scores[name] for name in DIALECTS - {"em_lmeval_nq", "em_lmeval_triviaqa"})


@FEW
@given(one=ANSWER, other=ANSWER)
def test_f1_is_symmetric(one: str, other: str) -> None:
    for f1 in (f1_squad, f1_triviaqa):
        assert abs(f1(one, [other]) - f1(other, [one])) < 1e-12


@FEW
@given(text=WORDS.map(" ".join))
def test_normalising_twice_is_normalising_once(text: str) -> None:
    for normalise in (normalise_squad, normalise_squad_re, normalise_triviaqa):
        assert normalise(normalise(text)) == normalise(text)
    assert dpr_tokens(dpr_tokens(text)) == dpr_tokens(text)


# Digests


@dataclass(frozen=True)
class Inner:
    rate: float
    names: tuple[str, ...]


@dataclass(frozen=True)
class Outer:
    k: int
    inner: Inner
    more: dict[str, int]


FLOAT = st.floats(allow_nan=False, allow_infinity=False)
OUTER = st.builds(
    Outer, st.integers(), st.builds(Inner, FLOAT, st.lists(TEXT, max_size=3).map(tuple)),
    st.dictionaries(TEXT, st.integers(), max_size=4),
)  # fmt: skip


@FEW
@given(value=OUTER, rate=FLOAT, name=TEXT)
def test_a_changed_value_anywhere_changes_the_digest(value: Outer, rate: float, name: str) -> None:
    before = digest(value)
    assert digest(replace(value, k=value.k + 1)) != before
    assert digest(replace(value, inner=replace(value.inner, names=(*value.inner.names, name)))) != before
    assert digest(replace(value, more={**value.more, name: value.more.get(name, 0) + 1})) != before
    assert (digest(replace(value, inner=replace(value.inner, rate=rate))) == before) == (
        repr(rate) == repr(value.inner.rate)
    )


@FEW
@given(value=OUTER)
def test_the_order_of_keys_does_not_change_a_nested_digest(value: Outer) -> None:
    assert digest(replace(value, more=dict(reversed(value.more.items())))) == digest(value)
