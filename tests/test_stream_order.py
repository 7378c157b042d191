"""The order of windows: a permutation that no one stores, mixtures that come out exactly, batches that ranks share."""

from __future__ import annotations

import json
import random
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from harness.data.stream.mixture import parse_mixture, windows_of
from harness.data.stream.order import Order, permute
from harness.data.stream.packing import Shard
from harness.data.stream.window_practice import Stream, WindowParagraph, WindowRepeating
from harness.data.stream.windows import FORMAT, MANIFEST, SHARDS, Windows, tokenizer_digest
from harness.data.world.practice import Growing
from harness.data.world.tokenizer import build_tokenizer
from harness.errors import InputError
from harness.train.rows import Batch, Row
from refrag_v2.paper_scale import LENGTH as LENGTH_PLANNED
from refrag_v2.paper_scale import STAGES
from refrag_v2.paper_stages import PAPER

tokenizer = cache(build_tokenizer)
LENGTH = 12
GOLDEN_10 = [2, 3, 7, 6, 4, 1, 8, 0, 5, 9]
GOLDEN_FAR = [265069009312, 973665141865, 434483096546]


# --- the permutation


@pytest.mark.parametrize("n", [1, 2, 3, 17, 255, 256, 257, 1000, 65_537])
def test_every_place_has_a_window_of_its_own(n: int) -> None:
    moved = permute(np.arange(n), n, "0/0")
    assert np.array_equal(np.sort(moved), np.arange(n))
    some = np.array([n - 1, 0, n // 2])
    assert np.array_equal(permute(some, n, "0/0"), moved[some]), "a place does not depend on those asked with it"


def test_the_order_is_the_same_for_ever() -> None:
    """A checkpoint stands at a place of it: under another order, windows would come twice or never."""
    assert permute(np.arange(10), 10, "0/0").tolist() == GOLDEN_10
    assert permute(np.array([0, 1, 10**12]), 10**12 + 1, "7/3").tolist() == GOLDEN_FAR


def test_it_is_as_even_as_chance() -> None:
    """Every place is as likely to get every window, and neighbours do not stay together."""
    keys, n = 600, 40
    images = np.array([permute(np.arange(n), n, f"{key}/0") for key in range(keys)])
    counts = np.array([np.bincount(images[:, place], minlength=n) for place in range(n)])
    chi_squared, degrees = ((counts - keys / n) ** 2 / (keys / n)).sum(), (n - 1) ** 2
    assert abs(chi_squared - degrees) < 5 * np.sqrt(2 * degrees)
    assert len({tuple(row) for row in images.tolist()}) == keys
    moved = permute(np.arange(100_000), 100_000, "1/0")
    assert (np.abs(np.diff(moved)) == 1).sum() < 12
    assert abs(np.corrcoef(np.arange(100_000), moved)[0, 1]) < 0.02


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    def epoch(seed: int, number: int) -> list[int]:
        order = Order({"a": 500}, None, seed)
        return order.at(np.arange(500) + 500 * number)[1].tolist()

    orders = [epoch(0, 0), epoch(0, 1), epoch(1, 0), epoch(1, 1)]
    assert all(sorted(each) == list(range(500)) for each in orders)
    assert len({tuple(each) for each in orders}) == 4
    assert max(sum(a == b for a, b in zip(x, y, strict=True)) for x in orders for y in orders if x is not y) < 12


def test_a_place_costs_the_same_wherever_it_lies() -> None:
    order = Order({"a": 10**15, "b": 10**14}, None, 0)
    chosen, numbers = order.at(np.array([0, 10**15, 5 * 10**16]))
    assert ((numbers >= 0) & (numbers < np.array([10**15, 10**14])[chosen])).all()


# --- mixtures


def test_mixtures_are_read_as_shares() -> None:
    assert parse_mixture(None, ("a",)) is None
    assert parse_mixture("50/50-by-tokens", ("a", "b")) == {"a": 0.5, "b": 0.5}
    assert parse_mixture("3/1-by-tokens", ("a", "b")) == {"a": 0.75, "b": 0.25}
    for wrong in ("50/50", "half-by-tokens", "50/0-by-tokens", "50/nan-by-tokens", "-by-tokens", "inf/1-by-tokens"):
        with pytest.raises(InputError, match="expected a mixture such as 50/50-by-tokens"):
            parse_mixture(wrong, ("a", "b"))
    with pytest.raises(InputError, match="a share for each of --sets, 1, got 2"):
        parse_mixture("50/50-by-tokens", ("a",))


def test_a_mixture_takes_all_that_it_can() -> None:
    assert windows_of({"a": 10, "b": 30}, None) == {"a": 10, "b": 30}
    assert windows_of({"a": 10, "b": 30}, {"a": 0.5, "b": 0.5}) == {"a": 10, "b": 10}
    assert windows_of({"a": 10, "b": 30}, {"a": 0.25, "b": 0.75}) == {"a": 10, "b": 30}
    assert windows_of({"a": 3, "b": 3, "c": 9}, dict.fromkeys("abc", 1 / 3)) == {"a": 3, "b": 3, "c": 3}
    assert windows_of({"a": 10, "b": 30}, {"a": 1.0}) == {"a": 10}
    with pytest.raises(InputError, match="leaves no window of a"):
        Order({"a": 3, "b": 3}, {"a": 0.1, "b": 0.9}, 0)


def test_every_epoch_keeps_the_mixture_and_all_of_a_set_is_used_evenly() -> None:
    order = Order({"a": 20, "b": 70}, {"a": 0.5, "b": 0.5}, 3)
    assert order.epoch_windows == 40
    used: Counter[tuple[int, int]] = Counter()
    orders = set()
    for epoch in range(7):
        chosen, numbers = order.at(np.arange(40) + 40 * epoch)
        epoch_windows = Counter(zip(chosen.tolist(), numbers.tolist(), strict=True))
        assert max(epoch_windows.values()) == 1
        assert Counter(chosen.tolist()) == {0: 20, 1: 20}
        orders.add(tuple(chosen.tolist()))
        used += epoch_windows
    assert len(orders) == 7, "the sets stand otherwise in every epoch"
    assert {used[0, n] for n in range(20)} == {7}
    assert {used[1, n] for n in range(70)} == {2}, "7 epochs of 20 windows are two passes over 70"


# --- batches


def write_windows(folder: Path, sizes: dict[str, list[int]], mixture: dict[str, float] | None = None) -> Path:
    """Shards of so many windows each; a window holds its own number, and then of each token the set and the place."""
    (folder / SHARDS).mkdir(parents=True)
    shards, number = [], 0
    for index, (name, counts) in enumerate(sizes.items()):
        for part, count in enumerate(counts):
            with Shard(folder / SHARDS / f"{part}-{name}.npy", LENGTH, "<u2") as shard:
                rows = np.full((count, LENGTH), index + 1, "<u2") * 100 + np.arange(LENGTH, dtype="<u2")
                rows[:, 0] = number + np.arange(count)
                shard.write(rows)
            number += count
            shards.append({"set": name, **shard.report()})
    manifest = {
        "format": FORMAT,
        "layout": {"context": 8, "output": 4, "length": LENGTH},
        "dtype": "<u2",
        "tokenizer": {"digest": tokenizer_digest(tokenizer())},
        "mixture": mixture,
        "shards": shards,
        "digest": folder.name,
    }
    (folder / MANIFEST).write_text(json.dumps(manifest))
    return folder


def ids_alone(rows: list[Row], rngs: list[random.Random]) -> Batch:
    """What rows hold, start and passages apart, and what a row draws."""
    ids = [[t for block in row.context for t in block.text] + row.tail for row in rows]
    assert all(row.start == [tokenizer().bos_token_id] for row in rows)
    return {"ids": torch.tensor(ids), "drawn": torch.tensor([rng.random() for rng in rngs])}


def stream(folder: Path, *, rows: int = 7, seed: int = 0) -> Stream:
    exercise = WindowParagraph(context=8, output=4, rows=rows).over(folder)
    return Stream(exercise, tokenizer(), ids_alone, seed=seed)


def drawn(folder: Path, state: dict[str, Any], world: int, batches: int, **settings: int) -> tuple[list[Any], Any]:
    """The rows (number, what was drawn) of so many batches by ``world`` processes, by batch and rank; and the state."""
    ranks = [stream(folder, **settings) for _ in range(world)]
    for each in ranks:
        each.load_state_dict(state)
    rows = []
    for _ in range(batches):
        for rank, each in enumerate(ranks):
            batch, counts = each.own(rank, world)
            rows += list(zip(batch["ids"][:, 0].tolist(), batch["drawn"].tolist(), strict=True)) if counts else []
    states = [each.state_dict() for each in ranks]
    assert all(each == states[0] for each in states)
    return rows, json.loads(json.dumps(states[0]))


SIZES = {"arxiv": [5, 11, 1], "book": [30, 9]}


@pytest.mark.parametrize(("first", "second"), [(4, 4), (4, 2), (2, 4), (1, 3)])
def test_a_pass_is_every_window_once_whatever_the_ranks(tmp_path: Path, first: int, second: int) -> None:
    """56 windows in 8 batches of 7: some by ``first`` ranks, then a resume with ``second``; and one rank alone."""
    folder = write_windows(tmp_path / "w", SIZES)
    start = stream(folder).state_dict()
    whole, end = drawn(folder, start, 1, 8)
    before, state = drawn(folder, start, first, 3)
    after, state = drawn(folder, state, second, 5)
    assert sorted(number for number, _ in before + after) == list(range(56))
    assert before + after == whole, "the order is one, and so is what is random in a row"
    assert state == end and state["place"] == 56 and state["epoch"] == 1


def test_an_epoch_goes_on_into_the_next_within_a_batch(tmp_path: Path) -> None:
    folder = write_windows(tmp_path / "w", SIZES)
    rows, _ = drawn(folder, stream(folder, rows=10).state_dict(), 3, 28, rows=10)  # 280 windows are five passes
    passes = [[number for number, _ in rows[i : i + 56]] for i in range(0, 280, 56)]
    assert all(sorted(each) == list(range(56)) for each in passes)
    assert len({tuple(each) for each in passes}) == 5
    assert len({draw for _, draw in rows}) == 280, "the same window draws otherwise in another epoch"


def test_more_ranks_than_rows(tmp_path: Path) -> None:
    folder = write_windows(tmp_path / "w", SIZES)
    assert drawn(folder, stream(folder).state_dict(), 9, 8) == drawn(folder, stream(folder).state_dict(), 1, 8)


def test_rows_are_windows_of_one_set_whole_and_in_order(tmp_path: Path) -> None:
    source = stream(write_windows(tmp_path / "w", SIZES))
    for row in torch.cat([next(source)["ids"] for _ in range(8)]).tolist():
        name = 1 if row[0] < 17 else 2
        assert row[1:] == [100 * name + i for i in range(1, LENGTH)]


def test_state_is_small_and_belongs_to_its_data_and_seed(tmp_path: Path) -> None:
    source = stream(write_windows(tmp_path / "w", SIZES))
    for _ in range(20):
        next(source)
    state = source.state_dict()
    assert state == {"step": 20, "place": 140, "epoch": 2, "seed": 0, "windows": "w"}
    with pytest.raises(InputError, match="expected seed 1, got 0"):
        stream(tmp_path / "w", seed=1).load_state_dict(state)
    other = stream(write_windows(tmp_path / "other", SIZES))
    with pytest.raises(InputError, match="expected windows other, got w"):
        other.load_state_dict(state)


def test_repeating_takes_the_beginning_of_its_windows(tmp_path: Path) -> None:
    folder = write_windows(tmp_path / "w", SIZES)
    growing = Growing(k=4, steps=40, max_chunks=2, tokens=24)
    source = Stream(WindowRepeating(growing=growing).over(folder), tokenizer(), ids_alone, seed=0)
    lengths, places = [], 0
    for _ in range(40):
        ids = next(source)["ids"]
        places += len(ids)
        n = ids.shape[1] // 2
        assert torch.equal(ids[:, :n], ids[:, n:])
        lengths.append((n, len(ids)))
    assert set(lengths) == {(4, 6), (8, 3)}
    assert source.state_dict()["place"] == places


def test_a_row_longer_than_its_window_is_refused(tmp_path: Path) -> None:
    exercise = WindowParagraph(context=8, output=5, rows=1).over(write_windows(tmp_path / "w", SIZES))
    with pytest.raises(InputError, match="a row takes 13 tokens of a window; .* has windows of 12"):
        next(Stream(exercise, tokenizer(), ids_alone, seed=0))


# --- windows on disk


def test_windows_are_found_in_their_shards(tmp_path: Path) -> None:
    windows = Windows(write_windows(tmp_path / "w", SIZES))
    assert windows.sizes == {"arxiv": 17, "book": 39}
    assert windows.read("book", np.arange(39))[:, 0].tolist() == list(range(17, 56))
    assert windows.read("arxiv", np.array([16, 0, 5, 4]))[:, 0].tolist() == [16, 0, 5, 4]
    mapped = [np.load(path, mmap_mode="r") for path in sorted((tmp_path / "w" / SHARDS).glob("*-arxiv.npy"))]
    assert np.array_equal(np.concatenate(mapped), windows.read("arxiv", np.arange(17)))


def test_few_files_are_open_however_many_there_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("harness.data.stream.windows.OPEN_FILES", 3)
    windows = Windows(write_windows(tmp_path / "w", {"a": [2] * 20}))
    for number in random.Random(0).choices(range(40), k=200):
        assert windows.read("a", np.array([number]))[0, 0] == number
        assert len(windows._open) <= 3
    assert sum(str(path.resolve()).startswith(str(tmp_path)) for path in Path("/proc/self/fd").iterdir()) <= 3


def test_a_shard_that_was_cut_or_is_gone_is_told(tmp_path: Path) -> None:
    path = write_windows(tmp_path / "w", SIZES) / SHARDS / "1-arxiv.npy"
    path.write_bytes(path.read_bytes()[:-2])
    with pytest.raises(InputError, match=r"1-arxiv.npy is not of the size"):
        Windows(tmp_path / "w").read("arxiv", np.array([6]))
    path.unlink()
    with pytest.raises(InputError, match=r"1-arxiv.npy cannot be opened: No such file"):
        Windows(tmp_path / "w").read("arxiv", np.array([6]))
    assert Windows(tmp_path / "w").damaged() == ["1-arxiv.npy"]
    with pytest.raises(InputError, match="expected prepared windows at"):
        Windows(tmp_path)


# --- the paper's stages


@pytest.mark.parametrize("k", [8, 64])
def test_the_papers_stages_read_what_their_plan_counts(k: int) -> None:
    """Rows of the planned batch; contexts of the curriculum's chunks, at the longest as planned, within the window."""
    for name, planned in STAGES.items():
        data: Any = PAPER[f"paper-k{k}"][name].data
        if name == "finetune":
            continue
        drawn = [data.draw(random.Random(i), i * planned.stage.steps // 300) for i in range(300)]
        assert {rows for _, rows in drawn} == {planned.batch}
        target = planned.target or 0
        chunks = {(length - target) // k for length, _ in drawn}
        most = planned.context // k
        assert max(chunks) == most and max(length for length, _ in drawn) == data.longest <= LENGTH_PLANNED
        assert chunks <= {2**i for i in range(9)} and (len(chunks) > 3 if planned.curriculum else chunks == {most})
        row = data.row(list(range(drawn[0][0])), [])
        context, answer = [t for block in row.context for t in block.text], row.tail
        read = list(range(drawn[0][0]))
        assert (context, answer) == ((read, read) if planned.target is None else (read[:-target], read[-target:]))
