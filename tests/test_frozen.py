"""A frozen file is the same bytes every time, says what it holds, and is refused when it holds something else."""

from __future__ import annotations

import gzip
import json
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import shared_path

from harness.data.sources import DataRoot, Source, load_questions, question_id
from harness.errors import InputError
from harness.protocol import Example, Hit, Passage
from harness.retrieval.bm25 import BM25Config
from harness.retrieval.corpus import Corpus
from harness.retrieval.evaluate import AnswerTest, hit_at, recall_at
from harness.retrieval.frozen import Frozen, Setting, freeze, manifest_path, read_frozen
from harness.retrieval.gold import Gold, read_gold
from harness.retrieval.index import Index, ensure_index
from harness.retrieval.rows import read_rows

NAMES = ("Ann", "Bob", "Cid", "Dan")
PASSAGES = [
    Passage(id=f"{name}{i}", title=name, text=f"{name} likes {'tea' if i == 0 else f'number {i}'}.")
    for name in NAMES
    for i in range(60)
]
EXAMPLES = [Example(id=f"q{name}", question=f"What does {name} like?", answers=("Tea",)) for name in NAMES]
SOURCE = Source(root="toy", dataset="toy", config="default", split="test", rows=4, revision="0")


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Index:
    return ensure_index(BM25Config(), Corpus.of(PASSAGES), tmp_path_factory.mktemp("work"))


def frozen(index: Index, work: Path, *, n: int = 4, gold: Gold | None = None, **setting: object) -> Frozen:
    return freeze(EXAMPLES[:n], SOURCE, index, Setting(**setting), suite="toy", work=work, gold=gold)  # type: ignore[arg-type]


def test_strong_is_the_retrievers_top_k(index: Index, tmp_path: Path) -> None:
    made = frozen(index, tmp_path, k=7)
    manifest, found = read_frozen(made.path)
    ranking = index.open().search([example.question for example in EXAMPLES], 7)
    assert found == {e.id: tuple(hit.passage for hit in hits) for e, hits in zip(EXAMPLES, ranking, strict=True)}
    assert manifest == made.manifest
    assert (manifest.retriever, manifest.setting, manifest.k, manifest.n, manifest.suite) == (
        "bm25",
        "strong",
        7,
        4,
        "toy",
    )
    assert (manifest.index, manifest.seed) == (index.digest, None)


def test_rows_have_the_form_of_dpr_and_fid(index: Index, tmp_path: Path) -> None:
    with gzip.open(frozen(index, tmp_path, k=2).path, "rt") as file:
        row = json.loads(next(file))
    assert (row["id"], row["question"], row["answers"]) == ("qAnn", "What does Ann like?", ["Tea"])
    assert [list(ctx) for ctx in row["ctxs"]] == [["id", "title", "text", "score", "hasanswer"]] * 2
    assert [ctx["hasanswer"] for ctx in row["ctxs"]] == ["tea" in ctx["text"] for ctx in row["ctxs"]]
    assert row["ctxs"][0]["score"] >= row["ctxs"][1]["score"]


def test_the_same_retrieval_is_the_same_bytes(index: Index, tmp_path: Path) -> None:
    one, two = frozen(index, tmp_path / "a"), frozen(index, tmp_path / "b")
    assert one.path.name == two.path.name
    assert one.path.read_bytes() == two.path.read_bytes()
    assert manifest_path(one.path).read_bytes() == manifest_path(two.path).read_bytes()


def test_freezing_again_reads_the_file(index: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = frozen(index, tmp_path)
    monkeypatch.setattr(Index, "open", lambda self: pytest.fail("searched again"))
    assert frozen(index, tmp_path) == replace(first, new=False)


def test_a_file_without_its_manifest_is_made_again(index: Index, tmp_path: Path) -> None:
    made = frozen(index, tmp_path)
    manifest_path(made.path).unlink()
    made.path.write_bytes(b"torn")
    assert frozen(index, tmp_path) == made
    assert read_frozen(made.path)[0] == made.manifest


def test_a_manifest_without_its_file_is_made_again(index: Index, tmp_path: Path) -> None:
    made = frozen(index, tmp_path)
    made.path.unlink()
    assert frozen(index, tmp_path) == made
    assert read_frozen(made.path)[0] == made.manifest


def test_measures_are_of_the_gold_passages_that_were_asked_with(index: Index, tmp_path: Path) -> None:
    golds = [None, *(Gold(passages={"qAnn": frozenset({name})}, unmatched=0) for name in ("Ann0", "absent"))]
    recalls = [frozen(index, tmp_path, gold=gold).manifest.measures.get("recall@20") for gold in golds]
    assert recalls == [None, 1, 0]


@pytest.mark.parametrize("damage", [b'{"retriever": ', b"{}", b"[1]", b'{"colour": "red"}', b'"\xff"'])
def test_a_damaged_manifest_is_named(index: Index, tmp_path: Path, damage: bytes) -> None:
    made = frozen(index, tmp_path)
    manifest_path(made.path).write_bytes(damage)
    for read in (lambda: frozen(index, tmp_path), lambda: read_frozen(made.path)):
        with pytest.raises(InputError, match=r"manifest.json is damaged \(.*\); delete it and freeze again"):
            read()


def test_everything_that_moves_the_passages_names_another_file(index: Index, tmp_path: Path) -> None:
    settings = [{}, {"k": 5}, {"n": 3}, {"name": "weak"}, {"name": "weak", "seed": 1}]
    assert len({frozen(index, tmp_path, **setting).path for setting in settings}) == len(settings)  # type: ignore[arg-type]
    assert frozen(index, tmp_path, seed=9).path == frozen(index, tmp_path).path, "the strong setting has no seed"


def test_weak_is_k_of_the_best_200_at_random(index: Index, tmp_path: Path) -> None:
    pools = index.open().search([example.question for example in EXAMPLES], 200)
    draws = [read_frozen(frozen(index, tmp_path, name="weak", k=20, seed=seed).path)[1] for seed in range(8)]
    for example, pool in zip(EXAMPLES, pools, strict=True):
        passages = {hit.passage for hit in pool}
        for draw in draws:
            assert len(set(draw[example.id])) == 20
            assert set(draw[example.id]) <= passages
        assert len({draw[example.id] for draw in draws}) == len(draws)
        drawn = {passage for draw in draws for passage in draw[example.id]}
        assert 90 < len(drawn) < 140, "8 draws of 20 from 200 touch 114 on average, not the same 20 again"


def test_a_weak_draw_depends_on_seed_and_question_only(index: Index, tmp_path: Path) -> None:
    everything = read_frozen(frozen(index, tmp_path, name="weak").path)[1]
    fewer = read_frozen(frozen(index, tmp_path, name="weak", n=2).path)[1]
    assert fewer == {example.id: everything[example.id] for example in EXAMPLES[:2]}
    hits = [Hit(passage=passage, score=0.0) for passage in PASSAGES[:200]]
    assert Setting(name="weak").take(hits, "a") == Setting(name="weak").take(hits, "a")
    assert Setting(name="weak").take(hits, "a") != Setting(name="weak").take(hits, "b")


def test_a_setting_that_cannot_be_is_refused(index: Index, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="unknown retrieval setting 'stong'"):
        Setting(name="stong")
    with pytest.raises(InputError, match="k of at least 1 and at most 200, got 201"):
        Setting(name="weak", k=201)
    with pytest.raises(InputError, match="k of at least 1, got 0"):
        Setting(k=0)
    with pytest.raises(InputError, match="strong with k=241 needs a corpus of at least 241 passages, got 240"):
        frozen(index, tmp_path, k=241)


def test_other_rows_than_the_manifests_are_refused(index: Index, tmp_path: Path) -> None:
    path = frozen(index, tmp_path).path
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes()).replace(b"tea", b"tee")))
    with pytest.raises(InputError, match="expected rows with digest"):
        read_frozen(path)


def test_the_digest_is_of_the_rows_not_of_their_compression(index: Index, tmp_path: Path) -> None:
    path = frozen(index, tmp_path).path
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes()), compresslevel=1))
    read_frozen(path)


GIVEN = [
    {
        "id": "dev_7",
        "question": "who wrote it",
        "answers": ["Ann"],
        "ctxs": [{"id": "wiki:1", "title": "It", "text": "By Ann."}],
    },
    {"question": "who read it", "answers": ["Bob"], "ctxs": [{"title": "It", "text": "Bob did."}, {"text": "No."}]},
]


def test_files_from_elsewhere_are_read_with_and_without_ids(tmp_path: Path) -> None:
    """DPR writes one JSON list and no question ids; FiD has no passage ids; both keep questions word for word."""
    lines = "".join(json.dumps(row) + "\n" for row in GIVEN)
    (tmp_path / "a.jsonl").write_text(lines)
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    (tmp_path / "a.json").write_text(json.dumps(GIVEN, indent=1))
    for file in sorted(tmp_path.iterdir()):
        manifest, found = read_frozen(file)
        assert (manifest.retriever, manifest.setting, manifest.k, manifest.n) == ("given", "given", 1, 2)
        assert (
            found["dev_7"] == found[question_id("who wrote it")] == (Passage(id="wiki:1", title="It", text="By Ann."),)
        )
        assert [p.text for p in found[question_id("who read it")]] == ["Bob did.", "No."]
        assert len({p.id for p in found[question_id("who read it")]}) == 2


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"question": "who", "ctxs": []}', "row 1: expected question, answers and ctxs"),
        (
            '{"question": "who", "answers": ["a"], "ctxs": [{"title": "t"}]}',
            "row 1: expected question, answers and ctxs",
        ),
        ('{"question": "who", "answers": ["a"], "ctxs": ["a"]}', "row 1: .*string indices"),
        ('{"question": "who", "answers": "a", "ctxs": []}', "row 1: .*expected a list of answers, got 'a'"),
        ('{"question": null, "answers": ["a"], "ctxs": []}', "row 1: .*expected text, got None"),
        ('{"question": "who", "answers": ["a"], "ctxs": [{"text": null}]}', "row 1: .*expected text, got None"),
        ('{"question": "\\ud800", "answers": ["a"], "ctxs": []}', "row 1: .*surrogates not allowed"),
        (json.dumps(GIVEN[0]) + "\nwho?", "line 2: expected JSON lines or one JSON list"),
        ("[\n{},\n{]", "a.jsonl, line 3: expected JSON lines or one JSON list"),
        (2 * (json.dumps(GIVEN[0]) + "\n"), "expected unique question ids"),
    ],
)
def test_a_malformed_file_is_named(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "a.jsonl").write_text(content)
    with pytest.raises(InputError, match=message):
        read_frozen(tmp_path / "a.jsonl")


def test_bytes_that_are_not_utf8_are_named_by_their_line(tmp_path: Path) -> None:
    first = json.dumps(GIVEN[0]).encode()
    for content in (first + b'\n{"question": "\xff"}', b"[" + first + b',\n"\xff"]'):
        (tmp_path / "a.jsonl").write_bytes(content)
        with pytest.raises(InputError, match=r"a.jsonl, line 2: .*not UTF-8"):
            read_frozen(tmp_path / "a.jsonl")


def test_an_absent_or_broken_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="found no such file"):
        read_frozen(tmp_path / "a.jsonl.gz")
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(b"{}" * 1000)[:20])
    with pytest.raises(InputError, match="expected a whole gzip file"):
        read_frozen(tmp_path / "a.jsonl.gz")


def test_hit_and_recall_by_hand() -> None:
    flags = [[False, True, False], [True, False, False], [False, False, False]]
    assert [hit_at(k, flags) for k in (1, 2, 3, 4)] == [1 / 3, 2 / 3, 2 / 3, None]
    retrieved = {"a": ["1", "2", "3"], "b": ["4", "5", "6"], "c": ["7", "8", "9"]}
    gold = {"a": {"2", "9"}, "b": {"4"}, "c": set(), "absent": {"1"}}
    assert [recall_at(k, retrieved, gold) for k in (1, 2, 3, 4)] == [1 / 2, 3 / 4, 3 / 4, None]
    assert recall_at(1, retrieved, {}) is None


def test_the_manifest_measures_what_the_rows_hold(index: Index, tmp_path: Path) -> None:
    gold = Gold(passages={"qAnn": frozenset({"Ann0", "Ann1"}), "qBob": frozenset({"Bob0"})}, unmatched=3)
    made = frozen(index, tmp_path, k=5, gold=gold)
    has_answer, (_, found) = AnswerTest(), read_frozen(made.path)
    flags = [has_answer(found[example.id], example.answers) for example in EXAMPLES]
    retrieved = {name: [passage.id for passage in passages] for name, passages in found.items()}
    assert made.manifest.measures == {
        "hit@1": hit_at(1, flags),
        "hit@5": hit_at(5, flags),
        "hit@20": None,
        "recall@1": recall_at(1, retrieved, gold.passages),
        "recall@5": recall_at(5, retrieved, gold.passages),
        "recall@20": None,
        "recall_n": 2,
        "gold_unmatched": 3,
    }


def write_root(folder: Path, qrels: str) -> DataRoot:
    for part in ("hub", "qrels", "ctxs"):
        (folder / part).mkdir(parents=True)
    (folder / "qrels" / "nq.gold.tsv").write_text(qrels)
    row = {"id": "nq_open_validation_7", "question": "who wrote it", "answers": ["Ann"], "ctxs": []}
    (folder / "ctxs" / "nq_ctxs20.jsonl.gz").write_bytes(gzip.compress((json.dumps(row) + "\n").encode()))
    return DataRoot.open(folder)


def test_gold_passages_are_found_by_id_or_by_the_questions_text(tmp_path: Path) -> None:
    judged = [("nq_open_validation_7", 11, 1), ("nq_open_validation_7", 12, 0), ("nq_b", 13, 1), ("other_9", 14, 1)]
    qrels = "".join(f"{qid}\t0\t{passage}\t{label}\n" for qid, passage, label in judged)
    examples = [
        Example(id="nq_a", question="who wrote it", answers=("Ann",)),
        Example(id="nq_b", question="who read it", answers=("Bob",)),
    ]
    gold = read_gold("nq", write_root(tmp_path / "m", qrels), examples)
    assert gold == Gold(passages={"nq_a": frozenset({"11"}), "nq_b": frozenset({"13"})}, unmatched=1)
    assert read_gold("popqa", write_root(tmp_path / "n", qrels), examples) is None
    with pytest.raises(InputError, match="nq.gold.tsv, line 1: expected qid, 0, pid and label between tabs"):
        read_gold("nq", write_root(tmp_path / "o", "a 0 1 1\n"), examples)
    root = write_root(tmp_path / "p", "")
    (tmp_path / "p" / "qrels" / "nq.gold.tsv").write_bytes(b"\xff\t0\t1\t1\n")
    with pytest.raises(InputError, match=r"expected UTF-8 text in .*nq.gold.tsv"):
        read_gold("nq", root, examples)


def test_the_lists_of_the_data_pack_hit_as_often_as_it_says() -> None:
    """The pack states hit@1/5/10/20 of its lists, found by other code."""
    has_answer = AnswerTest()
    rows, _ = read_rows(shared_path("data/ctxs/popqa_ctxs10.jsonl.gz"))
    flags = [has_answer(row.passages, row.answers) for row in rows]
    stated = json.loads(shared_path("data/stats.json").read_text())["ctxs"]["popqa_ctxs10"]
    assert {k: round(100 * (hit_at(k, flags) or 0), 2) for k in (1, 5, 10)} == {
        k: stated[f"hit@{k}"] for k in (1, 5, 10)
    }


def test_the_nq_lists_of_the_data_pack_are_found_by_our_ids(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REFRAG_CACHE", str(tmp_path))
    examples, _ = load_questions("nq", DataRoot.open(shared_path("data")))
    manifest, found = read_frozen(shared_path("data/ctxs/nq_ctxs20.jsonl.gz"))
    assert sum(example.id in found for example in examples) == manifest.n == 450
    assert manifest.k == 20
    gold = read_gold("nq", DataRoot.open(shared_path("data")), examples)
    assert gold is not None
    assert (len(gold.passages), gold.unmatched) == (363, 825 - 363)


def test_an_empty_answer_stands_in_no_passage() -> None:
    assert AnswerTest()(PASSAGES[:2], ("", " ")) == [False, False]
    assert AnswerTest()(PASSAGES[:2], ("", "tea")) == [True, False]


def test_ids_that_are_null_are_none(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    contexts = [{"id": None, "title": "", "text": text} for text in ("one", "two")]
    path.write_text(json.dumps({"id": None, "question": "who", "answers": ["x"], "ctxs": contexts}) + "\n")
    ((row,), _) = read_rows(path)
    assert row.id == question_id("who")
    assert len({passage.id for passage in row.passages} - {"None"}) == 2
