"""The evaluation loop: nothing lost, nothing doubled, no half of a record, whatever happens to the process."""

import json
import os
import random
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from fakes import EchoSystem, ListSuite, questions, spec

from harness.errors import InputError
from harness.protocol import Example
from harness.record import Journal, RunRecord, join, publish
from harness.run import evaluate

CPU = torch.device("cpu")


def run(runs: Path, n: int = 10, system: EchoSystem | None = None, **changes: object) -> RunRecord:
    return evaluate(
        spec(**changes), ListSuite(questions(n)), system or EchoSystem(), runs, experiment="test", device=CPU
    )


def journal(runs: Path) -> Path:
    return spec().folder(runs) / "predictions.jsonl"


def test_a_record_holds_every_example_and_metric(tmp_path: Path) -> None:
    record = run(tmp_path)
    rows = [json.loads(line) for line in journal(tmp_path).read_text().splitlines()]
    assert [row["i"] for row in rows] == list(range(10))
    assert record.metrics["em"]["mean"] == 0.6
    assert record.metrics["em"]["n"] == 10
    assert record.metrics["em"]["method"] == "wilson"
    assert record.n_errors == 0
    assert RunRecord.read(spec().folder(tmp_path)) == json_round_trip(record)


def json_round_trip(record: RunRecord) -> RunRecord:
    from harness.config import plain

    return RunRecord(**json.loads(json.dumps(plain(record))))


def test_done_is_done(tmp_path: Path) -> None:
    first = run(tmp_path)
    system = EchoSystem()
    assert run(tmp_path, system=system).metrics == first.metrics
    assert system.batches == []


def test_a_finished_run_can_join_another_experiment(tmp_path: Path) -> None:
    run(tmp_path)
    system = EchoSystem()
    record = evaluate(spec(), ListSuite(questions(10)), system, tmp_path, experiment="other", device=CPU)
    assert record.experiments == ["test", "other"]
    assert RunRecord.read(spec().folder(tmp_path)) == json_round_trip(record)
    assert system.batches == []


def at_once(work: Sequence[Callable[[], object]], monkeypatch: pytest.MonkeyPatch) -> None:
    """Every piece of ``work`` in a process of its own, each slow to write what it read a record for."""
    written = RunRecord.write

    def write_late(record: RunRecord, folder: Path) -> None:
        time.sleep(0.03)
        written(record, folder)

    monkeypatch.setattr(RunRecord, "write", write_late)
    children = []
    for piece in work:
        children.append(os.fork())
        if children[-1] == 0:
            failed = True
            try:
                piece()
                failed = False
            finally:
                os._exit(failed)
    assert [os.waitpid(child, 0)[1] for child in children] == [0] * len(work)


def test_processes_that_join_one_run_to_their_tables_at_once_all_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = run(tmp_path)
    folder, names = spec().folder(tmp_path), [f"table-{i}" for i in range(6)]
    at_once([partial(join, folder, [name]) for name in names], monkeypatch)
    found = RunRecord.read(folder)
    assert found.experiments[0] == "test"
    assert sorted(found.experiments[1:]) == names
    assert replace(found, experiments=["test"]) == json_round_trip(record), "and nothing else changed"


def test_processes_that_publish_and_join_one_run_at_once_lose_no_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each found no record, and went on where the journal of the other ended."""
    record = run(tmp_path)
    folder, names = spec().folder(tmp_path), [f"table-{i}" for i in range(6)]
    work = [partial(publish, replace(record, experiments=[name]), folder) for name in names[:3]]
    at_once([*work, *(partial(join, folder, [name]) for name in names[3:])], monkeypatch)
    assert sorted(RunRecord.read(folder).experiments) == sorted(["test", *names])


def test_a_run_that_is_in_a_table_already_is_not_written_again(tmp_path: Path) -> None:
    """Accepted records may lie where nothing can be written."""
    run(tmp_path)
    folder = spec().folder(tmp_path)
    before = {path.name: path.stat().st_ino for path in folder.iterdir()}
    folder.chmod(0o500)
    try:
        assert join(folder, ["test"]).experiments == ["test"]
    finally:
        folder.chmod(0o700)
    assert {path.name: path.stat().st_ino for path in folder.iterdir()} == before


def test_a_run_that_another_process_published_meanwhile_stays_in_its_table(tmp_path: Path) -> None:
    folder, finished = spec().folder(tmp_path), run(tmp_path / "elsewhere")

    def last(done: int, total: int) -> None:
        if done == total:
            replace(finished, experiments=["theirs"]).write(folder)

    record = evaluate(
        spec(), ListSuite(questions(10)), EchoSystem(), tmp_path, experiment="ours", device=CPU, progress=last
    )
    assert record.experiments == RunRecord.read(folder).experiments == ["theirs", "ours"]


@pytest.mark.parametrize("rows", range(11))
@pytest.mark.parametrize("torn", [b"", b'{"run_id": "abc', b"\x00\x00", b"{}"])
def test_goes_on_where_the_journal_ends(tmp_path: Path, rows: int, torn: bytes) -> None:
    run(tmp_path / "whole")
    whole = journal(tmp_path / "whole").read_bytes()
    broken = journal(tmp_path / "broken")
    broken.parent.mkdir(parents=True)
    broken.write_bytes(b"".join(whole.splitlines(keepends=True)[:rows]) + torn)
    system = EchoSystem()
    record = run(tmp_path / "broken", system=system)
    assert broken.read_bytes() == whole
    assert record.n_examples == 10
    # Batches are those of an unbroken run, so that padding is too.
    assert all(
        batch == tuple(f"word{i} ?" for i in range(*span))
        for batch, span in zip(reversed(system.batches), [(8, 10), (4, 8), (0, 4)], strict=False)
    )
    assert len(system.batches) == 3 - (3 if rows == 10 else rows // 4)


def test_killed_at_random_moments_ends_byte_equal(tmp_path: Path) -> None:
    run(tmp_path / "whole", n=60)
    rng, killed = random.Random(0), 0
    for _ in range(20):
        child = os.fork()
        if child == 0:
            try:
                run(tmp_path / "broken", n=60, system=EchoSystem(delay_s=0.001))
            finally:
                os._exit(0)
        time.sleep(rng.uniform(0.0, 0.1))
        os.kill(child, signal.SIGKILL)
        killed += os.WIFSIGNALED(os.waitpid(child, 0)[1])
    assert killed >= 3, "the run was hardly ever interrupted"
    run(tmp_path / "broken", n=60)
    record = spec().folder(tmp_path / "broken") / "record.json"
    assert journal(tmp_path / "broken").read_bytes() == journal(tmp_path / "whole").read_bytes()
    left = {path.name for path in record.parent.iterdir() if not path.name.startswith(".")}
    assert left == {"spec.json", "predictions.jsonl", "timings.jsonl", "record.json"}


@pytest.mark.parametrize(
    ("line", "bad", "message"),
    [
        (1, b"not json\n", "line 2 is corrupt"),
        (1, b'{"run_id": "another", "i": 1}\n', "belongs to another run"),
        (2, None, "expected example 2, got 1"),
    ],
)
def test_a_damaged_journal_is_refused_by_line(tmp_path: Path, line: int, bad: bytes | None, message: str) -> None:
    run(tmp_path)
    path = journal(tmp_path)
    (path.parent / "record.json").unlink()
    lines = path.read_bytes().splitlines(keepends=True)
    lines[line] = bad if bad is not None else lines[line - 1]
    path.write_bytes(b"".join(lines))
    before = path.read_bytes()
    with pytest.raises(InputError, match=message):
        run(tmp_path)
    assert path.read_bytes() == before
    assert not (path.parent / "record.json").exists()


def test_a_record_can_be_made_without_git(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    record = run(tmp_path / "runs")
    assert (record.provenance["commit"], record.provenance["dirty"]) == (None, None)


def test_two_writers_are_refused(tmp_path: Path) -> None:
    with Journal(tmp_path / "predictions.jsonl", "x"), pytest.raises(InputError, match="another process"):
        Journal(tmp_path / "predictions.jsonl", "x").__enter__()


def test_every_part_of_the_spec_makes_another_run(tmp_path: Path) -> None:
    from dataclasses import replace

    base = spec()
    others = [
        spec(seed=1),
        spec(passages=1),
        spec(prompt_version=2),
        spec(metric_version=2),
        spec(system=replace(base.system, checkpoint="other")),
        spec(system=replace(base.system, config={"k": 8})),
        spec(suite=replace(base.suite, revision="1")),
        spec(suite=replace(base.suite, limit=5)),
        spec(decode=replace(base.decode, batch_size=8)),
        spec(decode=replace(base.decode, dtype="bfloat16")),
    ]
    assert len({s.run_id for s in [base, *others]}) == len(others) + 1


def test_a_failing_batch_is_an_error_and_never_a_wrong_answer(tmp_path: Path) -> None:
    examples = questions(10)
    examples[5] = Example(id="q5", question="explode now", answers=("explode",))
    record = evaluate(spec(), ListSuite(examples), EchoSystem(), tmp_path, experiment="test", device=CPU)
    assert record.n_errors == 4
    assert record.metrics["em"]["n"] == 6
    rows = [json.loads(line) for line in journal(tmp_path).read_text().splitlines()]
    assert [row["id"] for row in rows if "error" in row] == ["q4", "q5", "q6", "q7"]
    assert rows[5]["error"] == "RuntimeError: device on fire"
    assert "prediction" not in rows[5]


def test_all_batches_failing_still_makes_a_record(tmp_path: Path) -> None:
    examples = [Example(id="q", question="explode now", answers=("x",))]
    record = evaluate(spec(), ListSuite(examples), EchoSystem(), tmp_path, experiment="test", device=CPU)
    assert (record.n_errors, record.metrics) == (1, {})


def test_hopeless_input_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="longer than the context"):
        run(tmp_path, system=EchoSystem(window=10))
    unanswered = [Example(id="q7", question="who", answers=())]
    with pytest.raises(InputError, match="'q7'.*no gold answers"):
        evaluate(spec(), ListSuite(unanswered), EchoSystem(), tmp_path, experiment="test", device=CPU)
    with pytest.raises(InputError, match="no examples"):
        evaluate(spec(), ListSuite([]), EchoSystem(), tmp_path, experiment="test", device=CPU)
    assert list(tmp_path.iterdir()) == []


def test_golds_that_normalise_to_nothing_are_counted(tmp_path: Path) -> None:
    examples = [*questions(3), Example(id="star", question="which sign", answers=("*",))]
    record = evaluate(spec(), ListSuite(examples), EchoSystem(), tmp_path, experiment="test", device=CPU)
    assert record.n_empty_golds == 1


def test_times_are_kept_out_of_the_journal(tmp_path: Path) -> None:
    record = run(tmp_path)
    assert b"_s" not in journal(tmp_path).read_bytes().replace(b"match_selfrag", b"")
    assert record.timings["ttft_s"]["n"] == 2, "three batches, of which the first warms up"
    assert record.timings["ttft_s"]["median"] <= record.timings["ttft_with_encode_s"]["median"]
