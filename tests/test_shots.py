"""Few-shot demonstrations: whole, before everything else, the same for every system, and never asked."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from baselines.standard_rag import StandardRAGConfig
from harness import prompts
from harness.data.sources import DataRoot
from harness.data.world.tokenizer import build_tokenizer
from harness.errors import InputError
from harness.model.load import load_decoder
from harness.protocol import Demonstration, Passage
from slurm.jobs.data import RetrieveJob
from slurm.jobs.evaluate import EvaluateJob
from suites import qa, same_relation

TOKENIZER = build_tokenizer()
PASSAGE = Passage(id="1", title="Mirel Tovan", text="The birthplace of Mirel Tovan is Grell.")
SHOWN = Demonstration(question="What is the birthplace of Mirel Tovan?", answer="Grell", passage=PASSAGE)


def test_a_demonstration_is_passage_question_answer_and_its_end() -> None:
    ids = prompts.TAGGED.demonstration_ids(TOKENIZER, [SHOWN])
    (passage,) = prompts.TAGGED.passage_ids(TOKENIZER, [PASSAGE])
    (question,) = prompts.TAGGED.question_ids(TOKENIZER, [SHOWN.question])
    assert ids == [*passage, *question, *prompts.text_ids(TOKENIZER, ["Grell"])[0], TOKENIZER.eos_token_id]


def test_as_text_it_reads_like_the_prompt_that_follows() -> None:
    ids = prompts.TEXT.demonstration_ids(TOKENIZER, [SHOWN, dataclasses.replace(SHOWN, passage=None)])
    said = TOKENIZER.decode(ids).replace(" ", "")
    asked = "Question:WhatisthebirthplaceofMirelTovan?\nAnswer:Grell\n\n"
    assert said == "Title:MirelTovan\nText:ThebirthplaceofMirelTovanisGrell.\n\n" + asked + asked


def test_every_prompt_begins_with_them(tiny_checkpoint: Path) -> None:
    decoder = load_decoder(str(tiny_checkpoint))
    bare = StandardRAGConfig(template="tagged").build(decoder)
    shown = StandardRAGConfig(template="tagged").build(dataclasses.replace(decoder, demonstrations=(SHOWN, SHOWN)))
    context = bare.encode([[PASSAGE]])
    (without,), _ = bare.layout.prompts([SHOWN.question], context, 4)
    (with_them,), _ = shown.layout.prompts([SHOWN.question], context, 4)
    demonstrations = prompts.TAGGED.demonstration_ids(TOKENIZER, [SHOWN, SHOWN])
    assert with_them == [without[0], *demonstrations, *without[1:]]


@pytest.fixture(scope="module")
def retrieval(world_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    job = RetrieveJob(suite="nq", retriever="bm25", data=world_root, runs=tmp_path_factory.mktemp("runs"))
    return job.run().path


def test_demonstrations_are_the_sets_last_questions_and_are_not_asked(world_root: Path, retrieval: Path) -> None:
    root = DataRoot.open(world_root)
    all_, some = (qa.build("nq", root, passages=2, frozen=retrieval, limit=None, shots=n) for n in (0, 2))
    last = all_.questions[-2:]
    assert some.questions == all_.questions[:-2]
    assert [(d.question, d.answer) for d in some.demonstrations] == [(e.question, e.answers[0]) for e in last]
    assert [d.passage for d in some.demonstrations] == [e.passages[0] for e in last]
    assert all_.demonstrations == ()


def test_a_limit_takes_none_of_them(world_root: Path) -> None:
    suite = qa.build("nq", DataRoot.open(world_root), passages=0, frozen=None, limit=29, shots=2)
    assert len(suite.questions) == 28, "of 30 questions two are shown"
    assert [d.passage for d in suite.demonstrations] == [None, None]


@pytest.mark.parametrize(("shots", "complaint"), [(-1, "at least 0"), (30, "leave none to ask")])
def test_impossible_numbers_are_refused(world_root: Path, shots: int, complaint: str) -> None:
    with pytest.raises(InputError, match=complaint):
        qa.build("nq", DataRoot.open(world_root), passages=0, frozen=None, limit=None, shots=shots)


def test_the_hard_set_is_asked_without(world_root: Path) -> None:
    with pytest.raises(InputError, match="without demonstrations"):
        same_relation.build("same_relation", DataRoot.open(world_root), passages=2, frozen=None, limit=None, shots=2)


def test_they_are_part_of_a_runs_identity_where_there_are_any(
    world_root: Path, retrieval: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    def cell(shots: int) -> EvaluateJob:
        return EvaluateJob(
            system="standard_rag",
            suite="nq",
            checkpoint=str(tiny_checkpoint),
            passages=2,
            data=world_root,
            retrieval=retrieval,
            shots=shots,
            runs=tmp_path,
        )

    none, two = cell(0).open(), cell(2).open()
    assert "shots" not in none.spec.system.config, "runs from before there were any keep their identity"
    assert two.spec.system.config["shots"] == 2
    record = cell(2).run()
    assert record.n_examples == 28
    assert record.n_errors == 0
    shown = record.metrics["decoder_positions"]["mean"] - cell(0).run().metrics["decoder_positions"]["mean"]
    assert shown > 60, "two passages of 32 tokens with their questions"
