"""Tables, figures and the two commands that read records: what they print is what the records hold, to the byte."""

import argparse
import copy
import csv
import io
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import PROJECT

from harness.cli import status as status_command
from harness.cli import tables as tables_command
from harness.cli.main import main
from harness.config import plain
from harness.errors import InputError
from results.experiments.accuracy import Row, Table, build_table, row_order
from results.experiments.formats import long_form, to_csv, to_latex, to_markdown
from results.experiments.passages_figure import draw_figure
from results.records import read_record, read_records
from results.replication import draw as replication
from results.replication import paper_figures

METRICS = {
    "em": {"mean": 0.95, "low": 0.9274, "high": 0.9659, "n": 500, "method": "wilson"},
    "f1": {"mean": 0.961, "low": 0.94, "high": 0.98, "n": 500, "method": "bootstrap"},
    "chance": {"mean": 0.125, "low": 0.1, "high": 0.15, "n": 500, "method": "wilson"},
}
DOCUMENT: dict[str, Any] = {
    "schema_version": 1,
    "run_id": "",
    "experiments": ["tiny"],
    "notes": [],
    "spec": {
        "suite": {
            "name": "nq",
            "dataset": "google-research-datasets/nq_open",
            "split": "validation",
            "limit": None,
            "root": "world-0",
            "revision": "5eed",
        },
        "retrieval": {"retriever": "bm25", "setting": "strong", "digest": "f00d"},
        "passages": 8,
        "system": {"name": "standard_rag", "config": {}, "checkpoint": "c0ffee"},
        "decode": {"max_new_tokens": 8, "batch_size": 16, "device": "cpu", "dtype": "float32"},
        "seed": 0,
        "prompt_version": 1,
        "metric_version": 1,
    },
    "metrics": METRICS,
    "n_examples": 500,
    "n_errors": 0,
    "n_empty_golds": 0,
    "timings": {"ttft_s": {"median": 0.01, "p10": 0.01, "p90": 0.02, "n": 31}},
    "provenance": {"commit": "0123456789abcdef", "dirty": False, "created": "2026-11-01T00:00:00+00:00"},
}


def write_record(folder: Path, run_id: str, **changes: Any) -> Path:
    """The record above with some values changed: ``{"spec.passages": 0}`` by dotted key."""
    document = copy.deepcopy(DOCUMENT) | {"run_id": run_id}
    for key, value in changes.items():
        *parents, last = key.split(".")
        place: Any = document
        for parent in parents:
            place = place[parent]
        place[last] = value
    spec = document["spec"]
    path: Path = folder / spec["suite"]["name"] / spec["system"]["name"] / run_id / "record.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(document))
    return path


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """Two systems on two suites, with a hole: CEPE was never run on the hard set."""
    folder = tmp_path / "my runs"
    write_record(folder, "a" * 16)
    write_record(folder, "b" * 16, **{"spec.passages": 0, "spec.retrieval": None})
    write_record(folder, "c" * 16, **{"spec.suite.name": "same_relation", "spec.suite.dataset": "same_relation"})
    write_record(folder, "d" * 16, **{"spec.system.name": "cepe", "n_errors": 3})
    return folder


def table_of(folder: Path, *, experiment: str = "tiny", metric: str = "em") -> Table:
    return build_table(read_records([folder]), experiment=experiment, metric=metric)


def tables_cli(*arguments: object) -> int:
    parser = argparse.ArgumentParser()
    tables_command.add_arguments(parser)
    return tables_command.run(parser.parse_args([str(argument) for argument in arguments]))


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


# Records


def test_a_record_is_read_as_it_was_written(tmp_path: Path) -> None:
    path = write_record(tmp_path, "a" * 16)
    (record,) = read_records([tmp_path])
    assert (record.path, record.run_id, record.experiments) == (path.resolve(), "a" * 16, ("tiny",))
    assert (record.suite, record.root, record.system, record.passages) == ("nq", "world-0", "standard_rag", 8)
    em = record.metrics["em"]
    assert {"mean": em.mean, "low": em.low, "high": em.high, "n": em.n, "method": em.method} == METRICS["em"]
    assert record.spec == DOCUMENT["spec"]


def test_a_record_that_the_harness_writes_can_be_read(tmp_path: Path) -> None:
    from harness import record as written

    spec = written.RunSpec(
        suite=written.SuiteSpec(**DOCUMENT["spec"]["suite"]),
        retrieval=None,
        passages=0,
        system=written.SystemSpec(**DOCUMENT["spec"]["system"]),
        decode=written.DecodeSpec(**DOCUMENT["spec"]["decode"]),
        seed=0,
        prompt_version=1,
        metric_version=1,
    )
    document = DOCUMENT | {"run_id": spec.run_id, "spec": plain(spec), "notes": ("A note.",)}
    written.RunRecord(**document).write(tmp_path)
    record = read_record(tmp_path / "record.json")
    assert (record.run_id, record.passages, record.metrics.keys()) == (spec.run_id, 0, METRICS.keys())
    assert record.notes == ("A note.",)


def test_a_file_below_two_of_the_folders_is_one_record(runs: Path) -> None:
    assert read_records([runs, runs / "nq"]) == read_records([runs])


@pytest.mark.parametrize("made", [False, True])
def test_no_records_is_an_error_that_says_how_to_make_some(tmp_path: Path, made: bool) -> None:
    folder = tmp_path / "runs"
    if made:
        folder.mkdir()
    with pytest.raises(InputError, match=r"runs.*refrag-bench run tiny"):
        read_records([folder])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda text: text[: len(text) // 2], "the JSON is damaged"),
        (lambda text: "", "the JSON is damaged"),
        (lambda text: "[1]", "expected schema_version 1, got None"),
        (lambda text: text.replace('"schema_version": 1', '"schema_version": 2'), "expected schema_version 1, got 2"),
        (lambda text: text.replace("0.9274", "NaN"), "NaN is no number"),
        (lambda text: text.replace("0.9274", "1e999"), "metrics.em: expected finite numbers"),
        (lambda text: text.replace("0.9274", '"low"'), "metrics.em.low: 'low' is of type str"),
        (lambda text: text.replace('"n_errors"', '"n_faults"'), "'n_errors' is missing"),
        (lambda text: text.replace('"passages": 8', '"passages": -1'), "spec.passages: expected a count, got -1"),
        (lambda text: text.replace('"passages": 8', '"passages": true'), "spec.passages: True is of type bool"),
        (lambda text: text.replace('"tiny"', '"../tiny"'), "expected an experiment name of letters"),
    ],
)
def test_a_damaged_record_is_named(tmp_path: Path, damage: Any, message: str) -> None:
    path = write_record(tmp_path, "a" * 16)
    damaged = damage(path.read_text())
    assert damaged != path.read_text()
    path.write_text(damaged)
    with pytest.raises(InputError, match=message) as caught:
        read_records([tmp_path])
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    "verb",
    [
        ["tables", "--records"],
        ["tables", "--only", "tiny", "--records"],
        ["report", "--records"],
        ["ledger", "--records"],
        ["export"],
    ],
)
def test_every_damaged_record_is_named_at_once(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], verb: list[str]
) -> None:
    damaged = sorted(runs.rglob("record.json"))[::2]
    assert len(damaged) == 2
    for path in damaged:
        path.write_text(path.read_text()[:50])
    out = ["--out", str(tmp_path / "out")] if verb[0] != "ledger" else []
    assert main([*verb, str(runs), *out]) == 2
    said = capsys.readouterr().err
    assert len(said.splitlines()) == 1 and all(str(path) in said for path in damaged), said
    assert not (tmp_path / "out").exists()


def test_a_folder_in_the_place_of_a_record_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "nq" / "record.json"
    folder.mkdir(parents=True)
    with pytest.raises(InputError, match="expected a record, got a folder") as caught:
        read_records([tmp_path])
    assert str(folder) in str(caught.value)


# Tables


def test_markdown_shows_score_interval_chance_n_errors_and_holes(runs: Path) -> None:
    lines = to_markdown(table_of(runs), runs.parent / "out").splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    link = "(../my%20runs/nq/standard_rag/{}/record.json)"
    assert cells[0] == ["System", "Passages", "NQ (world-0)", "Same relation (world-0)"]
    assert cells[2] == [
        "Standard RAG",
        "closed-book",
        f"[95.0]{link.format('b' * 16)} [92.7, 96.6] (chance 12.5, n 500)",
        "not run",
    ]
    assert cells[3][:2] == ["Standard RAG", "8"]
    assert "not run" not in cells[3]
    assert cells[4][:2] == ["CEPE", "8"]
    assert cells[4][2].endswith("[92.7, 96.6] (chance 12.5, n 500, 3 errors)")
    assert cells[4][3] == "not run"
    assert len(cells) == 5


def test_every_measured_cell_links_to_its_record(runs: Path, tmp_path: Path) -> None:
    from urllib.parse import unquote

    folder = tmp_path / "a" / "b"
    folder.mkdir(parents=True)
    table = table_of(runs)
    in_markdown = re.findall(r"\]\((\S+?)\)", to_markdown(table, folder))
    in_latex = [target.replace(r"\%", "%") for target in re.findall(r"\\href\{(.*?)\}", to_latex(table, folder))]
    in_csv = [cell["record"] for cell in long_form(table, folder) if cell["record"]]
    assert [unquote(target) for target in in_markdown] == [unquote(target) for target in in_latex] == in_csv
    assert {(folder / str(target)).resolve() for target in in_csv} == {r.path for r in read_records([runs])}


def test_csv_gives_back_the_numbers_of_the_records_exactly(runs: Path) -> None:
    table = table_of(runs, metric="f1")
    rows = list(csv.DictReader(io.StringIO(to_csv(table, runs))))
    assert len(rows) == len(table.rows) * len(table.columns) == 6
    measured = [row for row in rows if row["status"] == "measured"]
    assert {row["run_id"] for row in measured} == {letter * 16 for letter in "abcd"}
    for row in measured:
        record = read_record(runs / row["record"])
        score = record.metrics["f1"]
        assert [float(row[key]) for key in ("mean", "low", "high")] == [score.mean, score.low, score.high]
        assert (int(row["n"]), row["method"], float(row["chance"])) == (500, "bootstrap", 0.125)
        assert (row["run_id"], int(row["errors"])) == (record.run_id, record.n_errors)
    holes = [row for row in rows if row["status"] == "not run"]
    assert [{row[key] for key in ("mean", "low", "high", "n", "run_id", "record")} for row in holes] == [{""}] * 2


def test_notes_name_the_conditions(runs: Path) -> None:
    write_record(
        runs,
        "e" * 16,
        **{
            "spec.system": {"name": "refrag_v2", "config": {"k": 16}, "checkpoint": "beef"},
            "provenance.dirty": True,
            "notes": ["A note of ours."],
        },
    )
    notes = table_of(runs).notes
    said = "\n".join(notes)
    for condition in (
        "em (exact match, SQuAD dialect), metric version 1",
        "95 % interval (wilson)",
        "reader that finds a value of the asked relation in a passage at random, ignoring whose it is.",
        "google-research-datasets/nq_open validation, revision 5eed (NQ (world-0)); same_relation",
        "Retrieval: bm25, strong\n",
        "Standard RAG: checkpoint c0ffee\n",
        "REFRAG v2: checkpoint beef, k=16\n",
        "batch_size=16, device=cpu, dtype=float32, max_new_tokens=8, seed=0, prompt_version=1\n",
        "commit 0123456789ab (Standard RAG, CEPE); commit 0123456789ab with uncommitted changes (REFRAG v2)",
        "not run: no record exists",
    ):
        assert condition in said
    assert notes[-1] == "A note of ours."
    assert "2026" not in said


def test_runs_of_one_system_get_a_row_each_in_natural_order(tmp_path: Path) -> None:
    for letter, k in (("a", 32), ("b", 8), ("c", 16)):
        system = {"name": "refrag_v2", "config": {"k": k, "layers": 2}, "checkpoint": f"hash-{k}"}
        write_record(tmp_path, letter * 16, **{"spec.system": system})
    # The configuration tells them apart, so the checkpoint, which differs too, is left to the notes.
    assert [row.name for row in table_of(tmp_path).rows] == ["REFRAG v2 (k=8)", "REFRAG v2 (k=16)", "REFRAG v2 (k=32)"]


def test_a_setting_outside_the_configuration_tells_runs_apart_too(tmp_path: Path) -> None:
    write_record(tmp_path, "a" * 16)
    write_record(tmp_path, "b" * 16, **{"spec.seed": 1})
    write_record(
        tmp_path, "c" * 16, **{"spec.retrieval": {"retriever": "bm25", "setting": "weak", "digest": "another"}}
    )
    assert {row.variant for row in table_of(tmp_path).rows} == {
        "retrieval.setting=strong, seed=0",
        "retrieval.setting=strong, seed=1",
        "retrieval.setting=weak, seed=0",
    }


@pytest.mark.parametrize(
    ("changes", "difference"),
    [
        ({"spec.suite.revision": "beef"}, "suite.revision: 5eed against beef"),
        ({"spec.retrieval.digest": "beef"}, "retrieval.digest: f00d against beef"),
    ],
)
def test_two_records_of_other_questions_or_passages_in_one_cell_are_refused(
    tmp_path: Path, changes: dict[str, Any], difference: str
) -> None:
    first = write_record(tmp_path, "a" * 16)
    second = write_record(tmp_path, "b" * 16, **changes)
    with pytest.raises(InputError, match="two records for one cell") as caught:
        table_of(tmp_path)
    assert all(text in str(caught.value) for text in (str(first), str(second), difference))


def test_a_limited_run_stands_beside_the_full_one(tmp_path: Path) -> None:
    write_record(tmp_path, "a" * 16)
    # The first questions have passages of their own, and so another digest.
    limited = {"spec.suite.limit": 5, "spec.retrieval.digest": "beef", "spec.suite.revision": "beef"}
    write_record(tmp_path, "b" * 16, **limited)
    for letter, k in (("c", 8), ("d", 16)):
        system = {"name": "refrag_v2", "config": {"k": k}, "checkpoint": f"hash-{k}"}
        write_record(tmp_path, letter * 16, **{"spec.system": system})
    write_record(tmp_path, "e" * 16, **{"spec.system": system, **limited})
    table = table_of(tmp_path)
    assert {
        row.name: cell.record.run_id[0] for row, cell in zip(table.rows, table.cells, strict=True) if cell.record
    } == {
        "Standard RAG": "a",
        "Standard RAG (limit=5)": "b",
        "REFRAG v2 (k=8)": "c",
        "REFRAG v2 (k=16)": "d",
        "REFRAG v2 (limit=5, k=16)": "e",
    }
    write_record(tmp_path, "f" * 16, **{**limited, "spec.suite.revision": "feed"})
    with pytest.raises(InputError, match=r"two records for one cell.*suite.revision: beef against feed"):
        table_of(tmp_path)


def test_a_cell_of_which_passages_were_left_out_says_so(tmp_path: Path) -> None:
    for passages, mean in ((4, 2.0), (8, 7.998), (16, 16.0), (0, 0.0)):
        read = {"mean": mean, "low": mean, "high": mean, "n": 500, "method": "bootstrap"}
        changes = {"spec.passages": passages, "metrics": METRICS | {"passages_read": read}}
        write_record(tmp_path, f"{passages:016}", **changes)
    table = table_of(tmp_path)
    for text in (to_markdown(table, tmp_path), to_latex(table, tmp_path)):
        assert re.findall(r"read [\d.]+ of \d+", text) == ["read 2.0 of 4", "read 7.9 of 8"]
        assert "found no room in the decoder's context" in text
    assert [cell["passages_read"] for cell in long_form(table, tmp_path)] == [0.0, 2.0, 7.998, 16.0]


def test_a_record_that_tells_nothing_of_passages_read_is_not_called_truncated(runs: Path) -> None:
    table = table_of(runs)
    assert "no room" not in "\n".join(table.notes)
    assert {cell["passages_read"] for cell in long_form(table, runs)} == {None}


def test_a_copy_of_a_record_is_no_second_record_but_another_outcome_is(tmp_path: Path) -> None:
    write_record(tmp_path / "runs", "a" * 16)
    copied = write_record(tmp_path / "records", "a" * 16)
    table = table_of(tmp_path)
    assert [cell.status for cell in table.cells] == ["measured"]
    copied.write_text(copied.read_text().replace("0.95,", "0.94,"))
    with pytest.raises(InputError, match="differ in their scores only"):
        table_of(tmp_path)


def test_scores_of_two_metric_versions_are_never_mixed(runs: Path) -> None:
    newer = write_record(runs, "e" * 16, **{"spec.passages": 4, "spec.metric_version": 2})
    with pytest.raises(InputError, match="two metric versions") as caught:
        table_of(runs)
    assert str(newer) in str(caught.value)


def test_an_unknown_metric_or_experiment_names_the_valid_ones(runs: Path) -> None:
    with pytest.raises(InputError, match=r"unknown metric of experiment 'tiny': 'f2'.*valid choices: em, f1$"):
        table_of(runs, metric="f2")
    read = {"passages_read": METRICS["f1"], "has_answer_dpr": METRICS["em"]}
    write_record(runs, "e" * 16, **{"spec.passages": 4, "metrics": METRICS | read})
    assert table_of(runs, metric="has_answer_dpr").title.startswith("tiny: token subsequence match")
    for unshown in ("passages_read", "chance"):
        with pytest.raises(InputError, match=rf"'{unshown}'.*valid choices: em, f1, has_answer_dpr$"):
            table_of(runs, metric=unshown)
    with pytest.raises(InputError, match=r"unknown experiment 'tini' \(did you mean 'tiny'\?\)"):
        table_of(runs, experiment="tini")


def test_a_run_in_which_every_example_raised_has_no_score(tmp_path: Path) -> None:
    write_record(tmp_path, "a" * 16, metrics={}, n_errors=500)
    with pytest.raises(InputError, match=r"'passages_read'.*valid choices: acc_popqa, em"):
        table_of(tmp_path, metric="passages_read")
    table = table_of(tmp_path)
    assert "not scored](" in to_markdown(table, tmp_path)
    assert "(500 errors)" in to_markdown(table, tmp_path)
    assert "not scored" in to_latex(table, tmp_path)
    assert long_form(table, tmp_path)[0]["mean"] is None
    assert draw_figure(table)["png"].startswith(b"\x89PNG")


def test_bounds_that_rounding_pushed_past_their_mean_are_drawn(tmp_path: Path) -> None:
    bounds = {"em": {"mean": 0.0, "low": 1e-18, "high": 0.01, "n": 9, "method": "wilson"}}
    bounds["f1"] = {"mean": 1.0, "low": -1e-18, "high": 1 - 1e-16, "n": 9, "method": "bootstrap"}
    write_record(tmp_path, "a" * 16, metrics=bounds)
    for metric, printed in (("em", "[0.0, 1.0] (n 9)"), ("f1", "[0.0, 100.0] (n 9)")):
        table = table_of(tmp_path, metric=metric)
        assert printed in to_markdown(table, tmp_path)
        assert draw_figure(table)["png"].startswith(b"\x89PNG")


def test_records_of_other_suites_are_left_out_and_named(runs: Path) -> None:
    write_record(runs, "e" * 16, **{"spec.suite.name": "perplexity"})
    table = table_of(runs)
    assert {column.suite for column in table.columns} == {"nq", "same_relation"}
    assert "do not answer questions: perplexity" in table.notes[-1]


def test_the_order_in_which_records_are_read_changes_no_byte(runs: Path) -> None:
    records = read_records([runs])
    forwards, backwards = (build_table(each, experiment="tiny") for each in (records, records[::-1]))
    for form in (to_markdown, to_csv, to_latex):
        assert form(forwards, runs) == form(backwards, runs)
    assert draw_figure(forwards) == draw_figure(backwards)


def test_names_cannot_break_the_table(tmp_path: Path) -> None:
    write_record(tmp_path, "a" * 16, **{"spec.suite.root": "a|b_c&d", "spec.system.name": "my_system"})
    table = table_of(tmp_path)
    (row,) = [line for line in to_markdown(table, tmp_path).splitlines() if line.startswith("| my_system")]
    assert len(re.findall(r"(?<!\\)\|", row)) == 4
    latex = to_latex(table, tmp_path)
    assert r"NQ (a\textbar{}b\_c\&d)" in latex
    assert r"my\_system & 8 & " in latex


def test_latex_compiles(runs: Path, tmp_path: Path) -> None:
    pdflatex = shutil.which("pdflatex")
    if pdflatex is None:
        pytest.skip("needs pdflatex to compile the LaTeX table")
    awkward = "a & b_c ~ ^ \\ {x} [y] <z> | #1 50 % `q` $"
    odd = {"spec.suite.root": "odd_root#1 50%", "spec.system.name": "[my_system]", "notes": [awkward]}
    write_record(runs, "e" * 16, **odd)
    (tmp_path / "table.tex").write_text(to_latex(table_of(runs), tmp_path))
    names = ["table"]
    texts = [name for name in replication.NAMES if name not in paper_figures.FIGURES]
    _, files = replication.draw([PROJECT / "results" / "records"], tmp_path, only=texts)
    for path, content in files.items():
        if path.suffix == ".tex":
            (tmp_path / path.name).write_bytes(content)
            names.append(path.stem)
    assert names[1:] == texts
    (tmp_path / "document.tex").write_text(
        r"\documentclass{article}\usepackage{booktabs,graphicx,hyperref}\begin{document}"
        + r"\clearpage".join(rf"\input{{{name}}}" for name in names)
        + r"\end{document}"
    )
    command = [pdflatex, "-interaction=nonstopmode", "-halt-on-error", "-draftmode", "document.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout[-2000:]
    assert "Overfull" not in done.stdout


# Figures


def test_the_figure_depends_on_the_scores_and_on_nothing_else(runs: Path) -> None:
    import matplotlib as mpl

    table = table_of(runs)
    drawn = draw_figure(table)
    with mpl.rc_context({"font.size": 30, "axes.facecolor": "red", "svg.hashsalt": "mine"}):
        assert draw_figure(table) == drawn
    assert draw_figure(table_of(runs, metric="f1"))["png"] != drawn["png"]
    assert b"dc:date" not in drawn["svg"]
    assert b"Software" not in drawn["png"]


def test_the_figure_draws_every_score_interval_and_chance(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from matplotlib.container import ErrorbarContainer
    from matplotlib.figure import Figure

    kept: list[Figure] = []
    saved = Figure.savefig

    def keep(figure: Figure, *arguments: Any, **options: Any) -> None:
        kept.append(figure)
        saved(figure, *arguments, **options)

    monkeypatch.setattr(Figure, "savefig", keep)
    draw_figure(table_of(runs))
    panels = kept[0].axes
    assert [panel.get_title() for panel in panels] == ["NQ (world-0)", "Same relation (world-0)"]
    containers = {bar.get_label(): bar for bar in panels[0].containers if isinstance(bar, ErrorbarContainer)}
    assert containers.keys() == {"Standard RAG", "CEPE"}
    line, _, (intervals,) = containers["Standard RAG"].lines
    assert np.asarray(line.get_xydata()).tolist() == [[0, 95.0], [8, 95.0]]
    assert intervals.get_segments()[1].ravel().tolist() == pytest.approx([8, 92.74, 8, 96.59])
    (chance,) = [line for line in panels[0].lines if line.get_label() == "chance"]
    assert (set(np.asarray(chance.get_ydata())), chance.is_dashed()) == ({12.5}, True)
    assert [text.get_text() for text in kept[0].legends[0].get_texts()] == ["Standard RAG", "CEPE", "chance"]


# refrag-bench tables


def test_tables_writes_five_files_and_prints_the_markdown(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert tables_cli("--records", runs, "--out", out, "--only", "tiny") == 0
    kinds = [f"figures/tiny.{kind}" for kind in ("png", "svg")] + [
        f"tables/tiny.{kind}" for kind in ("csv", "md", "tex")
    ]
    assert list(snapshot(out)) == kinds
    assert capsys.readouterr().out == (out / "tables/tiny.md").read_text()
    (target,) = set(re.findall(r"\]\((\S+a{16}\S+)\)", (out / "tables/tiny.md").read_text()))
    assert (out / "tables" / target.replace("%20", " ")).is_file()


def test_tables_of_another_metric_do_not_overwrite_those_of_em(runs: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    tables_cli("--records", runs, "--out", out)
    before = snapshot(out)
    drawn = [*paper_figures.FIGURES, "tiny"]
    assert before.keys() >= {f"figures/{name}.{kind}" for name in drawn for kind in ("png", "svg")}
    tables_cli("--records", runs, "--out", out, "--metric", "f1", "--only", "tiny")
    after = snapshot(out)
    assert {name: after[name] for name in before} == before
    assert "tables/tiny-f1.md" in after


def test_tables_json_is_one_list_over_all_experiments(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_record(runs, "e" * 16, experiments=["mini"])
    monkeypatch.chdir(tmp_path)
    tables_cli("--records", runs, "--out", "out", "--json", "--only", "mini", "tiny")
    cells = json.loads(capsys.readouterr().out)
    assert [cell["experiment"] for cell in cells] == ["mini"] + ["tiny"] * 6
    assert all(Path(cell["record"]).is_file() for cell in cells if cell["status"] == "measured")
    tables_cli("--records", runs, "--out", "out", "--json", "--only", "mini")
    assert [cell["run_id"] for cell in json.loads(capsys.readouterr().out)] == ["e" * 16]


def test_tables_without_a_question_answering_record_says_so(tmp_path: Path) -> None:
    write_record(tmp_path, "a" * 16, **{"spec.suite.name": "smoke"})
    with pytest.raises(InputError, match=r"none of the 1 records answers questions.*nq, triviaqa"):
        tables_cli("--records", tmp_path, "--out", tmp_path / "out")


README = """# Title
<!-- table:tiny -->
old
<!-- /table -->
Between, `<!-- table:tiny -->` in a sentence is no marker.
<!-- table:mini -->
kept
<!-- /table -->
end
"""


def test_the_tables_of_pages_are_redrawn_in_place(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    readme, other = tmp_path / "README.md", tmp_path / "docs" / "more.md"
    other.parent.mkdir()
    for page in (readme, other):
        page.write_text(README)
    options = ("--records", runs, "--out", tmp_path / "out", "--only", "tiny", "--pages", readme, other)
    for _ in range(2):
        tables_cli(*options)
        for page in (readme, other):
            assert page.read_text() == README.replace("\nold\n", f"\n\n{to_markdown(table_of(runs), page.parent)}\n")
    # Links are relative to the page, not to results/tables.
    assert "(my%20runs/nq/standard_rag/" in readme.read_text()
    assert "(../my%20runs/nq/standard_rag/" in other.read_text()
    assert f"{readme}: the table mini stays as it is" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (README.replace("<!-- /table -->", "", 1), "table:tiny --> is not followed by"),
        (README.replace("end", "<!-- table:tiny -->"), "table:tiny --> is not followed by"),
        ("# Title\n", "for one of tiny; found no marker"),
        (README.replace("table:tiny", "table:tinny"), "for one of tiny; found mini, tinny"),
    ],
)
def test_a_page_with_wrong_markers_changes_nothing(runs: Path, tmp_path: Path, text: str, message: str) -> None:
    readme = tmp_path / "README.md"
    readme.write_text(text)
    with pytest.raises(InputError, match=message) as caught:
        tables_cli("--records", runs, "--out", tmp_path / "out", "--pages", readme, "--only", "tiny")
    assert str(readme) in str(caught.value)
    assert readme.read_text() == text
    assert not (tmp_path / "out").exists()


def test_a_write_that_fails_leaves_the_old_file_and_no_other(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    tables_cli("--records", runs, "--out", out, "--only", "tiny")
    before = snapshot(out)

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    write_record(runs, "e" * 16, **{"spec.passages": 4})
    with pytest.raises(OSError, match="No space left"):
        tables_cli("--records", runs, "--out", out, "--only", "tiny")
    assert snapshot(out) == before


def test_an_output_folder_that_cannot_be_made_is_an_os_error(runs: Path, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("a file")
    with pytest.raises(OSError, match="out"):
        tables_cli("--records", runs, "--out", tmp_path / "out", "--only", "tiny")
    assert (tmp_path / "out").read_text() == "a file"
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "tables").write_text("a file")
    with pytest.raises(InputError, match="tables is a file; expected a folder"):
        tables_cli("--records", runs, "--out", tmp_path / "results", "--only", "tiny")


def test_a_page_that_is_not_there_is_named(runs: Path, tmp_path: Path) -> None:
    options = ("--records", runs, "--out", tmp_path / "out", "--only", "tiny")
    with pytest.raises(InputError, match=r"no file \S+README.md"):
        tables_cli(*options, "--pages", tmp_path / "README.md")


WITHOUT_TORCH = """
import importlib, pkgutil, sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "transformers"):
            raise ImportError(name + " must not be imported here")

sys.meta_path.insert(0, Blocked())
import argparse
from harness.cli import status, tables
parser = argparse.ArgumentParser()
tables.add_arguments(parser)
tables.run(parser.parse_args([*sys.argv[1:], "--only", "tiny"]))
assert "results.ledger.entries" not in sys.modules, "a published number came near an accuracy table"
tables.run(parser.parse_args([*sys.argv[1:], "--only", "seed-table-2", "paper-figure-6"]))
import results
for module in pkgutil.walk_packages(results.__path__, "results."):
    importlib.import_module(module.name)
parser = argparse.ArgumentParser()
status.add_arguments(parser)
status.run(parser.parse_args(["--runs", sys.argv[2]]))
assert "torch" not in sys.modules and "transformers" not in sys.modules
"""


def test_tables_need_no_torch_and_two_processes_write_the_same_bytes(runs: Path, tmp_path: Path) -> None:
    written = []
    for seed in ("1", "2"):
        out = tmp_path / seed
        subprocess.run(
            [sys.executable, "-c", WITHOUT_TORCH, "--records", str(runs), "--out", str(out)],
            cwd=PROJECT,
            env={**os.environ, "PYTHONHASHSEED": seed},
            check=True,
            capture_output=True,
        )
        written.append(snapshot(out))
    assert len(written[0]) == 5 + 3 + 2
    assert written[0] == written[1]


# refrag-bench status


def start_run(runs: Path, run_id: str, rows: list[dict[str, Any]], torn: str = "") -> None:
    folder = runs / "nq" / "refrag_v2" / run_id
    folder.mkdir(parents=True)
    (folder / "spec.json").write_text(json.dumps({"n_examples": 4, "spec": DOCUMENT["spec"]}))
    if rows:
        lines = "".join(json.dumps({"run_id": run_id, "i": i, **row}) + "\n" for i, row in enumerate(rows))
        (folder / "predictions.jsonl").write_text(lines + torn)


def test_status_tells_the_states_apart(tmp_path: Path) -> None:
    path = write_record(tmp_path, "a" * 16, n_errors=2)
    (path.parent / "spec.json").write_text(json.dumps({"n_examples": 500, "spec": DOCUMENT["spec"]}))
    damaged = write_record(tmp_path, "b" * 16)
    damaged.write_text("{")
    start_run(tmp_path, "c" * 16, [])
    answered, raised = {"id": "q", "prediction": "x", "scores": {"em": 1.0}}, {"id": "q", "error": "OutOfMemory"}
    start_run(tmp_path, "d" * 16, [answered, raised, answered], torn='{"run_id": "dddd')
    start_run(tmp_path, "e" * 16, [answered])
    (tmp_path / "nq/refrag_v2" / ("e" * 16) / "spec.json").write_text("{")

    states = {state.run_id[0]: state for state in status_command.run_states(tmp_path)}
    assert {key: (s.state, s.rows, s.n_examples, s.errors) for key, s in states.items()} == {
        "a": ("done", 500, 500, 2),
        "b": ("damaged", 0, None, 0),
        "c": ("not started", 0, 4, 0),
        "d": ("partial", 3, 4, 1),
        "e": ("damaged", 1, None, 0),
    }
    assert {(s.suite, s.system, s.passages) for s in states.values()} == {
        ("nq", "standard_rag", 8),
        ("nq", "standard_rag", None),
        ("nq", "refrag_v2", 8),
        ("nq", "refrag_v2", None),
    }


def test_status_does_not_count_the_rows_of_another_run(tmp_path: Path) -> None:
    start_run(tmp_path, "a" * 16, [{"prediction": "x"}])
    journal = tmp_path / "nq/refrag_v2" / ("a" * 16) / "predictions.jsonl"
    journal.write_text(journal.read_text() + json.dumps({"run_id": "b" * 16, "i": 1}) + "\n")
    (state,) = status_command.run_states(tmp_path)
    assert (state.state, state.rows) == ("damaged", 1)


@pytest.mark.parametrize("line", ["[]", "{", "1", '{"run_id": "RUN"}', '{"run_id": "RUN", "i": 0}', '{"i": 1}'])
def test_status_shows_a_journal_that_no_run_can_go_on_from_as_damaged(tmp_path: Path, line: str) -> None:
    run_id = "a" * 16
    start_run(tmp_path, run_id, [{"error": "OutOfMemory"}], torn=line.replace("RUN", run_id) + "\n")
    (state,) = status_command.run_states(tmp_path)
    assert (state.state, state.rows, state.errors) == ("damaged", 1, 1)


@pytest.mark.parametrize(
    ("rows", "torn", "state"),
    [
        ([{"id": "q"}, {"error": "OutOfMemory"}], "", ("done", 2, 1)),
        ([{"id": "q"}], "", ("damaged", 1, 0)),
        ([{"id": "q"}] * 3, "", ("damaged", 3, 0)),
        ([{"id": "q"}], '{"run_id": "RUN", "i": 1', ("damaged", 1, 0)),
        ([{"id": "q"}] * 2, '{"run_id": "RUN", "i"', ("damaged", 2, 0)),
        ([{"id": "q"}], "garbage\n", ("damaged", 1, 0)),
        ([{"id": "q"}], '{"run_id": "another", "i": 1}\n', ("damaged", 1, 0)),
    ],
)
def test_status_reads_the_journal_of_a_finished_run(
    tmp_path: Path, rows: list[dict[str, Any]], torn: str, state: tuple[str, int, int]
) -> None:
    run_id = "a" * 16
    start_run(tmp_path, run_id, rows, torn=torn.replace("RUN", run_id))
    folder = tmp_path / "nq/refrag_v2" / run_id
    record = DOCUMENT | {"run_id": run_id, "n_examples": 2, "n_errors": 1}
    (folder / "record.json").write_text(json.dumps(record))
    (found,) = status_command.run_states(tmp_path)
    assert (found.state, found.rows, found.errors) == state


@pytest.mark.parametrize("name", ["spec.json", "predictions.jsonl", "record.json"])
def test_status_shows_a_folder_in_the_place_of_a_file_as_damaged(tmp_path: Path, name: str) -> None:
    start_run(tmp_path, "a" * 16, [{"prediction": "x"}])
    path = tmp_path / "nq/refrag_v2" / ("a" * 16) / name
    path.unlink(missing_ok=True)
    path.mkdir()
    (state,) = status_command.run_states(tmp_path)
    assert state.state == "damaged"


def test_status_shows_a_spec_without_a_number_of_passages_as_damaged(tmp_path: Path) -> None:
    specs: dict[str, dict[str, Any]] = {"a": {"passages": []}, "b": {}}
    for letter, spec in specs.items():
        start_run(tmp_path, letter * 16, [])
        path = tmp_path / "nq/refrag_v2" / (letter * 16) / "spec.json"
        path.write_text(json.dumps({"n_examples": 4, "spec": spec}))
    assert [state.state for state in status_command.run_states(tmp_path)] == ["damaged", "damaged"]


def test_status_prints_a_table_or_one_json_list(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    parser = argparse.ArgumentParser()
    status_command.add_arguments(parser)
    assert status_command.run(parser.parse_args(["--runs", str(runs), "--json"])) == 0
    listed = json.loads(capsys.readouterr().out)
    assert [state["run_id"][0] for state in listed] == ["d", "b", "a", "c"]
    assert status_command.run(parser.parse_args(["--runs", str(runs)])) == 0
    table = capsys.readouterr().out
    assert all(letter * 16 in table for letter in "abcd")
    assert "500 of 500" in table


def test_status_tells_the_cells_of_an_ablation_apart(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In the words of a table, whether a run has its record already or only its spec."""
    settings = [{"k": k, "expand": expand, "select": "policy"} for k in (8, 16) for expand in ("0", "1/4")]
    for number, config in enumerate(settings[:-1]):
        write_record(tmp_path, f"{number}" * 16, **{"spec.system.name": "refrag_v2", "spec.system.config": config})
    start_run(tmp_path, "3" * 16, [])
    path = tmp_path / "nq/refrag_v2" / ("3" * 16) / "spec.json"
    of_run = copy.deepcopy(DOCUMENT["spec"]) | {
        "system": {"name": "refrag_v2", "config": settings[-1], "checkpoint": ""}
    }
    path.write_text(json.dumps({"n_examples": 4, "spec": of_run}))
    start_run(tmp_path, "4" * 16, [])
    (path.parents[1] / ("4" * 16) / "spec.json").write_text("{")
    write_record(tmp_path, "5" * 16, **{"spec.passages": 4})  # another cell: nothing to be told from
    words = {state.run_id[0]: state.settings for state in status_command.run_states(tmp_path)}
    assert words == {
        "0": "expand=0, k=8",
        "1": "expand=1/4, k=8",
        "2": "expand=0, k=16",
        "3": "expand=1/4, k=16",
        "4": "",
        "5": "",
    }
    status_command.run(argparse.Namespace(runs=tmp_path, json=False))
    lines = capsys.readouterr().out.splitlines()
    assert all(any(f"{words[n]} " in line and n * 16 in line for line in lines) for n in "0123")


@pytest.mark.parametrize("made", [False, True])
def test_status_without_runs_says_how_to_start_one(tmp_path: Path, made: bool) -> None:
    folder = tmp_path / "runs"
    if made:
        folder.mkdir()
    with pytest.raises(InputError, match=r"runs.*refrag-bench run tiny"):
        status_command.run_states(folder)


def test_shares_stand_by_size_whatever_order_they_come_in() -> None:
    variants = ["expand=0.05, k=8", "expand=0.1, k=8", "expand=0.5, k=8", "expand=0.5, k=16", "expand=1.0, k=8"]
    rows = [Row(system="refrag_v2", variant=variant, passages=8) for variant in variants]
    shuffled = rows[::2] + rows[1::2]
    assert shuffled != rows and sorted(shuffled, key=row_order) == rows
