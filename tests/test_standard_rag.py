"""Standard RAG: whole passages, an uncut question, and answers that do not depend on the batch."""

from pathlib import Path

import pytest
import torch

from baselines.standard_rag import StandardRAG, StandardRAGConfig
from harness import prompts
from harness.errors import InputError
from harness.model.load import load_decoder
from harness.protocol import Passage


@pytest.fixture(scope="module")
def system(tiny_checkpoint: Path) -> StandardRAG:
    return StandardRAGConfig(template="tagged").build(load_decoder(str(tiny_checkpoint)))


def windowed(checkpoint: Path, tokens: int) -> StandardRAG:
    return StandardRAGConfig(template="tagged", max_positions=tokens).build(load_decoder(str(checkpoint)))


def passages(*texts: str) -> list[Passage]:
    return [Passage(id=str(i), title="t", text=text) for i, text in enumerate(texts)]


def answer(system: StandardRAG, questions: list[str], rows: list[list[Passage]], n: int = 6) -> list[str]:
    context = system.encode(rows)
    return system.text(list(system.generate(questions, context, max_new_tokens=n)))


def test_the_prompt_is_start_passages_question(system: StandardRAG) -> None:
    row = passages("The rival of", "is The")
    prompt, read = system.layout.prompts(["what is"], system.encode([row]), 4)
    template, tokenizer = prompts.TAGGED, system.prompting.tokenizer
    blocks = template.passage_ids(tokenizer, row)
    expected = [tokenizer.bos_token_id, *blocks[0], *blocks[1], *template.question_ids(tokenizer, ["what is"])[0]]
    assert prompt == [expected]
    assert read == [2]


@pytest.mark.parametrize("room", range(14, 40))
def test_truncation_drops_whole_passages_from_the_end(tiny_checkpoint: Path, room: int) -> None:
    system = windowed(tiny_checkpoint, room)
    row = passages("of of of of", "is is is", "was was was was was")  # 5, 4 and 6 tokens with their tags
    question, new = "what is the rival", 4  # 6 tokens with "?" and <answer>, and the start token before
    (usage,) = system.usage([question], system.encode([row]), max_new_tokens=new)
    free = room - new - 1 - 6
    assert usage.passages_read == sum(free >= needed for needed in (5, 9, 15))
    assert usage.decoder_positions + new <= room


def test_the_question_is_never_cut(tiny_checkpoint: Path) -> None:
    system = windowed(tiny_checkpoint, 11)
    system.check(["what is the rival"], max_new_tokens=4)
    with pytest.raises(InputError, match=r"'what is the rival of' needs 12 positions .* holds 11"):
        system.check(["what is", "what is the rival of"], max_new_tokens=4)


def test_a_batch_answers_as_its_rows_do(system: StandardRAG) -> None:
    questions = ["what is the rival of", "Name the", "what"]
    rows = [passages("The rival of", "is"), [], passages("was was was was was was was was")]
    together = answer(system, questions, rows)
    assert together == [answer(system, [q], [row])[0] for q, row in zip(questions, rows, strict=True)]
    assert len(set(together)) > 1


def test_two_equal_calls_give_equal_answers(system: StandardRAG) -> None:
    rows = [passages("The rival of")]
    assert answer(system, ["what is"], rows) == answer(system, ["what is"], rows)


def test_closed_book_reads_no_passage(system: StandardRAG) -> None:
    (usage,) = system.usage(["what is"], system.encode([[]]), max_new_tokens=4)
    assert usage.passages_read == 0


def test_encode_cannot_see_the_question(system: StandardRAG) -> None:
    context = system.encode([passages("The rival of")])
    assert context == [prompts.TAGGED.passage_ids(system.prompting.tokenizer, passages("The rival of"))]


def test_generated_tokens_are_those_of_transformers(system: StandardRAG) -> None:
    prompt, _ = system.layout.prompts(["what is the"], system.encode([passages("The rival of is")]), 8)
    expected = system.llama.model.generate(
        torch.tensor(prompt),
        max_new_tokens=8,
        do_sample=False,
        eos_token_id=system.prompting.stop_ids,
        pad_token_id=system.pad_id,
    )[0, len(prompt[0]) :]
    columns = list(system.generate(["what is the"], system.encode([passages("The rival of is")]), max_new_tokens=8))
    assert torch.cat(columns).tolist() == expected.tolist()
