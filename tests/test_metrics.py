"""Every dialect against the scores of its published code, and by hand where dialects part ways."""

import gzip
import json
import string
import unicodedata
from typing import Any

import pytest
import regex
from conftest import SHARED, shared_path
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.errors import InputError
from harness.metrics import (
    BINARY,
    METRIC_VERSION,
    contains_any,
    dpr_tokens,
    exact_match_lmeval_nq,
    exact_match_lmeval_triviaqa,
    has_answer_dpr,
    normalise_triviaqa,
    normalises_to_nothing,
    score_answer,
)

DIALECTS = {
    "em",
    "em_re",
    "f1",
    "f1_yesno0",
    "sub_em",
    "em_triviaqa",
    "f1_triviaqa",
    "acc_popqa",
    "match_selfrag",
    "em_lmeval_nq",
    "em_lmeval_triviaqa",
    "has_answer_dpr",
}

# Expected scores were stored with six decimals.
VECTORS_FILE = SHARED / "metric_vectors.jsonl"
VECTORS = [json.loads(line) for line in VECTORS_FILE.read_text().splitlines()] if VECTORS_FILE.exists() else []
needs_vectors = pytest.mark.skipif(not VECTORS, reason=f"needs {VECTORS_FILE.name} of the external data")


@needs_vectors
@pytest.mark.parametrize("vector", VECTORS, ids=[f"{v['id']}-{v['category']}" for v in VECTORS])
def test_against_published_code(vector: dict[str, Any]) -> None:
    scores = score_answer(vector["prediction"], vector["golds"])
    assert {name: round(score, 6) for name, score in scores.items()} == vector["expected"], vector["note"]


@needs_vectors
def test_the_vectors_are_all_there_and_of_this_version() -> None:
    assert (len(VECTORS), METRIC_VERSION) == (259, 1)


A_GRAVE = "a\N{COMBINING GRAVE ACCENT}"  # a decomposed "à"


@pytest.mark.parametrize(
    ("prediction", "golds", "expected"),
    [
        # em and sub_em see a letter "à"; what uses ``re`` sees the article "a" and a mark.
        (A_GRAVE, ["\N{COMBINING GRAVE ACCENT}"], {"em": 0, "em_re": 1, "f1": 1, "sub_em": 1, "em_triviaqa": 1}),
        # Only the latter turn "voilà à" into "voilà" and a lone mark.
        (f"voila {A_GRAVE}", ["voila \N{COMBINING GRAVE ACCENT}"], {"em": 0, "em_re": 1, "f1_yesno0": 1, "sub_em": 0}),
        # Both sides normalise to nothing: em is 1, token F1 is 0, lm-eval keeps a final article.
        ("the", ["a"], {"em": 1, "f1": 0, "sub_em": 1, "em_triviaqa": 1, "em_lmeval_nq": 0, "has_answer_dpr": 0}),
        ("", ["The The"], {"em": 1, "f1": 0, "em_triviaqa": 1, "em_lmeval_triviaqa": 0, "acc_popqa": 0}),
        # Yes and no must match whole in CEPE's F1 only, on either side: 1 of 1 and 1 of 3 tokens are shared.
        ("yes", ["yes it is"], {"f1": 0.5, "f1_yesno0": 0, "f1_triviaqa": 0.5}),
        ("no it is", ["No!"], {"f1": 0.5, "f1_yesno0": 0, "f1_triviaqa": 0.5}),
        ("No.", ["no"], {"em": 1, "f1_yesno0": 1, "match_selfrag": 0}),
        ("no", ["yes", "no"], {"f1_yesno0": 1}),
        ("noanswer", ["noanswer given"], {"f1": 2 / 3, "f1_yesno0": 0}),
        # TriviaQA makes spaces where SQuAD deletes.
        ("Spider-Man", ["Spider Man"], {"em": 0, "em_triviaqa": 1}),
        ("snake_case", ["snake case"], {"em": 0, "em_triviaqa": 1, "has_answer_dpr": 0}),
        ("snake_case", ["snakecase"], {"em": 1, "em_triviaqa": 0}),
        # Typographic quotes are punctuation to TriviaQA alone; dashes and guillemets are so to nobody.
        ("‘Yesterday’", ["Yesterday"], {"em": 0, "em_triviaqa": 1, "has_answer_dpr": 1}),
        ("´Yesterday`", ["Yesterday"], {"em": 0, "em_triviaqa": 1}),
        ("“Yesterday”", ["Yesterday"], {"em": 0, "em_triviaqa": 0, "sub_em": 1}),
        # An article that only deleting punctuation makes: "T.H.E." is "the" to SQuAD, three letters to TriviaQA.
        ("T.H.E. Cat", ["Cat"], {"em": 1, "em_triviaqa": 0, "em_lmeval_nq": 0}),
        # Raw substrings: PopQA tries lower and capitalised forms, Self-RAG neither; both match inside a word.
        ("an actor", ["Actor"], {"acc_popqa": 1, "match_selfrag": 0, "has_answer_dpr": 1}),
        ("An Actor", ["ACTOR"], {"acc_popqa": 1, "match_selfrag": 0}),
        ("a MUSIC teacher", ["Music"], {"acc_popqa": 0, "match_selfrag": 0, "sub_em": 1}),
        ("Iran", ["Ira"], {"sub_em": 1, "acc_popqa": 1, "match_selfrag": 1, "has_answer_dpr": 0}),
        # lm-eval: nq deletes articles before a space, triviaqa none; the prediction is stripped, a gold is not.
        (" The Beatles ", ["Beatles"], {"em_lmeval_nq": 1, "em_lmeval_triviaqa": 0}),
        ("Beatles", ["Beatles "], {"em": 1, "em_lmeval_nq": 0, "em_lmeval_triviaqa": 0}),
        ("New  York", ["New York"], {"em": 1, "em_lmeval_nq": 0}),
        # Composed and decomposed letters are one to DPR and two to everything else.
        (
            "Beyonc\N{LATIN SMALL LETTER E WITH ACUTE}",
            ["Beyonce\N{COMBINING ACUTE ACCENT}"],
            {"has_answer_dpr": 1, "em": 0},
        ),
        # Multisets: "new" and "york" once each of 2 and of 4 tokens, P = 1, R = 1/2.
        ("new york", ["new york new york"], {"f1": 2 / 3, "f1_yesno0": 2 / 3, "f1_triviaqa": 2 / 3}),
        ("Kennedy", ["Johnson", "John F. Kennedy"], {"f1": 0.5, "em": 0, "sub_em": 0}),
    ],
)
def test_where_dialects_part_ways(prediction: str, golds: list[str], expected: dict[str, float]) -> None:
    scores = score_answer(prediction, golds)
    assert {name: scores[name] for name in expected} == pytest.approx(expected)


def test_names_of_the_dialects() -> None:
    scores = score_answer("Paris", ["Paris"])
    assert set(scores) == DIALECTS
    assert all(type(score) is float for score in scores.values())
    assert BINARY == DIALECTS - {"f1", "f1_yesno0", "f1_triviaqa"}


@settings(deadline=None)
@given(st.text(), st.lists(st.text(), min_size=1, max_size=4))
def test_scores_lie_between_0_and_1_and_another_gold_never_hurts(prediction: str, golds: list[str]) -> None:
    one, all_golds = score_answer(prediction, golds[:1]), score_answer(prediction, golds)
    for name in DIALECTS:
        assert 0 <= all_golds[name] <= 1
        assert name not in BINARY or all_golds[name] in (0, 1)
        if not name.startswith("em_lmeval"):  # where golds share an array, see test_against_lm_eval
            assert one[name] <= all_golds[name]


@pytest.mark.parametrize("golds", [[], ()])
def test_no_gold_is_an_error(golds: list[str]) -> None:
    with pytest.raises(InputError, match="at least one gold"):
        score_answer("Paris", golds)
    with pytest.raises(InputError, match="at least one gold"):
        has_answer_dpr("Paris", golds)


def test_golds_that_were_left_as_json_are_an_error() -> None:
    """PopQA's possible_answers is a JSON text: as a sequence of letters it would match nearly every prediction."""
    with pytest.raises(InputError, match="list of gold answers"):
        score_answer("a politician", '["politician"]')


@pytest.mark.parametrize(
    ("gold", "nothing"),
    [("The The", True), ("---", True), ("A+", True), ("", True), ("AB+", False), (A_GRAVE, False), ("–", False)],
)
def test_normalises_to_nothing(gold: str, nothing: bool) -> None:
    assert normalises_to_nothing(gold) is nothing
    assert score_answer("", [gold])["em"] == nothing


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("U.S. 54 Mbit/s", ["u", ".", "s", ".", "54", "mbit", "/", "s"]),
        ("snake_case\t\n\N{NO-BREAK SPACE}end", ["snake", "_", "case", "end"]),
        ("Dvo\N{LATIN SMALL LETTER R WITH CARON}ák", ["dvor\N{COMBINING CARON}a\N{COMBINING ACUTE ACCENT}k"]),
        ("x\N{ZERO WIDTH SPACE}y", ["x", "y"]),
        ("東京²", ["東京²"]),
        (" \n", []),
    ],
)
def test_dpr_tokens(text: str, tokens: list[str]) -> None:
    assert dpr_tokens(text).split() == tokens


def dpr_has_answer_by_lists(text: str, golds: list[str]) -> bool:
    """DPR's test as it is described: two lists of tokens, each lower-cased by itself, compared at every offset."""
    pattern = regex.compile(r"([\p{L}\p{N}\p{M}]+)|([^\p{Z}\p{C}])", regex.IGNORECASE | regex.MULTILINE)

    def words(text: str) -> list[str]:
        return [match.group().lower() for match in pattern.finditer(unicodedata.normalize("NFD", text))]

    passage = words(text)
    return any(
        passage[start : start + len(gold)] == gold
        for gold in map(words, golds)
        for start in range(len(passage) - len(gold) + 1)
    )


# Few letters, so that golds do occur in texts; among them what lower-cases by context (Σ), grows (İ) or decomposes (é).
DENSE_TEXT = st.text(
    st.sampled_from("abA.- _'\n²ΣσςİIé각\N{COMBINING ACUTE ACCENT}\N{NO-BREAK SPACE}\x00"), max_size=12
)


@settings(deadline=None)
@given(DENSE_TEXT, st.lists(DENSE_TEXT.map(lambda text: text[:3]), min_size=1, max_size=3))
def test_has_answer_is_the_token_subsequence_test(text: str, golds: list[str]) -> None:
    assert has_answer_dpr(text, golds) == dpr_has_answer_by_lists(text, golds)


@settings(deadline=None)
@given(st.text(), st.text())
def test_has_answer_on_any_text(text: str, gold: str) -> None:
    assert has_answer_dpr(text, [gold]) == dpr_has_answer_by_lists(text, [gold])


def test_no_gold_is_contained_in_nothing() -> None:
    assert not contains_any(dpr_tokens("Paris"), [])


@pytest.mark.parametrize("name", ["nq_ctxs20", "popqa_ctxs10", "triviaqa_ctxs10"])
def test_has_answer_against_labelled_passages(name: str) -> None:
    """16,500 real passages that were labelled with DPR's own code."""
    wrong = 0
    with gzip.open(shared_path(f"data/ctxs/{name}.jsonl.gz"), "rt", encoding="utf-8") as lines:
        for row in map(json.loads, lines):
            golds = [dpr_tokens(answer) for answer in row["answers"]]
            wrong += sum(contains_any(dpr_tokens(ctx["text"]), golds) != ctx["hasanswer"] for ctx in row["ctxs"])
    assert wrong == 0


def test_triviaqa_normaliser_against_the_data_set() -> None:
    pandas = pytest.importorskip("pandas")
    folder = shared_path("data/hub/mandarjoshi/trivia_qa/rc.nocontext")
    answers = pandas.concat([pandas.read_parquet(path) for path in sorted(folder.glob("*.parquet"))])["answer"]
    for answer in answers:
        assert {normalise_triviaqa(alias) for alias in answer["aliases"]} == set(answer["normalized_aliases"])


# numpy drops NUL at the end of a string, so lm-eval cannot tell "a" from "a\0"; no tokenizer writes NUL either.
LMEVAL_TEXT = st.lists(
    st.sampled_from(["The ", "the ", "an ", "A ", "a", "İ", "Paris", "paris", " ", ".", "\n", "é"]), max_size=5
).map("".join)


@settings(deadline=None)
@given(LMEVAL_TEXT, st.lists(LMEVAL_TEXT, min_size=1, max_size=4))
def test_against_lm_eval(prediction: str, golds: list[str]) -> None:
    """The metric function of lm-eval, called as its task runner calls it: the prediction once per gold."""
    metrics = pytest.importorskip("lm_eval.api.metrics")
    repeated = [prediction.strip()] * len(golds)
    flags = {"ignore_case": True, "ignore_punctuation": True}
    articles = {"regexes_to_ignore": [r"\b(?:The |the |An |A |The |a |an )"]}
    nq = metrics.exact_match_hf_evaluate(predictions=repeated, references=golds, **flags, **articles)
    triviaqa = metrics.exact_match_hf_evaluate(predictions=repeated, references=golds, **flags)
    assert exact_match_lmeval_nq(prediction, golds) == (nq["exact_match"] > 0)
    assert exact_match_lmeval_triviaqa(prediction, golds) == (triviaqa["exact_match"] > 0)


def test_every_ascii_punctuation_character_is_nothing_to_squad_and_a_space_to_triviaqa() -> None:
    for character in string.punctuation:
        assert score_answer(f"x{character}y", ["xy"])["em"] == 1
        assert score_answer(f"x{character}y", ["x y"])["em_triviaqa"] == 1
