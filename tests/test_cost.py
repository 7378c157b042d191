"""The cost table: every line joins what a setting scored with how fast it was, and says where nobody raced it."""

from __future__ import annotations

import csv
import io
import random
import re
import shutil
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
from test_results import METRICS, tables_cli, write_record

from results.experiments.cost import CSV_HEAD, CostTable, build_cost_table, to_csv, to_grid
from results.experiments.draw import draw
from results.records import read_record, read_records

REFRAG = {"template": "tagged", "max_positions": None, "expand": 0.1, "select": "policy"}
NOT_CACHED = {"mean": 1.25, "low": 1.125, "high": 1.5, "n": 60, "method": "bootstrap of the ratio of medians"}


def interval(mean: float, width: float = 0.0, n: int = 500) -> dict[str, Any]:
    return {"mean": mean, "low": mean - width, "high": mean + width, "n": n, "method": "bootstrap"}


def system(k: int | None = None, **config: Any) -> dict[str, Any]:
    """Standard RAG, or REFRAG v2 with chunks of ``k`` tokens."""
    if k is None:
        return {"name": "standard_rag", "config": {"template": "tagged"}, "checkpoint": "c0ffee"}
    return {"name": "refrag_v2", "config": {"k": k} | REFRAG | config, "checkpoint": f"weights-{k}"}


def context(suite: str, limit: int | None = None) -> dict[str, Any]:
    return {
        "name": suite,
        "dataset": "same_relation",
        "split": "test",
        "limit": limit,
        "root": "world-0",
        "revision": "5eed",
    }


def scored(folder: Path, run_id: str, of: dict[str, Any], **changes: Any) -> Path:
    metrics = METRICS | {"decoder_positions": interval(345.67)}
    if of["name"] == "refrag_v2":
        metrics |= {"effective_rate": interval(of["config"]["k"] / 2.0), "oracle_hit": interval(0.8125, 0.0625)}
    settings = {"spec.suite": context("same_relation"), "spec.system": of, "metrics": metrics}
    return write_record(folder, run_id * 16, **settings | changes)


def raced(folder: Path, run_id: str, of: dict[str, Any], speedup: float, **changes: Any) -> Path:
    settings = {
        "spec.suite": context("ttft", limit=60),
        "spec.system": of,
        "spec.decode": {"max_new_tokens": 1, "batch_size": 1, "device": "cpu", "dtype": "float32"},
        "metrics": {"ttft_speedup": interval(speedup, 0.25, n=60), "ttft_not_cached_speedup": NOT_CACHED},
        "n_examples": 60,
    }
    return write_record(folder, run_id * 16, **settings | changes)


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """Three systems of which one never raced, and a random-selection setting that did."""
    folder = tmp_path / "my runs"
    for letter, of in zip("fedc", (system(16), system(8), system(8, select="random"), system()), strict=True):
        scored(folder, letter, of)
    for number, (of, speedup) in enumerate(((system(8, select="random"), 1.5), (system(8), 2.0), (system(), 1.0))):
        raced(folder, str(number), of, speedup)
    return folder


def table_of(folder: Path, experiment: str = "tiny") -> CostTable:
    table = build_cost_table(read_records([folder]), experiment)
    assert table is not None
    return table


def cells_of(markdown: str) -> list[list[str]]:
    lines = [line for line in markdown.splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]
    return [cells[0], *cells[2:]]


# The join


def test_scores_and_speed_are_joined_by_system_settings_and_checkpoint(runs: Path) -> None:
    joined = {line.record.run_id[0]: line.race.run_id[0] if line.race else None for line in table_of(runs).lines}
    assert joined == {"c": "2", "d": "0", "e": "1", "f": None}
    for line in table_of(runs).lines:
        assert line.race is None or line.race.spec["system"] == line.record.spec["system"]


@pytest.mark.parametrize(
    "other",
    [system(16) | {"checkpoint": "others"}, system(16, expand=0.3), system(16) | {"name": "refrag_v1"}],
    ids=["checkpoint", "settings", "system"],
)
def test_the_race_of_something_else_is_nobodys(runs: Path, other: dict[str, Any]) -> None:
    before = table_of(runs).lines
    raced(runs, "9", other, 9.0)
    assert table_of(runs).lines == before
    assert before[-1].race is None
    raced(runs, "8", system(16), 3.0)
    assert table_of(runs).lines[-1].value("ttft_speedup").mean == 3.0


def test_a_line_is_of_the_passages_and_the_questions_that_raced(runs: Path) -> None:
    before = table_of(runs).lines
    scored(runs, "a", system(), **{"spec.passages": 4})
    scored(runs, "b", system(), **{"spec.suite": context("same_relation") | {"revision": "beef"}})
    scored(runs, "9", system(32), experiments=["other"])
    assert table_of(runs).lines == before
    assert (table_of(runs).passages, table_of(runs).root) == (8, "world-0")


def test_a_race_counts_in_its_own_experiment_only(runs: Path) -> None:
    raced(runs, "8", system(16), 3.0, experiments=["other"])
    assert table_of(runs).lines[-1].race is None


def test_without_a_race_there_is_no_table(tmp_path: Path) -> None:
    scored(tmp_path, "a", system())
    assert build_cost_table(read_records([tmp_path]), "tiny") is None
    raced(tmp_path, "b", system(), 1.0)
    assert build_cost_table(read_records([tmp_path]), "tiny") is not None
    assert build_cost_table(read_records([tmp_path]), "other") is None


def test_a_race_of_what_nobody_scored_makes_no_table(tmp_path: Path) -> None:
    scored(tmp_path, "a", system(), **{"spec.passages": 4})
    raced(tmp_path, "b", system(), 1.0)
    assert build_cost_table(read_records([tmp_path]), "tiny") is None


def test_standard_rag_stands_first_and_k_counts_as_a_number(runs: Path) -> None:
    assert [line.row.name for line in table_of(runs).lines] == [
        "Standard RAG",
        "REFRAG v2 (k=8, select=policy)",
        "REFRAG v2 (k=8, select=random)",
        "REFRAG v2 (k=16, select=policy)",
    ]


# Written down


def test_markdown_shows_every_figure_and_says_what_never_ran(runs: Path) -> None:
    text = to_grid(table_of(runs), runs.parent / "out").markdown()
    head, rag, policy, _, unraced = cells_of(text)
    assert head == [
        "System",
        "EM (%)",
        "F1 (%)",
        "Fact expanded (%)",
        "Effective rate",
        "Decoder positions",
        "TTFT speed-up, cached",
        "TTFT speed-up, not cached",
    ]
    link = f"[95.0](../my%20runs/same_relation/standard_rag/{'c' * 16}/record.json)"
    assert rag == [
        "Standard RAG",
        f"{link} [92.7, 96.6]",
        "96.1 [94.0, 98.0]",
        "-",
        "-",
        "345.7",
        "1.00 [0.75, 1.25]",
        "1.25 [1.12, 1.50]",
    ]
    assert policy[3:] == ["81.2 [75.0, 87.5]", "4.0", "345.7", "2.00 [1.75, 2.25]", "1.25 [1.12, 1.50]"]
    assert unraced[4:] == ["8.0", "345.7", "not run", "not run"]
    assert text.startswith("**tiny: what 8 passages cost, Same relation (world-0)**\n")
    assert "- n = 500 questions, 60 prompts timed.\n" in text
    assert "A/A pair" in text


def test_examples_in_error_are_not_counted_as_questions(runs: Path) -> None:
    scored(runs, "a", system(32), n_errors=3)
    assert "n = 497, 500 questions" in to_grid(table_of(runs), runs).markdown()


def test_a_figure_that_no_line_has_is_no_column(tmp_path: Path) -> None:
    scored(tmp_path, "a", system())
    raced(tmp_path, "b", system(), 1.0)
    head = cells_of(to_grid(table_of(tmp_path), tmp_path).markdown())[0]
    assert "Fact expanded (%)" not in head
    assert "Effective rate" not in head
    assert len(head) == 6


def test_every_line_links_to_the_record_of_its_scores(runs: Path, tmp_path: Path) -> None:
    folder = tmp_path / "a" / "b"
    folder.mkdir(parents=True)
    table = table_of(runs)
    targets = re.findall(r"\]\((\S+?)\)", to_grid(table, folder).markdown())
    assert [(folder / unquote(target)).resolve() for target in targets] == [line.record.path for line in table.lines]


def test_latex_has_the_same_text_without_links_and_escapes_what_is_special(runs: Path) -> None:
    scored(runs, "a", {"name": "my_system & co", "config": {}, "checkpoint": "x"})
    table = table_of(runs)
    grid = to_grid(table, runs.parent)
    latex = grid.latex()
    assert "record.json" not in latex
    assert r"EM (\%) & F1 (\%) & Fact expanded (\%) &" in latex
    assert r"\caption{tiny: what 8 passages cost, Same relation (world-0)}" in latex
    body = latex.split(r"\midrule")[1].split(r"\bottomrule")[0].strip().splitlines()
    assert len(body) == len(table.lines) == 5
    assert body[0].startswith(
        r"Standard RAG & 95.0 {[}92.7, 96.6] & 96.1 {[}94.0, 98.0] & - & - & 345.7 & 1.00 {[}0.75"
    )
    assert body[-1].startswith(r"my\_system \& co & 95.0 {[}92.7")
    assert all(line.count(" & ") == len(grid.head) - 1 and line.endswith(r" \\") for line in body[:-1])
    assert not re.search(r"(?<!\\)[%#$]|(?<!\\)_", latex.split("\n", 1)[1].replace("{%\n", "{\n"))


def test_csv_gives_back_the_numbers_of_the_records_as_fractions(runs: Path) -> None:
    text = to_csv(table_of(runs))
    rows = list(csv.DictReader(io.StringIO(text)))
    assert tuple(rows[0]) == CSV_HEAD
    by_id = {record.run_id: record for record in read_records([runs])}
    for row in rows:
        record = by_id[row["run_id"]]
        assert (record.suite == "ttft") == row["figure"].startswith("ttft_"), "the run that measured it"
        value = record.metrics[row["figure"]]
        assert [float(row[key]) for key in ("mean", "low", "high")] == [value.mean, value.low, value.high]
        assert (int(row["n"]), row["system"], row["passages"]) == (value.n, record.system, "8")
        assert (row["experiment"], row["suite"]) == ("tiny", "same_relation")
    counts = {letter: sum(row["run_id"][0] == letter for row in rows) for letter in "cdef012"}
    assert counts == {"c": 3, "d": 5, "e": 5, "f": 5, "0": 2, "1": 2, "2": 2}
    assert len(rows) == sum(counts.values()), "what was not run has no row"
    variants = {row["variant"] for row in rows if row["run_id"][0] in "e1"}
    assert variants == {"k=8, select=policy"}, "scores and speed of one line under one name"


def test_the_order_of_the_records_moves_no_byte(runs: Path) -> None:
    records = read_records([runs])
    expected = build_cost_table(records, "tiny")
    for seed in range(5):
        random.Random(seed).shuffle(records)
        table = build_cost_table(records, "tiny")
        assert table == expected
        assert to_csv(table) == to_csv(expected)
        assert to_grid(table, runs).markdown() == to_grid(expected, runs).markdown()


def test_drawing_an_experiment_draws_its_cost_too(runs: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    tables, files = draw([runs], out)
    assert [table.experiment for table in tables] == ["tiny"], "a race makes no table of accuracy"
    cost = {path.name: content.decode() for path, content in files.items() if "-cost" in path.name}
    table, folder = table_of(runs), out / "tables"
    assert cost == {
        "tiny-cost.md": to_grid(table, folder).markdown(),
        "tiny-cost.tex": to_grid(table, folder).latex(),
        "tiny-cost.csv": to_csv(table),
    }
    scored(runs, "a", system(32), experiments=["unraced"])
    _, files = draw([runs], out, experiments=["unraced"])
    assert files
    assert not [path for path in files if "-cost" in path.name]


def test_copies_of_a_record_share_a_line(runs: Path, tmp_path: Path) -> None:
    """``--records runs results/records``: accepted records are copies of those below ``runs``."""
    copies = Path(shutil.copytree(runs, tmp_path / "records"))
    table = build_cost_table(read_records([runs, copies]), "tiny")
    assert table is not None
    assert [line.row for line in table.lines] == [line.row for line in table_of(runs).lines]


def test_the_cost_table_of_a_page_is_redrawn(runs: Path, tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    before, between, after = "# Title\n\n", "\n\nand what it costs:\n\n", "\nThe end.\n"
    marked = [f"<!-- table:{name} -->\nold\n<!-- /table -->" for name in ("tiny", "tiny-cost")]
    readme.write_text(before + between.join(marked) + after)
    assert tables_cli("--records", runs, "--out", tmp_path / "out", "--pages", readme, "--only", "tiny") == 0
    text = readme.read_text()
    assert to_grid(table_of(runs), tmp_path).markdown() in text
    assert "old" not in text
    assert text.startswith(before + "<!-- table:tiny -->") and text.endswith("<!-- /table -->" + after)


# From the jobs themselves


def test_what_the_jobs_leave_is_joined(world_root: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    """Evaluation and race name a setting alike: no line of cells that ran and raced says "not run"."""
    from tiny_refrag import write_tiny_refrag

    from slurm.jobs.evaluate import EvaluateJob
    from slurm.jobs.race import RaceJob

    refrag = str(write_tiny_refrag(tmp_path / "refrag"))
    ways = [("standard_rag", str(tiny_checkpoint), {})]
    ways += [("refrag_v2", refrag, {"expand": p, "select": s}) for p, s in ((0.0, "none"), (0.1, "policy"))]
    cells = [
        EvaluateJob(
            system=name,
            suite="same_relation",
            checkpoint=checkpoint,
            passages=2,
            data=world_root,
            limit=6,
            max_new_tokens=2,
            options=options,
            experiment="t",
            runs=tmp_path / "runs",
        )
        for name, checkpoint, options in ways
    ]
    for cell in cells:
        cell.run()
    RaceJob(cells=cells, prompts=3, runs=tmp_path / "runs", experiments=("t",)).run()
    table = table_of(tmp_path / "runs", "t")
    assert [line.row.name for line in table.lines] == [
        "Standard RAG",
        "REFRAG v2 (expand=0.0, select=none)",
        "REFRAG v2 (expand=0.1, select=policy)",
    ]
    assert all(line.race and line.race.n_examples == 3 for line in table.lines)
    assert [line.value("oracle_hit") is not None for line in table.lines] == [False, True, True]
    text = to_grid(table, tmp_path).markdown()
    assert "not run" not in text
    assert read_record(table.lines[0].record.path).metrics["em"].n == 6


# Other suites, and ratios of two figures


def test_another_suite_at_as_many_passages_gives_a_column_of_exact_match(runs: Path) -> None:
    scored(
        runs,
        "a",
        system(8),
        **{"spec.suite": context("nq") | {"revision": "beef"}, "metrics": METRICS | {"em": interval(0.25)}},
    )
    table = table_of(runs)
    head, *lines = cells_of(to_grid(table, runs.parent).markdown())
    assert head[:3] == ["System", "EM, NQ (%)", "EM (%)"]
    by_system = {line[0]: line[1] for line in lines}
    assert "[25.0](" in by_system["REFRAG v2 (k=8, select=policy)"]
    assert {cell for name, cell in by_system.items() if name != "REFRAG v2 (k=8, select=policy)"} == {"not run"}
    rows = [row for row in csv.DictReader(io.StringIO(to_csv(table))) if row["suite"] == "nq"]
    assert [(row["figure"], float(row["mean"]), row["run_id"][0]) for row in rows] == [("em", 0.25, "a")]


@pytest.mark.parametrize(
    "changes",
    [
        {"spec.passages": 4},
        {"spec.suite": context("nq") | {"revision": "beef", "root": "mirror"}},
        {"experiments": ["other"]},
    ],
)
def test_other_passages_other_data_and_other_experiments_give_none(runs: Path, changes: dict[str, Any]) -> None:
    before = table_of(runs)
    scored(runs, "a", system(8), **{"spec.suite": context("nq") | {"revision": "beef"}} | changes)
    assert table_of(runs) == before


def test_stored_bytes_are_per_passage_and_expansion_is_the_share_that_happened(runs: Path) -> None:
    figures = {"stored_bytes": 4096.0, "passages_read": 8.0, "chunks": 32.0, "chunks_expanded": 1.0}
    scored(runs, "a", system(4), metrics=METRICS | {name: interval(value) for name, value in figures.items()})
    table = table_of(runs)
    head, *lines = cells_of(to_grid(table, runs.parent).markdown())
    stored, expanded = head.index("Stored bytes per passage"), head.index("Chunks expanded (%)")
    (line,) = (line for line in lines if "k=4" in line[0])
    assert (line[stored], line[expanded]) == ("512", "3.1")
    assert {(other[stored], other[expanded]) for other in lines if other != line} == {("-", "-")}
    shares = {r["figure"]: r for r in csv.DictReader(io.StringIO(to_csv(table))) if r["run_id"][0] == "a"}
    assert float(shares["stored_bytes_per_passage"]["mean"]) == 512
    assert float(shares["share_expanded"]["mean"]) == 1 / 32


def test_no_passage_read_is_no_share(runs: Path) -> None:
    nothing = {"stored_bytes": interval(0.0), "passages_read": interval(0.0)}
    scored(runs, "a", {"name": "no_context", "config": {}, "checkpoint": "x"}, metrics=METRICS | nothing)
    head, *lines = cells_of(to_grid(table_of(runs), runs.parent).markdown())
    assert "Stored bytes per passage" not in head, "nobody has any"
    assert any(line[0] == "No context" for line in lines)


@pytest.mark.parametrize(("width", "noisy"), [(0.05, False), (0.25, True)])
def test_a_wide_pair_of_the_same_system_is_said_to_be_noise(tmp_path: Path, width: float, noisy: bool) -> None:
    scored(tmp_path, "c", system())
    note = f"Speed-ups are against run {'2' * 16}, on the same prompts"
    speed = {"ttft_speedup": interval(1.0, width, n=60), "ttft_not_cached_speedup": NOT_CACHED}
    raced(tmp_path, "2", system(), 1.0, metrics=speed, notes=[note])
    raced(tmp_path, "3", system(8), 2.0, notes=[note])
    scored(tmp_path, "d", system(8))
    assert ("NOISY: the A/A pair spans" in to_grid(table_of(tmp_path), tmp_path).markdown()) == noisy


def test_a_race_is_of_its_device(tmp_path: Path) -> None:
    on_gpu = {"max_new_tokens": 1, "batch_size": 1, "device": "cuda", "dtype": "float32"}
    scored(tmp_path, "a", system())
    raced(tmp_path, "b", system(), 1.0)
    raced(tmp_path, "c", system(), 8.0, **{"spec.decode": on_gpu})
    table = build_cost_table(read_records([tmp_path]), "tiny")
    assert table is not None
    (line,) = table.lines
    assert line.race is not None and line.race.metrics["ttft_speedup"].mean == 1.0
