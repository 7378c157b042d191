"""The same training on prepared windows over 1, 2 and 4 processes, and over 4 and then 2: one curve, one pass.

Whole trainings in float32 on windows of a generated text, in processes of their own.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from stream_text import write_text
from together import together

from harness.data.stream.prepare import StreamConfig, prepare
from harness.data.stream.window_practice import WindowExercise, WindowParagraph, WindowRepeating
from harness.data.stream.windows import Windows
from harness.data.world.practice import Growing
from harness.data.world.tokenizer import build_tokenizer
from harness.model.load import random_decoder
from harness.train.loop import train
from harness.train.stage import AdamW, Schedule, Stage
from refrag_v2.model import Refrag, RefragConfig
from refrag_v2.recipe import ENCODING, RefragRecipe

pytestmark = pytest.mark.usefixtures("one_thread")

CPU = torch.device("cpu")
CONTEXT, OUTPUT, K = 32, 16, 8
ROWS = 4
PASS = 36  # windows
TOLERANCE = 1e-4  # nats, of every step
Task = Literal["reconstruction", "cpt"]
Read = list[tuple[str, int]]  # the set and number of windows


@pytest.fixture(scope="module")
def windows(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("prepared")
    text = write_text(folder / "text")
    config = StreamConfig(context=CONTEXT, output=OUTPUT, sets=("ArXiv",), most_short=1.0)
    return prepare(str(text), str(tiny_checkpoint), folder / "windows", config)


def exercise(task: Task, steps: int) -> WindowExercise:
    if task == "cpt":
        return WindowParagraph(context=CONTEXT, output=OUTPUT, rows=ROWS)
    return WindowRepeating(growing=Growing(k=K, steps=steps, max_chunks=CONTEXT // K, tokens=ROWS * CONTEXT))


def recipe(task: Task, windows: Path, steps: int) -> RefragRecipe:
    """The stage as the paper has it: reconstruction trains the encoder and the projector alone, at its own rate."""
    first = task == "reconstruction"
    stage = Stage(
        name=task,
        steps=steps,
        optimizer=AdamW(lr=6e-4 if first else 3e-4),
        schedule=Schedule(warmup=0.04, decay="cosine"),
        trained=ENCODING if first else ("",),
        checkpoint_every=1000,
    )
    return RefragRecipe(
        stage=stage,
        after=("decoder", "pretrain", "tiny"),
        requires=(),
        model=RefragConfig(k=K),
        data=exercise(task, steps).over(windows),
        expand=(0.0, 0.5) if task == "cpt" else (0.0,),
        stored_as="float32",
    )


def refrag() -> Refrag:
    decoder = random_decoder("tiny", seed=0)
    torch.manual_seed(0)
    return Refrag(RefragConfig(k=K), decoder)


@contextmanager
def noted(source: Any) -> Iterator[Read]:
    """Of every window that ``source`` takes from disk in this process, its set and number."""
    found = Read()
    read = source.windows.read

    def noting(name: str, numbers: Any) -> Any:
        found.extend((name, number) for number in numbers.tolist())
        return read(name, numbers)

    source.windows.read = noting
    yield found
    del source.windows.read


def run(
    device: torch.device, task: Task, windows: Path, folder: Path, steps: int, stop_after: int | None = None
) -> tuple[list[float], Read]:
    """The loss of every step, and the windows that this process read."""
    asked, model, losses = recipe(task, windows, steps), refrag(), list[float]()
    batches = asked.batches(model, build_tokenizer())
    with noted(batches) as read:
        train(
            asked.stage,
            model,
            batches,
            asked.loss(),
            folder,
            device=device,
            progress=lambda step, value, rate: losses.append(value),
            stop_after=stop_after,
        )
    return losses, read


# --- one curve


@pytest.mark.slow
@pytest.mark.parametrize("task", ["reconstruction", "cpt"])
def test_one_two_and_four_processes_have_one_loss_curve(windows: Path, tmp_path: Path, task: Task) -> None:
    steps = 50
    alone, _ = run(CPU, task, windows, tmp_path / "1", steps)
    assert len(alone) == steps and alone[-1] < alone[0] - 0.3, "it learns, so that there is something to compare"
    for processes in (2, 4):
        found = together(processes, run, task, windows, tmp_path / str(processes), steps, limit_s=300)
        curves = [curve for curve, _ in found]
        assert all(curve == curves[0] for curve in curves)
        apart = max(abs(a - b) for a, b in zip(curves[0], alone, strict=True))
        print(f"\n{task}, {processes} processes against 1: at most {apart:.1e} nats apart over {steps} steps")
        assert apart < TOLERANCE


# --- four processes, and then two


def four_and_then_two(task: Task, windows: Path, folder: Path, steps: int, at: int) -> tuple[list[float], Read]:
    """The loss of every step, and what all processes read, of a training that four leave after ``at`` steps to two."""
    before = together(4, run, task, windows, folder, steps, at, limit_s=300)
    after = together(2, run, task, windows, folder, steps, limit_s=300)
    assert (len(before[0][0]), len(after[0][0])) == (at, steps - at)
    return before[0][0] + after[0][0], [window for _, read in before + after for window in read]


def all_of(windows: Path) -> Read:
    return sorted((name, number) for name, size in Windows(windows).sizes.items() for number in range(size))


def test_two_go_on_where_four_were_and_every_window_comes_once(windows: Path, tmp_path: Path) -> None:
    """A pass of 9 steps, of which the four do 3."""
    curve, read = four_and_then_two("cpt", windows, tmp_path / "4-2", PASS // ROWS, 3)
    alone, _ = run(CPU, "cpt", windows, tmp_path / "1", PASS // ROWS)
    assert sorted(read) == all_of(windows) and len(read) == PASS
    assert curve == pytest.approx(alone, abs=TOLERANCE)


@pytest.mark.slow
@pytest.mark.parametrize("task", ["reconstruction", "cpt"])
def test_over_a_whole_training_too(windows: Path, tmp_path: Path, task: Task) -> None:
    """Two passes and a part of the third; in reconstruction batches have as many rows as contexts are short."""
    steps = 60
    curve, read = four_and_then_two(task, windows, tmp_path / "4-2", steps, 23)
    alone, by_one = run(CPU, task, windows, tmp_path / "1", steps)
    apart = max(abs(a - b) for a, b in zip(curve, alone, strict=True))
    print(f"\n{task}: 4 processes for 23 steps and 2 for 37 against one unbroken: at most {apart:.1e} nats apart")
    assert apart < TOLERANCE
    assert sorted(read) == sorted(by_one) and len(read) > 2 * PASS
    assert sorted(by_one[:PASS]) == sorted(by_one[PASS : 2 * PASS]) == all_of(windows)
    assert json.loads((tmp_path / "4-2" / "log.jsonl").read_text().splitlines()[-1])["step"] == steps
