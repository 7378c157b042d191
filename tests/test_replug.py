"""REPLUG: one passage is standard RAG, and the mixture is a mean of probabilities."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from loud import answer, loud_decoder, passages
from torch import Tensor
from transformers import LlamaForCausalLM

from baselines.replug import Replug, ReplugConfig, mixed
from baselines.standard_rag import StandardRAGConfig
from harness import prompts
from harness.data.world.tokenizer import build_tokenizer
from harness.errors import InputError
from harness.model.load import Decoder, load_decoder
from harness.protocol import Passage, System

pytestmark = pytest.mark.usefixtures("one_thread")

TOKENIZER = build_tokenizer()
QUESTION = "what is the rival"  # 6 tokens with "?" and the answer tag
THREE = ("The rival of", "is The was was was", "was of is The rival The")


@pytest.fixture(scope="module")
def decoder() -> Decoder:
    return loud_decoder()


@pytest.fixture(scope="module")
def system(decoder: Decoder) -> Replug:
    return ReplugConfig(template="tagged").build(decoder)


def prompt(question: str, *row: Passage) -> list[int]:
    blocks = prompts.TAGGED.passage_ids(TOKENIZER, list(row))
    asked = prompts.TAGGED.question_ids(TOKENIZER, [question])[0]
    return [TOKENIZER.bos_token_id, *(token for block in blocks for token in block), *asked]


@torch.no_grad()
def mean_probability(model: LlamaForCausalLM, rows: list[list[int]]) -> Tensor:
    """By transformers' forward, a prompt at a time."""
    return torch.stack([model(torch.tensor([row])).logits[0, -1].softmax(-1) for row in rows]).mean(0)


def test_one_passage_is_standard_rag(decoder: Decoder, system: Replug) -> None:
    questions = [QUESTION, "Name the", "what"]
    rows = [passages(text) for text in THREE]
    got = answer(system, questions, rows)
    assert got == answer(StandardRAGConfig(template="tagged").build(decoder), questions, rows)
    assert len({token for row in got for token in row}) > 5, "a model that repeats one token proves nothing"


def test_no_passages_is_standard_rags_closed_book(decoder: Decoder, system: Replug) -> None:
    reference = StandardRAGConfig(template="tagged").build(decoder)
    assert answer(system, [QUESTION, "what"], [[], []]) == answer(reference, [QUESTION, "what"], [[], []])
    (ours,) = system.usage([QUESTION], system.encode([[]]), max_new_tokens=4)
    (theirs,) = reference.usage([QUESTION], reference.encode([[]]), max_new_tokens=4)
    assert ours == theirs


@pytest.mark.parametrize("n", [2, 3, 7])
def test_a_passage_said_twice_weighs_nothing_more(system: Replug, n: int) -> None:
    assert answer(system, [QUESTION], [passages(*[THREE[0]] * n)]) == answer(system, [QUESTION], [passages(THREE[0])])


def test_the_mixture_is_the_mean_of_the_probabilities(decoder: Decoder, system: Replug) -> None:
    """At the first token and at the one after it, which every prompt is continued by."""
    row = passages(*THREE)
    rows = [prompt(QUESTION, passage) for passage in row]
    reader = system.reader([QUESTION], system.encode([row]), 4)
    with torch.inference_mode():
        first = reader.first()
        token = first.argmax(-1)
        second = reader.then(token)
    torch.testing.assert_close(first[0].exp(), mean_probability(decoder.model, rows), atol=1e-5, rtol=1e-3)
    longer = [[*ids, int(token)] for ids in rows]
    torch.testing.assert_close(second[0].exp(), mean_probability(decoder.model, longer), atol=1e-5, rtol=1e-3)


def test_the_answer_is_the_mixtures_most_likely_token_at_every_step(decoder: Decoder, system: Replug) -> None:
    row = passages(*THREE)
    rows = [prompt(QUESTION, passage) for passage in row]
    expected = []
    for _ in range(8):
        expected.append(int(mean_probability(decoder.model, rows).argmax()))
        rows = [[*ids, expected[-1]] for ids in rows]
        if expected[-1] in system.prompting.stop_ids:
            break
    assert answer(system, [QUESTION], [row]) == [expected]


def test_probabilities_are_averaged_and_not_their_logarithms() -> None:
    """Token 0 is what one prompt is sure of; token 1 is nowhere the first, but the least unlikely everywhere."""
    p_RV = torch.tensor([[0.9, 0.1, 0.0], [0.0, 0.3, 0.7], [0.5, 0.25, 0.25]])
    logits_RV = p_RV.clamp(min=1e-30).log() + torch.tensor([[3.0], [-8.0], [40.0]])  # logits may be shifted
    torch.testing.assert_close(mixed(logits_RV, [2, 1]).exp(), torch.stack([p_RV[:2].mean(0), p_RV[2]]))
    assert mixed(logits_RV, [2, 1])[0].argmax() == 0 and logits_RV[:2].log_softmax(-1).mean(0).argmax() == 1
    assert mixed(logits_RV.bfloat16(), [3]).dtype == torch.float32


def test_a_batch_answers_as_its_rows_do(system: Replug) -> None:
    questions = [QUESTION, "Name the", "what", "what is the"]
    rows = [passages(*THREE), [], passages(THREE[1]), passages(THREE[2], "was was was was was was was was")]
    together = answer(system, questions, rows)
    for question, row, got in zip(questions, rows, together, strict=True):
        (alone,) = answer(system, [question], [row])
        assert got == alone + [system.pad_id] * (len(got) - len(alone))
    assert len(set(map(tuple, together))) == len(together)


def test_the_order_of_the_passages_says_nothing(system: Replug) -> None:
    expected = answer(system, [QUESTION], [passages(*THREE)])
    for order in ((1, 0, 2), (2, 1, 0), (1, 2, 0)):
        assert answer(system, [QUESTION], [passages(*(THREE[i] for i in order))]) == expected


def test_all_prompts_of_a_question_are_counted(system: Replug) -> None:
    rows = [passages(*THREE), [], passages(THREE[1])]
    usages = system.usage([QUESTION] * 3, system.encode(rows), max_new_tokens=4)
    expected = [
        sum(len(prompt(QUESTION, passage)) for passage in rows[0]),
        len(prompt(QUESTION)),
        len(prompt(QUESTION, *rows[2])),
    ]
    assert [usage.decoder_positions for usage in usages] == expected
    assert [usage.passages_read for usage in usages] == [3, 0, 1]
    assert [usage.stored_bytes for usage in usages] == [0, 0, 0]


@pytest.mark.parametrize("room", range(11, 22))
def test_each_passage_must_fit_alone(decoder: Decoder, system: Replug, room: int) -> None:
    """Whatever stands before it in the ranking, and however many fit beside it."""
    texts, lengths, new = ("of of of of", "is is", "was was was was was was"), (5, 3, 7), 4
    bounded = ReplugConfig(template="tagged", max_positions=room).build(decoder)
    (usage,) = bounded.usage([QUESTION], bounded.encode([passages(*texts)]), max_new_tokens=new)
    fit = [text for text, length in zip(texts, lengths, strict=True) if 1 + length + 6 + new <= room]
    assert usage.passages_read == len(fit)
    assert answer(bounded, [QUESTION], [passages(*texts)], new) == answer(system, [QUESTION], [passages(*fit)], new)


def test_a_question_that_never_fits_is_named(decoder: Decoder) -> None:
    bounded = ReplugConfig(template="tagged", max_positions=11).build(decoder)
    bounded.check([QUESTION], max_new_tokens=4)
    with pytest.raises(InputError, match=r"'what is the rival of' needs 12 positions .* holds 11"):
        bounded.check([QUESTION, "what is the rival of"], max_new_tokens=4)


def test_a_checkpoint_says_its_template(tiny_checkpoint: Path) -> None:
    config = ReplugConfig(**ReplugConfig.defaults(str(tiny_checkpoint)))
    assert config == ReplugConfig(template="tagged")
    system: System = config.build(load_decoder(str(tiny_checkpoint)), None)
    assert len(answer(system, ["what is"], [passages(*THREE)], 3)) == 1
