"""Published numbers and ours in one table: each in its place, none without a source, no hole without a word."""

from __future__ import annotations

import csv
import io
import json
import re
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import PROJECT

from harness.errors import InputError
from harness.roofline_limits import ttft_ratio_theory
from results.experiments.draw import Files
from results.ledger.entries import Entry, read_ledger
from results.records import read_record
from results.replication import draw as replication
from results.replication import paper_tables, seed_tables
from results.replication.evidence import Comparison, Evidence, read_evidence
from results.replication.layouts import DIFFERS, IMPOSSIBLE, OURS, PAPER, SEED, Cell, Layout, Line, Own
from results.replication.paper_measured import ANSWERS, RATE, Measured
from results.replication.published import Ledger, rounds_to
from results.replication.shapes import LLAMA2_7B

RECORDS = PROJECT / "results" / "records"
TABLES = {**seed_tables.TABLES, **paper_tables.TABLES}
NO_EVIDENCE = Evidence(records=[], journals=[])


@pytest.fixture(scope="module")
def ledger() -> Ledger:
    return Ledger(read_ledger())


@pytest.fixture(scope="module")
def evidence() -> Evidence:
    return read_evidence([RECORDS])


@pytest.fixture(scope="module")
def layouts(ledger: Ledger, evidence: Evidence) -> dict[str, Layout]:
    return {name: build(ledger, evidence) for name, build in TABLES.items()}


@pytest.fixture(scope="module")
def drawn() -> tuple[list[Layout], Files]:
    return replication.draw([RECORDS], PROJECT / "results", only=[*replication.RESULTS])


def cell(layout: Layout, row: str, column: str, source: str) -> Cell:
    (found,) = [c for c in layout.cells if (c.row, c.column, c.source) == (row, column, source)]
    return found


def entry(**changes: Any) -> Entry:
    words = dict.fromkeys(("table", "row", "column", "printed", "unit", "source", "page", "file"), "x")
    return Entry(**{**words, "value": 1.0, "source_class": "paper", "conditions": {}, **changes})


# --- a cell


OWN = Own(text="1", how="measured", value=1.0)


@pytest.mark.parametrize(
    "contents",
    [
        {"source": OURS},
        {"source": OURS, "own": OWN, "takes": "a GPU"},
        {"source": PAPER, "entry": entry(), "silent": "not printed"},
        {"source": OURS, "entry": entry()},
        {"source": PAPER, "own": OWN},
        {"source": SEED, "own": OWN},
    ],
)
def test_a_cell_with_no_content_two_contents_or_another_sources_is_refused(contents: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="r, c"):
        Cell(row="r", column="c", **contents)


def test_a_line_that_lacks_a_column_is_refused() -> None:
    line = Line(row="r", source=OURS, cells=(Cell(row="r", column="a", source=OURS, own=OWN),))
    with pytest.raises(ValueError, match="t, r"):
        Layout(name="t", title="T", columns=("a", "b"), lines=(line,), notes=())


# --- every table


def test_a_table_has_the_name_it_is_found_by(layouts: dict[str, Layout]) -> None:
    assert {name: layout.name for name, layout in layouts.items()} == {name: name for name in TABLES}


def test_every_published_cell_is_an_entry_of_the_ledger_in_its_own_sources_place(
    layouts: dict[str, Layout], ledger: Ledger
) -> None:
    known = {id(each) for each in ledger.entries}
    for layout in layouts.values():
        for each in layout.cells:
            if each.entry:
                assert id(each.entry) in known
                assert (each.source == SEED) == (each.entry.source_class == "seed-claim"), (layout.name, each)


def test_nothing_published_is_ours(ledger: Ledger) -> None:
    """Without a record or a journal no cell of ours is measured, whatever the ledger holds."""
    for build in TABLES.values():
        cells = [each for each in build(ledger, NO_EVIDENCE).cells if each.source == OURS]
        assert {each.status for each in cells} <= {"computed", "not measured"}
        assert all(each.takes for each in cells if each.status == "not measured")


def test_every_measured_cell_is_the_number_in_the_record_or_journal_that_it_names(layouts: dict[str, Layout]) -> None:
    measured = [each for layout in layouts.values() for each in layout.cells if each.status == "measured"]
    assert len(measured) > 40
    for each in measured:
        assert each.own is not None and each.own.path is not None and each.own.path.is_file()
        if each.own.path.name == "record.json":
            record = read_record(each.own.path)
            means = [metric.mean for metric in record.metrics.values()]
            times = [1e3 * record.timings["ttft_s"]["median"]] if record.suite == "ttft" else []
            known = [*means, *(100 * mean for mean in means), *times]
            if each.column != "Accuracy Drop":
                assert any(each.own.value == pytest.approx(number) for number in known), each
        assert each.own.low is None or each.own.low <= each.own.value <= each.own.high  # type: ignore[operator]


def test_another_ledger_moves_no_measured_cell(ledger: Ledger, evidence: Evidence, layouts: dict[str, Layout]) -> None:
    shifted = [
        e if isinstance(e.value, str) else replace(e, value=e.value + 1000, printed=f"{e.value + 1000}")
        for e in ledger.entries
    ]
    for name, build in TABLES.items():
        after = build(Ledger(shifted), evidence)
        assert [c.own for c in after.cells] == [c.own for c in layouts[name].cells]


def test_the_text_has_a_line_per_row_and_source_and_no_empty_cell(drawn: tuple[list[Layout], Files]) -> None:
    for layout in drawn[0]:
        grid = layout.grid(PROJECT / "results" / "tables")
        assert len(grid.lines) == len(layout.lines)
        for line in grid.lines:
            assert len(line) == len(grid.head) and all(line)


def test_what_a_cell_takes_is_said_in_the_notes(layouts: dict[str, Layout]) -> None:
    for layout in layouts.values():
        grid = layout.grid(Path())
        notes = "\n".join(grid.notes)
        assert all(each.takes in notes for each in layout.cells if each.takes)
        letters = {text for line in grid.lines for text in line if text.startswith("(") and len(text) == 3}
        assert all(f"{letter} not measured; it takes" in notes for letter in letters)


def test_the_csv_has_every_cell_with_its_source(drawn: tuple[list[Layout], Files]) -> None:
    layouts, files = drawn
    for layout in layouts:
        content = files[PROJECT / "results" / "tables" / f"{layout.name}.csv"].decode()
        rows = list(csv.DictReader(io.StringIO(content)))
        assert len(rows) == len(list(layout.cells))
        for row, each in zip(rows, layout.cells, strict=True):
            assert (row["row"], row["column"], row["source"], row["status"]) == (
                each.row,
                each.column,
                each.source,
                each.status,
            )
            if each.entry:
                assert (row["value"], row["page"], row["from"]) == (
                    each.entry.printed,
                    each.entry.page,
                    each.entry.source,
                )


def accepted(path: Path) -> bytes:
    """The file as git holds it (staged counts): `make run` redraws the one on disk from records of its own."""
    found = subprocess.run(
        ["git", "show", f":{path.relative_to(PROJECT)}"], cwd=PROJECT, capture_output=True, check=False
    )
    return found.stdout if found.returncode == 0 else path.read_bytes()


def test_committed_files_are_those_that_the_committed_records_give(drawn: tuple[list[Layout], Files]) -> None:
    for path, content in drawn[1].items():
        assert accepted(path) == content, f"{path} is not up to date: refrag-bench tables --records results/records"


# --- the paper's


def test_table_8_is_generated_cell_by_cell(layouts: dict[str, Layout]) -> None:
    layout = layouts["paper-table-8"]
    ours = {(c.row, c.column): c.own.value for c in layout.cells if c.own and c.column != "Summation"}
    printed = {(c.row, c.column): c.entry.value for c in layout.cells if c.entry and c.column != "Summation"}
    assert len(ours) == 81
    assert ours == printed
    assert not any(c.marks for c in layout.cells if c.column != "Summation")


def test_a_printed_sum_that_is_not_the_sum_is_marked(layouts: dict[str, Layout]) -> None:
    sums = [c for c in layouts["paper-table-8"].cells if c.column == "Summation" and c.source == OURS]
    marked = {c.row for c in sums if c.marks}
    assert marked == {"2 x 8", "32 x 8", "64 x 8", "128 x 8", "256 x 8"}  # as printed: 42,008 by cell, 42,000 by sum
    assert sum(c.own.value for c in sums if c.own and c.own.value) == 42_008


def test_table_6_is_evaluated_as_the_ledger_has_it(layouts: dict[str, Layout], ledger: Ledger) -> None:
    layout = layouts["paper-table-6"]
    assert not any(mark for c in layout.cells for mark in c.marks)
    value = cell(layout, "k = 16, s = 16384", "TTFT", OURS).own
    assert value is not None and value.value == ttft_ratio_theory(4096, 16384, 16)
    assert not rounds_to(
        25.61, ledger.derived("Table 6 evaluated (derived)", "k=16 d=4096", "TTFT acceleration @ s=16384")
    )


def test_effective_rates_of_table_13_are_the_printed_ones(layouts: dict[str, Layout]) -> None:
    layout = layouts["paper-table-13"]
    for row in {line.row for line in layout.lines}:
        printed = cell(layout, row, RATE, PAPER).entry
        own = cell(layout, row, RATE, OURS).own
        assert printed is not None and own is not None and own.value is not None and rounds_to(own.value, printed)


def test_the_tables_of_the_paper_are_whole(layouts: dict[str, Layout]) -> None:
    shapes = {"1": (9, 12), "2": (8, 12), "3": (11, 16), "11": (4, 4), "12": (4, 4), "13": (4, 13)}
    for number, (rows, columns) in shapes.items():
        layout = layouts[f"paper-table-{number}"]
        paper = [c for c in layout.cells if c.source == PAPER]
        alone = {name for name in layout.columns if name.startswith("ours alone")}
        assert len([line for line in layout.lines if line.source == PAPER]) == rows
        assert len(layout.columns) - len(alone) == columns
        assert all(bool(c.entry) == (c.column not in alone) for c in paper)
        assert {line.row for line in layout.lines if line.source != PAPER} == {c.row for c in paper}


LENGTHS = re.compile(r"s = (?P<context>\d+), o = (?P<output>\d+)")


def test_log_perplexities_stand_where_the_papers_lengths_are_as_many_times_the_trained_ones(
    layouts: dict[str, Layout],
) -> None:
    """The record, the output and the context of every cell, from its own spec; never a column of another set."""
    found = 0
    for number in ("1", "2", "13"):
        for each in layouts[f"paper-table-{number}"].cells:
            if not (each.own and each.own.path and each.own.path.parts[-4] == "perplexity"):
                continue
            spec = read_record(each.own.path).spec["suite"]
            told = LENGTHS.fullmatch(str(each.own.at))
            assert told is not None
            asked = re.search(r"(?:P|o=)(\d+)", each.column), re.search(r"s=(\d+)", f"{each.column} {each.row}")
            assert all(asked)
            output, context = (int(match[1]) for match in asked if match)
            s, o = {128: (256, 128), 256: (1024, 256)}[spec["output"]]  # what the tiny and the mini were trained on
            assert (int(told["context"]) * 2048 // s, int(told["output"]) * 2048 // o) == (context, output)
            assert spec["context"] in (0, int(told["context"]))
            assert each.column.startswith({"arxiv": "Arxiv", "book": "Book"}[spec["set"]])
            score = read_record(each.own.path).metrics[f"log_perplexity_{told['output']}"]
            assert (each.own.value, each.own.low, each.own.high) == (score.mean, score.low, score.high)
            found += 1
    assert found == 2 * (8 * 6 + 7 * 4) + 2 * 6 + 2  # the last are the policy's


def test_every_system_of_the_small_perplexities_is_in_its_own_row(layouts: dict[str, Layout]) -> None:
    systems = {
        "LLaMA-Full Context": "standard_rag", "LLaMA-No Context": "no_context", "LLaMA_256": "llama_k",
        "REPLUG": "replug", "CEPE": "cepe", "REFRAG_8": 8, "REFRAG_16": 16, "REFRAG_32": 32,
    }  # fmt: skip
    for each in layouts["paper-table-1"].cells:
        if each.own:
            record = read_record(each.own.path)  # type: ignore[arg-type]
            config = record.spec["system"]["config"]
            assert systems[each.row] == (config["k"] if record.system == "refrag_v2" else record.system)


def test_lines_of_ours_say_their_conditions(layouts: dict[str, Layout]) -> None:
    headings = {name: {line.source for line in layouts[name].lines} - {PAPER} for name in layouts}
    assert headings["paper-table-1"] == {
        "ours, 1.1 M parameters: s = 256; o = 32 / 64 / 128",
        "ours, 91 M parameters: s = 1,024; o = 64 / 128 / 256",
    }
    assert headings["paper-table-2"] == {
        "ours, 1.1 M parameters: s = 512 / 1,024; o = 128",
        "ours, 91 M parameters: s = 2,048 / 4,096; o = 256",
    }
    assert headings["paper-table-3"] == {"ours, synthetic world", "ours, real questions"}
    assert any("not comparable" in note.lower() or "set against" in note for note in layouts["paper-table-1"].notes)


def test_ablations_are_shown_by_seed_from_their_comparison(layouts: dict[str, Layout], evidence: Evidence) -> None:
    means = evidence.comparisons["order-pairs"].document["means"]
    for name, row, way in (
        ("paper-table-12", "REFRAG w/o reconstruction", "CPT"),
        ("paper-table-12", "REFRAG with reconstruction", "reconstruction then CPT"),
    ):
        for encoder in ("aligned", "unaligned"):
            (own,) = [
                c.own
                for c in layouts[name].cells
                if c.own and c.row == row and c.column.endswith(f" {encoder} encoder")
            ]
            scores = [100 * score for score in means[f"{encoder}, {way}"]["em"]]
            assert own.text == " / ".join(f"{score:.1f}" for score in scores)
            assert own.value == pytest.approx(sum(scores) / 3)
    none = cell(layouts["seed-table-11"], "No curriculum", "Final Accuracy", OURS).own
    assert none is not None and none.text == "1.8 / 93.0 / 96.4"


def test_text_ablations_stand_under_the_whole_output_as_the_mean_of_their_sets(
    ledger: Ledger, evidence: Evidence
) -> None:
    """Any four runs of two systems in two sets, under the names that the ablations give their lines."""
    text = [
        r for records in evidence.records for r in records if "perplexity" in r.experiments and r.system == "refrag_v2"
    ]
    by_set = {name: [r for r in text if r.spec["suite"]["set"] == name][:2] for name in ("arxiv", "book")}
    lines = ("CPT alone", "reconstruction, then CPT")
    names = {runs[i].run_id: line for runs in by_set.values() for i, line in enumerate(lines)}
    document = {"name": "text_order", "names": names, "tests": []}
    given = replace(evidence, comparisons={"text_order": Comparison(path=Path("differences.json"), document=document)})
    layout = TABLES["paper-table-12"](ledger, given)
    for i, row in enumerate(("REFRAG w/o reconstruction", "REFRAG with reconstruction")):
        (own,) = [c.own for c in layout.cells if c.row == row and c.own and c.column == "P2048"]
        runs = [runs[i] for runs in by_set.values()]
        output = runs[0].spec["suite"]["output"]
        assert own.value == sum(run.metrics[f"log_perplexity_{output}"].mean for run in runs) / 2
    unnamed = replace(given, comparisons={})
    assert not [c for c in TABLES["paper-table-12"](ledger, unnamed).cells if c.own]


def test_the_answers_of_table_13_are_those_of_the_expansion_experiment(layouts: dict[str, Layout]) -> None:
    for row, k, expanded in (("REFRAG_8 s=2048", 8, 0), ("REFRAG_16+RL s=2048", 16, 1)):
        own = cell(layouts["paper-table-13"], row, ANSWERS, OURS).own
        assert own is not None and own.path is not None
        record = read_record(own.path)
        assert record.spec["system"]["config"]["k"] == k and "expansion" in record.experiments
        assert record.metrics["chunks_expanded"].mean == expanded
        assert own.value == 100 * record.metrics["em"].mean


def test_measured_values_come_in_by_row_and_column(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    found = {("REFRAG_8", "Arxiv P512 (s=2048)"): OWN}
    monkeypatch.setattr(paper_tables, "MEASURED", {"Table 1": lambda *_: [Measured(values=found)]})
    layout = TABLES["paper-table-1"](ledger, NO_EVIDENCE)
    assert [(c.row, c.column) for c in layout.cells if c.own] == list(found)


# --- the seed's


def test_the_seeds_impossible_numbers_are_marked_and_only_those(layouts: dict[str, Layout]) -> None:
    marked = {
        (name, c.row, c.column)
        for name, layout in layouts.items()
        for c in layout.cells
        if c.source == SEED and any(mark[0] == IMPOSSIBLE for mark in c.marks)
    }
    assert marked == {
        ("seed-table-2", "Memory (GB)", "REFRAG (k=16)"),  # 8.6 GB for weights of 13.5
        ("seed-table-2", "TTIT (ms)", "REFRAG (k=16)"),  # 4.1 ms, floor 6.5
        ("seed-table-2", "Throughput (tok/s)", "REFRAG (k=16)"),  # 244, one over the floor is 154
        ("seed-table-6", "k=8", "TTFT Speedup"),
        ("seed-table-6", "k=16", "TTFT Speedup"),
    }


def test_a_paper_number_that_the_seed_contradicts_is_marked(layouts: dict[str, Layout]) -> None:
    layout = layouts["seed-table-1"]
    nq = cell(layout, "REFRAG (k=16)", "NQ (EM)", PAPER)
    assert nq.entry is not None and nq.entry.value == 23.30
    assert nq.marks[0][0] == DIFFERS
    assert cell(layout, "REFRAG (k=16)", "NQ (EM)", SEED).entry.value == 41.8  # type: ignore[union-attr]


def test_the_seeds_claims_are_all_shown(layouts: dict[str, Layout], ledger: Ledger) -> None:
    shown = {id(c.entry) for layout in layouts.values() for c in layout.cells}
    tables = {"Table 1", "Table 2", "Table 6", "Table 7", "Table 8", "Table 8 mixture snippet", "Table 11", "Table 12"}
    claims = [e for e in ledger.entries if e.source_class == "seed-claim" and e.table in tables]
    missing = [e for e in claims if id(e) not in shown]
    assert not [e for e in missing if (e.table, e.column) != ("Table 6", "k")]


def test_the_shape_is_the_counted_one() -> None:
    facts = json.loads((RECORDS / "configurations.json").read_text())["facts"]
    assert facts["sizes"]["decoder"]["v2-paper"] == LLAMA2_7B.parameters


# --- where evidence comes from


def test_a_run_of_ones_own_goes_before_the_accepted_one(tmp_path: Path, evidence: Evidence) -> None:
    asked = ("tiny", "nq", "refrag_v2", 8)
    accepted = evidence.find(*asked, k=16, expand=0.0)
    assert accepted is not None
    document = json.loads(accepted.path.read_text())
    document["metrics"]["em"] |= {"mean": 0.5, "low": 0.4, "high": 0.6}
    path = tmp_path / "nq" / "refrag_v2" / "own" / "record.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(document))
    both = read_evidence([tmp_path, RECORDS])
    own = both.score("em", *asked, k=16, expand=0.0)
    assert own is not None and (own.value, own.path) == (50.0, path)
    assert both.score("em", *asked, k=8, expand=0.0) == evidence.score("em", *asked, k=8, expand=0.0)

    document["spec"]["suite"]["root"] = "elsewhere"
    path.write_text(json.dumps(document))
    other = read_evidence([tmp_path]).score("em", *asked, k=16, expand=0.0)
    assert other is None, "the captions speak of one world"


def test_an_unknown_name_is_refused_with_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"seed-table-3.*valid choices:.*paper-table-1"):
        replication.draw([RECORDS], tmp_path, only=["seed-table-3"])
