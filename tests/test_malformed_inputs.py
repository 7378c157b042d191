"""What is damaged, on disk or in the environment, is one line of ``InputError``: no traceback, no silent change.

A corpus of damaged files as data, one list of damages by every reader of text that it applies to. Each reader first
reads the sound file, so a case cannot pass because everything is refused.
"""

from __future__ import annotations

import gzip
import json
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harness.cli.main import main
from harness.data.sources import DataRoot
from harness.data.stream.windows import FORMAT as WINDOWS_FORMAT
from harness.data.stream.windows import Windows
from harness.data.text import FORMAT as TEXT_FORMAT
from harness.data.text import Text
from harness.errors import InputError
from harness.model.load import load_decoder
from harness.record import Journal, RunRecord, read_rows
from harness.retrieval.corpus import read_corpus
from harness.retrieval.frozen import read_frozen
from harness.train.export import read_training
from results.latency.journals import SCHEMA as LATENCY_SCHEMA
from results.latency.journals import read as read_latency
from results.replication.configurations import SCHEMA as CONFIGURATIONS_SCHEMA
from results.replication.configurations import read as read_configurations
from results.replication.losses import read as read_losses
from slurm.clusters.profiles import find_profile
from slurm.gate.job import asked_runs

PASSAGE = {"id": "1", "title": "T", "text": "some text"}
RECORD = asdict(
    RunRecord(
        run_id="r", experiments=["e"], notes=[], spec={}, metrics={}, n_examples=1, n_errors=0, n_empty_golds=0,
        timings={}, provenance={},
    )
)  # fmt: skip
ROWS = [{"run_id": "r", "i": number, "id": f"q{number}"} for number in range(3)]
FROZEN = {"id": "q", "question": "who", "answers": ["x"], "ctxs": [{"id": "1", "title": "T", "text": "some text"}]}
TRAINING = {"recipe": {"template": "text"}}


def lines(*rows: Any) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


# Bytes that are no file of any of the formats below.
BROKEN: dict[str, bytes] = {
    "half an object": b'{"id": "1", "ti\n',
    "an open list": b"[1, 2\n",
    "no JSON": b"hello there\n",
    "a comma too many": b'{"id": "1",}\n',
    "single quotes": b"{'id': '1'}\n",
    "no colon": b'{"id" "1"}\n',
    "two objects on a line": b'{"a": 1} {"b": 2}\n',
    "a list": b"[]\n",
    "a list of objects": b'[{"id": "1"}]\n',
    "a number": b"7\n",
    "a text": b'"text"\n',
    "null": b"null\n",
    "true": b"true\n",
    "an empty object": b"{}\n",
    "another's object": b'{"name": "x", "value": 1}\n',
    "Latin-1": b'{"id": "1", "text": "caf\xe9"}\n',
    "half of UTF-8": b'{"text": "\xe2\x82"}\n',
    "UTF-16": '{"id": "1"}\n'.encode("utf-16"),
    "NULs": b"\0" * 64 + b"\n",
    "gzip under another name": gzip.compress(b"{}\n") + b"\n",
    "an image": b"\x89PNG\r\n\x1a\n" + bytes(range(64)) + b"\n",
    "HTML": b"<!doctype html><title>404</title>\n",
    "a Git LFS pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 3\n",
    "a merge conflict": b"<<<<<<< HEAD\n{}\n=======\n{}\n>>>>>>> x\n",
    "bare control characters": b'{"id": "a\x01b"}\n',
}


def corpus(folder: Path, data: bytes) -> Any:
    (folder / "c.jsonl").write_bytes(data)
    return read_corpus(folder / "c.jsonl")


def corpus_gz(folder: Path, data: bytes) -> Any:
    (folder / "c.jsonl.gz").write_bytes(gzip.compress(data))
    return read_corpus(folder / "c.jsonl.gz")


def corpus_folder(folder: Path, data: bytes) -> Any:
    (folder / "a.jsonl").write_bytes(lines(PASSAGE | {"id": "a"}))
    (folder / "b.jsonl").write_bytes(data)
    return read_corpus(folder)


def record(folder: Path, data: bytes) -> Any:
    (folder / "record.json").write_bytes(data)
    return RunRecord.read(folder)


def rows(folder: Path, data: bytes) -> Any:
    (folder / "predictions.jsonl").write_bytes(data)
    return read_rows(folder / "predictions.jsonl", "r")


def journal(folder: Path, data: bytes) -> Any:
    (folder / "predictions.jsonl").write_bytes(data)
    with Journal(folder / "predictions.jsonl", "r") as opened:
        return opened.rows


def journal_after_good_rows(folder: Path, data: bytes) -> Any:
    return journal(folder, lines(*ROWS) + data) if data != lines(*ROWS) else journal(folder, data)


def training(folder: Path, data: bytes) -> Any:
    (folder / "training.json").write_bytes(data)
    return read_training(folder)


def frozen(folder: Path, data: bytes) -> Any:
    (folder / "f.jsonl.gz").write_bytes(gzip.compress(data))
    return read_frozen(folder / "f.jsonl.gz")


def root(folder: Path, data: bytes) -> Any:
    (folder / "hub").mkdir(exist_ok=True)
    (folder / "root.json").write_bytes(data)
    return DataRoot.open(folder)


def frozen_plain(folder: Path, data: bytes) -> Any:
    (folder / "f.jsonl").write_bytes(data)
    return read_frozen(folder / "f.jsonl")


READERS: dict[str, tuple[Callable[[Path, bytes], Any], bytes]] = {
    "corpus": (corpus, lines(PASSAGE)),
    "corpus, gzipped": (corpus_gz, lines(PASSAGE)),
    "corpus, a folder": (corpus_folder, lines(PASSAGE)),
    "record": (record, lines(RECORD)),
    "journal, finished": (rows, lines(*ROWS)),
    "journal": (journal, lines(*ROWS)),
    "journal, at its end": (journal_after_good_rows, lines(*ROWS)),
    "training.json": (training, lines(TRAINING)),
    "a data root's name": (root, lines({"name": "mine"})),
    "frozen": (frozen, lines(FROZEN)),
    "frozen, plain": (frozen_plain, lines(FROZEN)),
}


def windows(folder: Path, data: bytes) -> Any:
    (folder / "windows.json").write_bytes(data)
    return Windows(folder)


def text(folder: Path, data: bytes) -> Any:
    (folder / "manifest.json").write_bytes(data)
    return Text(folder)


def losses(folder: Path, data: bytes) -> Any:
    (folder / "l.csv").write_bytes(data)
    return read_losses(folder / "l.csv")


def latency_journal(folder: Path, data: bytes) -> Any:
    (folder / "latency.jsonl").write_bytes(data)
    return read_latency(folder / "latency.jsonl")


def configurations(folder: Path, data: bytes) -> Any:
    (folder / "c.json").write_bytes(data)
    return read_configurations(folder / "c.json")


def stored(folder: Path, data: bytes) -> Any:
    (folder / "asked.json").write_bytes(data)
    return asked_runs(folder / "asked.json")


WINDOWS = {
    "format": WINDOWS_FORMAT, "layout": {"length": 4}, "digest": "d", "mixture": None, "dtype": "<u2",
    "tokenizer": {"digest": "t"}, "shards": [{"file": "0.npy", "set": "book", "windows": 2, "sha256": ""}],
}  # fmt: skip
LOSSES = b"way,k,seed,step,tokens,loss,training,commit\nours,8,0,1,100,2.5,t,c\n"
READERS |= {
    "windows": (windows, lines(WINDOWS)),
    "prepared text": (text, lines({"format": TEXT_FORMAT, "counts": {"train": {"book": {}}}})),
    "losses": (losses, LOSSES),
    "latency journal": (latency_journal, lines({"kind": "run", "schema": LATENCY_SCHEMA, "labels": []})),
    "configurations": (configurations, lines({"schema": CONFIGURATIONS_SCHEMA, "facts": {"a": {}}})),
    "stored gate": (stored, lines({"cell": "nq/refrag_v2/0123"})),
}


@pytest.mark.parametrize(
    "change",
    [
        {"layout": None}, {"layout": {"length": 0}}, {"layout": {"length": "x"}}, {"dtype": "<f4"}, {"dtype": "none"},
        {"tokenizer": {}}, {"shards": [7]}, {"shards": [{"file": "0.npy", "set": "book", "windows": -1}]},
        {"shards": {"a": 1}}, {"format": "1"},
    ],
    ids=str,
)  # fmt: skip
def test_a_wrong_value_in_a_manifest_of_windows(change: dict[str, Any], tmp_path: Path) -> None:
    refused(lambda: windows(tmp_path, lines(WINDOWS | change)))


@pytest.mark.parametrize("file", ["train-book.npy", "train-book.starts.npy"])
@pytest.mark.parametrize("damage", ["cut", "empty", "gone", "header only", "of another type", "of another length"])
def test_damaged_ids_of_a_prepared_text(file: str, damage: str, tmp_path: Path) -> None:
    text(tmp_path, READERS["prepared text"][1])
    np.save(tmp_path / "train-book.npy", np.arange(5, dtype=np.uint16))
    np.save(tmp_path / "train-book.starts.npy", np.array([0, 3, 5]))
    assert len(Text(tmp_path).ids("train", "book")[0]) == 5
    path = tmp_path / file
    data = path.read_bytes()
    match damage:
        case "gone":
            path.unlink()
        case "of another type":
            np.save(path, np.arange(5, dtype=np.float32))
        case "of another length":
            np.save(path, np.arange(4, dtype=np.load(path).dtype))
        case _:
            path.write_bytes(data[: {"cut": len(data) - 1, "empty": 0, "header only": 128}[damage]])
    refused(lambda: Text(tmp_path).ids("train", "book"))


HUGE = (1 << 62).to_bytes(8, "little")


@pytest.mark.parametrize(
    "damage", [b"", b"\0", HUGE, HUGE + b"{}", b"\2" + bytes(7) + b"{}", b"\4" + bytes(7) + b"null"]
)
def test_a_damaged_header_of_weights(damage: bytes, tiny_checkpoint: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(tiny_checkpoint, tmp_path / "c"))
    (copy / "model.safetensors").write_bytes(damage)
    refused(lambda: load_decoder(str(copy)))


def refused(read: Callable[[], Any]) -> None:
    with pytest.raises(InputError) as caught:
        read()
    assert str(caught.value).strip()


@pytest.mark.parametrize("reader", READERS)
def test_a_sound_file_is_read(reader: str, tmp_path: Path) -> None:
    read, sound = READERS[reader]
    assert read(tmp_path, sound) is not None


# An object of other fields is a root without a name of its own.
NAMELESS = ("an empty object", "another's object")


@pytest.mark.parametrize(
    ("reader", "damage"),
    [(r, d) for r in READERS for d in BROKEN if not (r in ("a data root's name", "stored gate") and d in NAMELESS)],
)
def test_a_broken_file_is_refused(reader: str, damage: str, tmp_path: Path) -> None:
    read, _ = READERS[reader]
    refused(lambda: read(tmp_path, BROKEN[damage]))


NO_TEXT: tuple[Any, ...] = (None, "", " ", "\t\n", 1, 1.5, True, [], ["a"], {}, {"a": 1}, "\ud800")


@pytest.mark.parametrize("value", NO_TEXT, ids=repr)
@pytest.mark.parametrize("reader", ["corpus", "corpus, gzipped", "corpus, a folder"])
def test_a_passage_without_text_is_named(reader: str, value: Any, tmp_path: Path) -> None:
    refused(lambda: READERS[reader][0](tmp_path, lines(PASSAGE, PASSAGE | {"id": "2", "text": value})))


WRONG_FIELDS: dict[str, list[str]] = {
    "7": ["partition", "account", "qos", "constraint", "gpu_type", "cpu_partition", "shared", "modules", "environment"],
    '"7"': ["gpus_per_node", "cpus_per_gpu", "memory_gb", "time_min", "gpu_hour_price", "modules", "environment"],
    "-1": ["gpus_per_node", "cpus_per_gpu", "memory_gb", "time_min", "gpu_hour_price"],
    "true": ["gpus_per_node", "cpus_per_gpu", "memory_gb", "time_min", "gpu_hour_price", "partition", "shared"],
    "[1]": ["modules", "partition", "time_min", "environment", "shared"],
    "{ A = 1 }": ["environment", "modules", "partition", "time_min"],
}


@pytest.mark.parametrize(("field", "value"), [(f, v) for v, names in WRONG_FIELDS.items() for f in names])
def test_a_wrong_value_in_a_site_file(field: str, value: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "site.toml").write_text(f"[h100]\n{field} = {value}\n")
    monkeypatch.setenv("REFRAG_SITE", str(tmp_path / "site.toml"))
    with pytest.raises(InputError, match=field):
        find_profile("h100")


@pytest.mark.parametrize("reader", ["corpus", "corpus, gzipped", "record", "training.json", "frozen", "frozen, plain"])
def test_an_empty_file_is_refused(reader: str, tmp_path: Path) -> None:
    refused(lambda: READERS[reader][0](tmp_path, b""))


COMMANDS: tuple[str, ...] = (
    "evaluate",
    "evaluate --system",
    "evaluate --system standard_rag --suite nq",
    "evaluate --system rag --suite passkey --ask length=64 --checkpoint x",
    "evaluate --system standard_rag --suite passkey --ask length --checkpoint x",
    "evaluate --system standard_rag --suite nq --checkpoint x --limit 1.5",
    "evaluate --system standard_rag --suite nq --checkpoint x --batch-size x",
    "lm-eval",
    "lm-eval --system standard_rag --checkpoint x",
    "lm-eval --system standard_rag --checkpoint x --tasks nq",
    "lm-eval --system standard_rag --checkpoint x --tasks ,",
    "lm-eval --system standard_rag --checkpoint x --tasks nq_open --ask length=3",
    "lm-eval --system standard_rag --checkpoint x --tasks passkey --ask length",
    "export",
    "export nowhere",
    "export nowhere --out x",
    "export . --out x",
    "retrieve",
    "retrieve --suite nq --retriever lucene --data nowhere",
    "index --retriever bm25 --corpus nowhere.jsonl",
    "index --retriever bm25 --corpus nowhere.docx",
    "ledger --verdict perhaps",
    "plan --scale huge",
    "plan --k x",
    "tables --records nowhere",
    "gate",
    "gate --base HEAD --suites everything",
    "gate --base HEAD --rounds few",
    "gate --base HEAD --only colours",
    "sweep submit nothing --cluster local",
    "sweep submit smoke --cluster moon",
    "sweep",
    "run nothing",
    "run",
    "doctor --data nowhere",
    "doctor --cluster moon",
)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_that_cannot_be_run_is_one_line_and_code_2(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("REFRAG_DATA", raising=False)
    try:
        code = main(command.split())
    except SystemExit as exit_:  # argparse's own
        code = exit_.code  # type: ignore[assignment]
    out, err = capsys.readouterr()
    assert (code, out, len(err.splitlines())) == (2, "", 1), err
    assert not list(tmp_path.iterdir()), "nothing was written"
