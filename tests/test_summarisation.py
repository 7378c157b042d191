"""ROUGE is the library's and the textbook's; an article is read from its start, as much as there is room for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rouge_score.rouge_scorer import RougeScorer

from harness.data.sources import DataRoot
from harness.errors import InputError
from harness.protocol import Example
from slurm.jobs.evaluate import EvaluateJob
from suites.summarisation import ROUGE, SummarisationConfig, SummarisationSuite


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REFRAG_CACHE", str(tmp_path / "cache"))


def mirror(root: Path, rows: list[dict[str, Any]], name: str = "arxiv-summarization") -> DataRoot:
    folder = root / "hub" / "ccdv" / name
    (folder / "document").mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(rows), folder / "document" / "validation.parquet")
    (folder / "README.md").write_text(
        "---\nconfigs:\n- config_name: document\n  data_files:\n  - split: validation\n"
        "    path: document/validation.parquet\n---\n"
    )
    return DataRoot.open(root)


def built(root: DataRoot, words: int = 3, name: str = "arxiv_summary", **more: Any) -> SummarisationSuite:
    settings: dict[str, Any] = {"passages": 9, "frozen": None, "limit": None} | more
    return SummarisationConfig(words=words).build(name, root, **settings)


def scores(suite: SummarisationSuite, abstract: str, said: str) -> dict[str, float]:
    return suite.score(Example(id="0", question="", answers=(abstract,)), said)


@pytest.fixture
def suite(tmp_path: Path) -> SummarisationSuite:
    return built(mirror(tmp_path / "m", [{"article": "a b c d e f g", "abstract": "a"}]))


@pytest.mark.parametrize(
    ("abstract", "said", "expected"),
    [
        # The candidates of Lin 2004 (W04-1013), section 3. Stemmed, the first says what the reference says; the second
        # has one of three pairs, and two of four words in the reference's order.
        ("police killed the gunman", "police kill the gunman", {"rouge1": 1, "rouge2": 1, "rougeL": 1}),
        ("police killed the gunman", "the gunman kill police", {"rouge1": 1, "rouge2": 1 / 3, "rougeL": 1 / 2}),
        ("the cat sat", "the cat sat on the mat", {"rouge1": 2 / 3, "rouge2": 4 / 7, "rougeL": 2 / 3}),
        ("the cat sat", "dogs bark", {"rouge1": 0, "rouge2": 0, "rougeL": 0}),
        ("the cat sat", "", {"rouge1": 0, "rouge2": 0, "rougeL": 0}),
        ("one two three", "one two three", {"rouge1": 1, "rouge2": 1, "rougeL": 1}),
        # The whole text is one sequence, line breaks or not.
        ("one two\nthree four", "three four\none two", {"rouge1": 1, "rougeL": 0.5}),
    ],
)
def test_rouge_is_what_it_is_by_hand(
    suite: SummarisationSuite, abstract: str, said: str, expected: dict[str, float]
) -> None:
    found = scores(suite, abstract, said)
    assert {name: found[name] for name in expected} == pytest.approx(expected)


def test_rouge_is_the_librarys(suite: SummarisationSuite) -> None:
    abstract = "We study retrieval, and find that compressed passages answer questions."
    said = "Compressing a passage: we find retrieved passages answer many questions"
    library = RougeScorer(["rouge1", "rouge2", "rougeL"], use_stemmer=True).score(abstract, said)
    assert scores(suite, abstract, said) == {name: library[name].fmeasure for name in ROUGE}
    assert 0 < scores(suite, abstract, said)["rouge2"] < scores(suite, abstract, said)["rouge1"] < 1
    unstemmed = RougeScorer(["rouge1"]).score(abstract, said)["rouge1"].fmeasure
    assert unstemmed < scores(suite, abstract, said)["rouge1"]


def test_an_article_is_read_from_its_start_in_passages_of_whole_words(tmp_path: Path) -> None:
    article = " one  two three\nfour five six seven "
    root = mirror(tmp_path / "m", [{"article": article, "abstract": "few"}])
    (example,) = built(root).examples()
    assert [p.text for p in example.passages] == ["one  two three", "four five six", "seven"]
    assert (example.id, example.answers) == ("arxiv_summary_0", ("few",))
    (short,) = built(root, passages=2).examples()
    assert short.passages == example.passages[:2]
    assert [p.text for p in next(iter(built(root, words=50).examples())).passages] == [article.strip()]


def test_blank_rows_are_left_out_and_the_others_keep_their_numbers(tmp_path: Path) -> None:
    rows = [
        {"article": "a", "abstract": " "},
        {"article": "", "abstract": "b"},
        {"article": "c", "abstract": "d"},
        {"article": "e", "abstract": "f"},
    ]
    root = mirror(tmp_path / "m", rows)
    assert [e.id for e in built(root).examples()] == ["arxiv_summary_2", "arxiv_summary_3"]
    with pytest.raises(InputError, match="none of 2 rows has an article and an abstract"):
        built(root, limit=2)


@pytest.mark.parametrize(
    ("rows", "more", "message"),
    [
        ([{"article": "a", "abstract": "b"}, {"article": "a", "abstract": None}], {}, "row 1: expected abstract to be"),
        ([{"article": ["a"], "abstract": "b"}], {}, "row 0: expected article to be text, got ['a']"),
        ([{"article": "a", "highlights": "b"}], {}, "missing column abstract; columns found: article, highlights"),
        ([{"article": "a", "abstract": "b"}], {"passages": 0}, "needs at least 1 passage of the article, got 0"),
        ([{"article": "a", "abstract": "b"}], {"words": 0}, "expected passages of at least 1 word, got 0"),
        ([{"article": "a", "abstract": "b"}], {"shots": 1}, "asked without demonstrations"),
        ([{"article": "a", "abstract": "b"}], {"frozen": Path("f")}, "it takes no retrieval file (f)"),
        ([{"article": "a", "abstract": "b"}], {"name": "pubmed_summary"}, "expected the dataset at"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(
    tmp_path: Path, rows: list[dict[str, Any]], more: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError) as error:
        built(mirror(tmp_path / "m", rows), **more)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_both_sets_have_one_schema(tmp_path: Path) -> None:
    rows = [{"article": "a", "abstract": "b", "section_names": "c"}]
    suite = built(mirror(tmp_path / "m", rows, "pubmed-summarization"), name="pubmed_summary")
    assert (suite.spec.dataset, suite.spec.split) == ("ccdv/pubmed-summarization", "validation")


def test_in_the_world_the_abstract_is_the_first_statement_of_each_passage(world_root: Path) -> None:
    suite = built(DataRoot.open(world_root), words=28)
    for example in suite.examples():
        assert len(example.passages) == 8
        lead = " ".join(passage.text.partition(".")[0] + "." for passage in example.passages)
        assert example.answers == (lead,)
        assert set(suite.score(example, lead).values()) == {1.0}


def test_equal_positions_let_a_compressing_system_read_more(
    world_root: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    """Standard RAG reads what fits, from the start, and never more positions than it was given."""

    def read(positions: int) -> tuple[float, float]:
        job = EvaluateJob(
            system="standard_rag",
            suite="arxiv_summary",
            checkpoint=str(tiny_checkpoint),
            passages=8,
            data=world_root,
            asked={"words": "28"},
            options={"max_positions": positions},
            runs=tmp_path,
            limit=1,
            max_new_tokens=8,
        )
        metrics = job.run().metrics
        assert {"rouge1", "rouge2", "rougeL"} < metrics.keys()
        assert "em" not in metrics
        assert metrics["decoder_positions"]["mean"] + 8 <= positions
        assert "ROUGE-L" in job.said(job.run())
        return metrics["passages_read"]["mean"], metrics["decoder_positions"]["mean"]

    (few, short), (many, long) = read(160), read(400)
    assert 0 < few < many == 8
    assert short < long
