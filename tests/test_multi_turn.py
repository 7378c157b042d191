"""Earlier turns stand in the question, the latest ones, and late turns are scored apart."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from harness.data.conversations import as_question
from harness.data.sources import DataRoot, load_questions
from harness.data.world.facts import is_question
from harness.errors import InputError
from harness.metrics import score_answer
from harness.protocol import Example
from harness.record import MadeSuiteSpec
from harness.run import summarise
from slurm.jobs.data import RetrieveJob
from slurm.jobs.evaluate import EvaluateJob
from suites.multi_turn import MultiTurnConfig, MultiTurnSuite

EARLIER = [("Who was Ada?", "A mathematician."), ("born where", "London")]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REFRAG_CACHE", str(tmp_path / "cache"))


def turn(number: int, question: str, context: Any, answer: str = "x", **more: Any) -> dict[str, Any]:
    row = {"Conversation_no": 7, "Turn_no": number, "Question": question, "Context": context, "Answer": answer}
    return row | more


def mirror(root: Path, rows: list[dict[str, Any]]) -> DataRoot:
    folder = root / "hub" / "McGill-NLP" / "TopiOCQA"
    folder.mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(rows), folder / "validation.parquet")
    (folder / "README.md").write_text(
        "---\nconfigs:\n- config_name: default\n  data_files:\n  - split: validation\n    path: validation.parquet\n"
        "  default: true\n---\n"
    )
    return DataRoot.open(root)


def built(root: DataRoot, history: int = 10, **more: Any) -> MultiTurnSuite:
    settings: dict[str, Any] = {"passages": 0, "frozen": None, "limit": None} | more
    return MultiTurnConfig(history=history).build("topiocqa", root, **settings)


@pytest.mark.parametrize(
    ("history", "question"),
    [
        (None, "Who was Ada? A mathematician. born where? London. and when?"),
        (9, "Who was Ada? A mathematician. born where? London. and when?"),
        (2, "Who was Ada? A mathematician. born where? London. and when?"),
        (1, "born where? London. and when?"),
        (0, "and when?"),
    ],
)
def test_the_latest_turns_stand_before_the_question(history: int | None, question: str) -> None:
    assert as_question("and\n when?", EARLIER, history) == question


def test_rows_become_turns(tmp_path: Path) -> None:
    rows = [
        turn(1, "Who was Ada?", [], Additional_answers=None),
        turn(2, "when", ["Who was Ada?", "A poet."], "1815", Additional_answers=[{"Answer": "in 1815"}]),
    ]
    examples, source = load_questions("topiocqa", mirror(tmp_path / "m", rows))
    assert [(e.id, e.question, e.answers) for e in examples] == [
        ("topiocqa_7_1", "Who was Ada?", ("x",)),
        ("topiocqa_7_2", "Who was Ada? A poet. when", ("1815", "in 1815")),
    ]
    assert [e.meta["turn"] for e in examples] == [1, 2]
    assert (source.dataset, source.split, source.rows) == ("McGill-NLP/TopiOCQA", "validation", 2)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (turn(2, "when", ["Who was Ada?"]), "row 1: expected Context to be questions and answers in turn"),
        (turn(2, " ", ["a", "b"]), "row 1: expected a question, got ' '"),
        (turn(2, "when", ["a", "b"], Additional_answers=[{"Text": "1"}]), "row 1: expected Additional_answers"),
        (turn(1, "when", ["a", "b"]), "expected unique question ids, got 1 repeated: topiocqa_7_1"),
    ],
)
def test_a_malformed_row_is_named_in_one_line(tmp_path: Path, row: dict[str, Any], message: str) -> None:
    first = turn(1, "Who was Ada?", [], Additional_answers=None) if "Additional_answers" in row else None
    with pytest.raises(InputError) as error:
        built(mirror(tmp_path / "m", [first or turn(1, "Who was Ada?", []), row]))
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_missing_column_is_named(tmp_path: Path) -> None:
    rows = [{name: value for name, value in turn(1, "Who?", ["a", "b"]).items() if name != "Answer"}]
    with pytest.raises(InputError, match="missing column Answer; columns found: Conversation_no"):
        built(mirror(tmp_path / "m", rows))


def test_late_turns_are_scored_apart_too() -> None:
    """As Table 4 counts them: turn 4 is in ">= 2" and ">= 4"."""
    spec = MadeSuiteSpec(
        name="topiocqa", dataset="d", split="s", limit=None, root="mirror", revision="0", settings={"history": 10}
    )
    asked = [Example(id=str(t), question="q", answers=("Ann Lee",), meta={"turn": t}) for t in range(1, 9)]
    suite = MultiTurnSuite(name="topiocqa", spec=spec, retrieval=None, questions=tuple(asked))
    said = ["Ann Lee" if t in (1, 4, 7, 8) else "Ann" for t in range(1, 9)]
    rows = [{"scores": suite.score(e, text), "usage": {}} for e, text in zip(asked, said, strict=True)]
    assert {name: rows[0]["scores"][name] for name in ("em", "f1")} == {"em": 1, "f1": 1}
    assert not any("@" in name for name in rows[0]["scores"])
    found = summarise(rows)
    assert [(found[name]["n"], found[name]["mean"]) for name in ("em", "em@2", "em@4", "em@6")] == [
        (8, 4 / 8),
        (7, 3 / 7),
        (5, 3 / 5),
        (3, 2 / 3),
    ]
    assert {found[name]["method"] for name in ("em", "em@2")} == {"wilson"}
    assert found["f1@6"]["mean"] == pytest.approx((score_answer("Ann", ["Ann Lee"])["f1"] + 2) / 3)
    assert found["f1@6"]["method"] == "bootstrap"


def test_in_the_world_only_the_first_of_four_questions_names_the_person(world_root: Path) -> None:
    alone, whole = (list(built(DataRoot.open(world_root), history).examples()) for history in (0, 10))
    assert [e.meta["turn"] for e in alone[:8]] == list(range(1, 9))
    for example, full in zip(alone, whole, strict=True):
        rewrite = example.meta["rewrite"]
        assert is_question(rewrite)
        names_somebody = example.meta["turn"] in (1, 5)
        assert is_question(example.question) == names_somebody
        assert example.question == (rewrite if names_somebody else rewrite.partition(" of ")[0])
        assert full.question.endswith(example.question)
        assert is_question(full.question) == (example.meta["turn"] == 1), (
            "or the oracle would look up an earlier turn's"
        )
        name = rewrite.partition(" of ")[2]
        assert full.question.count(name) == 1, "the history tells who is meant"
        assert name not in " ".join(full.answers)
    forgetful = list(built(DataRoot.open(world_root), 2).examples())
    for example in forgetful[:8]:
        said = example.meta["rewrite"].partition(" of ")[2] in example.question
        assert said == (example.meta["turn"] not in (4, 8)), "with two earlier turns the first of four is forgotten"


def test_retrieval_is_asked_with_the_history(world_root: Path, tmp_path: Path) -> None:
    frozen = RetrieveJob(suite="topiocqa", retriever="bm25", data=world_root, runs=tmp_path).run()
    assert frozen.manifest.measures["recall@5"] == 1
    suite = built(DataRoot.open(world_root), history=1, passages=5, frozen=frozen.path)
    for example in suite.examples():
        assert len(example.passages) == 5
        assert 0 < suite.score(example, example.answers[0])["chance"] <= 1
    assert suite.retrieval is not None
    assert suite.retrieval.setting == "strong"


def test_what_makes_no_sense_is_refused(world_root: Path) -> None:
    with pytest.raises(InputError, match="history of at least 0 turns, got -1"):
        MultiTurnConfig(history=-1)
    with pytest.raises(InputError, match="asked without demonstrations"):
        built(DataRoot.open(world_root), shots=1)


def test_the_limit_of_history_is_part_of_a_runs_identity(
    world_root: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    def cell(**asked: Any) -> EvaluateJob:
        return EvaluateJob(
            system="no_context",
            suite="topiocqa",
            checkpoint=str(tiny_checkpoint),
            data=world_root,
            asked=asked,
            runs=tmp_path,
            limit=4,
            max_new_tokens=1,
        )

    assert cell().open().spec.run_id == cell(history="10").open().spec.run_id != cell(history=9).open().spec.run_id
    record = cell(history=2).run()
    assert (record.metrics["em"]["n"], record.metrics["em@2"]["n"], record.metrics["em@4"]["n"]) == (4, 3, 1)
    assert "em@6" not in record.metrics


def test_an_answer_that_is_empty_is_not_found_in_every_text(tmp_path: Path) -> None:
    suite = built(mirror(tmp_path, [turn(1, "who", [], ""), turn(2, "who else", [], "Ada")]))
    empty, other = suite.examples()
    assert not {"sub_em", "acc_popqa", "match_selfrag", "has_answer_dpr"} & suite.score(empty, "anything").keys()
    assert suite.score(empty, "anything")["em"] == 0.0
    assert suite.score(other, "it is Ada")["sub_em"] == 1.0
