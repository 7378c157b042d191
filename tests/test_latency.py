"""The latency lab: what is timed, in which order, what the journal says, and that a run can be cut off anywhere."""

from __future__ import annotations

import json
import subprocess
import sys
from copy import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from harness.cli.main import main
from harness.errors import InputError
from harness.model.llama import Llama
from harness.model.load import Decoder, random_decoder
from harness.roofline import LlamaShape, prefill
from harness.roofline_limits import Ceilings
from results.latency.journals import AGAIN, REFERENCE
from slurm.jobs import latency
from slurm.jobs.latency import JOURNAL, LatencyJob
from slurm.latency.encoders import ENCODERS
from slurm.latency.lanes import Lane, build_lanes
from slurm.latency.search import build_search, search_work
from suites.latency import Ids, Workload

LENGTH, QUESTION = 256, 32


def job(out: Path, **changes: Any) -> LatencyJob:
    settings: dict[str, Any] = dict(
        shape="tiny", lengths=(LENGTH,), batches=(1,), out=out, rounds=1, new_tokens=3, indexed=500
    )
    return LatencyJob(**settings | changes)


def journal_of(path: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    header, *rows = map(json.loads, path.read_text().splitlines())
    return header, rows


@pytest.fixture(scope="module")
def lanes() -> tuple[list[Lane], Ids]:
    model = random_decoder("tiny", seed=0)
    tokenizer: Any = Ids(model.config.vocab_size)
    return build_lanes("tiny", Decoder(model=model, tokenizer=tokenizer, checkpoint="", source="")), tokenizer


@pytest.fixture(autouse=True)
def quick_ceilings(monkeypatch: pytest.MonkeyPatch) -> None:
    """The header's two ceilings take a second; their own tests are in test_roofline.py."""
    found = Ceilings(flops_per_s=1e11, bytes_per_s=1e10, attention_flops_per_s=1e11, device="cpu", dtype="float32")
    monkeypatch.setattr("harness.roofline.measure_ceilings", lambda *_: found)
    monkeypatch.setattr(latency, "OVERHEAD_SAMPLES", 3)
    monkeypatch.setattr(latency, "SEARCHES", 2)


# The workload


def test_a_request_has_exactly_its_tokens_and_no_two_share_any() -> None:
    tokenizer = Ids(974)
    load = Workload(length=LENGTH, batch=2, passage_tokens=128, question_tokens=QUESTION)
    first, second = load.request(tokenizer, 0), load.request(tokenizer, 1)
    for request in (first, second):
        texts = [[p.text for p in row] for row in request.passages]
        assert [sum(map(len, tokenizer(row)["input_ids"])) for row in texts] == [LENGTH, LENGTH]
        assert list(map(len, tokenizer(request.questions)["input_ids"])) == [QUESTION, QUESTION]
    assert len({tuple(row) for row in tokenizer.rows}) == len(tokenizer.rows) == 2 * (2 * 2 + 2)
    assert all(0 < token < 974 for row in tokenizer.rows for token in row)


def test_a_request_depends_on_its_number_alone() -> None:
    load = Workload(length=128, batch=1, passage_tokens=128, question_tokens=4)
    one, other = Ids(974), Ids(974)
    load.request(one, 3)
    load.request(other, 3)
    assert one.rows == other.rows


def test_a_template_around_a_name_adds_no_token() -> None:
    tokenizer = Ids(974)
    name = tokenizer.name([5, 6, 7])
    assert tokenizer([f"Title: \nText: {name}\n\n"])["input_ids"] == [[5, 6, 7]]


@pytest.mark.parametrize("changes", [dict(length=100), dict(length=0), dict(batch=0)], ids=str)
def test_a_workload_that_cannot_be_is_refused(changes: dict[str, int]) -> None:
    with pytest.raises(InputError, match="expected"):
        Workload(**dict(length=LENGTH, batch=1, passage_tokens=128, question_tokens=4) | changes)


# The lanes


def test_the_lanes_are_the_systems_of_the_paper_and_what_they_are_compared_with(
    lanes: tuple[list[Lane], Ids],
) -> None:
    labels = [lane.label for lane in lanes[0]]
    assert labels[:2] == [REFERENCE, AGAIN]
    assert len(set(labels)) == len(labels)
    assert {"KV reuse", "CEPE", "CEPE (K/V recomputed)", "REFRAG v1 k=64"} < set(labels)
    assert {f"REFRAG k={k}{more}" for k in (8, 16, 32) for more in ("", " +10% first", " +10% policy")} < set(labels)


@pytest.mark.parametrize("batch", [1, 2])
def test_the_arithmetic_of_a_lane_is_of_the_positions_that_its_system_reads(
    lanes: tuple[list[Lane], Ids], batch: int
) -> None:
    load = Workload(length=512, batch=batch, passage_tokens=128, question_tokens=QUESTION)
    shape = LlamaShape.of(random_decoder("tiny", seed=0).config)
    request = load.request(lanes[1], 0)
    read = {}
    for lane in lanes[0]:
        context = lane.system.encode(request.passages)
        read[lane.label] = lane.system.usage(request.questions, context, max_new_tokens=2)[0].decoder_positions
        if lane.name in ("kv_reuse", "cepe"):
            continue  # they attend to what they do not read anew
        expected = prefill(shape, new=read[lane.label], batch=batch, itemsize=4)
        assert lane.work(load, 0).prefill.flops == pytest.approx(expected.flops), lane.label
    assert read["standard RAG"] == read["KV reuse"] == 512 + QUESTION
    assert read["CEPE"] == QUESTION
    assert read["REFRAG k=32"] == 512 // 32 + QUESTION
    assert read["REFRAG k=32 +10% policy"] == 14 + 2 * 32 + QUESTION
    assert read["REFRAG v1 k=64"] == 512 // 64 + QUESTION


def test_all_lanes_share_one_decoder(lanes: tuple[list[Lane], Ids]) -> None:
    """At 7 B parameters a copy each would not fit anywhere; laying weights side by side must not make any."""
    found = {lane.system.llama.qkv[0].data_ptr() for lane in lanes[0] if hasattr(lane.system, "llama")}
    assert len(found) == 1
    decoder = lanes[0][0].system.llama.model
    fused = lanes[0][0].system.llama.qkv[0]
    attention = decoder.model.layers[0].self_attn
    joined = torch.cat([attention.q_proj.weight, attention.k_proj.weight, attention.v_proj.weight])
    assert torch.equal(fused, joined)


def test_a_shape_without_encoders_is_refused() -> None:
    with pytest.raises(InputError, match="valid choices"):
        build_lanes("nope", None)  # type: ignore[arg-type]


# The run


def test_a_run_leaves_a_header_and_a_row_of_every_lane(tmp_path: Path) -> None:
    header, rows = journal_of(job(tmp_path, rounds=2, batches=(2,)).run())
    assert (header["kind"], header["shape"], header["rounds"]) == ("run", "tiny", 2)
    assert header["ceilings"]["flops_per_s"] == 1e11
    (search,) = header["search"]
    assert (search["batch"], search["best"], len(search["seconds"])) == (2, LENGTH // 128, 2)
    assert len(header["overhead_s"]) == 3 and all(sample > 0 for sample in header["overhead_s"])
    assert {row["label"] for row in rows} >= {REFERENCE, AGAIN, "REFRAG k=16"}
    for row in rows:
        assert (row["length"], row["batch"], row["error"]) == (LENGTH, 2, None)
        samples = row["samples"]
        assert len(samples["prefill_s"]) == len(samples["with_encode_s"]) == len(samples["total_s"]) == 2
        assert len(samples["ttit_s"]) == 2 * (3 - 1), "no answer ends early"
        assert samples["prefill_device_s"] == []
        together = zip(samples["prefill_s"], samples["with_encode_s"], samples["total_s"], strict=True)
        assert all(0 < prefill_s < with_encode_s < total_s for prefill_s, with_encode_s, total_s in together)
        assert row["memory"]["peak_bytes"] is None
        assert row["work"]["prefill"]["flops"] > row["work"]["decode"]["flops"] > 0
    by_label = {row["label"]: row for row in rows}
    assert by_label[REFERENCE]["passes"] == {"prefill eager": 2, "decode eager": 2 * 2}, "of the rounds alone"
    assert by_label["transformers.generate"]["passes"] == {}, "its forward is not ours"
    assert by_label["KV reuse"]["memory"]["stored_bytes"] == 2 * LENGTH * 2 * 4 * 128 * 4
    assert by_label["REFRAG k=16"]["memory"]["stored_bytes"] == 2 * LENGTH // 16 * 128 * 4
    assert by_label["standard RAG"]["memory"]["kv_bytes"] == 2 * (LENGTH + QUESTION + 2) * 2 * 4 * 128 * 4


def test_a_search_finds_the_nearest_vectors_and_counts_what_it_reads() -> None:
    search = build_search(300, 50, torch.device("cpu"), torch.float32)
    ids = torch.randint(50, (2, 7), generator=torch.Generator().manual_seed(0))
    query = search.encoder(ids, torch.ones_like(ids)).mean(1)
    scores = torch.nn.functional.cosine_similarity(query[:, None], search.vectors_ND[None], dim=-1)
    assert torch.equal(search(ids, 5), scores.argsort(-1, descending=True)[:, :5])
    work = search_work(search, batch=2, question_tokens=7)
    alone = search_work(replace(search, vectors_ND=search.vectors_ND[:1]), batch=2, question_tokens=7)
    assert work.flops - alone.flops == 2 * 2 * 299 * 384
    assert work.bytes - alone.bytes == 299 * 384 * 4


def test_lengths_are_measured_in_the_order_given(tmp_path: Path) -> None:
    _, rows = journal_of(job(tmp_path, lengths=(256, 128), batches=(1,)).run())
    assert list(dict.fromkeys(row["length"] for row in rows)) == [256, 128]


def test_the_same_command_goes_on_with_what_is_missing(tmp_path: Path) -> None:
    first = job(tmp_path).run().read_text()
    both = job(tmp_path, lengths=(LENGTH, 128)).run().read_text()
    assert both.startswith(first)
    _, rows = journal_of(tmp_path / JOURNAL)
    assert sorted({row["length"] for row in rows}) == [128, LENGTH]
    assert job(tmp_path, lengths=(LENGTH, 128)).run().read_text() == both


def test_a_torn_group_is_measured_again(tmp_path: Path) -> None:
    path = job(tmp_path).run()
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:-2]) + lines[-1][:20])
    _, rows = journal_of(job(tmp_path).run())
    assert len(rows) == len(lines) - 1
    assert len({row["label"] for row in rows}) == len(rows)


@pytest.mark.parametrize("changes", [dict(rounds=2), dict(new_tokens=4), dict(dtype="bfloat16")], ids=str)
def test_a_journal_of_other_settings_is_refused(tmp_path: Path, changes: dict[str, Any]) -> None:
    job(tmp_path).run()
    with pytest.raises(InputError, match=f"measured with {next(iter(changes))}="):
        job(tmp_path, lengths=(128,), **changes).run()
    with pytest.raises(InputError, match="measured for batch sizes 1;"):
        job(tmp_path, batches=(1, 2)).run()
    with pytest.raises(InputError, match="searched for fewer than 16 passages"):
        job(tmp_path, lengths=(16 * 128,)).run()


def test_an_empty_journal_is_begun(tmp_path: Path) -> None:
    (tmp_path / JOURNAL).touch()
    header, rows = journal_of(job(tmp_path).run())
    assert header["kind"] == "run" and rows


def test_nothing_starts_after_the_time_is_over(tmp_path: Path) -> None:
    header, rows = journal_of(job(tmp_path, minutes=1e-9).run())
    assert header["kind"] == "run"
    assert rows == []


def test_out_of_memory_is_a_row_that_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from baselines.kv_reuse import KvReuse

    calls = []

    def encode(*_: Any) -> None:
        calls.append(1)
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(KvReuse, "encode", encode)
    _, rows = journal_of(job(tmp_path, rounds=2).run())
    by_label = {row["label"]: row for row in rows}
    assert by_label["KV reuse"]["error"] == "out of memory"
    assert by_label["KV reuse"]["samples"]["prefill_s"] == []
    assert len(calls) == 1, "it is not tried again at this length"
    assert by_label["standard RAG"]["error"] is None


@pytest.mark.parametrize("error", [None, torch.OutOfMemoryError("CUDA out of memory")], ids=["recorded", "refused"])
def test_a_row_says_which_path_its_passes_took(lanes: tuple[list[Lane], Ids], error: RuntimeError | None) -> None:
    """Recording belongs to the warm-up; a refusal, which is one too, is said all the same."""

    def record(parts: Any) -> Any:
        if error:
            raise error
        return parts

    lane = replace(lanes[0][0], system=copy(lanes[0][0].system))
    lane.system.llama = Llama(lane.system.llama.model, record)
    load = Workload(length=LENGTH, batch=1, passage_tokens=128, question_tokens=QUESTION)
    own = latency.Measured()
    for number in (-1, 0, 1):
        own.take(lane, lanes[1], load, number, torch.device("cpu"), 3)
    if error:
        assert own.passes == {"refused: out of memory": 2, "prefill eager": 2, "decode eager": 4}
    else:
        assert own.passes == {"prefill replayed": 2, "decode replayed": 4}


def test_any_other_error_is_raised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from baselines.kv_reuse import KvReuse

    def encode(*_: Any) -> None:
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr(KvReuse, "encode", encode)
    with pytest.raises(RuntimeError, match="shapes"):
        job(tmp_path).run()


def test_every_round_goes_through_all_lanes_before_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, str]] = []
    take = latency.Measured.take

    def noted(self: Any, lane: Lane, tokenizer: Ids, load: Workload, number: int, *rest: Any) -> None:
        seen.append((number, lane.label))
        take(self, lane, tokenizer, load, number, *rest)

    monkeypatch.setattr(latency.Measured, "take", noted)
    job(tmp_path, rounds=2).run()
    numbers = [number for number, _ in seen]
    assert numbers == sorted(numbers) and set(numbers) == {-1, 0, 1}
    orders = [[label for n, label in seen if n == number] for number in (-1, 0, 1)]
    assert sorted(orders[0]) == sorted(orders[1]) == sorted(orders[2])
    assert orders[0] != orders[1] != orders[2], "no lane always finds the caches that the same other one left"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (dict(rounds=0), "at least 1 round"),
        (dict(new_tokens=1), "2 new tokens"),
        (dict(lengths=()), "at least one length"),
        (dict(lengths=(100,)), "multiple of 128"),
        (dict(lengths=(256, 128, 256)), "expected lengths once each, got 256,128,256"),
        (dict(batches=(1, 1)), "expected batch sizes once each, got 1,1"),
        (dict(threads=0), "expected at least 1 thread, got 0"),
        (dict(threads=-1), "expected at least 1 thread, got -1"),
        (dict(minutes=0.0), "expected more than 0 minutes, got 0"),
        (dict(minutes=float("nan")), "expected more than 0 minutes, got nan"),
        (dict(shape="text-mini"), "valid choices: llama-100m, llama2-13b, llama2-7b, llama3.2-3b, tiny$"),
    ],
    ids=str,
)
def test_a_run_that_cannot_be_is_refused_before_it_starts(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        job(tmp_path, **changes)


# The command


def test_the_command_prints_a_table_and_leaves_few_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = [
        "latency",
        "--shape",
        "tiny",
        "--lengths",
        "256,128",
        "--rounds",
        "2",
        "--new-tokens",
        "3",
        "--indexed",
        "500",
    ]
    assert main([*asked, "--out", str(tmp_path)]) == 0
    out, err = capsys.readouterr()
    assert "REFRAG k=32" in out
    assert "256 tokens, batch 1" in err
    files = list(tmp_path.iterdir())
    assert {"latency.jsonl", "latency.csv", "latency.md", "latency.png", "latency.log"} <= {f.name for f in files}
    assert len(files) <= 8
    assert max(file.stat().st_size for file in files) < 16 * 2**20


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (["--shape", "nope"], "valid choices"),
        (["--lengths", "100"], "multiple of 128"),
        (["--device", "tpu"], "valid choices"),
        (["--dtype", "int8"], "valid choices"),
        (["--lengths", "many"], "expected numbers"),
        (["--indexed", "0"], "at least 1 passage"),
        (["--lengths", "1024,1024"], "once each, got 1024,1024"),
        (["--threads", "0"], "at least 1 thread, got 0"),
        (["--minutes", "0"], "more than 0 minutes, got 0"),
    ],
    ids=str,
)
def test_bad_input_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str], asked: list[str], said: str) -> None:
    try:
        code = main(["latency", *asked, "--out", str(tmp_path / "out")])
    except SystemExit as stopped:
        code = int(stopped.code or 0)
    out, err = capsys.readouterr()
    assert (code, out) == (2, "")
    assert said in err and len(err.strip().splitlines()) == 1


def test_the_help_names_the_shapes_that_an_error_names(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["latency", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    with pytest.raises(InputError) as error:
        job(tmp_path, shape="nope")
    named = str(error.value).partition("valid choices: ")[2].split(", ")
    assert len(named) == len(ENCODERS) and f"decoder: {', '.join(ENCODERS)} (llama-100m)" in text
    assert set(named) == set(ENCODERS)


def test_the_path_needs_only_what_a_bare_gpu_machine_has(tmp_path: Path) -> None:
    """torch, transformers, numpy, pandas and matplotlib: the rest is not there to be imported."""
    missing = ("faiss", "datasets", "lm_eval", "submitit", "bm25s", "pyarrow", "rich", "tabulate", "scipy", "jinja2")
    script = (
        f"import sys; sys.modules.update(dict.fromkeys({missing!r}))\n"
        "from harness import roofline; roofline.REPEATS = 1\n"
        "from harness.cli.main import main\n"
        "sys.exit(main(['latency', '--shape', 'tiny', '--lengths', '128', '--rounds', '1', '--new-tokens', '2', "
        "'--indexed', '500', "
        f"'--out', {str(tmp_path)!r}]))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "REFRAG k=32" in done.stdout
