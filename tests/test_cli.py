"""The door: bad input gives one line and exit code 2, leaves no half of a record, and help is quick and teaches."""

import gzip
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from harness.cli.main import VERBS, main
from results.lm_eval_samples import sample

NQ = "hub/google-research-datasets/nq_open"
NQ_ROWS = f"{NQ}/nq_open/validation-00000-of-00001.parquet"


@pytest.fixture
def root(world_root: Path, tmp_path: Path) -> Path:
    """A world that a test may damage."""
    return Path(shutil.copytree(world_root, tmp_path / "data"))


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REFRAG_CACHE", str(tmp_path_factory.mktemp("cache")))


def evaluate(checkpoint: Path, data: Path, runs: Path, *more: str) -> list[str]:
    given = dict(zip(more[::2], more[1::2], strict=True))
    settings = {
        "--system": "standard_rag",
        "--suite": "nq",
        "--checkpoint": str(checkpoint),
        "--data": str(data),
        "--runs": str(runs),
        "--max-new-tokens": "2",
        "--limit": "6",
    }
    return ["evaluate", *(word for pair in (settings | given).items() for word in pair)]


def refused(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> str:
    """Run, expect exit code 2 and exactly one line on stderr; returns that line."""
    capsys.readouterr()
    try:
        code = main(arguments)
    except SystemExit as exit_:  # argparse's own errors
        code = exit_.code
    out, err = capsys.readouterr()
    assert code == 2, err
    assert out == ""
    assert len(err.splitlines()) == 1, err
    return err


def no_record(runs: Path) -> None:
    assert not list(runs.rglob("record.json"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            ("--suite", "nqq"),
            "unknown suite 'nqq' (did you mean 'nq'?); valid choices: arxiv_summary, gold_position, long_range, nq",
        ),
        (("--system", "standard-rag"), "unknown system 'standard-rag' (did you mean 'standard_rag'?); valid choices"),
        (("--checkpoint", "no/such/model"), "no decoder 'no/such/model'"),
        (("--dtype", "float33"), "unknown dtype 'float33'"),
        (("--device", "tpu9"), "device 'tpu9'"),
        (("--set", "template=tags"), "unknown prompt template 'tags'"),
        (("--passages", "3"), "needs a frozen retrieval file"),
        (("--passages", "-1"), "expected at least 0 passages"),
        (("--batch-size", "0"), "expected a batch and a limit of at least 1"),
        (("--limit", "0"), "limit of at least 1"),
        (("--suite", "same_relation", "--passages", "2", "--limit", "-5"), "limit of at least 1"),
        (("--experiment", "my table"), "expected an experiment name of letters"),
        (("--retrieval", "some/file.jsonl"), "closed-book takes no retrieval file"),
        (("--suite", "same_relation", "--passages", "3"), "has 2, 4, 8 passages, not 3"),
        (("--data", "no/such/folder"), "no/such/folder"),
        (("--passages", "two"), "invalid int value: 'two'"),
        (("--passages", "2", "--retrieval", "no/such/file.jsonl"), "no/such/file.jsonl"),
    ],
)
def test_a_wrong_choice(
    tiny_checkpoint: Path,
    world_root: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    change: tuple[str, ...],
    message: str,
) -> None:
    assert message in refused(capsys, evaluate(tiny_checkpoint, world_root, tmp_path / "runs", *change))
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "perplexity", "--limit", "0"], "argument --limit: expected a number of at least 1, got 0"),
        (["run", "tiny", "--limit", "-5"], "argument --limit: expected a number of at least 1, got -5"),
        (["run", "tyni", "--limit", "1"], "unknown experiment 'tyni'"),
        (["run", "tyni"], "unknown experiment 'tyni' (did you mean 'tiny'?)"),
        (["train", "standard_rag", "finetune", "--scale", "huge"], "unknown scale of standard_rag finetune 'huge'"),
        (["train", "standard_rag", "tune"], "did you mean 'finetune'?"),
        (["train", "refrag", "finetune"], "unknown system 'refrag'"),
        (["fly"], "invalid choice: 'fly'"),
        ([], "required: VERB"),
        (["tables", "--records", "no/such/runs"], "refrag-bench run tiny"),
        (["generate", "who", "--checkpoint", "no/such/model"], "no decoder"),
        (["doctor", "--data", "no/such/data"], "no/such/data"),
    ],
)
def test_a_wrong_word(capsys: pytest.CaptureFixture[str], arguments: list[str], message: str) -> None:
    assert message in refused(capsys, arguments)


def test_a_data_folder_without_the_dataset(
    tiny_checkpoint: Path, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(root / NQ)
    line = refused(capsys, evaluate(tiny_checkpoint, root, tmp_path / "runs"))
    assert NQ in line
    assert "akariasai/PopQA" in line, "says what is there"
    no_record(tmp_path)


def test_a_mirror_with_a_missing_column(
    tiny_checkpoint: Path, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = pq.read_table(root / NQ_ROWS).rename_columns(["question", "reply"])
    pq.write_table(table, root / NQ_ROWS)
    line = refused(capsys, evaluate(tiny_checkpoint, root, tmp_path / "runs"))
    assert "missing column answer" in line
    assert "reply" in line
    no_record(tmp_path)


def test_a_row_without_answers_is_named(
    tiny_checkpoint: Path, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = pq.read_table(root / NQ_ROWS).to_pylist()
    rows[4]["answer"] = []
    pq.write_table(pa.Table.from_pylist(rows), root / NQ_ROWS)
    line = refused(capsys, evaluate(tiny_checkpoint, root, tmp_path / "runs"))
    assert "row 4" in line
    assert "at least one answer" in line
    no_record(tmp_path)


def test_a_question_longer_than_the_context(
    tiny_checkpoint: Path, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = pq.read_table(root / NQ_ROWS).to_pylist()
    rows[3]["question"] = "why " * 3000
    pq.write_table(pa.Table.from_pylist(rows), root / NQ_ROWS)
    line = refused(capsys, evaluate(tiny_checkpoint, root, tmp_path / "runs"))
    assert "'why why why" in line
    assert "context holds 4096" in line
    assert not (tmp_path / "runs").exists()


def test_a_checkpoint_of_another_shape(
    tiny_checkpoint: Path, world_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = Path(shutil.copytree(tiny_checkpoint, tmp_path / "other"))
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {"intermediate_size": 99}))
    assert "weights do not fit" in refused(capsys, evaluate(other, world_root, tmp_path / "runs"))
    (other / "config.json").write_text(json.dumps(config | {"model_type": "gpt2"}))
    assert "only 'llama' is supported" in refused(capsys, evaluate(other, world_root, tmp_path / "runs"))
    (other / "config.json").unlink()
    assert "expected config.json" in refused(capsys, evaluate(other, world_root, tmp_path / "runs"))
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("damage", ["{", "[]", "{}"])
def test_a_checkpoint_with_damaged_provenance(
    tiny_checkpoint: Path, world_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], damage: str
) -> None:
    other = Path(shutil.copytree(tiny_checkpoint, tmp_path / "other"))
    (other / "training.json").write_text(damage)
    assert "training.json is damaged" in refused(capsys, evaluate(other, world_root, tmp_path / "runs"))


def test_the_frozen_file_of_another_world(
    tiny_checkpoint: Path, world_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from harness.data.world.mirror import WorldConfig, write_world

    other = write_world(WorldConfig(seed=7, people=120, questions=30, documents=2), tmp_path / "other")
    where = ["--retriever", "bm25", "--data", str(other), "--work", str(tmp_path / "runs"), "--json"]
    assert main(["retrieve", "--suite", "popqa", *where]) == 0
    frozen = json.loads(capsys.readouterr().out)["frozen"]
    given = ("--suite", "popqa", "--passages", "2", "--retrieval", frozen)
    line = refused(capsys, evaluate(tiny_checkpoint, world_root, tmp_path / "runs", *given))
    assert "was frozen for popqa of world-7" in line
    assert "expected popqa of world-0" in line


def test_a_damaged_record(
    tiny_checkpoint: Path, world_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = tmp_path / "runs"
    assert main(evaluate(tiny_checkpoint, world_root, runs)) == 0
    (record,) = runs.rglob("record.json")
    record.write_text(record.read_text()[:100])
    assert "record.json is damaged" in refused(capsys, evaluate(tiny_checkpoint, world_root, runs))


def test_a_corrupt_line_in_the_middle_of_a_journal(
    tiny_checkpoint: Path, world_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = tmp_path / "runs"
    assert main(evaluate(tiny_checkpoint, world_root, runs)) == 0
    (journal,) = runs.rglob("predictions.jsonl")
    (journal.parent / "record.json").unlink()
    lines = journal.read_bytes().splitlines(keepends=True)
    lines[2] = b"\xff garbage\n"
    journal.write_bytes(b"".join(lines))
    assert "predictions.jsonl line 3 is corrupt" in refused(capsys, evaluate(tiny_checkpoint, world_root, runs))
    no_record(runs)


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[tuple[Path, list[str]]]:
    """A folder and the command that mounts a 16 KiB file system on it; unmounted afterwards."""
    folder = tmp_path / "small"
    folder.mkdir()
    if os.geteuid() != 0 or not shutil.which("mount"):
        pytest.skip("mounting a small file system needs root")
    yield folder, ["mount", "-t", "tmpfs", "-o", "size=16k", "tmpfs", str(folder)]
    subprocess.run(["umount", str(folder)], check=False, capture_output=True)


def mount(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"cannot mount here: {done.stderr.strip()}")


def test_a_full_disk(
    tiny_checkpoint: Path,
    world_root: Path,
    tmp_path: Path,
    mounted: tuple[Path, list[str]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder, command = mounted
    mount(command)
    line = refused(capsys, evaluate(tiny_checkpoint, world_root, folder, "--limit", "30"))
    assert "No space left on device" in line
    assert str(folder) in line
    no_record(folder)
    # With room again, the same command goes on and ends with the bytes of an unbroken run.
    mount([*command[:4], "size=10m,remount", *command[5:]])
    assert main(evaluate(tiny_checkpoint, world_root, folder, "--limit", "30")) == 0
    assert main(evaluate(tiny_checkpoint, world_root, tmp_path / "whole", "--limit", "30")) == 0
    (broken,), (whole,) = folder.rglob("predictions.jsonl"), (tmp_path / "whole").rglob("predictions.jsonl")
    assert broken.read_bytes() == whole.read_bytes()


def test_a_read_only_results_folder(
    tiny_checkpoint: Path,
    world_root: Path,
    tmp_path: Path,
    mounted: tuple[Path, list[str]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder, command = mounted
    mount([*command[:4], "ro", *command[5:]])
    assert "Read-only file system" in refused(capsys, evaluate(tiny_checkpoint, world_root, folder))
    assert main(evaluate(tiny_checkpoint, world_root, tmp_path / "runs")) == 0
    capsys.readouterr()
    tables = ["tables", "--records", str(tmp_path / "runs"), "--out", str(folder / "results")]
    line = refused(capsys, [*tables, "--only", "adhoc"])
    assert "Read-only file system" in line


def test_help_is_quick_and_imports_nothing_heavy() -> None:
    code = (
        "import sys; from harness.cli.main import build_parser; build_parser().format_help();"
        "print(sorted({'torch', 'transformers', 'datasets', 'pandas', 'numpy', 'rich', 'mlflow'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help_that_teaches(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        main([verb, "--help"])
    assert exit_.value.code == 0
    shown = capsys.readouterr().out
    assert len(shown.splitlines()) > 8
    for option in ("--ask", "--set"):  # the lists of their values are shared; not every verb takes both
        assert f"({option} NAME=VALUE)" not in shown or f"[{option} NAME=VALUE]" in shown


def test_the_help_of_export_says_what_its_samples_lack(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["export", "--help"])
    row = {"id": "1", "question": "who", "answers": ["Ann"], "prediction": "Bob", "scores": {"em": 0.0}}
    written = sample(0, row, {"max_new_tokens": 8})
    assert (written["arguments"]["gen_args_0"]["arg_0"], set(written["doc"])) == ("who", {"id", "question", "answer"})
    assert "`arguments` and `doc` of a sample hold the question alone" in capsys.readouterr().out


def test_doctor_says_how_to_get_what_is_missing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from harness.cli import doctor

    version = doctor._version
    monkeypatch.setattr(doctor, "_version", lambda name, module: None if "mlflow" in name else version(name, module))
    monkeypatch.setenv("COLUMNS", "120")
    assert main(["doctor"]) == 0
    assert "'.[mlflow]'" in capsys.readouterr().out
    monkeypatch.setattr(doctor, "_version", lambda name, module: None)
    assert main(["doctor"]) == 1


def test_json_is_one_document_on_standard_output(
    tiny_checkpoint: Path, world_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*evaluate(tiny_checkpoint, world_root, tmp_path / "runs"), "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["metrics"]["em"]["n"] == 6
    assert main(["doctor", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["parts"]
    assert main(["status", "--runs", str(tmp_path / "runs"), "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)) == 1


def test_retrieve_then_evaluate_then_generate(
    tiny_checkpoint: Path, world_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = tmp_path / "runs"
    retrieve = ["retrieve", "--suite", "nq", "--retriever", "bm25", "--data", str(world_root), "--work", str(runs)]
    assert main([*retrieve, "--json"]) == 0
    frozen = json.loads(capsys.readouterr().out)
    assert frozen["n"] == 30
    assert 0.8 < frozen["hit@1"] <= frozen["hit@5"] <= frozen["hit@20"] <= 1
    command = evaluate(
        tiny_checkpoint, world_root, runs, "--passages", "4", "--retrieval", frozen["frozen"], "--experiment", "t"
    )
    assert main(command) == 0
    (journal,) = runs.rglob("predictions.jsonl")
    usage = [json.loads(line)["usage"] for line in journal.read_text().splitlines()]
    assert [u["passages_read"] for u in usage] == [4] * 6
    assert "chance" in capsys.readouterr().out
    question = "what is the rival of Nobody Here"
    generate = ["generate", question, "--checkpoint", str(tiny_checkpoint), "--index", frozen["index"], "--json"]
    assert main([*generate, "--passages", "2"]) == 0
    assert len(json.loads(capsys.readouterr().out)["passages"]) == 2
    tables = ["tables", "--records", str(runs), "--out", str(tmp_path / "results"), "--only", "t"]
    assert main(tables) == 0
    assert "Standard RAG" in (tmp_path / "results" / "tables" / "t.md").read_text()


def test_a_given_passage_list_can_be_read(
    tiny_checkpoint: Path, world_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = pq.read_table(world_root / NQ_ROWS).to_pylist()
    given = tmp_path / "given.jsonl.gz"
    ctxs = [{"id": "1", "title": "t", "text": "x"}, {"id": "2", "title": "t", "text": "y"}]
    lines = [
        json.dumps({"id": f"row{i}", "answers": r["answer"], "question": r["question"], "ctxs": ctxs})
        for i, r in enumerate(rows)
    ]
    given.write_bytes(gzip.compress("\n".join(lines).encode()))
    command = evaluate(tiny_checkpoint, world_root, tmp_path / "runs", "--passages", "2", "--retrieval", str(given))
    assert main(command) == 0
    capsys.readouterr()
    too_many = evaluate(tiny_checkpoint, world_root, tmp_path / "runs", "--passages", "3", "--retrieval", str(given))
    assert "holds 2 passages" in refused(capsys, too_many)
