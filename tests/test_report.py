"""The page: everything is on it, nothing that the data says can act, and the same records give the same bytes."""

import json
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from conftest import PROJECT
from report_fakes import ATTACK, write_runs
from test_results import write_record

from harness.cli.catalog import EXPERIMENTS
from harness.cli.main import main
from harness.errors import InputError
from results.grids import Grid, linked, parts
from results.records import read_records
from results.replication import draw as replication
from results.report.examples import LETTERS, PASSAGES, Journals, command
from results.report.figures import inline
from results.report.page import draw, gather
from results.report.tables import number

RECORDS = PROJECT / "results" / "records"


class Reader(HTMLParser):
    """Elements by tag, ids, and what is loaded, as a browser would read the page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.loaded: list[str] = []
        self.handlers: list[str] = []
        self.scripts: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attributes:
            if name == "id":
                self.ids.append(str(value))
            if name in ("src", "srcset", "data", "action", "href", "xlink:href") and not str(value).startswith("#"):
                self.loaded.append(f"{tag} {name}={value}")
            if name.startswith("on"):
                self.handlers.append(name)

    def handle_data(self, data: str) -> None:
        if self.tags and self.tags[-1] == "script":
            self.scripts.append(data)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_runs(tmp_path_factory.mktemp("page") / "runs")


@pytest.fixture(scope="module")
def page(runs: Path) -> str:
    out = runs.parent / "report.html"
    return draw([runs], out)[1][out].decode()


@pytest.fixture(scope="module")
def accepted(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The page of the accepted records; they are copied, so that no path of this checkout is on it."""
    home = tmp_path_factory.mktemp("accepted")
    shutil.copytree(RECORDS, home / "records")
    out = home / "report.html"
    return draw([home / "records"], out)[1][out].decode()


def data(page: str) -> dict[str, Any]:
    (found,) = re.findall(r'<script type="application/json" id="panels">(.*?)</script>', page, re.DOTALL)
    document: dict[str, Any] = json.loads(found)
    return document


def settings(panel: dict[str, Any]) -> dict[str, str]:
    return dict(dict(panel["groups"])["Settings"])


# What is on it


def test_every_table_and_figure_is_there(accepted: str) -> None:
    ids = Reader(accepted).ids
    experiments = ("tiny", "tiny-selection", "tiny-systems", "objective", "selection", "real")
    layouts = [name for name in replication.NAMES if not name.startswith("paper-figure")]
    figures = [name for name in replication.NAMES if name.startswith("paper-figure")]
    compared = [path.parent.name for path in RECORDS.rglob("comparison.json")]
    journals = [f"latency-{n}" for n, _ in enumerate(RECORDS.rglob("latency.jsonl"), start=1)]
    assert {*experiments, *layouts, "tiny-systems-cost", "tiny-selection-cost", "claims"} <= {*ids}
    assert {f"comparison-{name}" for name in compared} | {f"{name}-1" for name in journals} <= {*ids}
    assert {f"figure-{name}" for name in (*experiments, *figures, *journals)} <= {*ids}
    assert len(ids) == len(set(ids))


def test_every_measured_cell_opens_its_record(accepted: str) -> None:
    panels = data(accepted)["panels"]
    opened = {int(place) for place in re.findall(r'data-panel="(\d+)"', accepted)}
    assert opened == set(range(len(panels)))
    (cost,) = re.findall(r'<div class="table" id="tiny-systems-cost">.*?</table>', accepted, re.DOTALL)
    line = next(line for line in re.findall(r"<tr>.*?</tr>", cost) if "REFRAG v2 (k=8)" in line)
    shown = {text: panels[int(place)] for place, text in re.findall(r'data-panel="(\d+)">([^<]*)<', line)}
    record = json.loads((RECORDS / "same_relation/refrag_v2/184645c0d26bffa3/record.json").read_text())
    speeds = [settings(panel) for text, panel in shown.items() if re.fullmatch(r"\d\.\d\d", text)]
    assert [found["suite.name"] for found in speeds] == ["ttft", "ttft"]
    panel = shown["98.8"]
    assert panel["groups"][0][1][0] == ["run id", record["run_id"]]
    em = next(row for row in panel["metrics"] if row[0] == "em")
    assert [float(x) for x in em[2:5]] == pytest.approx(
        [record["metrics"]["em"][k] for k in ("mean", "low", "high")], 1e-4
    )
    assert em[5:] == ["500", "wilson"]
    assert settings(panel)["system.config.k"] == "8" and settings(panel)["decode.dtype"] == "float32"


def test_every_published_number_is_in_the_ledger_with_its_verdict(accepted: str) -> None:
    from results.ledger.entries import read_ledger

    assert accepted.count("<tr data-verdict=") == len(read_ledger())


def test_accepted_records_say_that_they_have_no_journal_and_what_makes_one(accepted: str) -> None:
    told = [panel["said"] for panel in data(accepted)["panels"] if panel["said"]]
    assert told and all("No journal lies beside this record" in said for said in told)
    assert any("`refrag-bench run tiny`" in said for said in told)


def test_the_command_that_runs_a_record_again_is_one() -> None:
    for record in read_records([RECORDS]):
        verb, name, *_ = command(record).removeprefix("refrag-bench ").split()
        assert verb == "run" and name in EXPERIMENTS


def test_a_run_shows_a_few_examples_with_what_it_read(page: str) -> None:
    document = data(page)
    (panel,) = [panel for panel in document["panels"] if panel["examples"]]
    assert [it["right"] for it in panel["examples"]] == [False] * 3 + [True] * 3
    assert panel["said"].startswith("6 of 10: at most the first 3 of 5 answered wrongly and the first 3 of 5")
    first = panel["examples"][0]
    assert (first["question"], first["golds"], first["answer"]) == (f"{ATTACK} 0", ["Vepin", ATTACK], ATTACK)
    assert ["chunks expanded", "3"] in first["usage"] and ["em", "0"] in first["scores"]
    texts = [document["passages"][place] for place in first["passages"]]
    assert len(texts) == PASSAGES and texts[0][0] == "Person 0" and texts[1][0] == f"{ATTACK} 1"
    assert texts[0][1].startswith(ATTACK) and len(texts[0][1]) <= LETTERS + 2


def test_a_journal_of_another_run_is_refused(tmp_path: Path) -> None:
    path = write_record(tmp_path, "a" * 16)
    path.with_name("predictions.jsonl").write_text('{"run_id": "bbbb", "i": 0, "question": "?"}\n')
    with pytest.raises(InputError, match=r"line 1: expected an example of the run a{16}"):
        Journals([tmp_path]).of(read_records([tmp_path])[0])


def test_an_experiment_of_ones_own_goes_before_the_accepted_one(tmp_path: Path) -> None:
    write_record(tmp_path / "runs", "a" * 16)
    write_record(tmp_path / "records", "b" * 16)
    write_record(tmp_path / "records", "c" * 16, experiments=["other"])
    report = gather([tmp_path / "runs"], tmp_path)
    ran = [dict(panel["groups"][0][1])["run id"] for panel in report.panels.made.values()]
    assert [section.name for section in report.sections[:2]] == ["experiment-tiny", "experiment-other"]
    assert ran[:2] == ["a" * 16, "c" * 16]


# Nothing acts, nothing is loaded


def test_no_text_of_the_data_becomes_markup(page: str) -> None:
    reader = Reader(page)
    assert reader.tags.count("script") == 2  # the data and the page's own
    assert "img" not in reader.tags
    assert reader.handlers == []
    assert "<script>window" not in page
    assert "&lt;script&gt;window" in page  # in a cell
    assert json.dumps(ATTACK)[1:-1] in json.dumps(data(page))


def test_nothing_is_loaded_and_only_the_pages_own_script_may_run(accepted: str) -> None:
    import base64
    import hashlib

    assert Reader(accepted).loaded == []
    assert "url(http" not in accepted and "@import" not in accepted
    (script,) = re.findall(r"<script>(.*?)</script>", accepted, re.DOTALL)
    allowed = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{allowed}'" in accepted


def test_the_page_names_no_path_of_this_machine(accepted: str, page: str, runs: Path) -> None:
    assert str(PROJECT) not in accepted and str(runs) not in page


# The same records, the same bytes


def test_the_same_records_give_the_same_bytes(page: str, runs: Path, tmp_path: Path) -> None:
    shutil.copytree(runs, tmp_path / "runs")
    assert draw([tmp_path / "runs"], tmp_path / "report.html")[1][tmp_path / "report.html"].decode() == page


def test_the_command_writes_the_page(runs: Path, page: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(runs, tmp_path / "runs")
    out = tmp_path / "report.html"
    assert main(["report", "--records", str(tmp_path / "runs"), "--out", str(out)]) == 0
    assert out.read_text() == page
    assert f"wrote {out}" in capsys.readouterr().err


def test_a_folder_of_records_may_hold_the_counted_configurations_alone(runs: Path, tmp_path: Path) -> None:
    """As ``run tiny --out`` leaves it."""
    (tmp_path / "records").mkdir()
    shutil.copy(RECORDS / "configurations.json", tmp_path / "records")
    report, _ = draw([runs], tmp_path / "report.html")
    assert any(section.name.startswith("experiment-") for section in report.sections)


def test_records_without_questions_are_refused(tmp_path: Path) -> None:
    write_record(tmp_path, "a" * 16, **{"spec.suite.name": "ttft"})
    with pytest.raises(InputError, match="none of the 1 records answers questions"):
        gather([tmp_path], tmp_path)


def test_the_page_is_drawn_without_torch() -> None:
    script = "import sys, results.report.page; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], cwd=PROJECT, check=False).returncode == 0


# Its parts


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("99.4 [98.3, 99.8] (n 500)", 99.4),
        ("135,168", 135168),
        ("355M", 355e6),
        ("~0.9 M parameters", 0.9e6),
        ("-3.5", -3.5),
        ("+1.2 [0.1, 2.3]", 1.2),
        ("5e-5", 5e-5),
        ("32 Bytes", 32),
        ("REFRAG v2 (k=8)", None),
        ("-", None),
        ("(a)", None),
        ("", None),
    ],
)
def test_a_cell_sorts_by_the_number_that_it_starts_with(text: str, value: float | None) -> None:
    assert number(text) == value


def test_parts_are_what_was_linked(tmp_path: Path) -> None:
    target = tmp_path / "a b" / "record.json"
    cell = linked("99.4 [98.3, 99.8]", target, tmp_path)
    assert parts(cell) == [("99.4", "a b/record.json"), (" [98.3, 99.8]", None)]
    assert parts("plain [x] (y)") == [("plain [x] (y)", None)]
    grid = Grid(title="", head=["a"], lines=[[cell]], notes=[])
    assert grid.csv().splitlines()[1] == '"' + "".join(text for text, _ in parts(cell)) + '"'


def test_two_figures_on_a_page_share_no_id() -> None:
    svg = b"""<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" viewBox="0 0 9 9">
    <!-- <script>x</script> --><defs><path id="m1"/><clipPath id="c"/></defs><script>alert(1)</script>
    <g id="figure_1" clip-path="url(#c)"><use xlink:href="#m1"/></g></svg>"""
    first, second = inline(svg, "one", "A figure"), inline(svg, "two", "<b>")
    assert re.findall(r' id="([^"]*)"', first) == ["one-m1", "one-c"]
    assert 'xlink:href="#one-m1"' in first and "url(#one-c)" in first
    assert re.findall(r' id="([^"]*)"', second) == ["two-m1", "two-c"]
    assert "script" not in first and "<b>" not in second
