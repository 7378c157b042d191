"""Pass keys and look-ups as tables and figures: every figure from its record, the same bytes every time."""

from __future__ import annotations

import copy
import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest
from test_results import DOCUMENT, write_record

from harness.cli.main import main
from harness.errors import InputError
from results.experiments import memory, memory_figure
from results.experiments.draw import draw
from results.records import read_records


def score(mean: float, n: int = 20) -> dict[str, Any]:
    return {"mean": mean, "low": max(0.0, mean - 0.1), "high": min(1.0, mean + 0.1), "n": n, "method": "wilson"}


def write(
    folder: Path, run_id: str, system: str, config: dict[str, Any], metrics: dict[str, Any], **asked: Any
) -> None:
    document = copy.deepcopy(DOCUMENT)
    suite = "passkey" if "length" in asked else "long_range"
    document |= {"run_id": run_id, "experiments": ["passkey"], "metrics": metrics}
    document["spec"]["suite"] |= {"name": suite, "root": "made", "settings": asked}
    document["spec"]["system"] |= {"name": system, "config": config}
    path = folder / suite / system / run_id / "record.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(document))


def key(em: float, positions: float, **depths: float) -> dict[str, Any]:
    by_depth = {f"em@{depth.removeprefix('d')}": score(mean) for depth, mean in depths.items()}
    return {"em": score(em, 40), "decoder_positions": score(positions), "digits": score(em)} | by_depth


@pytest.fixture
def records(tmp_path: Path) -> Path:
    folder = tmp_path / "records"
    of_key = {"keys": 1, "digits": 5}
    for run, (length, em) in enumerate({512: 1.0, 1024: 0.5}.items()):
        write(folder, f"a{run}", "standard_rag", {}, key(em, length + 20, d0=em, d100=em / 2), length=length, **of_key)
    for run, length in enumerate((512, 4096)):
        metrics = key(0.75, length / 8 + 20, d0=0.7, d100=0.8)
        write(folder, f"b{run}", "refrag_v2", {"k": 8}, metrics, length=length, **of_key)
    for run, (distance, chance) in enumerate({64: 0.4, 1024: 0.1}.items()):
        for steps in (1, 2):
            metrics = {"em": score(0.9 / steps), "chance": score(chance), "other_link": score(0.3)}
            write(folder, f"c{run}{steps}", "standard_rag", {}, metrics, distance=distance, steps=steps)
    return folder


def test_scores_stand_at_their_length_and_are_linked(records: Path, tmp_path: Path) -> None:
    lines = memory.passkey_lines(read_records([records]), "passkey", keys=1)
    grid = memory.by_length(lines, "passkey", 1, 512, tmp_path)
    assert list(grid.head) == ["System", "512", "1,024", "4,096"]
    assert [line[0] for line in grid.lines] == ["Standard RAG", "REFRAG v2 (k=8)"]
    assert grid.lines[0][1] == "[100.0](records/passkey/standard_rag/a0/record.json) [90.0, 100.0]"
    assert grid.lines[0][3] == grid.lines[1][2] == "-"
    assert "n = 40" in grid.notes[0]


def test_equal_positions_put_l_beside_k_l(records: Path, tmp_path: Path) -> None:
    lines = memory.passkey_lines(read_records([records]), "passkey", keys=1)
    grid = memory.at_equal_positions(lines, "passkey", tmp_path)
    assert grid is not None
    (line,) = grid.lines
    assert line[0] == "512"
    assert "a0/record.json" in line[1] and line[1].endswith("@532")
    assert "b1/record.json" in line[2] and line[2].endswith("@532")
    assert memory.at_equal_positions(lines[:1], "passkey", tmp_path) is None


def test_look_ups_have_their_chance_line(records: Path, tmp_path: Path) -> None:
    found = read_records([records])
    assert memory.step_counts(found, "passkey") == [1, 2]
    grid = memory.by_distance(memory.long_range_lines(found, "passkey", steps=2), "passkey", 2, 512, tmp_path)
    assert grid.lines[0][1].startswith("[45.0](records/long_range/standard_rag/c02/record.json)")
    assert grid.lines[-1] == ["Chance", "40.0", "10.0"]


def unread(record: Path, read: float, passages: int, **settings: int) -> None:
    """Say in ``record`` that of so many passages not all were read."""
    document = json.loads(record.read_text())
    document["spec"]["passages"] = passages
    document["spec"]["suite"]["settings"] |= settings
    document["metrics"]["passages_read"] = score(read)
    record.write_text(json.dumps(document))


def test_a_context_that_was_not_read_whole_says_so(records: Path, tmp_path: Path) -> None:
    def grids() -> list[Any]:
        found = read_records([records])
        lines = memory.passkey_lines(found, "passkey", keys=1)
        look_ups = memory.long_range_lines(found, "passkey", steps=1)
        return [
            memory.by_length(lines, "passkey", 1, 512, tmp_path),
            memory.at_equal_positions(lines, "passkey", tmp_path),
            memory.by_distance(look_ups, "passkey", 1, 512, tmp_path),
        ]

    before = grids()
    key_record = records / "passkey" / "standard_rag" / "a0" / "record.json"
    look_up = records / "long_range" / "standard_rag" / "c11" / "record.json"
    # All of it: of look-ups the spec names the passages of the longest context, and others are shorter.
    unread(key_record, 8, 8)
    unread(look_up, 35.5, 37, piece=32)
    assert grids() == before
    unread(key_record, 7.99, 8)
    unread(look_up, 31.5, 37, piece=32)
    after = grids()
    for grid, line, cell, said in (
        (0, 0, 1, "read 7.9 of 8"),
        (1, 0, 1, "read 7.9 of 8"),
        (2, 0, 2, "read 31.5 of at least 32"),
    ):
        was = before[grid].lines[line][cell]
        assert after[grid].lines[line][cell] == was.replace("]", f"] ({said})").replace(f"] ({said})(", "](")
        (note,) = set(after[grid].notes) - set(before[grid].notes)
        assert note.startswith("Read: the mean number of passages that were read, where not all were")
        assert sum("read" in cell for row in after[grid].lines for cell in row[1:]) == 1


@pytest.mark.usefixtures("one_thread")
def test_evaluating_says_what_of_a_context_was_read(
    tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The tiny decoder's window holds 4,096 tokens."""
    runs = tmp_path / "runs"
    asked = ["--suite", "passkey", "--ask", "depths=0", "--ask", "instructions=false", "--limit", "1"]
    own = ["--system", "standard_rag", "--checkpoint", str(tiny_checkpoint), "--runs", str(runs), *asked]
    assert main(["evaluate", *own, "--ask", "length=1024"]) == 0
    assert "read" not in capsys.readouterr().out
    assert main(["evaluate", *own, "--ask", "length=128000"]) == 0
    said = capsys.readouterr().out
    (path,) = (p for p in runs.rglob("predictions.jsonl") if "128000" in p.with_name("spec.json").read_text())
    (read,) = (json.loads(line)["usage"]["passages_read"] for line in path.read_text().splitlines())
    assert 0 < read < 64
    assert f"  read {read:.1f} of 2,000 passages" in said
    assert main(["tables", "--records", str(runs), "--out", str(tmp_path / "out"), "--only", "adhoc"]) == 0
    lines = (tmp_path / "out" / "tables" / "adhoc.md").read_text().splitlines()
    (cells,) = (line.split("|")[2:-1] for line in lines if line.startswith("| Standard RAG"))
    assert ["read" in cell for cell in cells] == [False, True]
    assert f"(read {read:.1f} of 2,000)" in cells[1]


def test_the_csv_has_every_depth(records: Path) -> None:
    rows = list(csv.DictReader(io.StringIO(memory.to_csv(read_records([records]), "passkey"))))
    (cell,) = [r for r in rows if (r["run_id"], r["metric"]) == ("a1", "em@100")]
    assert (cell["suite"], cell["tokens"], float(cell["mean"])) == ("passkey", "1024", 0.25)
    assert {r["keys_or_steps"] for r in rows if r["suite"] == "long_range"} == {"1", "2"}


def test_two_records_for_one_cell_are_refused(records: Path) -> None:
    write(records, "a9", "standard_rag", {}, key(0.1, 9, d0=0.1), length=512, keys=1, digits=5)
    with pytest.raises(InputError, match="two records for one cell"):
        memory.passkey_lines(read_records([records]), "passkey", keys=1)


def test_settings_that_two_records_of_a_place_do_not_share_make_lines(records: Path) -> None:
    for run, words in {"e0": 8, "e1": 16}.items():
        config = {"words": words, "max_positions": None}
        write(records, run, "mine:Config", config, key(0.1, 9, d0=0.1), length=512, keys=1, digits=5)
    write(records, "e2", "mine:Config", {"words": 16, "max_positions": None}, key(1, 9), length=1024, keys=1, digits=5)
    lines = memory.passkey_lines(read_records([records]), "passkey", keys=1)
    assert {line.row.variant: sorted(line.records) for line in lines if line.row.system == "mine:Config"} == {
        "words=8": [512],
        "words=16": [512, 1024],
    }
    assert [line.row.variant for line in lines if line.row.system == "refrag_v2"] == ["k=8"], "as without them"


def test_the_heat_map_marks_the_trained_length_and_shows_every_cell(records: Path) -> None:
    lines = memory.passkey_lines(read_records([records]), "passkey", keys=1)
    pictures = memory_figure.draw_heat_map(lines, 512)
    assert pictures == memory_figure.draw_heat_map(lines, 512)
    assert pictures["png"].startswith(b"\x89PNG")
    other = memory_figure.draw_heat_map(lines, 1024)
    assert other["svg"] != pictures["svg"], "the line moves with the trained length"
    lines[0].records[512].metrics["em@0"] = score_of(0.2)  # type: ignore[index]
    assert memory_figure.draw_heat_map(lines, 512)["svg"] != pictures["svg"]


def score_of(mean: float) -> Any:
    from harness.statistics import Interval

    return Interval(mean=mean, low=0.0, high=1.0, n=20, method="wilson")


def test_drawing_leaves_tables_and_figures_of_both(records: Path, tmp_path: Path) -> None:
    tables, files = draw([records], tmp_path / "out")
    assert tables == []
    names = {path.relative_to(tmp_path / "out").as_posix() for path in files}
    assert names == {
        "tables/passkey.csv",
        *(
            f"tables/{stem}.{kind}"
            for stem in ("passkey", "passkey-positions", "passkey-long-range-1", "passkey-long-range-2")
            for kind in ("md", "tex")
        ),
        *(f"figures/{stem}.{kind}" for stem in ("passkey", "passkey-long-range") for kind in ("png", "svg")),
    }
    assert draw([records], tmp_path / "out")[1] == files


def test_beside_a_table_of_answers_none_is_lost(records: Path, tmp_path: Path) -> None:
    """One's own runs are all of one experiment: pass keys among them have names that the answers do not take."""
    alone = draw([records], tmp_path / "out")[1]
    write_record(records, "d0", experiments=["passkey"])
    (table,), files = draw([records], tmp_path / "out")
    folder = tmp_path / "out" / "tables"
    assert files[folder / "passkey.md"] != alone[folder / "passkey.md"]
    assert table.experiment == "passkey"
    for kind in ("md", "csv", "tex"):
        assert files[folder / f"passkey-memory.{kind}"] == alone[folder / f"passkey.{kind}"]
    for name, drawn in {"passkey-memory-positions.md": "passkey-positions.md"}.items():
        assert files[folder / name] == alone[folder / drawn]
    figures = folder.with_name("figures")
    assert files[figures / "passkey-memory.svg"] == alone[figures / "passkey.svg"] != files[figures / "passkey.svg"]


def test_the_verb_draws_them_and_knows_no_other_experiment(
    records: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert main(["tables", "--records", str(records), "--out", str(out), "--only", "passkey"]) == 0
    assert (out / "figures" / "passkey.svg").exists()
    said = capsys.readouterr().out
    for name in ("passkey", "passkey-positions", "passkey-long-range-1", "passkey-long-range-2"):
        assert said.count((out / "tables" / f"{name}.md").read_text()) == 1
    assert main(["tables", "--records", str(records), "--out", str(out), "--only", "tiny"]) == 2
    assert "unknown experiment" in capsys.readouterr().err


def test_a_record_without_its_settings_is_named(tmp_path: Path) -> None:
    write_record(tmp_path, "a" * 16, **{"spec.suite.name": "passkey"})
    with pytest.raises(InputError, match=r"record.json: a record of suite passkey without spec.suite.settings"):
        draw([tmp_path], tmp_path / "out")
