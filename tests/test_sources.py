"""Questions come out of a mirror as they stand there, and what is wrong with a mirror is said in one line."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import shared_path

from harness.cli.main import main
from harness.data import sources
from harness.data.sources import DataRoot, load_questions, question_id
from harness.errors import InputError


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REFRAG_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("REFRAG_DATA", raising=False)


NQ_FEATURES = "  features:\n  - name: question\n    dtype: string\n  - name: answer\n    list: string\n"
NQ = [{"question": "who wrote it", "answer": ["Ann"]}, {"question": "who read it", "answer": ["Bob", "Bobby"]}]


def write_nq(root: Path, rows: list[dict[str, Any]], declared: int | None = None, features: str = NQ_FEATURES) -> Path:
    """A mirror with nq_open alone, whose card promises ``declared`` rows (default: as many as there are)."""
    folder = root / "hub" / "google-research-datasets" / "nq_open"
    (folder / "nq_open").mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), folder / "nq_open" / "validation-00000-of-00001.parquet")
    n = len(rows) if declared is None else declared
    (folder / "README.md").write_text(
        f"---\ndataset_info:\n  config_name: nq_open\n{features}"
        f"  splits:\n  - name: validation\n    num_examples: {n}\n"
        "configs:\n- config_name: nq_open\n  data_files:\n  - split: validation\n    path: nq_open/validation-*\n"
        "  default: true\n---\n"
    )
    return root


def write_triviaqa(root: Path, rows: list[tuple[str, str, list[str]]]) -> Path:
    folder = root / "hub" / "mandarjoshi" / "trivia_qa"
    folder.mkdir(parents=True)
    table = pa.Table.from_pylist(
        [{"question_id": i, "question": q, "answer": {"aliases": a, "value": a[0] if a else ""}} for i, q, a in rows]
    )
    pq.write_table(table, folder / "validation.parquet")
    (folder / "README.md").write_text(
        "---\nconfigs:\n- config_name: rc.nocontext\n  data_files:\n"
        "  - split: validation\n    path: validation.parquet\n---\n"
    )
    return root


def write_popqa(root: Path, rows: list[tuple[int, str, str]]) -> Path:
    folder = root / "hub" / "akariasai" / "PopQA"
    folder.mkdir(parents=True)
    quoted = ["\t".join((str(i), q, '"' + a.replace('"', '""') + '"', "7", "author", "It")) for i, q, a in rows]
    (folder / "test.tsv").write_text(
        "\n".join(["\t".join(("id", "question", "possible_answers", "s_pop", "prop", "subj")), *quoted, ""])
    )
    (folder / "README.md").write_text(
        "---\nconfigs:\n- config_name: default\n  data_files:\n  - split: test\n    path: test.tsv\n"
        '  sep: "\\t"\n  default: true\n---\n'
    )
    return root


def test_nq_rows_become_examples_named_by_their_question(tmp_path: Path) -> None:
    examples, source = load_questions("nq", DataRoot.open(write_nq(tmp_path / "m", NQ)))
    assert [(e.id, e.question, e.answers) for e in examples] == [
        (question_id("who wrote it"), "who wrote it", ("Ann",)),
        (question_id("who read it"), "who read it", ("Bob", "Bobby")),
    ]
    assert (source.root, source.dataset, source.config, source.split, source.rows) == (
        "mirror",
        "google-research-datasets/nq_open",
        "nq_open",
        "validation",
        2,
    )


def test_popqa_parses_its_answers_and_keeps_the_popularity(tmp_path: Path) -> None:
    root = write_popqa(tmp_path / "m", [(-3, "Who wrote It?", json.dumps(["Ann", "A. Né"]))])
    (example,), _ = load_questions("popqa", DataRoot.open(root))
    assert (example.id, example.answers) == ("popqa_-3", ("Ann", "A. Né"))
    assert example.meta == {"s_pop": 7, "prop": "author", "subj": "It"}


def test_triviaqa_scores_against_aliases_and_counts_a_repeated_question_once(tmp_path: Path) -> None:
    rows = [("q1", "Who?", ["Ann"]), ("q2", "Where?", ["Rome"]), ("q1", "Who?", ["Ann", "Annie"])]
    examples, source = load_questions("triviaqa", DataRoot.open(write_triviaqa(tmp_path / "m", rows)))
    assert [(e.id, e.answers, e.meta["value"]) for e in examples] == [
        ("q1", ("Ann", "Annie"), "Ann"),
        ("q2", ("Rome",), "Rome"),
    ]
    assert source.rows == 3


def test_one_id_for_two_questions_is_an_error_that_names_it(tmp_path: Path) -> None:
    trivia = write_triviaqa(tmp_path / "t", [("q1", "Who?", ["Ann"]), ("q1", "Where?", ["Rome"])])
    with pytest.raises(InputError, match="repeated: q1"):
        load_questions("triviaqa", DataRoot.open(trivia))
    pop = write_popqa(tmp_path / "p", [(5, "Who?", '["Ann"]'), (5, "Who?", '["Ann"]')])
    with pytest.raises(InputError, match="repeated: popqa_5"):
        load_questions("popqa", DataRoot.open(pop))


def test_a_limit_takes_the_first_questions_and_leaves_the_fingerprint(tmp_path: Path) -> None:
    root = DataRoot.open(write_nq(tmp_path / "m", NQ))
    (all_of_them, source), (first, limited) = load_questions("nq", root), load_questions("nq", root, limit=1)
    assert first == all_of_them[:1]
    assert limited == source


def test_mirrors_of_one_name_and_card_are_not_confused(tmp_path: Path) -> None:
    """``datasets`` itself keys its cache on the base name and the card, which are equal here."""
    other = [{"question": "who sang it", "answer": ["Cid"]}, {"question": "who", "answer": ["Dan"]}]
    one = DataRoot.open(write_nq(tmp_path / "one", NQ))
    two = DataRoot.open(write_nq(tmp_path / "two", other))
    (from_one, source_one), (from_two, source_two) = load_questions("nq", one), load_questions("nq", two)
    assert [e.question for e in from_one] == ["who wrote it", "who read it"]
    assert [e.question for e in from_two] == ["who sang it", "who"]
    assert source_one.revision != source_two.revision


def test_an_edit_in_place_is_seen(tmp_path: Path) -> None:
    before, source = load_questions("nq", DataRoot.open(write_nq(tmp_path / "m", NQ)))
    edited = [NQ[0], {"question": "who read it", "answer": ["Eve"]}]
    after, edited_source = load_questions("nq", DataRoot.open(write_nq(tmp_path / "m", edited)))
    assert (before[1].answers, after[1].answers) == (("Bob", "Bobby"), ("Eve",))
    assert source.revision != edited_source.revision


def test_a_root_is_named_by_its_root_json_and_found_through_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_nq(tmp_path / "m", NQ)
    (tmp_path / "m" / "root.json").write_text('{"name": "world-7", "version": 1, "seed": 7}')
    monkeypatch.setenv("REFRAG_DATA", str(tmp_path / "m"))
    root = DataRoot.open()
    assert (root.name, root.path) == ("world-7", tmp_path / "m")
    monkeypatch.delenv("REFRAG_DATA")
    assert DataRoot.open() == DataRoot(path=None, name="hub")


@pytest.mark.parametrize("content", [b"{", b"[]", b'"\xff"', None], ids=["torn", "a list", "not UTF-8", "a folder"])
def test_a_root_json_that_cannot_be_read_is_said(tmp_path: Path, content: bytes | None) -> None:
    path = write_nq(tmp_path / "m", NQ) / "root.json"
    if content is None:
        path.mkdir()
    else:
        path.write_bytes(content)
    with pytest.raises(InputError, match=r"expected a JSON object with a name in .*root.json"):
        DataRoot.open(tmp_path / "m")


@pytest.mark.parametrize("about", [{}, {"version": 1}, {"seed": 0}, {"version": "1", "seed": 0}])
def test_a_root_merely_named_like_a_world_is_refused(tmp_path: Path, about: dict[str, Any]) -> None:
    path = write_nq(tmp_path / "m", NQ) / "root.json"
    path.write_text(json.dumps({"name": "world-cup"} | about))
    with pytest.raises(InputError, match="a root named 'world-cup' is a synthetic world, with an integer version"):
        DataRoot.open(tmp_path / "m")


def test_errors_say_what_was_expected_and_what_came(tmp_path: Path) -> None:
    root = DataRoot.open(write_nq(tmp_path / "m", NQ))
    with pytest.raises(InputError, match=r"unknown suite 'nqq' \(did you mean 'nq'\?\)"):
        load_questions("nqq", root)
    with pytest.raises(InputError, match="unknown split 'dev'; valid choices: validation"):
        load_questions("nq", root, split="dev")
    with pytest.raises(InputError, match=r"akariasai/PopQA; .*holds google-research-datasets/nq_open"):
        load_questions("popqa", root)
    with pytest.raises(InputError, match="limit of at least 1"):
        load_questions("nq", root, limit=0)
    with pytest.raises(InputError, match=r"hub/ inside at .*; it holds m$"):
        DataRoot.open(tmp_path)
    with pytest.raises(InputError, match=r"hub/ inside at .*; there is no such folder"):
        DataRoot.open(tmp_path / "n")


@pytest.mark.parametrize("features", [NQ_FEATURES, ""], ids=["declared in the card", "not declared"])
def test_a_missing_column_is_named_with_those_that_are_there(tmp_path: Path, features: str) -> None:
    rows = [{"question": "who", "answers": ["Ann"]}]
    with pytest.raises(InputError, match=r"missing column answer; columns found: question, answers$"):
        load_questions("nq", DataRoot.open(write_nq(tmp_path / "m", rows, features=features)))


def test_a_column_of_another_type_does_not_leak_the_librarys_error(tmp_path: Path) -> None:
    rows = [{"question": "who", "answer": "Ann"}]
    with pytest.raises(InputError, match="cannot be read as google-research-datasets/nq_open: [^\n]+$"):
        load_questions("nq", DataRoot.open(write_nq(tmp_path / "m", rows)))
    with pytest.raises(InputError, match="expected a list of at least one answer, got 'Ann'"):
        load_questions("nq", DataRoot.open(write_nq(tmp_path / "n", rows, features="")))


LINE = b'{"question": "who", "answer": ["Ann"]}\n'
DAMAGED: dict[str, tuple[str, bytes]] = {
    "empty": ("validation.jsonl", b""),
    "empty, gzipped": ("validation.jsonl.gz", gzip.compress(b"")),
    "gzip cut short": ("validation.jsonl.gz", gzip.compress(LINE * 100)[:-20]),
    "no JSON": ("validation.jsonl", b"{{{\n"),
    "a line cut short": ("validation.jsonl", LINE + LINE[:-9]),
    "Latin-1": ("validation.jsonl", LINE + LINE.replace(b"who", b"caf\xe9")),
    "empty parquet": ("validation.parquet", b""),
    "no parquet": ("validation.parquet", b"PAR1 no PAR1"),
    "empty tsv": ("validation.tsv", b""),
}


@pytest.mark.parametrize("damage", DAMAGED)
def test_a_file_of_questions_that_cannot_be_read_is_named_in_one_line(
    tmp_path: Path, damage: str, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """The library raises StopIteration for an empty file, and logs what it finds in a damaged one."""
    name, content = DAMAGED[damage]
    folder = tmp_path / "m" / "hub" / "google-research-datasets" / "nq_open"
    folder.mkdir(parents=True)
    (folder / name).write_bytes(content)
    assert main(["retrieve", "--suite", "nq", "--retriever", "bm25", "--data", str(tmp_path / "m"), "--k", "4"]) == 2
    out, err = capfd.readouterr()
    assert (out, len(err.splitlines()), caplog.messages) == ("", 1, []), err
    assert f"{folder / name}: cannot be read as google-research-datasets/nq_open: " in err


def test_of_several_files_of_which_one_cannot_be_read_all_are_named(tmp_path: Path) -> None:
    folder = tmp_path / "m" / "hub" / "google-research-datasets" / "nq_open"
    folder.mkdir(parents=True)
    for number in range(6):
        (folder / f"validation-{number}.jsonl").write_bytes(b"{{{" if number == 4 else LINE)
    with pytest.raises(InputError, match=r"nq_open \(validation-0.jsonl, .*, validation-4.jsonl, ...\): cannot"):
        load_questions("nq", DataRoot.open(tmp_path / "m"))


def test_a_row_without_answers_is_named(tmp_path: Path) -> None:
    name = question_id("who read it")
    with pytest.raises(InputError, match=rf"row 1 \({name}\): expected a list of at least one answer, got \[\]"):
        load_questions("nq", DataRoot.open(write_nq(tmp_path / "m", [NQ[0], NQ[1] | {"answer": []}])))
    with pytest.raises(InputError, match=r"row 0 \(popqa_1\): expected a list of at least one answer, got 'Ann'"):
        load_questions("popqa", DataRoot.open(write_popqa(tmp_path / "p", [(1, "Who?", "Ann")])))


def test_a_row_count_other_than_the_cards_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="expected 3 rows in split 'validation', found 2"):
        load_questions("nq", DataRoot.open(write_nq(tmp_path / "m", NQ, declared=3)))


def test_the_hub_must_have_its_known_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    local = sources._builder(
        sources.QUESTION_SETS["nq"],
        str(write_nq(tmp_path / "m", NQ) / "hub/google-research-datasets/nq_open"),
        str(tmp_path / "cache"),
    )
    monkeypatch.setattr(sources, "_builder", lambda questions, where: local)
    with pytest.raises(InputError, match="expected 3610 rows in split 'validation', found 2"):
        load_questions("nq", DataRoot.open())


def test_the_hub_out_of_reach_is_said_in_one_line() -> None:
    with pytest.raises(InputError, match="not in the local cache and the Hub cannot be reached; give a mirror"):
        load_questions("nq", DataRoot.open())


@pytest.mark.parametrize(
    ("suite", "n", "first"), [("nq", 1000, "nq_"), ("triviaqa", 750, "dpr_"), ("popqa", 850, "popqa_")]
)
def test_the_real_slice_loads(suite: str, n: int, first: str) -> None:
    examples, source = load_questions(suite, DataRoot.open(shared_path("data")))
    assert len(examples) == source.rows == n
    assert all(example.id.startswith(first) and example.answers for example in examples)


@pytest.mark.parametrize("suite", ["nq", "triviaqa", "popqa"])
def test_the_world_is_a_root_like_any_other(suite: str, world_root: Path) -> None:
    examples, source = load_questions(suite, DataRoot.open(world_root))
    assert len(examples) == source.rows == 30
    assert source.root.startswith("world-")


@pytest.mark.parametrize(
    ("suite", "row"),
    [
        ("triviaqa", {"question": "Who?", "question_id": "q", "answer": "Ann"}),
        ("triviaqa", {"question": "Who?", "question_id": "q", "answer": ["Ann"]}),
        ("topiocqa", {"Conversation_no": 1, "Turn_no": 1, "Question": "who", "Context": [], "Answer": ["Ann"]}),
    ],
)
def test_a_malformed_row_is_named_in_one_line(suite: str, row: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="row 0 is malformed: .+"):
        sources._examples(sources.QUESTION_SETS[suite], [row])
