"""What somebody planted in data stays data: no code of a downloaded file runs, no name leads out of its folder, and no
secret is written down. (What is planted for a browser: tests/test_report.py, test_gate.py and test_report_browser.py.)
"""

from __future__ import annotations

import json
import os
import pickle
import re
import shutil
import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import PROJECT
from fakes import spec
from test_shapes import H100, ONE_GPU, bin_folder, command, header

from harness.cli.main import main
from harness.data.stream.packing import _as_file_name
from harness.data.stream.windows import FORMAT as WINDOWS_FORMAT
from harness.data.stream.windows import Windows
from harness.data.text import FORMAT, Text, TextConfig, prepare
from harness.errors import InputError
from harness.files import is_file_name
from harness.model.encoders import load_roberta
from harness.model.load import load_decoder, load_tokenizer
from harness.record import SystemSpec, experiment_name
from harness.train import parts, shards
from slurm.clusters.profiles import find_profile, is_secret
from slurm.execution.arrays import Array
from slurm.execution.launch import build_executor
from slurm.execution.sweep import Sweep
from slurm.gate.job import asked_runs

OUTSIDE = ("../x", "../../x", "/x", "a/../../x", "..", ".", "", "a/b", "a\0b", "..\\x")
PASSWORD = "hunter2-planted"


class Planted:
    """Unpickled, it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (str(self.path),))


# Code


@pytest.fixture
def in_parts(tmp_path: Path) -> tuple[Path, torch.nn.Module]:
    """A checkpoint in parts, and the model that it is of."""
    model = torch.nn.Linear(3, 2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        shards.write(tmp_path / "step", model, [])
    return tmp_path / "step", model


def test_a_checkpoint_in_parts_is_read(in_parts: tuple[Path, torch.nn.Module]) -> None:
    folder, model = in_parts
    other = torch.nn.Linear(3, 2)
    shards.read(folder, other, [])
    assert torch.equal(other.weight, model.weight)


def test_metadata_of_a_checkpoint_cannot_run_code(in_parts: tuple[Path, torch.nn.Module], tmp_path: Path) -> None:
    folder, model = in_parts
    (folder / parts.METADATA).write_bytes(pickle.dumps(Planted(tmp_path / "ran")))
    with pytest.raises(InputError, match="mkdir is no part of it"):
        shards.read(folder, model, [])
    assert not (tmp_path / "ran").exists()


def test_values_of_a_checkpoint_are_tensors(in_parts: tuple[Path, torch.nn.Module]) -> None:
    """torch unpickles what the metadata call bytes."""
    from torch.distributed.checkpoint.metadata import BytesStorageMetadata

    folder, model = in_parts
    found = pickle.loads((folder / parts.METADATA).read_bytes())
    found.state_dict_metadata["model.bias"] = BytesStorageMetadata()
    (folder / parts.METADATA).write_bytes(pickle.dumps(found))
    with pytest.raises(InputError, match="BytesStorageMetadata is no part of it"):
        shards.read(folder, model, [])


@pytest.mark.parametrize("name", OUTSIDE)
def test_parts_of_a_checkpoint_lie_in_its_folder(in_parts: tuple[Path, torch.nn.Module], name: str) -> None:
    folder, model = in_parts
    found = pickle.loads((folder / parts.METADATA).read_bytes())
    for about in found.storage_data.values():
        about.relative_path = name
    (folder / parts.METADATA).write_bytes(pickle.dumps(found))
    with pytest.raises(InputError, match="expected tensors in files of its folder"):
        shards.read(folder, model, [])


def test_moments_of_a_checkpoint_cannot_run_code(tmp_path: Path) -> None:
    from harness.train.checkpoint import TrainingState, restore, save

    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    save(tmp_path, model, [optimizer], TrainingState(step=1, tokens=1, loss=None, data={}), "stage")
    torch.save(Planted(tmp_path / "ran"), tmp_path / "step-000001" / "optimizer.pt")
    with pytest.raises(InputError, match="is damaged"):
        restore(tmp_path, model, [optimizer], "stage")
    assert not (tmp_path / "ran").exists()


def test_code_beside_a_checkpoint_is_not_run(tiny_checkpoint: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(tiny_checkpoint, tmp_path / "copy"))
    (copy / "planted.py").write_text(f"import os\nos.mkdir({str(tmp_path / 'ran')!r})\n")
    for name, own in (("config.json", "AutoConfig"), ("tokenizer_config.json", "AutoTokenizer")):
        document = json.loads((copy / name).read_text())
        named = "planted.A" if own == "AutoConfig" else ["planted.A", "planted.A"]
        changed: dict[str, Any] = {"auto_map": {own: named}}
        if own == "AutoConfig":
            changed["model_type"] = "planted"
        (copy / name).write_text(json.dumps(document | changed))
    with pytest.raises(InputError, match=r"config\.json cannot be read"):
        load_decoder(str(copy))
    shutil.copy(tiny_checkpoint / "config.json", copy / "config.json")
    load_decoder(str(copy))
    load_tokenizer(str(copy))
    assert not (tmp_path / "ran").exists()


def test_pickled_weights_of_an_encoder_are_not_loaded(tmp_path: Path) -> None:
    from harness.model.encoders import ROBERTA_SHAPES, random_roberta

    encoder = random_roberta(sorted(ROBERTA_SHAPES)[-1], 300).model
    encoder.config.save_pretrained(tmp_path / "e")
    torch.save(encoder.state_dict(), tmp_path / "e" / "pytorch_model.bin")
    with pytest.raises(InputError, match="no RoBERTa encoder"):
        load_roberta(str(tmp_path / "e"))


CALL = re.compile(r"\b(Auto\w+|LlamaForCausalLM|RobertaModel)\.from_pretrained\(((?:[^()]|\([^()]*\))*)\)")


def test_every_loader_names_that_it_runs_no_code() -> None:
    calls = [
        (path.name, *found.groups())
        for package in ("harness", "baselines", "refrag_v1", "refrag_v2", "suites", "results", "slurm")
        for path in (PROJECT / package).rglob("*.py")
        for found in CALL.finditer(path.read_text())
    ]
    assert len(calls) >= 7
    for file, kind, given in calls:
        assert "trust_remote_code=False" in given or not kind.startswith("Auto"), (file, kind)
        assert "use_safetensors=True" in given or kind in ("AutoConfig", "AutoTokenizer"), (file, kind)


def test_arrays_hold_no_objects(tmp_path: Path) -> None:
    folder = write_text(tmp_path)
    np.save(folder / "train-book.npy", np.array([Planted(tmp_path / "ran")], dtype=object), allow_pickle=True)
    with pytest.raises(InputError, match="is damaged"):
        Text(folder).ids("train", "book")
    assert not (tmp_path / "ran").exists()


# Paths


@pytest.mark.parametrize("name", OUTSIDE)
def test_what_is_no_name_of_a_file(name: str) -> None:
    assert not is_file_name(name)
    with pytest.raises(InputError, match="experiment name"):
        experiment_name(name)


@pytest.mark.parametrize("name", OUTSIDE)
def test_a_run_lies_below_its_root(name: str) -> None:
    asked = spec()
    for changed in (
        replace(asked, suite=replace(asked.suite, name=name)),  # type: ignore[type-var]
        replace(asked, system=SystemSpec(name=name, config={}, checkpoint="none")),
    ):
        with pytest.raises(InputError, match="that a folder can have"):
            changed.folder(Path("runs"))


def write_text(folder: Path, **changes: Any) -> Path:
    """A prepared text of two documents, 3 and 2 tokens."""
    manifest = {"format": FORMAT, "counts": {"train": {"book": {"documents": 2}}}} | changes
    (folder / "manifest.json").write_text(json.dumps(manifest))
    np.save(folder / "train-book.npy", np.arange(5, dtype=np.uint16))
    np.save(folder / "train-book.starts.npy", np.array([0, 3, 5]))
    return folder


@pytest.mark.parametrize("name", OUTSIDE)
def test_sets_of_a_prepared_text_lie_in_it(name: str, tmp_path: Path) -> None:
    assert len(Text(write_text(tmp_path)).ids("train", "book")[0]) == 5
    for counts in ({"train": {name: {}}}, {name: {"book": {}}}):
        with pytest.raises(InputError, match="is damaged"):
            Text(write_text(tmp_path, counts=counts))


@pytest.mark.parametrize("name", ["../x", "../../x", "/x"])
def test_a_set_of_the_data_names_no_file_elsewhere(name: str, tmp_path: Path) -> None:
    (tmp_path / "text").mkdir()
    row = json.dumps({"text": "some words " * 9, "meta": {"redpajama_set_name": name}}) + "\n"
    for split in ("train", "validation"):
        (tmp_path / "text" / f"{split}.jsonl").write_text(row)
    with pytest.raises(InputError, match="no file can be named after the set"):
        prepare(str(tmp_path / "text"), TextConfig(vocabulary=300), tmp_path / "runs")
    assert is_file_name(_as_file_name(name)), "windows are named by what is left of it, and its digest"


def windows_manifest(**changes: Any) -> dict[str, Any]:
    return {
        "format": WINDOWS_FORMAT, "layout": {"length": 4}, "digest": "d", "mixture": None, "dtype": "<u2",
        "tokenizer": {"digest": "t"}, "shards": [{"file": "0.npy", "set": "book", "windows": 2, "sha256": ""}],
    } | changes  # fmt: skip


@pytest.mark.parametrize("name", OUTSIDE)
def test_shards_lie_in_their_folder(name: str, tmp_path: Path) -> None:
    (tmp_path / "windows.json").write_text(json.dumps(windows_manifest()))
    assert Windows(tmp_path).sizes == {"book": 2}
    (tmp_path / "windows.json").write_text(
        json.dumps(windows_manifest(shards=[{"file": name, "set": "book", "windows": 2, "sha256": ""}]))
    )
    with pytest.raises(InputError, match="is damaged"):
        Windows(tmp_path)


@pytest.mark.parametrize("name", [name for name in OUTSIDE if name != "a/b"])
def test_runs_that_a_gate_stored_lie_below_their_commit(name: str, tmp_path: Path) -> None:
    index = tmp_path / "index.json"
    index.write_text(json.dumps({"cell": "nq/refrag_v2/0123"}))
    assert asked_runs(index) == {"cell": "nq/refrag_v2/0123"}
    index.write_text(json.dumps({"cell": name}))
    with pytest.raises(InputError, match="is damaged"):
        asked_runs(index)


def test_ids_of_questions_and_passages_name_no_files(tmp_path: Path) -> None:
    """A frozen file by name of suite and setting alone; the ids are in its rows."""
    from harness.protocol import Example, Hit, Passage
    from harness.retrieval.rows import make_row, read_rows, write_rows

    passage = Passage(id="../../p", title="../../t", text="x")
    example = Example(id="../../q", question="q", answers=("a",))
    write_rows(tmp_path / "in" / "f.jsonl.gz", [make_row(example, [Hit(passage=passage, score=1.0)], [True])])
    assert [path.name for path in tmp_path.rglob("*")] == ["in", "f.jsonl.gz"]
    assert read_rows(tmp_path / "in" / "f.jsonl.gz")[0][0].id == "../../q"


# Secrets


@pytest.mark.parametrize(
    "url",
    [f"http://me:{PASSWORD}@localhost:6333", f"https://{PASSWORD}@host", f"http://host:6333?api_key={PASSWORD}"],
)
def test_a_qdrant_url_holds_no_secret(url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    corpus = tmp_path / "c.jsonl"
    corpus.write_text('{"id": "1", "title": "t", "text": "x"}\n')
    assert main(["index", "--retriever", "qdrant", "--corpus", str(corpus), "--qdrant-url", url]) == 2
    said = "".join(capsys.readouterr())
    assert "QDRANT_API_KEY" in said and PASSWORD not in said
    assert_unsaid(tmp_path)


def assert_unsaid(folder: Path) -> None:
    for path in folder.rglob("*"):
        assert not path.is_file() or PASSWORD.encode() not in path.read_bytes(), path


@pytest.mark.parametrize(
    ("name", "value", "secret"),
    [
        ("HF_TOKEN", PASSWORD, True),
        ("WANDB_API_KEY", PASSWORD, True),
        ("DB_PASSWORD", PASSWORD, True),
        ("MLFLOW_TRACKING_URI", f"https://me:{PASSWORD}@host/x", True),
        ("WANDB_APIKEY", PASSWORD, True),
        ("X_PASSPHRASE", PASSWORD, True),
        ("QDRANT_URL", f"http://h:6333?api_key={PASSWORD}", True),
        ("QDRANT_URL", "http://h:6333?timeout=3", False),
        ("MLFLOW_TRACKING_URI", "https://host:5000/x", False),
        ("NCCL_SOCKET_IFNAME", "ib0", False),
        ("TOKENIZERS_PARALLELISM", "false", False),
        ("KEYBOARD", "us", False),
    ],
)
def test_which_variables_are_secrets(name: str, value: str, secret: bool) -> None:
    assert is_secret(name, value) == secret


SITES: Mapping[str, str] = {
    "a number": f'[h100]\nenvironment = {{ HF_TOKEN = "{PASSWORD}", A = 1 }}\n',
    "a text": f'[h100]\nenvironment = "HF_TOKEN={PASSWORD}"\n',
    "no table": f'h100 = "{PASSWORD}"\n',
}


@pytest.mark.parametrize("site", SITES)
def test_an_error_in_a_site_file_says_no_secret(site: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "site.toml").write_text(SITES[site])
    monkeypatch.setenv("REFRAG_SITE", str(tmp_path / "site.toml"))
    with pytest.raises(InputError) as caught:
        find_profile("h100")
    assert PASSWORD not in str(caught.value)


def test_an_error_in_a_variable_says_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REFRAG_H100_ENVIRONMENT", f"{{ HF_TOKEN = {PASSWORD} }}")
    with pytest.raises(InputError) as caught:
        find_profile("h100")
    assert PASSWORD not in str(caught.value)


def test_provenance_says_nothing_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    from harness import provenance

    for name in ("HF_TOKEN", "MLFLOW_TRACKING_URI", "QDRANT_API_KEY", "REFRAG_SITE"):
        monkeypatch.setenv(name, PASSWORD)
    assert PASSWORD not in json.dumps(provenance.collect("cpu"))


def test_job_scripts_hold_no_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command(bin_folder(tmp_path, monkeypatch), "srun", "")
    sweep = Sweep.create(tmp_path / "sweeps", header(cluster="h100", parallel=None))
    environment = {"HF_TOKEN": PASSWORD, "MLFLOW_TRACKING_URI": f"https://me:{PASSWORD}@host", "NCCL_DEBUG": "WARN"}
    array = Array(phase="train", shape=ONE_GPU, indices=(0,))
    executor = build_executor(sweep, replace(H100, environment=environment), array, tmp_path / "log")
    text = executor._make_submission_file_text(executor._submitit_command_str, "uid")
    assert "export NCCL_DEBUG=WARN" in text and "HF_TOKEN" not in text and PASSWORD not in text
    assert_unsaid(tmp_path)
