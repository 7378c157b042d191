"""The gold passage goes where it is told to, and nothing else moves."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import shared_path

from harness.data.sources import DataRoot
from harness.data.world.facts import answering_span
from harness.errors import InputError
from harness.metrics import has_answer_dpr
from harness.retrieval.frozen import Setting
from slurm.jobs.data import RetrieveJob
from slurm.jobs.evaluate import EvaluateJob
from suites.gold_position import GoldPositionConfig, GoldPositionSuite

HUB = DataRoot(path=None, name="hub")


def row(number: int, texts: list[str], **more: Any) -> dict[str, Any]:
    ctxs = [{"id": f"{number}-{i}", "title": "", "text": text} for i, text in enumerate(texts)]
    return {"id": f"q{number}", "question": f"who won {number}", "answers": ["Ann"], "ctxs": ctxs, **more}


def written(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def built(file: Path, position: int, passages: int, root: DataRoot = HUB, **more: Any) -> GoldPositionSuite:
    settings: dict[str, Any] = {"limit": None} | more
    return GoldPositionConfig(position=position).build(
        "gold_position", root, passages=passages, frozen=file, **settings
    )


def texts(suite: GoldPositionSuite) -> list[list[str]]:
    return [[passage.text for passage in example.passages] for example in suite.examples()]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    marked = {"id": "g", "title": "T", "text": "Ann won."}
    by_flag = row(1, ["Bob lost.", "It was Ann.", "Cid lost.", "Dan lost."])
    by_flag["ctxs"][1]["isgold"] = True
    return written(
        tmp_path / "rows.jsonl",
        row(0, ["Ann again.", "Eve lost.", "Ann won.", "Flo lost.", "Gus lost."], gold_ctx=marked),
        by_flag,
        row(2, ["Hal lost.", "Ida lost.", "Jo lost."]),  # no gold passage
        row(3, ["Kim lost.", "Ann too."], gold_ctx=marked),  # one other passage without an answer
    )


def test_gold_stands_at_its_place_among_passages_without_an_answer(file: Path) -> None:
    assert texts(built(file, 2, 3)) == [
        ["Eve lost.", "Ann won.", "Flo lost."],
        ["Bob lost.", "It was Ann.", "Cid lost."],
    ]
    assert texts(built(file, 1, 2)) == [
        ["Ann won.", "Eve lost."],
        ["It was Ann.", "Bob lost."],
        ["Ann won.", "Kim lost."],
    ]
    assert texts(built(file, 1, 1)) == [["Ann won."], ["It was Ann."], ["Ann won."]]
    assert [example.id for example in built(file, 1, 2, limit=2).examples()] == ["q0", "q1"]


def test_another_position_changes_the_order_alone(file: Path) -> None:
    suites = [built(file, position, 3) for position in (1, 2, 3)]
    first, *others = [list(suite.examples()) for suite in suites]
    for position, examples in enumerate(others, start=2):
        for one, other in zip(first, examples, strict=True):
            assert replace(other, passages=one.passages) == one, "the same question"
            assert {p.text for p in other.passages} == {p.text for p in one.passages}
            gold = one.passages[0]
            assert other.passages.index(gold) == position - 1
            assert [p for p in other.passages if p != gold] == list(one.passages[1:]), "the others keep their order"
    assert len({json.dumps(suite.spec.settings) for suite in suites}) == 3
    assert len({suite.spec.revision for suite in suites}) == 1


@pytest.mark.parametrize(
    ("position", "passages", "more", "message"),
    [
        (0, 3, {}, "expected a position from 1 to 3, the number of passages, got 0"),
        (4, 3, {}, "expected a position from 1 to 3, the number of passages, got 4"),
        (1, 0, {}, "expected a position from 1 to 0"),
        (1, 9, {}, "none of 4 questions has a gold passage and 8 passages without an answer (3 have a gold passage)"),
        (1, 2, {"shots": 1}, "asked without demonstrations"),
    ],
)
def test_what_cannot_be_placed(file: Path, position: int, passages: int, more: dict[str, int], message: str) -> None:
    with pytest.raises(InputError) as error:
        built(file, position, passages, **more)
    assert message in str(error.value)


def test_rows_without_marks_need_qrels(tmp_path: Path) -> None:
    file = written(tmp_path / "rows.jsonl", row(0, ["Bob lost."]))
    with pytest.raises(InputError, match=r"no row marks its gold passage .* has no qrels/nq\.gold\.tsv"):
        built(file, 1, 1)


@pytest.mark.parametrize("gold", ["Ann won.", {"id": "g", "title": ""}, [1]])
def test_a_malformed_gold_passage_is_named_in_one_line(tmp_path: Path, gold: Any) -> None:
    file = written(tmp_path / "rows.jsonl", row(0, ["Bob lost."]), row(1, ["Bob lost."], gold_ctx=gold))
    with pytest.raises(InputError, match=r"^.*rows\.jsonl, row 2: expected question, answers and ctxs.*$"):
        built(file, 1, 1)


def test_another_gold_passage_is_another_run(world_root: Path, frozen: Path, tmp_path: Path) -> None:
    root = tmp_path / world_root.name
    shutil.copytree(world_root, root)
    before = built(frozen, 1, 2, root=DataRoot.open(root)).spec
    assert before == built(frozen, 1, 2, root=DataRoot.open(world_root)).spec
    qrels = root / "qrels" / "nq.gold.tsv"
    lines = qrels.read_text().splitlines()
    assert len(lines) > 2
    qrels.write_text("\n".join(lines[:-1]) + "\n")
    assert built(frozen, 1, 2, root=DataRoot.open(root)).spec != before


@pytest.fixture(scope="module")
def frozen(world_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    runs = tmp_path_factory.mktemp("runs")
    return RetrieveJob(suite="nq", retriever="bm25", data=world_root, runs=runs, setting=Setting(k=20)).run().path


def test_in_the_world_the_gold_passage_is_the_one_that_states_the_fact(world_root: Path, frozen: Path) -> None:
    suite = built(frozen, 3, 8, root=DataRoot.open(world_root))
    examples = list(suite.examples())
    assert len(examples) > 20
    for example in examples:
        stating = [answering_span(passage.text, example.question) is not None for passage in example.passages]
        assert stating == [place == 2 for place in range(8)]
        assert [has_answer_dpr(passage.text, example.answers) for passage in example.passages] == stating
    assert suite.score(examples[0], examples[0].answers[0])["em"] == 1
    assert 0 < suite.score(examples[0], "")["chance"] <= 1


def test_a_file_that_was_frozen_for_other_questions_is_refused(world_root: Path, tmp_path: Path) -> None:
    other = RetrieveJob(suite="popqa", retriever="bm25", data=world_root, runs=tmp_path).run().path
    with pytest.raises(InputError, match="was frozen for popqa; expected passages of nq"):
        built(other, 1, 2, root=DataRoot.open(world_root))


def test_the_setting_is_part_of_a_runs_identity(
    world_root: Path, frozen: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    def job(suite: str = "gold_position", **asked: Any) -> EvaluateJob:
        return EvaluateJob(
            system="standard_rag",
            suite=suite,
            checkpoint=str(tiny_checkpoint),
            passages=4,
            retrieval=frozen,
            data=world_root,
            asked=asked,
            runs=tmp_path,
            limit=2,
            max_new_tokens=1,
        )

    from_text = job(position="2").open().spec
    assert from_text.run_id == job(position=2).open().spec.run_id != job(position=3).open().spec.run_id
    assert from_text.suite.settings == {"position": 2}
    for wrong, message in (
        (job(), r"suite gold_position needs a setting of position"),
        (job(place="2"), r"unknown setting of gold_position 'place'"),
        (job("nq", position="2"), r"suite nq takes no settings, got position; suites that do: gold_position"),
        (job(position="two"), r"setting position: expected int, got 'two'"),
    ):
        with pytest.raises(InputError, match=message):
            wrong.open()
    record = job(position=2).run()
    assert record.n_examples == 2
    assert record.spec["retrieval"]["setting"] == "strong"


def test_the_real_slice_has_gold_at_every_place() -> None:
    file = shared_path("data/ctxs/nq_ctxs20.jsonl.gz")
    first, last = (list(built(file, position, 10).examples()) for position in (1, 10))
    assert len(first) == len(last) > 300
    for one, other in zip(first, last, strict=True):
        assert one.passages[0] == other.passages[-1] == one.meta["gold"]
        assert one.passages[1:] == other.passages[:-1]
        assert [has_answer_dpr(p.text, one.answers) for p in one.passages] == [True] + [False] * 9
