"""Contexts of exact length: what is hidden stands whole, where it was put, and is the same for every system."""

from __future__ import annotations

import itertools
import json
import random
from pathlib import Path
from typing import Any

import pytest
from conftest import shared_path

from harness import prompts
from harness.config import digest
from harness.data import passkey
from harness.data.haystack import Hidden, Ruler, Words, check_lengths, filled
from harness.data.world.facts import count_people, is_test, values_stated
from harness.data.world.lexicon import lexicon
from harness.data.world.links import _people, draw_chain
from harness.data.world.memory_practice import PRACTICE, Following, KeyFinding, Spelling
from harness.data.world.tokenizer import build_tokenizer
from harness.errors import InputError
from harness.record import MadeSuiteSpec, RunRecord, RunSpec, SuiteSpec
from harness.run import summarise
from slurm.jobs.evaluate import EvaluateJob
from suites.long_range import LongRangeConfig
from suites.passkey import PasskeyConfig

TOKENIZER = build_tokenizer()
RULER = Ruler(TOKENIZER)


def tokens(texts: list[str]) -> list[int]:
    return [len(ids) for ids in prompts.text_ids(TOKENIZER, texts)]


def passkeys(**changes: Any) -> Any:
    settings: dict[str, Any] = dict(length=512, n=3, instructions=False)
    return PasskeyConfig(**settings | changes).build("passkey", TOKENIZER, None)


@pytest.mark.parametrize("length", [128, 256, 512, 4096])
@pytest.mark.parametrize("piece", [64, 128])
def test_every_passage_has_exactly_its_tokens(length: int, piece: int) -> None:
    for example in passkeys(length=length, piece=piece).examples():
        assert tokens([p.text for p in example.passages]) == [piece] * (length // piece)


def test_a_key_stands_whole_in_one_passage_at_its_depth() -> None:
    for example in passkeys(length=1024, n=5).examples():
        (key,) = example.answers
        texts = [p.text for p in example.passages]
        (place,) = [i for i, text in enumerate(texts) if key in text]
        assert f"The pass key is {key}. Remember it. {key} is the pass key." in texts[place]
        assert place == min(int(example.meta["depth"] / 100 * 16), 15)
    shallow, deep = (passkeys(length=64, n=1, depths=(depth,)).questions[0].passages[0].text for depth in (0, 100))
    assert shallow.startswith("The pass key")
    assert deep.endswith("pass key.")


def test_depths_are_asked_in_turn_and_scored_apart() -> None:
    suite = PasskeyConfig(length=512, depths=(0, 100), n=4, instructions=False).build("passkey", TOKENIZER, 3)
    assert [example.meta["depth"] for example in suite.examples()] == [0, 100, 0]
    rows = []
    for example, text in zip(suite.examples(), ["", "the key", ""], strict=True):
        said = text or example.answers[0]
        rows.append({"scores": suite.score(example, said), "usage": {}})
    metrics = summarise(rows)
    assert (metrics["em@0"]["mean"], metrics["em@0"]["n"]) == (1.0, 2)
    assert (metrics["em@100"]["mean"], metrics["em@100"]["n"]) == (0.0, 1)
    assert metrics["em"]["mean"] == pytest.approx(2 / 3)
    assert metrics["em@0"]["method"] == "wilson"


def test_digits_count_at_their_place() -> None:
    suite = passkeys(n=1)
    example = suite.questions[0]
    key = example.answers[0]
    wrong = str((int(key[0]) + 1) % 10) + key[1:]
    assert suite.score(example, f" {key}")["em"] == 1.0
    assert suite.score(example, wrong)["digits"] == 0.8
    assert suite.score(example, wrong)["em"] == 0.0
    assert suite.score(example, "")["digits"] == 0.0


def test_the_asked_key_is_one_of_several_and_the_others_are_there_too() -> None:
    suite = passkeys(length=512, keys=4, n=4)
    for example in suite.examples():
        text = " ".join(p.text for p in example.passages)
        owner = example.question.removeprefix("What is the pass key of ")
        assert f"The pass key of {owner} is {example.answers[0]}." in text
        assert text.count("Remember it.") == 4
        assert suite.score(example, "")["chance"] == 0.25
    with pytest.raises(InputError, match="has no room"):
        passkeys(length=128, keys=4)


def test_test_keys_never_occur_in_training() -> None:
    rng = random.Random(0)
    assert all(passkey.is_test(example.answers[0]) for example in passkeys().examples())
    for position in range(8):
        for row in PRACTICE.draw(rng, position, TOKENIZER):
            said = TOKENIZER.decode([t for block in row.context for t in block.text])
            numbers = [word.strip(".") for word in said.split() if word.strip(".").isdigit()]
            assert not any(len(number) == 5 and passkey.is_test(number) for number in numbers)


def test_the_same_settings_give_the_same_questions_and_others_another_identity() -> None:
    assert passkeys().spec == passkeys().spec
    assert passkeys().questions == passkeys().questions
    specs = [passkeys(**c).spec for c in ({}, {"seed": 1}, {"keys": 2}, {"n": 4}, {"piece": 128}, {"digits": 4})]
    assert len({digest(spec) for spec in specs}) == len(specs)
    assert len({spec.revision for spec in specs}) == len(specs)


def test_the_instructions_stand_before_every_depth() -> None:
    for example in passkeys(length=512, instructions=True, n=1).examples():
        text = " ".join(p.text for p in example.passages)
        assert tokens([p.text for p in example.passages]) == [64] * 8
        assert text.startswith("There is an important info hidden")
        assert text.index("information there.") < text.index("The pass key is")
    with pytest.raises(InputError, match="no room for 192 tokens of instructions"):
        passkeys(length=128, instructions=True)


def test_the_words_are_the_published_ones() -> None:
    path = shared_path("data/passkey/passkey_landmark.jsonl")
    for line in path.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        assert row["prompt"].startswith(passkey.INSTRUCTIONS)
        assert passkey.statement(row["answer"], None) in row["prompt"]
        assert " ".join(passkey.FILLER) in row["prompt"]
        assert row["prompt"].splitlines()[-1].startswith(passkey.question(None) + "?")


def test_two_texts_cannot_share_a_passage_and_long_ones_are_refused() -> None:
    def hide(*texts: Hidden, length: int = 64) -> list[str]:
        return filled(RULER, Words(passkey.FILLER, phase=0), texts, length=length, piece=32)

    assert tokens(hide(Hidden(text="The key is 1.", depth=0.4))) == [32, 32]
    with pytest.raises(InputError, match="two hidden texts in piece 1 of 2"):
        hide(Hidden(text="a", depth=0.0), Hidden(text="b", depth=0.1))
    with pytest.raises(InputError, match="a piece has 32"):
        hide(Hidden(text=passkey.statement("12345", None), depth=0.0))
    with pytest.raises(InputError, match="multiple of 32"):
        hide(length=40)
    with pytest.raises(InputError, match="merges across words"):
        check_lengths(RULER, ["The grass"], 32)


class Merging:
    """A tokenizer that makes one token of any text, however long."""

    def __call__(self, texts: list[str], **_: Any) -> dict[str, list[list[int]]]:
        return {"input_ids": [[0] for _ in texts]}


def test_a_tokenizer_without_exact_lengths_is_refused() -> None:
    merging: Any = Merging()
    with pytest.raises(InputError, match="cannot be made of an exact length"):
        Ruler(merging)


@pytest.mark.parametrize("distance", [32, 256, 1024])
def test_a_chain_has_its_far_fact_at_the_distance(distance: int) -> None:
    rng = random.Random(distance)
    for _ in range(10):
        chain = draw_chain(rng, RULER, "test", distance=distance, piece=32)
        assert set(tokens(list(chain.passages))) == {32}
        b = chain.far.one_step.split(" of ")[1]
        asker = chain.far.two_steps.split(" of ")[2]
        assert f"of {asker} " in chain.passages[-1]
        assert b in chain.passages[-1]
        (place,) = [i for i, text in enumerate(chain.passages[:-1]) if b in text]
        assert 32 * (len(chain.passages) - 2 - place) == distance  # between the two passages
        assert chain.far.answer in values_stated(chain.passages[place], chain.far.two_steps)
        assert any(chain.other.answer in values_stated(text, chain.far.one_step) for text in chain.passages[:-1])
        words = lexicon()
        first, last = b.split()
        assert is_test((words.first_names.index(first), words.last_names.index(last)))


def test_the_control_differs_in_the_question_alone() -> None:
    two, one = (LongRangeConfig(distance=64, steps=n, n=20).build("long_range", TOKENIZER, None) for n in (2, 1))
    for asked, control in zip(two.examples(), one.examples(), strict=True):
        assert asked.passages == control.passages
        assert asked.answers == control.answers
        assert asked.question != control.question
        scores = two.score(asked, asked.answers[0])
        assert scores["em"] == 1.0
        assert 0 < scores["chance"] < 1
    assert two.score(asked, asked.meta["other"])["other_link"] == 1.0


def test_impossible_settings_are_refused() -> None:
    for wrong in ({"n": 0}, {"depths": (50, 50)}, {"depths": (101,)}, {"digits": 0}):
        with pytest.raises(InputError):
            PasskeyConfig(length=512, **wrong)
    with pytest.raises(InputError, match="1 or 2 steps"):
        LongRangeConfig(distance=64, steps=3)
    with pytest.raises(InputError, match="multiple of 32"):
        LongRangeConfig(distance=40).build("long_range", TOKENIZER, None)


def test_practice_asks_for_what_it_says_and_no_longer_than_it_says() -> None:
    rng = random.Random(1)
    (row, *_) = KeyFinding(lengths=(256,), tokens=256, keys=(4,)).draw(rng, 0, TOKENIZER)
    assert [len(block.text) for block in row.context] == [64] * 4
    answers = [t for t, answer in zip(row.tail, row.is_answer, strict=True) if answer]
    said = TOKENIZER.decode(answers, skip_special_tokens=True).split()
    assert len(said) == 4
    context = TOKENIZER.decode([t for block in row.context for t in block.text])
    assert all(f"is {key}. Remember it. {key} is" in context for key in said)

    (row, *_) = Spelling(numbers=(2,)).draw(rng, 0, TOKENIZER)
    assert row.tail == row.context[0].text
    assert all(row.is_answer)

    for row in Following(distances=(64,), tokens=64 * 40).draw(rng, 0, TOKENIZER):
        said = TOKENIZER.decode(row.tail, skip_special_tokens=False).split("<answer>")
        subjects = {part.split("</s>")[-1].rstrip("?").split(" of ")[-1] for part in said[:2]}
        assert len(subjects) == 2, "the second answer could be copied from the first"

    longest = max(Following(distances=(352,), tokens=352 * 40).draw(rng, 0, TOKENIZER), key=lambda r: len(r.context))
    assert sum(len(block.text) for block in longest.context) <= passkey.TRAINED_LENGTH


def test_a_suite_that_makes_its_questions_has_its_settings_in_the_identity_and_others_keep_theirs(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    def job(**asked: Any) -> EvaluateJob:
        return EvaluateJob(
            system="standard_rag", suite="passkey", checkpoint=str(tiny_checkpoint), runs=tmp_path, asked=asked, limit=2
        )

    first = job(length="128", instructions="false", depths="0,100").open()
    again = job(length=128, instructions=False, depths=(0, 100)).open()
    other = job(length=256, instructions=False, depths=(0, 100)).open()
    assert first.spec.run_id == again.spec.run_id != other.spec.run_id
    assert (first.spec.passages, other.spec.passages) == (2, 4)
    assert isinstance(first.spec.suite, MadeSuiteSpec)
    assert first.spec.suite.settings["depths"] == (0, 100)
    record = job(length=128, instructions=False, depths=(0, 100)).run()
    assert record.metrics["decoder_positions"]["mean"] > 128
    assert RunRecord.read(first.spec.folder(tmp_path)).spec["suite"]["settings"]["length"] == 128

    # The digest of an accepted record's spec is still its name.
    path = next((Path(__file__).parents[1] / "results" / "records" / "same_relation").rglob("record.json"))
    record = RunRecord.read(path.parent)
    assert digest(record.spec) == record.run_id
    assert set(record.spec["suite"]) == set(SuiteSpec.__dataclass_fields__)
    assert set(record.spec) == set(RunSpec.__dataclass_fields__)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"asked": {}}, "needs a setting of length"),
        ({"asked": {"length": "many"}}, "expected int, got 'many'"),
        ({"asked": {"size": 1}}, "setting of passkey"),
        ({"asked": {"length": 128}, "passages": 4}, "makes its own passages"),
        ({"asked": {"length": 128, "instructions": "perhaps"}}, "valid choices: false, true"),
        ({"suite": "nq", "asked": {"length": 128}}, "suite nq takes no settings"),
        ({"suite": "none", "asked": {}}, "valid choices: .*long_range, nq, .*passkey"),
    ],
)
def test_settings_that_do_not_fit_are_refused(
    changes: dict[str, Any], said: str, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    settings: dict[str, Any] = dict(
        system="standard_rag", suite="passkey", checkpoint=str(tiny_checkpoint), runs=tmp_path
    )
    with pytest.raises(InputError, match=said):
        EvaluateJob(**settings | changes).open()


def test_settings_that_no_draw_could_fill_are_refused() -> None:
    with pytest.raises(InputError, match="token of a piece, got 50, 1, 5 and 0"):
        PasskeyConfig(length=64, piece=0)
    with pytest.raises(InputError, match="there are 1 test keys of 1 digits"):
        PasskeyConfig(length=64, digits=1, keys=2)
    assert PasskeyConfig(length=64, digits=2, keys=18).keys == 18
    there = count_people("test")
    names = itertools.product(range(len(lexicon().first_names)), range(len(lexicon().last_names)))
    assert there == sum(map(is_test, names))
    with pytest.raises(InputError, match=f"{there} people of the test split"):
        _people(random.Random(0), there + 1, "test")
