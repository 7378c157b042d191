"""The scoring loop: the figures of a finished run, and of one that another process published too."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from fakes import spec

from harness.likelihood import Progress, Window, measure
from harness.protocol import TokenBlock, Usage
from harness.record import RunRecord, RunSpec, WindowSpec, read_rows

WINDOWS = WindowSpec(
    name="windows",
    dataset="d",
    split="test",
    limit=None,
    root="text-0",
    revision="0",
    set="book",
    context=4,
    output=2,
    outputs=(2,),
    longest=4,
    passage=2,
)


@dataclass
class TwoTokens:
    """Ten windows of which the continuation is two tokens."""

    spec: WindowSpec = WINDOWS

    @property
    def windows(self) -> list[Window]:
        return [Window(id=f"w{i}", document="d", context=[i] * 4, continuation=[i, i]) for i in range(10)]

    def score(self, log_p: Sequence[float]) -> dict[str, float]:
        return {"nll": -sum(log_p) / len(log_p)}


@dataclass
class Certain:
    """Gives every token a probability of a half, unless it fails at a window."""

    error: Exception | None = None

    def encode_tokens(self, passages: Sequence[Sequence[TokenBlock]]) -> int:
        return len(passages)

    def log_probabilities(
        self, questions: Sequence[str], continuations: Sequence[Sequence[int]], context: int
    ) -> list[torch.Tensor]:
        if self.error and [5, 5] in continuations:
            raise self.error
        return [torch.full((len(row),), 0.5).log() for row in continuations]

    def usage(self, questions: Sequence[str], context: int, *, max_new_tokens: int) -> list[Usage]:
        return [Usage(decoder_positions=6, passages_read=2) for _ in questions]


def run(
    runs: Path, experiment: str = "ours", progress: Progress | None = None, error: Exception | None = None
) -> RunRecord:
    return measure(
        cell(), TwoTokens(), Certain(error), runs, experiment=experiment, device=torch.device("cpu"), progress=progress
    )


def cell() -> RunSpec:
    return spec(suite=WINDOWS)


def test_a_record_holds_every_window(tmp_path: Path) -> None:
    record = run(tmp_path)
    assert (record.n_examples, record.n_errors) == (10, 0)
    assert record.metrics["nll"]["mean"] == pytest.approx(0.6931472)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (RuntimeError("device on fire\nat line 3"), "RuntimeError: device on fire"),
        (MemoryError(), "MemoryError: "),
    ],
)
def test_a_failing_batch_is_an_error_in_its_rows_and_in_no_mean(tmp_path: Path, error: Exception, message: str) -> None:
    record = run(tmp_path, error=error)
    rows = read_rows(cell().folder(tmp_path) / "predictions.jsonl", cell().run_id)
    assert {row["id"]: row["error"] for row in rows if "error" in row} == dict.fromkeys(
        ["w4", "w5", "w6", "w7"], message
    )
    assert not any("nll" in row for row in rows[4:8])
    assert (record.n_errors, record.metrics["nll"]["n"]) == (4, 6)


def test_a_finished_run_joins_another_table(tmp_path: Path) -> None:
    run(tmp_path)
    assert run(tmp_path, "theirs").experiments == ["ours", "theirs"]


def test_a_run_that_another_process_published_meanwhile_stays_in_its_table(tmp_path: Path) -> None:
    folder, finished = cell().folder(tmp_path), run(tmp_path / "elsewhere")

    def last(done: int, total: int) -> None:
        if done == total:
            replace(finished, experiments=["theirs"]).write(folder)

    record = run(tmp_path, progress=last)
    assert record.experiments == RunRecord.read(folder).experiments == ["theirs", "ours"]
