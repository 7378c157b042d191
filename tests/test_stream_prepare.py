"""Text to windows: exactly the documents' tokens, the same bytes by any number of workers and after any kill."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import shared_path
from stream_text import lines, rows, write, write_text

from harness.cli.main import main
from harness.data.stream import prepare as prepare_module
from harness.data.stream.packing import Packing, Unit, into_units, pack
from harness.data.stream.prepare import StreamConfig, prepare
from harness.data.stream.reading import Columns
from harness.data.stream.shard_files import ShardFile, find_files
from harness.data.stream.tally import KINDS
from harness.data.stream.windows import Windows
from harness.errors import Busy, InputError
from harness.model.load import load_tokenizer
from harness.prompts import text_ids

pytestmark = pytest.mark.usefixtures("one_thread")

CONFIG = StreamConfig(context=64, output=36, most_short=1.0)
LENGTH = 100


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_text(tmp_path_factory.mktemp("source") / "text")


@pytest.fixture(scope="module")
def prepared(text: Path, tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare(str(text), str(tiny_checkpoint), tmp_path_factory.mktemp("prepared") / "windows", CONFIG)


def files_of(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def windows_of_set(folder: Path, name: str) -> list[list[int]]:
    windows = Windows(folder)
    found: list[list[int]] = windows.read(name, np.arange(windows.sizes[name])).tolist()
    return found


def test_windows_are_the_documents_cut_from_their_starts(prepared: Path, tiny_checkpoint: Path) -> None:
    """So none crosses documents, none is missing and none is there twice."""
    tokenizer = load_tokenizer(str(tiny_checkpoint))
    expected: dict[str, list[list[int]]] = {"arxiv": [], "book": [], "c4": []}
    counts = {name: Counter[str]() for name in expected}
    for number, row in enumerate(rows(range(36))):
        name = ("arxiv", "book", "c4")[number % 3]
        (ids,) = text_ids(tokenizer, [row["text"]])
        cut = [ids[i : i + LENGTH] for i in range(0, len(ids) - LENGTH + 1, LENGTH)]
        assert cut, "documents of this test fill windows"
        expected[name] += cut
        counts[name].update(
            documents=1, characters=len(row["text"]), tokens=len(ids), windows=len(cut), rest=len(ids) % LENGTH
        )
    for name, windows in expected.items():
        assert windows_of_set(prepared, name) == windows
    manifest = Windows(prepared).manifest
    assert manifest["sets"] == {name: dict(found) for name, found in counts.items()}
    assert (manifest["dtype"], manifest["layout"]) == ("<u2", {"context": 64, "output": 36, "length": LENGTH})


@pytest.mark.parametrize("workers", [1, 2])
def test_the_bytes_do_not_depend_on_who_made_them(
    text: Path, prepared: Path, tiny_checkpoint: Path, tmp_path: Path, workers: int
) -> None:
    told: list[tuple[int, int]] = []
    again = prepare(
        str(shutil.copytree(text, tmp_path / "text")),
        str(tiny_checkpoint),
        tmp_path / "again",
        CONFIG,
        workers=workers,
        progress=lambda done, total, note: told.append((done, total)),
    )
    assert files_of(again) == files_of(prepared)
    assert told == [(done, 4) for done in range(5)]


def test_what_is_dropped_is_counted_and_the_rest_is_there(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """One of every kind, in one text; and too much of it is refused, before or after the shards are there."""
    folder, good = tmp_path / "text", rows(range(100, 112))
    bad = [
        *(b"no json\n", lines(rows([0])).replace(b"0 ", b"\xff", 1), b'{"text": "x"}\n'),
        *lines([{"meta": good[0]["meta"]}, {**good[0], "text": " "}, {**good[0], "text": "short"}]).splitlines(True),
    ]
    write(folder / "train-0.jsonl", good[:6])
    (folder / "train-1.jsonl").write_bytes(b"".join(bad) + lines(good[6:])[:-30])
    (folder / "train-2.parquet").write_bytes(b"PAR1")
    config = replace(CONFIG, most_bad=0.7)
    out = prepare(str(folder), str(tiny_checkpoint), tmp_path / "out", config)
    manifest = Windows(out).manifest
    assert manifest["read"]["dropped"] == dict.fromkeys(KINDS, 1)
    assert manifest["read"]["first"]["too_short"].startswith("train-1.jsonl: ")
    assert (manifest["read"]["shards"], manifest["read"]["rows"], manifest["read"]["documents"]) == (3, 17, 12)
    clean = prepare(str(write(tmp_path / "clean.jsonl", good[:11])), str(tiny_checkpoint), tmp_path / "clean", CONFIG)
    for name in ("arxiv", "book", "c4"):
        assert windows_of_set(out, name) == windows_of_set(clean, name)
    with pytest.raises(InputError, match="2 bad files of 3, more than the share of 0.05 that --most-bad"):
        prepare(str(folder), str(tiny_checkpoint), out, CONFIG)
    with pytest.raises(InputError, match="too short for a window of 12, .*--most-short"):
        prepare(str(folder), str(tiny_checkpoint), out, replace(config, most_short=0.0))


def test_a_text_that_is_bad_throughout_ends_early(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prepare_module, "ROWS_BEFORE_JUDGING", 20)
    for number in range(5):
        write(tmp_path / "text" / f"train-{number}.jsonl", [{"content": "x"}] * 10)
    with pytest.raises(InputError, match="20 bad rows of 20, .* most are no_set, .*columns content"):
        prepare(str(tmp_path / "text"), str(tiny_checkpoint), tmp_path / "out", CONFIG)


def test_sets_and_mixture(text: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    config = replace(CONFIG, sets=("ArXiv", "Book"), mixture="25/75-by-tokens")
    out = prepare(str(text), str(tiny_checkpoint), tmp_path / "out", config)
    before = Windows(out)
    assert set(before.sizes) == {"arxiv", "book"}
    assert before.mixture == {"arxiv": 0.25, "book": 0.75}
    assert before.manifest["read"]["other_sets"] == {"c4": 12}
    made = (out / "shards" / "00000-book.npy").stat().st_mtime_ns
    after = Windows(prepare(str(text), str(tiny_checkpoint), out, replace(config, mixture="50/50-by-tokens")))
    assert (out / "shards" / "00000-book.npy").stat().st_mtime_ns == made, "a mixture moves no shard"
    assert after.mixture == {"arxiv": 0.5, "book": 0.5} and after.digest != before.digest
    with pytest.raises(InputError, match="unknown set of text 'books' .did you mean 'book'.*arxiv, book, c4"):
        prepare(str(text), str(tiny_checkpoint), tmp_path / "no", replace(CONFIG, sets=("Books", "C4")))


def test_another_preparation_in_the_same_place_is_refused(
    text: Path, prepared: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    out = Path(shutil.copytree(prepared, tmp_path / "out"))
    with pytest.raises(InputError, match="was prepared with another packing; give another --out"):
        prepare(str(text), str(tiny_checkpoint), out, replace(CONFIG, context=65))
    with pytest.raises(InputError, match="was prepared with another split and files"):
        prepare(str(text), str(tiny_checkpoint), out, replace(CONFIG, split="validation"))
    with (out / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(Busy, match="is being prepared by another process"):
            prepare(str(text), str(tiny_checkpoint), out, CONFIG)
    assert files_of(out) == files_of(prepared)


def test_large_vocabularies_take_four_bytes(text: Path, tiny_checkpoint: Path, prepared: Path, tmp_path: Path) -> None:
    files = find_files(str(text), "train").files
    packing = Packing(length=LENGTH, dtype="<u4", columns=Columns(), sets=())
    pack(Unit(number=0, files=files), packing, load_tokenizer(str(tiny_checkpoint)), tmp_path)
    wide = np.load(tmp_path / "00000-book.npy", mmap_mode="r")
    assert wide.dtype == np.uint32
    assert wide.tolist() == windows_of_set(prepared, "book")


@pytest.mark.parametrize(("tokens", "dtype"), [(1 << 16, "<u2"), ((1 << 16) + 1, "<u4")])
def test_the_vocabulary_says_how_many(
    text: Path, tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tokens: int, dtype: str
) -> None:
    tokenizer = load_tokenizer(str(tiny_checkpoint))
    tokenizer.add_tokens([f"<{i}>" for i in range(tokens - len(tokenizer))])
    monkeypatch.setattr(prepare_module, "_tokenizer", lambda name: tokenizer)
    out = prepare(str(text / "train-01.jsonl"), str(tiny_checkpoint), tmp_path / "out", CONFIG)
    assert Windows(out).manifest["dtype"] == dtype


def test_units_are_files_in_order_and_no_larger_than_asked() -> None:
    files = [ShardFile(path=str(i), label=str(i), size=size) for i, size in enumerate((5, 5, 1, 20, 3, 3, 3))]
    units = into_units(files, 10)
    assert [[file.label for file in unit.files] for unit in units] == [["0", "1"], ["2"], ["3"], ["4", "5", "6"]]
    assert [unit.name for unit in units] == ["00000", "00001", "00002", "00003"]
    assert into_units([], 10) == []


# --- kills


def command(text: Path, checkpoint: Path, out: Path, workers: int) -> list[str]:
    return [
        *(sys.executable, "-m", "harness.cli.main", "data", "prepare", "--data", str(text), "--out", str(out)),
        *("--tokenizer", str(checkpoint), "--context", "64", "--output", "36", "--workers", str(workers)),
    ]


@pytest.mark.parametrize("workers", [1, 2])
def test_a_kill_costs_what_was_under_way_and_changes_no_byte(
    tiny_checkpoint: Path, tmp_path: Path, workers: int
) -> None:
    """The workers end with the process that was killed: its output closes when the last of them is gone."""
    text = write_text(tmp_path / "text", files=16, documents=40)
    process = subprocess.Popen(command(text, tiny_checkpoint, tmp_path / "out", workers), stdout=subprocess.PIPE)
    shards = tmp_path / "out" / "shards"
    deadline = time.monotonic() + 120
    while len(list(shards.glob("[0-9]*.json"))) < 1 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=300)
    assert process.returncode == -signal.SIGKILL, "it was done before it could be killed"
    assert not (tmp_path / "out" / "windows.json").exists()
    done = {path: path.stat().st_mtime_ns for path in shards.glob("[0-9]*.json")}
    assert 1 <= len(done) < 16
    (shards / f".00015-book.npy.{os.getpid()}.partial").write_bytes(b"what a kill leaves")
    config = replace(CONFIG, most_short=0.95)
    prepare(str(text), str(tiny_checkpoint), tmp_path / "out", config)
    assert {path: path.stat().st_mtime_ns for path in done} == done, "finished units are not done again"
    prepare(str(text), str(tiny_checkpoint), tmp_path / "whole", config)
    assert files_of(tmp_path / "out") == files_of(tmp_path / "whole")


def test_a_unit_whose_shard_is_gone_or_cut_is_done_again(
    text: Path, prepared: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    out = Path(shutil.copytree(prepared, tmp_path / "out"))
    (out / "shards" / "00001-book.npy").unlink()
    (out / "shards" / "00002-book.npy").write_bytes(b"")
    (out / "shards" / "00003.json").write_text("{")
    prepare(str(text), str(tiny_checkpoint), out, CONFIG)
    assert files_of(out) == files_of(prepared)


# --- the command line


def test_what_was_prepared_is_shown(prepared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "show", str(prepared), "--verify"]) == 0
    said = capsys.readouterr().out
    assert f"windows-{Windows(prepared).digest}: text, split train" in said
    assert "windows of 64 + 36 tokens" in said and "damaged: no shard" in said
    counts = Windows(prepared).manifest["sets"]["book"]
    assert f"{counts['tokens']:,}" in said and f"{counts['windows'] * LENGTH:,}" in said
    assert main(["data", "show", str(prepared), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == Windows(prepared).manifest
    out = Path(shutil.copytree(prepared, tmp_path / "out"))
    shard = out / "shards" / "00001-book.npy"
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(data)
    assert main(["data", "show", str(out), "--verify"]) == 1
    assert "damaged: 00001-book.npy" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--mixture", "50/50"), "expected a mixture such as 50/50-by-tokens, got '50/50'"),
        (("--sets", "book", "--mixture", "50/50-by-tokens"), "expected a share for each of --sets, 1, got 2"),
        (("--workers", "0"), "expected at least 1 worker, got 0"),
        (("--most-bad", "1.5"), "expected a share from 0 to 1 for --most-bad, got 1.5"),
        (("--context", "0"), "expected a context of at least 1 token"),
        (("--tokenizer", "no/such"), "decoder no/such: its tokenizer cannot be loaded"),
        (("--data", "no/such"), "no text 'no/such'"),
        (("--context", "9999"), "no document of 9,999 tokens in 36 rows"),
    ],
)
def test_a_wrong_choice_is_one_line(
    text: Path,
    tiny_checkpoint: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    more: tuple[str, ...],
    message: str,
) -> None:
    given: dict[str, Any] = dict(zip(more[::2], more[1::2], strict=True))
    settings = {
        "--data": str(text),
        "--tokenizer": str(tiny_checkpoint),
        "--out": str(tmp_path / "out"),
        "--output": "0",
        "--most-short": "1",
    }
    assert main(["data", "prepare", *(word for pair in (settings | given).items() for word in pair)]) == 2
    out, err = capsys.readouterr()
    assert message in err and len(err.splitlines()) == 1 and not out


def test_real_books(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """A real shard of three books: every token of them is in a window or counted as what is left."""
    shard = shared_path("data/textpack") / "data" / "validation-book-00000-of-00001.parquet"
    out = prepare(str(shard), str(tiny_checkpoint), tmp_path / "out", replace(CONFIG, sets=("Book",)))
    counts = Windows(out).manifest["sets"]["book"]
    assert counts["documents"] == 3 and counts["characters"] == 1_864_205
    assert counts["tokens"] == counts["windows"] * LENGTH + counts["rest"]
    assert counts["rest"] < 3 * LENGTH


# --- a budget of tokens


def units(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "shards").glob("*.json"))


@pytest.mark.parametrize(
    ("sets", "mixture", "tokens"), [((), None, 2500), (("ArXiv", "Book"), "75/25-by-tokens", 1000)]
)
def test_a_budget_takes_the_first_units_that_have_it(
    text: Path,
    prepared: Path,
    tiny_checkpoint: Path,
    tmp_path: Path,
    sets: tuple[str, ...],
    mixture: str | None,
    tokens: int,
) -> None:
    """By one process, by two, and by two calls of which the first asked for less: the same windows."""

    def ask(out: str, budget: int, workers: int) -> Path:
        config = replace(CONFIG, sets=sets, mixture=mixture, tokens=budget)
        return prepare(str(text), str(tiny_checkpoint), tmp_path / out, config, workers=workers)

    shares = {"arxiv": 0.75, "book": 0.25} if mixture else {}
    reports = [json.loads((prepared / "shards" / name).read_text())["sets"] for name in units(prepared)]

    def have(count: int, name: str) -> int:
        of = [counts["windows"] for report in reports[:count] for s, counts in report.items() if name in (s, "")]
        return sum(of) * LENGTH

    def enough(count: int) -> bool:
        return all(have(count, name) >= share * tokens for name, share in (shares or {"": 1.0}).items())

    expected = next(count for count in range(len(reports) + 1) if enough(count))
    assert 1 < expected < len(reports), "or the test asks for nothing"
    by_one = ask("one", tokens, 1)
    assert len(units(by_one)) == expected, "no more is tokenised than is taken"
    manifest = Windows(by_one).manifest
    assert manifest["budget"] == tokens
    assert {name: counts["windows"] * LENGTH for name, counts in manifest["sets"].items()} == {
        name: have(expected, name) for name in (shares or reports[0])
    }
    ask("again", 300, 1)
    assert Windows(tmp_path / "again").digest != Windows(by_one).digest
    for other in (ask("two", tokens, 2), ask("again", tokens, 1)):
        assert (other / "windows.json").read_bytes() == (by_one / "windows.json").read_bytes()


def test_units_behind_a_gap_do_not_count_yet() -> None:
    """Workers finish them in any order; which are taken is a matter of the text's."""
    report, config = {"sets": {"book": {"windows": 5}}}, replace(CONFIG, tokens=10 * LENGTH)
    assert prepare_module._enough({0: report, 2: report, 3: report}, config, LENGTH) is None
    assert prepare_module._enough({2: report, 1: report, 0: report}, config, LENGTH) == 2


def test_a_budget_that_the_text_has_not_is_refused(text: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    config = replace(CONFIG, sets=("ArXiv", "Book"), mixture="50/50-by-tokens", tokens=10**6)
    with pytest.raises(InputError, match=r"tokens in windows of arxiv, fewer than the 500,000 that --tokens asks for"):
        prepare(str(text), str(tiny_checkpoint), tmp_path, config)
    with pytest.raises(InputError, match="expected a budget of at least 1 token, got 0"):
        replace(config, tokens=0)
