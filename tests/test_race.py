"""The race for the first token: everybody answers everything in turn, and a speed-up is a ratio of medians."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from fakes import EchoSystem, ListSuite, spec

from harness.errors import InputError
from harness.protocol import Example, Passage
from harness.race import WARM_UP, race
from harness.record import RetrievalSpec, RunRecord, SuiteSpec, SystemSpec
from results.records import read_records
from slurm.jobs.evaluate import Cell
from slurm.jobs.race import SUITE, RaceJob

CPU = torch.device("cpu")


class Clock:
    """The time that the harness sees; it passes only where a system lets it."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    fake = Clock()
    monkeypatch.setattr("harness.timing.time", SimpleNamespace(perf_counter=fake.perf_counter))
    return fake


@dataclass
class Runner:
    """Takes ``encode_s`` to encode, and to its first token ``first_s`` times what the prompt (its number) takes."""

    name: str
    clock: Clock
    calls: list[tuple[Any, ...]]
    encode_s: float = 0.5
    first_s: float = 1.0
    pad_id: int = 0

    def encode(self, passages: Sequence[Sequence[Passage]]) -> str:
        self.calls.append((self.name, "encode", [[p.id for p in of] for of in passages]))
        self.clock.now += self.encode_s
        return f"context of {self.name}"

    def generate(self, questions: Sequence[str], context: str, *, max_new_tokens: int) -> Iterator[torch.Tensor]:
        assert context == f"context of {self.name}"
        self.calls.append((self.name, "generate", list(questions), max_new_tokens))
        self.clock.now += self.first_s * took(questions[0])
        yield torch.tensor([7])


def took(question: str) -> float:
    """Prompts take 1, 2, 4, ... seconds, so that every sample tells which prompt it is of."""
    return 2.0 ** int(question.removeprefix("q"))


def prompts(n: int) -> list[Example]:
    return [
        Example(id=f"q{i}", question=f"q{i}", answers=("a",), passages=(Passage(id=f"p{i}", title="", text="t"),))
        for i in range(n)
    ]


def answered(calls: Sequence[tuple[Any, ...]]) -> list[tuple[str, str]]:
    """Who generated for which prompt, in order."""
    return [(call[0], call[2][0]) for call in calls if call[1] == "generate"]


# The race


@pytest.mark.parametrize("n_lanes", [1, 2, 3, 4])
def test_every_prompt_goes_through_every_lane_once_before_the_next_and_the_order_changes(
    clock: Clock, n_lanes: int
) -> None:
    calls: list[tuple[Any, ...]] = []
    names = "abcd"[:n_lanes]
    race([Runner(name, clock, calls) for name in names], prompts(9), CPU)
    order = answered(calls)
    assert len(order) == 9 * n_lanes
    rounds = [order[index * n_lanes : (index + 1) * n_lanes] for index in range(9)]
    for index, round_ in enumerate(rounds):
        assert sorted(round_) == [(name, f"q{index}") for name in names]
    if n_lanes > 1:
        assert {round_[0][0] for round_ in rounds} == set(names), "everybody goes first at times"
    if n_lanes > 2:
        followers = {b for round_ in rounds for (a, _), (b, _) in itertools.pairwise(round_) if a == "a"}
        assert len(followers) > 1, "nobody always follows the same one"


def test_a_lane_gets_the_passages_and_the_question_of_its_prompt_and_one_token(clock: Clock) -> None:
    calls: list[tuple[Any, ...]] = []
    race([Runner("a", clock, calls)], prompts(2), CPU)
    assert calls == [call for i in (0, 1) for call in (("a", "encode", [[f"p{i}"]]), ("a", "generate", [f"q{i}"], 1))]


def test_warming_up_is_not_counted_and_nothing_else_is_left_out(clock: Clock) -> None:
    systems = [Runner("a", clock, []), Runner("b", clock, [], encode_s=3.0, first_s=2.0)]
    slow, slower = race(systems, prompts(WARM_UP + 4), CPU)
    counted = [took(f"q{i}") for i in range(WARM_UP, WARM_UP + 4)]
    assert WARM_UP > 0
    assert slow.cached_s == counted
    assert slow.not_cached_s == [0.5 + s for s in counted]
    assert slower.cached_s == [2 * s for s in counted], "each lane its own seconds, whoever went first"
    assert slower.not_cached_s == [3.0 + 2 * s for s in counted]


def test_fewer_prompts_than_warming_up_takes_leave_empty_lanes(clock: Clock) -> None:
    (lane,) = race([Runner("a", clock, [])], prompts(WARM_UP), CPU)
    assert (lane.cached_s, lane.not_cached_s) == ([], [])


def test_on_the_real_clock_encoding_is_inside_not_cached_and_lanes_are_equally_long() -> None:
    lanes = race([EchoSystem(), EchoSystem(), EchoSystem()], prompts(8), CPU)
    for lane in lanes:
        assert len(lane.cached_s) == len(lane.not_cached_s) == 8 - WARM_UP
        assert all(0 < cached <= whole for cached, whole in zip(lane.cached_s, lane.not_cached_s, strict=True))


def test_progress_counts_prompts(clock: Clock) -> None:
    seen: list[tuple[int, int]] = []
    race([Runner("a", clock, [])], prompts(3), CPU, lambda done, total: seen.append((done, total)))
    assert seen == [(1, 3), (2, 3), (3, 3)]


# The job


@dataclass
class FakeCell:
    """What ``RaceJob`` takes of an ``EvaluateJob``: it can be opened."""

    system: Any
    examples: list[Example]
    suite: SuiteSpec
    retrieval: RetrievalSpec | None = None
    passages: int = 8

    def open(self) -> Cell:
        of = spec(
            suite=self.suite,
            retrieval=self.retrieval,
            passages=self.passages,
            system=SystemSpec(name=self.system.name, config={"k": 16}, checkpoint=f"weights of {self.system.name}"),
        )
        return Cell(
            spec=of, suite=ListSuite(self.examples), system=self.system, config=None, decoder=None, notes=(), device=CPU
        )


CONTEXT = SuiteSpec(name="same_relation", dataset="d", split="test", limit=None, root="world-0", revision="5eed")


class Track:
    """Cells of three systems on one context, and what was called."""

    def __init__(self, clock: Clock, n: int = 30) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.systems = [
            Runner("reference", clock, self.calls),
            Runner("fast", clock, self.calls, encode_s=4.0, first_s=0.25),
            Runner("slow", clock, self.calls, encode_s=0.0, first_s=3.0),
        ]
        self.cells = [FakeCell(system, prompts(n), CONTEXT) for system in self.systems]

    def job(self, runs: Path, cells: Sequence[FakeCell] | None = None, **changes: Any) -> RaceJob:
        settings: dict[str, Any] = dict(cells=cells or self.cells, prompts=5, runs=runs, experiments=("speed",))
        return RaceJob(**settings | changes)


@pytest.fixture
def track(clock: Clock) -> Track:
    return Track(clock)


def test_a_race_leaves_a_record_a_cell_that_can_be_read(track: Track, tmp_path: Path) -> None:
    records = track.job(tmp_path).run()
    assert [record.spec["system"]["name"] for record in records] == ["reference", "fast", "slow"]
    read = {record.system: record for record in read_records([tmp_path])}
    assert read.keys() == {"reference", "fast", "slow"}
    for record in records:
        found = read[record.spec["system"]["name"]]
        assert found.path.parent == tmp_path / SUITE / found.system / found.run_id
        assert (found.suite, found.passages, found.root) == ("ttft", 8, "world-0")
        assert found.spec["suite"]["revision"] == "5eed", "by which it is joined to the scores"
        assert found.spec["system"]["checkpoint"] == f"weights of {found.system}"
        assert (found.spec["decode"]["batch_size"], found.spec["decode"]["max_new_tokens"]) == (1, 1)
        assert (found.experiments, found.n_examples, found.n_errors) == (("speed",), 5, 0)
        assert {metric.n for metric in found.metrics.values()} == {5}
        assert records[0].run_id in found.notes[0], "says whose time it is compared with"
        assert RunRecord.read(found.path.parent).timings["ttft_s"]["n"] == 5


def test_speed_up_is_the_references_median_over_the_cells_own(track: Track, tmp_path: Path) -> None:
    records = track.job(tmp_path).run()
    counted = [took(f"q{i}") for i in range(WARM_UP, WARM_UP + 5)]
    reference = statistics.median(counted)
    for record, system in zip(records, track.systems, strict=True):
        own = system.first_s * reference
        cached, whole = (record.metrics[name] for name in ("ttft_speedup", "ttft_not_cached_speedup"))
        assert cached["mean"] == pytest.approx(reference / own, rel=1e-9)
        assert whole["mean"] == pytest.approx((0.5 + reference) / (system.encode_s + own), rel=1e-9)
        assert record.timings["ttft_s"]["median"] == pytest.approx(own)
        assert record.timings["ttft_with_encode_s"]["median"] == pytest.approx(system.encode_s + own)
        assert cached["low"] == cached["high"] == pytest.approx(cached["mean"]), "the ratio is that of every prompt"
    assert records[1].metrics["ttft_speedup"]["mean"] == pytest.approx(4.0)


def test_the_reference_races_itself_and_its_record_holds_the_ratio(track: Track, tmp_path: Path) -> None:
    """A/A: the system slows down with every call, so its two lanes differ, and only then does its ratio."""
    record, *_ = track.job(tmp_path / "steady").run()
    assert record.metrics["ttft_speedup"]["mean"] == pytest.approx(1.0)
    reference, others = track.systems[0], track.cells[1:]

    @dataclass
    class Tiring(Runner):
        times: int = 0

        def generate(self, questions: Sequence[str], context: str, *, max_new_tokens: int) -> Iterator[torch.Tensor]:
            self.times += 1
            self.clock.now += 1.0 if self.times % 2 else 2.0  # four lanes: the first lane, then the second
            yield torch.tensor([7])

    tiring = Tiring("reference", reference.clock, [])
    record, *_ = track.job(tmp_path / "tiring", [FakeCell(tiring, prompts(30), CONTEXT), *others]).run()
    assert tiring.times == 2 * (5 + WARM_UP), "twice a prompt, warming up included"
    # Lanes (first, again, fast, slow) start at prompt % 4; only at 1 does the second run before the first.
    turned = [(2.0, 1.0) if i % 4 == 1 else (1.0, 2.0) for i in range(WARM_UP, WARM_UP + 5)]
    first, again = (statistics.median(lane) for lane in zip(*turned, strict=True))
    assert record.metrics["ttft_speedup"]["mean"] == pytest.approx(first / again)
    assert first / again == 0.5


def test_done_is_done(track: Track, tmp_path: Path) -> None:
    first = track.job(tmp_path).run()
    assert len(answered(track.calls)) == (5 + WARM_UP) * 4
    before = {path: path.read_bytes() for path in tmp_path.rglob("record.json")}
    track.calls.clear()
    assert [record.metrics for record in track.job(tmp_path).run()] == [record.metrics for record in first]
    assert track.calls == []
    assert {path: path.read_bytes() for path in tmp_path.rglob("record.json")} == before


def test_a_race_that_lost_a_record_is_run_again_by_all(track: Track, tmp_path: Path) -> None:
    """Times of another process are no match: the lanes have to be interleaved."""
    *_, last = track.job(tmp_path).run()
    (path,) = tmp_path.rglob(f"{last.run_id}/record.json")
    path.unlink()
    track.calls.clear()
    track.job(tmp_path).run()
    assert len(answered(track.calls)) == (5 + WARM_UP) * 4
    assert path.exists()


@pytest.mark.parametrize(
    "change",
    [
        {"suite": replace(CONTEXT, revision="beef")},
        {"suite": replace(CONTEXT, root="world-1")},
        {"suite": replace(CONTEXT, dataset="another")},
        {"retrieval": RetrievalSpec(retriever="bm25", setting="weak", digest="f00d")},
        {"passages": 4},
    ],
    ids=lambda change: next(iter(change)),
)
def test_cells_that_see_other_prompts_do_not_race(track: Track, tmp_path: Path, change: dict[str, Any]) -> None:
    track.cells[2] = replace(track.cells[2], **change)
    with pytest.raises(InputError, match="the same questions and passages"):
        track.job(tmp_path).run()
    assert track.calls == []
    assert not list(tmp_path.iterdir())


def test_what_was_said_names_every_lane(track: Track, tmp_path: Path) -> None:
    job = track.job(tmp_path)
    said = job.said(job.run()).strip().splitlines()
    assert [line.split(":")[0].strip() for line in said] == ["reference k=16", "fast k=16", "slow k=16"]
    assert "4.00x [4.00, 4.00] cached" in said[1]


# Known faults


def test_a_race_on_fewer_prompts_is_another_run(clock: Clock, tmp_path: Path) -> None:
    """``run tiny --limit 8`` times 5 prompts; ``run tiny`` after it has to time all 60."""
    few, many = (
        RaceJob(
            cells=[FakeCell(Runner("a", clock, []), prompts(n), replace(CONTEXT, limit=limit))],
            prompts=20,
            runs=tmp_path,
            experiments=("speed",),
        )
        for n, limit in ((8, 8), (30, None))
    )
    few.run()
    assert [record.n_examples for record in many.run()] == [20]


@pytest.mark.parametrize("n", [1, WARM_UP])
def test_too_few_prompts_to_race_are_an_input_error_that_says_so(clock: Clock, tmp_path: Path, n: int) -> None:
    """``run tiny --limit 3``."""
    job = Track(clock, n).job(tmp_path)
    with pytest.raises(InputError, match=f"at least {WARM_UP + 1} .*got {n}"):
        job.run()
    assert not list(tmp_path.iterdir())


def test_a_race_against_another_reference_is_another_run(track: Track, tmp_path: Path) -> None:
    track.job(tmp_path).run()
    records = {r.spec["system"]["name"]: r for r in track.job(tmp_path, track.cells[::-1]).run()}
    assert records["slow"].metrics["ttft_speedup"]["mean"] == pytest.approx(1.0), "it is the reference now"
    assert records["fast"].metrics["ttft_speedup"]["mean"] == pytest.approx(12.0)


def test_a_race_made_again_stays_in_the_tables_that_it_was_in(track: Track, tmp_path: Path) -> None:
    *_, last = track.job(tmp_path).run()
    (path,) = tmp_path.rglob(f"{last.run_id}/record.json")
    path.unlink()
    again = track.job(tmp_path, experiments=("cost",)).run()
    assert [list(record.experiments) for record in again] == [["speed", "cost"], ["speed", "cost"], ["cost"]]
    assert {record.run_id: record.experiments for record in read_records([tmp_path])} == {
        record.run_id: tuple(record.experiments) for record in again
    }
    other = track.job(tmp_path, track.cells[::-1], experiments=("other",)).run()
    assert [list(record.experiments) for record in other] == [["other"]] * 3, "no table is about another reference"


def test_a_finished_race_can_join_another_experiment(track: Track, tmp_path: Path) -> None:
    track.job(tmp_path).run()
    track.calls.clear()
    assert {tuple(r.experiments) for r in track.job(tmp_path, experiments=("other",)).run()} == {("speed", "other")}
    assert track.calls == []
