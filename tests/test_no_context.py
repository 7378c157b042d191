"""No context is closed-book standard RAG, whatever was retrieved."""

from pathlib import Path

import pytest
import torch

from baselines.no_context import NoContextConfig
from baselines.standard_rag import StandardRAGConfig
from harness.errors import InputError
from harness.model.load import load_decoder
from harness.protocol import Passage

QUESTIONS = ["what is the birthplace of Mirel Tovan", "Name the rival of Mirel Tovan"]
RETRIEVED = [[Passage(id="1", title="", text="The birthplace of Mirel Tovan is Grell.")], []]


def test_it_answers_as_standard_rag_without_passages(tiny_checkpoint: Path) -> None:
    decoder = load_decoder(str(tiny_checkpoint))
    ours = NoContextConfig(template="tagged").build(decoder)
    closed_book = StandardRAGConfig(template="tagged").build(decoder)
    context, empty = ours.encode(RETRIEVED), closed_book.encode([[], []])
    answered = list(ours.generate(QUESTIONS, context, max_new_tokens=6))
    expected = list(closed_book.generate(QUESTIONS, empty, max_new_tokens=6))
    assert torch.equal(torch.stack(answered), torch.stack(expected))
    usage = ours.usage(QUESTIONS, context, max_new_tokens=6)
    assert usage == closed_book.usage(QUESTIONS, empty, max_new_tokens=6)
    assert [u.passages_read for u in usage] == [0, 0]
    assert ours.text(answered) == closed_book.text(expected)


def test_a_question_that_never_fits_is_refused(tiny_checkpoint: Path) -> None:
    system = NoContextConfig(template="tagged", max_positions=8).build(load_decoder(str(tiny_checkpoint)))
    with pytest.raises(InputError, match="the decoder's context holds 8"):
        system.check(QUESTIONS, max_new_tokens=4)
