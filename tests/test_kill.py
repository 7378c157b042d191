"""The proof on the real command: ``kill -9`` at 20 random moments, and nothing is lost, doubled or changed.

Slow (each start imports torch and loads a decoder): ``make slow``.
"""

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

KILLS = 20


def command(checkpoint: Path, data: Path, runs: Path) -> list[str]:
    return [
        *(sys.executable, "-m", "harness.cli.main", "evaluate", "--system", "standard_rag", "--suite", "same_relation"),
        *("--passages", "8", "--checkpoint", str(checkpoint), "--data", str(data), "--runs", str(runs)),
        *("--max-new-tokens", "4", "--batch-size", "4", "--experiment", "kill"),
    ]


def draw(runs: Path, out: Path) -> bytes:
    tables = [sys.executable, "-m", "harness.cli.main", "tables", "--records", str(runs), "--out", str(out)]
    subprocess.run(tables, check=True, capture_output=True)
    return b"".join((out / "tables" / f"kill.{kind}").read_bytes() for kind in ("md", "tex", "csv"))


@pytest.mark.slow
def test_twenty_kills_change_no_byte(tmp_path: Path) -> None:
    from harness.data.world.mirror import WorldConfig, write_world
    from harness.data.world.tokenizer import build_tokenizer
    from harness.model.load import random_decoder
    from harness.train.export import export

    world = write_world(WorldConfig(documents=2), tmp_path / "world")
    training = {"data": "world", "init": "random", "recipe": {"template": "tagged"}}
    checkpoint = export(random_decoder("tiny", seed=3), build_tokenizer(), training, tmp_path / "checkpoint")

    # Both trees are called runs, so that the tables' relative links are the same text.
    whole, broken = tmp_path / "whole" / "runs", tmp_path / "broken" / "runs"
    start = time.monotonic()
    subprocess.run(command(checkpoint, world, whole), check=True, capture_output=True)
    full_s = time.monotonic() - start
    (journal,) = whole.rglob("predictions.jsonl")
    # Most of a short run is start-up; kills aim at the part that writes.

    rng, rows, kills = random.Random(1), [], 0
    while kills < KILLS:
        process = subprocess.Popen(
            command(checkpoint, world, broken), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        time.sleep(rng.uniform(0.3 * full_s, full_s))
        process.send_signal(signal.SIGKILL)
        killed = process.wait() == -signal.SIGKILL
        kills += killed
        found = list(broken.rglob("predictions.jsonl"))
        rows.append(found[0].read_bytes().count(b"\n") if found else 0)
        if not killed:  # it finished first: take the record and some rows away, so that there is more to interrupt
            (found[0].parent / "record.json").unlink()
            kept = rng.randrange(rows[-1])
            found[0].write_bytes(b"".join(found[0].read_bytes().splitlines(keepends=True)[:kept]))
    print(f"{kills} kills; rows in the journal after each: {rows}")
    assert sum(0 < count < max(rows) for count in rows) >= 3, "hardly a kill fell into the writing"
    subprocess.run(command(checkpoint, world, broken), check=True, capture_output=True)
    (again,) = broken.rglob("predictions.jsonl")
    assert again.read_bytes() == journal.read_bytes()
    assert draw(broken, tmp_path / "broken" / "results") == draw(whole, tmp_path / "whole" / "results")
