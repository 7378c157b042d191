"""Numbers are compared under the same conditions alone, and none of the ledger stays without a word."""

import itertools
import json
import shutil
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import PROJECT

from harness.errors import InputError
from harness.roofline import LlamaShape, decode_step
from harness.train.curriculum import paper_table8
from results.latency.journals import PREFILL, read
from results.ledger import physics
from results.ledger.claims import HEAD, claims_files, claims_table
from results.ledger.conditions import NOT_STATED
from results.ledger.entries import Entry, read_ledger
from results.ledger.measured import RECORDS, Measured, of_journal, read_measured
from results.ledger.seed import NOT_JUDGED, item_of, read_discrepancies
from results.ledger.verdicts import AGAINST_PAPER, VERDICTS, Verdict, as_json, differing, judge, published, quantity


@pytest.fixture(scope="module")
def entries() -> list[Entry]:
    return read_ledger()


@pytest.fixture(scope="module")
def measured() -> list[Measured]:
    return read_measured(RECORDS)


@pytest.fixture(scope="module")
def verdicts(entries: list[Entry], measured: list[Measured]) -> list[Verdict]:
    return list(judge(entries, measured))


def entry(entries: list[Entry], table: str, row: str, column: str, source_class: str) -> Entry:
    (found,) = (e for e in entries if (e.table, e.row, e.column, e.source_class) == (table, row, column, source_class))
    return found


@pytest.fixture
def ttft(entries: list[Entry]) -> Entry:
    column = "TTFT acceleration vs LLaMA @ 4096 input tokens"
    return entry(entries, "Figure 2", "REFRAG (Cached) k=16", column, "paper-figure")


def like(this: Entry, value: float, limits: tuple[float, float] | None, **changes: object) -> Measured:
    """A figure measured under the conditions of ``this``, apart from ``changes``."""
    found = quantity(this)
    assert found is not None
    under = {**this.conditions, **changes}
    return Measured(
        quantity=found,
        conditions={key: value for key, value in under.items() if value is not None},  # type: ignore[misc]
        value=value,
        n=7,
        path=Path("record.json"),
        limits=lambda: limits,
    )


def verdict_of(this: Entry, *measured: Measured) -> Verdict:
    (found,) = judge([this], measured)
    return found


def test_every_entry_has_a_class_and_a_verdict_with_its_reason(entries: list[Entry], verdicts: list[Verdict]) -> None:
    assert [v.entry for v in verdicts] == entries
    for v in verdicts:
        assert v.entry.source_class
        assert v.verdict in VERDICTS
        assert (v.verdict == "not comparable") == bool(v.differing)
        assert bool(v.why) == (v.verdict != "no measurement"), v
        if v.verdict in ("not measured", "not comparable"):
            assert v.needs and v.needs.startswith("needs "), v
        assert (v.against_paper in AGAINST_PAPER) == (v.entry.source_class == "seed-claim")


def test_no_setting_formula_or_remark_is_a_hole_and_no_number_of_a_table_is_a_setting(verdicts: list[Verdict]) -> None:
    measurable = {v.entry.file for v in verdicts if v.verdict in ("not measured", "not comparable")}
    assert measurable == {v.entry.file for v in verdicts} - {
        "derived_eval_sizes.csv", "discrepancies.csv", "refrag_config.csv",
        "table06_09_theory.csv", "table07_metrics.csv", "table08_curriculum.csv",
    }  # fmt: skip
    mixed = {v.entry.file for v in verdicts if v.verdict == "no measurement"} & measurable
    assert {(v.entry.file, v.entry.column) for v in verdicts if v.entry.file in mixed and v.verdict == "no measurement"
            and v.entry.source_class == "paper"} == {
        ("table03_rag_strong_retriever.csv", "1/#tokens (relative latency)"),
        ("table17_rag_weak_retriever.csv", "1/#tokens (relative latency)"),
        ("table13_rl_vs_k8.csv", "effective compression rate"),
        ("text_headline_numbers.csv", "context extension"),
        ("text_headline_numbers.csv", "parameters"),
    }  # fmt: skip


def test_the_same_conditions_and_intervals_that_meet(ttft: Entry) -> None:
    """7.583 read to 0.01: what meets [7.5725, 7.5935] reproduces it."""
    assert published(ttft) == pytest.approx((7.5725, 7.5935))
    found = verdict_of(ttft, like(ttft, 7.3, (7.0, 7.58)))
    assert (found.verdict, found.differing, found.interval) == ("reproduced", (), (7.0, 7.58))
    assert found.difference == pytest.approx(-0.283)
    found = verdict_of(ttft, like(ttft, 7.3, (7.0, 7.57)))
    assert found.verdict == "differs"
    assert found.why == "7.3 [7, 7.57] (TTFT, n 7, REFRAG k=16), -0.283"
    assert verdict_of(ttft, like(ttft, 7.58, None)).verdict == "reproduced"
    assert verdict_of(ttft, like(ttft, 7.6, None)).verdict == "differs"


def test_one_condition_is_enough_against_a_comparison(ttft: Entry) -> None:
    for name, other in (
        ("k", 8),
        ("context", 2048),
        ("hardware", "1 x H100"),
        ("batch", 8),
        ("boundary", "not cached"),
    ):
        found = verdict_of(ttft, like(ttft, 7.583, (7.5, 7.6), **{name: other}))
        assert (found.verdict, found.difference) == ("not comparable", None)
        assert found.differing == (f"{name}: {ttft.conditions[name]} / {other}",)
        assert found.why.endswith(f"differs in {found.differing[0]}")
        missing = verdict_of(ttft, like(ttft, 7.583, (7.5, 7.6), **{name: None}))
        assert missing.differing == (f"{name}: {ttft.conditions[name]} / -",)


def test_what_a_source_does_not_state_is_the_same_as_nothing(ttft: Entry) -> None:
    unstated = replace(ttft, conditions=ttft.conditions | {"k": NOT_STATED})
    assert verdict_of(unstated, like(ttft, 7.583, None)).differing == ("k: not stated / 16",)
    assert verdict_of(unstated, like(unstated, 7.583, None)).verdict == "not comparable"
    silent = replace(ttft, conditions={key: value for key, value in ttft.conditions.items() if key != "k"})
    assert verdict_of(silent, like(ttft, 7.583, None)).differing == ("k: not stated / 16",)


def test_expanding_nothing_need_not_be_said(ttft: Entry) -> None:
    assert verdict_of(ttft, like(ttft, 7.583, None, expand=0)).verdict == "reproduced"
    found = verdict_of(ttft, like(ttft, 7.583, None, expand=10, policy="first"))
    assert found.differing == ("expand: 0 / 10", "policy: not stated / first")


def test_the_closest_differs_least_and_then_is_nearest(ttft: Entry) -> None:
    far, near = like(ttft, 1, None, context=512), like(ttft, 2, None, context=2048)
    other = like(ttft, 3, None, batch=8, hardware="1 x H100")
    for order in itertools.permutations([far, near, other]):
        assert verdict_of(ttft, *order).closest is near
    exact = like(ttft, 7.583, None)
    assert verdict_of(ttft, far, near, exact).closest is exact


def test_another_method_figure_or_question_is_not_close(entries: list[Entry], ttft: Entry) -> None:
    nq = entry(entries, "Table 3", "REFRAG_8 + 8 passages", "NQ", "paper")
    for other in (("cepe", "TTFT, x", ""), ("refrag_v2", "TTIT, x", ""), ("refrag_v2", "TTFT, ms", "")):
        found = verdict_of(ttft, replace(like(ttft, 7.583, None), quantity=other))
        assert (found.verdict, found.closest) == ("not measured", None)
        assert found.why == "needs `refrag-bench latency --shape llama2-7b --device cuda --lengths 4096` on an A100"
    trivia = replace(like(nq, 23, None), quantity=("refrag_v2", "EM, %", "TriviaQA"))
    assert verdict_of(nq, trivia).verdict == "not measured"


def test_a_relative_of_a_method_is_told_from_it(entries: list[Entry]) -> None:
    ceped = entry(entries, "Table 3", "CEPED + 80 passages", "NQ", "paper")
    assert verdict_of(ceped, like(ceped, 0.03, None, system="CEPE")).differing == ("system: CEPED / CEPE",)


def test_the_papers_exact_match_is_a_stricter_one(entries: list[Entry]) -> None:
    nq = entry(entries, "Table 3", "REFRAG_8 + 8 passages", "NQ", "paper")
    assert differing(nq, {**nq.conditions, "metric": "EM"}) == ("metric: strict EM / EM",)


def test_what_the_seed_leaves_out_of_a_table_is_no_claim(verdicts: list[Verdict]) -> None:
    assert {v.verdict for v in verdicts if v.entry.value == "N/A"} == {"no measurement"}


def test_text_is_never_reproduced(entries: list[Entry]) -> None:
    oom = entry(entries, "Table 3", "REPLUG + 80 passages", "NQ", "paper")
    assert oom.value == "OOM"
    assert verdict_of(oom).verdict == "not measured"
    gate = next(e for e in entries if e.row == "Alignment check: reconstruction perplexity")
    assert gate.value == "<2.0"
    assert verdict_of(gate, like(gate, 1.5, None, system="REFRAG", k=8)).verdict == "not comparable"


@pytest.mark.parametrize(
    ("printed", "low", "high"),
    [
        ("23.96", 23.955, 23.965),
        ("40.00", 39.995, 40.005),
        ("8", 7.5, 8.5),
        ("2e-4", 1.5e-4, 2.5e-4),
        ("-0.2", -0.25, -0.15),
    ],
)
def test_printing_leaves_half_a_digit_open(entries: list[Entry], printed: str, low: float, high: float) -> None:
    number = entry(entries, "Table 3", "REFRAG_8 + 8 passages", "NQ", "paper")
    assert published(replace(number, printed=printed, value=float(printed))) == pytest.approx((low, high))


@pytest.mark.parametrize(
    ("table", "row", "column", "accuracy"),
    [
        ("Figure 2", "CEPE", "TTFT acceleration vs LLaMA @ 512 input tokens", 0.01),
        ("Figure 2", "CEPE", "TTIT acceleration vs LLaMA @ 512 input tokens", 0.003),
        ("Figure 2", "CEPE", "Throughput acceleration vs LLaMA @ 512 input tokens", 0.003),
        ("Figure 3", "RL", "Arxiv @ effective compression 4.012x", 0.0003),
        ("Figure 4", "Llama", "weak retriever @ passages=1", 0.01),
        ("Figure 10", "x8", "CPT loss @ step 5000", 0.0005),
    ],
)
def test_a_point_of_a_curve_is_known_to_what_its_source_states(
    entries: list[Entry], table: str, row: str, column: str, accuracy: float
) -> None:
    point = entry(entries, table, row, column, "paper-figure")
    low, high = published(point)
    half = 0.5 * 10 ** -len(point.printed.partition(".")[2])
    assert (high - low) / 2 == pytest.approx(half + accuracy)


def test_every_curve_states_its_accuracy(entries: list[Entry]) -> None:
    for point in entries:
        if point.source_class == "paper-figure":
            low, high = published(point)
            assert high - low > 1.5e-3 * 10 ** -len(point.printed.partition(".")[2])


def test_formulas_give_what_is_printed(verdicts: list[Verdict]) -> None:
    found = Counter(v.entry.table for v in verdicts if v.verdict == "verified")
    assert found == {"Table 8": 81, "Table 8 (derived)": 90, "Table 6 evaluated (derived)": 24}
    printed = [v.entry for v in verdicts if v.entry.table == "Table 8" and v.entry.source_class == "paper"]
    counts = [e for e in printed if e.conditions["stage"] != "all"]
    assert [e.value for e in counts] == [cell for row in paper_table8() for cell in row]


def test_a_formula_that_gives_another_number_is_said_to(entries: list[Entry]) -> None:
    count = entry(entries, "Table 8", "8 x 8", "Stage 5", "paper")
    found = verdict_of(replace(count, value=186.0, printed="186"))
    assert (found.verdict, found.difference, found.why) == ("differs", -1, "the formula gives 185")


def test_the_guard_flags_table_2_of_the_seed_and_nothing_else(verdicts: list[Verdict]) -> None:
    flagged = {(v.entry.table, v.entry.row, v.entry.column): v.flags for v in verdicts if v.flags}
    assert flagged == {
        ("Table 2", "REFRAG (k=16)", "TTIT"): ("4.1 ms is below the floor of 6.481 ms",),
        ("Table 2", "REFRAG (k=16)", "Throughput"): ("4.098 ms is below the floor of 6.481 ms",),
        ("Table 2", "REFRAG (k=16)", "Memory"): ("8.6 GB of memory is below the 13.48 GB of the weights",),
    }
    assert {v.entry.source_class for v in verdicts if v.flags} == {"seed-claim"}


def test_the_floor_is_that_of_the_decoders_shape() -> None:
    heads = dict(heads=32, kv_heads=32, head_width=128)
    shape = LlamaShape(layers=physics.LAYERS, width=physics.WIDTH, ffn=physics.FFN, vocab=physics.VOCAB, **heads)
    assert shape.weights == physics.READ_PER_TOKEN
    own_kv = 2 * 2 * shape.layers * shape.width  # the keys and values of the new position
    assert decode_step(shape, past=0, itemsize=2).bytes == 2 * physics.READ_PER_TOKEN + own_kv


@pytest.mark.parametrize(
    ("column", "printed", "flagged"),
    [("TTFT", "6.4", True), ("TTFT", "6.5", False), ("TTIT", "6.4", True), ("TTIT", "6.5", False),
     ("Throughput", "155", True), ("Throughput", "154", False), ("Memory", "13.4", True), ("Memory", "13.5", False)],
)  # fmt: skip
def test_the_guard_at_its_borders(entries: list[Entry], column: str, printed: str, flagged: bool) -> None:
    claim = entry(entries, "Table 2", "Standard RAG", column, "seed-claim")
    assert not physics.flags(claim)
    changed = replace(claim, value=float(printed), printed=printed)
    assert bool(physics.flags(changed)) == flagged
    assert not physics.flags(replace(changed, source_class="paper"))


def test_every_claim_of_the_seed_is_judged_but_for_two(entries: list[Entry]) -> None:
    items = read_discrepancies()
    assert Counter(item.verdict for item in items.values()) == {
        "contradicts the paper": 24, "agrees with the paper": 19, "not in the paper": 19
    }  # fmt: skip
    claims = [e for e in entries if e.source_class == "seed-claim"]
    assert {item_of(claim) for claim in claims} - {None} <= items.keys()
    assert [claim.row for claim in claims if item_of(claim) is None] == ["Total", "Phase 4 resources"]


def test_claims_are_judged_by_the_item_that_quotes_them(entries: list[Entry]) -> None:
    """Items that list numbers list those of their claims."""
    items = read_discrepancies()
    for name in ("NQ EM RAG/CEPE/REFRAG16/REFRAG32", "TQA EM", "PopQA F1", "TTFT ms", "TTIT ms", "Throughput tok/s",
                 "Memory GB", "k=8/16/32/64 TTFT speed-up", "Stage 1 mixture", "Avg speed-up REFRAG k=16"):  # fmt: skip
        quoted = items[name].seed.split("(")[0].rstrip("x ").replace(" ", "").split("/")
        claims = [e for e in entries if e.source_class == "seed-claim" and item_of(e) == name]
        assert [float(text) for text in quoted] == [e.value for e in claims], name


def test_a_journals_medians_are_those_of_the_latency_table() -> None:
    """And the interval that is drawn for one figure is the one of the table."""
    (path,) = RECORDS.glob("latency/cpu-float32/latency.jsonl")
    journal = read(path)
    part = replace(journal, rows=[row for row in journal.rows if row["length"] == 512])
    of_table = {(line.label, line.boundary): line for line in part.lines}
    found = [m for m in of_journal(path) if m.conditions["context"] == 512 and m.conditions["system"] == "REFRAG"]
    by = {(m.quantity[1], m.conditions["k"], m.conditions["boundary"], m.conditions.get("policy")): m for m in found}
    for k in (8, 16, 32):
        line = of_table[f"REFRAG k={k}", PREFILL]
        ratios = {"TTFT": line.speedup, "TTIT": line.ttit_speedup, "Throughput": line.throughput_speedup}
        for figure, ratio in ratios.items():
            assert ratio is not None
            own = by[f"{figure}, x", k, "cached", None]
            assert own.value == pytest.approx(ratio.mean)
            assert own.limits() == (ratio.low, ratio.high)
        assert line.ttft_s is not None
        assert by["TTFT, ms", k, "cached", None].value == pytest.approx(1e3 * line.ttft_s[1])
        assert by["Throughput, tok/s", k, "cached", None].value == pytest.approx(line.tokens_per_s)
    reference = [m for m in of_journal(path) if m.quantity == ("standard_rag", "Throughput, x", "")]
    assert {m.value for m in reference if m.conditions["boundary"] == "cached"} == {1.0}


def test_real_questions_and_the_worlds_are_told_apart(measured: list[Measured]) -> None:
    asked = {m.conditions["dataset"] for m in measured if m.quantity[2] == "NQ"}
    assert asked == {"NQ", "synthetic world as NQ"}
    assert {m.conditions["model"] for m in measured if m.quantity[2]} == {"decoder of the synthetic world"}
    assert not [m for m in measured if m.quantity[0] == "standard_rag" and m.conditions.get("passages") == 0]


def test_nothing_measured_here_is_passed_off_as_the_papers(verdicts: list[Verdict]) -> None:
    """As long as no model of the paper was run, no number of it can have been reproduced."""
    models = {v.closest.conditions["model"] for v in verdicts if v.closest and v.verdict in ("reproduced", "differs")}
    assert all("LLaMA" in str(model) for model in models)


def test_records_that_are_missing_or_damaged_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no folder"):
        read_measured(tmp_path / "none")
    with pytest.raises(InputError, match="nothing measured below"):
        read_measured(tmp_path)
    (tmp_path / "alignment").mkdir()
    damaged = tmp_path / "alignment" / "x.json"
    for text in ("{", "[]", "{}", json.dumps({"folder": "refrag_v2/a", "measured": []})):
        damaged.write_text(text)
        with pytest.raises(InputError, match=r"x\.json: not an alignment check"):
            read_measured(tmp_path)


def test_records_that_no_published_number_is_compared_with_are_measured_all_the_same(tmp_path: Path) -> None:
    one = next(RECORDS.glob("same_relation/*/*/record.json"))
    shutil.copytree(one.parent, tmp_path / one.parent.name)
    assert read_measured(tmp_path) == []


def test_json_has_every_field(verdicts: list[Verdict]) -> None:
    for v in verdicts[::100]:
        found = json.loads(json.dumps(as_json(v)))
        assert found["conditions"] == v.entry.conditions
        assert {"table", "row", "column", "printed", "source_class", "page", "file", "verdict", "flags"} <= found.keys()


def test_the_claims_table_holds_every_item_and_every_flag(verdicts: list[Verdict], tmp_path: Path) -> None:
    grid = claims_table(verdicts, tmp_path)
    assert tuple(grid.head) == HEAD
    assert [line[0] for line in grid.lines] == [*read_discrepancies(), "Total", "Phase 4 resources"]
    assert {line[4] for line in grid.lines} == set(AGAINST_PAPER)
    assert [line[4] for line in grid.lines[-2:]] == [NOT_JUDGED] * 2
    flagged = {line[0]: line[-1] for line in grid.lines if line[-1] != "-"}
    assert flagged.keys() == {"TTIT ms", "Throughput tok/s", "Memory GB"}
    assert flagged["Memory GB"] == "REFRAG (k=16) Memory: 8.6 GB of memory is below the 13.48 GB of the weights"
    headline = next(line for line in grid.lines if line[0] == "Headline TTFT")
    assert "model" in headline[6] and "hardware" in headline[6]


def test_the_claims_table_links_to_what_is_there(verdicts: list[Verdict]) -> None:
    out = PROJECT / "results"
    files = claims_files(verdicts, out)
    assert {path.name for path in files} == {"claims.md", "claims.csv", "claims.tex"}
    markdown = files[out / "tables" / "claims.md"].decode()
    targets = {part.partition(")")[0] for part in markdown.split("](")[1:]}
    assert targets
    assert all((out / "tables" / target).is_file() for target in targets)
    assert b"](" not in files[out / "tables" / "claims.csv"]


def test_the_committed_claims_table_is_that_of_the_committed_records(verdicts: list[Verdict]) -> None:
    for path, content in claims_files(verdicts, PROJECT / "results").items():
        assert path.read_bytes() == content, f"{path} is old: run `refrag-bench ledger --claims results`"


def test_the_ledger_needs_no_torch() -> None:
    code = "import sys; from results.ledger import claims, verdicts; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=PROJECT, check=True)


def test_a_log_perplexity_is_of_its_text_and_lengths(entries: list[Entry], measured: list[Measured]) -> None:
    theirs = entry(entries, "Table 1", "REFRAG_8", "Arxiv P512 (s=2048)", "paper")
    ours = [figure for figure in measured if figure.quantity == quantity(theirs)]
    outputs = {figure.conditions["output"] for figure in ours}
    assert outputs == {32, 64, 128, 256}
    found = verdict_of(theirs, *ours)
    assert (found.verdict, found.difference) == ("not comparable", None)
    assert found.closest in ours
    assert {"dataset: Arxiv / arxiv of textpack", "output: 512 / 256"} <= set(found.differing)


def test_a_curve_whose_source_states_no_accuracy_is_open_by_its_last_digit_alone(entries: list[Entry]) -> None:
    read = next(e for e in entries if e.source_class == "paper-figure" and "+/-" in e.source)
    low, high = published(read)
    bare_low, bare_high = published(replace(read, source="a figure"))
    assert low < bare_low <= float(read.value) <= bare_high < high
