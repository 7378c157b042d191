"""Batches that workers make ahead are those of one process, in its order, and a resume knows no worker."""

from __future__ import annotations

import random
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from stream_text import write_text
from together import CONTEXT
from torch import Tensor

from harness import processes
from harness.data.stream.ahead import Ahead
from harness.data.stream.prepare import StreamConfig, prepare
from harness.data.stream.window_practice import Stream, WindowParagraph, WindowRepeating
from harness.data.stream.windows import SHARDS
from harness.data.world.practice import Growing
from harness.data.world.tokenizer import build_tokenizer
from harness.errors import InputError
from harness.processes import run_together
from harness.train.rows import Batch, Row
from slurm.jobs.train import TrainJob

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def windows(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("prepared")
    config = StreamConfig(context=64, output=32, sets=("ArXiv", "Book"), most_short=1.0)
    return prepare(str(write_text(folder / "text")), str(tiny_checkpoint), folder / "windows", config)


def ids_and_draws(rows: Sequence[Row], rngs: Sequence[random.Random]) -> Batch:
    ids = torch.tensor([[t for block in row.context for t in block.text] + row.tail for row in rows])
    return {"ids": ids, "drawn": torch.tensor([rng.random() for rng in rngs])}


def stream(windows: Path, task: str = "cpt") -> Stream:
    growing = Growing(k=8, steps=20, max_chunks=4, tokens=160)
    exercise: Any = WindowParagraph(context=24, output=8, rows=5) if task == "cpt" else WindowRepeating(growing=growing)
    return Stream(exercise.over(windows), build_tokenizer(), ids_and_draws, seed=0)


def taken(source: Any, n: int, rank: int = 0, world: int = 1) -> list[tuple[dict[str, Tensor], bool]]:
    return [source.own(rank, world) for _ in range(n)]


def equal(one: Any, other: Any) -> bool:
    return len(one) == len(other) and all(
        a[1] == b[1] and a[0].keys() == b[0].keys() and all(torch.equal(a[0][key], b[0][key]) for key in a[0])
        for a, b in zip(one, other, strict=True)
    )


@pytest.mark.parametrize("task", ["reconstruction", "cpt"])
@pytest.mark.parametrize("workers", [1, 3])
def test_batches_are_the_same_whatever_the_number_of_workers(windows: Path, task: str, workers: int) -> None:
    """For one process, and for the last of three; the random state of training is left alone."""
    for rank, world in ((0, 1), (2, 3)):
        before = torch.get_rng_state()
        ahead, plain = Ahead(stream(windows, task), workers), stream(windows, task)
        assert equal(taken(ahead, 13, rank, world), taken(plain, 13, rank, world))
        assert ahead.state_dict() == plain.state_dict()
        assert torch.equal(torch.get_rng_state(), before)


def test_the_state_is_that_of_the_last_batch_that_was_given(windows: Path) -> None:
    """However many lie ready; and any number of workers, or none, goes on from there."""
    whole, ahead = taken(stream(windows), 12), Ahead(stream(windows), 3)
    assert ahead.state_dict()["place"] == 0
    taken(ahead, 5)
    state = ahead.state_dict()
    assert (state["step"], state["place"]) == (5, 25)
    for source in (stream(windows), Ahead(stream(windows), 1), Ahead(stream(windows), 4), ahead):
        source.load_state_dict(state)
        assert equal(taken(source, 7), whole[5:])


def test_what_a_worker_finds_wrong_is_told_as_it_is(windows: Path, tmp_path: Path) -> None:
    broken = Path(shutil.copytree(windows, tmp_path / "w"))
    for path in (broken / SHARDS).glob("*.npy"):
        path.unlink()
    with pytest.raises(InputError, match=r"^\S+\.npy cannot be opened: No such file or directory; prepare it again$"):
        next(Ahead(stream(broken), 2))
    with pytest.raises(InputError, match="expected at least 1 worker that makes batches ahead, got -1"):
        Ahead(stream(windows), -1)


def job(windows: Path, start: Path, runs: Path, **changes: Any) -> TrainJob:
    given = TrainJob(
        system="refrag_v2", stage="reconstruction", scale="stream-smoke", runs=runs, start=start, text=windows
    )
    return replace(given, **changes)


def weights(checkpoint: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in checkpoint.glob("*.safetensors")}


def test_a_training_is_the_same_whatever_makes_its_batches(
    windows: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    plain, ahead = (job(windows, tiny_checkpoint, tmp_path / str(n), loaders=n) for n in (0, 2))
    assert plain.identity == ahead.identity
    assert weights(plain.run()) and weights(plain.run()) == weights(ahead.run())
    world = TrainJob(system="refrag_v2", stage="finetune", scale="fsdp", runs=tmp_path, loaders=1, from_scratch=True)
    assert "nothing but prepared windows is read ahead (--loaders)" in world.obstacles


def test_in_several_processes_too(
    windows: Path, tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "CONTEXT", CONTEXT)
    plain, ahead = (job(windows, tiny_checkpoint, tmp_path / str(n), loaders=n, tasks_per_node=2) for n in (0, 1))
    found, expected = run_together(2, ahead.run), run_together(2, plain.run)
    assert weights(expected) and weights(expected) == weights(found)
