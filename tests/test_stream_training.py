"""Training on prepared windows: any number of processes see one order, and an interruption changes no bit."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from byte_level import byte_level_tokenizer
from stream_text import write_text
from together import together

from harness.cli.main import main
from harness.data.stream.prepare import StreamConfig, prepare
from harness.data.stream.window_practice import WindowParagraph
from harness.data.stream.windows import Windows
from harness.data.world.tokenizer import build_tokenizer
from harness.errors import InputError, Interrupted
from harness.model.load import random_decoder
from harness.train.export import read_training
from harness.train.loop import train
from harness.train.shares import bounds
from harness.train.stage import AdamW, Stage
from refrag_v2.grpo import PolicyTraining
from refrag_v2.model import Refrag, RefragConfig
from refrag_v2.policy import Policy, PolicyConfig
from refrag_v2.recipe import PolicyRecipe, RefragRecipe
from slurm.jobs.train import TrainJob

pytestmark = pytest.mark.usefixtures("one_thread")

SCALE = "stream-smoke"


@pytest.fixture(scope="module")
def windows(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("prepared")
    config = StreamConfig(context=64, output=32, sets=("ArXiv", "Book"), mixture="50/50-by-tokens", most_short=1.0)
    return prepare(str(write_text(folder / "text")), str(tiny_checkpoint), folder / "windows", config)


def job(stage: str, start: Path | TrainJob, text: Path | None, runs: Path) -> TrainJob:
    return TrainJob(system="refrag_v2", stage=stage, scale=SCALE, runs=runs, start=start, text=text)


def weights(checkpoint: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in checkpoint.glob("*.safetensors")}


def interrupt(at: int) -> Callable[..., None]:
    def progress(step: int, steps: int, note: str) -> None:
        if step == at:
            raise Interrupted

    return progress


def test_both_stages_train_and_an_interruption_changes_no_bit(
    windows: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    def run(runs: Path, stops: dict[str, tuple[int, ...]]) -> list[Path]:
        first = job("reconstruction", tiny_checkpoint, windows, runs)
        second = job("cpt", first, windows, runs)
        for each in (first, second):
            for stop in stops.get(each.stage, ()):
                with pytest.raises(Interrupted):
                    each.run(interrupt(stop))
            each.run()
        return [first.checkpoint, second.checkpoint]

    whole = run(tmp_path / "whole", {})
    broken = run(tmp_path / "broken", {"reconstruction": (3,), "cpt": (1, 5)})
    for one, other in zip(whole, broken, strict=True):
        assert weights(one) and weights(one) == weights(other)
        assert read_training(one)["tokens"] == read_training(other)["tokens"]
    training = read_training(whole[1])
    assert training["lineage"] == ["refrag_v2/reconstruction", "refrag_v2/cpt"]
    assert training["data"] == Windows(windows).name
    assert training["tokens"] == 8 * 2 * 4 * (1 + 64 // 8 + 32), "steps x accumulation x rows x positions"
    assert weights(whole[0]) != weights(whole[1])
    state = json.loads(max((whole[1].parent).glob("step-*")).joinpath("state.json").read_text())
    assert (state["data"]["step"], state["data"]["place"]) == (16, 64)


@pytest.mark.slow
def test_a_kill_of_the_real_command_changes_no_bit(windows: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    def start(runs: Path) -> subprocess.Popen[bytes]:
        arguments = ("train", "refrag_v2", "reconstruction", "--scale", SCALE, "--text", str(windows))
        where = ("--start", str(tiny_checkpoint), "--runs", str(runs))
        return subprocess.Popen([sys.executable, "-m", "harness.cli.main", *arguments, *where])

    assert start(tmp_path / "whole").wait() == 0
    process = start(tmp_path / "broken")
    deadline = time.monotonic() + 300
    while not list(tmp_path.glob("broken/train/**/step-*")) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert start(tmp_path / "broken").wait() == 0
    one, other = (next((tmp_path / name / "train").rglob("final")) for name in ("whole", "broken"))
    assert weights(one) and weights(one) == weights(other)


def test_other_windows_are_another_training(windows: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    moved = Path(shutil.copytree(windows, tmp_path / "moved"))
    here, there = (job("reconstruction", tiny_checkpoint, each, tmp_path) for each in (windows, moved))
    assert here.name == there.name, "windows are what they are, not where"
    manifest = json.loads((moved / "windows.json").read_text())
    other = tmp_path / "other"
    other.mkdir()
    (other / "windows.json").write_text(json.dumps({**manifest, "digest": "f" * 16}))
    assert job("reconstruction", tiny_checkpoint, other, tmp_path).name != here.name
    with pytest.raises(InputError, match=r"no prepared windows \(--text; `refrag-bench data prepare` makes"):
        job("reconstruction", tiny_checkpoint, None, tmp_path).run()
    with pytest.raises(InputError, match="there are no prepared windows at"):
        job("reconstruction", tiny_checkpoint, tmp_path, tmp_path).run()


def test_a_missing_stage_before_is_asked_for_by_a_command_that_makes_it(
    windows: Path, tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the same text, in the same runs; one that was trained from another start is named, to be given as one."""
    asked = TrainJob(
        system="refrag_v2", stage="cpt", scale=SCALE, runs=tmp_path / "my runs", text=windows, from_scratch=True
    )
    with pytest.raises(InputError) as caught:
        asked.run()
    (command,) = re.findall(r"run `refrag-bench (.*)` first$", str(caught.value))
    ran: list[TrainJob] = []

    def run(self: TrainJob, *_: Any, **__: Any) -> Path:
        ran.append(self)
        return self.folder

    monkeypatch.setattr(TrainJob, "run", run)
    assert main([*shlex.split(command), "--track", "off"]) == 0
    assert asked.before is not None and [each.checkpoint for each in ran] == [asked.before.checkpoint]

    monkeypatch.undo()
    other = job("reconstruction", tiny_checkpoint, windows, asked.runs).checkpoint
    other.mkdir(parents=True)
    (other / "config.json").write_text("{}")
    with pytest.raises(InputError, match=f"first; or give one that was trained otherwise with --start: {other}$"):
        asked.run()


def test_a_text_of_the_other_kind_says_which_command_makes_which(windows: Path, tmp_path: Path) -> None:
    """Both are given with --text: a text with its own tokenizer, and windows in a decoder's tokens."""
    for_windows = TrainJob(system="decoder", stage="pretrain", scale="text-tiny-short", runs=tmp_path, text=windows)
    made = r"`refrag-bench run perplexity` makes one, .* for the text-\* scales; what `refrag-bench data prepare` makes"
    with pytest.raises(InputError, match=f"manifest.json in it; found prepared windows \\({made}"):
        for_windows.run()
    with pytest.raises(InputError, match=f"with --text \\({made}"):
        replace(for_windows, text=None).run()
    with pytest.raises(InputError, match=f"found no such file \\({made}"):
        replace(for_windows, text=tmp_path).run()
    (tmp_path / "manifest.json").write_text("{}")
    obstacle = f"there are no prepared windows at {tmp_path}, but a text for the text-* scales (`refrag-bench data prep"
    (found,) = job("reconstruction", tmp_path / "decoder", tmp_path, tmp_path).obstacles
    assert found.startswith(obstacle)


def test_the_stage_before_is_of_the_world(windows: Path, tmp_path: Path) -> None:
    """It has no use for windows, and its accepted checkpoint is found whatever the windows are."""
    first = TrainJob(system="refrag_v2", stage="reconstruction", scale=SCALE, runs=tmp_path, text=windows)
    assert first.before is not None and first.before.text is None and first.before.finished
    second = TrainJob(system="refrag_v2", stage="cpt", scale=SCALE, runs=tmp_path, text=windows)
    assert second.before == first


def test_windows_of_another_tokenizer_are_refused(windows: Path) -> None:
    with pytest.raises(InputError, match=r"tokenised by another tokenizer .* --tokenizer naming the checkpoint"):
        recipe(windows).batches(refrag(), byte_level_tokenizer())


def test_a_policy_is_trained_on_windows_too(windows: Path) -> None:
    asked = PolicyRecipe(
        stage=Stage(name="policy", steps=2, optimizer=AdamW(lr=1e-3), trained=("refrag.policy.",)),
        after=None,
        requires=(),
        model=RefragConfig(k=8),
        data=WindowParagraph(context=64, output=32, rows=3).over(windows),
    )
    model = refrag()
    model.policy = Policy(PolicyConfig(width=32), model.decoder.config.hidden_size)
    training, tokenizer = PolicyTraining(model), build_tokenizer()
    batches = asked.batches(training, tokenizer)
    batch, other = next(batches), next(batches)
    assert batch["n_chunks"].tolist() == [64 // 8] * 3 and batches.state_dict()["place"] == 6
    assert not torch.equal(batch["input_ids"], other["input_ids"])
    asked.loss()(training, batch).backward()
    assert all(parameter.grad is not None for parameter in model.policy.parameters())


# --- several processes


def refrag() -> Refrag:
    decoder = random_decoder("tiny", seed=0)
    torch.manual_seed(0)
    return Refrag(RefragConfig(k=8), decoder)


def recipe(windows: Path, rows: int = 5) -> RefragRecipe:
    return RefragRecipe(
        stage=Stage(name="cpt", steps=6, optimizer=AdamW(lr=1e-3), accumulation=2, checkpoint_every=100),
        after=("decoder", "pretrain", "tiny"),
        requires=(),
        model=RefragConfig(k=8),
        data=WindowParagraph(context=64, output=32, rows=rows).over(windows),
        expand=(0.0, 0.5, 1.0),
        stored_as="float32",
    )


def curve(device: torch.device, windows: Path, folder: Path, rows: int, stop_after: int | None = None) -> list[float]:
    asked, model, losses = recipe(windows, rows), refrag(), list[float]()
    train(
        asked.stage,
        model,
        asked.batches(model, build_tokenizer()),
        asked.loss(),
        folder,
        device=device,
        progress=lambda step, value, rate: losses.append(value),
        stop_after=stop_after,
    )
    return losses


def tokens(folder: Path) -> Any:
    return [json.loads(line)["tokens"] for line in (folder / "log.jsonl").read_text().splitlines()][-1]


@pytest.mark.parametrize("rows", [5, 2])
def test_several_processes_have_the_loss_curve_of_one_and_fewer_go_on(windows: Path, tmp_path: Path, rows: int) -> None:
    """Chunks stand as tokens at random, rows are unequally many, and in the second case one process has none."""
    alone = curve(torch.device("cpu"), windows, tmp_path / "one", rows)
    before = together(3, curve, windows, tmp_path / "several", rows, 2)
    after = together(2, curve, windows, tmp_path / "several", rows)
    assert all(each == before[0] for each in before) and all(each == after[0] for each in after)
    assert (len(before[0]), len(after[0])) == (2, 4)
    assert before[0] + after[0] == pytest.approx(alone, abs=1e-5)
    assert tokens(tmp_path / "several") == tokens(tmp_path / "one")


def test_bounds_leave_no_row_out() -> None:
    for n in range(9):
        for world in range(1, 6):
            parts = [range(*bounds(n, rank, world)) for rank in range(world)]
            assert [row for part in parts for row in part] == list(range(n))
            assert max(map(len, parts)) - min(map(len, parts)) <= 1
