"""What the latency tables say follows from the journal: every derived number by hand, and what cannot be is flagged."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from harness.errors import InputError
from results.latency import (
    AGAIN,
    REFERENCE,
    Journal,
    Line,
    lines,
    questions_to_pay,
    read,
    read_paper,
)
from results.latency_report import closing_table, to_csv, to_markdown, write

PEAK_FLOPS, PEAK_BYTES = 1e12, 1e10


def row(
    label: str,
    prefill_ms: list[float],
    *,
    encode_ms: float = 0.0,
    flops: float = 1e9,
    encode_flops: float = 0.0,
    length: int = 16384,
    batch: int = 1,
    **changes: Any,
) -> dict[str, Any]:
    """A row whose later tokens take 2 ms each."""
    prefill_s = [t / 1e3 for t in prefill_ms]
    with_encode_s = [t + encode_ms / 1e3 for t in prefill_s]
    return {
        "kind": "row",
        "system": "refrag_v2",
        "label": label,
        "settings": {},
        "length": length,
        "batch": batch,
        "decoder_positions": 100,
        "error": None,
        "samples": {
            "prefill_s": prefill_s,
            "with_encode_s": with_encode_s,
            "ttit_s": [0.002] * 3 * len(prefill_ms),
            "total_s": [t + 0.006 for t in with_encode_s],
            "prefill_device_s": [],
        },
        "work": {
            "encode": {"flops": encode_flops, "bytes": 0},
            "prefill": {"flops": flops, "bytes": 0},
            "decode": {"flops": 0, "bytes": 1e7},
        },
        "memory": {"peak_bytes": None, "weights_bytes": 1000, "kv_bytes": 10, "stored_bytes": 5},
    } | changes


def journal(*rows: dict[str, Any], **header: Any) -> Journal:
    return Journal(
        {
            "kind": "run",
            "schema": 1,
            "labels": list(dict.fromkeys(each["label"] for each in rows)),
            "shape": "llama2-7b",
            "decoder": {"parameters": 6_738_415_616},
            "dtype": "bfloat16",
            "device": "cuda",
            "threads": 1,
            "new_tokens": 4,
            "question_tokens": 32,
            "passage_tokens": 128,
            "rounds": 3,
            "ceilings": {
                "flops_per_s": PEAK_FLOPS,
                "bytes_per_s": PEAK_BYTES,
                "attention_flops_per_s": PEAK_FLOPS / 4,
                "device": "GPU",
                "dtype": "bfloat16",
            },
            "overhead_s": [1e-6, 1e-6, 5e-6],
            "provenance": {"device": "GPU", "cpu": "CPU", "commit": "0123456789abcdef", "dirty": False},
        }
        | header,
        list(rows),
    )


def pair(**changes: Any) -> list[dict[str, Any]]:
    """The reference at 100 ms, twice."""
    return [row(label, [90.0, 100.0, 120.0], flops=1e10, **changes) for label in (REFERENCE, AGAIN)]


def found(given: Journal, label: str, boundary: str = "prefill") -> Line:
    (line,) = [line for line in lines(given) if (line.label, line.boundary) == (label, boundary)]
    return line


FAST = row("REFRAG k=32", [10.0, 20.0, 21.0], encode_ms=30.0, flops=1e9, encode_flops=3e9)


def test_times_ratios_and_limits_are_those_of_the_samples() -> None:
    given = journal(*pair(), FAST)
    cached, whole = found(given, "REFRAG k=32"), found(given, "REFRAG k=32", "+encode")
    assert cached.ttft_s and whole.ttft_s and cached.ttit_s and cached.speedup and whole.speedup
    assert (cached.ttft_s[1], whole.ttft_s[1], cached.n) == (0.020, pytest.approx(0.050), 3)
    assert cached.speedup.mean == pytest.approx(5.0)
    assert whole.speedup.mean == pytest.approx(2.0), "against the reference's prefill, as in the paper"
    assert (cached.cap, whole.cap) == (10.0, 2.5)
    assert cached.floor_s == pytest.approx(1e9 / PEAK_FLOPS)
    assert whole.floor_s == pytest.approx(4e9 / PEAK_FLOPS)
    assert cached.of_limit == pytest.approx(0.001 / 0.020)
    assert cached.mfu == pytest.approx(1e9 / 0.020 / PEAK_FLOPS)
    assert cached.mbu == pytest.approx(1e7 / 0.002 / PEAK_BYTES)
    assert cached.tokens_per_s == pytest.approx(4 / 0.026), "cached: without the encoding"
    assert whole.tokens_per_s == pytest.approx(4 / 0.056)
    assert cached.throughput_speedup and cached.throughput_speedup.mean == pytest.approx(0.106 / 0.026)
    assert cached.ttit_speedup and cached.ttit_speedup.mean == pytest.approx(1.0)
    assert cached.flags == whole.flags == ()


def test_a_ratio_is_of_whole_rounds() -> None:
    """What slows a round slows both sides: paired, the interval is a point."""
    slow = [1.0, 5.0, 25.0]
    rows = [row(label, [10 * t for t in slow]) for label in (REFERENCE, AGAIN)]
    line = found(journal(*rows, row("REFRAG k=8", slow)), "REFRAG k=8")
    assert line.speedup and (line.speedup.low, line.speedup.mean, line.speedup.high) == pytest.approx((10, 10, 10))
    crossed = found(journal(*rows, row("REFRAG k=8", slow[::-1])), "REFRAG k=8")
    assert crossed.speedup and crossed.speedup.low < 10 < crossed.speedup.high


def test_the_papers_ratio_stands_beside_the_same_method_and_length_only() -> None:
    rows = [
        *pair(),
        FAST,
        row("REFRAG k=16", [30.0]),
        row("CEPE", [30.0]),
        row("REFRAG k=32 +10% policy", [30.0], settings={"select": "policy"}),
    ]
    given = journal(*rows)
    assert found(given, "REFRAG k=32").paper == 30.856
    assert found(given, "REFRAG k=32", "+encode").paper is None
    assert found(given, "REFRAG k=16").paper == 16.534
    assert found(given, "REFRAG k=16", "+encode").paper == 8.591
    assert found(given, "CEPE", "+encode").paper == 8.223
    assert found(given, "REFRAG k=32 +10% policy", "prefill+select").paper is None
    other = journal(*pair(length=640), row("REFRAG k=32", [1.0], length=640))
    assert found(other, "REFRAG k=32").paper is None
    batched = journal(*pair(batch=8), row("REFRAG k=32", [20.0], batch=8))
    assert found(batched, "REFRAG k=32").paper is None


def test_the_paper_is_read_whole() -> None:
    assert len(read_paper()) == 9 * 24
    assert read_paper()["Figure 8", "REFRAG (Cached) k=32", "TTIT", 16384] == 0.961


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        (row("REFRAG k=32", [20.0], flops=1e11), "below the floor"),
        (row("REFRAG k=32", [20.0], flops=9e9), "above the cap"),
        (FAST | {"memory": FAST["memory"] | {"peak_bytes": 999}}, "below the"),
    ],
    ids=["floor", "cap", "memory"],
)
def test_what_cannot_be_is_flagged(changed: dict[str, Any], said: str) -> None:
    given = journal(*pair(), changed)
    assert any(said in flag for flag in found(given, "REFRAG k=32").flags)
    assert " !" in closing_table(given)
    assert said in to_markdown(given)
    assert " !" not in closing_table(journal(*pair(), FAST))


def test_a_speed_up_above_its_cap_within_the_noise_is_no_flag() -> None:
    noisy = [row(REFERENCE, [90.0, 100.0, 120.0], flops=1e10), row(AGAIN, [120.0, 90.0, 100.0], flops=1e10)]
    barely = row("REFRAG k=32", [18.0, 20.0, 24.0], flops=2.02e9)
    assert found(journal(*noisy, barely), "REFRAG k=32").flags == ()
    assert found(journal(*pair(), barely), "REFRAG k=32").flags != ()


def test_attention_counts_at_its_own_ceiling_before_a_speed_up_is_flagged() -> None:
    """A reference of 1e10 FLOPs, half of them attention at a quarter of the rate: 25 ms of arithmetic for 10."""
    rows = pair()
    for each in rows:
        each["work"]["prefill"]["attention"] = 5e9
    allowed = row("REFRAG k=32", [8.4, 8.4, 8.4], flops=2e9)
    line = found(journal(*rows, allowed), "REFRAG k=32")
    assert line.cap == 5.0 and line.speedup and line.speedup.mean == pytest.approx(11.9, abs=0.01)
    assert line.flags == (), "12.5 = 25 ms over 2"
    beyond = row("REFRAG k=32", [7.9, 7.9, 7.9], flops=2e9)
    assert found(journal(*rows, beyond), "REFRAG k=32").flags != ()


def test_out_of_memory_is_said() -> None:
    failed = row("KV reuse", [], error="out of memory")
    line = found(journal(*pair(), failed), "KV reuse")
    assert (line.error, line.ttft_s, line.speedup, line.of_limit, line.flags) == ("out of memory", None, None, None, ())
    for text in (closing_table(journal(*pair(), failed)), to_markdown(journal(*pair(), failed))):
        assert "out of memory" in text


def test_encoding_has_paid_when_the_questions_saved_as_much() -> None:
    given = journal(*pair(), FAST)
    assert questions_to_pay(given, FAST) == pytest.approx(30 / (100 - 20))
    never = row("CEPE", [150.0], encode_ms=1.0)
    assert questions_to_pay(journal(*pair(), never), never) is None


def test_a_line_within_the_noise_is_marked() -> None:
    same = row("KV reuse", [101.0, 99.0, 100.0])
    noisy = [row(REFERENCE, [90.0, 100.0, 120.0]), row(AGAIN, [120.0, 90.0, 100.0])]
    text = to_markdown(journal(*noisy, same))
    (shown,) = [line for line in text.splitlines() if "KV reuse | prefill" in line]
    assert " ~ " in shown
    assert " ~ " not in next(line for line in to_markdown(journal(*pair(), FAST)).splitlines() if "k=32 | pre" in line)


def test_every_number_is_in_the_csv() -> None:
    read_back = list(csv.DictReader(to_csv(journal(*pair(), FAST)).splitlines()))
    assert len(read_back) == 6
    line = next(each for each in read_back if (each["label"], each["boundary"]) == ("REFRAG k=32", "prefill"))
    assert float(line["ttft_s_median"]) == 0.020
    assert float(line["speedup_mean"]) == pytest.approx(5.0)
    assert (line["length"], line["n"], line["error"]) == ("16384", "3", "")


def dump(given: Journal, path: Path) -> Path:
    path.write_text("".join(json.dumps(document) + "\n" for document in (given.header, *given.rows)))
    return path


def test_a_journal_that_was_cut_off_gives_its_whole_groups(tmp_path: Path) -> None:
    path = dump(journal(*pair(), FAST, *pair(length=512)), tmp_path / "latency.jsonl")
    assert {each["length"] for each in read(path).rows} == {16384}
    path.write_text(path.read_text()[:-20])
    assert {each["length"] for each in read(path).rows} == {16384}
    only_header = dump(journal(labels=["a"]), tmp_path / "short.jsonl")
    assert "tokens" in closing_table(read(only_header))
    assert write(only_header, tmp_path)


@pytest.mark.parametrize(
    ("text", "said"),
    [("", "no header"), ("[]\n", "no header"), ('{"kind": "run", "schema": 7}\n', "schema 7")],
    ids=["empty", "another file", "another schema"],
)
def test_what_is_no_journal_is_refused(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "latency.jsonl"
    path.write_text(text)
    with pytest.raises(InputError, match=said):
        read(path)
    with pytest.raises(InputError, match="no latency journal"):
        read(tmp_path / "nothing")


def test_the_files_are_the_same_every_time(tmp_path: Path) -> None:
    rows = [*pair(), FAST, *pair(length=512), row("REFRAG k=32", [5.0], length=512)]
    path = dump(journal(*rows), tmp_path / "latency.jsonl")
    first = {file.name: file.read_bytes() for file in write(path, tmp_path)}
    assert set(first) == {"latency.csv", "latency.md", "latency.png", "latency.svg"}
    assert {file.name: file.read_bytes() for file in write(path, tmp_path)} == first
    assert b"Time to first token" in first["latency.svg"] or b"<svg" in first["latency.svg"]
    faster = dump(journal(*rows[:2], replace_samples(FAST), *rows[3:]), tmp_path / "other.jsonl")
    assert write(faster, tmp_path)[2].read_bytes() != first["latency.png"]


def test_curves_run_from_short_to_long_whatever_was_measured_first(tmp_path: Path) -> None:
    short, long = [*pair(length=512), row("REFRAG k=32", [5.0], length=512)], [*pair(), FAST]
    first, second = (
        write(dump(journal(*rows), tmp_path / f"{number}.jsonl"), tmp_path)[2].read_bytes()
        for number, rows in enumerate(([*short, *long], [*long, *short]))
    )
    assert first == second


def replace_samples(given: dict[str, Any]) -> dict[str, Any]:
    return given | {"samples": given["samples"] | {"prefill_s": [0.011, 0.012, 0.013]}}


def test_nothing_heavy_is_imported() -> None:
    script = (
        "import sys, results.latency_report\n"
        "print([m for m in ('torch', 'transformers', 'scipy', 'tabulate', 'rich', 'jinja2') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_line_knows_its_share_of_the_limit_only_with_both() -> None:
    line = found(journal(*pair(), FAST), "REFRAG k=32")
    assert replace(line, floor_s=None).of_limit is None
