"""Comparing ways of answering: the difference is the one that the journals hold, and a question counts once."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import PROJECT
from fakes import ListSuite, spec

from harness.errors import InputError
from harness.record import Journal, SystemSpec
from harness.statistics import holm, paired_bootstrap
from results.experiments.comparison import FILE, draw_comparisons, read_comparisons, to_grid, write_comparison
from slurm.jobs.compare import CompareJob, Way
from slurm.jobs.evaluate import Cell

RECORDS = PROJECT / "results" / "records"

Scores = Sequence[float]
CPU = torch.device("cpu")


@dataclass
class FakeCell:
    """What ``CompareJob`` takes of an ``EvaluateJob``: where its run lies."""

    name: str
    runs: Path

    def open(self) -> Cell:
        of = spec(passages=8, system=SystemSpec(name=self.name, config={}, checkpoint=f"weights of {self.name}"))
        return Cell(spec=of, suite=ListSuite([]), system=None, config=None, decoder=None, notes=(), device=CPU)


def finished(runs: Path, name: str, em: Scores, hits: Scores | None = None, first: int = 0, **changes: Any) -> FakeCell:
    """A run that answered questions ``first``, ``first + 1``, ...: ``em`` is a score, ``hits`` a usage figure."""
    cell: FakeCell = changes.get("kind", FakeCell)(name, runs)
    of = cell.open().spec
    rows = [
        {"id": f"q{first + i}", "question": "?", "answers": ["a"], "prediction": "a"}
        | {"scores": {"em": score, "f1": 0.5}, "usage": {"oracle_hit": hit, "decoder_positions": 9}}
        for i, (score, hit) in enumerate(zip(em, hits or em, strict=True))
    ]
    for index, change in changes.get("rows", {}).items():
        rows[index] = {key: rows[index][key] for key in ("id", "question", "answers")} | change
    with Journal(of.folder(runs) / "predictions.jsonl", of.run_id) as journal:
        journal.append(rows)
    (of.folder(runs) / "record.json").write_text("{}")
    return cell


def compared(tmp_path: Path, ways: Mapping[str, Sequence[FakeCell]], **changes: Any) -> CompareJob:
    way, *others = (Way(name=name, cells=cells) for name, cells in ways.items())
    settings: dict[str, Any] = dict(name="c", figures=("em",), runs=tmp_path / "runs", out=tmp_path / "out")
    return CompareJob(contrasts=[(way, other) for other in others], **settings | changes)


OURS: tuple[Scores, ...] = ((1, 1, 0, 1, 1, 0), (1, 0, 0, 1, 1, 1), (1, 1, 0, 1, 0, 1))
THEIRS: tuple[Scores, ...] = ((0, 1, 0, 0, 1, 0), (1, 0, 1, 0, 0, 1), (0, 0, 0, 1, 0, 0))
CHANCE: Scores = (0, 1, 0, 0, 0, 0)


@pytest.fixture
def ways(tmp_path: Path) -> dict[str, list[FakeCell]]:
    """Three seeds, three seeds of another way, and a way that has no seeds; hits are the complement."""
    runs = tmp_path / "runs"

    def seeds(name: str, of: Sequence[Scores]) -> list[FakeCell]:
        return [finished(runs, f"{name}{i}", em, [1 - score for score in em]) for i, em in enumerate(of)]

    return {"ours": seeds("ours", OURS), "theirs": seeds("theirs", THEIRS), "chance": seeds("chance", [CHANCE])}


# What is compared with what


def test_the_difference_is_that_of_the_means_over_seeds_and_questions(
    tmp_path: Path, ways: dict[str, list[FakeCell]]
) -> None:
    document = compared(tmp_path, ways).run()
    against_theirs, against_chance = document["tests"]
    mean = [sum(map(sum, of)) / 18 for of in (OURS, THEIRS, [CHANCE] * 3)]
    assert [test["b"] for test in document["tests"]] == ["theirs", "chance"]
    assert {test["a"] for test in document["tests"]} == {"ours"}
    assert against_theirs["difference"] == pytest.approx(mean[0] - mean[1])
    assert against_chance["difference"] == pytest.approx(mean[0] - mean[2])
    assert (mean[0], mean[1], mean[2]) == pytest.approx((12 / 18, 6 / 18, 3 / 18))
    assert document["means"]["ours"]["em"] == pytest.approx([sum(em) / 6 for em in OURS])
    assert document["means"]["chance"]["em"] == pytest.approx([1 / 6])
    assert document["runs"] == {name: [cell.open().spec.run_id for cell in cells] for name, cells in ways.items()}


def test_what_is_resampled_is_a_question_with_all_its_seeds(tmp_path: Path, ways: dict[str, list[FakeCell]]) -> None:
    (test, _) = compared(tmp_path, ways).run()["tests"]
    totals = [sum(column) for column in zip(*OURS, strict=True)], [sum(column) for column in zip(*THEIRS, strict=True)]
    assert test["n"] == 6
    assert test["a_higher"] == sum(a > b for a, b in zip(*totals, strict=True)) == 5
    assert test["b_higher"] == sum(a < b for a, b in zip(*totals, strict=True)) == 1
    # Every question has as many seeds as any other, so its total is all that there is to resample.
    of_questions = paired_bootstrap(*totals)
    assert [3 * test["low"], 3 * test["high"]] == pytest.approx([of_questions.low, of_questions.high])
    assert test["p_value"] == of_questions.p_value


def test_questions_are_matched_by_name_and_not_by_place(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    ours = finished(runs, "a", (1, 0, 0))
    of = FakeCell("b", runs).open().spec
    with Journal(of.folder(runs) / "predictions.jsonl", of.run_id) as journal:
        rows = [{"id": f"q{i}", "scores": {"em": float(i == 0)}, "usage": {}} for i in (2, 0, 1)]
        journal.append(rows)
    (of.folder(runs) / "record.json").write_text("{}")
    (test,) = compared(tmp_path, {"a": [ours], "b": [FakeCell("b", runs)]}).run()["tests"]
    assert (test["difference"], test["a_higher"], test["b_higher"], test["p_value"]) == (0, 0, 0, 1.0)


@pytest.mark.parametrize("turned", [False, True], ids=["the other", "this one"])
def test_a_way_without_seeds_stands_against_each_seed(
    tmp_path: Path, ways: dict[str, list[FakeCell]], turned: bool
) -> None:
    one, three = [ways["chance"][0]], ways["ours"]
    once = {"a": one, "b": three} if turned else {"a": three, "b": one}
    thrice = {name: cells * (3 // len(cells)) for name, cells in once.items()}
    assert compared(tmp_path, once).run()["tests"] == compared(tmp_path, thrice).run()["tests"]


def test_a_figure_may_be_a_score_or_something_that_answering_used(
    tmp_path: Path, ways: dict[str, list[FakeCell]]
) -> None:
    tests = compared(tmp_path, ways, figures=("em", "oracle_hit")).run()["tests"]
    assert [(test["figure"], test["b"]) for test in tests] == [
        (figure, other) for figure in ("em", "oracle_hit") for other in ("theirs", "chance")
    ]
    em, hits = tests[:2], tests[2:]
    assert [test["difference"] for test in hits] == pytest.approx([-test["difference"] for test in em])


def test_p_values_are_holms_over_the_whole_table(tmp_path: Path, ways: dict[str, list[FakeCell]]) -> None:
    tests = compared(tmp_path, ways, figures=("em", "oracle_hit")).run()["tests"]
    assert [test["p_holm"] for test in tests] == holm([test["p_value"] for test in tests])
    assert any(test["p_holm"] > test["p_value"] for test in tests)
    (alone,) = compared(tmp_path, {"ours": ways["ours"], "theirs": ways["theirs"]}).run()["tests"]
    assert alone["p_holm"] == alone["p_value"] == tests[0]["p_value"]


# What cannot be compared


def test_examples_in_error_are_refused_by_name(tmp_path: Path, ways: dict[str, list[FakeCell]]) -> None:
    broken = finished(tmp_path / "runs", "broken", CHANCE, rows={2: {"error": "boom"}, 4: {"error": "boom"}})
    with pytest.raises(InputError, match="2 examples in error, the first of them q2") as caught:
        compared(tmp_path, {**ways, "broken": [broken]}).run()
    assert broken.open().spec.run_id in str(caught.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("n", "first"), [(6, 1), (5, 0), (7, 0)], ids=["others", "fewer", "more"])
def test_other_questions_are_refused(tmp_path: Path, ways: dict[str, list[FakeCell]], n: int, first: int) -> None:
    other = finished(tmp_path / "runs", "other", [1] * n, first=first)
    for cells in ({"ours": ways["ours"], "b": [other]}, {"ours": ways["ours"], "b": [*ways["theirs"][:2], other]}):
        with pytest.raises(InputError, match="the same questions"):
            compared(tmp_path, cells).run()
    assert not (tmp_path / "out").exists()


def test_a_run_of_which_nothing_is_there_is_an_input_error(tmp_path: Path, ways: dict[str, list[FakeCell]]) -> None:
    with pytest.raises(InputError):
        compared(tmp_path, {"ours": ways["ours"], "b": [FakeCell("nobody", tmp_path / "runs")]}).run()


# What is left


def snapshot(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_the_same_file_below_runs_and_out_and_two_tables(tmp_path: Path, ways: dict[str, list[FakeCell]]) -> None:
    document = compared(tmp_path, ways).run()
    left = snapshot(tmp_path / "out")
    assert left.keys() == {"tables/c.md", "tables/c.tex", f"records/comparisons/c/{FILE}"}
    below_runs = (tmp_path / "runs" / "comparisons" / "c" / FILE).read_bytes()
    assert left[f"records/comparisons/c/{FILE}"] == below_runs
    assert json.loads(below_runs) == document
    assert left["tables/c.md"].decode() == to_grid(document).markdown()
    assert left["tables/c.tex"].decode() == to_grid(document).latex()


def test_the_same_journals_give_the_same_bytes_but_for_where_they_were_compared(
    tmp_path: Path, ways: dict[str, list[FakeCell]], monkeypatch: pytest.MonkeyPatch
) -> None:
    job = compared(tmp_path, ways)
    found = []
    for created in ("yesterday", "today"):
        monkeypatch.setattr("harness.provenance.collect", lambda device, created=created: {"created": created})
        job.run()
        left = snapshot(tmp_path / "out")
        document = json.loads(left.pop(f"records/comparisons/c/{FILE}"))
        assert document.pop("provenance") == {"created": created}
        found.append((json.dumps(document), left))
    assert found[0] == found[1]


def test_comparing_leaves_the_journals_as_they_are(tmp_path: Path, ways: dict[str, list[FakeCell]]) -> None:
    before = snapshot(tmp_path / "runs")
    compared(tmp_path, ways).run()
    after = snapshot(tmp_path / "runs")
    assert {name: after[name] for name in before} == before
    assert after.keys() - before.keys() == {f"comparisons/c/{FILE}"}


# The table


DOCUMENT: dict[str, Any] = {
    "name": "selection-policy",
    "means": {
        "GRPO": {"oracle_hit": [0.875, 0.75, 0.8125], "f1": [0.5, 0.25, 0.375]},
        "random": {"oracle_hit": [0.0625], "f1": [0.0]},
    },
    "tests": [
        {"figure": "oracle_hit", "a": "GRPO", "b": "random", "difference": 0.75, "low": 0.6875, "high": 0.8125}
        | {"p_value": 0.0002, "p_holm": 0.0004, "n": 1000, "detectable": 0.0417},
        {"figure": "f1", "a": "GRPO", "b": "random", "difference": -0.375, "low": -0.5, "high": 0.0}
        | {"p_value": 0.0499, "p_holm": 0.0499, "n": 1000, "detectable": None},
    ],
}


def test_a_line_per_test_with_each_seeds_mean() -> None:
    grid = to_grid(DOCUMENT)
    assert dict(zip(grid.head, grid.lines[0], strict=True)) == {
        "Contrast": "GRPO - random",
        "Figure": "Fact expanded (%)",
        "First, by seed": "87.5 / 75.0 / 81.2",
        "Second, by seed": "6.2",
        "Difference": "+75.0 [+68.8, +81.2]",
        "p": "0.0004",
        "Detectable": "4.2",
        "Questions": "1000",
    }
    assert dict(zip(grid.head, grid.lines[1], strict=True)) == {
        "Contrast": "GRPO - random",
        "Figure": "F1 (%)",
        "First, by seed": "50.0 / 25.0 / 37.5",
        "Second, by seed": "0.0",
        "Difference": "-37.5 [-50.0, +0.0]",
        "p": "0.05",
        "Detectable": "-",
        "Questions": "1000",
    }
    assert grid.title == "selection-policy: paired differences"


def test_it_is_written_where_tables_and_records_lie(tmp_path: Path) -> None:
    write_comparison(DOCUMENT, tmp_path)
    left = snapshot(tmp_path)
    assert json.loads(left["records/comparisons/selection-policy/comparison.json"]) == DOCUMENT
    assert "| GRPO - random " in left["tables/selection-policy.md"].decode()
    assert r"GRPO - random & Fact expanded (\%) &" in left["tables/selection-policy.tex"].decode()


# Known faults


def test_comparing_makes_no_journal(tmp_path: Path, ways: dict[str, list[FakeCell]]) -> None:
    cell = FakeCell("nobody", tmp_path / "runs")
    with pytest.raises(InputError):
        compared(tmp_path, {"ours": ways["ours"], "b": [cell]}).run()
    assert not cell.open().spec.folder(tmp_path / "runs").exists()


def test_runs_that_have_not_finished_are_refused(tmp_path: Path, ways: dict[str, list[FakeCell]]) -> None:
    """Interrupted at the same question, two halves of runs look like two runs."""
    for cell in (*ways["ours"], *ways["theirs"]):
        (cell.open().spec.folder(cell.runs) / "record.json").unlink()
    with pytest.raises(InputError, match="finished"):
        compared(tmp_path, {"ours": ways["ours"], "theirs": ways["theirs"]}).run()


@pytest.mark.parametrize("change", ["suite", "revision", "passages"])
def test_other_questions_under_the_same_ids_are_refused(
    tmp_path: Path, ways: dict[str, list[FakeCell]], change: str
) -> None:
    """The same-relation questions of all worlds are called same_8_0, same_8_1, ..."""

    @dataclass
    class Elsewhere(FakeCell):
        def open(self) -> Cell:
            cell = super().open()
            if change == "passages":
                return replace(cell, spec=replace(cell.spec, passages=2))
            field = "name" if change == "suite" else "revision"
            return replace(cell, spec=replace(cell.spec, suite=replace(cell.spec.suite, **{field: "other"})))

    other = finished(tmp_path / "runs", "other", CHANCE, kind=Elsewhere)
    with pytest.raises(InputError, match="the same questions"):
        compared(tmp_path, {"ours": ways["ours"], "b": [other]}).run()


def test_two_seeds_against_three_are_refused(tmp_path: Path, ways: dict[str, list[FakeCell]]) -> None:
    """Seed 2 would stand against seed 0."""
    with pytest.raises(InputError, match="seed"):
        compared(tmp_path, {"ours": ways["ours"], "theirs": ways["theirs"][:2]}).run()


def test_what_stands_beside_is_shown_by_seed_and_not_tested(tmp_path: Path, ways: dict[str, list[FakeCell]]) -> None:
    ways = {"ours": ways["ours"], "theirs": ways["theirs"]}
    plain, document = compared(tmp_path, ways).run(), compared(tmp_path, ways, beside=("decoder_positions",)).run()
    assert document["tests"] == plain["tests"]
    assert document["means"]["ours"] == plain["means"]["ours"] | {"decoder_positions": [9, 9, 9]}
    grid, without = to_grid(document), to_grid(plain)
    assert list(grid.head) == [*without.head, "Decoder positions"]
    assert [list(line) for line in grid.lines] == [
        [*line, "9.0 / 9.0 / 9.0 against 9.0 / 9.0 / 9.0"] for line in without.lines
    ]
    del plain["beside"]  # a document of before there was any
    assert to_grid(plain) == without


@pytest.mark.parametrize("path", sorted(RECORDS.glob(f"comparisons/*/{FILE}")), ids=lambda path: path.parent.name)
def test_the_accepted_ones_are_drawn_again_with_the_table_of_their_experiment(path: Path) -> None:
    name = path.parent.name
    drawn = draw_comparisons([RECORDS], PROJECT / "results", [name.rpartition("-")[0]])
    mine = {path.name: text for path, text in drawn.items() if path.stem == name}
    assert mine.keys() == {f"{name}.md", f"{name}.tex"}
    for file, text in mine.items():
        assert (PROJECT / "results" / "tables" / file).read_bytes() == text
    assert draw_comparisons([RECORDS], PROJECT / "results", ["nothing"]) == {}


def test_of_two_by_one_name_the_first_folders_is_drawn(tmp_path: Path) -> None:
    other = {**DOCUMENT, "tests": DOCUMENT["tests"][:1]}
    for folder, document in (("a", DOCUMENT), ("b", other)):
        write_comparison(document, tmp_path / folder)
    out = tmp_path / "out"
    for order in ("ab", "ba"):
        drawn = draw_comparisons([tmp_path / folder for folder in order], out, ["selection"])
        expected = (tmp_path / order[0] / "tables" / "selection-policy.md").read_bytes()
        assert drawn[out / "tables" / "selection-policy.md"] == expected


@pytest.mark.parametrize(
    "text",
    ["{", "[]", "{}", '{"name": "../selection-policy"}', '{"name": "..", "tests": []}', '{"name": "selection-a"}'],
)
def test_a_damaged_one_is_named(tmp_path: Path, text: str) -> None:
    path = tmp_path / "comparisons" / "a" / FILE
    path.parent.mkdir(parents=True)
    path.write_text(text)
    with pytest.raises(InputError, match=f"{FILE} is no comparison"):
        draw_comparisons([tmp_path], tmp_path / "out", ["selection"])
    if "selection-a" in text:
        assert [found.name for found in read_comparisons([tmp_path])] == ["selection-a"]
