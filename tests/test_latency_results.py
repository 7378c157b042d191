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
from results.latency.journals import (
    AGAIN,
    REFERENCE,
    SCHEMA,
    Journal,
    Line,
    questions_to_pay,
    read,
    read_paper,
)
from results.latency.report import closing_table, to_csv, to_markdown, write

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
        "settings": {"k": 32, "expand": 0.0},
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
            "schema": SCHEMA,
            "labels": list(dict.fromkeys(each["label"] for each in rows)),
            "shape": "llama2-7b",
            "decoder": {"parameters": 6_738_415_616, "width": 4096, "layers": 32},
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
            "indexed": 1000,
            "search": [
                {"batch": batch, "best": 8, "seconds": [0.004, 0.005, 0.009], "work": {"flops": 1e9, "bytes": 0}}
                for batch in (1, 8)
            ],
            "provenance": {"device": "GPU", "cpu": "CPU", "commit": "0123456789abcdef", "dirty": False},
        }
        | header,
        list(rows),
    )


def pair(**changes: Any) -> list[dict[str, Any]]:
    """The reference at 100 ms, twice."""
    return [row(label, [90.0, 100.0, 120.0], flops=1e10, **changes) for label in (REFERENCE, AGAIN)]


def found(given: Journal, label: str, boundary: str = "prefill") -> Line:
    (line,) = [line for line in given.lines if (line.label, line.boundary) == (label, boundary)]
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
        row("REFRAG k=8", [30.0]),
        row("REFRAG k=16", [30.0]),
        row("CEPE", [30.0]),
        row("REFRAG k=32 +10% policy", [30.0], settings={"k": 32, "expand": 0.1, "select": "policy"}),
    ]
    given = journal(*rows)
    assert found(given, "REFRAG k=32").paper == 30.856
    assert found(given, "REFRAG k=32", "+encode").paper is None
    assert found(given, "REFRAG k=16").paper == 16.534
    assert found(given, "REFRAG k=8").paper == 9.211
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
    assert len(read_back) == 9, "three boundaries each"
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
    [
        ("", "no header"),
        ("[]\n", "no header"),
        ("\udc80\udcff", "no header"),
        ('{"kind": "run", "schema": 7}\n', "schema 7"),
        ('{"kind": "run", "schema": 2}\n', "no labels"),
        ('{"kind": "run", "schema": 2, "labels": ["a"]}\n3\n', "line 2"),
        ('{"kind": "run", "schema": 2, "labels": ["a"]}\n{"kind": "row"}\n', "line 2"),
    ],
    ids=["empty", "another file", "bytes", "another schema", "no labels", "a number", "half a row"],
)
def test_what_is_no_journal_is_refused(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "latency.jsonl"
    path.write_text(text, errors="surrogateescape")
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
        "import sys, results.latency.report\n"
        "print([m for m in ('torch', 'transformers', 'scipy', 'tabulate', 'rich', 'jinja2') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_search_is_paid_by_the_reference_too() -> None:
    line = found(journal(*pair(), FAST), "REFRAG k=32", "+retrieve")
    assert line.ttft_s and line.ttft_s[1] == pytest.approx(0.005 + 0.050), "the median search on top of +encode"
    assert line.speedup and line.speedup.mean == pytest.approx(0.105 / 0.055)
    assert line.cap == pytest.approx((1e9 + 1e10) / (1e9 + 1e9 + 3e9))
    assert line.tokens_per_s == pytest.approx(4 / (0.055 + 0.006))
    assert line.paper is None and line.theory is None


def test_the_papers_theory_stands_beside_what_it_is_of() -> None:
    theory = found(journal(*pair(), FAST), "REFRAG k=32").theory
    d, s, k = 4096, 16384, 32
    assert theory and theory[0] == pytest.approx(k**2 * (6 * d * s + s**2) / (6 * d * s * k + s**2))
    assert theory[1] > 1 and 1 < theory[2] < k
    expanded = row("REFRAG k=32", [20.0], settings={"k": 32, "expand": 0.1})
    assert found(journal(*pair(), expanded), "REFRAG k=32").theory is None
    assert found(journal(*pair(), FAST), "REFRAG k=32", "+encode").theory is None


def test_a_line_knows_its_share_of_the_limit_only_with_both() -> None:
    line = found(journal(*pair(), FAST), "REFRAG k=32")
    assert replace(line, floor_s=None).of_limit is None


# The same, where the fixtures above would give two answers alike


def cells(text: str, *start: str) -> list[list[str]]:
    """The lines of a Markdown table whose first cells are ``start``."""
    table = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]
    return [line for line in table if line[: len(start)] == list(start)]


def test_the_reference_is_its_prefill_even_where_it_encodes() -> None:
    given = journal(*pair(encode_ms=50.0), FAST)
    whole = found(given, "REFRAG k=32", "+encode")
    assert whole.speedup and whole.speedup.mean == pytest.approx(100 / 50)


def test_the_spread_is_p10_and_p90_and_the_interval_95_percent() -> None:
    constant = [row(label, [100.0] * 7) for label in (REFERENCE, AGAIN)]
    line = found(journal(*constant, row("KV reuse", [10.0, 20.0, 30.0, 40.0, 50.0, 60.0, 70.0])), "KV reuse")
    assert line.ttft_s == pytest.approx((0.016, 0.040, 0.064))
    # A median of 7 drawn from 7 is the lowest value in 1.0 % of draws, and one of the two lowest in 10.8 %.
    assert line.speedup and (line.speedup.low, line.speedup.mean, line.speedup.high) == pytest.approx(
        (100 / 60, 100 / 40, 100 / 20)
    )


def with_ttit(given: dict[str, Any], per_round_ms: list[float]) -> dict[str, Any]:
    samples = [t / 1e3 for t in per_round_ms for _ in range(3)]
    return given | {"samples": given["samples"] | {"ttit_s": samples}}


def test_the_ratio_of_later_tokens_is_of_whole_rounds_too() -> None:
    reference, again = (with_ttit(each, [2.0, 4.0, 8.0]) for each in pair())
    along = found(journal(reference, again, with_ttit(FAST, [1.0, 2.0, 4.0])), "REFRAG k=32").ttit_speedup
    assert along and (along.low, along.mean, along.high) == pytest.approx((2, 2, 2))
    against = found(journal(reference, again, with_ttit(FAST, [4.0, 2.0, 1.0])), "REFRAG k=32").ttit_speedup
    assert against and against.low < 1.999 < against.mean < 2.001 < against.high


def test_throughput_counts_all_rows_of_a_batch() -> None:
    given = journal(*pair(batch=8), FAST | {"batch": 8})
    assert found(given, "REFRAG k=32").tokens_per_s == pytest.approx(8 * 4 / 0.026)


def test_a_reference_that_ran_out_of_memory_after_some_rounds_is_compared_over_those() -> None:
    short = [row(label, [90.0, 100.0], error="out of memory") for label in (REFERENCE, AGAIN)]
    line = found(journal(*short, FAST), "REFRAG k=32")
    assert line.speedup and line.speedup.mean == pytest.approx(95 / 15)


def test_the_floor_binds_the_median_not_the_fastest_round() -> None:
    line = found(journal(*pair(), FAST | {"work": row("", [], flops=1.5e10)["work"]}), "REFRAG k=32")
    assert line.ttft_s and line.floor_s and line.ttft_s[0] < line.floor_s < line.ttft_s[1]
    assert not [flag for flag in line.flags if "floor" in flag]


def test_noise_is_how_far_from_1_the_same_system_came() -> None:
    """An A/A pair that is off by 10 % every round is as noisy as one that scatters by 10 %."""
    rows = [row(REFERENCE, [110.0, 111.0, 112.0]), row(AGAIN, [100.0, 101.0, 102.0])]
    given = journal(*rows, row("KV reuse", [100.5, 101.0, 101.5]), row("CEPE", [50.0]))
    for label in (AGAIN, "KV reuse"):
        line = found(given, label)
        assert line.noise == pytest.approx(0.1)
        assert line.speedup and line.speedup.mean == pytest.approx(1.099, abs=1e-3)
        assert line.flags == ()
    shown = to_markdown(given)
    assert cells(shown, "16,384", "KV reuse", "prefill")[0][6].endswith("~")
    assert not cells(shown, "16,384", "CEPE", "prefill")[0][6].endswith("~")
    scattered = to_markdown(journal(*pair(), row("KV reuse", [120.0, 90.0, 100.0])))
    assert cells(scattered, "16,384", "KV reuse", "prefill")[0][6].endswith("~"), "the ratio itself, not its bound"


MEMORY = {"peak_bytes": 7_000_000, "weights_bytes": 2_000_000, "kv_bytes": 3_000_000, "stored_bytes": 5_000_000}


def test_the_tables_show_the_numbers_of_their_lines() -> None:
    reference, again = pair()
    again = row(AGAIN, [45.0, 50.0, 60.0], flops=1e10)
    batched = [row(label, [400.0], batch=8) for label in (REFERENCE, AGAIN, "REFRAG k=32")]
    given = journal(reference, again, FAST | {"memory": MEMORY}, *batched)

    text = to_markdown(given)
    assert "1.00 TFLOP/s, 10.0 GB/s" in text
    (shown,) = cells(text[: text.index("Batch size 8:")], "16,384", "REFRAG k=32", "prefill")
    speedup = found(journal(*pair(), FAST), "REFRAG k=32").speedup
    assert speedup
    assert shown[3:] == [
        "100",
        "20.0 [12.0, 20.8]",
        "3",
        f"5.00 [{speedup.low:.2f}, {speedup.high:.2f}]",
        "30.86",
        "52.2",
        "10.0",
        "5%",
        "5%",
        "2.0 [2.0, 2.0]",
        "50%",
        "153.8",
        "0.007",
        "0.003",
        "0.005",
        "-",
    ]
    slower = FAST | {"work": FAST["work"] | {"decode": {"flops": 0, "bytes": 4e6}}}
    (other,) = cells(to_markdown(journal(*pair(), slower)), "16,384", "REFRAG k=32", "prefill")
    assert (other[11], other[13]) == ("5%", "20%"), "MFU, MBU"
    (line,) = [
        each
        for each in csv.DictReader(to_csv(given).splitlines())
        if (each["label"], each["boundary"], each["batch"]) == ("REFRAG k=32", "prefill", "1")
    ]
    assert {name: int(line[name]) for name in MEMORY} == MEMORY

    head, *body = closing_table(given).split("\n\n")[0].splitlines()
    assert head.split() == ["tokens", "system", "TTFT", "ratio", "paper", "cap", "of", "limit"]
    assert [each.split() for each in body] == [
        ["16,384", "standard", "RAG", "prefill", "100.0", "ms", "1.00", "-", "1.0", "10%"],
        ["16,384", "REFRAG", "k=32", "prefill", "20.0", "ms", "5.00", "30.86", "10.0", "5%"],
        ["16,384", "REFRAG", "k=32", "+encode", "50.0", "ms", "2.00", "-", "2.5", "8%"],
    ]
    last = closing_table(given).splitlines()[-1]
    assert "16,384: 2.00 [" in last
    assert "0.005% of the shortest" in last, "the median of the clock's samples over 20 ms"


def test_a_checkout_without_git_says_that_its_commit_is_unknown() -> None:
    text = to_markdown(journal(*pair(), provenance={"device": "GPU", "cpu": "CPU", "commit": None, "dirty": None}))
    assert "commit unknown." in text


def test_the_figure_draws_what_the_lines_say(monkeypatch: pytest.MonkeyPatch) -> None:
    from matplotlib.figure import Figure

    from results.latency.figure import draw

    drawn: list[Figure] = []
    monkeypatch.setattr(Figure, "savefig", lambda self, *_, **__: drawn.append(self))
    fast = with_ttit(FAST, [1.0, 1.0, 1.0])
    batched = [row(label, [1.0], batch=8) for label in (REFERENCE, AGAIN, "REFRAG k=32")]
    given = journal(*pair(), fast, *batched)
    draw(given)
    line = found(journal(*pair(), fast), "REFRAG k=32")
    assert line.throughput_speedup

    def curves(panel: int, style: str) -> list[tuple[list[float], list[float]]]:
        lines = [each for each in drawn[0].axes[panel].get_lines() if each.get_linestyle() == style]
        return [(list(each.get_xdata()), list(each.get_ydata())) for each in lines]

    # On a panel of ratios the last solid line is the level of standard RAG.
    solid = [[(x, pytest.approx(y)) for x, y in curves(panel, "-")[:1]] for panel in range(4)]
    assert solid == [
        [([16384], [5.0])],
        [([16384], [2.0])],
        [([16384], [line.throughput_speedup.mean])],
        [([16384], [30 / 80])],
    ]
    assert curves(0, ":") == [([16384], [10.0])], "the cap"
    assert [([16384], [30.856]) in curves(0, "--"), ([16384], [0.961]) in curves(1, "--")] == [True, True]
    assert curves(2, "--")
    assert "batch 1" in drawn[0].get_suptitle()


def test_the_conditions_say_how_passes_were_run_and_which_rows_went_another_way() -> None:
    graphs, eager = {"decode replayed": 1500, "prefill eager": 100}, {"refused: out of memory": 1, "decode eager": 45}
    rows = [row(REFERENCE, [10], passes=graphs), row(AGAIN, [10], passes=graphs), row("CEPE", [10], passes=eager)]
    for text in (to_markdown(journal(*rows)), closing_table(journal(*rows))):
        assert "decode eager 45, decode replayed 3,000, prefill eager 200, refused: out of memory 1." in text
        assert "Decode steps were eager in: CEPE at 16,384 (batch 1)." in text
    alone = to_markdown(journal(*(each | {"passes": eager} for each in rows)))
    assert "decode eager 135" in alone and "were eager in" not in alone, "on a CPU there is no other way"
    for nothing in ({}, {"passes": {}}):
        assert "Passes" not in to_markdown(journal(row(REFERENCE, [10], **nothing), row(AGAIN, [10], **nothing)))
