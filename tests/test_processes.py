"""Processes of one training on this machine: what they return, who is told of when one dies, and what it leaves."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from stream_text import write_text
from together import CONTEXT

from harness import processes
from harness.cli.main import main
from harness.config import digest
from harness.data.stream.prepare import StreamConfig, prepare
from harness.data.stream.window_practice import WindowParagraph
from harness.data.world.tokenizer import build_tokenizer
from harness.errors import Broken, InputError
from harness.model.load import load_decoder, random_decoder
from harness.processes import run_together
from harness.train import checkpoint
from harness.train.distributed import joined
from harness.train.loop import train
from harness.train.optim import build_optimizers, freeze
from harness.train.ranks import here
from harness.train.sharding import gathered
from harness.train.stage import AdamW, Stage
from refrag_v2.checkpoint import load_refrag
from refrag_v2.model import Refrag, RefragConfig
from refrag_v2.recipe import RefragRecipe
from slurm.jobs.train import TrainJob

pytestmark = pytest.mark.usefixtures("one_thread")

MOST_S = 300  # of an ending: a hang, not a measure


@pytest.fixture
def forked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes off a server that has imported torch: the same, but for the time that their imports take."""
    monkeypatch.setattr(processes, "CONTEXT", CONTEXT)


# --- what they return


def _who() -> tuple[int, int, int]:
    return here().rank, here().world, os.getpid()


def test_the_first_ones_answer_is_returned_and_none_is_left(forked: None) -> None:
    rank, world, pid = run_together(3, _who)
    assert (rank, world) == (0, 3) and pid != os.getpid()
    assert not multiprocessing.active_children()


def _wrong_in_one() -> None:
    if here().rank == 1:
        raise InputError("expected this, got that")
    time.sleep(600)


def test_what_one_finds_wrong_with_the_input_is_said_and_ends_all(forked: None) -> None:
    started = time.monotonic()
    with pytest.raises(InputError, match="^expected this, got that$"):
        run_together(3, _wrong_in_one)
    assert not multiprocessing.active_children() and time.monotonic() - started < MOST_S


def _fails_in_one() -> None:
    if here().rank == 2:
        raise ZeroDivisionError("why")
    time.sleep(600)


def test_a_failure_is_told_by_the_process_that_failed(forked: None) -> None:
    with pytest.raises(Broken, match=r"process 2 of 3 \(from 0\) failed: ZeroDivisionError: .*; the others were ended"):
        run_together(3, _fails_in_one)
    assert not multiprocessing.active_children()


def test_none_outlives_what_started_them() -> None:
    started = "import time; from functools import partial; from harness.processes import run_together"
    starter = subprocess.Popen([sys.executable, "-c", f"{started}; run_together(2, partial(time.sleep, 600))"])
    of_starter = Path(f"/proc/{starter.pid}/task/{starter.pid}/children")
    _wait_for(lambda: len(of_starter.read_text().split()) == 3)  # and one that looks after what they share
    members = of_starter.read_text().split()
    starter.kill()
    starter.wait()
    _wait_for(lambda: not any(_runs(pid) for pid in members))


def _runs(pid: str) -> bool:
    """Neither gone nor a zombie: where nobody collects orphans, as in a container, they stay for ever."""
    try:
        return Path("/proc", pid, "stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def _wait_for(there: Any) -> None:
    until = time.monotonic() + MOST_S
    while not there():
        assert time.monotonic() < until
        time.sleep(0.02)


# --- a training of which one dies


@pytest.fixture(scope="module")
def windows(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("prepared")
    config = StreamConfig(context=64, output=32, sets=("ArXiv", "Book"), most_short=1.0)
    return prepare(str(write_text(folder / "text")), str(tiny_checkpoint), folder / "windows", config)


def recipe(windows: Path, steps: int) -> RefragRecipe:
    return RefragRecipe(
        stage=Stage(name="cpt", steps=steps, optimizer=AdamW(lr=1e-3), checkpoint_every=2),
        after=("decoder", "pretrain", "tiny"),
        requires=(),
        model=RefragConfig(k=8),
        data=WindowParagraph(context=16, output=8, rows=4).over(windows),
        expand=(0.0, 0.5),
        stored_as="float32",
    )


def training(world: int, steps: int, windows: Path, folder: Path, death: tuple[int, int, float] | None) -> Any:
    """The whole weights at the end. ``death`` is of which process, after which step, and so many seconds later."""
    torch.set_num_threads(1)
    with joined(world, "cpu") as device:
        decoder = random_decoder("tiny", seed=0)
        torch.manual_seed(0)
        asked, model = recipe(windows, steps), Refrag(RefragConfig(k=8), decoder)

        def progress(step: int, loss: float, rate: float) -> None:
            if death and death[:2] == (here().rank, step):
                threading.Timer(death[2], os.kill, (os.getpid(), signal.SIGKILL)).start()

        batches = asked.batches(model, build_tokenizer())
        train(asked.stage, model, batches, asked.loss(), folder, device=device, progress=progress)
        return {name: tensor.numpy() for name, tensor in gathered(model).items()}


def kill_again_and_again(world: int, steps: int, kills: int, windows: Path, folder: Path) -> None:
    """The weights after ``kills`` deaths at random places are those of a run that nothing befell, to the last bit."""
    rng, longest = random.Random(world), 0.0
    expected = run_together(world, partial(training, world, steps, windows, folder / "whole", None))
    for number in range(kills):
        at = max((int(path.name.split("-")[1]) for path in checkpoint.steps(folder / "broken")), default=0)
        most = at + max(1, (steps - at) // (kills - number))
        death = rng.randrange(world), rng.randint(at + 1 if at else 3, max(3, min(most, steps - 1))), 0.2 * rng.random()
        started = time.monotonic()
        with pytest.raises(
            Broken, match=rf"process {death[0]} of {world} \(from 0\) was killed by SIGKILL; the others"
        ):
            run_together(world, partial(training, world, steps, windows, folder / "broken", death))
        longest = max(longest, time.monotonic() - started)
        assert not multiprocessing.active_children()
    assert checkpoint.steps(folder / "broken"), "or it would not go on, but begin anew"
    found = run_together(world, partial(training, world, steps, windows, folder / "broken", None))
    print(f"\n{world} processes, {kills} kills: start, death and end took at most {longest:.1f} s")
    assert found.keys() == expected.keys() and len(found) > 20
    assert all((found[name] == expected[name]).all() for name in expected)


def test_a_kill_of_one_process_ends_all_and_changes_no_bit(forked: None, windows: Path, tmp_path: Path) -> None:
    kill_again_and_again(2, 5, 1, windows, tmp_path)


@pytest.mark.slow
def test_ten_kills_of_one_of_four_change_no_bit(forked: None, windows: Path, tmp_path: Path) -> None:
    kill_again_and_again(4, 40, 10, windows, tmp_path)


# --- the command


def command(text: Path, start: Path, runs: Path, *more: str) -> list[str]:
    asked = ("train", "refrag_v2", "reconstruction", "--scale", "stream-smoke", "--text", str(text))
    return [*asked, "--start", str(start), "--runs", str(runs), "--processes", "2", *more]


@pytest.fixture
def trained(forked: None, windows: Path, tiny_checkpoint: Path, tmp_path: Path, capsys: Any) -> Path:
    """The checkpoint that the command leaves, trained in two processes."""
    assert main(command(windows, tiny_checkpoint, tmp_path)) == 0
    return Path(capsys.readouterr().out.strip())


def test_what_two_leave_is_one_folder_that_answers_and_has_their_weights(
    trained: Path, tiny_checkpoint: Path, capsys: Any
) -> None:
    job = TrainJob(system="refrag_v2", stage="reconstruction", scale="stream-smoke", runs=Path("no"))
    stage = job.recipe().stage
    model, _ = job.recipe().open(tiny_checkpoint)
    (newest := checkpoint.steps(trained.parent)[-1]).joinpath(".metadata").stat()  # in parts, by several
    state = checkpoint.restore(trained.parent, model, build_optimizers(freeze(model, stage), stage), digest(stage))
    assert state is not None and newest.name == f"step-{state.step:06d}" and state.step == stage.steps
    untrained, _ = job.recipe().open(tiny_checkpoint)
    loaded = load_refrag(trained, load_decoder(str(trained), dtype="float32").model)
    expected, before, found = model.state_dict(), untrained.state_dict(), loaded.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert any(not torch.equal(before[name], expected[name]) for name in expected)
    assert list(trained.glob("*.safetensors")) and not list(trained.glob("*.distcp"))
    assert main(["generate", "who is there", "--system", "refrag_v2", "--checkpoint", str(trained), "--json"]) == 0
    assert "answer" in json.loads(capsys.readouterr().out)


@pytest.mark.slow
def test_a_kill_of_the_real_command_says_so_and_it_goes_on(
    windows: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    def start(runs: Path) -> subprocess.Popen[str]:
        asked = [sys.executable, "-m", "harness.cli.main", *command(windows, tiny_checkpoint, runs, "--loaders", "1")]
        return subprocess.Popen(asked, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def ended(process: subprocess.Popen[str]) -> tuple[int, str, str]:
        said, error = process.communicate(timeout=300)
        return process.returncode, said, error

    code, whole, _ = ended(start(tmp_path / "whole"))
    assert code == 0
    process = start(tmp_path / "broken")
    _wait_for(lambda: list(tmp_path.glob("broken/train/**/step-*")))
    members = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(int(members[-1]), signal.SIGKILL)
    code, said, error = ended(process)
    assert (code, said) == (1, "")
    assert (
        error.strip().splitlines()[-1].startswith("refrag-bench: error: process 1 of 2 (from 0) was killed by SIGKILL")
    )
    _wait_for(lambda: not any(_runs(pid) for pid in members))
    code, broken, _ = ended(start(tmp_path / "broken"))
    one, other = (
        {file.name: file.read_bytes() for file in Path(path.strip()).glob("*.safetensors")} for path in (whole, broken)
    )
    assert code == 0 and one and one == other


def test_torchrun_and_the_command_have_to_agree(
    windows: Path, tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """Or each of torchrun's processes would be a training of its own, all of them in one folder."""
    for name, value in {"RANK": "1", "WORLD_SIZE": "4", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    assert main(command(windows, tiny_checkpoint, tmp_path, "--processes", "1")) == 2
    assert "torchrun started 4 processes; expected --processes 4" in capsys.readouterr().err
